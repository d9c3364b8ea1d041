"""What the measured pools run."""

import os
import signal
import time


def nothing(argument=None):
    pass


def identity(argument):
    return argument


def take(argument):
    return len(argument)


def sleep(seconds):
    time.sleep(seconds)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def loop(argument=None):
    while True:
        pass


def kill_itself(argument=None):
    os.kill(os.getpid(), signal.SIGKILL)
