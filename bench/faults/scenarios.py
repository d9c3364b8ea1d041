"""The scenarios. Each is a function of a case; its docstring is its name in the table.

    scenarios.py run KEY CONTENDER FILE     writes what was seen as one line of JSON
    scenarios.py program KEY CONTENDER      a program of a scenario's own, which will be killed
"""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pools
import processes
import tasks
from case import CANCELLED, DIED, FAILED, PENDING, TIMED_OUT, Case, Over

MIB = 1 << 20
STOPPED = CANCELLED, FAILED, DIED  # how a task may end when it was cancelled, or its pool was stopped
ALL = []


class Scenario:
    def __init__(self, function, row, needs):
        self.function, self.row, self.needs = function, row, needs
        self.key, self.title = function.__name__, function.__doc__

    def possible_for(self, contender):
        return contender.can >= self.needs


def scenario(row, *needs):
    """needs: abilities of pools.py."""

    def add(function):
        ALL.append(Scenario(function, row, set(needs)))
        return function

    return add


# ---- Ends of workers


def end_a_worker(case, function, *args):
    """With a task beside it on the other worker, and others queued."""
    case.open()
    case.workers()
    beside = case.submit(tasks.sleep, 0.5, "slept")
    future = case.submit(function, *args)
    queued = [case.submit(tasks.value, n) for n in range(20)]
    case.expect(future, DIED)
    case.expect_values([beside, *queued], ["slept", *range(20)], "others")
    case.expect_usable()


@scenario(1)
def exits(case):
    """os._exit(3) in a task"""
    end_a_worker(case, tasks.leave, 3)


@scenario(1)
def killed(case):
    """SIGKILL in a task"""
    end_a_worker(case, tasks.kill_itself)


@scenario(2)
def idle_killed(case):
    """SIGKILL to all idle workers, then 20 tasks"""
    case.open()
    for pid in case.workers():
        processes.kill(pid)
    case.expect_values(
        [case.submit(tasks.value, n) for n in range(20)], range(20), "tasks"
    )
    case.expect_usable()


@scenario(3)
def random_kills(case):
    """SIGKILL to any of its processes every 50 ms for 5 s, under load of 4 threads"""
    case.open()
    case.workers()
    end = time.monotonic() + 5
    counts, kills = {}, 0
    lock = threading.Lock()

    def load(first):
        number = first
        while time.monotonic() < end:
            number += 4
            future = case.submit(tasks.sleep, 0.005, number)
            seen = case.end_of(future)
            kind = seen.kind if seen.kind != "value" or seen.detail == number else "wrong"
            with lock:
                counts[kind] = counts.get(kind, 0) + 1
            if kind == PENDING:
                return

    def load_safely(first):
        try:
            load(first)
        except Exception as error:
            with lock:
                case.count(f"submit: {type(error).__name__}: {error}")
                counts["refused"] = counts.get("refused", 0) + 1

    threads = [threading.Thread(target=load_safely, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    generator = random.Random(1)
    while time.monotonic() < end and any(thread.is_alive() for thread in threads):
        victims = sorted(processes.descendants(os.getpid()))
        if victims:
            processes.kill(generator.choice(victims))
            kills += 1
        time.sleep(0.05)
    for thread in threads:
        thread.join(20)
    if PENDING in counts or any(thread.is_alive() for thread in threads):
        case.hangs("hangs")
    if "refused" in counts:
        case.note("pool broken")
    if "wrong" in counts:
        case.note("wrong results")
    case.figures.append(
        f"{counts.get('value', 0)} tasks done, {counts.get(DIED, 0)} expired, {kills} kills"
    )
    case.expect_usable()


@scenario(4)
def killed_sending(case):
    """a worker killed 0.02 to 0.3 s into sending 200 MiB"""
    case.open()
    case.workers()
    for seconds in (0.02, 0.1, 0.2, 0.3):
        case.expect(case.submit(tasks.die_while_sending, 200 * MIB, seconds), DIED, "value")
        case.expect_usable()
        if case.notes:
            return


@scenario(4)
def killed_receiving(case):
    """both workers killed 0.02 to 0.3 s into receiving 200 MiB"""
    case.open()
    for seconds in (0.02, 0.1, 0.2, 0.3):
        workers = case.workers()
        kill = threading.Timer(seconds, lambda: [processes.kill(pid) for pid in workers])
        kill.start()
        case.expect(case.submit(tasks.size, bytes(200 * MIB)), DIED, "value")
        kill.join()
        case.expect_usable()
        if case.notes:
            return


# ---- Timeouts


def time_out(case, function, *args):
    case.open()
    case.workers()
    deadline = time.monotonic() + 0.5
    future = case.submit(function, *args, timeout=0.5)
    case.expect_timeout(future, deadline)
    case.expect_usable()


@scenario(5, pools.TIMEOUT)
def ignores_sigterm(case):
    """timeout of a task that ignores SIGTERM"""
    time_out(case, tasks.ignore_sigterm)


@scenario(6, pools.TIMEOUT)
def holds_the_gil(case):
    """timeout in C code that holds the GIL"""
    time_out(case, tasks.hold_interpreter_lock, 60)


@scenario(7, pools.TIMEOUT)
def catches_everything(case):
    """timeout of a task that catches the SystemExit of its SIGTERM handler"""
    time_out(case, tasks.catch_everything)


@scenario(8, pools.CANCEL)
def random_cancels(case):
    """2,000 submissions from 2 threads, half of them cancelled at random"""
    case.open()
    case.workers()
    futures, cancelled = [[], []], set()

    def work(which):
        generator = random.Random(which)
        for n in range(1000):
            futures[which].append((n, case.submit(tasks.value, n)))
            if generator.random() < 0.5:
                victim = generator.choice(futures[which])
                cancelled.add(victim)
                case.contender.cancel(victim[1])

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for each in futures[0] + futures[1]:
        end = case.expect(each[1], "value", *STOPPED)
        if end.kind == "value" and end.detail != each[0]:
            case.note("wrong results")
        if end.kind in STOPPED and each not in cancelled:
            case.note("others lost")
    case.expect_usable()


# ---- What tasks start


def grandchild_of(case, **options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pid")
        future = case.submit(tasks.start_grandchild, path, **options)
        end = time.monotonic() + 5
        while not os.path.exists(path) and time.monotonic() < end:
            time.sleep(0.005)
        with open(path) as file:
            return future, int(file.read())


def expect_pid_gone(case, pid):
    case.expect_gone(lambda: {pid} if processes.is_alive(pid) else set())
    processes.kill(pid)


@scenario(9, pools.TIMEOUT)
def double_fork_timeout(case):
    """what a task started by double fork, after its timeout"""
    case.open()
    case.workers()
    deadline = time.monotonic() + 1
    future, pid = grandchild_of(case, timeout=1)
    case.expect_timeout(future, deadline)
    expect_pid_gone(case, pid)
    case.expect_usable()


@scenario(9, pools.STOP)
def double_fork_stop(case):
    """what a task started by double fork, after the pool was stopped"""
    case.open()
    case.workers()
    _, pid = grandchild_of(case)
    case.stop()
    expect_pid_gone(case, pid)


# ---- The program's end


def start_program(case, key):
    """A program that has said that it is ready; it has a session of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "program", key, case.contender.name]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert program.stdout.readline().strip() == b"ready"
    return program


def end_program(case, key, signum, whole_group=False):
    program = start_program(case, key)
    start = time.monotonic()
    (os.killpg if whole_group else os.kill)(program.pid, signum)
    try:
        program.wait(case.patience)
    except subprocess.TimeoutExpired:
        case.hangs("program hangs")
        program.kill()
        program.wait()
        return
    took = time.monotonic() - start
    if took > 1:
        case.figures.append(f"{took:.1f} s")
    case.expect_gone(lambda: processes.descendants(os.getpid()))
    for pid in processes.descendants(os.getpid()):
        processes.kill(pid)


def work_for_ever(case):
    """Both workers busy, and tasks waiting."""
    case.open()
    case.workers()
    futures = [case.submit(tasks.sleep, 100) for _ in range(4)]
    time.sleep(0.2)
    print("ready", flush=True)
    try:
        case.contender.result(futures[0], 1000)
    except KeyboardInterrupt:
        case.contender.stop(case.pool)


def be_idle(case):
    case.open()
    case.workers()
    print("ready", flush=True)
    time.sleep(1000)


PROGRAMS = {"busy": work_for_ever, "idle": be_idle}


@scenario(10)
def program_killed(case):
    """SIGKILL to the program, workers busy: gone within 1 s"""
    end_program(case, "busy", signal.SIGKILL)


@scenario(10)
def idle_program_killed(case):
    """SIGKILL to the program, workers idle: gone within 1 s"""
    end_program(case, "idle", signal.SIGKILL)


@scenario(10)
def program_terminated(case):
    """SIGTERM to the program, workers busy: gone within 1 s"""
    end_program(case, "busy", signal.SIGTERM)


@scenario(10)
def interrupted(case):
    """Ctrl-C, upon which the program stops the pool"""
    end_program(case, "busy", signal.SIGINT, whole_group=True)


# ---- Pickling


def fail_alone(case, function, *args):
    """One task fails, those beside it do not."""
    case.open()
    case.workers()
    before = [case.submit(tasks.value, n) for n in range(10)]
    future = case.submit(function, *args)
    behind = [case.submit(tasks.value, n) for n in range(10)]
    case.expect(future, FAILED)
    case.expect_values(before + behind, [*range(10), *range(10)], "others")
    case.expect_usable()


@scenario(11)
def exception_does_not_load(case):
    """an exception that fails to unpickle"""
    fail_alone(case, tasks.raise_two_arguments)


@scenario(11)
def result_does_not_load(case):
    """a result whose unpickling raises"""
    fail_alone(case, tasks.make_load_fails)


@scenario(11)
def argument_does_not_load(case):
    """an argument whose unpickling raises, in the worker"""
    fail_alone(case, tasks.value, tasks.LoadFails())


# ---- Initializers


def initialize(case, initializer):
    case.open(initializer=initializer)
    try:
        future = case.submit(tasks.value, 1)
    except Exception as error:
        case.count(f"submit: {type(error).__name__}: {error}")
        return
    case.expect(future, FAILED, DIED)


@scenario(12, pools.INITIALIZER)
def initializer_raises(case):
    """an initializer that raises: the task ends with an error"""
    initialize(case, tasks.fail)


@scenario(12, pools.INITIALIZER)
def initializer_dies(case):
    """an initializer that dies: the task ends with an error"""
    initialize(case, tasks.die)


@scenario(12, pools.INITIALIZER, pools.STOP)
def initializer_hangs(case):
    """an initializer that hangs, and the pool is stopped"""
    case.open(initializer=tasks.hang)
    future = case.submit(tasks.value, 1)
    time.sleep(0.5)
    case.stop()
    case.expect_ends([future], *STOPPED)


# ---- Cancel and stop


@scenario(13, pools.CANCEL)
def large_arguments_cancelled(case):
    """50 tasks with lists of a million elements, all cancelled, stop: within 5 s"""
    case.open()
    case.workers()
    futures = [case.submit(tasks.size, list(range(1_000_000))) for _ in range(50)]
    start = time.monotonic()
    for future in futures:
        case.contender.cancel(future)
    case.stop()
    took = time.monotonic() - start
    case.figures.append(f"{took:.1f} s")
    if took > 5:
        case.note("late")
    case.expect_ends(futures, "value", CANCELLED, DIED)


@scenario(13, pools.STOP)
def stopped_under_load(case):
    """5 pools stopped while results of 10 MiB come: within 5 s each, no future without an end"""
    for _ in range(5):
        case.open()
        case.workers()
        futures = [case.submit(tasks.make_bytes, 10 * MIB) for _ in range(50)]
        case.contender.result(futures[0], case.patience)
        case.stop()
        case.expect_ends(futures, "value", *STOPPED)
        if case.notes:
            return


@scenario(14, pools.STOP)
def stopped_busy(case):
    """stop with all workers busy: every future ends"""
    case.open()
    case.workers()
    futures = [case.submit(tasks.sleep, 100) for _ in range(12)]
    time.sleep(0.2)
    took = case.stop()
    if took > 1 and not case.hung:
        case.figures.append(f"{took:.1f} s")
    case.expect_ends(futures, *STOPPED)


@scenario(14, pools.STOP, pools.CALLBACK)
def stopped_by_a_callback(case):
    """stop from a done-callback, without waiting: every future ends"""
    case.open()
    case.workers()
    called = threading.Event()

    def stop(_):
        called.set()
        case.contender.stop(case.pool, wait=False)

    others = [case.submit(tasks.sleep, 100) for _ in range(1)]
    case.submit(tasks.value, 1, callback=stop)
    others += [case.submit(tasks.sleep, 100) for _ in range(5)]
    if not called.wait(case.patience):
        case.hangs("callback never called")
    case.expect_ends(others, *STOPPED)


# ---- Workers for some tasks, pools that are dropped


@scenario(15, pools.MAX_TASKS)
def new_workers(case):
    """a new worker for each of 50 queued tasks"""
    results = []

    def map_all():
        results.append(case.contender.map(case.pool, tasks.value, range(50)))

    case.open(max_tasks=1)
    took = case.in_time("map", map_all, seconds=30)
    if results == [list(range(50))]:
        case.figures.append(f"{took:.1f} s")
    elif not case.hung:
        case.note("wrong results" if results else "fails")


@scenario(15)
def dropped(case):
    """a pool dropped in the middle of 50 tasks: every future ends"""
    case.open()
    case.workers()
    futures = [case.submit(tasks.sleep, 0.02) for _ in range(50)]
    case.contender.result(futures[0], case.patience)
    case.pool = None
    gc.collect()
    case.expect_ends(futures, "value", CANCELLED)


# ---- Running


BY_KEY = {scenario.key: scenario for scenario in ALL}


def run(key, name, path):
    processes.adopt_orphans()
    case, failure = Case(pools.BY_NAME[name]()), None
    try:
        BY_KEY[key].function(case)
        if not case.hung:
            case.close()
    except Over:
        pass
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"[:80]
    gave_up = bool(failure) or case.hung
    report = {
        "notes": case.notes + ([failure] if failure else []),
        "figures": case.figures,
        "ends": dict(case.ends),
        "gave_up": gave_up,
    }
    with open(path + ".new", "w") as file:
        json.dump(report, file)
    os.rename(path + ".new", path)
    if gave_up:
        os._exit(0)


def main():
    if sys.argv[1] == "program":
        PROGRAMS[sys.argv[2]](Case(pools.BY_NAME[sys.argv[3]]()))
    else:
        run(*sys.argv[2:])


if __name__ == "__main__":
    main()
