import concurrent.futures
import gc
import sys
import threading
import weakref
from concurrent.futures import CancelledError

import pytest
from pebble import ProcessPool, ThreadPool

import tasks
from support import eventually, gone


def stop_and_join(pool):
    pool.stop()
    pool.join()


# ---- active ----


def test_active(any_kind):
    pool = any_kind(max_workers=1)
    assert pool.active is True
    pool.schedule(int).result()
    assert pool.active is True
    pool.close()
    pool.join()
    assert pool.active is False


def test_inactive_once_stopped(any_kind):
    pool = any_kind(max_workers=1)
    pool.stop()
    assert pool.active is False
    pool.join()
    assert pool.active is False


def test_active_cannot_be_set(any_pool):
    with pytest.raises(AttributeError):
        any_pool.active = False


# ---- close ----


def test_close_lets_queued_tasks_be_performed(any_kind, started, release):
    pool = any_kind(max_workers=1)
    futures = [pool.schedule(tasks.hold, args=(started, release))]
    futures += [pool.schedule(tasks.value, args=(n,)) for n in range(20)]
    assert started.wait()
    pool.close()
    assert not any(future.done() for future in futures)
    release.set()
    pool.join()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures[1:]] == list(range(20))


@pytest.mark.parametrize("end", ["close", "stop"])
def test_nothing_is_taken_after(any_kind, end):
    pool = any_kind(max_workers=1)
    pool.schedule(int).result()
    getattr(pool, end)()
    with pytest.raises(RuntimeError):
        pool.schedule(int)
    with pytest.raises(RuntimeError):
        pool.map(int, ["1"])
    pool.join()
    with pytest.raises(RuntimeError):
        pool.schedule(int)


def test_a_queued_map_is_performed_after_close(any_kind):
    pool = any_kind(max_workers=1)
    future = pool.map(tasks.value, range(100), chunksize=7)
    pool.close()
    assert list(future.result()) == list(range(100))
    pool.join()


# ---- stop ----


def test_stop_ends_running_and_queued_tasks(started):
    pool = ProcessPool(max_workers=1)
    futures = [pool.schedule(tasks.hang, args=(started,))]
    futures += [pool.schedule(int) for _ in range(20)]
    mapped = pool.map(tasks.value, range(20), chunksize=3)
    pid = started.number()
    pool.stop()
    for future in [*futures, mapped]:
        with pytest.raises(CancelledError):
            future.result(10)
        assert future.cancelled()
    pool.join()
    assert gone(pid)


@pytest.mark.parametrize("task", tasks.STUBBORN)
def test_stop_whatever_the_task_does(started, task):
    pool = ProcessPool(max_workers=1, termination_grace=0.05)
    future = pool.schedule(task, args=(started,))
    pid = started.number()
    stop_and_join(pool)
    assert gone(pid) and future.cancelled()


def test_stop_lets_threads_finish(started, release):
    pool = ThreadPool(max_workers=1)
    running = pool.schedule(tasks.hold, args=(started, release))
    queued = [pool.schedule(int) for _ in range(20)]
    mapped = pool.map(tasks.value, range(20))
    assert started.wait()
    pool.stop()
    for future in [*queued, mapped]:
        with pytest.raises(CancelledError):
            future.result(10)
    assert not running.done()
    release.set()
    pool.join()
    assert running.result() > 0


def test_stop_in_the_middle_of_a_map(started, release):
    pool = ThreadPool(max_workers=1)
    future = pool.map(tasks.hold_if, [1] * 4, [started] * 4, [release] * 4, range(4))
    iterator = future.result()
    assert next(iterator) == 0
    assert started.wait()
    pool.stop()
    release.set()
    assert next(iterator) == 1
    for _ in range(2):
        with pytest.raises(CancelledError):
            next(iterator)
    pool.join()


def test_stop_wakes_who_waits(started):
    pool = ProcessPool(max_workers=1)
    future = pool.schedule(tasks.hang, args=(started,))
    assert started.wait()
    stopper = threading.Thread(target=pool.stop)
    stopper.start()
    assert concurrent.futures.wait([future], 10).done == {future}
    stopper.join()
    pool.join()


def test_stop_runs_callbacks(started):
    seen = []
    pool = ProcessPool(max_workers=1)
    futures = [pool.schedule(tasks.hang, args=(started,)), pool.schedule(int)]
    for future in futures:
        future.add_done_callback(lambda done: seen.append(done.cancelled()))
    assert started.wait()
    stop_and_join(pool)
    concurrent.futures.wait(futures, 10)
    assert seen == [True, True]


def test_stop_after_close(started):
    pool = ProcessPool(max_workers=1)
    future = pool.schedule(tasks.hang, args=(started,))
    assert started.wait()
    pool.close()
    stop_and_join(pool)
    assert future.cancelled()


# ---- join ----


def test_join_before_an_end(any_pool):
    with pytest.raises(RuntimeError):
        any_pool.join()
    assert any_pool.schedule(tasks.value, args=(1,)).result() == 1


def test_join_waits_at_most_its_timeout(any_kind, started, release):
    pool = any_kind(max_workers=1)
    pool.schedule(tasks.hold, args=(started, release))
    assert started.wait()
    pool.close()
    with pytest.raises(concurrent.futures.TimeoutError):
        pool.join(timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        pool.join(0.05)
    release.set()
    pool.join(timeout=10)


def test_join_waits_for_the_workers_to_exit(make_flag):
    flags = [make_flag("first"), make_flag("second")]
    pool = ProcessPool(max_workers=2)
    futures = [pool.schedule(tasks.meet, args=(flag, *flags)) for flag in flags]
    pids = [future.result() for future in futures]
    assert len(set(pids)) == 2 and not any(map(gone, pids))
    pool.close()
    pool.join()
    assert all(map(gone, pids))


def test_ends_may_be_repeated(any_kind):
    pool = any_kind(max_workers=1)
    pool.schedule(int)
    for _ in range(2):
        pool.close()
        pool.join()
        stop_and_join(pool)


def test_ends_of_a_pool_that_did_nothing(any_kind):
    for end in "close", "stop":
        pool = any_kind(max_workers=2)
        getattr(pool, end)()
        pool.join()
    any_kind(max_workers=2)


def test_join_from_many_threads(any_kind, started, release):
    pool = any_kind(max_workers=1)
    pool.schedule(tasks.hold, args=(started, release))
    pool.close()
    threads = [threading.Thread(target=pool.join) for _ in range(3)]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert not pool.active


def test_join_in_a_callback(any_kind, started, release):
    errors, ran = [], threading.Event()

    def callback(_):
        try:
            pool.join()
        except RuntimeError as error:
            errors.append(error)
        ran.set()

    pool = any_kind(max_workers=1)
    future = pool.schedule(tasks.hold, args=(started, release))
    future.add_done_callback(callback)
    pool.close()
    release.set()
    assert ran.wait(10)
    assert len(errors) == 1
    pool.join()


def test_join_in_a_task_of_its_own():
    pool = ThreadPool(max_workers=1)
    future = pool.schedule(tasks.join_own_pool, args=(pool,))
    assert isinstance(future.exception(10), RuntimeError)
    pool.join()


# ---- Context manager ----


def test_context_manager(any_kind):
    pool = any_kind(max_workers=1)
    with pool as entered:
        assert entered is pool
        futures = [pool.schedule(tasks.value, args=(n,)) for n in range(10)]
    assert not pool.active
    assert [future.result(0) for future in futures] == list(range(10))


def test_context_left_by_an_exception(any_kind):
    with pytest.raises(ValueError):
        with any_kind(max_workers=1) as pool:
            futures = [pool.schedule(tasks.value, args=(n,)) for n in range(10)]
            raise ValueError
    assert [future.result(0) for future in futures] == list(range(10))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_context_left_by_an_interrupt(started, kind):
    with pytest.raises(kind):
        with ProcessPool(max_workers=1) as pool:
            running = pool.schedule(tasks.hang, args=(started,))
            queued = pool.schedule(int)
            pid = started.number()
            raise kind
    assert gone(pid)
    assert running.cancelled() and queued.cancelled()


def test_stopped_inside_its_context(started):
    with ProcessPool(max_workers=1) as pool:
        future = pool.schedule(tasks.hang, args=(started,))
        pool.stop()
    assert future.cancelled()


# ---- Dropped pools ----


def test_a_dropped_pool_performs_its_tasks(any_kind, started, release):
    pool = any_kind(max_workers=1)
    futures = [pool.schedule(tasks.hold, args=(started, release))]
    futures += [pool.schedule(tasks.value, args=(n,)) for n in range(10)]
    assert started.wait()
    del pool
    gc.collect()
    release.set()
    assert [future.result() for future in futures[1:]] == list(range(10))


def test_a_dropped_pool_is_collected(any_kind):
    pool = any_kind(max_workers=1)
    pool.schedule(int).result()
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None


def test_a_dropped_pools_processes_end():
    pool = ProcessPool(max_workers=1)
    pid = pool.schedule(tasks.process_id).result()
    del pool
    gc.collect()
    assert gone(pid, 5)


def test_a_dropped_map_goes_on(any_kind):
    iterator = any_kind(max_workers=1).map(tasks.value, range(50)).result()
    gc.collect()
    assert list(iterator) == list(range(50))


class Owner:
    """Has a pool whose threads, a new one for each task, need what it has: a cycle of references."""

    def __init__(self, kind, token=None):
        self.token = token
        self.pool = kind(max_workers=1, max_tasks=1, initializer=self.set_up)

    def set_up(self):
        assert hasattr(self, "token")

    def schedule_behind(self, lock):
        """What becomes of two tasks, of which the lock, if it is taken, lets none end now."""
        return [self.pool.schedule(each) for each in (lock.__enter__, int)]


def collected():
    """True; who makes a pool sees those off that are gone."""
    ThreadPool()
    gc.collect()
    return True


class OwnThreadPool(ThreadPool):
    pass


class OwnThreadPoolWithEnd(ThreadPool):
    def __del__(self):
        super().__del__()


@pytest.mark.parametrize("kind", [ThreadPool, OwnThreadPool, OwnThreadPoolWithEnd])
def test_an_initializer_of_what_is_dropped_with_the_pool(kind):
    lock, token = threading.Lock(), object()
    count = sys.getrefcount(token)
    with lock:
        futures = Owner(kind, token).schedule_behind(lock)
        gc.collect()
    assert [future.result() for future in futures] == [True, 0]

    assert eventually(lambda: collected() and sys.getrefcount(token) == count)


def test_a_pool_whose_end_says_nothing():
    class Own(ThreadPool):
        def __del__(self):
            pass

    future = Owner(Own).pool.schedule(int)
    assert future.result() == 0
    gc.collect()
    assert Own(max_workers=1).schedule(int).result() == 0


class Revived(Owner):
    saved: list = []

    def __del__(self):
        self.saved.append(self)


def test_a_pool_that_is_dropped_and_brought_back(any_kind):
    Revived(any_kind)
    gc.collect()
    pool = Revived.saved.pop().pool
    assert not pool.active
    with pytest.raises(RuntimeError):
        pool.schedule(int)
    pool.join()
    reference = weakref.ref(pool)
    del pool
    assert eventually(lambda: collected() and reference() is None)


# ---- Many pools ----


def test_many_pools(any_kind):
    pools = [any_kind(max_workers=1) for _ in range(5)]
    futures = [pool.schedule(tasks.value, args=(n,)) for n, pool in enumerate(pools)]
    assert [future.result() for future in futures] == list(range(5))
    for pool in pools:
        pool.close()
    for pool in pools:
        pool.join()


def test_pools_one_after_the_other(any_kind):
    for n in range(5):
        with any_kind(max_workers=1) as pool:
            assert pool.schedule(tasks.value, args=(n,)).result() == n


def test_stopping_while_others_schedule(any_kind):
    pool = any_kind(max_workers=2)
    pool.schedule(int).result()
    futures, refused = [], []

    def schedule():
        try:
            while True:
                futures.append(pool.schedule(int))
        except RuntimeError as error:
            refused.append(error)

    threads = [threading.Thread(target=schedule) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(futures) > 100)
    stop_and_join(pool)
    for thread in threads:
        thread.join()
    assert len(refused) == 2
    assert not concurrent.futures.wait(futures, 10).not_done


def test_a_pool_of_threads_is_dropped_by_its_own_task(release):
    pool = ThreadPool(max_workers=1)
    holder = [pool]

    def drop():
        release.wait()
        holder.clear()

    futures = [pool.schedule(drop)]
    futures += [pool.schedule(tasks.value, args=(n,)) for n in range(5)]
    del pool
    release.set()
    assert [future.result() for future in futures] == [None, *range(5)]
