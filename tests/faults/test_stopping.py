"""Row 14: pools that are stopped, closed, joined and left in every order, from everywhere."""

import concurrent.futures
import threading
import time

import pytest
from pebble import ProcessExpired, ProcessPool, ThreadPool

import tasks
from support import Flag, gone, outcome, outcomes

PROMPT = 5


def cancelled(futures):
    concurrent.futures.wait(futures, PROMPT)
    return all(future.cancelled() for future in futures)


@pytest.fixture
def busy(tmp_path):
    """A pool all of whose workers are in a task: the pool, all futures, the workers."""
    pools = []

    def make(task=tasks.hang, grace=3.0):
        pool = ProcessPool(max_workers=2, termination_grace=grace)
        pools.append(pool)
        flags = [Flag(tmp_path / f"busy{n}") for n in range(2)]
        futures = [pool.schedule(task, args=(flag,)) for flag in flags]
        workers = [flag.number() for flag in flags]
        futures += [pool.schedule(int) for _ in range(20)]
        return pool, futures, workers

    yield make
    for pool in pools:
        pool.stop()
        pool.join()


# ---- stop ----


@pytest.mark.parametrize("task", [tasks.hang, tasks.hold_interpreter_lock, tasks.ignore_signals])
def test_stop_from_another_thread(busy, task):
    pool, futures, workers = busy(task, grace=0.1)
    thread = threading.Thread(target=pool.stop)
    thread.start()
    assert cancelled(futures)
    assert all(map(gone, workers))
    thread.join()
    pool.join(PROMPT)


def test_stop_while_another_thread_waits(busy):
    pool, futures, workers = busy()
    ends = []
    threads = [
        threading.Thread(target=lambda each=each: ends.append(outcome(each.result)[0]))
        for each in futures[:3]
    ]
    for thread in threads:
        thread.start()
    pool.stop()
    for thread in threads:
        thread.join(PROMPT)
    assert ends == [concurrent.futures.CancelledError] * 3


def test_stop_from_a_done_callback(busy):
    pool, futures, workers = busy()
    ran = threading.Event()
    futures[0].add_done_callback(lambda _: (pool.stop(), ran.set()))
    assert futures[0].cancel()
    assert ran.wait(PROMPT)
    pool.join(PROMPT)
    assert cancelled(futures[:2])
    assert all(future.cancelled() or future.result(0) == 0 for future in futures)
    assert all(map(gone, workers))


def test_stop_from_a_done_callback_of_a_result(any_kind):
    with any_kind(max_workers=2) as pool:
        futures = [pool.schedule(tasks.value, args=(n,)) for n in range(300)]
        futures[5].add_done_callback(lambda _: pool.stop())
    assert futures[5].result(0) == 5
    for n, future in enumerate(futures):
        assert future.cancelled() or future.result(0) == n


def test_stop_from_a_task_of_threads(release):
    def stop():
        release.wait()
        pool.stop()
        return 1

    pool = ThreadPool(max_workers=1)
    first = pool.schedule(stop)
    others = [pool.schedule(int) for _ in range(20)]
    release.set()
    assert first.result(PROMPT) == 1
    assert cancelled(others)
    pool.join(PROMPT)


def test_stop_twice(busy):
    pool, futures, workers = busy()
    pool.stop()
    pool.stop()
    assert cancelled(futures)
    pool.join(PROMPT)
    pool.stop()
    pool.join(PROMPT)
    assert all(map(gone, workers))


def test_stop_from_many_threads_at_once(busy):
    pool, futures, workers = busy()
    barrier = threading.Barrier(4)

    def stop():
        barrier.wait()
        pool.stop()
        pool.join(PROMPT)

    threads = [threading.Thread(target=stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cancelled(futures)
    assert all(map(gone, workers))


def test_stop_while_workers_start(any_kind):
    for _ in range(5):
        pool = any_kind(max_workers=2)
        futures = [pool.schedule(tasks.value, args=(n,)) for n in range(10)]
        pool.stop()
        pool.join(PROMPT)
        for n, future in enumerate(futures):
            assert future.cancelled() or future.result(0) == n


@pytest.mark.parametrize("seconds", [0, 0.0003])
def test_stop_amid_very_short_calls(start_method, seconds):
    """A worker that is ended between two tasks, or as a task ends, is nobody's death."""
    for _ in range(10 if start_method == "fork" else 3):
        with ProcessPool(max_workers=2) as pool:
            futures = [pool.schedule(tasks.sleep, args=(seconds,)) for _ in range(200)]
            assert futures[5].result() == seconds
            pool.stop()
        for future in futures:
            assert future.cancelled() or future.result(0) == seconds


def test_stop_amid_the_chunks_of_a_map():
    with ProcessPool(max_workers=2) as pool:
        iterator = pool.map(tasks.sleep, [0.0003] * 300, chunksize=3).result()
        assert next(iterator) == 0.0003
        pool.stop()
    kinds = {type(each) for each in outcomes(iterator)}
    assert kinds <= {float, concurrent.futures.CancelledError}


# ---- close, join ----


@pytest.mark.parametrize("end", ["close", "stop"])
def test_join_with_nothing_ever_scheduled(any_kind, end):
    pool = any_kind(max_workers=2)
    getattr(pool, end)()
    begin = time.monotonic()
    pool.join()
    assert time.monotonic() - begin < 1


def test_close_then_stop(busy):
    pool, futures, workers = busy()
    pool.close()
    pool.stop()
    assert cancelled(futures)
    pool.join(PROMPT)
    assert all(map(gone, workers))


def test_close_then_stop_while_another_thread_joins(busy):
    pool, futures, workers = busy()
    pool.close()
    thread = threading.Thread(target=pool.join)
    thread.start()
    pool.stop()
    thread.join(PROMPT)
    assert not thread.is_alive()
    assert cancelled(futures)
    assert all(map(gone, workers))


def test_stop_then_close(busy):
    pool, futures, workers = busy()
    pool.stop()
    pool.close()
    pool.join(PROMPT)
    assert cancelled(futures)


# ---- The context manager ----


def test_context_left_by_an_error_of_a_task():
    with pytest.raises(ProcessExpired):
        with ProcessPool(max_workers=2) as pool:
            dying = pool.schedule(tasks.die)
            futures = [pool.schedule(tasks.value, args=(n,)) for n in range(100)]
            dying.result()
    assert [future.result(0) for future in futures] == list(range(100))


def test_context_left_by_an_error_beside_a_timeout():
    with pytest.raises(ValueError):
        with ProcessPool(max_workers=1) as pool:
            hanging = pool.schedule(tasks.hang, timeout=0.2)
            queued = pool.schedule(tasks.value, args=(1,))
            raise ValueError
    assert isinstance(hanging.exception(0), concurrent.futures.TimeoutError)
    assert queued.result(0) == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_context_left_by_an_interrupt_of_busy_workers(busy, kind):
    pool, futures, workers = busy()
    with pytest.raises(kind):
        with pool:
            raise kind
    assert all(future.cancelled() for future in futures)
    assert all(map(gone, workers))
