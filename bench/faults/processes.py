"""Processes that come of another, by /proc."""

import ctypes
import os
import signal
import time

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """What loses its parent below this process becomes its child, so that nothing is lost sight of."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def read(pid, name):
    try:
        with open(f"/proc/{pid}/{name}") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid):
    state = read(pid, "stat").rpartition(")")[2].split()
    return bool(state) and state[0] not in "ZX"


def descendants(pid):
    """Those that are alive, but for the helpers that multiprocessing and loky keep for a program."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return set()
    found = set()
    for thread in threads:
        for child in map(int, read(pid, f"task/{thread}/children").split()):
            found |= {child} | descendants(child)
    return {each for each in found if is_alive(each) and not is_helper(each)}


def is_helper(pid):
    command = read(pid, "cmdline")
    return "resource_tracker" in command or "multiprocessing.forkserver" in command


def gone(pids_of, seconds):
    """Waits until there are none any more; how many are left."""
    end = time.monotonic() + seconds
    while pids_of() and time.monotonic() < end:
        time.sleep(0.01)
    return len(pids_of())


def kill(pid, signum=signal.SIGKILL):
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass
