"""Row 24: every fault at once, for as long as is wanted; prints what came of it.

    python soak.py [--seconds 600] [--start-method fork] [--seed N]

Threads share one pool. Each performs one action after the other, picked at random, and knows what must
come of it. Beside them one kills workers and the zygote, and one makes pools of its own and closes, stops
or drops them. A task may end as expired because of those kills, but only if it was its own process that was
killed; or because the task behind it overwrote the channel of their worker, with a result in it that nobody
had read yet. Anything else that is not what the action says is wrong; what does not end within a minute is
lost.

What would change the world for the other threads is left to the tests of its own row: shortages in the
program (19), the clock (16), SIGCHLD ignored and all children waited for (17), Ctrl-C (10).

Exits with 0 if nothing was lost, wrong, left behind, or has grown. Growth is asked for from a minute on:
before that it is that of Python and of the C library getting to know what there is to do.
"""

import argparse
import contextlib
import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(FOLDER, "..", "python"))

from pebble import ProcessPool  # noqa: E402

import inventory  # noqa: E402
from soak_actions import LOST_AFTER, Actions  # noqa: E402
from support import (  # noqa: E402
    command_line,
    descendants,
    eventually,
    gone,
    go_on_below_a_reaper,
    helper_of_multiprocessing,
    kill,
    memory_in_use,
    orphans,
    parent,
    start_time,
    state,
    threads,
)

WORKERS = 4
THREADS = 4
WARM_UP = 0.25
"""The part of the time after which memory must not grow any more."""

GROWTH_FROM = 60
GROWTH_ALLOWED = 256 << 10
OBJECTS_ALLOWED = 1000
"""Seconds; bytes in use, and objects, for what Python itself keeps at hand."""


def repeat(action, chance, actions, stop):
    try:
        while not stop.is_set():
            action(chance)
    except BaseException:
        actions.is_wrong(traceback.format_exc())


def perform(actions, seconds, seed):
    """With all threads, for so long."""
    stop = threading.Event()
    steps = [actions.perform] * THREADS + [actions.kill_process, actions.make_pool]
    jobs = [
        threading.Thread(target=repeat, args=(step, random.Random(seed + n), actions, stop))
        for n, step in enumerate(steps)
    ]
    for job in jobs:
        job.daemon = True  # one that is lost does not hold up the end
        job.start()
    time.sleep(seconds)
    stop.set()
    end = time.monotonic() + 2 * LOST_AFTER
    for job in jobs:
        job.join(max(0, end - time.monotonic()))
    if any(job.is_alive() for job in jobs):
        actions.is_lost()
        faulthandler.dump_traceback()


# ---- What must be as before ----


def processes():
    return {pid for pid in descendants() if not helper_of_multiprocessing(pid)} | orphans()


def describe(pid, kills):
    """What tells how it came to be left: its name, when it started, the last zygote killed before that."""
    started = start_time(pid) or 0
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    before = [started - at for at in kills.zygotes if at < started + 3]
    when = f", {before[-1]:.2f} s after a zygote had been killed" if before else ""
    names = ", ".join(sorted(set(threads(pid).values())))
    return (
        f"{pid} ({state(pid)}) of {parent(pid)}: {names}: {command_line(pid)}: "
        f"started {age:.2f} s ago{when}"
    )


def belongings():
    return {
        "processes": len(processes()),
        "threads": len(threads()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "channels": inventory.holdings()["channel"],
        "files": len(inventory.files()),
    }


def left_behind(before):
    return {name: max(0, count - before[name]) for name, count in belongings().items()}


def end_what_was_let_go(run):
    """Their children come here in their turn."""
    seen = set()
    while let_go := run.kills.explain_orphans(orphans()) - seen:
        for pid in sorted(let_go):
            run.count("process let go with the zygote", 0)
            print("let go:", describe(pid, run.kills))
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
        assert all(gone(pid, 10) for pid in let_go)
        seen |= let_go


def print_figures(run, seconds, left, growth, more_objects):
    for action, count in sorted(run.actions.items()):
        print(f"{count:9}  {action}")
    print(f"{run.tasks:9}  tasks in {seconds:g} s")
    print(f"{run.expired:9}  expired, their processes being killed")
    print(f"{run.lost:9}  lost")
    print(f"{len(run.wrong):9}  wrong {'; '.join(run.wrong[:5])}")
    for name, count in left.items():
        print(f"{count:9}  {name} left behind")
    print(f"{growth / 1024:9.0f}  KiB in use more than after the first quarter")
    print(f"{more_objects:9}  Python objects more", flush=True)


def soak(seconds, seed):
    """Prints the figures; True if all is well."""
    with ProcessPool(max_workers=1) as pool:  # what the first pool of a program makes for ever
        pool.schedule(int).add_done_callback(lambda _: None)
    before = belongings()
    with tempfile.TemporaryDirectory() as folder:
        pool = ProcessPool(max_workers=WORKERS, termination_grace=0.2)
        run = Actions(pool, folder)
        perform(run, seconds * WARM_UP, seed)
        memory, objects = memory_in_use(), sys.getallocatedblocks()
        perform(run, seconds * (1 - WARM_UP), seed + THREADS + 2)
        growth = memory_in_use() - memory
        more_objects = sys.getallocatedblocks() - objects
        pool.close()
        run.join(pool)
    pool = run.pool = None
    eventually(lambda: not any(left_behind(before).values()), 10)
    end_what_was_let_go(run)
    left = left_behind(before)
    if left["processes"]:
        for pid in sorted(processes()):
            print("left:", describe(pid, run.kills))
    print_figures(run, seconds, left, growth, more_objects)
    has_grown = growth > GROWTH_ALLOWED or more_objects > OBJECTS_ALLOWED
    return (
        not any(left.values())
        and not run.lost
        and not run.wrong
        and not (has_grown and seconds >= GROWTH_FROM)
    )


def main():
    parser = argparse.ArgumentParser(description="every fault at once")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--start-method", default="fork")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    go_on_below_a_reaper()
    multiprocessing.set_start_method(options.start_method)
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # forks beside threads
    logging.getLogger("concurrent.futures").disabled = True  # callbacks that raise
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    print(f"seed {options.seed}, start method {options.start_method}", flush=True)
    os._exit(0 if soak(options.seconds, options.seed) else 1)


if __name__ == "__main__":
    main()
