"""Row 22: tasks that fork without end, fill their output, or change what their process is."""

import concurrent.futures
import importlib
import os
import select
import signal
import threading
import time

import pytest
from pebble import ProcessExpired, ProcessPool

import fault_tasks
import inventory
import tasks
from support import Flag, children, gone, kill, outcome, readable

PROMPT = 5

CHANGES = [*fault_tasks.CHANGES, inventory.lose_right_to_fork]
ALL = [*CHANGES, *fault_tasks.CLOSINGS]


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
        before = pool.schedule(fault_tasks.state).result()
        assert pool.schedule(change).exception(PROMPT) is None
        assert pool.schedule(fault_tasks.state).result() == before


class Changed:
    """A task for each change, which hangs then, in a worker of its own."""

    def __init__(self, pool, folder, timeout=None):
        self.names = [change.__name__ for change in ALL]
        self.flags = [Flag(folder / name) for name in self.names]
        self.futures = [
            pool.schedule(fault_tasks.change_and_hang, args=(change, flag.path), timeout=timeout)
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
    """Its tasks need not wait for what a new worker imports."""
    imports = {"initializer": importlib.import_module, "initargs": ("inventory",)}
    with ProcessPool(max_workers=len(ALL), termination_grace=0.1, **imports) as pool:
        yield pool
        assert not pool.active or pool.schedule(tasks.value, args=(1,)).result() == 1


def test_timeout_after_a_change(pool_of_all, tmp_path):
    changed = Changed(pool_of_all, tmp_path, timeout=1)
    assert changed.ends() == changed.all_ended(concurrent.futures.TimeoutError)
    assert [name for name, flag in zip(changed.names, changed.flags) if not flag.is_set()] == []


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


def test_the_program_dies_after_a_change(program, started):
    process = program(f"""
        import multiprocessing, sys
        from pebble import ProcessPool
        from fault_tasks import *
        from support import Flag

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            pool = ProcessPool(max_workers=len(ALL))
            for change in ALL:
                future = pool.schedule(change_and_hang, args=(change, {started.path!r}))
            future.result()
        """)
    workers = started.numbers(len(fault_tasks.ALL))
    kill(process.pid)
    end = time.monotonic() + 1
    assert [pid for pid in workers if not gone(pid, max(end - time.monotonic(), 0))] == []


# ---- Closed descriptors ----


def test_a_limit_of_processor_time():
    with ProcessPool(max_workers=2) as pool:
        future = pool.schedule(fault_tasks.use_up_processor_time)
        while not future.done():
            assert pool.schedule(tasks.value, args=(1,)).result() == 1
            time.sleep(0.01)
        assert future.exception().exitcode == -signal.SIGXCPU
        assert pool.schedule(tasks.value, args=(2,)).result() == 2


@pytest.fixture
def pool_of_one():
    """Stopped at the end, for what a task may keep from ending in order."""
    pool = ProcessPool(max_workers=1)
    yield pool
    pool.stop()
    pool.join()


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(
    "put_in_place", [int, fault_tasks.open_null, fault_tasks.open_event]
)
def test_closed_descriptors(pool_of_one, started, release, first, put_in_place):
    """The program hears of the task's end all the same: by the worker's, if need be."""
    ran = threading.Event()
    args = first, put_in_place, started.path, release.path
    future = pool_of_one.schedule(fault_tasks.close_and_wait, args=args)
    future.add_done_callback(lambda _: ran.set())
    assert started.wait()
    release.set()
    assert ran.wait(2)
    error = future.exception()
    assert error is None or isinstance(error, ProcessExpired)
    futures = [pool_of_one.schedule(tasks.value, args=(n,)) for n in range(20)]
    assert [future.result() for future in futures] == list(range(20))


# ---- Fork bombs ----


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
        future = pool.schedule(fault_tasks.bomb, args=(bombed.path, stubborn), timeout=timeout)
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
        future = pool.schedule(fault_tasks.bomb, args=(bombed.path, stubborn))
        bombed.wait()
        kill(future.pid)
        assert isinstance(future.exception(PROMPT), ProcessExpired)
        assert pool.schedule(tasks.value, args=(1,)).result() == 1
        assert bombed.is_over(PROMPT)


@pytest.mark.parametrize("stubborn", [False, True])
def test_fork_bomb_whose_program_is_killed(program, bombed, stubborn):
    process = program(f"""
        import concurrent.futures, multiprocessing, sys
        from pebble import ProcessPool
        from fault_tasks import *
        from support import Flag

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            pool = ProcessPool(max_workers=1)
            pool.schedule(bomb, args=({bombed.path!r}, {stubborn})).result()
        """)
    bombed.wait()
    kill(process.pid)
    assert bombed.is_over(1)


# ---- Standard output ----


@pytest.mark.parametrize("filling", ["fill", "fill_with_text"])
def test_standard_output_is_full(program, started, filling):
    """The program's output is a pipe that nobody reads before the pool has ended."""
    process = program(f"""
        import concurrent.futures, multiprocessing, sys
        from pebble import ProcessPool
        from fault_tasks import *
        from support import Flag

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
