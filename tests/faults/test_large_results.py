"""Rows 4 and 13: large data while workers are killed, stopped and cancelled, and pools stopped."""

import os
import signal
import time
from concurrent.futures import CancelledError

import pytest
from pebble import ProcessExpired, ProcessPool

import tasks
from support import DEADLINE, eventually, gone, kill, state

MIB = 1 << 20


class StopsWhilePickled:
    """Halfway through a result: the worker stops (or is killed) when it comes to this."""

    def __init__(self, signum):
        self.signum = signum

    def __reduce__(self):
        os.kill(os.getpid(), self.signum)
        return int, ()


def send(size, started, signum):
    started.set(os.getpid())
    half = bytes(size // 2)
    return [half, StopsWhilePickled(signum), half]


def resident(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def pool():
    with ProcessPool(max_workers=2) as pool:
        yield pool


def assert_expired(future, signum, pid):
    error = future.exception(DEADLINE)
    assert isinstance(error, ProcessExpired)
    assert (error.exitcode, error.pid) == (-signum, pid)


# ---- Killed ----


def test_killed_while_it_receives():
    with ProcessPool(max_workers=1) as pool:
        pid = pool.schedule(tasks.process_id).result()
        before = resident(pid)
        future = pool.schedule(len, args=(bytes(400 * MIB),))
        assert eventually(lambda: resident(pid) > before + 20 * MIB)
        kill(pid, signal.SIGSTOP)
        assert not future.done()
        kill(pid)
        assert_expired(future, signal.SIGKILL, pid)
        assert pool.schedule(len, args=(bytes(MIB),)).result() == MIB


def test_killed_while_it_sends(pool, started):
    future = pool.schedule(send, args=(400 * MIB, started, signal.SIGKILL))
    assert_expired(future, signal.SIGKILL, started.number())
    assert len(pool.schedule(bytes, args=(MIB,)).result()) == MIB


# ---- Stopped halfway ----


def stop_halfway(pool, started, timeout=None):
    arguments = (40 * MIB, started, signal.SIGSTOP)
    future = pool.schedule(send, args=arguments, timeout=timeout)
    pid = started.number()
    assert eventually(lambda: state(pid) == "T")
    return future, pid


def test_stopped_with_a_timeout(pool, started):
    future, pid = stop_halfway(pool, started, timeout=2)
    assert isinstance(future.exception(DEADLINE), TimeoutError)
    assert gone(pid)


@pytest.mark.parametrize("timeout", [None, 60])
def test_stopped_and_cancelled(pool, started, timeout):
    future, pid = stop_halfway(pool, started, timeout)
    others = [pool.schedule(tasks.value, args=(n,)) for n in range(100)]
    assert [other.result() for other in others] == list(range(100))
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(DEADLINE)
    assert gone(pid)
    assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_stopped_and_continued(pool, started):
    future, pid = stop_halfway(pool, started, timeout=60)
    kill(pid, signal.SIGCONT)
    assert [type(part) for part in future.result()] == [bytes, int, bytes]


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
    worst = 0
    for n in range(20):
        pool = ProcessPool(max_workers=2)
        futures = [pool.schedule(bytes, args=(8 * MIB,)) for _ in range(6)]
        futures[n % 3].result()
        begin = time.monotonic()
        pool.stop()
        pool.join()
        worst = max(worst, time.monotonic() - begin)
        for future in futures:
            assert future.done()
            assert future.cancelled() or len(future.result()) == 8 * MIB
    assert worst < 5
