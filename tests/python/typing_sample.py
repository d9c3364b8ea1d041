"""What a type checker knows of every public name: mypy --strict reads this, nobody runs it."""

import queue
import signal
import threading
from typing import List, Optional

from typing_extensions import assert_type

import pebble
from pebble import (
    MapFuture,
    ProcessExpired,
    ProcessFuture,
    ProcessMapFuture,
    ProcessPool,
    RemoteTraceback,
    ThreadPool,
    concurrent,
    sighandler,
    synchronized,
    waitforqueues,
    waitforthreads,
)


def length(text: str) -> int:
    return len(text)


@concurrent.process
def bare(text: str) -> int:
    return len(text)


@concurrent.process(timeout=1.5, name="name", context="spawn")
def with_arguments(text: str, *, more: int = 0) -> int:
    return len(text) + more


called_with_a_name = concurrent.process(length, name="name", context="spawn")


@concurrent.thread
def in_thread(text: str) -> int:
    return len(text)


@concurrent.thread(name="name")
def in_named_thread(text: str) -> int:
    return len(text)


@synchronized
def one_at_a_time(text: str) -> int:
    return len(text)


@synchronized(threading.RLock())
def with_a_lock(text: str) -> int:
    return len(text)


@sighandler((signal.SIGINT, signal.SIGTERM))
def handler(signum: int, frame: object) -> None: ...


def check() -> None:
    future = bare("text")
    assert_type(future.result(timeout=1), int)
    assert_type(future.cancel(), bool)
    assert_type(future.pid, Optional[int])
    assert_type(with_arguments("text", more=1).result(), int)
    assert_type(called_with_a_name("text").result(), int)
    assert_type(in_thread("text").result(), int)
    assert_type(in_named_thread("text").result(), int)
    assert_type(one_at_a_time("text"), int)
    assert_type(with_a_lock("text"), int)
    handler(1, None)
    with ProcessPool(max_workers=2, max_tasks=5, initializer=length, initargs=("x",)) as pool:
        assert_type(pool.active, bool)
        scheduled: ProcessFuture[int] = pool.schedule(length, args=("text",), timeout=1)
        assert_type(scheduled.result(), int)
        mapped: ProcessMapFuture[int] = pool.map(length, ["a", "b"], chunksize=2, timeout=1)
        for number in mapped.result():
            assert_type(number, int)
    with ThreadPool(max_workers=2) as threads:
        assert_type(threads.schedule(length, args=("text",)).result(), int)
        mapped_too: MapFuture[int] = threads.map(length, ["a", "b"])
        assert_type(next(mapped_too.result()), int)
        threads.close()
        threads.join(timeout=3)
    thread: List[threading.Thread] = waitforthreads([threading.Thread()], timeout=1)
    queues: List["queue.Queue[int]"] = waitforqueues([queue.Queue()], timeout=0.5)
    error = ProcessExpired("text", exitcode=-11, pid=1)
    assert_type(error.exitcode, int)
    assert_type(error.pid, Optional[int])
    assert_type(RemoteTraceback("text").text, str)
    assert_type(pebble.__version__, str)
    print(thread, queues)
