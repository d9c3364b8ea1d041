import functools
import multiprocessing
import operator
import os
import threading
import time

import pytest
from pebble import ThreadPool, concurrent

import tasks


def test_runs_in_a_thread_of_this_process(thread_pool):
    thread = thread_pool.schedule(tasks.current_thread).result()
    assert thread is not threading.current_thread()
    assert thread_pool.schedule(os.getpid).result() == os.getpid()


def test_threads_are_those_of_threading(thread_pool):
    thread = thread_pool.schedule(tasks.current_thread).result()
    assert thread in threading.enumerate()


def test_names():
    barrier = threading.Barrier(2)

    def name_when_met():
        barrier.wait()
        return tasks.thread_name()

    with ThreadPool(max_workers=2) as pool:
        futures = [pool.schedule(name_when_met) for _ in range(2)]
        assert {future.result() for future in futures} == {"pebble-1", "pebble-2"}


def test_names_of_the_users_own():
    with ThreadPool(max_workers=1, name="own name") as pool:
        assert pool.schedule(tasks.thread_name).result() == "own name-1"


def test_tasks_run_at_once(thread_pool):
    barrier = threading.Barrier(2)
    futures = [thread_pool.schedule(barrier.wait) for _ in range(2)]
    assert {future.result(10) for future in futures} == {0, 1}


def test_closures(thread_pool):
    seen = []
    thread_pool.schedule(lambda: seen.append(1)).result()
    assert seen == [1]


def test_arguments_are_passed_as_they_are(thread_pool):
    first, second = object(), object()
    args, kwargs = thread_pool.schedule(tasks.arguments, (first,), {"x": second}).result()
    assert args[0] is first and kwargs["x"] is second


def test_arguments_are_taken_at_the_call(thread_pool, started, release):
    with ThreadPool(max_workers=1) as pool:
        pool.schedule(tasks.hold, args=(started, release))
        args, kwargs = [1], {"x": 1}
        future = pool.schedule(tasks.arguments, args=args, kwargs=kwargs)
        args.append(2)
        kwargs["y"] = 2
        release.set()
        assert future.result() == ((1,), {"x": 1})


def test_exceptions_are_passed_as_they_are(thread_pool):
    error = ValueError()

    def fail():
        raise error

    assert thread_pool.schedule(fail).exception() is error


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_thread_survives_what_a_task_raises(kind):
    with ThreadPool(max_workers=1) as pool:
        thread = pool.schedule(tasks.current_thread).result()
        assert isinstance(pool.schedule(tasks.fail, args=(kind,)).exception(), kind)
        assert pool.schedule(tasks.current_thread).result() is thread


def test_thread_locals_last(thread_pool):
    local = threading.local()
    with ThreadPool(max_workers=1) as pool:
        pool.schedule(setattr, args=(local, "x", 1)).result()
        assert pool.schedule(getattr, args=(local, "x")).result() == 1


def test_processes_that_threads_start_end_in_order(thread_pool):
    def exit_code():
        child = multiprocessing.Process(target=tasks.process_id)
        child.start()
        child.join()
        return child.exitcode

    assert thread_pool.schedule(exit_code).result() == 0
    assert concurrent.thread(exit_code)().result() == 0


def test_threads_end_with_their_pool():
    with ThreadPool(max_workers=2) as pool:
        thread = pool.schedule(tasks.current_thread).result()
    assert thread not in threading.enumerate()


def test_tasks_schedule_tasks(thread_pool):
    def outer():
        return thread_pool.schedule(tasks.value, args=(1,))

    assert thread_pool.schedule(outer).result().result() == 1


def test_a_task_uses_a_pool_of_processes(thread_pool, process_pool):
    def outer(n):
        return process_pool.schedule(tasks.add, args=(n, 1)).result()

    assert list(thread_pool.map(outer, range(50)).result()) == list(range(1, 51))


# ---- Calls without any Python code, in which the interpreter has nobody take turns ----


@pytest.mark.parametrize("chunksize", [1, 2001])
def test_others_run_beside_calls_without_python_code(chunksize):
    seen, hold = [], threading.Lock()
    calls = [functools.partial(seen.append, 1)]
    calls += [functools.partial(sum, range(10_000))] * 2000
    with ThreadPool(max_workers=1) as pool:
        with hold:
            pool.schedule(hold.acquire)
            future = pool.map(operator.methodcaller("__call__"), calls, chunksize=chunksize)
        while not seen:
            time.sleep(0.001)
        assert not future.done()
        assert len(list(future.result())) == 2001
