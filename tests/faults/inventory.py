"""What processes hold and could reach, as /proc and the system's refusals say. Imported by tasks."""

import collections
import ctypes
import errno
import fcntl
import glob
import mmap
import os
import re
import resource
import subprocess
import tempfile

import fault_tasks
import tasks
from support import descendants

# ---- Descriptors and mappings ----


def descriptors(pid="self"):
    """What each descriptor is: a path, or a kind and, for an event, which."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            with open(f"/proc/{pid}/fdinfo/{number}") as info:
                event = re.search(r"eventfd-id: *(\d+)", info.read())
        except FileNotFoundError:  # the listing's own
            continue
        found[int(number)] = f"{target} {event[1]}" if event else target
    return found


def special(pid="self"):
    """Of its descriptors those that the engine may have: none with a path, but memfds."""
    return sorted(
        target
        for target in descriptors(pid).values()
        if target.startswith("/memfd:") or not target.startswith(("/", "pipe:"))
    )


def kind(target):
    """Without what is this one's own: its number, or that its file has no name."""
    return re.sub(r" \(deleted\)$|:\[\d+\]$|(?<=\]) \d+$", "", target)


Mapping = collections.namedtuple("Mapping", "name addresses access inode")


def mappings(pid="self"):
    """The channels between programs and workers."""
    with open(f"/proc/{pid}/maps") as lines:
        fields = [line.split() for line in lines if "/memfd:pebble" in line]
    return sorted(
        Mapping(name, addresses, access, int(inode))
        for addresses, access, _, _, inode, name, *_ in fields
        if access.endswith("s")
    )


def holdings():
    """How many descriptors there are of each kind that the engine has, and channels. Not memory that
    a pool keeps as long as Python keeps the pool.
    """
    found = collections.Counter(map(kind, special()))
    del found["/memfd:pebble-data"]
    found["channel"] = len(mappings())
    return found


def files():
    return {
        os.path.join(folder, name)
        for folder in (tempfile.gettempdir(), "/dev/shm")
        for name in os.listdir(folder)
        if "pebble" in name
    }


def inventory_when_met(arrival, *others):
    tasks.meet(arrival, *others)
    return os.getpid(), special(), mappings()


def inventory_of_forked_child():
    """Of a child of a worker, by itself and after an execution."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        text = repr((special(), mappings()))
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    executed = subprocess.run(
        ["sh", "-c", "readlink /proc/$$/fd/*; cat /proc/$$/maps"],
        stdout=subprocess.PIPE,
        close_fds=False,
        text=True,
    )
    return text, executed.stdout


def named():
    """What the program and its processes have that others could find by a name."""
    found = glob.glob("/dev/shm/*pebble*") + glob.glob("/dev/mqueue/*pebble*")
    sockets = set()
    for pid in {os.getpid(), *descendants()}:
        for target in special(pid):
            sockets.update(re.findall(r"socket:\[(\d+)\]", target))
    with open("/proc/net/unix") as lines:
        for line in lines:
            _, *fields = line.split()
            if fields[5] in sockets:
                found += fields[6:]
    assert sockets
    return found


# ---- What is refused ----


def refusal(call, *args):
    """The errno of the error with which the system refuses a call."""
    try:
        call(*args)
    except OSError as error:
        return error.errno


def lose_right_to_fork():
    """By the limit of a user's processes, from which root is exempt."""
    if os.geteuid() == 0:
        fault_tasks.become_nobody()
    fault_tasks.limit_processes()
    assert refusal(subprocess.Popen, ["true"]) == errno.EAGAIN


def make_writable(addresses):
    begin, end = (int(address, 16) for address in addresses.split("-"))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
    if libc.mprotect(*arguments, mmap.PROT_READ | mmap.PROT_WRITE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def try_to_write_tasks():
    (down, _) = mappings()
    return refusal(make_writable, down.addresses)


def map_writable(file):
    mmap.mmap(file, resource.getpagesize(), mmap.MAP_SHARED).close()


def seals_of_mapping(each):
    file = os.open(f"/proc/self/map_files/{each.addresses}", os.O_RDWR)
    try:
        return (
            fcntl.fcntl(file, fcntl.F_GET_SEALS),
            refusal(os.ftruncate, file, 1),
            refusal(os.ftruncate, file, 1 << 30),
            refusal(os.pwrite, file, b"x", 0) if "-down" in each.name else None,
            refusal(map_writable, file) if "-down" in each.name else None,
        )
    finally:
        os.close(file)


def seals_of_mappings():
    return {each.name: seals_of_mapping(each) for each in mappings()}
