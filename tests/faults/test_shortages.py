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
        return resource.RLIMIT_AS, lambda pid: size(pid) + (room << 20)

    LIMITED = dict(
        descriptors=(limit_descriptors, range(16)),
        processes=(limit_processes, range(4)),
        memory=(limit_memory, [-16, *range(-4, 12, 2), 64, 512] * 2),
    )


    HARD = {kind: resource.getrlimit(kind)[1]
            for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_AS)}


    def set_limit(kind, limit_of):
        '''Of this process and its zygote; what they have already they keep.'''
        for pid in [*children(), os.getpid()]:
            resource.prlimit(pid, kind, (limit_of(pid), HARD[kind]))


    def lift(kind):
        resource.setrlimit(kind, (HARD[kind], HARD[kind]))
        set_limit(kind, lambda pid: HARD[kind])


    def result(room, pool):
        '''What a task comes to, if it comes to anything as long as the shortage lasts.'''
        future = pool.schedule(tasks.value, args=(room,))
        try:
            future.result(timeout=0.1)
        except REFUSED:
            pass
        return "worked" if future.done() else "retried", future


    def settle(what, future):
        '''After the shortage: who waited waits no more.'''
        error = future.exception(timeout=10) if future else None
        assert error is None or isinstance(error, REFUSED), error
        return "refused" if error else what
"""

MAKE = """
    def attempt(kind, limit_of, room):
        what, pool, future = "refused", None, None
        set_limit(kind, limit_of)
        try:
            pool = ProcessPool(max_workers=1)
            what, future = result(room, pool)
        except REFUSED:
            pass
        lift(kind)
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
        workers = children(zygote)
        set_limit(kind, limit_of)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        what, future = "refused", None
        try:
            what, future = result(room, pool)
        except REFUSED:
            pass
        lift(kind)
        what = settle(what, future)
        pool.stop()
        pool.join()
        return what
"""

END = """
    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        faulthandler.dump_traceback_later(25, exit=True)
        make_limit, rooms = LIMITED["KIND"]
        step = 1 if sys.argv[1] == "fork" else 3  # executed workers take their time
        for room in [*rooms[::step], rooms[-1]]:
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


def check(program, source, kind, **options):
    """From nothing being left to enough of everything."""
    code, output, errors = program(source.replace("KIND", kind), **options).end()
    assert code == 0, output + errors
    outcomes = [line.split()[1] for line in output.splitlines()]
    assert outcomes[0] != "worked" and outcomes[-1] != "refused", output


MADE, REPLACED = PROGRAM + MAKE + END, PROGRAM + REPLACE + END
both = pytest.mark.parametrize("source", [MADE, REPLACED], ids=["made", "replaced"])


@both
@pytest.mark.parametrize("kind", ["descriptors", "memory"])
def test_shortage(program, source, kind):
    check(program, source, kind)


def test_lasting_shortage(run):
    """It is not waited for without end."""
    run("""
        import resource
        import tasks
        from pebble import ProcessPool

        if __name__ == "__main__":
            pool = ProcessPool(max_workers=1, max_tasks=1)
            pool.schedule(int).result()
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            futures = [pool.schedule(tasks.value, args=(n,)) for n in range(10)]
            errors = [future.exception(timeout=10) for future in futures]
            assert isinstance(errors[-1], RuntimeError), errors
            assert all(error is None or isinstance(error, RuntimeError) for error in errors), errors
            pool.close()
            pool.join()
        """)


def test_passing_shortage_in_the_zygote(run):
    """Workers find no memory for a while: then they are started."""
    run("""
        import multiprocessing, os, resource, signal, sys, time
        import tasks
        from pebble import ProcessPool
        from support import children, parent

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            with ProcessPool(max_workers=1) as pool:
                (worker,) = {pool.schedule(tasks.process_id).result() for _ in range(2)}
                zygote = parent(worker)
                with open(f"/proc/{zygote}/statm") as statm:
                    size = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                for room in range(0, 8 << 20, 1 << 20):
                    before = resource.prlimit(zygote, resource.RLIMIT_AS, (size + room, -1))
                    for pid in children(zygote):
                        os.kill(pid, signal.SIGKILL)
                    future = pool.schedule(tasks.value, args=(room,))
                    time.sleep(0.05)
                    resource.prlimit(zygote, resource.RLIMIT_AS, before)
                    assert future.result(20) == room
        """)


@both
def test_shortage_of_processes(program, unprivileged, source):
    check(program, source, "processes", **unprivileged)
