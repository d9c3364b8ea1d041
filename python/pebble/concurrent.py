"""Functions that run in a process or thread of their own, and give a future at once."""

from __future__ import annotations

import functools
import os
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Optional,
    ParamSpec,
    TypeVar,
    Union,
    overload,
)

from pebble import _engine, _worker
from pebble._start import Context, Start, start, start_method, starting_process
from pebble.pools import _check_name

if TYPE_CHECKING:
    from pebble.futures import ProcessFuture, ThreadFuture

__all__ = ["process", "thread"]

NAME_MAX = 15  # bytes of a thread's name that the system keeps

P = ParamSpec("P")
T = TypeVar("T")


@overload
def process(
    timeout: Callable[P, T],
    /,
    name: Optional[str] = None,
    *,
    context: Context = None,
) -> Callable[P, ProcessFuture[T]]: ...
@overload
def process(
    timeout: Union[None, int, float] = None,
    name: Optional[str] = None,
    *,
    context: Context = None,
) -> Callable[[Callable[P, T]], Callable[P, ProcessFuture[T]]]: ...
def process(
    timeout: Any = None,
    name: Optional[str] = None,
    *,
    context: Context = None,
) -> Any:
    """Decorator: the function runs in a new process at each call, and gives a pebble.ProcessFuture.

    timeout: the longest that a call may run, in seconds (int or float); then its process is ended
        and the future's result() raises concurrent.futures.TimeoutError. None: no limit
    name: of the process (str)
    context: a multiprocessing context or a start method's name; None: multiprocessing's default at
        the call

    With or without arguments: @process, @process(timeout=1); process(function) works on any callable.
    With the start method fork, function and arguments are inherited and need not be picklable; the
    result is pickled always.
    """
    _check_name(name)
    start_method(context)
    if callable(timeout):
        return _in_process(timeout, None, name, context)
    _check_timeout(timeout)
    return lambda function: _in_process(function, timeout, name, context)


@overload
def thread(name: Callable[P, T], /) -> Callable[P, ThreadFuture[T]]: ...
@overload
def thread(
    name: Optional[str] = None,
) -> Callable[[Callable[P, T]], Callable[P, ThreadFuture[T]]]: ...
def thread(name: Any = None) -> Any:
    """Decorator: the function runs in a new thread at each call, and gives a
    concurrent.futures.Future.

    name: of the thread (str)

    With or without arguments: @thread, @thread(name="reader"); thread(function) works on any callable.
    """
    if callable(name):
        return _in_thread(name, None)
    _check_name(name)
    return lambda function: _in_thread(function, name)


def _check_callable(function: Any) -> None:
    if not callable(function):
        raise TypeError(f"function must be callable, not {type(function).__name__}")


def _check_timeout(timeout: Union[None, int, float]) -> None:
    if timeout is None:
        return
    if isinstance(timeout, (str, bytes)) or not hasattr(timeout, "__float__"):
        raise TypeError(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        )
    if not timeout > 0:
        raise ValueError(f"timeout must be greater than 0, not {timeout!r}")


def _wrap(function: Callable[..., Any], call: Callable[..., Any]) -> Any:
    """functools.wraps, also on callables that have no __name__ or __dict__."""
    try:
        wrapper: Any = functools.wraps(function)(call)
    except AttributeError:
        wrapper = call
        wrapper.__wrapped__ = function
    wrapper._pebble_decorated = function
    return wrapper


def _in_thread(function: Callable[..., Any], name: Optional[str]) -> Any:
    _check_callable(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        if name is None or len(os.fsencode(name)) <= NAME_MAX:
            return _engine.run_thread(function, args, kwargs, name)
        return _engine.run_thread(
            _worker.call_in_thread, (function, name, args, kwargs), None, name
        )

    return _wrap(function, call)


def _in_process(
    function: Callable[..., Any],
    timeout: Union[None, int, float],
    name: Optional[str],
    context: Context,
) -> Any:
    _check_callable(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        how = start(context)
        if how.method != "fork":
            return _execute(wrapper, function, how, timeout, name, args, kwargs)
        _worker.note_program()
        return _engine.run_process(
            function, args, kwargs, timeout, name, how.method, None, None
        )

    wrapper = _wrap(function, call)
    return wrapper


def _execute(
    wrapper: Any,
    function: Callable[..., Any],
    how: Start,
    timeout: Union[None, int, float],
    name: Optional[str],
    args: Any,
    kwargs: Any,
) -> Any:
    """In an executed process, which finds the function by its name: there is the decorated one. If it
    is not there (concurrent.process(function) was called somewhere), the function itself is pickled."""
    module = getattr(wrapper, "__module__", None)
    path = getattr(wrapper, "__qualname__", None)
    target: Any = _worker.call_named
    call: Any = (function, name, args, kwargs)
    try:
        _worker.find_decorated(module, path, wrapper)  # type: ignore[arg-type]
        target = _worker.call_decorated
        call = (module, path, name, args, kwargs)
    except (LookupError, ImportError, AttributeError, TypeError, ValueError):
        pass
    with starting_process():
        return _engine.run_process(
            target, call, {}, timeout, name, how.method, how.command, how.data
        )
