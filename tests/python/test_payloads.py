import array
import concurrent.futures
import copyreg
import datetime
import decimal
import fractions
import random
import uuid
from multiprocessing.reduction import ForkingPickler

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pebble import ProcessPool

import tasks

hashable = (
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_nan=False)
    | some.complex_numbers(allow_nan=False)
    | some.text()
    | some.binary()
    | some.decimals(allow_nan=False)
    | some.fractions()
    | some.datetimes(timezones=some.just(datetime.timezone.utc))
    | some.timedeltas()
    | some.uuids()
    | some.sampled_from(tasks.Colour)
    | some.builds(tasks.Point, some.integers(), some.text())
    | some.sampled_from([int, len, tasks.add, tasks.Counter, tasks.Counter.kind])
)

anything = some.recursive(
    hashable,
    lambda inner: some.lists(inner)
    | some.tuples(inner, inner)
    | some.dictionaries(hashable, inner)
    | some.sets(hashable)
    | some.frozensets(hashable)
    | some.binary().map(bytearray)
    | some.builds(tasks.Shape, some.text(), some.lists(inner)),
    max_leaves=10,
)


@given(payload=anything)
def test_round_trip(process_pool, payload):
    result = process_pool.schedule(tasks.value, args=(payload,)).result()
    assert result == payload and type(result) is type(payload)


@given(
    args=some.lists(anything, max_size=5),
    kwargs=some.dictionaries(some.text(), anything, max_size=3),
)
def test_arguments(process_pool, args, kwargs):
    future = process_pool.schedule(tasks.arguments, args=args, kwargs=kwargs)
    assert future.result() == (tuple(args), kwargs)


@given(payloads=some.lists(anything, max_size=5), chunksize=some.integers(1, 5))
def test_maps(process_pool, payloads, chunksize):
    future = process_pool.map(tasks.value, payloads, chunksize=chunksize)
    assert list(future.result()) == payloads


@given(args=some.lists(anything, max_size=5))
def test_exceptions(process_pool, args):
    error = process_pool.schedule(tasks.fail, args=(ValueError, *args)).exception()
    assert type(error) is ValueError and error.args == tuple(args)


@given(size=some.integers(0, 300_000), filler=some.binary(min_size=1, max_size=1))
def test_any_size(process_pool, size, filler):
    payload = size * filler
    assert process_pool.schedule(tasks.value, args=(payload,)).result() == payload


def test_around_powers_of_two(process_pool):
    sizes = {2**n + off for n in range(6, 23) for off in (-129, -65, -33, -1, 0, 1)}
    payloads = [b"x" * size for size in sorted(sizes) if size >= 0]
    futures = [process_pool.schedule(tasks.value, args=(each,)) for each in payloads]
    for payload, future in zip(payloads, futures):
        assert future.result() == payload


@pytest.mark.parametrize(
    "payload",
    [
        random.Random(0).randbytes(10_000_000),
        "ü" * 5_000_000,
        list(range(1_000_000)),
        array.array("d", range(1_250_000)),
        bytearray(10_000_000),
        [b"x" * 1000] * 10_000,
        {str(n): n for n in range(200_000)},
    ],
    ids=["bytes", "text", "list", "array", "bytearray", "shared", "dict"],
)
def test_large(process_pool, payload):
    assert process_pool.schedule(tasks.value, args=(payload,)).result() == payload


def test_large_one_way(process_pool):
    payload = b"x" * 10_000_000
    assert process_pool.schedule(len, args=(payload,)).result() == len(payload)
    assert process_pool.schedule(bytes, args=(len(payload),)).result() == bytes(
        len(payload)
    )


def test_large_for_a_worker_that_has_not_started():
    with ProcessPool(max_workers=1) as pool:
        payload = b"x" * 10_000_000
        assert pool.schedule(tasks.value, args=(payload,)).result() == payload


def test_many_large_through_one_worker():
    with ProcessPool(max_workers=1) as pool:
        payloads = [bytes([n]) * 1_000_000 for n in range(20)]
        futures = [pool.schedule(tasks.value, args=(each,)) for each in payloads]
        assert [future.result() for future in futures] == payloads


def test_small_behind_large(process_pool):
    large = process_pool.schedule(bytes, args=(10_000_000,))
    small = [process_pool.schedule(tasks.value, args=(n,)) for n in range(100)]
    assert [future.result() for future in small] == list(range(100))
    assert len(large.result()) == 10_000_000


def test_large_results_that_nobody_asks_for():
    with ProcessPool(max_workers=2) as pool:
        futures = [pool.schedule(bytes, args=(3_000_000,)) for _ in range(10)]
        assert not concurrent.futures.wait(futures, 20).not_done
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_a_large_result_of_a_cancelled_task():
    with ProcessPool(max_workers=1) as pool:
        for _ in range(5):
            pool.schedule(bytes, args=(10_000_000,)).cancel()
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_objects_within_a_payload_stay_the_same(process_pool):
    shared = [1]
    first, second = process_pool.schedule(tasks.value, args=([shared, shared],)).result()
    assert first is second
    args, kwargs = process_pool.schedule(
        tasks.arguments, args=(shared,), kwargs={"x": shared}
    ).result()
    assert args[0] is kwargs["x"]


def test_a_payload_that_contains_itself(process_pool):
    payload = []
    payload.append(payload)
    result = process_pool.schedule(tasks.value, args=(payload,)).result()
    assert result[0] is result


@pytest.mark.parametrize(
    "payload",
    [
        float("inf"),
        2**10_000,
        "\udcff\0",
        decimal.Decimal("1.50"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        range(5),
        slice(1, 2),
        ...,
        NotImplemented,
        ValueError,
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_odd_values(process_pool, payload):
    assert process_pool.schedule(tasks.value, args=(payload,)).result() == payload


def test_threads_pass_the_object_itself(thread_pool):
    payload = object()
    assert thread_pool.schedule(tasks.value, args=(payload,)).result() is payload
    assert next(thread_pool.map(tasks.value, [payload]).result()) is payload


def test_a_future_is_no_payload(process_pool):
    future = process_pool.schedule(int)
    error = process_pool.schedule(tasks.value, args=(future,)).exception()
    assert isinstance(error, Exception)


@pytest.mark.parametrize(
    "register, table",
    [
        (copyreg.pickle, copyreg.dispatch_table),
        (ForkingPickler.register, ForkingPickler._extra_reducers),
    ],
    ids=["copyreg", "multiprocessing"],
)
def test_reducers_are_those_of_the_call(process_pool, register, table):
    shape = tasks.Shape("square", [])
    try:
        for number in 1, 2:
            register(tasks.Shape, lambda _, number=number: (int, (number,)))
            assert process_pool.schedule(tasks.value, args=(shape,)).result() == number
            assert list(process_pool.map(tasks.value, [shape]).result()) == [number]
    finally:
        del table[tasks.Shape]
    assert process_pool.schedule(tasks.value, args=(shape,)).result() == shape
