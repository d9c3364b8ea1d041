"""What the tests let pools do. Workers import it by name: it must stay quick to import."""

import collections
import ctypes
import dataclasses
import enum
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time

from pebble import ProcessPool, ThreadPool, concurrent, synchronized

# ---- Values ----


def value(x):
    return x


def add(a, b=0):
    return a + b


def arguments(*args, **kwargs):
    return args, kwargs


def process_id(*_):
    return os.getpid()


def current_thread(*_):
    return threading.current_thread()


def non_negative(*numbers):
    """The numbers' sum; the first negative one is an error."""
    for number in numbers:
        if number < 0:
            raise ValueError("negative", number)
    return sum(numbers)


class Counter:
    """Callable, with methods, and a state that goes along."""

    def __init__(self, start):
        self.start = start

    def plus(self, number):
        return self.start + number

    __call__ = plus

    @classmethod
    def kind(cls):
        return cls.__name__

    @staticmethod
    def twice(number):
        return 2 * number


class AllEqual(type):
    def __eq__(cls, other):
        return isinstance(other, AllEqual)

    def __hash__(cls):
        return 1


class EqualOne(metaclass=AllEqual):
    pass


class EqualTwo(metaclass=AllEqual):
    pass


class Unhashable(type):
    def __eq__(cls, other):
        return cls is other


class OfUnhashable(metaclass=Unhashable):
    """No object of it could be pickled."""

    def __new__(cls):
        return 5


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Shape:
    name: str
    points: list


# ---- State of a worker ----

remembered = None


def remember(x):
    global remembered
    remembered = x


def recall(*_):
    return remembered


def take(lock):
    """Whether it was free."""
    taken = lock.acquire(False)
    if taken:
        lock.release()
    return taken


def take_remembered():
    return take(remembered)


def use_what_was_given(lock, queue, barrier, number, writer):
    free = take(lock)
    queue.put("lock free" if free else "lock taken")
    barrier.wait(10)
    writer.send(number.value)
    number.value += 1
    return free


def answer_remembered():
    asked, answered = remembered
    if asked.wait(10):
        answered.set()
    return asked.is_set()


# ---- Events ----


def hold(started, release):
    """Runs from one flag to the other."""
    started.set(os.getpid())
    assert release.wait()
    return os.getpid()


def hold_if(held, started, release, x):
    if x == held:
        hold(started, release)
    return x


def set_flag(flag, *_):
    flag.set(os.getpid())


def set_flag_at_zero(flag, x, *_):
    if x == 0:
        flag.set()


def wait_for_flag(flag, x=None):
    assert flag.wait()
    return x


def meet(arrival, *others):
    """Returns once all have arrived: the tasks run at the same time."""
    arrival.set()
    for other in others:
        assert other.wait()
    return os.getpid()


# ---- Tasks that do not end by themselves ----


def rest():
    """Unlike signal.pause() it does not sleep through a signal that came just before it, whose
    handler in Python has not run."""
    time.sleep(0.01)


def hang(started=None, *_):
    if started:
        started.set(os.getpid())
    while True:
        rest()


def hang_if(hanging, x):
    if x == hanging:
        hang()
    return x


def spin(started):
    started.set(os.getpid())
    while True:
        pass


def hold_interpreter_lock(started):
    started.set(os.getpid())
    while True:
        ctypes.PyDLL(None).pause()


def ignore_signals(started):
    for signum in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(signum, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    hang(started)


def stop_itself(started):
    started.set(os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)


def hang_with_child(started, child_started):
    child = subprocess.Popen(["sleep", "1000"])
    child_started.set(child.pid)
    hang(started)


def hang_until_terminated(started, terminated, end, *args):
    def on_term(signum, frame):
        terminated.set(signum)
        end(*args)

    signal.signal(signal.SIGTERM, on_term)
    hang(started)


STUBBORN = [hang, spin, hold_interpreter_lock, ignore_signals, stop_itself]

# ---- Tasks that end their process ----


def die(code=1):
    os._exit(code)


def die_if(dying, x):
    if x == dying:
        os._exit(3)
    return x


def kill_itself(signum):
    os.kill(os.getpid(), signum)


def crash():
    ctypes.string_at(0)


# ---- Errors ----


def fail(kind=ValueError, *args):
    raise kind(*args)


def fail_from(error, cause):
    raise error from cause


def fail_with_attribute():
    error = ValueError("with an attribute")
    error.code = 5
    raise error


def fail_locally():
    class Local(Exception):
        pass

    raise Local("local")


def fail_if(failing, x):
    if x == failing:
        raise ValueError(x)
    return x


def leave(code=None):
    sys.exit(code)


def recurse():
    return recurse()


class TwoArguments(Exception):
    """Pickled with one argument, so that unpickling fails."""

    def __init__(self, first, second):
        super().__init__(first)


class Frozen(Exception):
    def __setattr__(self, name, x):
        raise AttributeError(name)


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


class OwnBase(BaseException):
    pass


def explode():
    raise LookupError("load")


class DumpFails:
    def __reduce__(self):
        raise ValueError("dump")


class LoadFails:
    def __reduce__(self):
        return explode, ()


class DumpFailsError(DumpFails, Exception):
    pass


class LoadFailsError(LoadFails, Exception):
    pass


class NeverDumped(Exception):
    """Why it cannot be pickled cannot be pickled either."""

    def __reduce__(self):
        raise NeverDumped


def raise_never_dumped(*_):
    raise NeverDumped


class RaisesNeverDumped:
    def __init__(self, *_):
        pass

    def __reduce__(self):
        raise_never_dumped()


class DumpDies:
    def __reduce__(self):
        os._exit(5)


class LoadDies:
    def __reduce__(self):
        return os._exit, (6,)


def make(kind, *args):
    return kind(*args)


def make_if(making, kind, x):
    return kind() if x == making else x


def make_lambda():
    return lambda: None


def make_nested(depth):
    nested = []
    for _ in range(depth):
        nested = [nested]
    return nested


def append_line(path, text):
    with open(path, "a") as log:
        log.write(f"{text}\n")


# ---- Initializers: each call adds a line to a file ----


def log_call(path):
    append_line(path, os.getpid())


def calls(path):
    with open(path) as log:
        return [int(line) for line in log]


def log_and_fail(path):
    log_call(path)
    raise LookupError("broken initializer")


def log_and_die(path):
    log_call(path)
    os._exit(7)


def log_and_hang(path):
    log_call(path)
    hang()


def log_and_leave(path):
    log_call(path)
    sys.exit("left")


def fail_at_first(path):
    log_call(path)
    if len(calls(path)) == 1:
        raise LookupError("only at first")


# ---- What a worker looks like from inside ----


def process_name(*_):
    return multiprocessing.current_process().name


def thread_name(*_):
    return threading.current_thread().name


def start_method():
    return multiprocessing.get_start_method()


def interrupt_itself():
    signal.raise_signal(signal.SIGINT)
    return signal.getsignal(signal.SIGINT)


def describe_process():
    process = multiprocessing.current_process()
    return {
        "daemon": process.daemon,
        "pid": process.pid == os.getpid(),
        "alive": process.is_alive(),
        "parent": multiprocessing.parent_process() is not None,
        "main thread": threading.current_thread() is threading.main_thread(),
    }


def surroundings():
    return os.getcwd(), dict(os.environ), sys.argv


def read_standard_input():
    try:
        return sys.stdin.read() if sys.stdin else ""
    except ValueError:
        return ""


def start_child(flag):
    child = multiprocessing.Process(target=set_flag, args=(flag,))
    child.start()
    child.join()
    return child.pid, child.exitcode


def run_program_with_a_pool():
    source = "import pebble; print(pebble.ProcessPool(1).schedule(len, args=('four',)).result())"
    command = [sys.executable, "-c", source]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def run_command():
    return subprocess.run(["echo", "x"], stdout=subprocess.PIPE, check=True).stdout


def set_flag_in_a_thread(release, flag):
    """It outlasts the task."""

    def set_flag_later():
        assert release.wait()
        flag.set()

    threading.Thread(target=set_flag_later).start()


def set_flag_at_exit(flag):
    multiprocessing.util.Finalize(None, flag.set, exitpriority=10)


def handle_signal():
    caught = []
    signal.signal(signal.SIGUSR1, lambda signum, frame: caught.append(signum))
    signal.raise_signal(signal.SIGUSR1)
    return caught


def random_number(arrival, other):
    import random

    meet(arrival, other)
    return random.random()


def nested_process_pool(numbers):
    with ProcessPool(max_workers=1) as pool:
        return list(pool.map(value, numbers).result())


def nested_thread_pool(numbers):
    with ThreadPool(max_workers=1) as pool:
        return list(pool.map(value, numbers).result())


def nested_concurrent(number):
    return remote_add(number).result()


def nested_death(code):
    with ProcessPool(max_workers=1) as pool:
        return pool.schedule(die, args=(code,)).result()


def join_own_pool(pool):
    pool.close()
    pool.join()


# ---- Decorated functions ----


@concurrent.process
def remote_add(a, b=0):
    """Adds elsewhere."""
    return a + b


@concurrent.process()
def remote_pid():
    return os.getpid()


@concurrent.process(timeout=1)
def remote_hang(started):
    hang(started)


def passing(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


@passing
@concurrent.process
def remote_add_below_another(a, b):
    return a + b


@synchronized
@concurrent.process
def remote_add_synchronized(a, b):
    return a + b


@concurrent.process(timeout=60, name="worker-of-a-name")
def remote_name():
    return process_name()


@concurrent.process(60, "positional")
def remote_name_by_position():
    return process_name()


@concurrent.process(context="spawn")
def remote_recall_spawned():
    return remembered


@concurrent.process
def remote_recall():
    return remembered


@concurrent.process
def remote_hold(started, release):
    return hold(started, release)


@concurrent.process
def remote_call(function, *args):
    return function(*args)


class Account:
    """With methods decorated in each way."""

    def __init__(self, amount):
        self.amount = amount

    @concurrent.process
    def plus(self, more):
        return self.amount + more

    @staticmethod
    @concurrent.process
    def twice(number):
        return 2 * number

    @classmethod
    @concurrent.process
    def kind(cls):
        return cls.__name__

    @concurrent.thread
    def plus_in_thread(self, more):
        return self.amount + more

    class Inner:
        @staticmethod
        @concurrent.process
        def deep():
            return "deep"


@concurrent.thread
def thread_add(a, b=0):
    """Adds beside."""
    return a + b


@concurrent.thread()
def thread_ident():
    return threading.get_ident()


@concurrent.thread(name="thread-of-a-name")
def thread_with_name():
    return thread_name()


@concurrent.thread("positional")
def thread_with_name_by_position():
    return thread_name()


@concurrent.thread
def thread_call(function, *args):
    return function(*args)


# ---- Work under a lock ----


def increment_file(path):
    with open(path) as counter:
        number = int(counter.read())
    with open(path, "w") as counter:
        counter.write(str(number + 1))


def increment_file_synchronized(lock, path, times):
    increment = synchronized(lock)(increment_file)
    for _ in range(times):
        increment(path)


@synchronized
def call_synchronized(function, *args):
    return function(*args)


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def sleep(seconds, *_):
    time.sleep(seconds)
    return seconds


def second_first(flag, x):
    """Element 0 ends after element 1."""
    if x == 0:
        assert flag.wait()
    else:
        flag.set()
    return x


def raise_if(failing, kind, x):
    if x == failing:
        raise kind
    return x


def name_when_met(arrival, *others):
    meet(arrival, *others)
    return process_name()


def hang_in_nested_pool(started):
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(hang, args=(started,)).result()
