"""Row 11: arguments, results and exceptions that cannot be pickled or unpickled."""

import os

import pytest
from pebble import ProcessExpired

import tasks


def give(kind):
    return kind()


def throw(kind):
    raise kind()


class DiesWhenDumped(Exception):
    def __reduce__(self):
        os._exit(5)


class DiesWhenLoaded:
    def __reduce__(self):
        return os._exit, (6,)


class HangsWhenLoaded:
    def __reduce__(self):
        return tasks.hang, ()


class HangsWhenDumped:
    def __reduce__(self):
        tasks.hang()


@pytest.fixture(autouse=True)
def others_go_on(process_pool):
    """Tasks before and behind it are performed."""
    before = [process_pool.schedule(tasks.value, args=(n,)) for n in range(20)]
    yield
    behind = [process_pool.schedule(tasks.value, args=(n,)) for n in range(20)]
    assert [future.result() for future in before] == list(range(20))
    assert [future.result() for future in behind] == list(range(20))


@pytest.mark.parametrize(
    "function, argument, error, said",
    [
        (tasks.value, tasks.DumpFails(), ValueError, "dump"),
        (tasks.value, tasks.LoadFails(), LookupError, "load"),
        (give, tasks.DumpFails, ValueError, "dump"),
        (give, tasks.LoadFails, LookupError, "load"),
        (tasks.make, tasks.make_lambda, Exception, "pickle"),
    ],
    ids=["argument, dump", "argument, load", "result, dump", "result, load", "lambda"],
)
def test_fails_with_its_own_error(process_pool, function, argument, error, said):
    future = process_pool.schedule(function, args=(argument,))
    with pytest.raises(error, match=said):
        future.result(10)


@pytest.mark.parametrize(
    "kind", [tasks.DumpFailsError, tasks.LoadFailsError, tasks.TwoArguments]
)
def test_an_exception_is_never_lost(process_pool, kind):
    arguments = (kind, 1, 2) if kind is tasks.TwoArguments else (kind,)
    function = tasks.fail if kind is tasks.TwoArguments else throw
    error = process_pool.schedule(function, args=arguments).exception(10)
    assert error is not None
    assert kind.__name__ in f"{error!r}{error.__cause__!r}{getattr(error, 'traceback', '')}"


@pytest.mark.parametrize(
    "function, argument, code",
    [
        (throw, DiesWhenDumped, 5),
        (tasks.value, DiesWhenLoaded(), 6),
    ],
    ids=["exception, dump", "argument, load"],
)
def test_one_that_ends_the_worker(process_pool, function, argument, code):
    error = process_pool.schedule(function, args=(argument,)).exception(10)
    assert isinstance(error, ProcessExpired) and error.exitcode == code


@pytest.mark.parametrize(
    "function, argument",
    [(tasks.value, HangsWhenLoaded()), (give, HangsWhenDumped)],
    ids=["argument, load", "result, dump"],
)
def test_one_that_hangs_counts_as_the_task(process_pool, function, argument):
    future = process_pool.schedule(function, args=(argument,), timeout=0.2)
    assert isinstance(future.exception(10), TimeoutError)
