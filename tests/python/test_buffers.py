"""Buffers apart from the pickle (protocol 5): what is made of them stands in the memory they came in."""

import gc
import os
import pickle
import weakref

import pytest
from pebble import ProcessExpired

import tasks

SMALL, LARGE, HUGE = 1000, 100_000, 5_000_000


class Block:
    """As a numpy array does it: its bytes go as a buffer, and it is made upon one."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Block, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other):
        return bytes(self.data) == bytes(other.data)


def pattern(size):
    return bytearray(bytes(range(251)) * (size // 251 + 1))[:size]


def checksum(*blocks, **named):
    blocks += tuple(named.values())
    return [sum(block.data) for block in blocks]


def kinds(*blocks):
    return [(type(block.data).__name__, memoryview(block.data).readonly) for block in blocks]


def bump(block):
    block.data[0] = 99
    return block


def keep(name, block):
    globals()[name] = block


def kept(name):
    return globals()[name]


def die_with(*blocks):
    os._exit(3)


def two(size):
    return [Block(pattern(size)), Block(bytes(pattern(size))), "between"]


@pytest.mark.parametrize("size", [0, SMALL, LARGE, HUGE])
def test_there_and_back(process_pool, size):
    block = Block(pattern(size))
    assert process_pool.schedule(tasks.value, args=(block,)).result() == block


def test_several_and_by_name(process_pool):
    blocks = [Block(pattern(size)) for size in (LARGE, SMALL, HUGE, LARGE + 1)]
    future = process_pool.schedule(
        checksum, args=blocks[:2], kwargs={"third": blocks[2], "fourth": blocks[3]}
    )
    assert future.result() == [sum(block.data) for block in blocks]


def test_large_ones_are_views_small_ones_are_not(process_pool):
    blocks = [Block(pattern(LARGE)), Block(bytes(pattern(LARGE))), Block(pattern(SMALL))]
    wanted = [("memoryview", False), ("memoryview", True), ("bytearray", False)]
    assert process_pool.schedule(kinds, args=blocks).result() == wanted
    assert kinds(*process_pool.schedule(tasks.value, args=(blocks,)).result()) == wanted


def test_what_was_given_is_as_it_was_at_the_call(process_pool, release):
    block = Block(pattern(HUGE))
    before = [process_pool.schedule(tasks.wait_for_flag, args=(release, n)) for n in range(8)]
    future = process_pool.schedule(checksum, args=(block,))
    wanted = sum(block.data)
    block.data[:] = bytes(HUGE)
    release.set()
    assert future.result() == [wanted]
    assert [each.result() for each in before] == list(range(8))


def test_writing_there_changes_nothing_here(process_pool):
    block = Block(pattern(LARGE))
    returned = process_pool.schedule(bump, args=(block,)).result()
    assert returned.data[0] == 99 and block.data[0] == 0
    returned.data[1] = 98
    assert returned.data[1] == 98


def test_an_argument_outlives_its_task():
    """Its memory is not that of the tasks after it."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=1) as pool:
        for size in (LARGE, HUGE):
            pool.schedule(keep, args=("first", Block(pattern(size)))).result()
            pool.schedule(keep, args=("second", Block(bytearray(size)))).result()
            assert pool.schedule(kept, args=("first",)).result() == Block(pattern(size))
            assert pool.schedule(kept, args=("second",)).result() == Block(bytes(size))


def test_a_part_of_a_result_outlives_the_rest(process_pool):
    future = process_pool.schedule(two, args=(LARGE,))
    first, second, _ = future.result()
    assert future.result()[0] is first
    gone = weakref.ref(second)
    del future, second
    gc.collect()
    assert gone() is None
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1
    assert first == Block(pattern(LARGE))


def test_buffers_and_errors(process_pool):
    """What cannot be pickled behind a buffer is an error, and not half a message."""
    block = Block(pattern(LARGE))
    for value in ([block, lambda: None], [lambda: None, block]):
        error = process_pool.schedule(tasks.value, args=(value,)).exception()
        assert isinstance(error, (AttributeError, pickle.PicklingError))
    error = process_pool.schedule(block_and_lambda).exception()
    assert isinstance(error, (AttributeError, pickle.PicklingError))
    assert process_pool.schedule(tasks.value, args=(block,)).result() == block


def block_and_lambda():
    return [Block(pattern(LARGE)), lambda: None]


def test_a_worker_that_dies_meanwhile(process_pool):
    blocks = [Block(pattern(HUGE))] * 3
    future = process_pool.schedule(die_with, args=blocks)
    assert isinstance(future.exception(), ProcessExpired)
    assert process_pool.schedule(checksum, args=blocks).result() == [sum(blocks[0].data)] * 3


def test_map(process_pool):
    blocks = [Block(pattern(size)) for size in (LARGE, SMALL, HUGE)]
    for chunksize in (1, 2):
        mapped = process_pool.map(tasks.value, blocks, chunksize=chunksize)
        assert list(mapped.result()) == blocks


@pytest.fixture
def numpy(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # it would start threads when it is imported
    return pytest.importorskip("numpy")


@pytest.mark.parametrize("name", ["C", "F", "sliced", "readonly", "empty", "zero-dimensional"])
def test_numpy(process_pool, numpy, name):
    array = numpy.arange(300_000, dtype="f8").reshape(500, 600)
    array = {
        "C": array,
        "F": numpy.asfortranarray(array),
        "sliced": array[::2, ::3],
        "readonly": array.copy(),
        "empty": array[:0],
        "zero-dimensional": numpy.array(3.0),
    }[name]
    array.flags.writeable = name != "readonly"
    back = process_pool.schedule(tasks.value, args=(array,)).result()
    assert back.dtype == array.dtype and back.shape == array.shape
    assert (back == array).all()
    assert back.flags.writeable == array.flags.writeable and back.flags.aligned
