"""What a fault must not leave behind: descriptors, shared memory, files."""

import collections
import os
import tempfile

import pebble
import pytest

from support import eventually


def holdings(pid="self"):
    """How many descriptors a process has of each kind that has no path, and mappings of memfds."""
    found = collections.Counter()
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{number}")
        except FileNotFoundError:
            continue
        if not target.startswith(("/", "pipe:")) or target.startswith("/memfd:pebble"):
            found[target.split(":[")[0] if target.startswith("socket:") else target] += 1
    with open(f"/proc/{pid}/maps") as maps:
        found["mapping"] = sum("/memfd:pebble" in line for line in maps)
    return found


def files():
    return {
        os.path.join(folder, name)
        for folder in (tempfile.gettempdir(), "/dev/shm")
        for name in os.listdir(folder)
        if "pebble" in name
    }


def nothing_more():
    """Checks, when it is resumed, that there is nothing more than at its start."""
    held, named = holdings(), files()
    yield
    assert eventually(lambda: holdings() <= held), holdings() - held
    assert files() <= named, files() - named


@pytest.fixture(scope="session", autouse=True)
def supervisor():
    """It stays, with its descriptors, from the first pool on."""
    with pebble.ThreadPool(max_workers=1), pebble.ProcessPool(max_workers=1) as pool:
        pool.schedule(int).result()


@pytest.fixture(scope="module", autouse=True)
def module_holds_nothing_more():
    yield from nothing_more()


@pytest.fixture(autouse=True)
def test_holds_nothing_more(request):
    """A pool that tests share may have a worker more or fewer: its module is checked instead."""
    if {"process_pool", "any_pool"} & set(request.fixturenames):
        yield
    else:
        yield from nothing_more()
