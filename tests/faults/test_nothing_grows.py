"""Row 21: many pools, and many crashes: nothing grows. PEBBLE_CRASHING_TASKS: so many tasks, of which
every tenth ends its worker."""

import os
import resource
import sys

import pytest
from pebble import ProcessExpired, ProcessPool

import tasks
from support import children, descendants, eventually, memory_in_use, start_workers, state

pytestmark = pytest.mark.memory

POOLS = 300
CRASHES = int(os.environ.get("PEBBLE_CRASHING_TASKS", 5000)) // 10
BATCH = 20
KIB = 1024
ENDS = [tasks.crash, os.abort, tasks.die]


def perform(number):
    """Every tenth task ends its worker, in one way or another."""
    return number if number % 10 else ENDS[number // 10 % len(ENDS)]()


class Growth:
    """Of this process and of a zygote, from now on, beyond what is allowed."""

    def __init__(self, zygote=None, **allowed):
        self.zygote, self.allowed, self.before = zygote, allowed, used(zygote)

    def now(self):
        return {what: amount - self.before[what] for what, amount in used(self.zygote).items()}

    def is_none(self):
        return all(more <= self.allowed.get(what, 0) for what, more in self.now().items())


def used(zygote):
    """Of the zygote only what the system knows: the pages that it has."""
    found = {
        "memory": memory_in_use(),
        "objects": sys.getallocatedblocks(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "zombies": len(zombies()),
    }
    if zygote:
        found["zygote_memory"] = resident(zygote)
        found["zygote_descriptors"] = len(os.listdir(f"/proc/{zygote}/fd"))
    return found


def resident(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def zombies():
    return [pid for pid in descendants() if state(pid) == "Z"]


@pytest.mark.timeout(120)
def test_pools():
    def use(count):
        for number in range(count):
            with ProcessPool(max_workers=1) as pool:
                assert pool.schedule(tasks.value, args=(number,)).result() == number

    use(POOLS // 3)
    growth = Growth(memory=8 * KIB, objects=50)
    use(POOLS - POOLS // 3)
    assert eventually(growth.is_none), growth.now()


def settle(pool, folder):
    """Both workers and a spare are there; the zygote that has them."""
    folder.mkdir()
    start_workers(pool, folder)
    (zygote,) = children()
    assert eventually(lambda: len(children(zygote)) == 3)
    return zygote


@pytest.mark.timeout(30 + CRASHES / 10)
def test_crashes(tmp_path):
    def use(crashes):
        futures = [pool.schedule(perform, args=(number,)) for number in range(10 * crashes)]
        for number, future in enumerate(futures):
            if number % 10:
                assert future.result() == number
            else:
                assert isinstance(future.exception(), ProcessExpired)

    with ProcessPool(max_workers=2) as pool:
        for _ in range(5):
            use(BATCH)
        settle(pool, tmp_path / "first")
        zygote = settle(pool, tmp_path / "before")
        growth = Growth(zygote, memory=24 * KIB, objects=200, zygote_memory=64 * KIB)
        for _ in range(CRASHES // BATCH):
            use(BATCH)
        settle(pool, tmp_path / "after")
        assert eventually(growth.is_none), growth.now()
