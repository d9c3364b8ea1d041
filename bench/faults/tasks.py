"""What the pools run. Imported by workers: quick to import."""

import ctypes
import os
import signal
import threading
import time


def value(x):
    return x


def size(x):
    return len(x)


def sleep(seconds, x=None):
    time.sleep(seconds)
    return x


def process_id(seconds):
    time.sleep(seconds)
    return os.getpid()


def make_bytes(count):
    return bytes(count)


# ---- Ends of their worker ----


def leave(code):
    os._exit(code)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_sending(count, seconds):
    threading.Timer(seconds, kill_itself).start()
    return bytes(count)


# ---- Not ended easily ----


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def hold_interpreter_lock(seconds):
    ctypes.PyDLL(None).sleep(seconds)


def raise_exit(signum, frame):
    raise SystemExit


def catch_everything():
    signal.signal(signal.SIGTERM, raise_exit)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass


def start_grandchild(path):
    """By double fork: nobody's child any more. Its number goes into the file."""
    if os.fork() == 0:
        if os.fork() == 0:
            with open(path + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(path + ".new", path)
            os.execlp("sleep", "sleep", "100")
        os._exit(0)
    time.sleep(100)


# ---- Pickling ----


def fail_to_load():
    raise LookupError("load")


class LoadFails:
    def __reduce__(self):
        return fail_to_load, ()


class TwoArguments(Exception):
    """Pickled with one argument, so that unpickling fails."""

    def __init__(self, first, second):
        super().__init__(first)


def raise_two_arguments():
    raise TwoArguments(1, 2)


def make_load_fails():
    return LoadFails()


# ---- Initializers ----


def fail():
    raise LookupError("initializer")


def die():
    os._exit(7)


def hang():
    time.sleep(1000)
