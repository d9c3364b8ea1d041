"""synchronized and sighandler."""

import functools
import os
import signal
import threading
from typing import Any, Callable, List, TypeVar, overload

__all__ = ["sighandler", "synchronized"]

F = TypeVar("F", bound=Callable[..., Any])

_default_lock = threading.Lock()


def _renew_default_lock() -> None:
    """In the child of a fork: what another thread had there would stay locked. Whoever forked under the
    old one releases that."""
    global _default_lock
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_default_lock)


@overload
def synchronized(lock: F, /) -> F: ...
@overload
def synchronized(lock: Any = None) -> Callable[[F], F]: ...
def synchronized(lock: Any = None) -> Any:
    """Decorator: one caller at a time is in the function.

    lock: a Lock, RLock or Semaphore of threading or multiprocessing, or what else has acquire() and
        release(); None: one threading.Lock that all functions decorated so share, so that one of them
        at a time is executed; a forked process has its own

    With or without arguments: @synchronized, @synchronized(lock).
    """
    if lock is None:
        return lambda function: _synchronize(function, None)
    if hasattr(lock, "acquire") and hasattr(lock, "release"):
        return lambda function: _synchronize(function, lock)
    if callable(lock):
        return _synchronize(lock, None)
    raise TypeError(f"lock must have acquire() and release(), {type(lock).__name__} has not")


def _synchronize(function: F, lock: Any) -> F:
    if not callable(function):
        raise TypeError(f"function must be callable, not {type(function).__name__}")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        taken = _default_lock if lock is None else lock
        taken.acquire()
        try:
            return function(*args, **kwargs)
        finally:
            taken.release()

    return call  # type: ignore[return-value]


def sighandler(signals: Any) -> Callable[[F], F]:
    """Decorator: sets the function as the handler of the signals, by signal.signal().

    signals: a signal (signal.Signals or int), or a list or tuple of them

    Raises TypeError or ValueError before any handler is set if one of them cannot be; ValueError
    outside of the main thread.
    """
    numbers = [_signal(each) for each in _as_list(signals)]

    def decorate(function: F) -> F:
        if not callable(function):
            raise TypeError(f"function must be callable, not {type(function).__name__}")
        for number in numbers:
            signal.signal(number, function)
        return function

    return decorate


def _as_list(signals: Any) -> List[Any]:
    if isinstance(signals, (list, tuple)):
        return list(signals)
    return [signals]


def _signal(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(
            f"signals must be signals or a list of them, not {type(number).__name__}"
        )
    if number not in signal.valid_signals() or number in (signal.SIGKILL, signal.SIGSTOP):
        raise ValueError(f"signals must be signals that can be handled, not {number!r}")
    return number
