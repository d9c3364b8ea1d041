"""The rows of the table: what is measured, in which unit, of whom, and what is to be reached.

A row's function gets a contender and gives a number; less is better in all of them. `needs` names the
contender's methods without which it is not in the row.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

import tasks

WORKERS = 2
MIB = 1 << 20


@dataclass
class Row:
    name: str
    unit: str
    measure: Callable
    needs: Tuple[str, ...] = ()
    timeouts: bool = False  # only of those that can limit a task's time
    without: Tuple[str, ...] = ()  # contenders that cannot do it in any time worth waiting for
    telling: bool = False  # in the README
    against_pebble: Optional[float] = None
    against_best: Optional[float] = None


def warm(contender, pool):
    for result in [contender.submit(pool, tasks.nothing) for _ in range(20)]:
        contender.get(result)


def with_pool(measure):
    def run(contender):
        pool = contender.open(WORKERS)
        warm(contender, pool)
        number = measure(contender, pool)
        contender.close(pool)
        return number

    return run


def microseconds_each(count, action):
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) / count * 1e6


def burst(count, **options):
    @with_pool
    def measure(contender, pool):
        def action():
            results = [
                contender.submit(pool, tasks.nothing, None, **options) for _ in range(count)
            ]
            for result in results:
                contender.get(result)

        return statistics.median(microseconds_each(count, action) for _ in range(3))

    return measure


def mapping(count, chunksize):
    @with_pool
    def measure(contender, pool):
        def action():
            assert len(contender.map(pool, tasks.identity, range(count), chunksize)) == count

        return microseconds_each(count, action)

    return measure


def trips(count, pause=0.0, argument=None, function=tasks.nothing, per_second=1e6):
    @with_pool
    def measure(contender, pool):
        def trip():
            if pause:
                time.sleep(pause)
            value = argument() if argument is not None else None
            begin = time.perf_counter()
            contender.get(contender.submit(pool, function, value))
            return (time.perf_counter() - begin) * per_second

        trip()
        return statistics.median(trip() for _ in range(count))

    return measure


def array():
    import numpy

    return numpy.full(100 * MIB // 8, 1.5)


def error_of(contender, result):
    try:
        contender.get(result)
    except Exception as error:
        return error


@with_pool
def deadline(contender, pool):
    def delay():
        begin = time.perf_counter()
        error_of(contender, contender.submit(pool, tasks.loop, timeout=0.3))
        return (time.perf_counter() - begin - 0.3) * 1e3

    return statistics.median(delay() for _ in range(5))


def all_end(count, function, **options):
    @with_pool
    def measure(contender, pool):
        begin = time.perf_counter()
        results = [contender.submit(pool, function, **options) for _ in range(count)]
        assert all(error_of(contender, result) is not None for result in results)
        return (time.perf_counter() - begin) * 1e3

    return measure


def new_workers(contender):
    pool = contender.open_with_new_workers(WORKERS)
    begin = time.perf_counter()
    for result in [contender.submit(pool, tasks.nothing) for _ in range(100)]:
        contender.get(result)
    number = (time.perf_counter() - begin) * 1e3
    contender.close(pool)
    return number


def pool_for_one(contender):
    def once():
        begin = time.perf_counter()
        pool = contender.open(WORKERS)
        contender.get(contender.submit(pool, tasks.nothing))
        contender.close(pool)
        return (time.perf_counter() - begin) * 1e3

    once()
    return statistics.median(once() for _ in range(10))


def call_alone(contender):
    function = contender.call_alone(tasks.nothing)

    def once():
        begin = time.perf_counter()
        function().result()
        return (time.perf_counter() - begin) * 1e3

    once()
    return statistics.median(once() for _ in range(20))


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown_by_queued(contender, count):
    """Bytes that the program has grown by when so many tasks wait."""
    pool = contender.open(1)
    warm(contender, pool)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "go on")
        busy = contender.submit(pool, tasks.wait_for, path)
        before = resident_bytes()
        results = [contender.submit(pool, tasks.nothing) for _ in range(count)]
        grown = resident_bytes() - before
        open(path, "w").close()
        contender.get(busy)
    contender.get(results[-1])
    contender.close(pool)
    return grown


def memory(contender):
    return grown_by_queued(contender, 50000) / 50000


def threads(contender):
    pool = contender.open_threads(WORKERS)

    def action():
        results = [contender.submit_thread(pool, tasks.nothing, None) for _ in range(20000)]
        for result in results:
            contender.get(result)

    action()
    number = statistics.median(microseconds_each(20000, action) for _ in range(3))
    contender.close(pool)
    return number


def bytes_of(size):
    return lambda: os.urandom(16) * (size // 16)


ALL = [
    Row("schedule and collect, 20,000 tasks", "µs a task", burst(20000), against_pebble=20,
        against_best=10, telling=True),
    Row("the same with a timeout on each", "µs a task", burst(20000, timeout=60), timeouts=True,
        against_pebble=20),
    Row("map, chunksize 1, 20,000", "µs an element", mapping(20000, 1), against_pebble=20,
        against_best=8),
    Row("map, chunksize 100, 500,000", "µs an element", mapping(500000, 100), against_pebble=20,
        against_best=3, without=("deadpool",), telling=True),
    Row("round trip, one at a time", "µs", trips(1000), against_pebble=10, against_best=8,
        telling=True),
    Row("round trip after 20 ms of idleness", "µs", trips(50, pause=0.02), against_pebble=4,
        against_best=3),
    Row("1 MiB argument", "µs", trips(100, argument=bytes_of(MIB), function=tasks.take),
        against_pebble=3, against_best=2),
    Row("1 MiB argument and result", "µs",
        trips(100, argument=bytes_of(MIB), function=tasks.identity), against_pebble=3,
        against_best=2, telling=True),
    Row("100 MiB argument", "ms",
        trips(3, argument=bytes_of(100 * MIB), function=tasks.take, per_second=1e3),
        against_pebble=2, against_best=1.5),
    Row("100 MiB argument and result", "ms",
        trips(3, argument=bytes_of(100 * MIB), function=tasks.identity, per_second=1e3),
        against_pebble=2, against_best=1.5),
    Row("numpy array of 100 MiB in and out", "ms",
        trips(3, argument=array, function=tasks.identity, per_second=1e3), against_pebble=4,
        against_best=2, telling=True),
    Row("from the deadline to TimeoutError", "ms", deadline, timeouts=True, against_pebble=20,
        telling=True),
    Row("40 tasks that run out of 50 ms", "ms", all_end(40, tasks.loop, timeout=0.05),
        timeouts=True, against_pebble=1.9),
    Row("40 tasks that kill their worker", "ms", all_end(40, tasks.kill_itself),
        needs=("call_alone",), against_pebble=20, telling=True),
    Row("100 tasks, a new worker for each", "ms", new_workers, needs=("open_with_new_workers",),
        against_pebble=30, against_best=1.5, telling=True),
    Row("pool made, one task, closed and joined", "ms", pool_for_one, against_pebble=15,
        against_best=1),
    Row("one concurrent.process call", "ms", call_alone, needs=("call_alone",),
        against_pebble=4),
    Row("memory of a queued task", "bytes", memory, against_pebble=5, telling=True),
    Row("thread pool, 20,000 tasks", "µs a task", threads, needs=("open_threads",),
        against_pebble=10, against_best=5, telling=True),
]

CAN_LIMIT_TIME = {"ours", "Pebble", "deadpool"}


def contenders_of(row, contenders):
    return [
        contender
        for contender in contenders
        if all(hasattr(contender, method) for method in row.needs)
        and (not row.timeouts or contender.name in CAN_LIMIT_TIME)
        and contender.name not in row.without
    ]
