"""Row 22: tasks that fork without end, fill their output, or change what their process is."""

import concurrent.futures
import ctypes
import os
import resource
import select
import signal
import threading
import time

import pytest
from pebble import ProcessExpired, ProcessPool

import tasks
from support import Flag, children, gone, kill, outcome, readable

PROMPT = 5
NOBODY = 65534
PR_SET_PDEATHSIG = 1


# ---- Changes of a process ----


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
    folder = f"/tmp/pebble-test-{os.getpid()}"
    os.mkdir(folder)
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


def outlive_parent():
    assert ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0) == 0


def stop_adopting():
    """Orphans among its descendants go past it."""
    pr_set_child_subreaper = 36
    assert ctypes.CDLL(None).prctl(pr_set_child_subreaper, 0) == 0


def hide_from_debuggers():
    pr_set_dumpable = 4
    assert ctypes.CDLL(None).prctl(pr_set_dumpable, 0) == 0


def limit(kind, amount):
    resource.setrlimit(kind, (amount, amount))


def limit_descriptors():
    limit(resource.RLIMIT_NOFILE, 0)


def limit_processes():
    limit(resource.RLIMIT_NPROC, 0)


def limit_files():
    limit(resource.RLIMIT_FSIZE, 0)


def limit_memory():
    """To what it has, and a little."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + (16 << 20))


def limit_stack():
    limit(resource.RLIMIT_STACK, 256 << 10)


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


# ---- After a change ----


@pytest.mark.parametrize("change", CHANGES)
def test_later_tasks_of_the_worker(change):
    with ProcessPool(max_workers=1, termination_grace=0.1) as pool:
        pid = pool.schedule(os.getpid).result()
        assert pool.schedule(change).exception(PROMPT) is None
        ran = threading.Event()
        future = pool.schedule(tasks.add, args=(b"x" * 100_000, b"y"))
        future.add_done_callback(lambda _: ran.set())
        assert ran.wait(PROMPT)
        assert future.result() == b"x" * 100_000 + b"y"
        assert pool.schedule(os.getpid).result(PROMPT) == pid
        error = pool.schedule(tasks.hang, timeout=0.1).exception(PROMPT)
        assert isinstance(error, concurrent.futures.TimeoutError)
        assert gone(pid)
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


@pytest.mark.parametrize("change", CHANGES)
def test_other_workers_are_not_changed(change):
    with ProcessPool(max_workers=1, max_tasks=1) as pool:
        before = pool.schedule(state).result()
        assert pool.schedule(change).exception(PROMPT) is None
        assert pool.schedule(state).result() == before


class Changed:
    """A task for each change, which hangs then, in a worker of its own."""

    def __init__(self, pool, folder, timeout=None):
        self.names = [change.__name__ for change in ALL]
        self.flags = [Flag(folder / name) for name in self.names]
        self.futures = [
            pool.schedule(change_and_hang, args=(change, flag.path), timeout=timeout)
            for change, flag in zip(ALL, self.flags)
        ]

    def wait(self):
        """Until all have changed; their processes."""
        return [flag.number() for flag in self.flags]

    def ends(self):
        """How each has ended, and whether its process has."""
        concurrent.futures.wait(self.futures, PROMPT)
        return {
            name: (future.done() and outcome(future.result)[0], gone(future.pid, 1))
            for name, future in zip(self.names, self.futures)
        }

    def all_ended(self, kind):
        return dict.fromkeys(self.names, (kind, True))


@pytest.fixture
def pool_of_all():
    with ProcessPool(max_workers=len(ALL), termination_grace=0.1) as pool:
        yield pool
        assert not pool.active or pool.schedule(tasks.value, args=(1,)).result() == 1


def test_timeout_after_a_change(pool_of_all, tmp_path):
    changed = Changed(pool_of_all, tmp_path, timeout=1)
    assert changed.ends() == changed.all_ended(concurrent.futures.TimeoutError)


@pytest.mark.parametrize("by_stop", [False, True], ids=["cancel", "stop"])
def test_cancel_after_a_change(pool_of_all, tmp_path, by_stop):
    changed = Changed(pool_of_all, tmp_path)
    changed.wait()
    if by_stop:
        pool_of_all.stop()
    else:
        assert all(future.cancel() for future in changed.futures)
    assert changed.ends() == changed.all_ended(concurrent.futures.CancelledError)


def test_the_zygote_dies_after_a_change(tmp_path):
    before = children()
    with ProcessPool(max_workers=len(ALL)) as pool:
        changed = Changed(pool, tmp_path)
        changed.wait()
        (zygote,) = children() - before
        kill(zygote)
        assert changed.ends() == changed.all_ended(ProcessExpired)
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_the_program_dies_after_a_change(program, tmp_path):
    process = program(f"""
        import multiprocessing, pathlib, sys
        sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
        from test_meddling_tasks import *

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            pool = ProcessPool(max_workers=len(ALL))
            changed = Changed(pool, pathlib.Path({os.fspath(tmp_path)!r}))
            print(*changed.wait(), flush=True)
            signal.pause()
        """)
    workers = [int(pid) for pid in process.line().split()]
    kill(process.pid)
    end = time.monotonic() + 1
    assert [pid for pid in workers if not gone(pid, max(end - time.monotonic(), 0))] == []
    assert len(workers) == len(ALL)


# ---- Closed descriptors ----


def open_null():
    os.open("/dev/null", os.O_RDWR)


def open_event():
    assert ctypes.CDLL(None).eventfd(0, 0) >= 0


def close_and_wait(first, put_in_place, path):
    """Other files may get the numbers of those that were the worker's."""
    os.closerange(first, 4096)
    for _ in range(20):
        put_in_place()
    readable(os.open(path, os.O_RDWR), PROMPT)


@pytest.fixture
def pool_of_one():
    """Stopped at the end, for what a task may keep from ending in order."""
    pool = ProcessPool(max_workers=1)
    yield pool
    pool.stop()
    pool.join()


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(
    "put_in_place",
    [int, open_null, open_event],
)
def test_closed_descriptors(pool_of_one, release, first, put_in_place):
    """The program hears of the task's end all the same: by the worker's, if need be."""
    ran = threading.Event()
    future = pool_of_one.schedule(close_and_wait, args=(first, put_in_place, release.path))
    future.add_done_callback(lambda _: ran.set())
    release.set()
    assert ran.wait(2)
    error = future.exception()
    assert error is None or isinstance(error, ProcessExpired)
    futures = [pool_of_one.schedule(tasks.value, args=(n,)) for n in range(20)]
    assert [future.result() for future in futures] == list(range(20))


# ---- Fork bombs ----


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


class Bomb:
    """A pipe that all processes of a bomb hold open."""

    def __init__(self, path):
        self.path = os.fspath(path)
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._descriptor, 0)

    def __del__(self):
        os.close(self._descriptor)

    def wait(self, forks=100):
        """Until so many processes were forked."""
        while forks > 0:
            assert readable(self._descriptor, PROMPT)
            forks -= len(os.read(self._descriptor, forks))

    def is_over(self, timeout=0):
        return self._poll.poll(timeout * 1000) == [(self._descriptor, select.POLLHUP)]


@pytest.fixture
def bombed(tmp_path):
    return Bomb(tmp_path / "bomb")


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("end", ["timeout", "cancel", "stop"])
def test_fork_bomb(bombed, started, release, end, stubborn):
    with ProcessPool(max_workers=2, termination_grace=0.1) as pool:
        other = pool.schedule(tasks.hold, args=(started, release))
        assert started.wait()
        timeout = 0.5 if end == "timeout" else None
        future = pool.schedule(bomb, args=(bombed.path, stubborn), timeout=timeout)
        bombed.wait(10 if end == "timeout" else 100)
        if end == "cancel":
            assert future.cancel()
        elif end == "stop":
            pool.stop()
        assert concurrent.futures.wait([future], PROMPT).done
        assert bombed.is_over()
        release.set()
        if end == "stop":
            assert future.cancelled()
            return
        assert outcome(future.result)[0] in (
            concurrent.futures.TimeoutError,
            concurrent.futures.CancelledError,
        )
        assert other.result() == other.pid
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


@pytest.mark.parametrize("stubborn", [False, True])
def test_fork_bomb_whose_worker_is_killed(bombed, stubborn):
    with ProcessPool(max_workers=1) as pool:
        future = pool.schedule(bomb, args=(bombed.path, stubborn))
        bombed.wait()
        kill(future.pid)
        assert isinstance(future.exception(PROMPT), ProcessExpired)
        assert pool.schedule(tasks.value, args=(1,)).result() == 1
        assert bombed.is_over(PROMPT)


@pytest.mark.parametrize("stubborn", [False, True])
def test_fork_bomb_whose_program_is_killed(program, bombed, stubborn):
    process = program(f"""
        import multiprocessing, sys
        sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
        from test_meddling_tasks import *

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            pool = ProcessPool(max_workers=1)
            pool.schedule(bomb, args=({bombed.path!r}, {stubborn})).result()
        """)
    bombed.wait()
    kill(process.pid)
    assert bombed.is_over(1)


# ---- Standard output ----


def fill():
    while True:
        os.write(1, b"x" * 1000)


def fill_with_text():
    while True:
        print("x" * 1000)


@pytest.mark.parametrize("filling", ["fill", "fill_with_text"])
def test_standard_output_is_full(program, started, filling):
    """The program's output is a pipe that nobody reads before the pool has ended."""
    process = program(f"""
        import multiprocessing, sys
        sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
        from test_meddling_tasks import *

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            with ProcessPool(max_workers=2) as pool:
                for _ in range(2):
                    future = pool.schedule({filling}, timeout=0.3)
                    while not future.done():
                        assert pool.schedule(tasks.value, args=(1,)).result() == 1
                    assert type(future.exception()) is concurrent.futures.TimeoutError
                assert list(pool.map(tasks.value, range(9)).result()) == list(range(9))
                filling = [pool.schedule({filling}) for _ in range(3)]
                pool.stop()
            assert all(future.cancelled() for future in filling)
            Flag({started.path!r}).set()
        """)
    assert started.wait(20)
    code, output, errors = process.end()
    assert (code, errors) == (0, "")
    assert len(output) > 60_000 and set(output) <= {"x", "\n"}
