import concurrent.futures
import os
import pickle
import signal
import threading

import pytest
from pebble import ProcessExpired, ProcessPool

import tasks
from support import children, eventually, gone, kill, outcomes


def expired(future):
    with pytest.raises(ProcessExpired) as caught:
        future.result(10)
    return caught.value


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_code(process_pool, code):
    assert expired(process_pool.schedule(tasks.die, args=(code,))).exitcode == code


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_signal(process_pool, signum):
    error = expired(process_pool.schedule(tasks.kill_itself, args=(signum,)))
    assert error.exitcode == -signum
    assert signum.name in str(error)


def test_no_backtrace_without_a_crash(process_pool):
    assert expired(process_pool.schedule(tasks.die, args=(3,))).backtrace is None


def test_crash(process_pool):
    error = expired(process_pool.schedule(tasks.crash))
    assert error.exitcode == -signal.SIGSEGV
    assert "SIGSEGV" in str(error)
    assert isinstance(error.backtrace, str) and error.backtrace
    assert error.backtrace.strip() in str(error)


def test_abort(process_pool):
    error = expired(process_pool.schedule(os.abort))
    assert error.exitcode == -signal.SIGABRT
    assert "SIGABRT" in str(error)


def test_ctrl_c_while_the_error_is_made(process_pool, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    future = process_pool.schedule(tasks.die)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProcessExpired, "__init__", interrupted)
        future.result()
    assert isinstance(future.exception(), ProcessExpired)


def test_message_of_the_specification(process_pool):
    error = expired(process_pool.schedule(tasks.die, args=(3,)))
    assert ("%s. Exit code: %d" % (error, error.exitcode)).endswith("Exit code: 3")


def test_is_an_exception(process_pool):
    error = expired(process_pool.schedule(tasks.die))
    assert isinstance(error, Exception)
    assert not isinstance(error, concurrent.futures.TimeoutError)


def test_process_that_died(process_pool, started):
    future = process_pool.schedule(tasks.hang, args=(started,))
    pid = started.number()
    kill(pid)
    error = expired(future)
    assert error.pid == pid == future.pid
    assert error.exitcode == -signal.SIGKILL
    assert gone(pid)


def test_killed_while_stopped(process_pool, started):
    future = process_pool.schedule(tasks.stop_itself, args=(started,))
    kill(started.number())
    assert expired(future).exitcode == -signal.SIGKILL


def test_made_by_the_user():
    error = ProcessExpired("message")
    assert str(error).startswith("message")


def test_pickled(process_pool):
    error = expired(process_pool.schedule(tasks.die, args=(3,)))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.exitcode, copy.pid) == (str(error), error.exitcode, error.pid)


def test_in_a_pool_in_a_worker(process_pool):
    assert expired(process_pool.schedule(tasks.nested_death, args=(9,))).exitcode == 9


def test_callback(process_pool):
    errors, ran = [], threading.Event()
    future = process_pool.schedule(tasks.die, args=(3,))
    future.add_done_callback(lambda done: (errors.append(done.exception()), ran.set()))
    assert ran.wait(10)
    assert errors == [future.exception()]


def test_no_other_task_is_lost():
    with ProcessPool(max_workers=2) as pool:
        futures = [pool.schedule(tasks.die_if, args=(7, n % 10)) for n in range(100)]
        concurrent.futures.wait(futures, 20)
        for n, future in enumerate(futures):
            if n % 10 == 7:
                assert expired(future).exitcode == 3
            else:
                assert future.result() == n % 10


def test_other_running_tasks_go_on(process_pool, started, release):
    other = process_pool.schedule(tasks.hold, args=(started, release))
    pid = started.number()
    expired(process_pool.schedule(tasks.die))
    release.set()
    assert other.result() == pid


def test_an_idle_worker_that_is_killed():
    with ProcessPool(max_workers=1) as pool:
        for _ in range(3):
            pid = pool.schedule(tasks.process_id).result()
            kill(pid)
            assert gone(pid, 5)
            assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_tasks_scheduled_while_workers_are_killed():
    with ProcessPool(max_workers=2) as pool:
        futures = []
        for _ in range(5):
            futures += [pool.schedule(tasks.process_id) for _ in range(20)]
            kill(futures[-20].result())
        completed = concurrent.futures.wait(futures, 20).done
    assert len(completed) == 100
    errors = [future.exception() for future in futures if future.exception()]
    assert all(isinstance(error, ProcessExpired) for error in errors)
    assert len(errors) <= 5


def test_the_chunk_of_a_dying_element(process_pool):
    found = outcomes(
        process_pool.map(tasks.die_if, [4] * 9, range(9), chunksize=3).result()
    )
    assert found[:3] + found[6:] == [0, 1, 2, 6, 7, 8]
    assert [(type(each), each.exitcode) for each in found[3:6]] == [
        (ProcessExpired, 3)
    ] * 3


def test_the_first_element_of_a_map_dies(process_pool):
    iterator = process_pool.map(tasks.die_if, [0] * 3, range(3)).result()
    with pytest.raises(ProcessExpired):
        next(iterator)
    assert list(iterator) == [1, 2]


def test_dying_while_the_arguments_are_unpickled(process_pool):
    future = process_pool.schedule(tasks.value, args=(tasks.LoadDies(),))
    assert expired(future).exitcode == 6
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1


def test_dying_while_the_result_is_pickled(process_pool):
    future = process_pool.schedule(tasks.make, args=(tasks.DumpDies,))
    assert expired(future).exitcode == 5
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1


def test_children_of_a_dead_worker_end(process_pool, make_flag, started):
    child_started = make_flag("child")
    future = process_pool.schedule(tasks.hang_with_child, args=(started, child_started))
    child = child_started.number()
    kill(started.number())
    expired(future)
    assert gone(child, 5)


def test_the_parent_of_the_workers_is_killed(started):
    before = children()
    with ProcessPool(max_workers=1) as pool:
        future = pool.schedule(tasks.hang, args=(started,))
        worker = started.number()
        (parent,) = set(children()) - before - {worker}
        kill(parent)
        expired(future)
        assert eventually(lambda: gone(worker))
        assert pool.schedule(tasks.value, args=(1,)).result() == 1
