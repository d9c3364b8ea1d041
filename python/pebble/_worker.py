"""What a worker does in Python before, between and after its tasks; called by the engine.

A worker process looks like one of multiprocessing: it does here what Process._bootstrap() does
there.
"""

import _signal  # type: ignore[import-not-found]  # signal.signal() takes 70 us for its enums
import atexit
import itertools
import multiprocessing
import multiprocessing.process
import multiprocessing.spawn
import multiprocessing.util
import os
import pickle
import sys
import threading
import traceback
from typing import Any, Callable, Dict, Optional, Tuple

from pebble import _engine

_program: Tuple[int, str] = (os.getpid(), "MainProcess")
"""Process id and name of the program; in a worker it stays what it was before the fork."""


def note_program() -> None:
    """In the program, when it makes a pool whose workers are forked."""
    global _program
    _program = (os.getpid(), multiprocessing.process.current_process().name)


# ---- Processes


class _Program(multiprocessing.process._ParentProcess):  # type: ignore[name-defined, misc]
    """What parent_process() is in a worker."""

    def __init__(self, pid: int, name: str) -> None:
        super().__init__(name, pid, None)
        del self._sentinel

    def __getattr__(self, name: str) -> Any:
        """What join() waits for is opened when it is asked for."""
        if name != "_sentinel":
            raise AttributeError(name)
        try:
            self._sentinel: Optional[int] = os.pidfd_open(self._pid)
        except OSError:
            self._sentinel = None
        return self._sentinel


_prepared_by = 0
"""The process that ran prepare_workers() last."""


def prepare_workers() -> None:
    """What all workers of a pool have in common, in the process that forks them."""
    global _prepared_by
    module: Any = multiprocessing.process
    multiprocessing.util._close_stdin()  # type: ignore[attr-defined]
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # as the engine does; now Python knows, too
    module._children = set()
    module._current_process = module.BaseProcess(name="pebble", daemon=False)
    module._parent_process = _Program(*_program)
    module._process_counter = itertools.count(1)
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    _forget_executors()
    _prepared_by = os.getpid()


def _become_main_thread() -> None:
    """In the child of any fork: the thread that forked is the only one, and the main one; _shutdown() has
    to be able to end it."""
    module: Any = threading
    if isinstance(module.main_thread(), module._DummyThread):  # the engine had started it
        module._main_thread = module._MainThread()


os.register_at_fork(after_in_child=_become_main_thread)


def _forget_executors() -> None:
    executors: Any = sys.modules.get("concurrent.futures.thread")
    if executors is not None:  # at the end it would join itself, if it was an executor's
        executors._threads_queues.clear()


def start_process(name: str) -> None:
    """In a new worker."""
    parent = os.getppid()
    if _prepared_by not in (parent, os.getpid()):
        prepare_workers()
    # The engine has forgotten how it was executed; programs that a task starts are no workers.
    for variable in [each for each in os.environ if each.startswith("PEBBLE_INTERNAL_")]:
        del os.environ[variable]
    worker: Any = multiprocessing.process.current_process()
    worker._name = name
    worker._parent_pid = parent
    multiprocessing.util._run_after_forkers()  # type: ignore[attr-defined]


def rename_process(name: str) -> None:
    multiprocessing.process.current_process().name = name


def end_process() -> None:
    """In a worker that ends in order: what there is to be done. Most have nothing, and looking for it
    takes as long as a tenth of a worker's start."""
    util: Any = multiprocessing.util
    module: Any = threading
    if util._finalizer_registry or multiprocessing.process._children:  # type: ignore[attr-defined]
        util._exit_function()
    if module._threading_atexits or len(module._active) > 1 or module._limbo:
        module._shutdown()
    util._flush_std_streams()


def end_executed() -> None:
    """The same, where the worker is an interpreter of its own (spawn)."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()  # multiprocessing's own among them
    multiprocessing.util._flush_std_streams()  # type: ignore[attr-defined]


def call_decorated(
    module: str,
    path: str,
    name: Optional[str],
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
) -> Any:
    """Calls the function that concurrent.process decorates under this name."""
    if name is not None:
        rename_process(name)
    return find_decorated(module, path)(*args, **kwargs)


def call_named(
    function: Callable[..., Any],
    name: Optional[str],
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
) -> Any:
    if name is not None:
        rename_process(name)
    return function(*args, **kwargs)


def find_decorated(module: str, path: str, wrapper: Any = None) -> Callable[..., Any]:
    """The function below the decorator, under whatever other decorators; LookupError if the name is
    not of a decorated function, or of another than wrapper."""
    __import__(module)
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part, None)
    while found is not None:
        function: Any = getattr(found, "__wrapped__", None)
        # functools.wraps copies the mark to decorators above, where it is not what they wrap.
        decorated = getattr(found, "_pebble_decorated", None)
        if decorated is not None and decorated is function and wrapper in (None, found):
            return decorated  # type: ignore[no-any-return]
        found = getattr(found, "__func__", None) or function
    raise LookupError(f"{module}.{path} is not a decorated function")


def main() -> None:
    """What an executed process runs: it becomes like the program, then serves the pool."""
    global _program
    data = _engine.worker_data()
    if data is None:
        raise SystemExit("pebble: this module is not to be run")
    pid, name, preparation = pickle.loads(data)
    _program = (pid, name)
    prepare_workers()
    _engine.serve(_prepare(preparation), preparation["start_method"] == "spawn")


def _prepare(preparation: Dict[str, Any]) -> Optional[str]:
    """Imports `__main__` and so on. What went wrong, or None."""
    process: Any = multiprocessing.process.current_process()
    process._inheriting = True
    try:
        multiprocessing.spawn.prepare(preparation)
    except BaseException:
        return _end_of(traceback.format_exc())
    finally:
        del process._inheriting
    return None


def _end_of(text: str) -> str:
    """The last lines, which say why: no more of them than the engine keeps."""
    lines = text.splitlines(keepends=True)
    while len("".join(lines).encode()) > 950 and len(lines) > 1:
        del lines[0]
    return "the main module could not be imported in the worker: " + "".join(lines)


# ---- Threads


class _PoolThread(threading._DummyThread):
    """What threading.current_thread() is in a thread that the engine has started."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._ended = threading.Event()

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def join(self, timeout: Optional[float] = None) -> None:
        self._ended.wait(timeout)

    def end(self) -> None:
        threads: Any = threading
        with threads._active_limbo_lock:
            threads._active.pop(self.ident, None)
        self._ended.set()


def start_thread(name: str) -> None:
    """In a new thread of a thread pool: makes it known to `threading`."""
    _PoolThread(name)


def call_in_thread(
    function: Callable[..., Any], name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]
) -> Any:
    """Calls a function in a thread whose name the engine has cut."""
    threading.current_thread().name = name
    return function(*args, **kwargs)


def end_thread() -> None:
    thread = threading.current_thread()
    if isinstance(thread, _PoolThread):
        thread.end()
