import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import threading
import weakref
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, InvalidStateError

import pytest
from pebble import ProcessFuture

import tasks
from support import eventually, gone


@pytest.fixture
def held(any_pool, started, release):
    future = any_pool.schedule(tasks.hold, args=(started, release))
    assert started.wait()
    return future


@pytest.fixture
def queue(any_kind, started, release):
    """A pool whose one worker is held: what is scheduled stays queued until the release."""
    with any_kind(max_workers=1) as pool:
        pool.schedule(tasks.hold, args=(started, release))
        assert started.wait()
        yield pool
        release.set()


# ---- States ----


def test_states(queue, release, make_flag):
    started, proceed = make_flag("started2"), make_flag("proceed")
    future = queue.schedule(tasks.hold, args=(started, proceed))
    assert (future.running(), future.done(), future.cancelled()) == (False, False, False)
    release.set()
    assert started.wait()
    assert (future.running(), future.done(), future.cancelled()) == (True, False, False)
    proceed.set()
    future.result()
    assert (future.running(), future.done(), future.cancelled()) == (False, True, False)


def test_result_is_the_same_object(any_pool):
    future = any_pool.schedule(tasks.value, args=([1],))
    assert future.result() is future.result()
    assert future.exception() is None


def test_exception_is_the_same_object(any_pool):
    future = any_pool.schedule(tasks.fail, args=(ValueError, 1))
    error = future.exception()
    assert error is future.exception()
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            future.result()
        assert caught.value is error


def test_result_waits_at_most_its_timeout(held, release):
    for call in held.result, held.exception:
        with pytest.raises(concurrent.futures.TimeoutError) as caught:
            call(timeout=0.01)
        assert caught.value.args == ()
    with pytest.raises(concurrent.futures.TimeoutError):
        held.result(0)
    release.set()
    assert held.result(10) > 0


def test_repr_tells_the_state(any_pool, held, release):
    assert "running" in repr(held)
    release.set()
    held.result()
    assert "finished returned int" in repr(held)


def test_result_in_many_threads(held, release):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(held.result())) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert results == [held.result()] * 5


# ---- wait, as_completed ----


def test_wait_for_all(any_pool):
    futures = {any_pool.schedule(tasks.value, args=(n,)) for n in range(20)}
    done, not_done = concurrent.futures.wait(futures, timeout=10)
    assert done == futures and not not_done


def test_wait_for_the_first(any_pool, held, release):
    quick = any_pool.schedule(tasks.value, args=(1,))
    done, not_done = concurrent.futures.wait([held, quick], 10, FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {held})
    release.set()
    assert concurrent.futures.wait([held], 10).done == {held}


def test_wait_for_the_first_exception(any_pool, held):
    failing = any_pool.schedule(tasks.fail)
    done, not_done = concurrent.futures.wait([held, failing], 10, FIRST_EXCEPTION)
    assert (done, not_done) == ({failing}, {held})


def test_wait_runs_out(held):
    assert concurrent.futures.wait([held], 0.01).not_done == {held}


def test_as_completed(any_pool, held, release):
    quick = [any_pool.schedule(tasks.value, args=(n,)) for n in range(10)]
    completed = concurrent.futures.as_completed([held, *quick], 10)
    assert {next(completed) for _ in quick} == set(quick)
    release.set()
    assert list(completed) == [held]


def test_as_completed_runs_out(held):
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed([held], 0.01))


def test_waiting_for_pools_of_both_kinds_and_others(process_pool, thread_pool):
    own = concurrent.futures.Future()
    futures = [process_pool.schedule(int), thread_pool.schedule(int), own]
    futures[0].add_done_callback(lambda _: own.set_result(0))
    done = concurrent.futures.wait(futures, 10).done
    assert [future.result() for future in done] == [0, 0, 0]


def test_waiting_for_maps(any_pool):
    futures = [any_pool.map(tasks.value, range(10)) for _ in range(3)]
    assert set(concurrent.futures.as_completed(futures, 10)) == set(futures)


# ---- Ctrl-C where Python code runs, in the thread that asks ----


@pytest.fixture
def interrupts(monkeypatch):
    """Ctrl-C comes whenever a condition tells those who wait, in this thread: one entry for each time."""
    sent, here, tell = [], threading.get_ident(), threading.Condition.notify_all

    def notify_all(condition):
        if threading.get_ident() != here:
            return tell(condition)
        sent.append(condition)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Condition, "notify_all", notify_all)
    return sent


def ended_task(pool):
    future = pool.schedule(int)
    future.result()
    return future


def ended_map(pool):
    future = pool.map(tasks.value, range(3))
    list(future.result())
    return future


@pytest.mark.parametrize("make", [ended_task, ended_map])
def test_ctrl_c_in_a_wait_for_what_has_ended(any_pool, interrupts, make):
    caught = 0
    for _ in range(3):
        try:
            concurrent.futures.wait([make(any_pool)])
        except KeyboardInterrupt:
            caught += 1
    assert caught == len(interrupts)


def held_task(pool, *flags):
    return pool.schedule(tasks.hold, args=flags)


def held_map(pool, *flags):
    return pool.map(tasks.hold, *([flag] for flag in flags))


@pytest.mark.parametrize("make", [held_task, held_map])
def test_ctrl_c_in_a_wait_for_what_ends_just_then(
    any_pool, started, release, interrupts, monkeypatch, make
):
    future = make(any_pool, started, release)
    make_condition = threading.Condition.__init__

    def end_meanwhile(condition, *args):
        release.set()
        while not future.done():
            pass
        make_condition(condition, *args)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "__init__", end_meanwhile)
        with pytest.raises(KeyboardInterrupt):
            concurrent.futures.wait([future])
    assert len(interrupts) == 1
    assert concurrent.futures.wait([future]).done == {future}


def test_ctrl_c_while_a_callbacks_error_is_logged(any_pool, monkeypatch):
    def interrupted(record):
        raise KeyboardInterrupt

    future = ended_task(any_pool)
    monkeypatch.setattr(logging.getLogger("concurrent.futures"), "handle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        future.add_done_callback(tasks.fail)


# ---- asyncio ----


def test_asyncio(any_pool):
    async def main():
        futures = [any_pool.schedule(tasks.value, args=(n,)) for n in range(20)]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    assert asyncio.run(main()) == list(range(20))


def test_asyncio_errors(any_pool):
    async def main():
        await asyncio.wrap_future(any_pool.schedule(tasks.fail, args=(ValueError, 1)))

    with pytest.raises(ValueError):
        asyncio.run(main())


def test_asyncio_cancels(process_pool, started):
    async def main():
        future = process_pool.schedule(tasks.hang, args=(started,))
        wrapped = asyncio.wrap_future(future)
        await asyncio.get_running_loop().run_in_executor(None, started.wait)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        return future

    future = asyncio.run(main())
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)
    assert gone(started.number())


def test_asyncio_learns_of_a_cancelled_future(process_pool, started):
    async def main():
        future = process_pool.schedule(tasks.hang, args=(started,))
        wrapped = asyncio.wrap_future(future)
        assert future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(wrapped, 10)

    asyncio.run(main())


# ---- Callbacks ----


def test_callbacks_in_the_order_they_were_added(held, release):
    seen, all_ran = [], threading.Event()
    for n in range(5):
        held.add_done_callback(lambda future, n=n: seen.append((n, future)))
    held.add_done_callback(lambda _: all_ran.set())
    assert seen == []
    release.set()
    assert all_ran.wait(10)
    assert seen == [(n, held) for n in range(5)]


def test_a_callback_finds_the_result(held, release):
    results, ran = [], threading.Event()

    def callback(future):
        results.append((future.done(), future.result()))
        ran.set()

    held.add_done_callback(callback)
    release.set()
    assert ran.wait(10)
    assert results == [(True, held.result())]


def test_a_callback_of_a_finished_future_runs_at_once(any_pool):
    future = any_pool.schedule(int)
    future.result()
    seen = []
    future.add_done_callback(seen.append)
    assert seen == [future]


def test_callbacks_run_for_errors(any_pool):
    errors, ran = [], threading.Event()
    future = any_pool.schedule(tasks.fail, args=(ValueError, 1))
    future.add_done_callback(lambda done: (errors.append(done.exception()), ran.set()))
    assert ran.wait(10)
    assert errors == [future.exception()]


def test_a_callback_runs_although_nobody_keeps_the_future(any_pool):
    ran = threading.Event()
    any_pool.schedule(int).add_done_callback(lambda _: ran.set())
    assert ran.wait(10)


def test_a_callback_that_raises(any_pool, held, release, caplog):
    ran = threading.Event()

    def broken(future):
        raise ValueError("broken callback")

    held.add_done_callback(broken)
    held.add_done_callback(lambda _: ran.set())
    release.set()
    assert ran.wait(10)
    assert held.exception() is None
    assert "broken callback" in caplog.text
    assert any_pool.schedule(tasks.value, args=(1,)).result() == 1


def test_a_callback_schedules(any_pool):
    results, ran = [], threading.Event()

    def finish(future):
        results.append(future.result())
        ran.set()

    def go_on(future):
        following = any_pool.schedule(tasks.add, args=(future.result(), 1))
        following.add_done_callback(finish)

    any_pool.schedule(tasks.value, args=(1,)).add_done_callback(go_on)
    assert ran.wait(10)
    assert results == [2]


def test_a_callback_waits_for_another_future(any_pool, held, release):
    results, ran = [], threading.Event()
    other = any_pool.schedule(tasks.value, args=(1,))
    other.result()

    def callback(_):
        results.append(other.result())
        ran.set()

    held.add_done_callback(callback)
    release.set()
    assert ran.wait(10)
    assert results == [1]


# ---- Attributes, references ----


def test_attributes(any_pool):
    future = any_pool.schedule(int)
    future.note = "mine"
    assert future.note == "mine"
    assert vars(future)["note"] == "mine"


def test_hashable(any_pool):
    futures = {any_pool.schedule(tasks.value, args=(n,)): n for n in range(5)}
    assert all(future.result() == n for future, n in futures.items())


def test_weak_references(any_pool):
    future = any_pool.schedule(int)
    reference = weakref.ref(future)
    assert reference() is future
    future.result()
    del future
    gc.collect()
    assert reference() is None


def test_a_dropped_future_is_performed(any_pool, started):
    any_pool.schedule(tasks.set_flag, args=(started,))
    gc.collect()
    assert started.wait()


# ---- What only the pool may do ----


def test_results_are_the_pools_to_set(held):
    with pytest.raises(InvalidStateError):
        held.set_result(1)
    with pytest.raises(InvalidStateError):
        held.set_exception(ValueError())
    assert not held.done()


def test_results_cannot_be_set_again(any_pool):
    future = any_pool.schedule(tasks.value, args=(1,))
    future.result()
    with pytest.raises(InvalidStateError):
        future.set_result(2)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    assert future.result() == 1


def test_a_future_of_the_users_own():
    future = ProcessFuture()
    assert isinstance(future, concurrent.futures.Future)
    seen = []
    future.add_done_callback(seen.append)
    assert future.set_running_or_notify_cancel()
    assert future.running()
    future.set_result(5)
    assert future.result() == 5 and seen == [future]


def test_arguments_by_keyword(any_pool):
    """As of concurrent.futures.Future."""
    seen = []
    for future in concurrent.futures.Future(), ProcessFuture(), any_pool.schedule(int):
        with contextlib.suppress(InvalidStateError):
            future.set_result(result=0)
        assert future.result(timeout=10) == 0
        future.add_done_callback(fn=seen.append)
        with pytest.raises(InvalidStateError):
            future.set_exception(exception=ValueError())
        for method in future.add_done_callback, future.set_result, future.set_exception:
            with pytest.raises(TypeError):
                method()
    assert eventually(lambda: len(seen) == 3)


def test_an_exception_of_the_users_own():
    future = ProcessFuture()
    future.set_exception(ValueError("own"))
    with pytest.raises(ValueError, match="own"):
        future.result()


def test_a_cancelled_future_of_the_users_own():
    future = ProcessFuture()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


# ---- set_running_or_notify_cancel ----


def test_set_running(queue, release):
    future = queue.schedule(tasks.value, args=(1,))
    assert future.set_running_or_notify_cancel()
    assert future.running()
    release.set()
    assert future.result() == 1


def test_set_running_of_a_cancelled_one(queue):
    future = queue.schedule(tasks.value, args=(1,))
    assert future.cancel()
    assert not future.set_running_or_notify_cancel()


def test_set_running_of_a_finished_one(any_pool):
    future = any_pool.schedule(int)
    future.result()
    with pytest.raises(RuntimeError):
        future.set_running_or_notify_cancel()


def test_set_running_of_a_map(queue, release):
    future = queue.map(tasks.value, range(3))
    assert future.set_running_or_notify_cancel()
    assert future.running()
    release.set()
    assert list(future.result()) == [0, 1, 2]


# ---- After the pool ----


def test_futures_outlive_their_pool(any_kind):
    with any_kind(max_workers=1) as pool:
        futures = [pool.schedule(tasks.value, args=(n,)) for n in range(5)]
        mapped = pool.map(tasks.value, range(5))
    del pool
    gc.collect()
    assert (
        [future.result() for future in futures] == list(mapped.result()) == list(range(5))
    )
