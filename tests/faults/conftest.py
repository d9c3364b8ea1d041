"""What a fault must not leave behind: descriptors, shared memory, files."""

import os

import pebble
import pytest

from inventory import files, holdings
from support import eventually


def nothing_more():
    """Checks, when it is resumed, that there is nothing more than at its start."""
    held, named = holdings(), files()
    yield
    assert eventually(lambda: holdings() <= held), holdings() - held
    assert eventually(lambda: files() <= named), files() - named


@pytest.fixture(autouse=True)
def search(monkeypatch):
    """Programs of tests find the modules here."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)


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
