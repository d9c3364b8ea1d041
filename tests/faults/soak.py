"""Row 24: every fault at once, for as long as is wanted; prints what came of it.

    python soak.py [--seconds 600] [--start-method fork] [--seed N]

Threads share one pool. Each performs one action after the other, picked at random, and knows what must
come of it; beside them one kills workers and the zygote, another makes pools of its own and closes, stops
or drops them. A task of an action may end as expired because of those kills, so often as they can explain
at most. Anything else that is not what the action says is wrong; what does not end within a minute is lost.

Exits with 0 if nothing was lost, wrong, unexplained, left behind, or has grown.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import gc
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

from pebble import ProcessExpired, ProcessPool  # noqa: E402

import tasks  # noqa: E402
from support import descendants, eventually, helper_of_multiprocessing, parent  # noqa: E402

WORKERS = 4
THREADS = 4
LOST_AFTER = 60
KILL_INTERVAL = 0.25
ZYGOTE_SHARE = 0.02
"""Of the kills."""

WARM_UP = 0.25
"""The part of the time after which memory must not grow any more."""

GROWTH_ALLOWED = 256 << 10
OBJECTS_ALLOWED = 1000
"""Bytes in use, and objects, for what Python itself keeps at hand."""


# ---- What tasks do ----


class Nobody:
    """Where a task says that it has started."""

    def set(self, number=1):
        pass


def overwrite_channel():
    """Random bytes over all that the worker may write of its channel."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split()
            if len(fields) > 5 and "pebble" in fields[5] and fields[1].startswith("rw"):
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                noise = os.urandom(end - begin)
                ctypes.memmove(begin, noise, len(noise))


def take_all_memory():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return len(bytes(2 << 30))


def start_processes(count):
    for n in range(count):
        subprocess.Popen(["sleep", "1000"], start_new_session=bool(n % 2))
    tasks.hang()


def reversed_bytes(data):
    return data[::-1]


# ---- What must come of them ----


def gives(result):
    return lambda error, value: error is None and value == result


def raises(kind):
    return lambda error, value: isinstance(error, kind)


def expires(code):
    return lambda error, value: (
        isinstance(error, ProcessExpired) and error.exitcode == code
    )


def anything(error, value):
    return True


timed_out = raises(concurrent.futures.TimeoutError)
cancelled = raises(concurrent.futures.CancelledError)

SHORT = 0.05

SINGLE_CALLS = [  # name, timeout, what must come of it, function, arguments
    ("exit", None, expires(3), tasks.die, 3),
    ("SIGKILL", None, expires(-9), tasks.kill_itself, signal.SIGKILL),
    ("crash", None, expires(-11), tasks.crash),
    ("abort", None, expires(-6), os.abort),
    ("timeout", SHORT, timed_out, tasks.hang),
    ("timeout, signals ignored", SHORT, timed_out, tasks.ignore_signals, Nobody()),
    ("timeout, lock held", SHORT, timed_out, tasks.hold_interpreter_lock, Nobody()),
    ("timeout, stopped", SHORT, timed_out, tasks.stop_itself, Nobody()),
    ("timeout, processes left", SHORT, timed_out, start_processes, 3),
    ("exception", None, raises(ValueError), tasks.fail),
    ("argument not loaded", None, raises(LookupError), tasks.value, tasks.LoadFails()),
    ("result not dumped", None, raises(ValueError), tasks.make, tasks.DumpFails),
    ("result not loaded", None, raises(LookupError), tasks.make, tasks.LoadFails),
    ("out of memory", None, raises(MemoryError), take_all_memory),
    ("channel overwritten", None, anything, overwrite_channel),
]


class Soak:
    def __init__(self, pool, seed):
        self.pool, self.seed = pool, seed
        self.lock = threading.Lock()
        self.actions = collections.Counter()
        self.tasks = self.lost = self.expired = self.explained = 0
        self.wrong = []

    def run(self, seconds):
        self.goes_on = True
        jobs = [lambda n=n: self.perform(random.Random(self.seed + n)) for n in range(THREADS)]
        jobs += [self.kill_processes, self.make_pools]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.goes_on = False
        for thread in threads:
            thread.join()
        self.seed += len(threads)

    def count(self, action, tasks=1):
        with self.lock:
            self.actions[action] += 1
            self.tasks += tasks

    def judge(self, action, future, expected):
        try:
            value, error = future.result(LOST_AFTER), None
        except BaseException as caught:
            value, error = None, caught
        with self.lock:
            if not future.done() and not future.cancelled():
                self.lost += 1
            elif expected(error, value):
                pass
            elif isinstance(error, ProcessExpired):
                self.expired += 1
            else:
                self.wrong.append(f"{action}: {error!r}")

    # ---- Actions ----

    def perform(self, chance):
        actions = [self.burst, self.mapping, self.cancel, self.cancel_running, self.large]
        actions += [self.single_call] * len(actions)
        while self.goes_on:
            chance.choice(actions)(chance)

    def burst(self, chance):
        numbers = [chance.randrange(10**6) for _ in range(chance.randrange(1, 500))]
        self.count("burst of calls", len(numbers))
        futures = [self.pool.schedule(tasks.add, args=(n, 1)) for n in numbers]
        for number, future in zip(numbers, futures):
            self.judge("burst of calls", future, gives(number + 1))

    def mapping(self, chance):
        size, count = chance.randrange(1, 50), chance.randrange(1000)
        self.count("map", count)
        results = self.pool.map(tasks.value, range(count), chunksize=size).result()
        expired_chunks = set()
        for number in range(count):
            try:
                assert next(results) == number
            except ProcessExpired:
                expired_chunks.add(number // size)
            except BaseException as error:
                self.wrong.append(f"map: {error!r}")
        with self.lock:
            self.expired += len(expired_chunks)

    def cancel(self, chance):
        futures = [self.pool.schedule(tasks.sleep, args=(0.001,)) for _ in range(50)]
        self.count("cancel", len(futures))
        chance.shuffle(futures)
        for future in futures[:25]:
            self.judge("cancel", future, cancelled if future.cancel() else gives(0.001))
        for future in futures[25:]:
            self.judge("cancel", future, gives(0.001))

    def cancel_running(self, chance):
        self.count("cancel while it runs")
        future = self.pool.schedule(tasks.hang)
        while not future.running() and not future.done():
            time.sleep(0.001)
        future.cancel()
        self.judge("cancel while it runs", future, cancelled)

    def large(self, chance):
        self.count("large data")
        data = os.urandom(chance.randrange(1 << 16, 8 << 20))
        future = self.pool.schedule(reversed_bytes, args=(data,))
        self.judge("large data", future, gives(data[::-1]))

    def single_call(self, chance):
        action, timeout, expected, function, *args = chance.choice(SINGLE_CALLS)
        self.count(action)
        future = self.pool.schedule(function, args=args, timeout=timeout)
        self.judge(action, future, expected)

    # ---- Beside them ----

    def kill_processes(self):
        chance = random.Random(self.seed - 1)
        while self.goes_on:
            time.sleep(KILL_INTERVAL)
            pids = self.pool.pids
            if not pids:
                continue
            pid, name, costs = chance.choice(pids), "worker killed", 1
            if chance.random() < ZYGOTE_SHARE:
                pid, name, costs = parent(pid), "zygote killed", WORKERS
            if pid and pid != os.getpid():
                with self.lock:
                    self.explained += costs
                self.count(name, 0)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def make_pools(self):
        chance = random.Random(self.seed - 2)
        while self.goes_on:
            end = chance.choice(["close", "stop", "drop"])
            self.count(f"pool made, {end}", 20)
            pool = ProcessPool(max_workers=2, max_tasks=chance.randrange(3))
            futures = [pool.schedule(tasks.value, args=(n,)) for n in range(20)]
            if end == "drop":
                pool = None
            else:
                getattr(pool, end)()
            for n, future in enumerate(futures):
                self.judge("pool made", future, anything if end == "stop" else gives(n))
            if pool:
                pool.join()


# ---- What must be as before ----


def memory_in_use():
    """Bytes allocated, as the C library counts them: what it holds beyond that is its own to and fro."""
    gc.collect()
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as report:
        stream = ctypes.c_void_p(library.fopen(report.name.encode(), b"w"))
        library.malloc_info(0, stream)
        library.fclose(stream)
        root = xml.etree.ElementTree.parse(report.name).getroot()
    total = {each.get("type"): int(each.get("size")) for each in root.findall("total")}
    return int(root.find("system[@type='current']").get("size")) + total["mmap"] - total["fast"] - total["rest"]


def belongings():
    descriptors = os.listdir("/proc/self/fd")
    return {
        "processes": sum(not helper_of_multiprocessing(pid) for pid in descendants()),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(descriptors),
    }


def soak(seconds, seed):
    """Prints the figures; True if all is well."""
    with ProcessPool(max_workers=1) as pool:  # what the first pool of a program makes for ever
        pool.schedule(int).add_done_callback(lambda _: None)
    before = belongings()
    with ProcessPool(max_workers=WORKERS, termination_grace=0.2) as pool:
        run = Soak(pool, seed)
        run.run(seconds * WARM_UP)
        memory, objects = memory_in_use(), sys.getallocatedblocks()
        run.run(seconds * (1 - WARM_UP))
        growth = memory_in_use() - memory
        more_objects = sys.getallocatedblocks() - objects
    pool = run.pool = None
    as_before = eventually(lambda: belongings() == before, 10)
    after = belongings()
    for action, count in sorted(run.actions.items()):
        print(f"{count:9}  {action}")
    print(f"{run.tasks:9}  tasks in {seconds:g} s")
    print(f"{run.expired:9}  expired by the kills, which explain {run.explained}")
    print(f"{run.lost:9}  lost")
    print(f"{len(run.wrong):9}  wrong {run.wrong[:5] or ''}")
    for name in before:
        print(f"{after[name] - before[name]:9}  {name} left behind")
    print(f"{growth / 1024:9.0f}  KiB in use more than after the first quarter")
    print(f"{more_objects:9}  Python objects more")
    return (
        as_before
        and not run.lost
        and not run.wrong
        and run.expired <= run.explained
        and growth <= GROWTH_ALLOWED
        and more_objects <= OBJECTS_ALLOWED
    )


def main():
    parser = argparse.ArgumentParser(description="every fault at once")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--start-method", default="fork")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    multiprocessing.set_start_method(options.start_method)
    print(f"seed {options.seed}, start method {options.start_method}", flush=True)
    sys.exit(0 if soak(options.seconds, options.seed) else 1)


if __name__ == "__main__":
    main()
