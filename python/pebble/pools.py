"""Pools of processes and of threads."""

from __future__ import annotations

import multiprocessing
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterable,
    Mapping,
    Optional,
    Type,
    TypeVar,
    Union,
)

from pebble import _engine, _worker
from pebble._start import Context, start, starting_workers

if TYPE_CHECKING:
    from pebble.futures import MapFuture, ProcessFuture, ProcessMapFuture, ThreadFuture

__all__ = ["ProcessPool", "ThreadPool"]

P = TypeVar("P", bound="_Pool")
T = TypeVar("T")
Seconds = Union[int, float]


class _Pool(_engine.Pool):
    """What both kinds have in common; schedule, map, close, stop, join and active are the
    engine's."""

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], *_: object) -> None:
        # Left by an error of the program: what was scheduled is done. By Ctrl-C or exit: not.
        if kind is None or issubclass(kind, Exception):
            self.close()
        else:
            self.stop()
        self.join()


class ProcessPool(_Pool):
    """A pool of processes that performs calls concurrently. Works as a context manager: it is closed
    and joined at the end.

    max_workers: how many processes (int, 1 to 4096)
    max_tasks: a worker is replaced after so many tasks (int); 0: never
    initializer: called with initargs in every worker at its start
    initargs: an iterable
    name: the workers are named "<name>-1" and so on, name cut to 10 characters (str)
    context: a multiprocessing context or a start method's name; None: multiprocessing's default now
    termination_grace: seconds from SIGTERM to SIGKILL for a task that is timed out, cancelled or
        stopped, and for all that it started (int or float)
    initializer_timeout: the longest that the initializer may take, in seconds

    Raises TypeError or ValueError that name the parameter.
    """

    def __init__(
        self,
        max_workers: int = multiprocessing.cpu_count(),
        max_tasks: int = 0,
        initializer: Optional[Callable[..., object]] = None,
        initargs: Optional[Iterable[Any]] = None,
        *,
        name: Optional[str] = None,
        context: Context = None,
        termination_grace: Seconds = 3.0,
        initializer_timeout: Seconds = 60.0,
    ) -> None:
        _check_name(name)
        method, command, data = start(context)
        if method == "fork":
            _worker.note_program()
        with starting_workers(method):
            super().__init__(
                False,
                max_workers,
                max_tasks,
                initializer,
                initargs,
                name,
                method,
                command,
                data,
                termination_grace,
                initializer_timeout,
            )

    if TYPE_CHECKING:  # the engine's methods, with the types of what they give

        def schedule(
            self,
            function: Callable[..., T],
            args: Iterable[Any] = (),
            kwargs: Mapping[str, Any] = {},
            timeout: Optional[Seconds] = None,
        ) -> ProcessFuture[T]: ...

        def map(
            self,
            function: Callable[..., T],
            /,
            *iterables: Iterable[Any],
            chunksize: Seconds = 1,
            timeout: Optional[Seconds] = None,
        ) -> ProcessMapFuture[T]: ...


class ThreadPool(_Pool):
    """A pool of threads that performs calls concurrently. Works as a context manager: it is closed
    and joined at the end.

    max_workers: how many threads (int, 1 to 4096)
    max_tasks: a thread is replaced after so many tasks (int); 0: never
    initializer: called with initargs in every thread at its start
    initargs: an iterable
    name: the threads are named "<name>-1" and so on, name cut to 10 characters (str)

    Raises TypeError or ValueError that name the parameter.
    """

    def __init__(
        self,
        max_workers: int = multiprocessing.cpu_count(),
        max_tasks: int = 0,
        initializer: Optional[Callable[..., object]] = None,
        initargs: Optional[Iterable[Any]] = None,
        *,
        name: Optional[str] = None,
    ) -> None:
        _check_name(name)
        super().__init__(
            True,
            max_workers,
            max_tasks,
            initializer,
            initargs,
            name,
            None,
            None,
            None,
            None,
            None,
        )

    if TYPE_CHECKING:

        def schedule(  # type: ignore[override]
            self,
            function: Callable[..., T],
            args: Iterable[Any] = (),
            kwargs: Mapping[str, Any] = {},
        ) -> ThreadFuture[T]: ...

        def map(
            self,
            function: Callable[..., T],
            /,
            *iterables: Iterable[Any],
            chunksize: Seconds = 1,
            timeout: Optional[Seconds] = None,
        ) -> MapFuture[T]: ...


def _check_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str or None, not {type(name).__name__}")
    if name is not None and "\0" in name:
        raise ValueError("name must not hold a null character")
