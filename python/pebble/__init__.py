"""Pools of processes and threads that never hang.

A function handed to a pool may loop for ever, leak, corrupt memory or crash: its future ends with the
reason, and everything else goes on.
"""

import atexit as _atexit

from pebble import _engine
from pebble import concurrent
from pebble.decorators import sighandler, synchronized
from pebble.errors import ProcessExpired, RemoteTraceback
from pebble.futures import MapFuture, ProcessFuture, ProcessMapFuture, ThreadFuture as _ThreadFuture
from pebble.pools import ProcessPool, ThreadPool
from pebble.waiting import waitforqueues, waitforthreads

__all__ = [
    "MapFuture",
    "ProcessExpired",
    "ProcessFuture",
    "ProcessMapFuture",
    "ProcessPool",
    "RemoteTraceback",
    "ThreadPool",
    "concurrent",
    "sighandler",
    "synchronized",
    "waitforqueues",
    "waitforthreads",
]

__version__: str = _engine.version

_engine.set_types(
    ProcessFuture=ProcessFuture,
    ThreadFuture=_ThreadFuture,
    MapFuture=MapFuture,
    ProcessMapFuture=ProcessMapFuture,
    ProcessExpired=ProcessExpired,
    RemoteTraceback=RemoteTraceback,
)
_atexit.register(_engine.at_exit)
