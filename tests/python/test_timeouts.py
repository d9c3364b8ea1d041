import concurrent.futures
import threading
import time

import pytest
from pebble import ProcessPool

import tasks
from support import gone, outcomes


@pytest.fixture(scope="module")
def impatient_pool():
    """Kills soon what ignores SIGTERM."""
    with ProcessPool(max_workers=2, termination_grace=0.05) as pool:
        pool.schedule(int).result()
        yield pool


def assert_timed_out(future, limit):
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        future.result(10)
    assert caught.value.args[1] == limit
    assert future.exception() is caught.value
    assert future.done() and not future.cancelled()


@pytest.mark.parametrize("limit", [0.05, 1])
def test_limit(process_pool, limit):
    begin = time.monotonic()
    assert_timed_out(process_pool.schedule(tasks.hang, timeout=limit), limit)
    assert limit <= time.monotonic() - begin < limit + 2


def test_message_of_the_specification(process_pool):
    error = process_pool.schedule(tasks.hang, timeout=0.05).exception()
    assert "took longer than %d seconds" % error.args[1] == "took longer than 0 seconds"


@pytest.mark.parametrize("limit", [60, 60.0, 10**9])
def test_limit_not_reached(process_pool, limit):
    assert process_pool.schedule(tasks.value, args=(1,), timeout=limit).result() == 1


@pytest.mark.parametrize("task", tasks.STUBBORN)
def test_a_task_whatever_it_does(impatient_pool, started, task):
    future = impatient_pool.schedule(task, args=(started,), timeout=0.5)
    pid = started.number()
    assert_timed_out(future, 0.5)
    assert gone(pid)


def test_all_that_the_task_started_ends_too(process_pool, make_flag, started):
    child_started = make_flag("child")
    args = started, child_started
    future = process_pool.schedule(tasks.hang_with_child, args=args, timeout=0.5)
    pids = started.number(), child_started.number()
    assert_timed_out(future, 0.5)
    assert all(map(gone, pids))


def test_the_worker_is_restarted(started):
    with ProcessPool(max_workers=1) as pool:
        future = pool.schedule(tasks.hang, args=(started,), timeout=0.5)
        queued = pool.schedule(tasks.process_id)
        pid = started.number()
        assert queued.result() != pid
        assert_timed_out(future, 0.5)


def test_callbacks_run_when_the_process_is_gone(process_pool, started):
    seen, ran = [], threading.Event()
    future = process_pool.schedule(tasks.hang, args=(started,), timeout=0.5)
    pid = started.number()
    future.add_done_callback(
        lambda done: (seen.append((done.exception(), gone(pid))), ran.set())
    )
    assert ran.wait(10)
    assert seen == [(future.exception(), True)]
    assert isinstance(future.exception(), concurrent.futures.TimeoutError)


def test_time_in_the_queue_does_not_count():
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(tasks.sleep, args=(0.4,))
        assert pool.schedule(tasks.value, args=(1,), timeout=0.3).result() == 1


def test_time_behind_many_short_tasks_does_not_count():
    with ProcessPool(max_workers=1) as pool:
        futures = [
            pool.schedule(tasks.sleep, args=(0.02,), timeout=0.2) for _ in range(20)
        ]
        assert [future.result() for future in futures] == [0.02] * 20


def test_other_tasks_go_on(process_pool, started, release):
    other = process_pool.schedule(tasks.hold, args=(started, release))
    pid = started.number()
    assert_timed_out(process_pool.schedule(tasks.hang, timeout=0.05), 0.05)
    release.set()
    assert other.result() == pid


def test_many_at_once(process_pool):
    futures = [process_pool.schedule(tasks.hang, timeout=0.02) for _ in range(10)]
    for future in futures:
        assert_timed_out(future, 0.02)


def test_different_limits_at_once():
    limits = [0.2, 0.05, 0.1]
    with ProcessPool(max_workers=3) as pool:
        futures = {pool.schedule(tasks.hang, timeout=limit): limit for limit in limits}
        completed = list(concurrent.futures.as_completed(futures, 10))
    assert {futures[future] for future in completed} == set(limits)
    for future, limit in futures.items():
        assert_timed_out(future, limit)


def test_the_time_of_result_is_not_the_tasks(process_pool, started, release):
    future = process_pool.schedule(tasks.hold, args=(started, release), timeout=60)
    assert started.wait()
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        future.result(timeout=0.01)
    assert caught.value.args == ()
    release.set()
    assert future.result() > 0


# ---- Maps ----


def test_a_timeout_costs_its_chunk(process_pool):
    future = process_pool.map(tasks.hang_if, [4] * 9, range(9), chunksize=3, timeout=0.5)
    found = outcomes(future.result())
    assert found[:3] + found[6:] == [0, 1, 2, 6, 7, 8]
    for error in found[3:6]:
        assert isinstance(error, concurrent.futures.TimeoutError)
        assert error.args[1] == 0.5


def test_a_timeout_of_the_first_element(process_pool):
    iterator = process_pool.map(tasks.hang_if, [0] * 3, range(3), timeout=0.5).result()
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        next(iterator)
    assert caught.value.args[1] == 0.5
    assert list(iterator) == [1, 2]


def test_the_timeout_is_each_chunks_own():
    with ProcessPool(max_workers=1) as pool:
        future = pool.map(tasks.sleep, [0.2] * 8, chunksize=2, timeout=1)
        assert list(future.result()) == [0.2] * 8


def test_the_elements_of_a_chunk_share_its_timeout(process_pool):
    future = process_pool.map(tasks.sleep, [0.1] * 4, chunksize=4, timeout=0.25)
    kinds = [type(each) for each in outcomes(future.result())]
    assert kinds == [concurrent.futures.TimeoutError] * 4


def test_a_map_goes_on_when_all_time_out(process_pool):
    future = process_pool.map(tasks.hang_if, range(4), range(4), timeout=0.05)
    kinds = [type(each) for each in outcomes(future.result())]
    assert kinds == [concurrent.futures.TimeoutError] * 4
    assert future.done()


def test_a_map_of_threads(thread_pool, started, release):
    arguments = [1] * 3, [started] * 3, [release] * 3, range(3)
    iterator = thread_pool.map(tasks.hold_if, *arguments, timeout=0.5).result()
    assert next(iterator) == 0
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        next(iterator)
    assert caught.value.args[1] == 0.5
    release.set()


def test_a_map_of_threads_counts_from_the_call(thread_pool, started, release):
    future = thread_pool.map(tasks.hold, [started] * 4, [release] * 4, timeout=0.1)
    begin = time.monotonic()
    kinds = [type(each) for each in outcomes(future.result())]
    assert kinds == [concurrent.futures.TimeoutError] * 4
    assert time.monotonic() - begin < 2
    release.set()


def test_a_map_of_threads_in_time(thread_pool):
    assert list(thread_pool.map(tasks.value, range(9), timeout=60).result()) == list(
        range(9)
    )
