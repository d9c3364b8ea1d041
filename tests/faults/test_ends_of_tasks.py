"""Row 1: a task that ends its own worker, in every way; and how soon that is known."""

import os
import signal
import statistics
import time

import pytest
from pebble import ProcessExpired

import tasks
from support import kill

PROMPT = 0.1
"""Seconds, in the middle of several: other programs run beside this one."""


def leave(code):
    os._exit(code)


def kill_itself(signum):
    os.kill(os.getpid(), signum)
    signal.pause()


@pytest.mark.parametrize("code", [0, 3])
def test_exit(process_pool, code):
    future = process_pool.schedule(leave, args=(code,))
    error = future.exception()
    assert isinstance(error, ProcessExpired)
    assert error.exitcode == code and error.pid == future.pid
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_signal(process_pool, signum):
    future = process_pool.schedule(kill_itself, args=(signum,))
    error = future.exception()
    assert isinstance(error, ProcessExpired)
    assert error.exitcode == -signum and error.pid == future.pid
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1


def test_a_death_is_known_promptly(process_pool, started):
    """From the kill to the end of the future."""
    times = []
    for _ in range(9):
        future = process_pool.schedule(tasks.hang, args=(started,))
        pid = started.number()
        before = time.monotonic()
        kill(pid)
        assert isinstance(future.exception(), ProcessExpired)
        times.append(time.monotonic() - before)
    print(f"{statistics.median(times) * 1e3:.1f} ms, at most {max(times) * 1e3:.1f}")
    assert statistics.median(times) < PROMPT
