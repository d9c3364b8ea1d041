import concurrent.futures
import functools
import inspect
import multiprocessing
import pickle
import threading
from multiprocessing import resource_sharer

import pytest
from pebble import ProcessExpired, ProcessFuture
from pebble import concurrent as pebble_concurrent
from pebble.concurrent import process, thread

import tasks
from support import gone

# ---- process ----


def test_without_parentheses():
    assert tasks.remote_add(1, b=2).result() == 3


def test_with_empty_parentheses():
    assert tasks.remote_pid().result() != tasks.process_id()


def test_with_arguments():
    assert tasks.remote_name().result() == "worker-of-a-name"


def test_positional_order():
    assert tasks.remote_name_by_position().result() == "positional"


@pytest.mark.parametrize(
    "function, args, expected",
    [
        (tasks.add, (1, 2), 3),
        (len, ("abc",), 3),
        (tasks.Counter(1).plus, (2,), 3),
        (tasks.Counter(1), (2,), 3),
        (functools.partial(tasks.add, 1), (2,), 3),
    ],
    ids=["function", "builtin", "method", "object", "partial"],
)
def test_any_callable(function, args, expected):
    assert process(function)(*args).result() == expected


@pytest.mark.parametrize(
    "function", [tasks.remote_add_below_another, tasks.remote_add_synchronized]
)
def test_below_another_decorator(function):
    assert function(1, 2).result() == 3


def test_returns_a_process_future():
    future = tasks.remote_add(1)
    assert isinstance(future, ProcessFuture)
    assert future.result() == 1


def test_is_in_the_module_concurrent():
    assert pebble_concurrent.process is process and pebble_concurrent.thread is thread


def test_each_call_has_a_process_of_its_own():
    futures = [tasks.remote_pid() for _ in range(3)]
    pids = {future.result() for future in futures}
    assert len(pids) == 3
    assert pids == {future.pid for future in futures}


def test_the_process_ends_with_its_call():
    assert gone(tasks.remote_pid().result(), 5)


def test_calls_run_at_once(make_flag):
    flags = [make_flag(f"flag{n}") for n in range(3)]
    futures = [tasks.remote_call(tasks.meet, flag, *flags) for flag in flags]
    assert len({future.result() for future in futures}) == 3


def test_timeout(started):
    future = tasks.remote_hang(started)
    pid = started.number()
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        future.result(10)
    assert caught.value.args[1] == 1
    assert gone(pid)


def test_error():
    error = tasks.remote_call(tasks.fail, ValueError, 1).exception()
    assert (type(error), error.args) == (ValueError, (1,))
    assert "in fail" in error.traceback


def test_sys_exit():
    with pytest.raises(SystemExit) as caught:
        tasks.remote_call(tasks.leave, 3).result()
    assert caught.value.code == 3


def test_death():
    with pytest.raises(ProcessExpired) as caught:
        tasks.remote_call(tasks.die, 3).result()
    assert caught.value.exitcode == 3


def test_cancel(started):
    future = tasks.remote_call(tasks.hang, started)
    pid = started.number()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)
    assert gone(pid)


def test_callback():
    seen, ran = [], threading.Event()
    future = tasks.remote_add(1, 2)
    future.add_done_callback(lambda done: (seen.append(done.result()), ran.set()))
    assert ran.wait(10)
    assert seen == [3]


def test_a_dropped_call_is_performed(started):
    tasks.remote_call(tasks.set_flag, started)
    assert started.wait()


def test_a_result_that_cannot_be_pickled():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        tasks.remote_call(tasks.make_lambda).result()


@pytest.mark.parametrize(
    "call, expected",
    [
        (lambda: tasks.Account(3).plus(4), 7),
        (lambda: tasks.Account.plus(tasks.Account(3), 4), 7),
        (lambda: tasks.Account.twice(4), 8),
        (lambda: tasks.Account(3).twice(4), 8),
        (lambda: tasks.Account.kind(), "Account"),
        (lambda: tasks.Account.Inner.deep(), "deep"),
    ],
    ids=["method", "unbound", "static", "static of an object", "class", "inner class"],
)
def test_methods(call, expected):
    assert call().result() == expected


def test_called_in_a_thread():
    results = []
    caller = threading.Thread(target=lambda: results.append(tasks.remote_add(1).result()))
    caller.start()
    caller.join()
    assert results == [1]


def test_context():
    tasks.remember("in the program")
    try:
        assert tasks.remote_recall_spawned().result() is None
    finally:
        tasks.remember(None)


def test_inherits_with_fork(only_fork):
    tasks.remember("in the program")
    try:
        assert tasks.remote_recall().result() == "in the program"
    finally:
        tasks.remember(None)


def test_closures_with_fork(only_fork):
    offset = 10

    @process
    def closure(function, x):
        return function(x) + offset

    assert closure(lambda x: 2 * x, 3).result() == 16
    assert process(lambda: offset)().result() == 10


def test_what_only_starting_processes_are_given(start_method):
    """Of multiprocessing: locks, what is made of them, and descriptors."""
    context = multiprocessing.get_context(start_method)
    lock, queue, barrier = context.Lock(), context.Queue(), context.Barrier(2)
    number, (reader, writer) = context.Value("i", 5), context.Pipe(duplex=False)
    given = lock, queue, barrier, number, writer
    try:
        with lock:
            future = process(context=context)(tasks.use_what_was_given)(*given)
            assert queue.get(timeout=10) == "lock taken"
        barrier.wait(10)
        assert reader.recv() == 5
        assert future.result() is False and number.value == 6
    finally:
        resource_sharer.stop()
    assert process(context=context)(tasks.take)(lock).result() is True


def test_closures_without_fork(start_method):
    if start_method == "fork":
        pytest.skip("inherits closures")
    assert process(lambda: 1)().exception(10) is not None


# ---- thread ----


def test_thread_without_parentheses():
    assert tasks.thread_add(1, b=2).result() == 3


def test_thread_with_empty_parentheses():
    assert tasks.thread_ident().result() != threading.get_ident()


def test_thread_with_arguments():
    assert tasks.thread_with_name().result() == "thread-of-a-name"


def test_thread_positional_order():
    assert tasks.thread_with_name_by_position().result() == "positional"


@pytest.mark.parametrize(
    "function", [len, "abc".count, lambda x: x, tasks.Counter(0)], ids=str
)
def test_any_callable_in_a_thread(function):
    argument = 5 if isinstance(function, tasks.Counter) else "a"
    assert thread(function)(argument).result() == function(argument)


def test_thread_returns_a_future():
    future = tasks.thread_add(1)
    assert isinstance(future, concurrent.futures.Future)
    assert not isinstance(future, ProcessFuture)
    assert future.result() == 1


def test_threads_run_at_once():
    barrier = threading.Barrier(3)
    futures = [tasks.thread_call(barrier.wait) for _ in range(3)]
    assert {future.result(10) for future in futures} == {0, 1, 2}


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_thread_error(error):
    found = tasks.thread_call(tasks.fail, error, 1).exception()
    assert (type(found), found.args) == (error, (1,))
    assert "in fail" in found.traceback


def test_a_running_thread_cannot_be_cancelled(started, release):
    future = tasks.thread_call(tasks.hold, started, release)
    assert started.wait()
    assert not future.cancel()
    release.set()
    assert future.result() > 0


def test_thread_methods():
    assert tasks.Account(3).plus_in_thread(4).result() == 7


def test_thread_shares_memory():
    argument = object()
    assert thread(tasks.value)(argument).result() is argument


# ---- Both ----


@pytest.mark.parametrize(
    "decorate", [process, thread, process(timeout=1), thread(name="x")]
)
def test_wraps(decorate):
    def function(a: int, *, b: str = "x") -> None:
        """Its documentation."""

    function.attribute = 5
    decorated = decorate(function)
    assert decorated.__wrapped__ is function
    assert decorated.__name__ == "function"
    assert decorated.__qualname__ == function.__qualname__
    assert decorated.__module__ == __name__
    assert decorated.__doc__ == "Its documentation."
    assert decorated.attribute == 5
    assert inspect.signature(decorated) == inspect.signature(function)


MAIN = """
    import os, sys, multiprocessing
    from pebble import ProcessPool, concurrent

    @concurrent.process
    def decorated(a, b=0):
        return a + b

    @concurrent.process(timeout=60)
    def decorated_with_arguments(a):
        return a

    class Class:
        @concurrent.process
        def method(self):
            return type(self).__qualname__

        @staticmethod
        @concurrent.process
        def static():
            return os.getpid()

    @concurrent.thread
    def threaded():
        return os.getpid()

    def plain(a):
        return a

    class OwnError(Exception):
        pass

    def failing():
        raise OwnError("own")

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        print(decorated(1, b=2).result())
        print(decorated_with_arguments(4).result())
        print(Class().method().result())
        print(Class.static().result() != os.getpid())
        print(threaded().result() == os.getpid())
        print(concurrent.process(plain)(5).result())
        with ProcessPool(max_workers=1) as pool:
            print(pool.schedule(plain, args=(6,)).result())
            print(list(pool.map(plain, range(3)).result()))
            print(repr(pool.schedule(failing).exception()))
"""


def test_main_script(run):
    assert run(MAIN).splitlines() == [
        "3",
        "4",
        "Class",
        "True",
        "True",
        "5",
        "6",
        "[0, 1, 2]",
        "OwnError('own')",
    ]
