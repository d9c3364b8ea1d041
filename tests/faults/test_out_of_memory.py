"""Row 19, in a worker: no memory for its task, by its own limit and by that of a cgroup."""

import os
import resource
import signal

import pytest
from pebble import ProcessExpired, ProcessPool

import tasks
from support import eventually

MIB = 1 << 20


def limit_memory(room):
    """Lets this process have so many bytes more than it has."""
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))


def fill_memory(block=MIB):
    kept = []
    while True:
        kept.append(b"x" * block)


def fill_limited_memory(room, block):
    limit_memory(room)
    fill_memory(block)


def make_result(room, size):
    limit_memory(room)
    return b"x" * size


def fill_memory_in(group):
    """A process that joins has what it allocates from then on counted to the group."""
    with open(os.path.join(group, "cgroup.procs"), "w") as processes:
        processes.write(str(os.getpid()))
    fill_memory()


def usable(pool):
    return list(pool.map(tasks.value, range(20)).result()) == list(range(20))


def test_memory_error():
    with ProcessPool(max_workers=2) as pool:
        future = pool.schedule(fill_limited_memory, args=(64 * MIB, MIB))
        assert usable(pool)
        assert isinstance(future.exception(), MemoryError)
        assert usable(pool)


def test_not_even_memory_for_the_error():
    """The last byte is taken: its own worker may not be able to go on, the pool is."""
    with ProcessPool(max_workers=1) as pool:
        future = pool.schedule(fill_limited_memory, args=(0, 64))
        assert isinstance(future.exception(), (MemoryError, ProcessExpired))
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        assert usable(pool)


@pytest.mark.parametrize("room", [0, 8, 20, 36, 100])
def test_result(room, start_method):
    """A result of 16 MiB, with memory for less, for it alone, for it and its copy. The worker must not
    have inherited what this program has freed and its allocator keeps."""
    clean = "forkserver" if start_method == "fork" else start_method
    with ProcessPool(max_workers=1, context=clean) as pool:
        future = pool.schedule(make_result, args=(room * MIB, 16 * MIB))
        if future.exception() is None:
            assert room > 16 and future.result() == b"x" * 16 * MIB
        else:
            assert room < 100 and isinstance(future.exception(), (MemoryError, ProcessExpired))
        assert usable(pool)


def test_argument():
    """A task of 64 MiB that comes to a worker which cannot hold it."""
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(limit_memory, args=(16 * MIB,)).result()
        future = pool.schedule(len, args=(b"x" * 64 * MIB,))
        assert isinstance(future.exception(), (MemoryError, ProcessExpired))
        assert usable(pool)


# ---- The limit of a cgroup, where the kernel kills ----


def own_group():
    """The folder of this process's memory cgroup, and the names of its limits."""
    with open("/proc/self/cgroup") as file:
        groups = [line.rstrip("\n").split(":", 2) for line in file]
    for _, controllers, path in groups:
        if "memory" in controllers.split(","):
            limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
            return "/sys/fs/cgroup/memory" + path, limits
    for _, controllers, path in groups:
        if not controllers:
            return "/sys/fs/cgroup" + path, ["memory.max", "memory.swap.max"]
    return None, None


def limit_group(group, limits):
    most, with_swap = (os.path.join(group, name) for name in limits)
    with open(most, "w") as file:
        file.write(str(64 * MIB))
    if os.path.exists(with_swap):
        with open(with_swap, "w") as file:
            file.write("0" if with_swap.endswith("swap.max") else str(64 * MIB))


def removed(group):
    try:
        os.rmdir(group)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


@pytest.fixture
def memory_group():
    own, limits = own_group()
    if own is None:
        pytest.skip("there are no cgroups for memory")
    group = os.path.join(own, f"pebble-{os.getpid()}")
    try:
        os.mkdir(group)
    except OSError as error:
        pytest.skip(f"no cgroup may be made: {error}")
    try:
        try:
            limit_group(group, limits)
        except OSError as error:
            pytest.skip(f"no cgroup may be limited: {error}")
        yield group
    finally:
        assert eventually(lambda: removed(group))


def test_killed_by_the_kernel(process_pool, memory_group):
    future = process_pool.schedule(fill_memory_in, args=(memory_group,))
    assert usable(process_pool)
    error = future.exception()
    assert isinstance(error, ProcessExpired)
    assert error.exitcode == -signal.SIGKILL and error.pid == future.pid
    assert usable(process_pool)
