"""Row 20: a task writes over the shared memory between its worker and the program."""

import concurrent.futures
import ctypes
import os
import random
import signal
import threading

import pytest
from pebble import ProcessExpired

import tasks
from support import gone, outcomes

# ---- Tasks ----


def shared_memory():
    """Start, size and permissions of each mapping of this process's memfds."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "/memfd:" in line:
                place, permissions = line.split()[:2]
                start, end = (int(number, 16) for number in place.split("-"))
                yield start, end - start, permissions


def overwrite(seed, permission="w"):
    """Random bytes over all that may be written, and that is a channel's half at least."""
    written = 0
    for start, size, permissions in shared_memory():
        if permission in permissions:
            ctypes.memmove(start, random.Random(seed).randbytes(size), size)
            written += size
    assert written > 1 << 20


def ring():
    """Every bell that this process has."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if "[eventfd]" in os.readlink(f"/proc/self/fd/{descriptor}"):
                os.eventfd_write(int(descriptor), 1)
        except FileNotFoundError:
            pass


def overwrite_and_ring(seed):
    overwrite(seed)
    ring()
    tasks.hang()


def overwrite_and_hang(seed):
    overwrite(seed)
    tasks.hang()


def overwrite_again_and_again(seed):
    while True:
        overwrite(seed)
        ring()
        seed += 1


def overwrite_and_return(seed):
    overwrite(seed)
    return seed


LAST = b"the last of the chunk's elements"
END = LAST + b"\x94e.\x03"  # of a chunk's pickled list, with the byte that tells its form


def change_form(form, changed):
    """Waits until the worker has written a chunk's list, and says that it is something else."""
    places = []
    while not places:
        for start, size, permissions in shared_memory():
            if "w" in permissions:
                at = ctypes.string_at(start, size).find(END)
                places += [start + at + len(END) - 1] * (at >= 0)
    ctypes.memset(places[0], form, 1)
    changed.set()


def element(form, changed):
    if form is None:
        return None
    threading.Thread(target=change_form, args=(form, changed), daemon=True).start()
    return LAST


# ---- Tests ----


@pytest.fixture
def other_worker(process_pool, started, release):
    """The pool's other worker has a task all the while, which goes well."""
    future = process_pool.schedule(tasks.hold, args=(started, release))
    assert started.wait()
    yield
    release.set()
    assert future.result() == future.pid


def assert_only_it_expires(pool, function, *args):
    future = pool.schedule(function, args=args)
    behind = [pool.schedule(tasks.value, args=(n,)) for n in range(50)]
    error = future.exception()
    assert isinstance(error, ProcessExpired)
    assert error.pid == future.pid and gone(error.pid)
    assert [each.result() for each in behind] == list(range(50))
    return error


@pytest.mark.parametrize("seed", range(5))
def test_overwritten(process_pool, other_worker, seed):
    assert_only_it_expires(process_pool, overwrite_and_ring, seed)


@pytest.mark.parametrize("seed", range(3))
def test_overwritten_again_and_again(process_pool, other_worker, seed):
    assert_only_it_expires(process_pool, overwrite_again_and_again, seed)


def test_overwritten_in_silence(process_pool, other_worker):
    """The program has no cause to look before the task's timeout."""
    future = process_pool.schedule(overwrite_and_hang, args=(0,), timeout=0.2)
    assert isinstance(future.exception(), (ProcessExpired, concurrent.futures.TimeoutError))
    assert gone(future.pid)
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1


@pytest.mark.parametrize("seed", range(3))
def test_overwritten_before_the_result(process_pool, other_worker, seed):
    """Which may be right nevertheless, and the worker, too."""
    future = process_pool.schedule(overwrite_and_return, args=(seed,))
    if future.exception() is None:
        assert future.result() == seed
    else:
        assert isinstance(future.exception(), ProcessExpired)
        assert gone(future.pid)
    futures = [process_pool.schedule(tasks.value, args=(n,)) for n in range(50)]
    assert [each.result() for each in futures] == list(range(50))


@pytest.mark.parametrize("form", [0, 1, 2, 4, 5, 255])
def test_a_list_that_is_said_to_be_something_else(process_pool, other_worker, make_flag, form):
    changed = make_flag("changed")
    future = process_pool.map(element, [None, None, form], [changed] * 3, chunksize=3)
    assert changed.wait()
    found = outcomes(future.result())
    assert [type(each) for each in found] == [RuntimeError] * 3
    assert all("damaged" in str(each) for each in found)


def test_tasks_are_out_of_reach(process_pool, other_worker):
    error = assert_only_it_expires(process_pool, overwrite, 0, "r--s")
    assert error.exitcode == -signal.SIGSEGV
