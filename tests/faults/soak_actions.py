"""What the threads of the soak do, and how they know that it is right."""

import collections
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

from pebble import ProcessExpired, ProcessPool

import fault_tasks
import tasks
from fault_tasks import (
    as_a_daemon,
    by_double_fork,
    in_a_session,
    start_and_hang,
)
from soak_tasks import (
    MIB,
    SINGLE_CALLS,
    cancelled,
    either,
    gives,
    overwrite_channel,
    raises,
    reversed_bytes,
    timed_out,
)
from support import (
    Flag,
    children,
    eventually,
    gone,
    kill,
    parent,
    start_time,
    state,
    threads,
)

LOST_AFTER = 60
BY_SPAWN = {"close_fds": False}
"""Else subprocess waits for the end of a pipe, of which a zygote that is forked meanwhile has a copy."""

KILL_INTERVAL = {"fork": 0.25, "forkserver": 1, "spawn": 1}
ZYGOTE_SHARE = 0.02
"""Of the kills."""


def stop_by_callback(pool, futures):
    ran = threading.Event()
    futures[3].add_done_callback(lambda _: (pool.stop(), ran.set()))
    ran.wait(LOST_AFTER)


ENDS_OF_POOLS = {
    "closed": lambda pool, futures: pool.close(),
    "stopped": lambda pool, futures: pool.stop(),
    "stopped twice": lambda pool, futures: (pool.stop(), pool.stop()),
    "stopped by a callback": stop_by_callback,
    "dropped": lambda pool, futures: None,
}

PROGRAM = """
import multiprocessing, sys
import tasks
from pebble import ProcessPool
from support import Flag

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    pool = ProcessPool(max_workers=2)
    flag = Flag(sys.argv[2])
    futures = [pool.schedule(tasks.hang, args=(flag,)) for _ in range(2)]
    futures[0].result()
"""


class Kills:
    """Of a pool's processes. Each explains the end of one task at most, and of none a minute later:
    the process's number may be another's by then.
    """

    def __init__(self):
        self.lock, self.killed = threading.Lock(), {}
        self.zygotes = []
        """When they were killed, on the clock of start_time()."""

        self.let_go = set()
        """Names of workers of which processes were let go."""

    def note(self, pids):
        now = time.monotonic()
        with self.lock:
            self.killed = {pid: at for pid, at in self.killed.items() if now - at < LOST_AFTER}
            self.killed.update(dict.fromkeys(pids, now))

    def explain(self, error):
        with self.lock:
            return time.monotonic() - self.killed.pop(error.pid, -LOST_AFTER) < LOST_AFTER

    def kill_worker(self, pid):
        self.note([pid])
        kill(pid)

    def kill_zygote(self, pid):
        """It is stopped first, so that it starts no worker that is not known here."""
        kill(pid, signal.SIGSTOP)
        eventually(lambda: state(pid) in ("T", "Z", None))
        self.note(children(pid))
        self.zygotes.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        kill(pid)

    def explain_orphans(self, pids):
        """Those that a worker had left, which had ended, when the zygote was killed (docs/reliability.md): so
        they had started not long before that, or, if such forked, not long after; and what those forked
        later, which has the name of that worker."""
        let_go = {
            pid
            for pid in pids
            if any(-3 < (start_time(pid) or 0) - at < 1 for at in self.zygotes)
        }
        self.let_go |= {n for pid in let_go for n in threads(pid).values() if "pebble-" in n}
        return {pid for pid in pids if pid in let_go or self.let_go & set(threads(pid).values())}


class Actions:
    """Upon a pool, and what came of them."""

    def __init__(self, pool, folder):
        self.pool = pool
        self.overwritten, self.blamed = os.path.join(folder, "overwritten"), set()
        open(self.overwritten, "w").close()
        self.lock, self.kills = threading.Lock(), Kills()
        self.actions = collections.Counter()
        self.tasks = self.lost = self.expired = 0
        self.wrong = []

    def is_lost(self):
        with self.lock:
            self.lost += 1

    def is_wrong(self, what):
        with self.lock:
            self.wrong.append(what)

    def count(self, action, tasks=1):
        with self.lock:
            self.actions[action] += 1
            self.tasks += tasks

    def judge(self, action, future, expected):
        """The error with which the future has ended."""
        try:
            value, error = future.result(LOST_AFTER), None
        except BaseException as caught:
            value, error = None, caught
        if not future.done():
            self.is_lost()
        elif not expected(error, value):
            self.judge_unexpected(action, error)
        return error

    def judge_unexpected(self, action, error):
        if isinstance(error, ProcessExpired) and self.kills.explain(error):
            with self.lock:
                self.expired += 1
        elif isinstance(error, ProcessExpired) and self.is_overwritten(error.pid):
            self.count("expired in place of the task behind it, which overwrote its result", 0)
        else:
            self.is_wrong(f"{action}: {error!r}")

    def is_overwritten(self, pid):
        """The channel of that worker, once. What of its results nobody had read is lost with it."""
        with self.lock:
            found = pid not in self.blamed and pid in tasks.calls(self.overwritten)
            self.blamed.add(pid)
            return found

    # ---- Actions ----

    def perform(self, chance):
        often = [self.burst, self.mapping, self.cancel, self.cancel_running, self.large]
        often += [self.single_call] * len(often)
        seldom = [self.change, self.leave_process, self.call_back, self.use_children]
        seldom += [self.overwrite]
        actions = 5 * often + 3 * seldom + [self.kill_program]
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
        killed = {}  # all elements of a chunk end with its process
        for number in range(count):
            try:
                value = next(results)
                if value != number:
                    self.is_wrong(f"map: {value!r} instead of {number}")
            except ProcessExpired as error:
                killed.setdefault(number // size, error)
            except BaseException as error:
                self.is_wrong(f"map: {error!r}")
        for error in killed.values():
            self.judge_unexpected("map", error)

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
        data = os.urandom(chance.randrange(1 << 16, 8 * MIB))
        future = self.pool.schedule(reversed_bytes, args=(data,))
        self.judge("large data", future, gives(data[::-1]))

    def single_call(self, chance):
        action, timeout, expected, function, *args = chance.choice(SINGLE_CALLS)
        self.count(action)
        future = self.pool.schedule(function, args=args, timeout=timeout)
        self.judge(action, future, expected)

    def overwrite(self, chance):
        self.count("channel overwritten")
        future = self.pool.schedule(overwrite_channel, args=(self.overwritten,))
        self.judge("channel overwritten", future, either(gives(None), raises(ProcessExpired)))

    def end_when_set(self, action, flag, chance, function, *args):
        """By a timeout, or by a cancel once the task has set the flag. The error with which it ends."""
        self.count(action)
        by_timeout = chance.random() < 0.5
        future = self.pool.schedule(function, args=args, timeout=0.3 if by_timeout else None)
        if not by_timeout:
            eventually(lambda: flag.is_set() or future.done(), LOST_AFTER)
            future.cancel()
        return self.judge(action, future, timed_out if by_timeout else cancelled)

    def change(self, chance):
        """Of what the worker's process is."""
        with tempfile.TemporaryDirectory() as folder:
            flag = Flag(os.path.join(folder, "changed"))
            change = chance.choice(fault_tasks.ALL)
            action = f"changed, {change.__name__}"
            self.end_when_set(action, flag, chance, fault_tasks.change_and_hang, change, flag.path)

    def leave_process(self, chance):
        """It has ended with the task; soon after, if that ends because it was killed."""
        way = chance.choice([by_double_fork, as_a_daemon, in_a_session])
        action = f"process left, {way.__name__}"
        zygotes = len(self.kills.zygotes)
        with tempfile.TemporaryDirectory() as folder:
            child, started = (Flag(os.path.join(folder, name)) for name in ("child", "started"))
            args = start_and_hang, way, child, started
            error = self.end_when_set(action, started, chance, *args)
            pids = child.numbers() if child.is_set() else []
        zygote_killed = len(self.kills.zygotes) > zygotes
        late = zygote_killed or isinstance(error, ProcessExpired)
        if all(gone(pid, 5 if late else 0) for pid in pids):
            return
        kill(*pids)
        if zygote_killed:  # its worker had ended, and it was in its grace
            self.count("process let go with the zygote", 0)
        else:
            self.is_wrong(f"{action}: it stays")

    def call_back(self, chance):
        """Done-callbacks that raise and that schedule."""
        self.count("callbacks", 2)
        others = queue.SimpleQueue()
        future = self.pool.schedule(tasks.value, args=(1,))
        future.add_done_callback(lambda _: tasks.fail())
        future.add_done_callback(lambda _: others.put(self.pool.schedule(tasks.value, args=(2,))))
        self.judge("callbacks", future, gives(1))
        self.judge("callbacks", others.get(timeout=LOST_AFTER), gives(2))

    def use_children(self, chance):
        """Of the program, beside the pools."""
        self.count("children of the program", 0)
        code = chance.randrange(100)
        child = os.fork()
        if child == 0:
            os._exit(code)
        ends = [
            subprocess.run(["/bin/sh", "-c", f"exit {code}"], **BY_SPAWN).returncode,
            os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
        ]
        if ends != [code, code]:
            self.is_wrong(f"children of the program: {ends}")

    def kill_program(self, chance):
        """Its busy workers are gone within a second."""
        self.count("program killed", 2)
        with tempfile.TemporaryDirectory() as folder:
            flag = Flag(os.path.join(folder, "started"))
            command = [sys.executable, "-c", PROGRAM, multiprocessing.get_start_method(), flag.path]
            path = {"PYTHONPATH": os.path.dirname(tasks.__file__)}
            with subprocess.Popen(command, env=os.environ | path, **BY_SPAWN) as program:
                try:
                    pids = flag.numbers(2)
                finally:
                    program.kill()
            end = time.monotonic() + 1
            if not all(gone(pid, max(0, end - time.monotonic())) for pid in pids):
                self.is_wrong("program killed: workers left after a second")

    # ---- Beside them ----

    def kill_process(self, chance):
        time.sleep(KILL_INTERVAL[multiprocessing.get_start_method()])
        pids = self.pool.pids
        try:
            if pids and chance.random() < ZYGOTE_SHARE:
                pid = parent(chance.choice(pids))
                if threads(pid).get(pid) == "pebble-zygote":
                    self.kills.kill_zygote(pid)
                    self.count("zygote killed", 0)
            elif pids:
                self.kills.kill_worker(chance.choice(pids))
                self.count("worker killed", 0)
        except ProcessLookupError:
            pass

    def make_pool(self, chance):
        if chance.random() < 0.2:
            self.make_broken_pool(chance)
            return
        end = chance.choice(list(ENDS_OF_POOLS))
        action = f"pool {end}"
        self.count(action, 20)
        pool = ProcessPool(max_workers=2, max_tasks=chance.randrange(3))
        function, size = chance.choice([(tasks.value, 1), (bytes, MIB)])
        futures = [pool.schedule(function, args=(n * size,)) for n in range(20)]
        ENDS_OF_POOLS[end](pool, futures)
        if end == "dropped":
            pool = None
        for n, future in enumerate(futures):
            result = gives(function(n * size))
            self.judge(action, future, either(cancelled, result) if "stop" in end else result)
        if pool:
            self.join(pool)

    def make_broken_pool(self, chance):
        initializer = chance.choice([tasks.fail, tasks.die])
        self.count("pool broken", 3)
        pool = ProcessPool(max_workers=2, initializer=initializer)
        for future in [pool.schedule(int) for _ in range(3)]:
            self.judge("pool broken", future, raises(RuntimeError))
        pool.close()
        self.join(pool)

    def join(self, pool):
        try:
            pool.join(LOST_AFTER)
        except TimeoutError:
            self.is_lost()
