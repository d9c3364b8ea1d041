import inspect
import multiprocessing
import os
import threading
import time

import pytest
from pebble import synchronized
from pebble.concurrent import process

import tasks

LOCKS = {
    "threading.Lock": threading.Lock,
    "threading.RLock": threading.RLock,
    "threading.Semaphore": threading.Semaphore,
    "threading.BoundedSemaphore": threading.BoundedSemaphore,
    "multiprocessing.Lock": lambda: multiprocessing.Lock(),
    "multiprocessing.RLock": lambda: multiprocessing.RLock(),
    "multiprocessing.Semaphore": lambda: multiprocessing.Semaphore(),
}


@pytest.fixture(params=LOCKS)
def lock(request):
    return LOCKS[request.param]()


def in_another_thread(call, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(call(*args)))
    thread.start()
    thread.join()
    return results[0]


def is_free(lock):
    """Whether another thread could take it."""

    def take():
        taken = lock.acquire(False)
        if taken:
            lock.release()
        return taken

    return in_another_thread(take)


class Meter:
    """Counts how many are inside at once."""

    def __init__(self):
        self.inside = self.most = 0

    def enter(self):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0)
        self.inside -= 1


def call_often(*functions):
    def call():
        for _ in range(50):
            for function in functions:
                function()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_lock_is_held_during_the_call(lock):
    function = synchronized(lock)(is_free)
    assert is_free(lock)
    assert not function(lock)
    assert is_free(lock)


def test_lock_is_released_after_an_exception(lock):
    function = synchronized(lock)(tasks.fail)
    with pytest.raises(ValueError):
        function(ValueError)
    assert is_free(lock)


def test_one_at_a_time(lock):
    meter = Meter()
    call_often(synchronized(lock)(meter.enter))
    assert meter.most == 1


def test_functions_with_one_lock_exclude_each_other(lock):
    meter = Meter()
    call_often(synchronized(lock)(meter.enter), synchronized(lock)(meter.enter))
    assert meter.most == 1


@pytest.mark.parametrize("decorate", [synchronized, synchronized()])
def test_without_a_lock_all_exclude_each_other(decorate):
    meter = Meter()

    @decorate
    def first():
        meter.enter()

    @synchronized
    def second():
        meter.enter()

    call_often(first, second)
    assert meter.most == 1


def test_another_waits_its_turn():
    order, entered, proceed = [], threading.Event(), threading.Event()

    @synchronized
    def first():
        entered.set()
        assert proceed.wait(10)
        order.append("first")

    @synchronized()
    def second():
        order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    proceed.set()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


def test_different_locks_do_not_exclude_each_other():
    barrier = threading.Barrier(2)
    functions = [synchronized(threading.Lock())(barrier.wait) for _ in range(2)]
    threads = [threading.Thread(target=each, args=(10,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not barrier.broken


def test_a_semaphore_lets_several_in():
    barrier = threading.Barrier(2)
    function = synchronized(threading.Semaphore(2))(barrier.wait)
    threads = [threading.Thread(target=function, args=(10,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not barrier.broken


def test_reentrant():
    lock = threading.RLock()
    inner = synchronized(lock)(tasks.value)
    assert synchronized(lock)(inner)(1) == 1


def test_among_processes(tmp_path):
    path = tmp_path / "counter"
    path.write_text("0")
    lock = multiprocessing.Lock()
    processes = [
        multiprocessing.Process(
            target=tasks.increment_file_synchronized, args=(lock, path, 100)
        )
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "200"


def test_arguments_and_result():
    function = synchronized(tasks.arguments)
    assert function(1, x=2) == ((1,), {"x": 2})


def test_methods():
    class Class:
        @synchronized
        def method(self, x):
            return self, x

        @staticmethod
        @synchronized(threading.Lock())
        def static(x):
            return x

    instance = Class()
    assert instance.method(1) == (instance, 1)
    assert Class.static(2) == 2


@pytest.mark.parametrize(
    "decorate", [synchronized, synchronized(), synchronized(threading.Lock())]
)
def test_wraps(decorate):
    def function(a, *, b=1):
        """Its documentation."""

    decorated = decorate(function)
    assert decorated.__wrapped__ is function
    assert decorated.__name__ == "function"
    assert decorated.__doc__ == "Its documentation."
    assert inspect.signature(decorated) == inspect.signature(function)


def test_a_lock_of_the_users_own():
    calls = []

    class Lock:
        def acquire(self):
            calls.append("acquire")

        def release(self):
            calls.append("release")

    synchronized(Lock())(lambda: calls.append("call"))()
    assert calls == ["acquire", "call", "release"]


def test_a_forked_process_has_the_default_lock_of_its_own(only_fork):
    """Whoever has it is no thread of the process."""
    call = synchronized(lambda: process(tasks.call_synchronized)(tasks.value, 5).result(10))
    assert call() == 5


def test_a_fork_in_a_function_that_is_synchronized():
    """In the child the function ends, too."""
    pid = synchronized(os.fork)()
    if pid == 0:
        os._exit(tasks.call_synchronized(tasks.value, 5))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
