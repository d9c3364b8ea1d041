import concurrent.futures
import gc
import signal
import time
import threading
from concurrent.futures import CancelledError

import pytest
from pebble import ProcessPool, ThreadPool

import tasks
from support import gone, outcome, outcomes


@pytest.fixture(scope="module")
def impatient_pool():
    """Kills soon what ignores SIGTERM."""
    with ProcessPool(max_workers=2, termination_grace=0.05) as pool:
        pool.schedule(int).result()
        yield pool


def assert_cancelled(future):
    with pytest.raises(CancelledError):
        future.result(10)
    with pytest.raises(CancelledError):
        future.exception()
    assert future.cancelled() and future.done() and not future.running()


# ---- Calls ----


def test_a_queued_call_never_runs(any_kind, make_flag, started, release):
    ran = make_flag("ran")
    with any_kind(max_workers=1) as pool:
        pool.schedule(tasks.hold, args=(started, release))
        assert started.wait()
        queued = pool.schedule(tasks.set_flag, args=(ran,))
        after = pool.schedule(tasks.value, args=(1,))
        assert queued.cancel()
        assert_cancelled(queued)
        release.set()
        assert after.result() == 1
    assert not ran.is_set()


def test_calls_queued_behind_short_ones(any_pool, tmp_path):
    log = tmp_path / "log"
    log.touch()
    futures = [any_pool.schedule(tasks.append_line, args=(log, n)) for n in range(500)]
    cancelled = {n for n in reversed(range(500)) if futures[n].cancel()}
    concurrent.futures.wait(futures, timeout=10)
    assert cancelled == {n for n in range(500) if futures[n].cancelled()}
    performed = {n for n in range(500) if not futures[n].cancelled()}
    assert performed <= set(tasks.calls(log))


def test_a_running_call(process_pool, started):
    future = process_pool.schedule(tasks.hang, args=(started,))
    pid = started.number()
    assert future.cancel()
    assert_cancelled(future)
    assert gone(pid)


@pytest.mark.parametrize("task", tasks.STUBBORN)
def test_a_running_call_whatever_it_does(impatient_pool, started, task):
    future = impatient_pool.schedule(task, args=(started,))
    pid = started.number()
    assert future.cancel()
    assert_cancelled(future)
    assert gone(pid)


def test_all_that_the_call_started_ends_too(process_pool, make_flag, started):
    child_started = make_flag("child")
    future = process_pool.schedule(tasks.hang_with_child, args=(started, child_started))
    pids = started.number(), child_started.number()
    assert future.cancel()
    assert_cancelled(future)
    assert all(map(gone, pids))


@pytest.mark.parametrize("end", [tasks.die, tasks.leave, tasks.fail])
def test_a_call_may_tidy_up(process_pool, make_flag, started, end):
    """Its process ends as soon as it has."""
    terminated = make_flag("terminated")
    future = process_pool.schedule(
        tasks.hang_until_terminated, args=(started, terminated, end)
    )
    assert started.wait()
    begin = time.monotonic()
    assert future.cancel()
    assert concurrent.futures.wait([future], timeout=2).done
    assert_cancelled(future)
    assert terminated.is_set() and terminated.number() == signal.SIGTERM
    assert time.monotonic() - begin < 2  # not the whole grace


def test_no_grace():
    with ProcessPool(max_workers=1, termination_grace=0) as pool:
        future = pool.schedule(tasks.hang)
        assert future.cancel()
        assert_cancelled(future)


def test_a_completed_call(any_pool):
    future = any_pool.schedule(tasks.value, args=(1,))
    future.result()
    assert not future.cancel()
    assert future.result() == 1 and not future.cancelled()


def test_a_failed_call(any_pool):
    future = any_pool.schedule(tasks.fail)
    future.exception()
    assert not future.cancel()
    assert not future.cancelled()


def test_cancelling_twice(process_pool, started):
    future = process_pool.schedule(tasks.hang, args=(started,))
    assert started.wait()
    assert future.cancel() and future.cancel()
    assert_cancelled(future)
    assert future.cancel()


def test_the_pool_goes_on(started):
    with ProcessPool(max_workers=1) as pool:
        future = pool.schedule(tasks.hang, args=(started,))
        queued = pool.schedule(tasks.process_id)
        pid = started.number()
        assert future.cancel()
        assert queued.result() != pid


def test_other_tasks_go_on(process_pool, make_flag, started, release):
    hanging = make_flag("hanging")
    other = process_pool.schedule(tasks.hold, args=(started, release))
    cancelled = process_pool.schedule(tasks.hang, args=(hanging,))
    pid = started.number()
    assert hanging.wait()
    assert cancelled.cancel()
    assert_cancelled(cancelled)
    release.set()
    assert other.result() == pid


def test_callbacks_run_when_the_process_is_gone(process_pool, started):
    seen, ran = [], threading.Event()
    future = process_pool.schedule(tasks.hang, args=(started,))
    pid = started.number()
    future.add_done_callback(
        lambda done: (seen.append((done.cancelled(), gone(pid))), ran.set())
    )
    assert future.cancel()
    assert ran.wait(10)
    assert seen == [(True, True)]


def test_callbacks_of_a_queued_call(any_kind, started, release):
    seen, ran = [], threading.Event()
    with any_kind(max_workers=1) as pool:
        pool.schedule(tasks.hold, args=(started, release))
        queued = pool.schedule(int)
        queued.add_done_callback(lambda done: (seen.append(done.cancelled()), ran.set()))
        assert queued.cancel()
        assert ran.wait(10)
        release.set()
    assert seen == [True]


def test_cancelled_calls_are_done_for_wait(process_pool, started):
    future = process_pool.schedule(tasks.hang, args=(started,))
    assert started.wait()
    assert future.cancel()
    assert concurrent.futures.wait([future], 10).done == {future}
    assert list(concurrent.futures.as_completed([future], 10)) == [future]


def test_cancelling_while_another_thread_waits(process_pool, started):
    errors = []
    future = process_pool.schedule(tasks.hang, args=(started,))
    assert started.wait()

    def wait():
        try:
            future.result()
        except CancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert future.cancel()
    thread.join()
    assert len(errors) == 1


def test_cancelling_in_a_callback(process_pool, started):
    hanging = process_pool.schedule(tasks.hang, args=(started,))
    assert started.wait()
    process_pool.schedule(int).add_done_callback(lambda _: hanging.cancel())
    assert_cancelled(hanging)


def test_cancelling_many(make_flag):
    flags = [make_flag(f"started{n}") for n in range(4)]
    with ProcessPool(max_workers=4) as pool:
        futures = [pool.schedule(tasks.hang, args=(flag,)) for flag in flags]
        pids = [flag.number() for flag in flags]
        assert all(future.cancel() for future in futures)
        for future in futures:
            assert_cancelled(future)
        assert all(map(gone, pids))
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_a_running_call_in_a_thread_cannot_be_cancelled(thread_pool, started, release):
    future = thread_pool.schedule(tasks.hold, args=(started, release))
    assert started.wait()
    assert not future.cancel()
    release.set()
    assert future.result() > 0


# ---- Maps ----


def test_a_map_of_processes():
    with ProcessPool(max_workers=1) as pool:
        future = pool.map(tasks.hang_if, [1] * 4, range(4))
        iterator = future.result()
        assert next(iterator) == 0
        assert future.cancel()
        assert not future.cancelled()
        assert [type(each) for each in outcomes(iterator)] == [CancelledError] * 3
        assert future.done() and not future.cancelled()
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_a_map_of_processes_wholly(process_pool, started):
    future = process_pool.map(tasks.hang, [started] * 5)
    pid = started.numbers()[0]
    assert future.cancel()
    assert_cancelled(future)
    assert gone(pid, 5)


def test_the_chunks_of_a_map(process_pool, started):
    future = process_pool.map(tasks.hang, [started] * 10, chunksize=5)
    assert started.wait()
    assert future.cancel()
    assert_cancelled(future)


def test_a_completed_map(any_pool):
    future = any_pool.map(tasks.value, range(3))
    assert list(future.result()) == [0, 1, 2]
    concurrent.futures.wait([future], 10)
    assert not future.cancel()
    assert not future.cancelled()


def test_an_empty_map(any_pool):
    future = any_pool.map(tasks.value, [])
    assert not future.cancel()
    assert list(future.result()) == []


def test_queued_elements_of_a_map_of_threads(started, release):
    with ThreadPool(max_workers=1) as pool:
        future = pool.map(tasks.hold_if, [0] * 4, [started] * 4, [release] * 4, range(4))
        assert started.wait()
        assert future.cancel()
        assert not future.cancelled()
        release.set()
        first, *others = outcomes(future.result())
        assert first == 0
        assert [type(each) for each in others] == [CancelledError] * 3
        assert not future.cancelled()


def test_a_map_of_threads_whose_results_are_taken_while_they_are_taken(started, release):
    taken, results = [], []

    class Taker:
        """An argument that takes a result when it goes."""

        def __del__(self):
            taken.append(outcome(next, results[0]))

    def count_errors():
        return sum(type(each) is CancelledError for each in gc.get_objects())

    with ThreadPool(max_workers=1) as pool:
        arguments = (Taker() if n > 0 else 0 for n in range(4))
        future = pool.map(lambda _: tasks.hold(started, release), arguments)
        assert started.wait()
        assert future.cancel()
        release.set()
        results.append(future.result())
        assert next(results[0]) > 0
        before = count_errors()
        taken.append(outcome(next, results[0]))
        assert [type(each) for each in taken] == [tuple] * 4
        assert [kind for kind, _ in taken] == [CancelledError] * 3 + [StopIteration]
        assert count_errors() == before


def test_a_map_of_threads_wholly_in_progress(make_flag, release):
    flags = [make_flag("first"), make_flag("second")]
    with ThreadPool(max_workers=2) as pool:
        future = pool.map(tasks.hold, flags, [release] * 2)
        assert all(flag.wait() for flag in flags)
        assert not future.cancel()
        release.set()
        assert len(list(future.result())) == 2


def test_a_queued_map(any_kind, started, release):
    with any_kind(max_workers=1) as pool:
        pool.schedule(tasks.hold, args=(started, release))
        assert started.wait()
        future = pool.map(tasks.value, range(4), chunksize=2)
        assert future.cancel()
        assert_cancelled(future)
        release.set()
