"""How cost grows: what is measured for a contender at a point of a curve.

A curve's function gets a contender and a point and gives a number.
"""

import os
import statistics
import time
from dataclasses import dataclass
from typing import Callable, Tuple

import tasks
from rows import MIB, WORKERS, bytes_of, grown_by_queued, microseconds_each, warm

OFTEN_MEASURED = ("ours", "Pebble", "ProcessPoolExecutor", "multiprocessing.Pool")


@dataclass
class Curve:
    key: str  # of its chart
    title: str
    x: str
    y: str
    points: Tuple[int, ...]
    measure: Callable
    names: Tuple[str, ...] = OFTEN_MEASURED
    most_for_peers: int = 1 << 62  # beyond it they would take the day


def collect(contender, pool, count):
    results = [contender.submit(pool, tasks.nothing) for _ in range(count)]
    for result in results:
        contender.get(result)


def many_tasks(contender, count):
    """Seconds, scheduled and collected."""
    pool = contender.open(WORKERS)
    warm(contender, pool)
    begin = time.perf_counter()
    collect(contender, pool, count)
    seconds = time.perf_counter() - begin
    contender.close(pool)
    return seconds


def queued(contender, count):
    """MiB that the program has grown by."""
    return grown_by_queued(contender, count) / MIB


def throughput(contender, workers):
    """Microseconds a task, 20,000 at a time."""
    pool = contender.open(workers)
    collect(contender, pool, 100 * workers)
    number = statistics.median(
        microseconds_each(20000, lambda: collect(contender, pool, 20000)) for _ in range(3)
    )
    contender.close(pool)
    return number


def start_up(contender, workers):
    """Milliseconds until each worker has begun a task, the pool's making included."""
    nap = 1.0
    begin = time.perf_counter()
    pool = contender.open(workers)
    for result in [contender.submit(pool, tasks.sleep, nap) for _ in range(workers)]:
        contender.get(result)
    number = (time.perf_counter() - begin - nap) * 1e3
    contender.close(pool)
    return number


def payload(contender, size):
    """Milliseconds for bytes there and back."""
    pool = contender.open(WORKERS)
    warm(contender, pool)
    argument = bytes_of(size)() if size >= 16 else os.urandom(size)
    count = 300 if size <= MIB else 5 if size <= 100 * MIB else 1

    def trip():
        begin = time.perf_counter()
        result = contender.get(contender.submit(pool, tasks.identity, argument))
        assert len(result) == size
        return (time.perf_counter() - begin) * 1e3

    if count > 1:
        trip()
    number = statistics.median(trip() for _ in range(count))
    contender.close(pool)
    return number


def restart(contender, mib, before_pool):
    """Milliseconds a task, each with a new worker, in a program with so much resident memory."""

    def grow():
        memory = bytearray(mib * MIB)
        memory[::4096] = b"x" * len(range(0, len(memory), 4096))
        return memory

    memory = grow() if before_pool else None
    pool = contender.open_with_new_workers(1)
    contender.get(contender.submit(pool, tasks.nothing))
    memory = memory or grow()
    count = 20
    begin = time.perf_counter()
    for _ in range(count):
        contender.get(contender.submit(pool, tasks.nothing))
    number = (time.perf_counter() - begin) / count * 1e3
    contender.close(pool)
    return number


FORKING = ("ours", "Pebble", "multiprocessing.Pool")
RESIDENT = (50, 200, 1024, 4096)
POWERS = (1, 2, 4, 8, 16, 32, 64)

ALL = [
    Curve("tasks", "Tasks scheduled at once, then collected", "tasks", "s",
          (1000, 10_000, 100_000, 1_000_000), many_tasks, most_for_peers=100_000),
    Curve("queued", "Memory of queued tasks", "tasks", "MiB",
          (1000, 10_000, 100_000, 1_000_000), queued, most_for_peers=100_000),
    Curve("workers", "20,000 tasks on more workers than processors", "workers", "µs a task",
          POWERS, throughput),
    Curve("start", "Until every worker runs a task", "workers", "ms", POWERS, start_up),
    Curve("payload", "Bytes there and back", "bytes", "ms",
          (1, 1 << 10, 32 << 10, 1 << 20, 32 << 20, 1 << 30), payload),
    Curve("restart", "A new worker in a program that has grown since its pool's first task",
          "resident MiB of the program", "ms", RESIDENT,
          lambda contender, mib: restart(contender, mib, False), FORKING),
    Curve("restart-before", "A new worker in a program that had grown before",
          "resident MiB of the program", "ms", RESIDENT,
          lambda contender, mib: restart(contender, mib, True), FORKING),
]
