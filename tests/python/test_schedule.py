import collections
import concurrent.futures
import functools
import multiprocessing
import threading
import weakref

import pebble
import pytest
from pebble import ProcessFuture, ProcessPool, ThreadPool

import tasks
from support import eventually


def test_result(any_pool):
    assert any_pool.schedule(tasks.add, args=(1, 2)).result() == 3


def test_defaults(any_pool):
    assert any_pool.schedule(tasks.arguments).result() == ((), {})


def test_keyword_arguments(any_pool):
    future = any_pool.schedule(tasks.add, args=[1], kwargs={"b": 5})
    assert future.result() == 6


def test_positional_order(process_pool, thread_pool):
    assert process_pool.schedule(tasks.add, (1,), {"b": 2}, 60).result() == 3
    assert thread_pool.schedule(tasks.add, (1,), {"b": 2}).result() == 3


def test_parameters_by_name(any_pool):
    future = any_pool.schedule(kwargs={"b": 1}, args=(2,), function=tasks.add)
    assert future.result() == 3


@pytest.mark.parametrize(
    "args",
    [[1, 2], (1, 2), iter([1, 2]), {1: None, 2: None}, range(1, 3)],
    ids=["list", "tuple", "iterator", "dict", "range"],
)
def test_args_is_any_iterable(process_pool, args):
    assert process_pool.schedule(tasks.arguments, args=args).result() == ((1, 2), {})


def test_kwargs_is_any_mapping(any_pool):
    kwargs = collections.ChainMap({"a": 1}, {"b": 2})
    assert any_pool.schedule(tasks.arguments, kwargs=kwargs).result() == (
        (),
        {"a": 1, "b": 2},
    )


@pytest.mark.parametrize(
    "function, args, expected",
    [
        (len, ("abc",), 3),
        (dict, (), {}),
        ("abc".upper, (), "ABC"),
        (str.lower, ("ABC",), "abc"),
        (functools.partial(tasks.add, 1), (2,), 3),
        (tasks.Counter(1), (2,), 3),
        (tasks.Counter(1).plus, (2,), 3),
        (tasks.Counter.kind, (), "Counter"),
        (tasks.Counter.twice, (2,), 4),
        (tasks.Point, (1, 2), tasks.Point(1, 2)),
    ],
    ids=str,
)
def test_any_callable(any_pool, function, args, expected):
    assert any_pool.schedule(function, args=args).result() == expected


def test_classes_that_compare_in_their_own_way(any_pool):
    for kind in tasks.EqualOne, tasks.EqualTwo:
        assert type(any_pool.schedule(kind).result()) is kind
    assert any_pool.schedule(tasks.OfUnhashable).result() == 5


def test_returns_futures(process_pool, thread_pool):
    process_future = process_pool.schedule(int)
    thread_future = thread_pool.schedule(int)
    assert isinstance(process_future, ProcessFuture)
    assert not isinstance(thread_future, ProcessFuture)
    assert process_future.result() == thread_future.result() == 0


def test_runs_in_another_process(process_pool):
    pid = process_pool.schedule(tasks.process_id).result()
    assert pid != tasks.process_id()


@pytest.mark.parametrize("workers", [1, 3])
def test_max_workers_run_at_once(any_kind, make_flag, started, release, workers):
    arrivals = [make_flag(f"arrival{each}") for each in range(workers)]
    with any_kind(max_workers=workers) as pool:
        held = [
            pool.schedule(tasks.hold, args=(arrival, release)) for arrival in arrivals
        ]
        for arrival in arrivals:
            assert arrival.wait()
        one_more = pool.schedule(tasks.set_flag, args=(started,))
        assert all(future.running() for future in held)
        assert not one_more.running() and not started.is_set()
        release.set()
        assert one_more.result() is None and started.is_set()


def test_as_many_workers_as_processors_by_default(any_kind, make_flag):
    count = multiprocessing.cpu_count()
    arrivals = [make_flag(f"arrival{each}") for each in range(count)]
    with any_kind() as pool:
        futures = [
            pool.schedule(tasks.meet, args=(arrival, *arrivals)) for arrival in arrivals
        ]
        for future in futures:
            future.result()


def test_first_in_first_out(any_kind, tmp_path):
    log = tmp_path / "log"
    with any_kind(max_workers=1) as pool:
        futures = [
            pool.schedule(tasks.append_line, args=(log, each)) for each in range(50)
        ]
    assert all(future.done() for future in futures)
    assert log.read_text().split() == [str(each) for each in range(50)]


def test_many_tasks(any_pool):
    futures = [any_pool.schedule(tasks.add, args=(each, 1)) for each in range(2000)]
    assert [future.result() for future in futures] == list(range(1, 2001))


def test_from_many_threads(any_pool):
    results = {}

    def schedule(thread):
        futures = [
            any_pool.schedule(tasks.value, args=((thread, n),)) for n in range(100)
        ]
        results[thread] = [future.result() for future in futures]

    threads = [threading.Thread(target=schedule, args=(each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {each: [(each, n) for n in range(100)] for each in range(4)}


def test_a_worker_keeps_its_state():
    with ProcessPool(max_workers=1) as pool:
        assert pool.schedule(tasks.recall).result() is None
        pool.schedule(tasks.remember, args=("state",)).result()
        assert pool.schedule(tasks.recall).result() == "state"
    assert tasks.recall() is None


def test_max_tasks_restarts_processes():
    with ProcessPool(max_workers=1, max_tasks=2) as pool:
        futures = [pool.schedule(tasks.process_id) for _ in range(6)]
        pids = [future.result() for future in futures]
    assert pids[0::2] == pids[1::2]
    assert len(set(pids)) == 3


def test_max_tasks_restarts_threads():
    with ThreadPool(max_workers=1, max_tasks=2) as pool:
        futures = [pool.schedule(tasks.current_thread) for _ in range(6)]
        threads = [future.result() for future in futures]
    assert threads[0::2] == threads[1::2]
    assert len(set(map(id, threads))) == 3


def test_no_max_tasks_keeps_a_process():
    with ProcessPool(max_workers=1, max_tasks=0) as pool:
        futures = [pool.schedule(tasks.process_id) for _ in range(20)]
        assert len({future.result() for future in futures}) == 1


def test_positional_order_of_the_constructor(any_kind):
    with any_kind(1, 1, tasks.remember, ("initialized",)) as pool:
        assert pool.schedule(tasks.recall).result() == "initialized"
    tasks.remember(None)


def test_a_slow_task_holds_up_no_other(process_pool, started, release):
    slow = process_pool.schedule(tasks.hold, args=(started, release))
    assert started.wait()
    futures = [process_pool.schedule(tasks.value, args=(each,)) for each in range(100)]
    assert [future.result() for future in futures] == list(range(100))
    assert not slow.done()
    release.set()
    slow.result()


def test_tasks_behind_one_that_turns_out_slow_move_on(process_pool, started, release):
    for _ in range(50):
        process_pool.schedule(tasks.value, args=(1,)).result()
    futures = [process_pool.schedule(tasks.value, args=(each,)) for each in range(20)]
    slow = process_pool.schedule(tasks.hold, args=(started, release))
    futures += [process_pool.schedule(tasks.value, args=(each,)) for each in range(20)]
    assert [future.result() for future in futures] == list(range(20)) * 2
    release.set()
    slow.result()


def test_arguments_are_released(thread_pool):
    class Argument:
        pass

    argument, gone = Argument(), threading.Event()
    weakref.finalize(argument, gone.set)
    future = thread_pool.schedule(tasks.arguments, args=(argument,))
    future.result()
    del argument, future
    assert gone.wait(5)


def test_a_cancelled_call_is_released(started, release):
    function, argument = tasks.Counter(1), tasks.Counter(2)
    gone = [weakref.ref(each) for each in (function, argument)]
    with ThreadPool(max_workers=1) as pool:
        pool.schedule(tasks.hold, args=(started, release))
        assert started.wait()
        future = pool.schedule(function, kwargs={"number": argument})
        del function, argument
        assert future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        assert [each() for each in gone] == [None, None]
        release.set()


def test_pid_of_the_process_that_runs_it(process_pool, started, release):
    future = process_pool.schedule(tasks.hold, args=(started, release))
    pid = started.number()
    assert future.pid == pid
    release.set()
    assert future.result() == pid == future.pid


def test_no_pid_before_it_runs(started, release):
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(tasks.hold, args=(started, release))
        queued = pool.schedule(tasks.process_id)
        assert started.wait()
        assert queued.pid is None
        release.set()
        assert queued.result() == queued.pid


def test_version():
    assert isinstance(pebble.__version__, str)


@pytest.mark.parametrize(
    "name",
    """concurrent ProcessPool ThreadPool ProcessFuture MapFuture ProcessMapFuture
    ProcessExpired synchronized sighandler waitforthreads waitforqueues""".split(),
)
def test_names(name):
    assert hasattr(pebble, name)


def test_threads_of_a_restarted_worker_end(thread_pool):
    before = set(threading.enumerate())
    with ThreadPool(max_workers=1, max_tasks=1) as pool:
        for _ in range(10):
            pool.schedule(int).result()
    assert eventually(lambda: set(threading.enumerate()) <= before)
