import multiprocessing
import os
import signal
import sys

import pytest
from pebble import ProcessPool

import tasks
from support import gone


def test_looks_like_a_process_of_multiprocessing(process_pool):
    assert process_pool.schedule(tasks.describe_process).result() == {
        "daemon": False,
        "pid": True,
        "alive": True,
        "parent": True,
        "main thread": True,
    }


def test_names(make_flag):
    flags = [make_flag("first"), make_flag("second")]
    with ProcessPool(max_workers=2) as pool:
        futures = [
            pool.schedule(tasks.name_when_met, args=(flag, *flags)) for flag in flags
        ]
        assert {future.result() for future in futures} == {"pebble-1", "pebble-2"}


def test_names_of_the_users_own():
    with ProcessPool(max_workers=1, name="own name") as pool:
        assert pool.schedule(tasks.process_name).result() == "own name-1"
        pool.schedule(tasks.die).exception()
        assert pool.schedule(tasks.process_name).result().startswith("own name-")


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("by_name", [True, False])
def test_context(context, by_name):
    given = context if by_name else multiprocessing.get_context(context)
    tasks.remember("in the program")
    try:
        with ProcessPool(max_workers=1, context=given) as pool:
            inherited = pool.schedule(tasks.recall).result() == "in the program"
    finally:
        tasks.remember(None)
    assert inherited == (context == "fork")


def test_default_start_method_inside(process_pool, start_method):
    assert process_pool.schedule(tasks.start_method).result() == start_method


def test_sigint_is_ignored(process_pool):
    assert process_pool.schedule(tasks.interrupt_itself).result() is signal.SIG_IGN


def test_surroundings(process_pool):
    directory, environment, arguments = process_pool.schedule(tasks.surroundings).result()
    assert directory == os.getcwd()
    assert environment["PATH"] == os.environ["PATH"]
    assert arguments == sys.argv


def test_standard_input_is_not_the_programs(process_pool):
    assert process_pool.schedule(tasks.read_standard_input).result() == ""


def test_children_are_allowed(process_pool, started):
    pid, code = process_pool.schedule(tasks.start_child, args=(started,)).result()
    assert (started.number(), code) == (pid, 0)
    assert gone(pid)


def test_commands_are_allowed(process_pool):
    assert process_pool.schedule(tasks.run_command).result() == b"x\n"


def test_programs_with_pools_are_allowed(process_pool):
    assert process_pool.schedule(tasks.run_program_with_a_pool).result() == b"4\n"


def test_signals_are_the_tasks(process_pool):
    caught = process_pool.schedule(tasks.handle_signal).result()
    assert caught == [signal.SIGUSR1]


def test_exit_handlers_run(make_flag):
    flag = make_flag("exit")
    with ProcessPool(max_workers=1) as pool:
        pool.schedule(tasks.set_flag_at_exit, args=(flag,)).result()
        assert not flag.is_set()
    assert flag.is_set()


def test_exit_handlers_run_when_max_tasks_are_done(make_flag):
    flag = make_flag("exit")
    with ProcessPool(max_workers=1, max_tasks=1) as pool:
        pool.schedule(tasks.set_flag_at_exit, args=(flag,)).result()
        assert flag.wait()


FORKERS = {
    "main": "serve()",
    "thread": "thread = threading.Thread(target=serve); thread.start(); thread.join()",
    "executor": "with ThreadPoolExecutor(1) as pool: pool.submit(serve).result()",
    "pool's thread": "with ThreadPool(1) as pool: pool.schedule(serve).result()",
    "decorated": "concurrent.thread(serve)().result()",
    "callback": "with ProcessPool(1) as pool: pool.schedule(int).add_done_callback(serve)",
}


@pytest.mark.parametrize("forker", FORKERS)
def test_threads_of_tasks_are_waited_for(run, make_flag, forker):
    """Whatever thread made the pool's first call: in its workers that one is the main thread."""
    release, flag = make_flag("release"), make_flag("flag")
    run(f"""
        import multiprocessing, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        import tasks
        from pebble import ProcessPool, ThreadPool, concurrent
        from support import Flag

        def serve(*_):
            threading.current_thread()
            with ProcessPool(max_workers=1) as pool:
                flags = Flag({release.path!r}), Flag({flag.path!r})
                pool.schedule(tasks.set_flag_in_a_thread, args=flags).result()
                assert pool.schedule(tasks.describe_process).result()["main thread"]
                pool.close()
                flags[0].set()

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            {FORKERS[forker]}
        """)
    assert flag.is_set()


def test_streams_are_flushed(run):
    output = run("""
        import multiprocessing, sys
        from pebble import ProcessPool, concurrent

        def write(text):
            sys.stdout.write(text)

        @concurrent.process
        def write_alone(text):
            sys.stdout.write(text)

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            with ProcessPool(max_workers=1) as pool:
                pool.schedule(write, args=("one ",)).result()
                pool.schedule(write, args=("two ",)).result()
            write_alone("three").result()
        """)
    assert sorted(output.split()) == ["one", "three", "two"]


def test_what_the_program_has_not_flushed_is_written_once(run):
    output = run("""
        import multiprocessing, sys
        from pebble import ProcessPool

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            sys.stdout.write("once")
            with ProcessPool(max_workers=2) as pool:
                assert list(pool.map(int, "123").result()) == [1, 2, 3]
        """)
    assert output == "once"


def test_random_numbers_differ(make_flag):
    flags = make_flag("first"), make_flag("second")
    with ProcessPool(max_workers=2) as pool:
        futures = [
            pool.schedule(tasks.random_number, args=arguments)
            for arguments in (flags, flags[::-1])
        ]
        first, second = [future.result() for future in futures]
    assert first != second


@pytest.mark.parametrize(
    "nested",
    [tasks.nested_process_pool, tasks.nested_thread_pool],
    ids=["process", "thread"],
)
def test_pools_in_workers(process_pool, nested):
    assert process_pool.schedule(nested, args=([1, 2, 3],)).result() == [1, 2, 3]


def test_pools_in_several_workers(process_pool):
    futures = [
        process_pool.schedule(tasks.nested_process_pool, args=([n],)) for n in range(4)
    ]
    assert [future.result() for future in futures] == [[0], [1], [2], [3]]


def test_concurrent_in_workers(process_pool):
    assert process_pool.schedule(tasks.nested_concurrent, args=(5,)).result() == 5


def test_a_pool_in_a_worker_ends_with_it(process_pool, started):
    future = process_pool.schedule(tasks.hang_in_nested_pool, args=(started,))
    pid = started.number()
    assert future.cancel()
    assert process_pool.schedule(tasks.value, args=(1,)).result() == 1
    assert gone(pid, 5)
