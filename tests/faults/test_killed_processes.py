"""Rows 2 and 3: SIGKILL to idle workers, to the zygote (the process that forks them), at random."""

import os
import random
import signal
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from pebble import ProcessExpired, ProcessPool

import tasks
from support import (
    DEADLINE,
    children,
    descendants,
    gone,
    helper_of_multiprocessing,
    kill,
    parent,
    readable,
    start_workers,
    state,
    threads,
)

WORKERS = 4
STORM_SECONDS = float(os.environ.get("PEBBLE_STORM_SECONDS", 3))
LOST_AFTER = 30


def zygotes():
    return [pid for pid in children() if threads(pid).get(pid) == "pebble-zygote"]


def the_zygote():
    (pid,) = zygotes()
    return pid


def assert_usable(pool):
    numbers = list(range(50))
    assert list(pool.map(tasks.value, numbers).result()) == numbers


@pytest.fixture
def pool():
    with ProcessPool(max_workers=2) as pool:
        yield pool


# ---- Idle ----


def test_an_idle_worker(pool, tmp_path):
    pid = min(start_workers(pool, tmp_path))
    kill(pid)
    assert gone(pid, DEADLINE)
    assert_usable(pool)


def test_all_idle_workers(pool, tmp_path):
    pids = start_workers(pool, tmp_path)
    for pid in pids:
        kill(pid)
    assert all(gone(pid, DEADLINE) for pid in pids)
    assert_usable(pool)


def test_all_idle_workers_unnoticed(pool, tmp_path):
    """The next task comes before their death does."""
    for pid in start_workers(pool, tmp_path):
        kill(pid)
    assert_usable(pool)


# ---- The zygote ----


def test_the_idle_zygote(pool, tmp_path):
    pids = start_workers(pool, tmp_path)
    kill(the_zygote())
    assert all(gone(pid, DEADLINE) for pid in pids)
    assert_usable(pool)


def test_the_zygote_while_tasks_run_and_wait(pool, make_flag, release):
    flags = [make_flag("first"), make_flag("second")]
    running = [pool.schedule(tasks.hold, args=(flag, release)) for flag in flags]
    waiting = [pool.schedule(tasks.value, args=(n,)) for n in range(100)]
    pids = [flag.number() for flag in flags]
    kill(the_zygote())
    assert [future.exception(DEADLINE).pid for future in running] == pids
    assert [future.result() for future in waiting] == list(range(100))
    assert all(gone(pid, DEADLINE) for pid in pids)


def test_the_zygote_while_it_forks(start_method):
    """Each task needs a new worker; the zygote dies somewhere between its wish and its start, which takes
    some 5 ms, or, where a program is executed, 150."""
    rounds, step = (30, 0.0002) if start_method == "fork" else (8, 0.02)
    with ProcessPool(max_workers=2, max_tasks=1) as pool:
        for n in range(rounds):
            assert pool.schedule(tasks.value, args=(n,)).result() == n
            zygote = the_zygote()
            futures = [pool.schedule(tasks.value, args=(n,)) for _ in range(4)]
            time.sleep(n * step)
            kill(zygote)
            assert gone(zygote, DEADLINE)
            errors = [future.exception(DEADLINE) for future in futures]
            assert sum(isinstance(error, ProcessExpired) for error in errors) <= 2
            for future, error in zip(futures, errors):
                assert isinstance(error, ProcessExpired) or future.result() == n
        assert_usable(pool)


def test_the_zygote_over_and_over(pool, started, start_method):
    """No task ends between: a pool whose zygote ends by itself would be given up."""
    for _ in range(20 if start_method == "fork" else 7):
        future = pool.schedule(tasks.hang, args=(started,))
        pid = started.number()
        zygote = the_zygote()
        kill(zygote)
        assert isinstance(future.exception(DEADLINE), ProcessExpired)
        assert gone(pid, DEADLINE) and gone(zygote, DEADLINE)
    assert_usable(pool)


# ---- At random ----


class Load:
    """Threads that schedule and collect all the time."""

    def __init__(self, pool, thread_count):
        self.pool, self.goes_on = pool, True
        self.performed, self.expired, self.wrong = 0, 0, []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run) for _ in range(thread_count)]
        for thread in self.threads:
            thread.start()

    def run(self):
        """An exception, as of a future that does not end, would end the thread in silence."""
        try:
            while self.goes_on:
                self.perform_some()
        except BaseException as error:
            self.wrong.append(error)

    def perform_some(self):
        numbers = random.sample(range(10**6), 20)
        futures = [self.pool.schedule(tasks.add, args=(n, 1)) for n in numbers]
        futures.append(self.pool.schedule(tasks.sleep, args=(0.001,)))
        wanted = [n + 1 for n in numbers] + [0.001]
        for future, result in zip(futures, wanted):
            self.judge(future, result)

    def judge(self, future, result):
        error = future.exception(LOST_AFTER)
        with self.lock:
            self.performed += error is None
            killed = isinstance(error, ProcessExpired) and error.exitcode == -signal.SIGKILL
            self.expired += killed
            if not (killed or (error is None and future.result() == result)):
                self.wrong.append((error, result))

    def end(self):
        self.goes_on = False
        for thread in self.threads:
            thread.join()


class Kills:
    """SIGKILL to one of all descendants, and what that explains."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.zygotes, self.others = 0, 0
        self.too_early = 0
        """Looks in a row that have found no worker."""

    def kill_one(self, doomed):
        """A zygote may die before it has a worker, but not for ever: in a large program, beside others,
        it takes longer than the interval to fork the first."""
        pids = [pid for pid in descendants() if not helper_of_multiprocessing(pid)]
        self.too_early = self.too_early + 1 if len(pids) < 2 else 0
        if pids and self.too_early < 5:
            pid = self.chance.choice(sorted(pids))
            is_zygote = parent(pid) == os.getpid()
            killed = kill_and_note(pid, doomed)
            self.zygotes += killed and is_zygote
            self.others += killed and not is_zygote

    def explain(self):
        """How many tasks may have expired: a zygote takes all its workers along."""
        return self.zygotes * WORKERS + self.others


def wait_for_end(descriptor):
    ended = readable(descriptor, DEADLINE)
    os.close(descriptor)
    assert ended


def kill_and_note(pid, doomed):
    """True if the process lived. `doomed` waits for its end and that of all below it, which is not at
    once: until then they take tasks that are lost with them."""
    for each in {pid} | descendants(pid):
        with suppress(ProcessLookupError):
            if not helper_of_multiprocessing(each):
                doomed.callback(wait_for_end, os.pidfd_open(each))
    lived = state(pid) not in (None, "Z")
    with suppress(ProcessLookupError):
        kill(pid)
        return lived
    return False


@pytest.mark.timeout(STORM_SECONDS + LOST_AFTER + 30)
def test_random_kills_under_load(start_method):
    """Every 20 ms, or where a worker or a zygote takes long to start, at its pace."""
    interval = 0.02 if start_method == "fork" else 0.1
    seed = int(os.environ.get("PEBBLE_TEST_SEED", time.time()))
    kills = Kills(seed)
    with ProcessPool(max_workers=WORKERS) as pool, ExitStack() as doomed:
        load = Load(pool, 8)
        end = time.monotonic() + STORM_SECONDS
        while time.monotonic() < end or not (kills.zygotes and kills.others):
            time.sleep(interval)
            kills.kill_one(doomed)
        load.end()
        print(
            f"seed {seed}: {load.performed} performed, {load.expired} expired, "
            f"{kills.zygotes} zygotes and {kills.others} others killed"
        )
        assert load.wrong == []
        doomed.close()
        assert_usable(pool)
    assert load.performed > 100
    assert load.expired <= kills.explain()
