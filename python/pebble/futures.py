"""The futures of pools: concurrent.futures.Future by inheritance, the engine's by nature."""

import concurrent.futures
from typing import TypeVar

from pebble import _engine

__all__ = ["MapFuture", "ProcessFuture", "ProcessMapFuture"]

T = TypeVar("T")


class ThreadFuture(_engine.Future[T], concurrent.futures.Future):  # type: ignore[misc,type-arg]
    """A call in a thread; what ThreadPool.schedule() and concurrent.thread give."""


class ProcessFuture(_engine.Future[T], concurrent.futures.Future):  # type: ignore[misc,type-arg]
    """A call in a process. Unlike any other Future, it can be cancelled while it runs.

    pid: the process that runs or ran it (int), None before
    """


class MapFuture(_engine.MapFuture[T], concurrent.futures.Future):  # type: ignore[misc,type-arg]
    """What ThreadPool.map() gives: result() is an iterator over the results."""


class ProcessMapFuture(_engine.MapFuture[T], ProcessFuture[T]):  # type: ignore[misc]
    """What ProcessPool.map() gives: result() is an iterator over the results."""
