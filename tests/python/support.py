"""Events between processes, and what /proc tells about them. Imported by tasks, so kept light."""

import concurrent.futures
import ctypes
import gc
import os
import select
import signal
import time

import tasks

DEADLINE = 10


class Flag:
    """A named pipe: set once it holds something. Goes into tasks, under every start method."""

    def __init__(self, path):
        self.path = os.fspath(path)
        if not os.path.exists(self.path):
            os.mkfifo(self.path)
        self._descriptor = os.open(self.path, os.O_RDWR)

    def __reduce__(self):
        return Flag, (self.path,)

    def __del__(self):
        os.close(self._descriptor)

    def set(self, number=1):
        os.write(self._descriptor, b"%d\n" % number)

    def wait(self, timeout=DEADLINE):
        return readable(self._descriptor, timeout)

    def is_set(self):
        return self.wait(0)

    def numbers(self, count=1):
        """The first `count` numbers that it was set to, which are taken out of it."""
        data = b""
        while data.count(b"\n") < count:
            assert self.wait(), "never set"
            data += os.read(self._descriptor, 4096)
        return [int(line) for line in data.split()]

    def number(self):
        (number,) = self.numbers()
        return number


def start_workers(pool, folder):
    """Makes both workers of a pool start, and its threads that tell of ends, for which there must be some
    to come; the processes' numbers.
    """
    *arrivals, leave = (Flag(folder / name) for name in ("first", "second", "leave"))
    futures = [pool.schedule(tasks.meet, args=(flag, *arrivals, leave)) for flag in arrivals]
    futures[0].add_done_callback(lambda _: None)
    concurrent.futures.wait(futures, timeout=0)
    leave.set()
    return {future.result() for future in futures}


def readable(descriptor, timeout):
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def gone(pid, timeout=0):
    """True once the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return readable(descriptor, timeout)
    finally:
        os.close(descriptor)


def threads(pid="self"):
    """Identifier and name of each native thread of a process."""
    found = {}
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/comm") as comm:
                found[int(thread)] = comm.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def children(pid="self"):
    found = set()
    for thread in threads(pid):
        try:
            with open(f"/proc/{pid}/task/{thread}/children") as list_of_children:
                found.update(map(int, list_of_children.read().split()))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def descendants(pid="self"):
    found = children(pid)
    return found.union(*(descendants(child) for child in found))


PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def go_on_below_a_reaper():
    """Goes on in a fork. Its parent adopts what the processes below lose when they are killed, which
    is init's otherwise, and nobody would see it; takes their ends; and ends as the fork does. It is a
    process of its own so that the fork's children are those that it has started.
    """
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    program = os.fork()
    if program == 0:
        assert libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = status = None
    while pid != program:
        pid, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def orphans():
    """Those that this process's reaper has adopted and that have not ended."""
    found = children(os.getppid()) - {os.getpid()}
    return {pid for pid in found if not helper_of_multiprocessing(pid)}


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as arguments:
            return arguments.read().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _status(pid, place):
    """Of /proc/PID/stat, counted from behind the name; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[place]
    except (FileNotFoundError, ProcessLookupError):
        return None


def state(pid):
    """A letter: "S" for sleeping, "T" stopped, "Z" a zombie."""
    return _status(pid, 0)


def parent(pid):
    number = _status(pid, 1)
    return number and int(number)


def start_time(pid):
    """On CLOCK_BOOTTIME, to a hundredth of a second; None if there is no such process."""
    ticks = _status(pid, 19)
    return ticks and int(ticks) / os.sysconf("SC_CLK_TCK")


def helper_of_multiprocessing(pid):
    line = command_line(pid)
    return (
        "multiprocessing.resource_tracker" in line or "multiprocessing.forkserver" in line
    )


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keep".split()
    ]


def memory_in_use():
    """Bytes allocated, as the C library counts them: what it holds beyond that is its own to and fro."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return found.uordblks + found.hblkhd


def run_time(pid, thread):
    """Nanoseconds that a thread ran, and how often it was woken."""
    try:
        with open(f"/proc/{pid}/task/{thread}/schedstat") as statistics:
            nanoseconds, _, times = statistics.read().split()
        return int(nanoseconds), int(times)
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_waiting(pid):
    """True if the process's first thread sleeps, and sleeps on."""
    if state(pid) != "S":
        return False
    before = run_time(pid, pid)
    time.sleep(0.02)
    return run_time(pid, pid) == before


def eventually(predicate, timeout=5):
    """Waits for what has no event: the state of other processes and threads."""
    end = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def outcome(call, *args):
    """A call's value, or the class and arguments of its exception: comparable with another's."""
    try:
        return call(*args)
    except Exception as error:
        return type(error), error.args


def outcomes(iterator):
    """All that an iterator gives: values, and exceptions at the places where they are raised."""
    found = []
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except BaseException as error:
            found.append(error)


def kill(pid, signum=signal.SIGKILL):
    os.kill(pid, signum)
