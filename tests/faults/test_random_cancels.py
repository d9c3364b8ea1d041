"""Row 8: submissions and cancels at random, from several threads.

Each task leaves a mark in a file. One that was reported cancelled before its start (its future has no
process) must not have left one.
"""

import collections
import concurrent.futures
import mmap
import random
import threading

import pytest
from pebble import ProcessPool

import tasks

NUMBERS_PER_THREAD = {"fork": 25_000, "forkserver": 2_500, "spawn": 2_500}
THREADS = 4
HANGING = 8
"""Of a thread's tasks; each costs a worker."""

marks = None


def open_marks(path):
    global marks
    with open(path, "r+b") as file:
        marks = mmap.mmap(file.fileno(), 0)


def mark(number):
    marks[number] = 1
    return number


def mark_and_hang(number):
    mark(number)
    tasks.hang()


class Submissions:
    """One thread's: each call is cancelled at once, soon after others have been made, or never."""

    def __init__(self, numbers, seed):
        self.numbers, self.chance = numbers, random.Random(seed)
        self.hanging = set(self.chance.sample(numbers, HANGING))
        self.futures, self.cancelled = {}, {}

    def submit(self, pool):
        candidates = []
        for number in self.numbers:
            self.futures[number] = self.schedule(pool, number)
            if self.chance.random() < 0.3:
                candidates.append(number)
            if len(candidates) == 20:
                self.chance.shuffle(candidates)
                for each in candidates[:10]:
                    self.cancelled[each] = self.futures[each].cancel()
                del candidates[:10]

    def schedule(self, pool, number):
        if number in self.hanging:
            return pool.schedule(mark_and_hang, args=(number,), timeout=0.005)
        timeout = self.chance.choice((None, 60))
        return pool.schedule(mark, args=(number,), timeout=timeout)

    def outcome(self, number):
        """After the end; what is wrong fails. A future without a process says that it never started."""
        future = self.futures[number]
        assert future.cancelled() == self.cancelled.get(number, False)
        if future.cancelled():
            assert not (future.pid is None and marks[number])
            return "cancelled later" if future.pid else "cancelled before its start"
        if number in self.hanging:
            assert isinstance(future.exception(), concurrent.futures.TimeoutError)
            return "timed out"
        assert future.result() == number and marks[number]
        return "performed"


@pytest.mark.timeout(60)
def test_none_is_lost_and_none_runs_after_its_cancel(tmp_path, start_method):
    count = NUMBERS_PER_THREAD[start_method]
    path = tmp_path / "marks"
    path.write_bytes(bytes(count * THREADS))
    parts = [Submissions(range(n * count, (n + 1) * count), n) for n in range(THREADS)]
    with ProcessPool(max_workers=2, initializer=open_marks, initargs=(path,)) as pool:
        threads = [threading.Thread(target=part.submit, args=(pool,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        futures = [future for part in parts for future in part.futures.values()]
        assert len(futures) == count * THREADS
        assert not concurrent.futures.wait(futures, 40).not_done
    open_marks(path)
    outcomes = collections.Counter(
        part.outcome(number) for part in parts for number in part.numbers
    )
    print(outcomes)
    assert outcomes["cancelled before its start"] > count // 10
    assert outcomes["timed out"] > HANGING
    assert outcomes["performed"] > count
