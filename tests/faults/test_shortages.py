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
    from pebble import ProcessPool, ThreadPool
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
    PATIENCE = 0.1 if sys.argv[1] == "fork" else 0.5  # several times what a worker takes to start


    def set_limit(kind, limit_of):
        '''Of this process and its zygote; what they have already they keep.'''
        for pid in [*children(), os.getpid()]:
            resource.prlimit(pid, kind, (limit_of(pid), HARD[kind]))


    def lift(kind):
        resource.setrlimit(kind, (HARD[kind], HARD[kind]))
        set_limit(kind, lambda pid: HARD[kind])


    def attempt(kind, limit_of, room, patience):
        '''What a task comes to that is scheduled while there is a shortage.'''
        (pool, workers), future, in_time = prepare(), None, False
        set_limit(kind, limit_of)
        try:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            pool = pool or KindOfPool(max_workers=1)
            future = pool.schedule(tasks.value, args=(room,))
            in_time = eventually(future.done, patience)
        except REFUSED:
            pass
        lift(kind)
        error = future.exception(timeout=10) if future else REFUSED[0]()
        assert error is None or isinstance(error, REFUSED), error
        assert error or future.result() == room
        if pool:
            end(pool, error)
        return "refused" if error else "worked" if in_time else "retried"


    def end(pool, error):
        '''It is as good as any, or was given up.'''
        try:
            future = pool.schedule(tasks.value, args=("again",))
        except RuntimeError:
            assert isinstance(error, RuntimeError)
        else:
            assert future.result(10) == "again"
        pool.stop()
        pool.join(10)


    def count():
        return len(children()), len(threads()), len(os.listdir("/proc/self/fd"))


    def count_after_a_pool():
        '''What the first pool leaves for ever, as a child of this program finds out.'''
        reading, writing = os.pipe()
        if os.fork() == 0:
            before = count()
            with KindOfPool(max_workers=1) as pool:
                assert pool.schedule(tasks.value, args=(1,)).result() == 1
            assert eventually(lambda: not children())
            more = [after - before for after, before in zip(count(), before)]
            os.write(writing, bytes(more))
            os._exit(0)
        os.close(writing)
        more = os.read(reading, 3)
        os.close(reading)
        os.wait()
        return tuple(map(sum, zip(count(), more)))
"""

MAKE = """
    def prepare():
        return None, []
"""

REPLACE = """
    def prepare():
        '''A pool, and its worker and spare, which are killed when there is the shortage.'''
        pool = ProcessPool(max_workers=1)
        for _ in range(2):
            pool.schedule(int).result()
        (zygote,) = children()
        assert eventually(lambda: len(children(zygote)) == 2)
        return pool, children(zygote)
"""

END = """
    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        faulthandler.dump_traceback_later(25, exit=True)
        allowed = count_after_a_pool()
        make_limit, rooms = LIMITED["KIND"]
        step = 1 if sys.argv[1] == "fork" else 3  # executed workers take their time
        for room in [*rooms[::step], rooms[-1]]:
            patience = 10 if room == rooms[-1] else PATIENCE
            print(room, attempt(*make_limit(room), room, patience), flush=True)
            assert eventually(lambda: all(n <= m for n, m in zip(count(), allowed))), (count(), allowed)
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
    source = PROGRAM + source + END
    code, output, errors = program(source.replace("KIND", kind), **options).end()
    assert code == 0, output + errors
    outcomes = [line.split()[1] for line in output.splitlines()]
    assert outcomes[0] != "worked" and outcomes[-1] == "worked", output


of_processes = "    KindOfPool = ProcessPool\n"
of_threads = "    KindOfPool = ThreadPool\n"
both = pytest.mark.parametrize(
    "source", [of_processes + MAKE, of_processes + REPLACE], ids=["made", "replaced"]
)


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


@pytest.mark.parametrize(
    "kind, rooms", [("RLIMIT_NOFILE", [0]), ("RLIMIT_AS", range(0, 8 << 20, 2 << 20))]
)
def test_passing_shortage_in_the_zygote(run, kind, rooms, start_method):
    """A worker is not started for a while; then it is."""
    if kind == "RLIMIT_AS" and start_method == "spawn":
        pytest.skip("an executed worker has less memory than its zygote")
    run(f"""
        import multiprocessing, os, resource, signal, sys
        import tasks
        from pebble import ProcessPool
        from support import children, eventually, parent

        def limit(room):
            if "{kind}" == "RLIMIT_NOFILE":
                return 3 + room
            with open(f"/proc/{{zygote}}/statm") as statm:
                return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + room

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            patience = 0.1 if sys.argv[1] == "fork" else 0.5
            with ProcessPool(max_workers=1) as pool:
                in_time = []
                for room in {rooms}:
                    workers = [pool.schedule(tasks.process_id).result() for _ in range(2)]
                    zygote = parent(workers[1])
                    assert eventually(lambda: len(children(zygote)) == 2)
                    _, hard = before = resource.prlimit(zygote, resource.{kind})
                    resource.prlimit(zygote, resource.{kind}, (limit(room), hard))
                    for pid in children(zygote):
                        os.kill(pid, signal.SIGKILL)
                    future = pool.schedule(tasks.value, args=(room,))
                    in_time.append(eventually(future.done, patience))
                    resource.prlimit(zygote, resource.{kind}, before)
                    assert future.result(20) == room
                assert not in_time[0]
                assert pool.schedule(tasks.value, args=(1,)).result() == 1
        """)


def test_lasting_shortage_in_the_zygote(run):
    """It is said, and the pool ends."""
    run("""
        import multiprocessing, os, resource, signal, sys
        import tasks
        from pebble import ProcessPool
        from support import children, gone, parent

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            pool = ProcessPool(max_workers=1)
            zygote = parent(pool.schedule(tasks.process_id).result())
            _, hard = resource.prlimit(zygote, resource.RLIMIT_NOFILE)
            resource.prlimit(zygote, resource.RLIMIT_NOFILE, (3, hard))
            for pid in children(zygote):
                os.kill(pid, signal.SIGKILL)
            error = pool.schedule(tasks.value, args=(1,)).exception(20)
            assert "cannot be started" in str(error), error
            pool.close()
            pool.join(5)
            assert gone(zygote, 5)
        """)


@both
def test_shortage_of_processes(program, unprivileged, source):
    check(program, source, "processes", **unprivileged)


def test_shortage_of_threads(program, unprivileged):
    check(program, of_threads + MAKE, "processes", **unprivileged)


@pytest.mark.parametrize("call", ["schedule(tasks.wait_for_flag, args=[release])", "map(tasks.wait_for_flag, [release])"])
def test_shortage_of_threads_for_telling(program, unprivileged, call):
    """Whoever asks again is told of the end; what was refused is not kept."""
    program_to_end = program(
        f"""
        import multiprocessing, resource, sys, tempfile
        from concurrent.futures import as_completed, wait
        import tasks
        from pebble import ProcessPool
        from support import Flag

        def refused(call):
            try:
                call()
            except OSError:
                return True

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            told = []
            with tempfile.TemporaryDirectory() as folder, ProcessPool(max_workers=1) as pool:
                release = Flag(folder + "/release")
                pool.schedule(int).result()
                future = pool.{call}
                hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
                resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
                for _ in range(2):
                    assert refused(lambda: wait([future]))
                    assert refused(lambda: future.add_done_callback(told.append))
                resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
                future.add_done_callback(told.append)
                assert not wait([future], timeout=0).done
                release.set()
                assert wait([future], timeout=10).done
                assert list(as_completed([future], timeout=10)) == [future]
            assert told == [future]
        """,
        **unprivileged,
    )
    assert program_to_end.end() == (0, "", "")
