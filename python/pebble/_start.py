"""How the processes of a pool come about: multiprocessing's start methods.

What an executed process needs to be like the program (module search path, working directory,
`__main__`) is what multiprocessing gives to its own, and goes to it through the engine.
"""

import contextlib
import multiprocessing
import multiprocessing.context
import multiprocessing.process
import multiprocessing.spawn
import multiprocessing.util
import os
import pickle
from typing import Any, Iterator, List, NamedTuple, Optional, Union

Context = Union[None, str, multiprocessing.context.BaseContext]


class Start(NamedTuple):
    method: str
    command: Optional[List[str]]  # what is executed; None with fork
    data: Optional[bytes]  # what it gets


GUARD = """
An attempt has been made to start a pool's processes before the current process has finished its
bootstrapping phase.

This probably means that the program's main module makes a pool or calls a decorated function when
it is imported, as the start methods spawn and forkserver do in every process. Use the idiom

    if __name__ == "__main__":
        ...
"""


def start_method(context: Context) -> str:
    """The name of a context's start method; None: multiprocessing's default now, not fixed by that."""
    if isinstance(context, str):
        context = _context_of(context)
    if context is None:
        method = multiprocessing.get_start_method(allow_none=True)
        return method if method is not None else multiprocessing.get_all_start_methods()[0]
    if not isinstance(context, multiprocessing.context.BaseContext):
        raise TypeError(
            "context must be a multiprocessing context, a start method's name or None, "
            f"not {type(context).__name__}"
        )
    chosen: str = context.get_start_method()
    return chosen


def _context_of(method: str) -> multiprocessing.context.BaseContext:
    try:
        return multiprocessing.get_context(method)
    except ValueError:
        raise ValueError(f"context must be fork, forkserver or spawn, not {method!r}") from None


def check_bootstrapped() -> None:
    """Raises RuntimeError in a process that is just importing the program's main module."""
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise RuntimeError(GUARD)


def start(context: Context) -> Start:
    """How to start the processes of a pool that is made now."""
    method = start_method(context)
    check_bootstrapped()
    if method == "fork":
        return Start(method, None, None)
    return Start(method, _command(), _data(method))


def _command() -> List[str]:
    """The package is loaded from where it is here. The search path stays as it is: what else is in that
    folder must not replace the standard library."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = (
        "import sys; from importlib.machinery import PathFinder; "
        "from importlib.util import module_from_spec; "
        f"spec = PathFinder.find_spec('pebble', [{folder!r}]); "
        "sys.modules['pebble'] = package = module_from_spec(spec); "
        "spec.loader.exec_module(package); "
        "from pebble._worker import main; main()"
    )
    executable = os.fsdecode(multiprocessing.spawn.get_executable())
    flags: List[str] = multiprocessing.util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [executable, *flags, "-c", code]


def _data(method: str) -> bytes:
    data: Any = multiprocessing.spawn.get_preparation_data("pebble")
    data["authkey"] = bytes(data["authkey"])
    data["start_method"] = method
    return pickle.dumps((os.getpid(), multiprocessing.process.current_process().name, data))


# ---- What only starting processes may be given ----


class _OneProcess:
    """Stands for a process that multiprocessing is starting, to which alone its locks and all that is made
    of them may be pickled. They go by name; a descriptor goes through the resource sharer, which gives it
    to whoever asks first."""

    def duplicate_for_child(self, descriptor: int) -> int:
        return descriptor

    def DupFd(self, descriptor: int) -> Any:
        from multiprocessing import resource_sharer

        return resource_sharer.DupFd(descriptor)


class _EachWorker(_OneProcess):
    def duplicate_for_child(self, descriptor: int) -> int:
        raise RuntimeError(
            "initargs must not hold connections, sockets or multiprocessing's Queue, Barrier, Value and "
            "Array (descriptors) with forkserver and spawn: use those of a multiprocessing.Manager()"
        )


@contextlib.contextmanager
def starting(receiver: _OneProcess) -> Iterator[None]:
    """What this thread pickles meanwhile goes to a process that is started with it."""
    context: Any = multiprocessing.context
    before = context.get_spawning_popen()
    context.set_spawning_popen(receiver)
    try:
        yield
    finally:
        context.set_spawning_popen(before)


def starting_workers(method: str) -> "contextlib.AbstractContextManager[None]":
    """The same for all workers of a pool; those that are forked get nothing pickled."""
    return contextlib.nullcontext() if method == "fork" else starting(_EachWorker())


def starting_process() -> "contextlib.AbstractContextManager[None]":
    return starting(_OneProcess())
