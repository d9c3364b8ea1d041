"""Waiting for any of several threads or queues. Nothing here polls.

A thread's end can be waited for by join() alone, so each thread that is waited for has a helper that
joins it; one, for as long as the thread lives, whoever waits. A queue tells of new items through its
condition `not_empty`, which is given a class that tells those who watch it, too.
"""

import queue
import threading
import time
import weakref
from typing import Any, Dict, List, Optional, Sequence, Set, Type, Union

from pebble._worker import _PoolThread

__all__ = ["waitforqueues", "waitforthreads"]

Timeout = Union[None, int, float]


def _check_timeout(timeout: Timeout) -> Timeout:
    if timeout is None:
        return None
    if isinstance(timeout, (str, bytes)) or not hasattr(timeout, "__float__"):
        raise TypeError(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        )
    if timeout != timeout:
        raise ValueError("timeout must not be NaN")
    return min(max(timeout, 0), threading.TIMEOUT_MAX)


def _check_list(values: Any, parameter: str) -> List[Any]:
    try:
        return list(values)
    except TypeError:
        raise TypeError(
            f"{parameter} must be a list, not {type(values).__name__}"
        ) from None


# ---- Threads


class _Joiner:
    """Waits for the end of one thread, for all who ask."""

    def __init__(self, thread: threading.Thread) -> None:
        self.lock = threading.Lock()
        self.waiters: Set[threading.Event] = set()
        self.ended = False
        threading.Thread(target=self._join, args=(thread,), name="pebble-join", daemon=True).start()

    def _join(self, thread: threading.Thread) -> None:
        try:
            thread.join()
        finally:  # a thread's class may have a join() of its own, which raises
            with self.lock:
                self.ended = True
                for waiter in self.waiters:
                    waiter.set()

    def add(self, waiter: threading.Event) -> None:
        with self.lock:
            self.waiters.add(waiter)
            if self.ended:
                waiter.set()

    def remove(self, waiter: threading.Event) -> None:
        with self.lock:
            self.waiters.discard(waiter)


_joiners: "weakref.WeakKeyDictionary[threading.Thread, _Joiner]" = weakref.WeakKeyDictionary()
_joiners_lock = threading.Lock()


def _joiner(thread: threading.Thread) -> _Joiner:
    with _joiners_lock:
        joiner = _joiners.get(thread)
        if joiner is None:
            joiner = _joiners[thread] = _Joiner(thread)
        return joiner


def waitforthreads(
    threads: Sequence[threading.Thread], timeout: Timeout = None
) -> List[threading.Thread]:
    """Wait for one or more threads to exit.

    threads: a list of threading.Thread
    timeout: seconds (int or float); None: without limit

    Returns the list of those that have exited, in the given order; empty if the timeout was over first,
    or if there are none. They are not joined. Raises RuntimeError for a thread that was not started, for
    the calling one, and for a dummy (threading.current_thread() in a thread that Python has not started).
    """
    waited = _check_list(threads, "threads")
    limit = _check_timeout(timeout)
    for thread in waited:
        if not isinstance(thread, threading.Thread):
            raise TypeError(f"threads must hold threads, not {type(thread).__name__}")
    for thread in waited:
        if thread.ident is None:
            raise RuntimeError("threads must have been started")
        if thread is threading.current_thread():
            raise RuntimeError("threads must not hold the calling thread")
        if isinstance(thread, threading._DummyThread) and not isinstance(thread, _PoolThread):
            raise RuntimeError("threads must not hold dummy threads, which cannot be joined")
    if not waited or not all(thread.is_alive() for thread in waited):
        return _exited(waited)
    event = threading.Event()
    joiners = [_joiner(thread) for thread in waited]
    try:
        for joiner in joiners:
            joiner.add(event)
        event.wait(limit)
    finally:
        for joiner in joiners:
            joiner.remove(event)
    return _exited(waited)


def _exited(threads: List[threading.Thread]) -> List[threading.Thread]:
    return [thread for thread in threads if not thread.is_alive()]


# ---- Queues


class _Watched(threading.Condition):
    """A queue's not_empty while somebody watches: notify() tells the watchers, too. Under its lock, as
    that."""

    pebble_watchers: Set[threading.Event]

    def notify(self, n: int = 1) -> None:
        super().notify(n)
        for watcher in self.pebble_watchers:
            watcher.set()


_watched_classes: Dict[Type[threading.Condition], Type[threading.Condition]] = {
    threading.Condition: _Watched
}


def _watch(condition: Any, event: threading.Event) -> None:
    """Under the condition's lock."""
    kind = type(condition)
    if not isinstance(condition, _Watched):
        if kind not in _watched_classes:
            _watched_classes[kind] = type(kind.__name__, (_Watched, kind), {})
        condition.pebble_watchers = set()
        condition.__class__ = _watched_classes[kind]
    condition.pebble_watchers.add(event)


def _unwatch(condition: Any, event: threading.Event) -> None:
    """Under the condition's lock. The last one leaves it as it was."""
    if not isinstance(condition, _Watched):
        return
    condition.pebble_watchers.discard(event)
    if not condition.pebble_watchers:
        del condition.pebble_watchers
        ours: Any = type(condition)
        (original,) = [kind for kind, watched in _watched_classes.items() if watched is ours]
        unwatched: Any = condition
        unwatched.__class__ = original


def waitforqueues(
    queues: Sequence["queue.Queue[Any]"], timeout: Timeout = None
) -> List["queue.Queue[Any]"]:
    """Wait for one or more queues to hold an item, or to be shut down (Python 3.13): get() does not
    block then. No item is taken.

    queues: a list of queue.Queue
    timeout: seconds (int or float); None: without limit

    Returns the list of those that are ready, in the given order; empty if the timeout was over first, or
    if there are none.
    """
    waited = _check_list(queues, "queues")
    limit = _check_timeout(timeout)
    for each in waited:
        if not isinstance(each, queue.Queue):
            raise TypeError(f"queues must hold queue.Queue, not {type(each).__name__}")
    deadline = None if limit is None else time.monotonic() + limit
    ready = _ready(waited)
    if ready or not waited:
        return ready
    event = threading.Event()
    try:
        for each in waited:
            with each.mutex:
                _watch(each.not_empty, event)
        return _wait_until_ready(waited, event, deadline)
    finally:
        for each in waited:
            with each.mutex:
                _unwatch(each.not_empty, event)


def _wait_until_ready(
    queues: "List[queue.Queue[Any]]", event: threading.Event, deadline: Optional[float]
) -> "List[queue.Queue[Any]]":
    """An item that the event tells of may be somebody else's by the time that one looks."""
    while True:
        event.clear()
        ready = _ready(queues)
        left = None if deadline is None else deadline - time.monotonic()
        if ready or (left is not None and left <= 0):
            return ready
        event.wait(left)


def _ready(queues: "List[queue.Queue[Any]]") -> "List[queue.Queue[Any]]":
    return [each for each in queues if each.qsize() or getattr(each, "is_shutdown", None) is True]
