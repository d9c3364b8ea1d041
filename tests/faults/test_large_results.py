"""Rows 4 and 13: large data while workers are killed, stopped and cancelled, and pools stopped."""

import os
import signal
import time
from concurrent.futures import CancelledError

import pytest
from pebble import ProcessExpired, ProcessPool

import fault_tasks
import tasks
from support import DEADLINE, eventually, gone, kill, start_workers, state

MIB = 1 << 20
SIZE = 400 * MIB


def resident(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def pool():
    with ProcessPool(max_workers=2) as pool:
        yield pool


@pytest.fixture
def worker_memory(pool, tmp_path):
    """Of one that has not done anything."""
    return max(map(resident, start_workers(pool, tmp_path)))


def assert_expired(future, signum, pid):
    error = future.exception(DEADLINE)
    assert isinstance(error, ProcessExpired)
    assert (error.exitcode, error.pid) == (-signum, pid)


def assert_works(pool):
    """On the other worker, if one does nothing."""
    others = [pool.schedule(tasks.value, args=(n,)) for n in range(100)]
    assert [other.result(DEADLINE) for other in others] == list(range(100))


# ---- Killed ----


def test_killed_while_it_receives(pool, worker_memory):
    part = SIZE // 8  # by then it is on its way, and far from its end
    future = pool.schedule(len, args=(bytes(SIZE),))
    assert eventually(lambda: future.pid and resident(future.pid) > worker_memory + part)
    pid = future.pid
    kill(pid, signal.SIGSTOP)
    assert eventually(lambda: state(pid) == "T")
    assert resident(pid) < worker_memory + SIZE  # it has not all
    assert_works(pool)
    assert not future.done()
    kill(pid)
    assert_expired(future, signal.SIGKILL, pid)
    assert pool.schedule(len, args=(bytes(MIB),)).result() == MIB


def test_killed_while_it_sends(pool, started, make_flag, release):
    other_started = make_flag("other")
    other = pool.schedule(tasks.hold, args=(other_started, release))
    other_pid = other_started.number()
    arguments = (SIZE // 2, SIZE // 2, started, signal.SIGKILL)
    future = pool.schedule(fault_tasks.send, args=arguments)
    assert_expired(future, signal.SIGKILL, started.number())
    assert len(pool.schedule(bytes, args=(MIB,)).result()) == MIB
    release.set()
    assert other.result(DEADLINE) == other_pid


# ---- Stopped halfway ----


@pytest.fixture
def stop_halfway(pool, started, worker_memory):
    """What comes first has left the worker, which does not keep it until it has all."""
    pids = []

    def stop(timeout, first=SIZE // 2, second=SIZE // 2):
        arguments = (first, second, started, signal.SIGSTOP)
        future = pool.schedule(fault_tasks.send, args=arguments, timeout=timeout)
        pids.append(started.number())
        assert eventually(lambda: state(pids[0]) == "T", DEADLINE)
        assert resident(pids[0]) < worker_memory + first
        assert_works(pool)
        assert not future.done()
        return future, pids[0]

    yield stop
    for pid in pids:  # for a failed test's pool, which would wait for it
        if not gone(pid):
            kill(pid)


def test_stopped_with_a_timeout(pool, stop_halfway):
    part = SIZE // 8  # which comes within the timeout on a busy machine, too
    future, pid = stop_halfway(timeout=2, first=part, second=SIZE - part)
    assert isinstance(future.exception(DEADLINE), TimeoutError)
    assert gone(pid)
    assert_works(pool)


@pytest.mark.parametrize("timeout", [None, 60])
def test_stopped_and_cancelled(pool, stop_halfway, timeout):
    future, pid = stop_halfway(timeout)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(DEADLINE)
    assert gone(pid)
    assert_works(pool)


def test_stopped_and_continued(stop_halfway):
    future, pid = stop_halfway(timeout=60, first=50 * MIB, second=50 * MIB)
    kill(pid, signal.SIGCONT)
    first, number, second = future.result()
    assert (len(first), number, len(second)) == (50 * MIB, 0, 50 * MIB)


# ---- Pools that end amid large data ----


def test_large_queued_arguments():
    numbers = list(range(10**6))
    pool = ProcessPool(max_workers=2)
    pool.schedule(int).result()
    futures = [pool.schedule(len, args=(numbers,)) for _ in range(50)]
    begin = time.monotonic()
    for future in futures:
        future.cancel()
    pool.stop()
    pool.join()
    assert time.monotonic() - begin < 5
    for future in futures:
        assert future.cancelled() or future.result() == 10**6


def test_pools_stopped_amid_large_results():
    worst, amid = 0, 0
    for n in range(20):
        pool = ProcessPool(max_workers=2)
        futures = [pool.schedule(bytes, args=(8 * MIB,)) for _ in range(12)]
        futures[n % 3].result()
        begin = time.monotonic()
        pool.stop()
        pool.join()
        worst = max(worst, time.monotonic() - begin)
        for future in futures:
            assert future.done()
            assert future.cancelled() or len(future.result()) == 8 * MIB
        amid += any(future.cancelled() for future in futures)
    assert worst < 5
    assert amid >= 10  # of most some had not come yet
