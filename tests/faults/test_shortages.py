"""Row 19, in the program: descriptors, processes or memory run out while a pool is made or a worker
is replaced. That is an error, or the pool tries again until there are some; it never hangs or dies.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

PROGRAM = """
    import concurrent.futures, faulthandler, multiprocessing, os, resource, signal, sys
    import tasks
    from pebble import ProcessPool
    from support import children, descendants, eventually, threads

    REFUSED = (OSError, MemoryError, RuntimeError)


    def limit_descriptors(room):
        return resource.RLIMIT_NOFILE, lambda pid: 3 + room

    def limit_processes(room):
        count = sum(len(threads(pid)) for pid in {os.getpid()} | descendants())
        return resource.RLIMIT_NPROC, lambda pid: count + room

    def limit_memory(room):
        def size(pid):
            with open(f"/proc/{pid}/statm") as statm:
                return int(statm.read().split()[0]) * resource.getpagesize()
        return resource.RLIMIT_AS, lambda pid: size(pid) + (room << 19)

    LIMITED = dict(
        descriptors=(limit_descriptors, range(16)),
        processes=(limit_processes, range(4)),
        memory=(limit_memory, [0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 32, 64, 128, 1024]),
    )


    def set_limit(kind, limit_of):
        '''Of this process and its zygote; what they have already they keep.'''
        for pid in {os.getpid()} | children():
            _, hard = resource.prlimit(pid, kind)
            soft = hard if limit_of is None else limit_of(pid)
            resource.prlimit(pid, kind, (soft, hard))


    def result(room, pool):
        '''What a task comes to, if it comes to anything as long as the shortage lasts.'''
        try:
            future = pool.schedule(tasks.value, args=(room,))
        except REFUSED:
            return "refused", None
        concurrent.futures.wait([future], 0.3)
        return ("ended" if future.done() else "waiting"), future


    def settle(what, future):
        '''After the shortage: who waited waits no more.'''
        if future is None:
            return what
        error = future.exception(timeout=10)
        assert error is None or isinstance(error, REFUSED), error
        return "refused" if error is not None else "worked" if what == "ended" else "retried"
"""

MAKE = """
    def attempt(kind, limit_of, room):
        pool = future = None
        set_limit(kind, limit_of)
        try:
            pool = ProcessPool(max_workers=1)
        except REFUSED:
            what = "refused"
        else:
            what, future = result(room, pool)
        set_limit(kind, None)
        what = settle(what, future)
        if pool:
            pool.stop()
            pool.join()
        return what
"""

REPLACE = """
    def attempt(kind, limit_of, room):
        pool = ProcessPool(max_workers=1)
        for _ in range(2):
            pool.schedule(int).result()
        (zygote,) = children()
        assert eventually(lambda: len(children(zygote)) == 2)  # one is a spare
        set_limit(kind, limit_of)
        for pid in children(zygote):
            os.kill(pid, signal.SIGKILL)
        what = settle(*result(room, pool))
        pool.stop()
        pool.join()
        return what
"""

END = """
    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        faulthandler.dump_traceback_later(25, exit=True)
        make_limit, rooms = LIMITED["KIND"]
        for room in rooms:
            print(room, attempt(*make_limit(room), room), flush=True)
        with ProcessPool(max_workers=2) as pool:
            assert list(pool.map(tasks.value, range(9)).result()) == list(range(9))
"""

UNPRIVILEGED = 54_000 + os.getpid() % 1000  # a user who has no other processes


@pytest.fixture
def tmp_path():
    """One that every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


@pytest.fixture
def unprivileged():
    """Options of a process whose user has a limit of processes; root has none."""
    if os.getuid() != 0:
        pytest.skip("only root can become a user without other processes")
    options = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
    if subprocess.run([sys.executable, "-c", "import pebble"], **options).returncode != 0:
        pytest.skip("other users cannot read the package")
    return options


def outcomes_of(program, source, kind, **options):
    """What became of the pool, from nothing being left to enough of everything."""
    code, output, errors = program(source.replace("KIND", kind), **options).end()
    assert code == 0, output + errors
    outcomes = [line.split()[1] for line in output.splitlines()]
    assert outcomes[0] != "worked" and outcomes[-1] == "worked", output
    return outcomes


MADE, REPLACED = PROGRAM + MAKE + END, PROGRAM + REPLACE + END
both = pytest.mark.parametrize("source", [MADE, REPLACED], ids=["made", "replaced"])


@both
@pytest.mark.parametrize("kind", ["descriptors", "memory"])
def test_shortage(program, source, kind):
    outcomes_of(program, source, kind)


@both
def test_shortage_of_processes(program, unprivileged, source):
    outcomes_of(program, source, "processes", **unprivileged)
