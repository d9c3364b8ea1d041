"""Row 15: workers that are replaced all the time, and pools that are dropped meanwhile."""

import collections
import concurrent.futures
import gc
import os
import threading
import time

import pytest
from pebble import ProcessExpired, ProcessPool

import fault_tasks
import tasks
from support import children, eventually


@pytest.fixture
def long(start_method):
    """The length of a queue: if it is not forked from the tests, each worker imports the tasks."""
    return 100 if start_method == "fork" else 20


@pytest.fixture(params=[1, 2])
def max_tasks(request):
    return request.param


def die_and_hang(pool):
    """Every fifth task dies, every fifth hangs. None imports anything, which would take of its time."""
    calls = abs, abs, abs, os._exit, time.sleep
    return [pool.schedule(calls[n % 5], args=(n,), timeout=0.3) for n in range(20)]


def assert_ends(future, n):
    """As it must in die_and_hang()."""
    error = future.exception()
    if n % 5 == 3:
        assert isinstance(error, ProcessExpired) and error.exitcode == n
    elif n % 5 == 4:
        assert isinstance(error, concurrent.futures.TimeoutError)
    else:
        assert future.result() == n


def test_no_worker_has_more_tasks(max_tasks, long):
    with ProcessPool(max_workers=2, max_tasks=max_tasks) as pool:
        futures = [pool.schedule(fault_tasks.name_and, args=(n,)) for n in range(long)]
        results = [future.result() for future in futures]
    assert [n for _, n in results] == list(range(long))
    counts = collections.Counter(name for name, _ in results)
    assert max(counts.values()) == max_tasks
    assert len(counts) <= long // max_tasks + 2


def test_chunks_of_a_map(max_tasks, long):
    with ProcessPool(max_workers=2, max_tasks=max_tasks) as pool:
        future = pool.map(fault_tasks.name_and, range(3 * long), chunksize=3)
        results = list(future.result())
    assert [n for _, n in results] == list(range(3 * long))
    counts = collections.Counter(name for name, _ in results)
    assert max(counts.values()) <= 3 * max_tasks


def test_tasks_that_die_and_hang(max_tasks):
    with ProcessPool(max_workers=2, max_tasks=max_tasks) as pool:
        for n, future in enumerate(die_and_hang(pool)):
            assert_ends(future, n)


def test_tasks_that_are_cancelled(max_tasks, long):
    with ProcessPool(max_workers=2, max_tasks=max_tasks) as pool:
        futures = [pool.schedule(tasks.value, args=(n,)) for n in range(long)]
        asked = {future for future in futures[::3] if future.cancel()}
    assert {future for future in futures if future.cancelled()} == asked
    for n, future in enumerate(futures):
        assert future.cancelled() or future.result(0) == n


def test_stop_in_the_middle(max_tasks, long):
    with ProcessPool(max_workers=2, max_tasks=max_tasks) as pool:
        futures = [pool.schedule(tasks.value, args=(n,)) for n in range(long)]
        assert futures[5].result() == 5
        pool.stop()
    for n, future in enumerate(futures):
        assert future.cancelled() or future.result(0) == n


# ---- Dropped pools ----


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_pool_that_is_collected_in_the_middle(max_tasks, long, in_a_cycle):
    before = children()
    pool = ProcessPool(max_workers=2, max_tasks=max_tasks)
    if in_a_cycle:
        pool.itself = pool
    futures = [pool.schedule(tasks.value, args=(n,)) for n in range(long)]
    assert futures[5].result() == 5
    del pool
    gc.collect()
    assert [future.result() for future in futures] == list(range(long))
    assert eventually(lambda: children() <= before)


def test_a_pool_that_is_collected_with_its_futures(max_tasks, long, tmp_path):
    log = tmp_path / "log"
    log.touch()
    pool = ProcessPool(max_workers=2, max_tasks=max_tasks)
    futures = [pool.schedule(tasks.append_line, args=(log, n)) for n in range(long)]
    futures[5].result()
    del pool, futures
    gc.collect()
    assert eventually(lambda: len(tasks.calls(log)) == long, timeout=20)
    assert sorted(tasks.calls(log)) == list(range(long))


def test_a_pool_that_is_collected_in_its_own_callback(max_tasks, long):
    ran = threading.Event()
    holder = [ProcessPool(max_workers=2, max_tasks=max_tasks)]
    futures = [holder[0].schedule(tasks.value, args=(n,)) for n in range(long)]
    futures[5].add_done_callback(lambda _: (holder.clear(), gc.collect(), ran.set()))
    assert ran.wait(10)
    assert [future.result() for future in futures] == list(range(long))


def test_a_pool_that_is_collected_while_tasks_die(max_tasks):
    pool = ProcessPool(max_workers=2, max_tasks=max_tasks)
    futures = die_and_hang(pool)
    futures[0].result()
    del pool
    gc.collect()
    for n, future in enumerate(futures):
        assert_ends(future, n)
