"""Nothing polls: while nothing happens, no thread of any process runs."""

import concurrent.futures
import queue
import threading
import time

import pytest
from pebble import ProcessPool, ThreadPool, waitforqueues, waitforthreads

import tasks
from support import (
    children,
    descendants,
    eventually,
    helper_of_multiprocessing,
    run_time,
    threads,
)


def run_times():
    """Of all threads but this one."""
    own = threading.get_native_id()
    pids = {pid for pid in descendants() if not helper_of_multiprocessing(pid)}
    return {
        (pid, thread): run_time(pid, thread)
        for pid in pids | {"self"}
        for thread in threads(pid)
        if thread != own
    }


def settled():
    before = run_times()
    time.sleep(0.1)
    return run_times() == before


def assert_idle():
    assert eventually(settled)
    before = run_times()
    time.sleep(1)
    assert run_times() == before


def test_idle_pools():
    with (
        ProcessPool(max_workers=2) as processes,
        ThreadPool(max_workers=2) as pool_of_threads,
    ):
        for pool in processes, pool_of_threads:
            assert list(pool.map(tasks.value, range(100)).result()) == list(range(100))
        assert children()
        assert_idle()


@pytest.fixture
def waiters():
    """Runs calls that wait, each in a thread."""
    started = []

    def start(call, *args):
        thread = threading.Thread(target=call, args=args)
        thread.start()
        started.append(thread)

    yield start
    for thread in started:
        thread.join()


def test_everything_waits(waiters, make_flag, release):
    flags = [make_flag("first"), make_flag("second"), make_flag("third")]
    watched, ended = queue.Queue(), threading.Event()
    lasting = threading.Thread(target=ended.wait)
    lasting.start()
    with (
        ProcessPool(max_workers=2) as processes,
        ThreadPool(max_workers=1) as pool_of_threads,
    ):
        timed = processes.schedule(tasks.hold, args=(flags[0], release), timeout=60)
        mapped = processes.map(tasks.hold, [flags[1]], [release], timeout=60)
        queued = processes.schedule(int)
        decorated = tasks.remote_hold(flags[2], release)
        threaded = pool_of_threads.schedule(ended.wait)
        assert all(flag.wait() for flag in flags)
        waiters(timed.result)
        waiters(queued.result, 60)
        waiters(mapped.result)
        waiters(concurrent.futures.wait, [timed, decorated, threaded], 60)
        waiters(threaded.result, 60)
        waiters(waitforqueues, [watched], 60)
        waiters(waitforqueues, [watched])
        waiters(waitforthreads, [lasting])
        assert_idle()
        watched.put(1)
        ended.set()
        release.set()
        decorated.result()
