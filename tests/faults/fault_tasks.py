"""What the tests of faults let pools do. Like `tasks`, it must stay quick to import: each new worker
does that.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time

import tasks
from support import readable

# ---- Long queues ----


def name_and(x):
    """A worker's name has its number, which is used once; its process id may come again."""
    return tasks.process_name(), x


# ---- Large results ----


class StopsWhilePickled:
    """Halfway through a result: the worker stops (or is killed) when it comes to this."""

    def __init__(self, signum):
        self.signum = signum

    def __reduce__(self):
        os.kill(os.getpid(), self.signum)
        return int, ()


def send(first, second, started, signum):
    """Two objects: of one, the second would be a mere reference to the first."""
    started.set(os.getpid())
    return [bytes(first), StopsWhilePickled(signum), bytes(second)]


# ---- SystemExit out of a handler ----


def catch_all(started, caught):
    """Its handler raises SystemExit, which it does not let through."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to"))
    while True:
        try:
            started.set()
            while True:
                tasks.rest()
        except BaseException as error:
            if isinstance(error, SystemExit):
                caught.set()


# ---- Processes of tasks: ways to start one; each tells its number ----


def by_subprocess(child):
    child.set(subprocess.Popen(["sleep", "1000"]).pid)


def by_double_fork(child):
    if os.fork() == 0:
        if os.fork() == 0:
            child.set(os.getpid())
            signal.pause()
        os._exit(0)
    os.wait()


def in_a_session(child):
    child.set(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)


def as_a_daemon(child):
    """Double fork, a session and an ignored SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child.set(os.getpid())
            while True:
                signal.pause()
        os._exit(0)
    os.wait()


def while_the_kill_is_on(child):
    """SIGTERM makes it start yet another, in the middle of its end."""

    def start(signum, frame):
        child.set(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)

    signal.signal(signal.SIGTERM, start)
    child.set(os.getpid())


WAYS = [by_subprocess, by_double_fork, in_a_session, as_a_daemon, while_the_kill_is_on]


def start_nothing():
    pass


def start_and_hang(way, child, started):
    way(child)
    tasks.hang(started)


# ---- Changes of a process ----

NOBODY = 65534
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36


def close_every_descriptor():
    os.closerange(0, 4096)


def close_all_but_standard_streams():
    os.closerange(3, 4096)


def block_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def ignore_signals():
    for signum in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(signum, signal.SIG_IGN)
        except OSError:
            pass


def change_directory():
    """Into one that is removed then."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


def change_root():
    os.chroot("/proc/self/task")
    os.chdir("/")


def start_session():
    os.setsid()


def change_group():
    os.setpgid(0, 0)


def become_nobody():
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def clear(option):
    assert ctypes.CDLL(None).prctl(option, 0) == 0


def outlive_parent():
    clear(PR_SET_PDEATHSIG)


def stop_adopting():
    """Orphans among its descendants go past it."""
    clear(PR_SET_CHILD_SUBREAPER)


def hide_from_debuggers():
    clear(PR_SET_DUMPABLE)


def limit(kind, amount):
    resource.setrlimit(kind, (amount, amount))


def limit_descriptors():
    limit(resource.RLIMIT_NOFILE, 0)


def limit_processes():
    limit(resource.RLIMIT_NPROC, 0)


def limit_files():
    limit(resource.RLIMIT_FSIZE, 0)


def limit_memory():
    """To what it has, and a little; or to what an earlier task of this worker's has left of it."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    amount = pages * resource.getpagesize() + (16 << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit(resource.RLIMIT_AS, amount if hard == resource.RLIM_INFINITY else min(amount, hard))


def limit_stack():
    limit(resource.RLIMIT_STACK, 1 << 20)


def use_up_processor_time():
    resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
    while True:
        pass


def lower_priority():
    os.nice(19)


def mask_files():
    os.umask(0o777)


CHANGES = [
    block_signals,
    ignore_signals,
    change_directory,
    start_session,
    change_group,
    outlive_parent,
    stop_adopting,
    hide_from_debuggers,
    limit_descriptors,
    limit_processes,
    limit_files,
    limit_memory,
    limit_stack,
    lower_priority,
    mask_files,
]
if os.geteuid() == 0:
    CHANGES += [change_root, become_nobody]
CLOSINGS = [close_every_descriptor, close_all_but_standard_streams]
ALL = CHANGES + CLOSINGS


def change_and_hang(change, path):
    flag = os.open(path, os.O_RDWR)
    change()
    if change in CLOSINGS:
        flag = os.open(path, os.O_RDWR)
    os.write(flag, b"%d\n" % os.getpid())
    tasks.hang()


def state():
    """What a change may have changed."""
    status = {}
    with open("/proc/self/status") as lines:
        for line in lines:
            name, _, text = line.partition(":")
            if name in ("Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Umask", "CapEff"):
                status[name] = text.strip()
    with open("/proc/self/limits") as limits:
        status["limits"] = limits.read()
    status["directory"] = os.getcwd()
    status["root"] = os.readlink("/proc/self/root")
    status["session"] = os.getsid(0)
    status["priority"] = os.nice(0)
    return status


# ---- Closed descriptors ----


def open_null():
    os.open("/dev/null", os.O_RDWR)


def open_event():
    assert ctypes.CDLL(None).eventfd(0, 0) >= 0


def close_and_wait(first, put_in_place, started, release):
    """Other files may get the numbers of those that were the worker's."""
    os.closerange(first, 4096)
    for _ in range(20):
        put_in_place()
    os.write(os.open(started, os.O_RDWR), b"1\n")
    readable(os.open(release, os.O_RDWR), 10)


# ---- Fork bombs, standard output ----


def bomb(path, stubborn):
    """Forks processes that fork, at most 40 at a time. Each of them holds the pipe at `path`."""
    pipe = os.open(path, os.O_WRONLY)
    places, free = os.pipe()
    os.set_blocking(places, False)
    os.write(free, b"x" * 40)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    first = os.getpid()
    while True:
        try:
            os.read(places, 1)
        except BlockingIOError:
            if os.getpid() != first:
                os.write(free, b"x")
                os._exit(0)
        else:
            os.write(pipe, b"x")
            if os.fork() == 0 and stubborn:
                os.setsid()
        time.sleep(0.001)


def fill():
    while True:
        os.write(1, b"x" * 1000)


def fill_with_text():
    while True:
        print("x" * 1000)
