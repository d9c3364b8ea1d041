"""Row 21: many pools, and many crashes: nothing grows. PEBBLE_CRASHES: so many crashes, ten times as
many tasks."""

import os
import resource

import pytest
from pebble import ProcessExpired, ProcessPool

import tasks
from support import children, descendants, eventually, state

pytestmark = pytest.mark.memory

POOLS = 300
CRASHES = int(os.environ.get("PEBBLE_CRASHES", 500))
BATCH = 20
ENDS = [tasks.crash, os.abort, tasks.die]


def perform(number):
    """Every tenth task ends its worker, in one way or another."""
    return number if number % 10 else ENDS[number // 10 % len(ENDS)]()


class Growth:
    """Of this process and of others, from now on. descriptors: so many may be more, since then
    workers were just in replacement.
    """

    def __init__(self, *pids, descriptors=0):
        self.pids, self.more = [os.getpid(), *pids], descriptors
        self.before = list(map(used, self.pids))

    def is_none(self):
        now = list(map(used, self.pids))
        return not zombies() and all(
            memory - memory_before < 2_000_000 and descriptors <= descriptors_before + self.more
            for (memory, descriptors), (memory_before, descriptors_before) in zip(now, self.before)
        )


def used(pid):
    """Resident bytes and descriptors of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        pages = int(statm.read().split()[1])
    return pages * resource.getpagesize(), len(os.listdir(f"/proc/{pid}/fd"))


def zombies():
    return [pid for pid in descendants() if state(pid) == "Z"]


@pytest.mark.timeout(120)
def test_pools():
    def use(count):
        for number in range(count):
            with ProcessPool(max_workers=1) as pool:
                assert pool.schedule(tasks.value, args=(number,)).result() == number

    use(POOLS // 3)
    growth = Growth()
    use(POOLS - POOLS // 3)
    assert eventually(growth.is_none), (growth.before, used(os.getpid()))


@pytest.mark.timeout(30 + CRASHES / 10)
def test_crashes():
    def use(crashes):
        futures = [pool.schedule(perform, args=(number,)) for number in range(10 * crashes)]
        for number, future in enumerate(futures):
            if number % 10:
                assert future.result() == number
            else:
                assert isinstance(future.exception(), ProcessExpired)

    with ProcessPool(max_workers=2) as pool:
        use(BATCH)
        (zygote,) = children()
        growth = Growth(zygote, descriptors=12)
        for _ in range(CRASHES // BATCH):
            use(BATCH)
        assert eventually(growth.is_none), (growth.before, used(os.getpid()), used(zygote))
