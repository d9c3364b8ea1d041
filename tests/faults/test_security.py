"""Row 23: what a worker can reach, what others can reach of a pool, and who may run one."""

import errno
import fcntl
import gc
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest
from pebble import ProcessPool

import inventory
import tasks
from fault_tasks import NOBODY
from inventory import descriptors, kind, mappings, refusal, special
from support import children, eventually, gone, kill

ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")


# ---- A worker's channel is its own ----


@pytest.fixture
def workers(make_flag):
    """Four workers of two pools at the same time: process id, descriptors, mappings of each."""
    flags = [make_flag(f"worker{n}") for n in range(4)]
    with ProcessPool(max_workers=2) as first, ProcessPool(max_workers=2) as second:
        futures = [
            pool.schedule(inventory.inventory_when_met, args=(flag, *flags))
            for pool, flag in zip([first, second] * 2, flags)
        ]
        yield [future.result() for future in futures]


def test_descriptors_of_workers(workers):
    """The bell of each, and nothing else: no socket, no shared memory, no handle of a process."""
    held = [found for _, found, _ in workers]
    assert all(re.fullmatch(r"anon_inode:\[eventfd\] \d+", *each) for each in held)
    assert len({each for (each,) in held}) == 4


def test_mappings_of_workers(workers):
    seen = set()
    for _, _, found in workers:
        assert [(each.name, each.access) for each in found] == [
            ("/memfd:pebble-down", "r--s"),
            ("/memfd:pebble-up", "rw-s"),
        ]
        seen.update(each.inode for each in found)
    assert len(seen) == 8


def held_by_zygote(pid):
    kinds = map(kind, special(pid))
    return {*kinds, *(each.name for each in mappings(pid))}


def test_what_a_zygote_holds(workers, start_method):
    """Its own socket, handles of processes, what executed workers are told; no channel, but while it
    starts a worker.
    """
    pids = {pid for pid, _, _ in workers}
    zygotes = [pid for pid in children() if children(pid) & pids]
    expected = {"socket", "anon_inode:[pidfd]"}
    if start_method == "spawn":
        expected.add("/memfd:pebble-data")
    assert len(zygotes) == 2
    for zygote in zygotes:
        assert eventually(lambda: held_by_zygote(zygote) == expected), held_by_zygote(zygote)


def test_children_of_a_worker_have_nothing(process_pool):
    forked, executed = process_pool.schedule(inventory.inventory_of_forked_child).result()
    assert forked == "([], [])"
    assert "anon_inode" not in executed and "memfd" not in executed


# ---- Seals ----


def test_a_worker_cannot_write_its_tasks(process_pool):
    assert process_pool.schedule(inventory.try_to_write_tasks).result() == errno.EACCES


FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
FUTURE_WRITE = 0x10
REFUSED = errno.EPERM, errno.EPERM


@ONLY_ROOT
def test_seals_of_channels(process_pool):
    """Even for whoever can open the memory anew."""
    assert process_pool.schedule(inventory.seals_of_mappings).result() == {
        "/memfd:pebble-down": (FIXED_SIZE | FUTURE_WRITE, *REFUSED, *REFUSED),
        "/memfd:pebble-up": (FIXED_SIZE, *REFUSED, None, None),
    }


def memory_held():
    return {
        number
        for number, target in descriptors().items()
        if target.startswith("/memfd:pebble")
    }


def test_seals_of_what_workers_are_told(start_method):
    """The only memory that the program holds by a descriptor, as long as there is the pool."""
    others = memory_held()
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(int).result()
        assert eventually(
            lambda: len(memory_held() - others) == (0 if start_method == "fork" else 1)
        )
        for number in memory_held() - others:
            assert fcntl.fcntl(number, fcntl.F_GET_SEALS) == FIXED_SIZE | fcntl.F_SEAL_WRITE
            assert refusal(os.pwrite, number, b"x", 0) == errno.EPERM
    del pool
    gc.collect()
    assert eventually(lambda: memory_held() <= others)


# ---- Names ----


def test_nothing_has_a_name(run, tmp_path, monkeypatch):
    """Neither in the folder for temporary files, nor among the system's sockets and shared memory."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", os.fspath(folder))
    assert run(f"""
        import multiprocessing, os, sys
        import tasks
        from inventory import named
        from pebble import ProcessPool
        from support import eventually

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            os.chdir({os.fspath(folder)!r})
            with ProcessPool(max_workers=2) as pool:
                assert pool.schedule(tasks.value, args=(b"x" * 10_000_000,)).result()
                assert pool.schedule(tasks.die).exception()
                hanging = [pool.schedule(tasks.hang) for _ in range(2)]
                assert eventually(lambda: all(each.running() for each in hanging))
                print(named(), os.listdir({os.fspath(folder)!r}))
                pool.stop()
        """) == "[] []\n"
    assert os.listdir(folder) == []


# ---- The program's descriptors ----


@pytest.fixture
def inheritable(tmp_path):
    """Descriptors of a file, a folder, a pipe, sockets, all inheritable, and high ones."""
    pair = socket.socketpair()
    opened = [
        os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT),
        os.open(tmp_path, os.O_RDONLY),
        *os.pipe(),
        *(each.detach() for each in pair),
    ]
    opened += [fcntl.fcntl(opened[0], fcntl.F_DUPFD, minimum) for minimum in (200, 1000)]
    for descriptor in opened:
        os.set_inheritable(descriptor, True)
    yield opened
    for descriptor in opened:
        os.close(descriptor)


def test_no_descriptor_leaks_into_executed_workers(start_method, inheritable):
    if start_method == "fork":
        pytest.skip("a forked worker has what the program had")
    with ProcessPool(max_workers=1) as pool:
        found = pool.schedule(descriptors).result()
        pool.schedule(tasks.die).exception()
        assert sorted(pool.schedule(descriptors).result()) == sorted(found)
    standard = [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)]
    assert [found.pop(number, None) for number in (1, 2)] == standard
    found.pop(0, None)
    others = [target for target in found.values() if target != "/dev/null"]
    assert len(others) == 1 and others[0].startswith("anon_inode:[eventfd]")


# ---- Users ----

HEAD = """
import multiprocessing, os, signal, sys
from concurrent.futures import TimeoutError, wait
from pebble import ProcessExpired, ProcessPool, ThreadPool
from support import Flag, children, descendants, eventually, gone
from fault_tasks import become_nobody
from tasks import *

method, folder = sys.argv[1:]
multiprocessing.set_start_method(method)
started, child = (Flag(os.path.join(folder, name)) for name in ("started", "child"))
pool = ProcessPool(max_workers=2, termination_grace=0.1)


def exercise():
    assert pool.schedule(value, args=(1,)).result() == 1
    assert len(pool.schedule(value, args=(b"x" * 5_000_000,)).result()) == 5_000_000
    assert list(pool.map(value, range(100), chunksize=7).result()) == list(range(100))
    assert pool.schedule(die, args=(3,)).exception().exitcode == 3
    assert pool.schedule(crash).exception().exitcode == -signal.SIGSEGV
    assert type(pool.schedule(hang, timeout=0.05).exception()) is TimeoutError
    for task in hang, ignore_signals, stop_itself:
        future = pool.schedule(task, args=(started,))
        pid = started.number()
        assert future.cancel() and wait([future], 5).done and gone(pid)
    future = pool.schedule(hang_with_child, args=(started, child))
    pids = started.number(), child.number()
    assert future.cancel() and wait([future], 5).done and all(map(gone, pids))


def stop():
    hanging = [pool.schedule(hang, args=(started,)) for _ in range(3)]
    pids = started.numbers(2)
    pool.stop()
    pool.join(5)
    assert all(future.cancelled() for future in hanging) and all(map(gone, pids))
    assert eventually(lambda: not children())


def use_others():
    assert remote_add(1, 2).result() == 3
    with ThreadPool(max_workers=2) as threads, ProcessPool(max_workers=2) as processes:
        for pool in threads, processes:
            assert list(pool.map(value, range(9)).result()) == list(range(9))
"""


@pytest.fixture
def folder():
    """One that everybody may read: pytest's are their owner's alone."""
    path = tempfile.mkdtemp()
    os.chmod(path, 0o777)
    yield path
    shutil.rmtree(path)


SEARCH = [os.path.dirname(module.__file__) for module in (tasks, inventory)]


@pytest.fixture
def python(start_method, folder):
    """Starts a program whose main module is no file, since others may read none of the tests'."""
    started = []

    def start(source, **options):
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", HEAD + source, start_method, folder],
                env=os.environ | {"PYTHONPATH": ":".join(SEARCH)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


AS_NOBODY = dict(user=NOBODY, group=NOBODY, extra_groups=[])


@pytest.fixture
def readable_for_nobody(python):
    try:
        if python("", **AS_NOBODY).wait() == 0:
            return
    except PermissionError:
        pass
    pytest.skip("the package is in a folder that others cannot read")


@ONLY_ROOT
def test_an_unprivileged_program(readable_for_nobody, python):
    process = python(
        """
assert os.geteuid() == 65534
exercise()
processes = descendants()
for zygote in children():
    os.kill(zygote, signal.SIGKILL)
assert all(gone(pid, 5) for pid in processes)
exercise()
stop()
use_others()
""",
        **AS_NOBODY,
    )
    assert process.communicate() == ("", "")
    assert process.returncode == 0


@ONLY_ROOT
def test_a_program_that_gives_up_its_privileges(readable_for_nobody, python):
    """Its pool was started before: workers and zygote are still root's."""
    process = python("""
assert pool.schedule(value, args=(1,)).result() == 1
become_nobody()
exercise()
stop()
use_others()
""")
    assert process.communicate() == ("", "")
    assert process.returncode == 0


@ONLY_ROOT
def test_the_zygote_dies_when_the_program_has_given_up_its_privileges(
    readable_for_nobody, python
):
    """The kernel ends the workers, which the program must not; the next zygote is the user's."""
    process = python("""
futures = [pool.schedule(hang, args=(started,)) for _ in range(2)]
pids = started.numbers(2)
become_nobody()
print(*children(), flush=True)
assert all(future.exception().exitcode == -signal.SIGKILL for future in futures)
assert all(map(gone, pids))
assert pool.schedule(os.geteuid).result() == os.geteuid()
exercise()
stop()
""")
    kill(int(process.stdout.readline()))
    assert process.communicate() == ("", "")
    assert process.returncode == 0


@ONLY_ROOT
def test_a_program_that_is_killed_when_it_has_given_up_its_privileges(python):
    process = python("""
hanging = [pool.schedule(hang, args=(started,)) for _ in range(2)]
pids = started.numbers(2)
become_nobody()
print(*pids, flush=True)
hanging[0].result()
""")
    pids = [int(pid) for pid in process.stdout.readline().split()]
    kill(process.pid)
    assert len(pids) == 2 and all(gone(pid, 1) for pid in pids)
