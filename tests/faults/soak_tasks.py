"""What the soak lets tasks do, and what must come of it. Imported by workers."""

import concurrent.futures
import ctypes
import os
import resource
import signal
import subprocess

from pebble import ProcessExpired

import fault_tasks
import tasks


class Nobody:
    """Where a task says that it has started."""

    def set(self, number=1):
        pass


def overwrite_channel(log):
    """Random bytes over all that the worker may write of its channel."""
    tasks.log_call(log)
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split()
            if len(fields) > 5 and "pebble" in fields[5] and fields[1].startswith("rw"):
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                noise = os.urandom(end - begin)
                ctypes.memmove(begin, noise, len(noise))


def take_all_memory():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return len(bytes(2 << 30))


def start_processes(count):
    for n in range(count):
        subprocess.Popen(["sleep", "1000"], start_new_session=bool(n % 2))
    tasks.hang()


def become_sixteen():
    """A fork bomb, but one that others can live with."""
    for _ in range(4):
        os.fork()
    tasks.hang()


def fill_a_pipe():
    """Its standard output, which nobody reads."""
    _, writing = os.pipe()
    os.dup2(writing, 1)
    fault_tasks.fill()


def reversed_bytes(data):
    return data[::-1]


# ---- What must come of them ----


def gives(result):
    return lambda error, value: error is None and value == result


def raises(kind):
    return lambda error, value: isinstance(error, kind)


def expires(code):
    return lambda error, value: (
        isinstance(error, ProcessExpired) and error.exitcode == code
    )


def either(first, second):
    return lambda error, value: first(error, value) or second(error, value)


timed_out = raises(concurrent.futures.TimeoutError)
cancelled = raises(concurrent.futures.CancelledError)

SHORT = 0.05
MIB = 1 << 20
KILLED, STOPPED = signal.SIGKILL, signal.SIGSTOP

SINGLE_CALLS = [  # name, timeout, what must come of it, function, arguments
    ("exit", None, expires(3), tasks.die, 3),
    ("SIGKILL", None, expires(-9), tasks.kill_itself, signal.SIGKILL),
    ("crash", None, expires(-11), tasks.crash),
    ("abort", None, expires(-6), os.abort),
    ("killed within a result", None, expires(-9), fault_tasks.send, 10 * MIB, 10 * MIB, Nobody(), KILLED),
    ("timeout", SHORT, timed_out, tasks.hang),
    ("timeout, stopped within a result", 0.5, timed_out, fault_tasks.send, 10 * MIB, 10 * MIB, Nobody(), STOPPED),
    ("timeout, signals ignored", SHORT, timed_out, tasks.ignore_signals, Nobody()),
    ("timeout, SystemExit caught", SHORT, timed_out, fault_tasks.catch_all, Nobody(), Nobody()),
    ("timeout, lock held", SHORT, timed_out, tasks.hold_interpreter_lock, Nobody()),
    ("timeout, stopped", SHORT, timed_out, tasks.stop_itself, Nobody()),
    ("timeout, processes left", SHORT, timed_out, start_processes, 3),
    ("timeout, fork bomb", SHORT, timed_out, become_sixteen),
    ("timeout, output full", SHORT, timed_out, fill_a_pipe),
    ("exception", None, raises(ValueError), tasks.fail),
    ("exception not dumped", None, raises(ValueError), tasks.fail, tasks.DumpFailsError),
    ("exception not loaded", None, raises(LookupError), tasks.fail, tasks.LoadFailsError),
    ("argument not dumped", None, raises(ValueError), tasks.value, tasks.DumpFails()),
    ("argument not loaded", None, raises(LookupError), tasks.value, tasks.LoadFails()),
    ("argument dies when loaded", None, expires(6), tasks.value, tasks.LoadDies()),
    ("result not dumped", None, raises(ValueError), tasks.make, tasks.DumpFails),
    ("result not loaded", None, raises(LookupError), tasks.make, tasks.LoadFails),
    ("result dies when dumped", None, expires(5), tasks.make, tasks.DumpDies),
    ("out of memory", None, raises(MemoryError), take_all_memory),
]
