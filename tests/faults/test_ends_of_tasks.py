"""Row 1: a task that ends its own worker, in every way."""

import os
import signal

import pytest
from pebble import ProcessExpired

import tasks


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
