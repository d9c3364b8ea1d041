"""The package as it is installed."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest

import pebble
from pebble import _engine

NAMES = [
    "MapFuture",
    "ProcessExpired",
    "ProcessFuture",
    "ProcessMapFuture",
    "ProcessPool",
    "RemoteTraceback",
    "ThreadPool",
    "concurrent",
    "sighandler",
    "synchronized",
    "waitforqueues",
    "waitforthreads",
]


def test_names():
    assert sorted(pebble.__all__) == NAMES
    assert all(getattr(pebble, name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_documented(name):
    assert getattr(pebble, name).__doc__


@pytest.mark.parametrize("kind", [pebble.ProcessPool, pebble.ThreadPool])
@pytest.mark.parametrize("method", ["schedule", "map", "close", "stop", "join", "active"])
def test_methods_are_documented(kind, method):
    assert getattr(kind, method).__doc__


def test_version():
    assert pebble.__version__ == importlib.metadata.version("pebble")


def test_the_engine_is_hidden():
    """A libpebble in the same process has its own names."""
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", _engine.__file__],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert [line.split()[-1] for line in symbols] == ["PyInit__engine"]


def test_one_interpreter_only():
    source = """
import pebble, sys
import _xxsubinterpreters as interpreters
interpreter = interpreters.create()
try:
    interpreters.run_string(interpreter, "import pebble")
except Exception as error:
    print("refused")
"""
    if not (3, 9) <= sys.version_info < (3, 13):
        pytest.skip("the module has another name")
    run = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=20
    )
    assert run.stdout == "refused\n"


def test_imported_anew():
    source = """
import sys, pebble
for name in [name for name in sys.modules if name.startswith("pebble")]:
    del sys.modules[name]
import pebble
if __name__ == "__main__":
    with pebble.ThreadPool(1) as pool:
        print(pool.schedule(int).result())
"""
    run = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=20
    )
    assert (run.stdout, run.stderr) == ("0\n", "")


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_is_beside_the_package_does_not_replace_the_standard_library(
    run, tmp_path, method
):
    folder = tmp_path / "packages"
    shutil.copytree(os.path.dirname(pebble.__file__), folder / "pebble")
    (folder / "typing.py").write_text("raise ImportError('not the typing that was meant')")
    source = f"""
        import sys, typing
        sys.path.insert(0, {os.fspath(folder)!r})
        import pebble
        del sys.path[0]

        if __name__ == "__main__":
            with pebble.ProcessPool(max_workers=1, context={method!r}) as pool:
                where = "__import__('sys').modules['pebble'].__file__"
                print(pool.schedule(eval, args=(where,)).result())
    """
    assert run(source).strip() == os.fspath(folder / "pebble" / "__init__.py")
