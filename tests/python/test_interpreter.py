import os
import signal
import subprocess
import sys
import time

import pytest

from support import eventually, gone, is_waiting, kill

HEAD = """
import multiprocessing, os, queue, signal, sys, threading, time, warnings
from concurrent.futures import as_completed, wait
from pebble import ProcessPool, ThreadPool, waitforqueues, waitforthreads
from support import Flag
from tasks import *

def tell(*words):
    print(*words, flush=True)

def in_main(function):
    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        function()
    return function
"""


def script(body, **names):
    """A program that runs `body`; capitals in it stand for what `names` says."""
    for name, text in names.items():
        body = body.replace(name, text)
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return f"{HEAD}\n@in_main\ndef main():\n{lines}"


def assert_silent(process, code=0):
    assert process.end() == (code, "", "")


# ---- Exit ----

OPEN_POOLS = {
    "unused": "pool = ProcessPool()",
    "idle": """
pool = ProcessPool(max_workers=2)
assert pool.schedule(value, args=(1,)).result() == 1
""",
    "running": """
pool = ProcessPool(max_workers=1)
future = pool.schedule(hang)
""",
    "queued": """
pool = ProcessPool(max_workers=1)
futures = [pool.schedule(hang) for _ in range(100)]
mapped = pool.map(hang, range(100))
""",
    "callbacks": """
pool = ProcessPool(max_workers=1)
future = pool.schedule(hang)
future.add_done_callback(print)
""",
    "closed": """
pool = ProcessPool(max_workers=1)
future = pool.schedule(hang)
pool.close()
""",
    "stopped": """
pool = ProcessPool(max_workers=1)
future = pool.schedule(hang)
pool.stop()
""",
    "dropped": "ProcessPool(max_workers=1).schedule(hang)",
    "decorated": "future = remote_call(hang)",
    "threads": """
pool = ThreadPool(max_workers=2)
assert pool.schedule(value, args=(1,)).result() == 1
""",
    "a waiting daemon": """
pool = ProcessPool(max_workers=1)
future = pool.schedule(hang)
threading.Thread(target=future.result, daemon=True).start()
""",
    "an open iterator": """
pool = ProcessPool(max_workers=1)
iterator = pool.map(hang_if, [1] * 10, range(10)).result()
next(iterator)
""",
}


@pytest.mark.parametrize("pools", OPEN_POOLS)
def test_exit_with_an_open_pool(program, pools):
    lasting = "globals().update(locals())"
    process = program(script(f"{OPEN_POOLS[pools].strip()}\n{lasting}"))
    code, output, errors = process.end()
    assert (code, errors) == (0, "")
    assert output == "" or pools == "callbacks"


def test_exit_is_prompt_and_workers_are_gone(program, started):
    process = program(
        script(
            """
pool = ProcessPool(max_workers=1)
pool.schedule(hang, args=(Flag("STARTED"),))
worker = Flag("STARTED").number()
tell(worker)
""",
            STARTED=started.path,
        )
    )
    worker = int(process.line())
    begin = time.monotonic()
    assert_silent(process)
    assert time.monotonic() - begin < 3
    assert gone(worker, 1)


@pytest.mark.parametrize(
    "end, code, in_errors",
    [("sys.exit(3)", 3, ""), ("raise ValueError('its own')", 1, "ValueError: its own")],
    ids=["exit", "exception"],
)
def test_exit_keeps_its_code(program, end, code, in_errors):
    process = program(script(f"pool = ProcessPool(1)\npool.schedule(hang)\n{end}"))
    found, output, errors = process.end()
    assert (found, output) == (code, "")
    assert errors.count("Traceback") == (1 if in_errors else 0)
    assert in_errors in errors


def test_waiting_when_the_interpreter_ends(run, release):
    """In a handler that runs after the package's: result() waits, all that would be told of it raises."""
    output = run(f"""
        import atexit, multiprocessing, sys
        from concurrent.futures import as_completed, wait

        def use():
            for future in futures:
                refuses(wait, [future])
                refuses(lambda futures: next(as_completed(futures)), [future])
                refuses(future.add_done_callback, print)
            release.set()
            print(futures[0].result(), list(futures[1].result()), futures[2].result())
            assert wait(futures).done == set(futures)
            assert set(as_completed(futures)) == set(futures)

        def refuses(call, argument):
            try:
                call(argument)
            except RuntimeError as error:
                assert "the interpreter is ending" in str(error)
            else:
                assert False, call

        if __name__ == "__main__":
            atexit.register(use)

        import tasks
        from pebble import ProcessPool
        from support import Flag

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            release = Flag({release.path!r})
            pool = ProcessPool(max_workers=1)
            futures = [
                pool.schedule(tasks.wait_for_flag, args=(release, 1)),
                pool.map(tasks.wait_for_flag, [release], [2]),
                pool.schedule(tasks.wait_for_flag, args=(release, 3)),
            ]
            assert not wait(futures[:1], timeout=0).done
        """)
    assert output == "1 [2] 3\n"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_program_that_is_killed(program, signum):
    process = program(script("""
pool = ProcessPool(max_workers=1)
tell(pool.schedule(process_id).result())
future = pool.schedule(hang)
while not future.running():
    time.sleep(0.001)
tell(remote_pid().pid)
future.result()
"""))
    worker = int(process.line())
    process.line()
    kill(process.pid, signum)
    assert process.end()[0] == -signum
    assert gone(worker, 5)


# ---- Ctrl-C ----

WAITS = {
    "result": "pool.schedule(hang).result()",
    "result in time": "pool.schedule(hang).result(60)",
    "exception": "pool.schedule(hang).exception()",
    "map": "pool.map(hang, range(3)).result()",
    "next": "next(i := pool.map(hang_if, [1] * 3, range(3)).result()); next(i)",
    "join": "pool.schedule(hang); pool.close(); pool.join()",
    "join in time": "pool.schedule(hang); pool.close(); pool.join(60)",
    "wait": "wait([pool.schedule(hang)])",
    "as_completed": "list(as_completed([pool.schedule(hang)]))",
    "decorated": "remote_call(hang).result()",
    "queues": "waitforqueues([queue.Queue()])",
    "threads": "waitforthreads([waiting])",
    "thread result": "threads.schedule(event.wait).result()",
    "thread next": "next(threads.map(threading.Event.wait, [event]).result())",
    "thread join": "threads.schedule(event.wait); threads.close(); threads.join()",
}

INTERRUPTED = """
pool, threads, event = ProcessPool(max_workers=1), ThreadPool(max_workers=1), threading.Event()
waiting = threading.Thread(target=event.wait, daemon=True)
waiting.start()
pool.schedule(int).result()
try:
    tell("ready")
    WAIT
except KeyboardInterrupt:
    tell("interrupted")
event.set()
for each in pool, threads:
    each.stop()
    each.join()
tell("ended")
"""


def interrupt(process, send):
    assert process.line() == "ready"
    assert eventually(lambda: is_waiting(process.pid))
    begin = time.monotonic()
    send(process.pid, signal.SIGINT)
    assert process.line() == "interrupted"
    assert time.monotonic() - begin < 2
    assert process.end() == (0, "ended\n", "")


@pytest.mark.parametrize("wait", WAITS)
def test_interrupt(program, wait):
    interrupt(program(script(INTERRUPTED, WAIT=WAITS[wait])), os.kill)


@pytest.mark.parametrize("wait", ["result", "next", "thread result"])
def test_interrupt_from_the_terminal(program, wait):
    """A terminal sends SIGINT to the workers too."""
    process = program(script(INTERRUPTED, WAIT=WAITS[wait]), start_new_session=True)
    interrupt(process, os.killpg)


def test_interrupt_of_a_context(program):
    process = program(script("""
try:
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(int).result()
        tell("ready")
        pool.schedule(hang).result()
except KeyboardInterrupt:
    tell("interrupted")
tell("ended")
"""))
    interrupt(process, os.kill)


def test_interrupt_that_nobody_catches(program):
    process = program(
        script("pool = ProcessPool(1)\ntell('ready')\npool.schedule(hang).result()")
    )
    assert process.line() == "ready"
    assert eventually(lambda: is_waiting(process.pid))
    kill(process.pid, signal.SIGINT)
    code, _, errors = process.end()
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n")


def test_a_handler_that_returns_does_not_end_the_wait(program):
    process = program(script("""
signal.signal(signal.SIGUSR1, lambda *_: tell("handled"))
pool = ProcessPool(max_workers=1)
pool.schedule(int).result()
tell("ready")
tell(pool.schedule(sleep, args=(0.3,)).result())
pool.close()
pool.join()
"""))
    assert process.line() == "ready"
    kill(process.pid, signal.SIGUSR1)
    assert process.line() == "handled"
    assert process.line() == "0.3"
    assert_silent(process)


# ---- fork ----

FORKED = """
warnings.simplefilter("ignore")
pool = ProcessPool(max_workers=1)
threads = ThreadPool(max_workers=1)
future, mapped = pool.schedule(sleep, args=(0.2,)), pool.map(value, range(3))
watched = pool.schedule(hang), pool.map(hang, [None])
assert not wait(watched, timeout=0).done
called = []
for each in watched:
    each.add_done_callback(called.append)
threads.schedule(int).result()
child = os.fork()
if child == 0:
    CHILD
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for each in watched:
    each.cancel()
assert len(wait(watched).done) == 2
tell(code, future.result(), list(mapped.result()), pool.schedule(value, args=(1,)).result())
tell(threads.schedule(value, args=(1,)).result())
for each in pool, threads:
    each.close()
    each.join()
assert len(called) == 2
"""

CHILDREN = {
    "nothing": "os._exit(0)",
    "ends in order": "sys.exit(0)",
    "drops all": "del pool, threads, future, mapped; import gc; gc.collect(); os._exit(0)",
    "its own pool": "assert nested_process_pool([1]) == [1]; os._exit(0)",
    "its own threads": "assert nested_thread_pool([1]) == [1]; os._exit(0)",
    "its parent's": """
    names = dict(locals())

    def refuses(call):
        try:
            eval(call, globals() | names)
        except RuntimeError:
            return True

    assert [call for call in CALLS if not refuses(call)] == []
    os._exit(0)""",
}

CALLS = [
    "pool.schedule(int)",
    "pool.map(int, '123')",
    "pool.close()",
    "pool.stop()",
    "pool.join()",
    "future.result()",
    "future.cancel()",
    "future.add_done_callback(print)",
    "wait([future])",
    "wait([future])",
    "mapped.cancel()",
    "wait([watched[0]])",
    "list(as_completed([watched[1]]))",
    "watched[0].add_done_callback(print)",
    "watched[1].add_done_callback(print)",
    "threads.schedule(int)",
    "threads.stop()",
]


@pytest.mark.parametrize("child", CHILDREN)
def test_fork_beside_a_pool(run, child):
    output = run(script(FORKED, CHILD=CHILDREN[child], CALLS=repr(CALLS)))
    assert output.splitlines() == ["0 0.2 [0, 1, 2] 1", "1"]


def test_processes_of_multiprocessing_beside_a_pool(run):
    assert run(script("""
pool = ProcessPool(max_workers=1)
future = pool.schedule(sleep, args=(0.1,))
process = multiprocessing.Process(target=value, args=(1,))
process.start()
process.join()
tell(process.exitcode, future.result())
pool.close()
pool.join()
""")) == "0 0.1\n"


# ---- Start methods ----

STATE = """
import multiprocessing, sys
from pebble import ProcessPool, concurrent

state = "imported"

def get_state():
    return state

@concurrent.process
def get_state_alone():
    return state

if __name__ == "__main__":
    state = "set"
    first, second = ProcessPool(max_workers=1), None
    assert multiprocessing.get_start_method(allow_none=True) is None
    multiprocessing.set_start_method(sys.argv[1])
    second = ProcessPool(max_workers=1)
    print(second.schedule(get_state).result(), get_state_alone().result())
    for pool in first, second:
        pool.close()
        pool.join()
"""


def test_follows_set_start_method(run, start_method):
    expected = "set" if start_method == "fork" else "imported"
    assert run(STATE).split() == [expected, expected]


def test_default_start_method(run):
    assert run("""
            from pebble import ProcessPool

            if __name__ == "__main__":
                with ProcessPool(max_workers=1) as pool:
                    print(pool.schedule(len, args=("abc",)).result())
            """) == "3\n"


UNGUARDED = """
import sys
from pebble import ProcessPool, concurrent

def double(x):
    return 2 * x

"""


@pytest.mark.parametrize(
    "call",
    [
        "ProcessPool(max_workers=1, context=sys.argv[1]).schedule(double, args=(2,))",
        "concurrent.process(context=sys.argv[1])(double)(2)",
    ],
    ids=["pool", "decorated"],
)
def test_missing_main_guard(program, start_method, call):
    code, output, errors = program(f"{UNGUARDED}print({call}.result())").end()
    if start_method == "fork":
        assert (code, output, errors) == (0, "4\n", "")
    else:
        assert code == 1 and output == ""
        assert "RuntimeError" in errors and "bootstrapping" in errors


# ---- Import ----


def test_import_starts_nothing(run):
    assert run("""
        import pebble
        from support import children, threads

        print(len(threads()), len(children()))
        """).split() == ["1", "0"]


def test_a_program_from_the_command_line(start_method):
    source = (
        "from pebble import ProcessPool\n"
        f"with ProcessPool(max_workers=1, context={start_method!r}) as pool:\n"
        "    print(pool.schedule(len, args=('abc',)).result())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=20
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "3\n", "")
