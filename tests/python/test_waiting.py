import _thread
import queue
import sys
import threading
import time

import pytest
from pebble import ThreadPool, waitforqueues, waitforthreads

from support import eventually


@pytest.fixture
def blocked():
    """Makes threads that run until their event, or the test's end."""
    made = []

    def make():
        event = threading.Event()
        thread = threading.Thread(target=event.wait)
        thread.start()
        made.append((thread, event))
        return thread, event

    yield make
    for thread, event in made:
        event.set()
        thread.join()


def waited(call, *args, **keywords):
    """The call's result and how long it took."""
    begin = time.monotonic()
    return call(*args, **keywords), time.monotonic() - begin


# ---- Threads ----


def test_threads_that_have_ended():
    threads = [threading.Thread(target=int) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert waitforthreads(threads) == threads
    assert waitforthreads(threads, timeout=5) == threads
    assert waitforthreads(threads[::-1]) == threads[::-1]


def test_one_thread_of_several(blocked):
    (first, _), (second, event), (third, _) = blocked(), blocked(), blocked()
    event.set()
    assert waitforthreads([first, second, third]) == [second]
    assert first.is_alive() and third.is_alive()


def test_a_thread_that_ends_during_the_wait(blocked):
    (first, event), (second, _) = blocked(), blocked()
    setter = threading.Timer(0.05, event.set)
    setter.start()
    assert waitforthreads([first, second], timeout=10) == [first]
    setter.join()


def test_no_thread_in_time(blocked):
    result, seconds = waited(waitforthreads, [blocked()[0], blocked()[0]], timeout=0.05)
    assert result == []
    assert 0.05 <= seconds < 2


def test_timeout_of_threads_by_position(blocked):
    assert waitforthreads([blocked()[0]], 0.01) == []


def test_ended_threads_can_be_joined_still():
    thread = threading.Thread(target=int)
    thread.start()
    assert waitforthreads([thread]) == [thread]
    thread.join()
    assert waitforthreads([thread]) == [thread]


def test_many_threads(blocked):
    made = [blocked() for _ in range(30)]
    waiting = {thread for thread, _ in made}
    for _, event in made:
        event.set()
    while waiting:
        ready = waitforthreads(list(waiting), timeout=10)
        assert ready
        waiting -= set(ready)


def test_threads_of_a_subclass():
    class Subclass(threading.Thread):
        def run(self):
            pass

    thread = Subclass(daemon=True)
    thread.start()
    assert waitforthreads([thread], timeout=10) == [thread]


def test_two_wait_for_a_thread(blocked):
    thread, event = blocked()
    results = []
    waiters = [
        threading.Thread(
            target=lambda: results.append(waitforthreads([thread], timeout=10))
        )
        for _ in range(2)
    ]
    for waiter in waiters:
        waiter.start()
    event.set()
    for waiter in waiters:
        waiter.join()
    assert results == [[thread], [thread]]


def test_a_thread_that_python_has_not_started(release, blocked):
    """Nobody can tell when it ends."""
    dummies = queue.Queue()

    def run():
        dummies.put(threading.current_thread())
        release.wait()

    _thread.start_new_thread(run, ())
    dummy = dummies.get()
    for threads in [dummy], [blocked()[0], dummy]:
        with pytest.raises(RuntimeError, match="dummy"):
            waitforthreads(threads, timeout=5)


def test_a_thread_of_a_pool():
    with ThreadPool(max_workers=1) as pool:
        thread = pool.schedule(threading.current_thread).result()
        assert waitforthreads([thread], timeout=0.01) == []
        pool.close()
        assert waitforthreads([thread], timeout=10) == [thread]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_cannot_be_joined():
    class Subclass(threading.Thread):
        def join(self, timeout=None):
            raise RuntimeError("not this one")

    event = threading.Event()
    thread = Subclass(target=event.wait, daemon=True)
    thread.start()
    try:
        result, seconds = waited(waitforthreads, [thread], timeout=10)
    finally:
        event.set()
    assert result == [] and seconds < 5


# ---- Queues ----


@pytest.fixture(params=[queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def make_queue(request):
    return request.param


def test_queues_that_are_ready(make_queue):
    queues = [make_queue() for _ in range(3)]
    queues[0].put(1)
    queues[2].put(1)
    assert waitforqueues(queues) == [queues[0], queues[2]]
    assert waitforqueues(queues[::-1]) == [queues[2], queues[0]]


def test_items_stay(make_queue):
    ready = make_queue()
    ready.put("item")
    for _ in range(2):
        assert waitforqueues([ready], timeout=5) == [ready]
    assert ready.get_nowait() == "item"
    assert waitforqueues([ready], timeout=0.01) == []


def test_an_item_during_the_wait(make_queue):
    queues = [make_queue() for _ in range(3)]
    putter = threading.Timer(0.05, queues[1].put, [1])
    putter.start()
    assert waitforqueues(queues, timeout=10) == [queues[1]]
    putter.join()


def test_no_item_in_time(make_queue):
    result, seconds = waited(waitforqueues, [make_queue(), make_queue()], timeout=0.05)
    assert result == []
    assert 0.05 <= seconds < 2


def test_timeout_of_queues_by_position(make_queue):
    assert waitforqueues([make_queue()], 0.01) == []


def test_a_bounded_queue():
    full = queue.Queue(maxsize=1)
    full.put(1)
    putter = threading.Thread(target=full.put, args=(2,))
    putter.start()
    assert waitforqueues([full]) == [full]
    assert full.get() == 1
    putter.join()
    assert waitforqueues([full]) == [full]


def test_queues_serve_as_before(make_queue):
    watched = make_queue()
    waitforqueues([watched], timeout=0.01)
    putter = threading.Timer(0.01, watched.put, [1])
    putter.start()
    assert watched.get(timeout=10) == 1
    putter.join()


def test_two_wait_for_a_queue(make_queue):
    watched = make_queue()
    results = []
    waiters = [
        threading.Thread(
            target=lambda: results.append(waitforqueues([watched], timeout=10))
        )
        for _ in range(2)
    ]
    for waiter in waiters:
        waiter.start()
    watched.put(1)
    for waiter in waiters:
        waiter.join()
    assert results == [[watched], [watched]]


def test_waiting_and_getting_threads_both_wake(make_queue):
    watched = make_queue()
    got = []
    getter = threading.Thread(target=lambda: got.append(watched.get(timeout=10)))
    getter.start()
    assert waitforqueues([watched], timeout=0.01) == []
    watched.put(1)
    getter.join()
    assert got == [1]


def test_an_item_that_another_takes(make_queue):
    """It is there and gone under the queue's lock; the wait goes on to the next."""
    watched, results = make_queue(), []
    waiter = threading.Thread(
        target=lambda: results.append(waitforqueues([watched], timeout=10))
    )
    waiter.start()
    assert eventually(lambda: type(watched.not_empty) is not threading.Condition)
    with watched.mutex:
        watched._put(1)
        watched.not_empty.notify()
        watched._get()
    waiter.join(0.05)
    assert waiter.is_alive()
    watched.put(2)
    waiter.join()
    assert results == [[watched]]


def test_a_stream_of_items(make_queue):
    queues = [make_queue() for _ in range(3)]

    def put():
        for n in range(300):
            queues[n % 3].put(n)

    putter = threading.Thread(target=put)
    putter.start()
    items = []
    while len(items) < 300:
        for ready in waitforqueues(queues, timeout=10):
            items.append(ready.get_nowait())
    putter.join()
    assert sorted(items) == list(range(300))


def test_a_queue_given_twice(make_queue):
    ready = make_queue()
    ready.put(1)
    assert waitforqueues([ready, ready]) == [ready, ready]


has_shutdown = pytest.mark.skipif(
    sys.version_info < (3, 13), reason="queues cannot be shut down"
)


@has_shutdown
def test_a_queue_that_is_shut_down(make_queue):
    shut, empty = make_queue(), make_queue()
    shut.shutdown()
    assert waitforqueues([empty, shut], timeout=10) == [shut]


@has_shutdown
@pytest.mark.parametrize("immediate", [False, True])
def test_a_queue_that_is_shut_down_during_the_wait(make_queue, immediate):
    shut, empty, results = make_queue(), make_queue(), []
    waiter = threading.Thread(
        target=lambda: results.append(waitforqueues([empty, shut], timeout=10))
    )
    waiter.start()
    assert eventually(lambda: type(shut.not_empty) is not threading.Condition)
    shut.shutdown(immediate)
    waiter.join()
    assert results == [[shut]]
