"""The futures of pools: concurrent.futures.Future by inheritance, the engine's by nature."""

import concurrent.futures
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from pebble import _engine

__all__ = ["MapFuture", "ProcessFuture", "ProcessMapFuture"]

T = TypeVar("T")

if TYPE_CHECKING:

    class _Future(concurrent.futures.Future[T]):
        @property
        def pid(self) -> Optional[int]: ...

    class _MapFuture(concurrent.futures.Future[_engine.MapResults[T]]): ...

    class ThreadFuture(_Future[T]): ...

    class ProcessFuture(_Future[T]): ...

    class MapFuture(_MapFuture[T]): ...

    class ProcessMapFuture(ProcessFuture[Any], _MapFuture[T]):
        def result(self, timeout: Optional[float] = None) -> _engine.MapResults[T]: ...

else:

    class ThreadFuture(_engine.Future, concurrent.futures.Future):
        """A call in a thread: what ThreadPool.schedule() and concurrent.thread give."""

    class ProcessFuture(_engine.Future, concurrent.futures.Future):
        """A call in a process. Unlike any other Future, it can be cancelled while it runs.

        pid: the process that runs or ran it (int), None before
        """

    class MapFuture(_engine.MapFuture, concurrent.futures.Future):
        """What ThreadPool.map() gives: result() is an iterator over the results."""

    class ProcessMapFuture(_engine.MapFuture, ProcessFuture):
        """What ProcessPool.map() gives: result() is an iterator over the results."""
