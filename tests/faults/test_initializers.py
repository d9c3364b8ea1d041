"""Row 12: initializers that raise, hang for ever, die; at once, at first, later."""

import os
import time
from contextlib import suppress

import pytest
from pebble import ProcessPool

import tasks
from support import DEADLINE, gone

WORKERS = 3


def hang_and_tell(flag):
    tasks.hang(flag)


def die_later(path):
    """The first three processes start; from then on none does."""
    tasks.log_call(path)
    if len(tasks.calls(path)) > 3:
        os._exit(7)


def schedule_many(pool):
    """It may break before all are scheduled."""
    futures = []
    with suppress(RuntimeError):
        for n in range(50):
            futures.append(pool.schedule(tasks.value, args=(n,)))
    assert futures
    return futures


FAULTS = {
    "raises": (tasks.log_and_fail, "broken initializer"),
    "hangs": (tasks.log_and_hang, "longer than {:.3f} s"),
    "dies": (tasks.log_and_die, "exit code 7"),
    "leaves": (tasks.log_and_leave, "left"),
}


@pytest.fixture
def log(tmp_path):
    path = str(tmp_path / "log")
    open(path, "w").close()
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_all_futures_end_with_the_cause(fault, log, start_method):
    initializer, cause = FAULTS[fault]
    limit = 60 if fault != "hangs" else 0.3 if start_method == "fork" else 2
    pool = ProcessPool(
        WORKERS, initializer=initializer, initargs=(log,), initializer_timeout=limit
    )
    errors = [future.exception(DEADLINE) for future in schedule_many(pool)]
    for error in errors:
        assert type(error) is RuntimeError and cause.format(limit) in str(error)
    with pytest.raises(RuntimeError, match=cause.format(limit)):
        pool.schedule(int)
    pool.close()
    pool.join()
    pids = tasks.calls(log)
    assert all(gone(pid) for pid in pids)
    # All at first, and one for each of the two that failed first. Time may be up before the line is there.
    assert (1 if fault == "hangs" else 3) <= len(pids) <= WORKERS + 2


def test_one_that_hangs_for_ever_ends_with_the_pool(started):
    pool = ProcessPool(max_workers=1, initializer=hang_and_tell, initargs=(started,))
    futures = [pool.schedule(tasks.value, args=(n,)) for n in range(10)]
    pid = started.number()
    begin = time.monotonic()
    pool.stop()
    pool.join()
    assert time.monotonic() - begin < 5
    assert all(future.cancelled() for future in futures) and gone(pid)


def test_tasks_of_a_hanging_initializer_can_be_cancelled(started):
    with ProcessPool(max_workers=1, initializer=hang_and_tell, initargs=(started,)) as pool:
        futures = [pool.schedule(tasks.value, args=(n,)) for n in range(10)]
        assert started.wait()
        assert all(future.cancel() for future in futures)
        assert all(future.done() for future in futures)
        pool.stop()


def test_one_that_dies_later_breaks_the_pool_then(log):
    with ProcessPool(max_workers=1, initializer=die_later, initargs=(log,)) as pool:
        for n in range(3):
            assert pool.schedule(tasks.value, args=(n,)).result() == n
            pool.schedule(tasks.die).exception(DEADLINE)
        with pytest.raises(RuntimeError, match="exit code 7"):
            pool.schedule(tasks.value, args=(1,)).result(DEADLINE)
