"""Row 18: done-callbacks: what they find, and what they may do to others."""

import concurrent.futures
import os
import subprocess
import threading

import pytest
from pebble import ProcessPool

import tasks
from support import eventually

PROMPT = 5


def hang_with_tree(started):
    """With a child, and a grandchild in a session of its own whose parent has ended."""
    child = subprocess.Popen(["sleep", "1000"])
    detached = subprocess.run(
        ["sh", "-c", "setsid sleep 1000 >/dev/null & echo $!"], stdout=subprocess.PIPE
    )
    for pid in os.getpid(), child.pid, int(detached.stdout):
        started.set(pid)
    tasks.hang()


def exists(pid):
    """Also if it has ended and nobody has waited for it."""
    return os.path.exists(f"/proc/{pid}")


class Call:
    """A done-callback that does something and tells that it has."""

    def __init__(self, function=lambda future: None):
        self._function, self._ran = function, threading.Event()

    def __call__(self, future):
        try:
            self.result = self._function(future)
        finally:
            self._ran.set()

    def wait(self):
        return self._ran.wait(PROMPT)

    def has_run(self):
        return self._ran.is_set()


def called(future, *args):
    call = Call(*args)
    future.add_done_callback(call)
    return call


# ---- What a callback finds ----


@pytest.mark.parametrize("end", ["timeout", "cancel", "stop"])
def test_the_processes_are_gone(started, end):
    with ProcessPool(max_workers=1) as pool:
        timeout = 1 if end == "timeout" else None
        future = pool.schedule(hang_with_tree, args=(started,), timeout=timeout)
        pids = started.numbers(3)
        call = called(future, lambda _: list(map(exists, pids)))
        if end == "cancel":
            future.cancel()
        elif end == "stop":
            pool.stop()
        assert call.wait()
    assert call.result == [False] * 3


def test_the_processes_of_an_expired_task_are_gone_soon(process_pool, started):
    future = process_pool.schedule(hang_with_tree, args=(started,))
    pids = started.numbers(3)
    call = called(future, lambda _: exists(pids[0]))
    os.kill(pids[0], 9)
    assert call.wait() and call.result is False
    assert eventually(lambda: not any(map(exists, pids)))


# ---- Callbacks that raise ----


@pytest.mark.parametrize("kind", [ValueError, tasks.OwnBase, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises(any_pool, started, release, caplog, kind):
    first = any_pool.schedule(tasks.hold, args=(started, release))
    raising = called(first, lambda _: tasks.fail(kind, "of a callback"))
    same = called(first)
    later = called(any_pool.schedule(int))
    release.set()
    assert raising.wait() and same.wait() and later.wait()
    assert [record.exc_info[0] for record in caplog.records] == [kind]
    assert any_pool.schedule(tasks.value, args=(1,)).result() == 1


# ---- Callbacks that use the pool ----


def test_callbacks_that_schedule(any_pool):
    """Each schedules the next."""
    results, over = [], threading.Event()

    def go_on(future):
        results.append(future.result())
        if len(results) == 100:
            over.set()
        else:
            schedule()

    def schedule():
        future = any_pool.schedule(tasks.value, args=(len(results),))
        future.add_done_callback(go_on)

    schedule()
    assert over.wait(PROMPT)
    assert results == list(range(100))


def test_a_callback_that_schedules_and_waits(any_pool):
    def use(_):
        mapped = any_pool.map(tasks.value, range(100), chunksize=7).result()
        return any_pool.schedule(tasks.value, args=(1,)).result(), list(mapped)

    call = called(any_pool.schedule(int), use)
    assert call.wait()
    assert call.result == (1, list(range(100)))


def test_a_callback_of_a_timeout_that_schedules_again():
    results, over = [], threading.Event()

    def again(future):
        results.append(type(future.exception()))
        if len(results) == 5:
            over.set()
        else:
            schedule()

    def schedule():
        pool.schedule(tasks.hang, timeout=0.02).add_done_callback(again)

    with ProcessPool(max_workers=1) as pool:
        schedule()
        assert over.wait(PROMPT)
    assert results == [concurrent.futures.TimeoutError] * 5


def test_a_callback_that_schedules_after_close(any_kind, started, release):
    def schedule(_):
        try:
            pool.schedule(int)
        except RuntimeError:
            return "refused"

    pool = any_kind(max_workers=1)
    call = called(pool.schedule(tasks.hold, args=(started, release)), schedule)
    pool.close()
    release.set()
    pool.join()
    assert call.result == "refused"


def test_a_callback_that_makes_a_pool(any_kind):
    call = called(any_kind(max_workers=1).schedule(int), use_pool)
    assert call.wait()
    assert call.result == 1


def use_pool(_):
    with ProcessPool(max_workers=1) as pool:
        return pool.schedule(tasks.value, args=(1,)).result()


# ---- Callbacks that block ----


@pytest.fixture
def let_go():
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def block(make_flag, let_go):
    """Keeps the thread of a pool's callbacks in one that waits; that callback."""

    def block_callbacks(pool):
        begun = threading.Event()
        flags = make_flag("before"), make_flag("go on")
        future = pool.schedule(tasks.hold, args=flags)
        call = called(future, lambda _: (begun.set(), let_go.wait()))
        flags[1].set()
        assert begun.wait(PROMPT)
        return call

    return block_callbacks


def test_others_go_on_while_a_callback_blocks(process_pool, thread_pool, block, make_flag):
    flags = [make_flag(name) for name in ("first", "second")]
    call = block(process_pool)
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1
    assert list(process_pool.map(tasks.value, range(50)).result()) == list(range(50))
    error = process_pool.schedule(tasks.hang, timeout=0.05).exception()
    assert isinstance(error, concurrent.futures.TimeoutError)
    futures = [process_pool.schedule(tasks.hang, args=(flag,)) for flag in flags]
    pids = [flag.number() for flag in flags]
    assert all(future.cancel() for future in futures)
    assert eventually(lambda: not any(map(exists, pids)))
    assert called(thread_pool.schedule(int)).wait()
    assert not call.has_run()


def test_other_callbacks_of_the_pool_come_after(any_pool, block, let_go, make_flag):
    call = block(any_pool)
    ran, flag = [], make_flag("all called")
    futures = [any_pool.schedule(tasks.wait_for_flag, args=(flag, n)) for n in range(50)]
    calls = [called(each, lambda done: ran.append(done.result())) for each in futures]
    flag.set()
    assert [future.result() for future in futures] == list(range(50))
    assert ran == []
    let_go.set()
    assert call.wait() and all(each.wait() for each in calls)
    assert sorted(ran) == list(range(50))


def all_are_awaited(futures):
    waited = concurrent.futures.wait(futures, 1)
    return not waited.not_done and set(concurrent.futures.as_completed(futures, 1)) == set(
        futures
    )


def test_waiting_for_others_while_a_callback_blocks(any_pool, block, make_flag):
    call = block(any_pool)
    flag = make_flag("waiting")
    futures = [any_pool.schedule(tasks.wait_for_flag, args=(flag,)) for _ in range(5)]
    threading.Timer(0.1, flag.set).start()
    assert all_are_awaited(futures)
    assert not call.has_run()


def test_waiting_for_others_in_a_callback(any_pool, started, release):
    def schedule_and_wait(_):
        return all_are_awaited([any_pool.schedule(tasks.sleep, args=(0.1,)) for _ in range(3)])

    first = any_pool.schedule(tasks.hold, args=(started, release))
    call = called(first, schedule_and_wait)
    release.set()
    assert call.wait()
    assert call.result is True


@pytest.mark.parametrize("end", ["close", "stop"])
def test_join_waits_for_a_callback_that_blocks(any_kind, block, let_go, end):
    pool = any_kind(max_workers=1)
    call = block(pool)
    getattr(pool, end)()
    with pytest.raises(concurrent.futures.TimeoutError):
        pool.join(0.1)
    let_go.set()
    pool.join(PROMPT)
    assert call.has_run()


def test_a_pool_is_stopped_while_a_callback_blocks(started, block, let_go):
    pool = ProcessPool(max_workers=1)
    call = block(pool)
    future = pool.schedule(tasks.hang, args=(started,))
    cancelled = called(future, lambda done: done.cancelled())
    pid = started.number()
    pool.stop()
    assert eventually(lambda: not exists(pid))
    assert eventually(future.done)
    assert not call.has_run() and not cancelled.has_run()
    let_go.set()
    pool.join(PROMPT)
    assert cancelled.result is True
