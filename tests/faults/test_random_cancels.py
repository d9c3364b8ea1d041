"""Row 8: submissions and cancels at random, from several threads.

Each task leaves a mark in a file. One that was reported cancelled before its start (its future has no
process) must not have left one.
"""

import concurrent.futures
import mmap
import random
import threading

import pytest
from pebble import ProcessPool

NUMBERS_PER_THREAD = {"fork": 25_000, "forkserver": 2_500, "spawn": 2_500}
THREADS = 4

marks = None


def open_marks(path):
    global marks
    with open(path, "r+b") as file:
        marks = mmap.mmap(file.fileno(), 0)


def mark(number):
    marks[number] = 1
    return number


def submit_and_cancel(pool, numbers, seed):
    """Cancels each call at once, soon after others have been made, or never."""
    chance = random.Random(seed)
    futures, candidates = [], []
    for number in numbers:
        timeout = chance.choice((None, 60))
        futures.append(pool.schedule(mark, args=(number,), timeout=timeout))
        if chance.random() < 0.3:
            candidates.append(futures[-1])
        if len(candidates) == 20:
            chance.shuffle(candidates)
            for future in candidates[:10]:
                future.cancel()
            del candidates[:10]
    return futures


@pytest.mark.timeout(60)
def test_none_is_lost_and_none_runs_after_its_cancel(tmp_path, start_method):
    count = NUMBERS_PER_THREAD[start_method]
    path = tmp_path / "marks"
    path.write_bytes(bytes(count * THREADS))
    found = [None] * THREADS

    def work(n):
        numbers = range(n * count, (n + 1) * count)
        found[n] = submit_and_cancel(pool, numbers, seed=n)

    with ProcessPool(max_workers=2, initializer=open_marks, initargs=(path,)) as pool:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        futures = sum(found, [])
        assert not concurrent.futures.wait(futures, 40).not_done
    open_marks(path)
    cancelled = 0
    for number, future in enumerate(futures):
        if not future.cancelled():
            assert future.result() == number and marks[number]
        elif future.pid is None:
            assert not marks[number]
            cancelled += 1
    assert cancelled > count // 10
