"""Row 9: whatever processes a task starts, in whatever way, end with it."""

from concurrent.futures import CancelledError

import pytest
from pebble import ProcessExpired, ProcessPool

from fault_tasks import WAYS, start_and_hang, start_nothing, while_the_kill_is_on
from support import DEADLINE, children, gone, kill, threads

# ---- Ends of the task ----


def time_out(pool, future):
    assert isinstance(future.exception(DEADLINE), TimeoutError)


def cancel(pool, future):
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(DEADLINE)


def stop(pool, future):
    pool.stop()
    pool.join()
    assert future.cancelled()


def lose_zygote(pool, future):
    """The process that would see to the end of all is killed."""
    (zygote,) = [pid for pid in children() if threads(pid).get(pid) == "pebble-zygote"]
    kill(zygote)
    assert isinstance(future.exception(DEADLINE), ProcessExpired)


ENDS = [time_out, cancel, stop, lose_zygote]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", WAYS)
def test_gone_with_the_task(way, end, started, make_flag):
    child = make_flag("child")
    grace = 2 if way is while_the_kill_is_on else 0.2  # it has something to do in it
    with ProcessPool(max_workers=1, termination_grace=grace) as pool:
        pool.schedule(start_nothing).result()  # their module is there: timeouts are the task's own
        timeout = 0.5 if end is time_out else None
        future = pool.schedule(
            start_and_hang, args=(way, child, started), timeout=timeout
        )
        assert started.wait() and child.wait()
        end(pool, future)
        sigterm_came = way is while_the_kill_is_on and end is not lose_zygote
        pids = child.numbers(2 if sigterm_came else 1)
        assert all(gone(pid, DEADLINE if end is lose_zygote else 0) for pid in pids)


# ---- Standard output, inherited and held ----


@pytest.mark.parametrize("end", ["timeout", "cancel", "stop"])
def test_standard_output_is_let_go(program, make_flag, end):
    process = program(f"""
        import concurrent.futures, multiprocessing, subprocess, sys, time
        from pebble import ProcessPool
        from support import Flag, gone

        def hold_output(child):
            child.set(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
            time.sleep(1000)

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            pool = ProcessPool(max_workers=1)
            end, child = "{end}", Flag({make_flag("child").path!r})
            timeout = 1 if end == "timeout" else None
            future = pool.schedule(hold_output, args=(child,), timeout=timeout)
            pid = child.number()
            if end == "cancel":
                future.cancel()
            elif end == "stop":
                pool.stop()
            concurrent.futures.wait([future])
            print("gone" if gone(pid) else "left", flush=True)
            pool.close()
            pool.join()
            print("ended", flush=True)
        """)
    assert process.end() == (0, "gone\nended\n", "")  # read until nobody holds the pipe
