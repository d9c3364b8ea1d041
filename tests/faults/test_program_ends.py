"""Row 10: the program is killed, terminated, interrupted once and twice."""

import os
import signal
import time

import pytest

from support import eventually, gone, is_waiting, kill

PROGRAM = """
    import multiprocessing, signal, sys, threading, time
    from pebble import ProcessPool
    from tasks import hang, process_id, sleep, value

    def tell(x):
        print(x, flush=True)

    def make_pool():
        global pool, futures
        pool = ProcessPool(max_workers=3)
        futures = [pool.schedule(TASK) for _ in range(3)]

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        maker = threading.Thread(target=make_pool)
        if THREAD_ENDS:
            maker.start()
            maker.join()
        else:
            make_pool()
        while not pool.pids or BUSY and not all(future.running() for future in futures):
            time.sleep(0.001)
        if not BUSY:
            for future in futures:
                future.result()
        tell(" ".join(map(str, pool.pids)))
"""


def text(end, busy, thread_ends=False):
    source = PROGRAM.replace("TASK", "hang" if busy else "int")
    source = source.replace("BUSY", str(busy)).replace("THREAD_ENDS", str(thread_ends))
    return source + end


def worker_numbers(process):
    pids = list(map(int, process.line().split()))
    assert pids
    return pids


def all_gone_within_a_second(pids):
    end = time.monotonic() + 1
    return all(gone(pid, max(0, end - time.monotonic())) for pid in pids)


# ---- Killed, terminated ----


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("thread_ends", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_with_the_program(program, busy, thread_ends, signum):
    process = program(text("        time.sleep(1000)\n", busy, thread_ends))
    pids = worker_numbers(process)
    kill(process.pid, signum)
    assert all_gone_within_a_second(pids)
    assert process.end() == (-signum, "", "")


def test_workers_that_ignore_all_signals_end_with_the_program(program, started):
    process = program(f"""
        import multiprocessing, sys
        from pebble import ProcessPool
        from support import Flag
        from tasks import ignore_signals

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            with ProcessPool(max_workers=1) as pool:
                pool.schedule(ignore_signals, args=(Flag({started.path!r}),)).result()
        """)
    pid = started.number()
    kill(process.pid)
    assert all_gone_within_a_second([pid])


# ---- Ctrl-C ----


def interrupt(process):
    """As a terminal does: the whole group. When it was."""
    assert eventually(lambda: is_waiting(process.pid))
    os.killpg(process.pid, signal.SIGINT)
    return time.monotonic()


@pytest.mark.parametrize("busy", [False, True])
def test_interrupted_once(program, busy):
    wait = """
        try:
            tell("waits")
            pool.schedule(hang).result()
        except KeyboardInterrupt:
            pool.stop()
            pool.join()
        tell("ended")
"""
    process = program(text(wait, busy), start_new_session=True)
    pids = worker_numbers(process)
    assert process.line() == "waits"
    begin = interrupt(process)
    assert process.end() == (0, "ended\n", "")
    assert time.monotonic() - begin < 2  # SIGTERM is enough: nobody waits for a grace
    assert all(gone(pid) for pid in pids)


def test_interrupted_twice(program, started):
    """The second ends the wait for a task that ignores SIGTERM through its grace."""
    process = program(
        f"""
        import multiprocessing, sys, time
        from pebble import ProcessPool
        from support import Flag
        from tasks import ignore_signals

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            pool = ProcessPool(max_workers=1, termination_grace=60)
            future = pool.schedule(ignore_signals, args=(Flag({started.path!r}),))
            try:
                print("waits", flush=True)
                future.result()
            except KeyboardInterrupt:
                pool.stop()
            try:
                print("joins", flush=True)
                pool.join()
            except KeyboardInterrupt:
                print("leaves", flush=True)
        """,
        start_new_session=True,
    )
    pid = started.number()
    assert process.line() == "waits"
    interrupt(process)
    assert process.line() == "joins"
    begin = interrupt(process)
    assert process.end() == (0, "leaves\n", "")
    assert time.monotonic() - begin < 5
    assert all_gone_within_a_second([pid])


def test_interrupted_twice_and_nobody_catches(program, started, make_flag):
    """The first has the context stop its pool, whose task outlasts SIGTERM; the second ends that."""
    terminated = make_flag("terminated")
    process = program(
        f"""
        import multiprocessing, sys
        from pebble import ProcessPool
        from support import Flag
        from tasks import hang, hang_until_terminated

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            flags = Flag({started.path!r}), Flag({terminated.path!r})
            with ProcessPool(max_workers=1, termination_grace=60) as pool:
                pool.schedule(hang_until_terminated, args=(*flags, hang)).result()
        """,
        start_new_session=True,
    )
    pid = started.number()
    interrupt(process)
    assert terminated.number() == signal.SIGTERM
    begin = interrupt(process)
    code, _, errors = process.end()
    assert time.monotonic() - begin < 5
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "During handling of the above exception" in errors  # both came
    assert all_gone_within_a_second([pid])
