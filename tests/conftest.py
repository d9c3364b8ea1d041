"""What the Python tests in python/ and faults/ share."""

import multiprocessing
import os
import subprocess
import sys
import textwrap

import hypothesis
import pebble
import pytest

PYTHON_TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python")
sys.path.insert(0, PYTHON_TESTS)

from support import (  # noqa: E402
    Flag,
    children,
    command_line,
    eventually,
    go_on_below_a_reaper,
    helper_of_multiprocessing,
    orphans,
    start_workers,
    threads,
)

hypothesis.settings.register_profile(
    "pools",
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("pools")


def pytest_addoption(parser):
    parser.addoption(
        "--start-method", choices=("fork", "forkserver", "spawn"), default="fork"
    )


def pytest_configure(config):
    go_on_below_a_reaper()
    multiprocessing.set_start_method(config.getoption("--start-method"))
    # Spawned workers import the program's main module: pytest itself would take long.
    main = sys.modules["__main__"]
    main.__spec__ = None
    vars(main).pop("__file__", None)


@pytest.fixture(scope="session")
def start_method(pytestconfig):
    return pytestconfig.getoption("--start-method")


@pytest.fixture
def only_fork(start_method):
    if start_method != "fork":
        pytest.skip("inherits what cannot be pickled")


# ---- Pools that the tests of a module share ----


@pytest.fixture(scope="module")
def process_pool(tmp_path_factory):
    with pebble.ProcessPool(max_workers=2) as pool:
        start_workers(pool, tmp_path_factory.mktemp("flags"))
        yield pool


@pytest.fixture(scope="module")
def thread_pool(tmp_path_factory):
    with pebble.ThreadPool(max_workers=2) as pool:
        start_workers(pool, tmp_path_factory.mktemp("flags"))
        yield pool


@pytest.fixture(scope="module", params=["process", "thread"])
def any_pool(request):
    return request.getfixturevalue(f"{request.param}_pool")


@pytest.fixture(params=["ProcessPool", "ThreadPool"])
def any_kind(request):
    """The class of pool, for tests that make their own."""
    return getattr(pebble, request.param)


# ---- Events ----


@pytest.fixture
def make_flag(tmp_path):
    return lambda name: Flag(tmp_path / name)


@pytest.fixture
def started(make_flag):
    return make_flag("started")


@pytest.fixture
def release(make_flag):
    """Set at the end in any case, so that a failed test leaves nobody waiting."""
    flag = make_flag("release")
    yield flag
    flag.set()


# ---- Programs of a test's own ----


class Program:
    """A script as a process of its own: its standard output is what it tells the test."""

    def __init__(self, path, *arguments, **options):
        self.errors = path.with_suffix(".errors")
        search = [PYTHON_TESTS, os.environ.get("PYTHONPATH")]
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))},
                **options,
            )
        self.pid = self.process.pid

    def line(self):
        return self.process.stdout.readline().strip()

    def end(self):
        """Waits for its end; its exit code, and what it wrote and was not read yet."""
        output = self.process.stdout.read()
        return self.process.wait(), output, self.errors.read_text()


@pytest.fixture
def program(tmp_path, start_method):
    """Starts a script, which finds the start method in sys.argv[1]."""
    programs = []

    def start(source, **options):
        path = tmp_path / f"program{len(programs)}.py"
        path.write_text(textwrap.dedent(source))
        programs.append(Program(path, start_method, **options))
        return programs[-1]

    yield start
    for each in programs:
        each.process.kill()
        each.process.wait()
        each.process.stdout.close()


@pytest.fixture
def run(program):
    """Runs a script that must succeed in silence; what it printed."""

    def run_program(source):
        code, output, errors = program(source).end()
        assert (code, errors) == (0, "")
        return output

    return run_program


# ---- Nothing is left behind ----


def count_children():
    return sum(not helper_of_multiprocessing(pid) for pid in children())


def foreign_threads():
    return {thread for thread, name in threads().items() if name != "pebble-super"}


def names(pids):
    return {pid: threads(pid).get(pid, "") + ": " + command_line(pid) for pid in pids}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    child_count, orphans_before = count_children(), orphans()
    threads_before = foreign_threads()
    yield
    assert eventually(lambda: count_children() <= child_count), names(children())
    assert eventually(lambda: orphans() <= orphans_before), names(orphans() - orphans_before)
    assert eventually(lambda: foreign_threads() <= threads_before), threads()
