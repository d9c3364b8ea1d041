import concurrent.futures
import functools
import gc
import itertools
import operator
import signal
import threading
import time
import traceback
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pebble import MapFuture, ProcessFuture, ProcessMapFuture, ProcessPool

import tasks
from support import eventually, outcome, outcomes

numbers = some.lists(some.integers(-1, 50), max_size=100)


@given(
    iterables=some.lists(numbers, min_size=1, max_size=3), chunksize=some.integers(1, 120)
)
def test_same_as_the_built_in_map(any_pool, iterables, chunksize):
    expected = [outcome(tasks.non_negative, *row) for row in zip(*iterables)]
    future = any_pool.map(tasks.non_negative, *iterables, chunksize=chunksize)
    found = [
        (type(each), each.args) if isinstance(each, Exception) else each
        for each in outcomes(future.result())
    ]
    assert found == expected


@given(size=some.integers(0, 3000), chunksize=some.integers(1, 4000))
def test_any_size(process_pool, size, chunksize):
    future = process_pool.map(tasks.value, range(size), chunksize=chunksize)
    assert list(future.result()) == list(range(size))


def test_tells_how_many_are_left(any_pool):
    results = any_pool.map(tasks.value, range(10), chunksize=4).result()
    for left in range(10, 0, -1):
        assert operator.length_hint(results) == left
        next(results)
    assert operator.length_hint(results) == 0 and list(results) == []


def test_returns_futures(process_pool, thread_pool):
    process_future = process_pool.map(tasks.value, [1])
    thread_future = thread_pool.map(tasks.value, [1])
    assert isinstance(process_future, ProcessMapFuture)
    assert isinstance(process_future, ProcessFuture)
    assert isinstance(thread_future, MapFuture)
    assert isinstance(thread_future, concurrent.futures.Future)
    assert list(process_future.result()) == list(thread_future.result()) == [1]


def test_stops_at_the_shortest(any_pool):
    future = any_pool.map(tasks.add, range(5), itertools.count(10))
    assert list(future.result()) == [10, 12, 14, 16, 18]


def test_several_iterables_of_any_kind(any_pool):
    future = any_pool.map(tasks.arguments, "ab", {"x": 1, "y": 2}, (n for n in (1, 2)))
    assert list(future.result()) == [(("a", "x", 1), {}), (("b", "y", 2), {})]


def test_iterables_are_consumed_in_the_call(any_pool):
    iterator = iter(range(10))
    future = any_pool.map(tasks.value, iterator)
    assert list(iterator) == []
    assert list(future.result()) == list(range(10))


def test_an_iterable_that_raises(any_pool):
    def broken():
        yield 1
        raise LookupError("iterable")

    with pytest.raises(LookupError, match="iterable"):
        any_pool.map(tasks.value, broken())


@pytest.mark.parametrize("chunksize", [1, 3])
def test_empty(any_pool, chunksize):
    future = any_pool.map(tasks.value, [], chunksize=chunksize)
    assert future.done() and not future.cancelled()
    assert list(future.result()) == []


def test_empty_runs_callbacks(any_pool):
    seen = []
    any_pool.map(tasks.value, []).add_done_callback(seen.append)
    assert len(seen) == 1


def test_results_in_the_order_of_the_elements(any_pool, make_flag):
    flag = make_flag("second")
    future = any_pool.map(tasks.second_first, [flag, flag], [0, 1])
    assert list(future.result()) == [0, 1]


@pytest.mark.parametrize("chunksize", [5, 5.9])
def test_chunks_go_to_workers_whole(chunksize):
    with ProcessPool(max_workers=2, max_tasks=1) as pool:
        pids = list(pool.map(tasks.process_id, range(12), chunksize=chunksize).result())
    chunks = pids[:5], pids[5:10], pids[10:]
    assert [len(set(chunk)) for chunk in chunks] == [1, 1, 1]
    assert len(set(pids)) == 3


def test_result_waits_for_the_first_only(process_pool, started, release):
    future = process_pool.map(
        tasks.hold_if, [1] * 3, [started] * 3, [release] * 3, range(3)
    )
    iterator = future.result()
    assert next(iterator) == 0
    assert started.wait() and not future.done()
    release.set()
    assert list(iterator) == [1, 2]


def test_result_is_one_iterator(any_pool):
    future = any_pool.map(tasks.value, range(4))
    iterator = future.result()
    assert iter(iterator) is iterator
    assert next(iterator) == 0
    assert future.result() is iterator
    assert list(future.result()) == [1, 2, 3]


def test_an_iterator_at_its_end_stays_there(any_pool):
    iterator = any_pool.map(tasks.value, [1]).result()
    assert list(iterator) == [1]
    assert next(iterator, None) is next(iterator, None) is None


def test_result_with_a_time_limit(any_pool, started, release):
    future = any_pool.map(tasks.hold, [started], [release])
    assert started.wait()
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        future.result(timeout=0.01)
    assert caught.value.args == ()
    release.set()
    assert len(list(future.result())) == 1


@pytest.mark.parametrize("chunksize", [1, 4, 10])
def test_errors_of_single_elements(any_pool, chunksize):
    future = any_pool.map(tasks.fail_if, [3] * 10, range(10), chunksize=chunksize)
    found = outcomes(future.result())
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert isinstance(found[3], ValueError) and found[3].args == (3,)
    assert "fail_if" in found[3].traceback


@pytest.mark.parametrize("chunksize", [1, 4, 10])
def test_stop_iteration_of_an_element_does_not_end_the_map(any_pool, chunksize):
    future = any_pool.map(
        tasks.raise_if, [2] * 6, [StopIteration] * 6, range(6), chunksize=chunksize
    )
    found = outcomes(future.result())
    assert found[:2] + found[3:] == [0, 1, 3, 4, 5]
    assert isinstance(found[2], RuntimeError)
    assert isinstance(found[2].__cause__, StopIteration)
    assert "raise_if" in found[2].traceback


@pytest.mark.parametrize("chunksize", [1, 4])
def test_errors_of_threads_keep_their_frames(thread_pool, chunksize):
    future = thread_pool.map(tasks.fail_if, [1] * 4, range(4), chunksize=chunksize)
    frames = traceback.extract_tb(outcomes(future.result())[1].__traceback__)
    assert frames[-1].name == "fail_if"


def test_an_error_of_the_first_element(any_pool):
    iterator = any_pool.map(tasks.fail_if, [0, 0], range(2)).result()
    with pytest.raises(ValueError):
        next(iterator)
    assert next(iterator) == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, tasks.OwnBase])
def test_base_exceptions_of_single_elements(any_pool, error):
    future = any_pool.map(tasks.raise_if, [1] * 3, [error] * 3, range(3), chunksize=3)
    found = outcomes(future.result())
    assert (found[0], type(found[1]), found[2]) == (0, error, 2)


def test_a_result_of_a_chunk_that_cannot_be_pickled(process_pool):
    kinds = [tasks.DumpFails] * 3
    found = outcomes(
        process_pool.map(tasks.make_if, [1] * 3, kinds, range(3), chunksize=3).result()
    )
    assert found[0] == 0 and found[2] == 2
    assert isinstance(found[1], ValueError) and found[1].args == ("dump",)


def test_a_result_of_a_chunk_that_cannot_be_unpickled(process_pool):
    kinds = [tasks.LoadFails] * 3
    found = outcomes(
        process_pool.map(tasks.make_if, [1] * 3, kinds, range(3), chunksize=3).result()
    )
    assert found[0] == 0 and found[2] == 2
    assert isinstance(found[1], LookupError)


@pytest.mark.parametrize("kind", [tasks.DumpFails, tasks.LoadFails, tasks.make_lambda])
def test_an_element_that_cannot_be_pickled(process_pool, kind):
    found = outcomes(process_pool.map(tasks.value, [0, kind(), 2]).result())
    assert found[0] == 0 and found[2] == 2
    assert isinstance(found[1], Exception)


def test_a_function_that_cannot_be_pickled(process_pool):
    found = outcomes(process_pool.map(lambda x: x, range(3)).result())
    assert [isinstance(each, Exception) for each in found] == [True] * 3


def test_closures_in_threads(thread_pool):
    offset = 10
    assert list(thread_pool.map(lambda x: x + offset, range(3)).result()) == [10, 11, 12]


def test_callbacks_when_all_have_ended(any_pool, started, release):
    seen = threading.Event()
    future = any_pool.map(tasks.hold_if, [1] * 2, [started] * 2, [release] * 2, range(2))
    future.add_done_callback(lambda done: seen.set() if done is future else None)
    assert next(future.result()) == 0
    assert started.wait()
    assert not seen.is_set() and not future.done()
    release.set()
    assert seen.wait(5) and future.done()
    assert list(future.result()) == [1]


def test_done_without_being_iterated(any_pool):
    future = any_pool.map(tasks.fail_if, [1] * 3, range(3))
    assert concurrent.futures.wait([future], timeout=10).done == {future}
    assert [isinstance(each, int) for each in outcomes(future.result())] == [
        True,
        False,
        True,
    ]


def test_the_iterator_outlives_the_future(any_pool):
    assert list(any_pool.map(tasks.value, range(100), chunksize=7).result()) == list(
        range(100)
    )


def test_two_maps_at_once(any_pool):
    first = any_pool.map(tasks.value, range(200), chunksize=3)
    second = any_pool.map(tasks.add, range(200), range(200))
    pairs = list(zip(first.result(), second.result()))
    assert pairs == [(n, 2 * n) for n in range(200)]


def test_results_are_shared_out_among_threads(any_pool):
    iterator = any_pool.map(tasks.value, range(400)).result()
    found = [[] for _ in range(4)]
    threads = [threading.Thread(target=part.extend, args=(iterator,)) for part in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain(*found)) == list(range(400))


def test_large_elements_and_results(process_pool):
    elements = [bytes([n]) * 300_000 for n in range(20)]
    assert list(process_pool.map(tasks.value, elements, chunksize=3).result()) == elements


def test_nothing_can_be_pickled(process_pool):
    future = process_pool.map(tasks.value, [lambda: 0] * 5, chunksize=2)
    assert not future.cancelled() and future.done()
    assert len(outcomes(future.result())) == 5


def test_an_iterator_that_is_dropped(any_pool):
    future = any_pool.map(tasks.value, range(5), chunksize=2)
    assert [next(future.result()) for _ in range(5)] == list(range(5))


def test_a_map_is_freed_at_once(any_pool):
    future = any_pool.map(tasks.value, range(3))
    results = future.result()
    alive = weakref.ref(future)
    assert future.result() is results
    assert list(results) == [0, 1, 2]
    del future, results
    any_pool.schedule(int).result()
    assert eventually(lambda: alive() is None)


# ---- Iterables without any Python code ----


class Interruption(Exception):
    pass


def interrupt(*_):
    raise Interruption


@pytest.fixture
def alarm():
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what is raised in a callback of the collector is lost
    yield
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("chunksize", [1, 10**9])
@pytest.mark.parametrize("function", [str, lambda n: n])
def test_a_signal_while_elements_are_taken(any_kind, alarm, function, chunksize):
    elements = iter(range(3_000_000))
    with any_kind(max_workers=1) as pool:
        assert pool.schedule(int).result() == 0
        with pytest.raises(Interruption):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            pool.map(function, elements, chunksize=chunksize)
        assert next(elements, None) is not None
        assert pool.schedule(int).result() == 0


def test_a_signal_while_elements_are_pickled(alarm, started):
    function = functools.partial(tasks.set_flag_at_zero, started)
    raises_alarm = map(signal.setitimer, [signal.ITIMER_REAL], [0.01])
    elements = itertools.chain(range(500_000), raises_alarm)
    with ProcessPool(max_workers=1) as pool:
        assert pool.schedule(int).result() == 0
        with pytest.raises(Interruption):
            pool.map(function, elements, itertools.repeat(None), chunksize=10**9)
        assert next(elements, None) is None
    assert not started.is_set()  # it was not sent


def test_others_run_while_elements_are_taken(any_kind):
    seen, found = [], []
    elements = iter(range(1_000_000))

    def take_one():
        while not seen:
            time.sleep(0.001)
        found.append(next(elements, None))

    with any_kind(max_workers=1) as pool:
        thread = threading.Thread(target=take_one)
        thread.start()
        future = pool.map(str, itertools.chain(map(seen.append, [1]), elements), chunksize=100)
        thread.join()
        assert found != [None]
        future.cancel()
