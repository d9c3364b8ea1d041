import math
import queue
import signal
import threading
from concurrent.futures import Future

import pytest
from pebble import (
    ProcessPool,
    ThreadPool,
    concurrent,
    sighandler,
    synchronized,
    waitforqueues,
    waitforthreads,
)

import tasks

BAD_TIMEOUTS = [
    (TypeError, "1"),
    (TypeError, [1]),
    (TypeError, 1j),
    (ValueError, 0),
    (ValueError, -1),
    (ValueError, -0.5),
    (ValueError, math.nan),
]


def bad(name, *cases):
    """Parameters of a test: for each the exception, and the argument by its name."""
    return [
        pytest.param(error, name, value, id=f"{name}={value!r:.20}")
        for error, value in cases
    ]


def refused(error, name):
    """Raises the error, and the message names the parameter."""
    return pytest.raises(error, match=rf"\b{name}\b")


# ---- Pools ----

BAD_FOR_BOTH = [
    *bad(
        "max_workers",
        (TypeError, "2"),
        (TypeError, 1.5),
        (TypeError, [1]),
        (ValueError, 0),
        (ValueError, -1),
        (ValueError, 4097),
        (ValueError, 10**30),
    ),
    *bad("max_tasks", (TypeError, "2"), (TypeError, 1.5), (ValueError, -1)),
    *bad("initializer", (TypeError, 5), (TypeError, "text")),
    *bad("initargs", (TypeError, 5)),
    *bad("name", (TypeError, 5), (TypeError, b"bytes")),
]

BAD_FOR_PROCESSES = [
    *bad("context", (ValueError, "nonsense"), (TypeError, 5)),
    *bad(
        "termination_grace",
        (TypeError, "1"),
        (ValueError, -1),
        (ValueError, math.nan),
    ),
    *bad("initializer_timeout", *BAD_TIMEOUTS),
]


@pytest.mark.parametrize("error, name, value", BAD_FOR_BOTH)
def test_pool(any_kind, error, name, value):
    with refused(error, name):
        any_kind(**{name: value})


@pytest.mark.parametrize("error, name, value", BAD_FOR_PROCESSES)
def test_process_pool(error, name, value):
    with refused(error, name):
        ProcessPool(**{name: value})


@pytest.mark.parametrize(
    "name", ["context", "termination_grace", "initializer_timeout", "nonsense"]
)
def test_thread_pool_has_no(name):
    with refused(TypeError, name):
        ThreadPool(**{name: None})


def test_as_many_workers_as_allowed(any_kind):
    with any_kind(max_workers=4096) as pool:
        assert pool.active


def test_keywords_only(any_kind):
    with pytest.raises(TypeError):
        any_kind(1, 0, None, None, "name")


# ---- schedule ----

BAD_FOR_SCHEDULE = [
    *bad("function", (TypeError, 5), (TypeError, None), (TypeError, "len")),
    *bad("args", (TypeError, 5), (TypeError, None)),
    *bad("kwargs", (TypeError, 5), (TypeError, [1]), (TypeError, "text")),
]


@pytest.mark.parametrize("error, name, value", BAD_FOR_SCHEDULE)
def test_schedule(any_pool, error, name, value):
    with refused(error, name):
        any_pool.schedule(**{"function": tasks.value, "args": (1,), name: value})


@pytest.mark.parametrize("error, name, value", bad("timeout", *BAD_TIMEOUTS))
def test_schedule_timeout(process_pool, error, name, value):
    with refused(error, name):
        process_pool.schedule(tasks.value, args=(1,), timeout=value)


def test_schedule_in_threads_has_no_timeout(thread_pool):
    with refused(TypeError, "timeout"):
        thread_pool.schedule(tasks.value, args=(1,), timeout=1)


def test_schedule_without_function(any_pool):
    with refused(TypeError, "function"):
        any_pool.schedule()


def test_schedule_with_an_unknown_keyword(any_pool):
    with refused(TypeError, "nonsense"):
        any_pool.schedule(tasks.value, nonsense=1)


def test_schedule_with_too_many(any_pool):
    with pytest.raises(TypeError):
        any_pool.schedule(tasks.value, (1,), {}, None, None)


def test_args_that_raise(any_pool):
    def broken():
        yield 1
        raise LookupError("args")

    with pytest.raises(LookupError, match="args"):
        any_pool.schedule(tasks.value, args=broken())


# ---- map ----

BAD_FOR_MAP = [
    *bad("function", (TypeError, 5), (TypeError, None)),
    *bad(
        "chunksize",
        (TypeError, "2"),
        (TypeError, None),
        (ValueError, 0),
        (ValueError, -1),
        (ValueError, 0.5),
        (ValueError, math.nan),
        (ValueError, math.inf),
    ),
    *bad("timeout", *BAD_TIMEOUTS),
]


@pytest.mark.parametrize("error, name, value", BAD_FOR_MAP)
def test_map(any_pool, error, name, value):
    keywords = {name: value}
    function = keywords.pop("function", tasks.value)
    with refused(error, name):
        any_pool.map(function, [1], **keywords)


def test_map_without_iterables(any_pool):
    with refused(TypeError, "iterables"):
        any_pool.map(tasks.value)


def test_map_without_function(any_pool):
    with refused(TypeError, "function"):
        any_pool.map()


def test_map_of_no_iterable(any_pool):
    with refused(TypeError, "iterables"):
        any_pool.map(tasks.value, [1], 5)


def test_map_with_an_unknown_keyword(any_pool):
    with refused(TypeError, "nonsense"):
        any_pool.map(tasks.value, [1], nonsense=1)


# ---- join ----


@pytest.mark.parametrize("value", ["1", [1]])
def test_join(any_kind, value):
    pool = any_kind(max_workers=1)
    pool.close()
    with refused(TypeError, "timeout"):
        pool.join(timeout=value)
    with refused(ValueError, "timeout"):
        pool.join(timeout=math.nan)
    pool.join()


# ---- Nothing remains of a refused call ----


def test_pools_work_on(any_pool):
    for keywords in {"args": 5}, {"kwargs": 5}, {"nonsense": 5}:
        with pytest.raises(TypeError):
            any_pool.schedule(tasks.value, **keywords)
    assert any_pool.schedule(tasks.value, args=(1,)).result() == 1


# ---- Decorators ----


@pytest.mark.parametrize(
    "error, name, value",
    [
        *bad("timeout", *BAD_TIMEOUTS),
        *bad("name", (TypeError, 5)),
        *bad("context", (TypeError, 5), (ValueError, "nonsense")),
    ],
)
def test_process(error, name, value):
    with refused(error, name):
        concurrent.process(**{name: value})


@pytest.mark.parametrize("value", ["1", [1]])
def test_process_by_position(value):
    with refused(TypeError, "timeout"):
        concurrent.process(value)


def test_thread():
    with refused(TypeError, "name"):
        concurrent.thread(name=5)


@pytest.mark.parametrize(
    "decorate",
    [concurrent.process(), concurrent.thread(), synchronized(), sighandler(10)],
)
def test_decorators_want_callables(decorate):
    with pytest.raises(TypeError):
        decorate(5)


@pytest.mark.parametrize("value", [5, "lock", Future()])
def test_synchronized(value):
    with refused(TypeError, "lock"):
        synchronized(value)


@pytest.mark.parametrize(
    "error, value",
    [
        (TypeError, "SIGINT"),
        (TypeError, None),
        (TypeError, 1.5),
        (TypeError, [signal.SIGUSR1, "SIGINT"]),
        (TypeError, {signal.SIGUSR1}),
        (ValueError, 0),
        (ValueError, -1),
        (ValueError, 9999),
        (ValueError, (signal.SIGUSR1, 9999)),
    ],
)
def test_sighandler(error, value):
    before = signal.getsignal(signal.SIGUSR1)
    with refused(error, "signals"):
        sighandler(value)(lambda signum, frame: None)
    assert signal.getsignal(signal.SIGUSR1) is before


# ---- Waiting ----


@pytest.mark.parametrize("value", [5, None, [5], [None]])
def test_waitforthreads(value):
    with refused(TypeError, "threads"):
        waitforthreads(value)


@pytest.mark.parametrize("value", [5, None, [5], [queue.Queue(), None]])
def test_waitforqueues(value):
    with refused(TypeError, "queues"):
        waitforqueues(value)


@pytest.mark.parametrize("error, value", [(TypeError, "1"), (ValueError, math.nan)])
def test_timeouts_of_waiting(error, value):
    with refused(error, "timeout"):
        waitforthreads([threading.current_thread()], timeout=value)
    with refused(error, "timeout"):
        waitforqueues([queue.Queue()], timeout=value)
