"""Row 17: programs that handle SIGCHLD, wait for every child, fork and close descriptors beside
their pools.
"""

import pytest

HEAD = """
import contextlib, gc, multiprocessing, os, signal, subprocess, sys, threading, time, warnings
from concurrent.futures import TimeoutError, wait
from pebble import ProcessExpired, ProcessPool
from inventory import holdings
from support import children, descendants, eventually, gone
from tasks import *

warnings.simplefilter("ignore")  # of forks beside threads


def exercise(pool):
    '''Each way in which a task may end, and the loss of the zygote.'''
    assert pool.schedule(value, args=(1,)).result() == 1
    assert pool.schedule(die, args=(3,)).exception().exitcode == 3
    assert pool.schedule(kill_itself, args=(9,)).exception().exitcode == -9
    assert type(pool.schedule(hang, timeout=0.05).exception()) is TimeoutError
    future = pool.schedule(hang)
    assert eventually(future.running) and future.cancel()
    assert wait([future], 10).done and future.cancelled()
    assert pool.schedule(run_command).result() == b"x\\n"
    assert list(pool.map(value, range(100), chunksize=7).result()) == list(range(100))


@contextlib.contextmanager
def nothing_more():
    '''Children or descriptors than after a first pool, which leaves some of these for ever.'''
    with ProcessPool(max_workers=1) as pool:
        assert pool.schedule(value, args=(1,)).result() == 1
    assert eventually(lambda: not children())
    before = holdings()
    yield
    assert eventually(lambda: not children()), children()
    assert eventually(lambda: holdings() <= before), holdings() - before


@nothing_more()
def use_pools():
    with ProcessPool(max_workers=2) as pool:
        exercise(pool)
        processes = descendants()
        for zygote in children():
            os.kill(zygote, signal.SIGKILL)
        assert all(gone(pid, 5) for pid in processes)
        exercise(pool)
    pool = ProcessPool(max_workers=2)
    hanging = [pool.schedule(hang) for _ in range(3)]
    pool.stop()
    pool.join(10)
    assert all(future.cancelled() for future in hanging)
    assert remote_add(1, 2).result() == 3


def in_child(function):
    '''Runs it in a forked child, which must end well.'''
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(7)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_main(function):
    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        function()
        print("done")
"""


@pytest.fixture
def succeed(program):
    """Runs a program: what is marked in it as its main function, to the end and in silence."""

    def check(source):
        code, output, errors = program(HEAD + source).end()
        assert errors == "", errors
        assert (code, output) == (0, "done\n")

    return check


# ---- SIGCHLD and waiting ----


def test_sigchld_is_ignored(succeed):
    succeed("""
def exit_code_of_child():
    return subprocess.run(["false"]).returncode

@in_main
def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    use_pools()
    with ProcessPool(max_workers=1) as pool:
        assert pool.schedule(exit_code_of_child).result() == 1
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
""")


def test_sigchld_is_handled(succeed):
    """The handler runs for the program's own children, and waits for whatever has ended."""
    succeed("""
@in_main
def main():
    ended = set()

    def reap(signum, frame):
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                ended.add(pid)
        except ChildProcessError:
            pass

    signal.signal(signal.SIGCHLD, reap)
    use_pools()
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(value, args=(1,)).result()
        own = subprocess.Popen(["true"])
        assert eventually(lambda: own.pid in ended)
        exercise(pool)
    assert signal.getsignal(signal.SIGCHLD) is reap
""")


def test_sigchld_is_blocked(succeed):
    succeed("""
@in_main
def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    use_pools()
""")


def test_every_child_is_waited_for(succeed):
    """A thread takes the end of every child, the zygotes' too, before the engine can."""
    succeed("""
@in_main
def main():
    def reap():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.0005)

    threading.Thread(target=reap, daemon=True).start()
    for _ in range(3):
        use_pools()
""")


# ---- Other processes beside a pool ----

BESIDE = """
@in_main
@nothing_more()
def main():
    over = threading.Event()
    results = []

    def work():
        n = 0
        while not over.is_set():
            assert pool.schedule(value, args=(n,)).result() == n
            n += 1
        results.append(n)

    with ProcessPool(max_workers=2) as pool:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        beside(pool)
        over.set()
        for thread in threads:
            thread.join()
        assert len(results) == 2 and all(results)
        exercise(pool)
"""


def test_subprocess_beside_a_pool(succeed):
    succeed("""
def beside(pool):
    for n in range(20):
        with subprocess.Popen(["sh", "-c", f"exit {n}"]) as process:
            assert process.wait() == n
        output = subprocess.run(["cat"], input=b"x" * 100_000, stdout=subprocess.PIPE).stdout
        assert len(output) == 100_000
""" + BESIDE)


def test_subprocesses_inherit_nothing(succeed):
    succeed("""
def beside(pool):
    assert pool.schedule(value, args=(1,)).result() == 1
    for _ in range(10):
        links = subprocess.run(
            ["sh", "-c", "readlink /proc/$$/fd/*"], close_fds=False, stdout=subprocess.PIPE
        ).stdout
        assert b"anon_inode" not in links and b"socket" not in links and b"memfd" not in links
""" + BESIDE)


def test_fork_beside_a_pool(succeed):
    succeed("""
def beside(pool):
    for _ in range(20):
        assert in_child(lambda: None) == 7
""" + BESIDE)


def test_a_fork_beside_a_pool_has_pools_of_its_own(succeed):
    succeed("""
def beside(pool):
    assert in_child(use_pools) == 7
""" + BESIDE)


# ---- Closed descriptors ----

CLOSED = """
def close_and_open():
    '''Other files have the numbers that were the engine's.'''
    os.closerange(3, 4096)
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]


def all_open(files):
    return all(os.readlink(f"/proc/self/fd/{fd}") == "/dev/null" for fd in files)
"""


def test_a_forked_child_closes_all_descriptors(succeed):
    succeed(CLOSED + """
def beside(pool):
    def child():
        files = close_and_open()
        use_pools()
        assert all_open(files)

    for _ in range(2):
        assert in_child(child) == 7
""" + BESIDE)


def test_a_forked_child_closes_all_descriptors_and_drops_the_pool(succeed):
    succeed(CLOSED + """
@in_main
@nothing_more()
def main():
    holder = [ProcessPool(max_workers=2)]
    holder += [holder[0].schedule(value, args=(1,)), holder[0].schedule(hang)]
    assert holder[1].result() == 1
    pool = holder[0]

    def child():
        nonlocal pool
        files = close_and_open()
        pool = None
        holder.clear()
        gc.collect()
        assert all_open(files)
        use_pools()
        assert all_open(files)

    assert in_child(child) == 7
    exercise(pool)
    pool.stop()
    pool.join()
""")


def test_a_daemon_closes_all_descriptors(succeed):
    """The usual way to become one: fork, setsid, fork, close everything; then the pools."""
    succeed(CLOSED + """
@in_main
@nothing_more()
def main():
    with ProcessPool(max_workers=1) as pool:
        exercise(pool)
    reading, writing = os.pipe()
    kept = os.fdopen(reading)

    def daemon():
        os.setsid()
        if os.fork() > 0:
            return
        os.dup2(writing, 3)
        os.closerange(4, 4096)
        os.chdir("/")
        use_pools()
        os.write(3, b"served")
        os._exit(0)

    assert in_child(daemon) == 7
    os.close(writing)
    assert kept.read() == "served"
    with ProcessPool(max_workers=1) as pool:
        exercise(pool)
""")


def test_a_program_without_standard_streams(succeed):
    """Then the engine's own descriptors are 0, 1 and 2."""
    succeed("""
@in_main
def main():
    def child():
        os.closerange(0, 4096)
        use_pools()

    assert in_child(child) == 7
""")
