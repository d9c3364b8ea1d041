"""Each operation many times: nothing may be left of it."""

import asyncio
import concurrent.futures
import gc
import os
import queue
import sys
import threading
import tracemalloc
import weakref

import pytest
from pebble import (
    ProcessFuture,
    ProcessPool,
    ThreadPool,
    synchronized,
    waitforqueues,
    waitforthreads,
)
from pebble.concurrent import process as concurrent_process

import tasks
from support import children, eventually, memory_in_use, outcomes, threads

pytestmark = pytest.mark.memory


@pytest.fixture(scope="module", autouse=True)
def only_new_objects():
    """Collections and counts leave out what was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def ignore_errors(call, *args, **keywords):
    try:
        call(*args, **keywords)
    except Exception:
        pass


def cancel(pool):
    futures = [pool.schedule(int) for _ in range(3)]
    for future in futures:
        future.cancel()
    concurrent.futures.wait(futures)


def with_callback(pool):
    ran = threading.Event()
    future = pool.schedule(int)
    future.add_done_callback(lambda _: ran.set())
    ran.wait()
    future.result()


def with_attribute_in_a_cycle(pool):
    future = pool.schedule(int)
    future.itself = future
    future.result()


def with_asyncio(pool):
    async def main():
        return await asyncio.wrap_future(pool.schedule(int))

    asyncio.run(main())


def result_too_late(pool):
    future = pool.schedule(tasks.sleep, args=(0.001,))
    ignore_errors(future.result, timeout=0.0001)
    future.result()


def start_thread():
    thread = threading.Thread(target=int)
    thread.start()
    return thread


def map_abandoned(pool):
    next(pool.map(tasks.value, range(20), chunksize=3).result())


QUICK = {
    "schedule": lambda pool: pool.schedule(tasks.add, (1,), {"b": 2}).result(),
    "dropped": lambda pool: pool.schedule(int),
    "large": lambda pool: pool.schedule(tasks.value, (b"x" * 100_000,)).result(),
    "error": lambda pool: pool.schedule(tasks.fail).exception(),
    "raised": lambda pool: ignore_errors(pool.schedule(tasks.fail).result),
    "callback": with_callback,
    "attribute": with_attribute_in_a_cycle,
    "cancel": cancel,
    "wait": lambda pool: concurrent.futures.wait(
        [pool.schedule(int), pool.schedule(int)]
    ),
    "as_completed": lambda pool: list(
        concurrent.futures.as_completed([pool.schedule(int)])
    ),
    "too late": result_too_late,
    "weak reference": lambda pool: weakref.ref(pool.schedule(int)),
    "map": lambda pool: list(pool.map(tasks.add, range(9), range(9)).result()),
    "chunks": lambda pool: list(pool.map(tasks.value, range(9), chunksize=4).result()),
    "map dropped": lambda pool: pool.map(tasks.value, range(9)),
    "map abandoned": map_abandoned,
    "map cancelled": lambda pool: pool.map(tasks.value, range(9)).cancel(),
    "map error": lambda pool: ignore_errors(
        list, pool.map(tasks.fail, [ValueError]).result()
    ),
    "map wait": lambda pool: concurrent.futures.wait([pool.map(tasks.value, range(9))]),
    "empty map": lambda pool: list(pool.map(tasks.value, []).result()),
    "unpicklable argument": lambda pool: pool.schedule(
        tasks.value, (lambda: None,)
    ).exception(),
    "unpicklable result": lambda pool: pool.schedule(tasks.make_lambda).exception(),
    "unloadable result": lambda pool: pool.schedule(
        tasks.make, (tasks.LoadFails,)
    ).exception(),
    "unloadable argument": lambda pool: pool.schedule(
        tasks.value, (tasks.LoadFails(),)
    ).exception(),
    "bad argument": lambda pool: ignore_errors(pool.schedule, tasks.value, args=5),
    "bad function": lambda pool: ignore_errors(pool.schedule, 5),
    "bad map": lambda pool: ignore_errors(pool.map, tasks.value, [1], chunksize=0),
    "set_result": lambda pool: ignore_errors(pool.schedule(int).set_result, 1),
    "asyncio": with_asyncio,
    "own future": lambda pool: ProcessFuture().set_result([]),
    "synchronized": lambda pool: synchronized(threading.Lock())(tasks.value)(1),
    "queues": lambda pool: waitforqueues([queue.Queue()], 0.0001),
    "threads": lambda pool: waitforthreads([start_thread()]),
}


def use_pool(kind, end):
    pool = kind(max_workers=1, initializer=int, initargs=())
    pool.schedule(int).result()
    getattr(pool, end)()
    pool.join()


def drop_pool(kind):
    kind(max_workers=1).schedule(int).result()


def cancel_running(pool):
    future = pool.schedule(tasks.hang)
    future.cancel()
    concurrent.futures.wait([future])


SLOW = {
    "closed": lambda pool: use_pool(ProcessPool, "close"),
    "stopped": lambda pool: use_pool(ProcessPool, "stop"),
    "dropped": lambda pool: drop_pool(ProcessPool),
    "unused": lambda pool: ProcessPool(max_workers=1),
    "threads closed": lambda pool: use_pool(ThreadPool, "close"),
    "threads stopped": lambda pool: use_pool(ThreadPool, "stop"),
    "threads dropped": lambda pool: drop_pool(ThreadPool),
    "timeout": lambda pool: pool.schedule(tasks.hang, timeout=0.001).exception(),
    "map timeout": lambda pool: outcomes(
        pool.map(tasks.hang, [None], timeout=0.001).result()
    ),
    "expired": lambda pool: pool.schedule(tasks.die).exception(),
    "cancel": cancel_running,
    "process": lambda pool: tasks.remote_add(1).result(),
    "process error": lambda pool: tasks.remote_call(tasks.fail).exception(),
    "thread": lambda pool: tasks.thread_add(1).result(),
}


def state():
    """What must not grow: descriptors, processes, threads, Python's objects and its memory."""
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(children()),
        "threads": len(threads()),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
    }


def assert_no_growth(operation, pool, times, objects, blocks):
    """After `times` more there are not even that many objects more, let alone one for each. A leak
    shows in every round; what threads and caches do does not.
    """

    def repeat(count):
        for _ in range(count):
            operation(pool)
        pool.schedule(int).result()

    def has_not_grown():
        after = state()
        grown.update({name: after[name] - before[name] for name in before})
        return all(grown[name] <= allowed[name] for name in before)

    # A worker may be in replacement.
    allowed = dict(descriptors=4, children=0, threads=1, objects=objects, blocks=blocks)
    grown = {}
    repeat(max(times // 4, 2))
    for _ in range(3):
        before = state()
        repeat(times)
        if eventually(has_not_grown, timeout=2):
            return
    pytest.fail(str(grown))


@pytest.mark.parametrize("operation", QUICK)
def test_quick(any_pool, operation):
    assert_no_growth(QUICK[operation], any_pool, times=200, objects=40, blocks=150)


@pytest.mark.parametrize("operation", SLOW)
def test_slow(process_pool, operation):
    assert_no_growth(SLOW[operation], process_pool, times=5, objects=4, blocks=40)


# ---- References ----


def referents():
    """An object of each kind that operations refer to, by itself so that it can be counted."""

    class Function:
        def __call__(self, *args, **kwargs):
            return self

    return Function(), object(), (object(),), {"x": object()}, lambda future: None


@pytest.fixture
def refcounts():
    """Compares counts of references before and after."""

    def check(things, operation):
        def counts():
            gc.collect()
            return [sys.getrefcount(each) for each in things]

        operation()
        before = counts()
        for _ in range(20):
            operation()
        def has_not_grown():  # fewer: the first operation was not quite over
            return all(now <= then for now, then in zip(counts(), before))

        assert eventually(has_not_grown), (before, counts())

    return check


def test_references_in_threads(thread_pool, refcounts):
    function, element, args, kwargs, callback = referents()

    def operation():
        future = thread_pool.schedule(function, args, kwargs)
        future.add_done_callback(callback)
        future.note = element
        assert future.result() is function
        list(thread_pool.map(function, [element] * 3).result())
        thread_pool.schedule(function, args).cancel()
        ignore_errors(thread_pool.schedule, function, args, 5)
        ignore_errors(thread_pool.schedule, function, 5, kwargs)
        thread_pool.schedule(int).result()

    refcounts(
        [function, element, args, args[0], kwargs, kwargs["x"], callback], operation
    )


def test_references_in_processes(process_pool, refcounts):
    argument, args, kwargs = (
        tasks.Counter(1),
        (tasks.Counter(2),),
        {"x": tasks.Counter(3)},
    )
    _, element, _, _, callback = referents()

    def operation():
        future = process_pool.schedule(tasks.arguments, args, kwargs)
        future.add_done_callback(callback)
        future.note = element
        future.result()
        process_pool.schedule(argument, args=(1,)).result()
        list(process_pool.map(tasks.value, [argument] * 3, chunksize=2).result())
        process_pool.schedule(tasks.value, (lambda: element,)).exception()
        ignore_errors(process_pool.schedule, argument, args, 5)

    things = [
        tasks.arguments,
        argument,
        args,
        args[0],
        kwargs,
        kwargs["x"],
        element,
        callback,
    ]
    refcounts(things, operation)


def test_references_of_pools(any_kind, refcounts):
    args = (object(),)

    def operation():
        with any_kind(
            max_workers=1, initializer=tasks.arguments, initargs=args, name=name
        ):
            pass
        ignore_errors(any_kind, initializer=tasks.arguments, initargs=5, name=name)

    name = "".join(["own", "name"])
    refcounts([tasks.arguments, args, args[0], name, any_kind], operation)


def test_a_finished_future_is_freed_at_once(any_pool):
    gc.disable()
    try:
        future = any_pool.schedule(tasks.value, args=([],))
        result, reference = future.result(), weakref.ref(future)
        assert sys.getrefcount(result) == 3
        del future
        assert eventually(lambda: reference() is None)
        assert sys.getrefcount(result) == 2
    finally:
        gc.enable()


def poll(asks):
    """A use of futures: asking all of them again and again until each has ended."""

    def use(futures):
        while not all(map(asks, futures)):
            pass

    return use


USES = {
    "wait": concurrent.futures.wait,
    "as_completed": lambda futures: list(concurrent.futures.as_completed(futures)),
    "result": lambda futures: [future.result() for future in futures],
    "done": poll(ProcessFuture.done),
    "running": poll(lambda future: not future.running() and future.done()),
    "state": poll(lambda future: future._state == "FINISHED"),
}


@pytest.mark.parametrize("in_a_thread", [False, True], ids=["main thread", "other thread"])
@pytest.mark.parametrize("use", USES)
def test_finished_futures_of_processes_are_freed(use, in_a_thread):
    references = []

    def call():
        for _ in range(5):
            futures = [tasks.remote_add(n) for n in range(3)]
            USES[use](futures)
            references.extend(map(weakref.ref, futures))

    if in_a_thread:
        caller = threading.Thread(target=call)
        caller.start()
        caller.join()
    else:
        call()
    assert eventually(lambda: not any(reference() for reference in references))


def test_results_are_freed_with_their_map(thread_pool):
    class Element:
        pass

    elements = [Element() for _ in range(10)]
    references = list(map(weakref.ref, elements))
    iterator = thread_pool.map(tasks.value, elements).result()
    del elements
    assert len(list(iterator)) == 10
    del iterator
    gc.collect()
    assert eventually(lambda: not any(reference() for reference in references))


# ---- Memory ----


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("large", [0, 100_000], ids=["small", "large"])
def test_resident_memory(process_pool, large):
    payload = b"x" * large

    def operation(times):
        for _ in range(times):
            process_pool.schedule(tasks.value, args=(payload,)).result()
            process_pool.schedule(tasks.fail, args=(ValueError, payload)).exception()
            list(process_pool.map(tasks.value, [payload] * 3).result())

    operation(50)
    before = resident_bytes()
    operation(200)
    assert resident_bytes() - before < 8_000_000


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_memory_after_a_large_argument(process_pool, method):
    """It was pickled in the program: all of it, or until something came that could not be."""
    call = concurrent_process(context=method)(len)

    def operation(size):
        process_pool.schedule(tasks.value, args=(bytes(size), lambda: None)).exception()
        call(bytes(size)).result()

    operation(1)
    before = memory_in_use()
    operation(30_000_000)
    assert eventually(lambda: memory_in_use() - before < 3_000_000)


def test_traced_memory(process_pool):
    def operation(times):
        for _ in range(times):
            process_pool.schedule(tasks.value, args=(b"x" * 10_000,)).result()
        gc.collect()

    tracemalloc.start()
    try:
        operation(20)
        before, _ = tracemalloc.get_traced_memory()
        operation(200)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
