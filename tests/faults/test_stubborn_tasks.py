"""Rows 5 to 7: tasks that do not mind SIGTERM."""

import concurrent.futures
import ctypes
import signal
import statistics
import sys
import time

import pytest
from pebble import ProcessPool

import tasks
from fault_tasks import catch_all
from support import DEADLINE, gone

GRACE = 0.5


def catch_once(started, caught):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to"))
    try:
        started.set()
        while True:
            tasks.rest()
    except BaseException:
        caught.set()
    return "caught"


def nothing():
    pass


def sleep_with_interpreter_lock(seconds):
    ctypes.PyDLL(None).sleep(seconds)


# ---- Ignored ----


def round_trip(pool):
    """When it began, and how long it took."""
    begin = time.monotonic()
    assert pool.schedule(tasks.value, args=(1,)).result() == 1
    return begin, time.monotonic() - begin


def durations(trips, begin=0):
    return [duration for begun, duration in trips if begun > begin]


def test_all_end_at_once_and_others_go_on(make_flag):
    """Eight in parallel: none waits for another's grace, and neither does the rest of the pool."""
    flags = [make_flag(f"flag{n}") for n in range(8)]
    ends = []
    with ProcessPool(max_workers=10, termination_grace=GRACE) as pool:
        before = durations(round_trip(pool) for _ in range(100))
        scheduled = time.monotonic()
        futures = [
            pool.schedule(tasks.ignore_signals, args=(flag,), timeout=1) for flag in flags
        ]
        for future in futures:
            future.add_done_callback(lambda _: ends.append(time.monotonic()))
        pids = [flag.number() for flag in flags]
        started = time.monotonic()
        trips = [round_trip(pool)]
        while len(ends) < len(futures):
            trips.append(round_trip(pool))
        for future in futures:
            assert isinstance(future.exception(), concurrent.futures.TimeoutError)
        assert all(gone(pid) for pid in pids)
    assert scheduled + 1 + GRACE <= min(ends)
    assert max(ends) < started + 1 + GRACE + 0.5
    during = durations(trips, started + 1)  # all graces run
    assert len(during) > 20
    assert statistics.median(during) < 2 * statistics.median(before) + 0.005
    assert max(during) < GRACE


# ---- The interpreter's lock held ----


def test_timeout_in_c_code_that_holds_the_lock():
    delays = []
    with ProcessPool(max_workers=1) as pool:
        for _ in range(3):
            pool.schedule(nothing).result()  # this module has been imported
            begin = time.monotonic()
            future = pool.schedule(sleep_with_interpreter_lock, args=(30,), timeout=0.1)
            assert isinstance(future.exception(DEADLINE), concurrent.futures.TimeoutError)
            delays.append(time.monotonic() - begin - 0.1)
    assert 0 <= min(delays) < 0.1 and max(delays) < 1


# ---- SystemExit out of the handler ----


@pytest.fixture(params=[catch_all, catch_once])
def catching(request):
    return request.param


@pytest.fixture
def pool():
    with ProcessPool(max_workers=1, termination_grace=GRACE) as pool:
        pool.schedule(nothing).result()  # this module has been imported
        yield pool


def assert_ended_in_time(task, duration):
    """With the grace, or, if the task returns before that is over, at once."""
    if task is catch_all:
        assert GRACE <= duration < GRACE + 1
    else:
        assert duration < GRACE


def test_system_exit_caught_at_timeout(pool, catching, started, make_flag):
    caught = make_flag("caught")
    begin = time.monotonic()
    future = pool.schedule(catching, args=(started, caught), timeout=0.3)
    assert isinstance(future.exception(DEADLINE), concurrent.futures.TimeoutError)
    assert_ended_in_time(catching, time.monotonic() - begin - 0.3)
    assert caught.is_set()
    assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_system_exit_caught_at_cancel(pool, catching, started, make_flag):
    caught = make_flag("caught")
    future = pool.schedule(catching, args=(started, caught))
    assert started.wait()
    begin = time.monotonic()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(DEADLINE)
    assert_ended_in_time(catching, time.monotonic() - begin)
    assert caught.is_set()
    assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_system_exit_caught_at_stop(pool, catching, started, make_flag):
    caught = make_flag("caught")
    future = pool.schedule(catching, args=(started, caught))
    assert started.wait()
    begin = time.monotonic()
    pool.stop()
    pool.join()
    assert_ended_in_time(catching, time.monotonic() - begin)
    assert future.cancelled() and caught.is_set()
