import concurrent.futures
import multiprocessing
import threading

import pytest
from pebble import ProcessPool, ThreadPool

import tasks
from support import outcomes


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


def assert_broken(pool, log, cause):
    """Its future ends, it takes no more, and does not try for ever."""
    with pytest.raises(RuntimeError) as caught:
        pool.schedule(tasks.value, args=(1,)).result(10)
    assert cause in str(caught.value)
    assert not pool.active
    with pytest.raises(RuntimeError, match=cause):
        pool.schedule(tasks.value, args=(1,))
    with pytest.raises(RuntimeError, match=cause):
        pool.map(tasks.value, [1])
    assert len(tasks.calls(log)) == 3
    pool.close()
    pool.join()


def test_receives_initargs(any_kind):
    with any_kind(max_workers=1, initializer=tasks.remember, initargs=("x",)) as pool:
        assert pool.schedule(tasks.recall).result() == "x"
        assert list(pool.map(tasks.recall, range(3)).result()) == ["x"] * 3
    tasks.remember(None)


@pytest.mark.parametrize(
    "initargs", [["x"], iter("x"), {"x": 1}], ids=["list", "iterator", "dict"]
)
def test_initargs_is_any_iterable(initargs):
    with ProcessPool(
        max_workers=1, initializer=tasks.remember, initargs=initargs
    ) as pool:
        assert pool.schedule(tasks.recall).result() == "x"


@pytest.mark.parametrize("initargs", [None, ()])
def test_no_initargs(any_kind, initargs):
    with any_kind(max_workers=1, initializer=tasks.process_id, initargs=initargs) as pool:
        assert pool.schedule(tasks.value, args=(1,)).result() == 1


def test_in_every_worker(any_kind, make_flag, log):
    flags = [make_flag(f"flag{n}") for n in range(3)]
    with any_kind(max_workers=3, initializer=tasks.log_call, initargs=(log,)) as pool:
        futures = [pool.schedule(tasks.meet, args=(flag, *flags)) for flag in flags]
        pids = [future.result() for future in futures]
    assert sorted(tasks.calls(log)) == sorted(pids)


def test_again_in_restarted_processes(log):
    pool = ProcessPool(
        max_workers=1, max_tasks=2, initializer=tasks.log_call, initargs=(log,)
    )
    with pool:
        futures = [pool.schedule(tasks.process_id) for _ in range(6)]
        pids = [future.result() for future in futures]
        assert tasks.calls(log)[:3] == pids[::2]


def test_again_in_restarted_threads(log):
    pool = ThreadPool(
        max_workers=1, max_tasks=2, initializer=tasks.log_call, initargs=(log,)
    )
    with pool:
        for _ in range(6):
            pool.schedule(int).result()
        assert len(tasks.calls(log)) in (3, 4)


def test_in_the_workers_own_thread():
    local = threading.local()
    with ThreadPool(max_workers=1, initializer=setattr, initargs=(local, "x", 1)) as pool:
        assert pool.schedule(getattr, args=(local, "x")).result() == 1
    assert not hasattr(local, "x")


def test_again_after_a_death(log):
    with ProcessPool(max_workers=1, initializer=tasks.log_call, initargs=(log,)) as pool:
        pool.schedule(tasks.die).exception()
        pid = pool.schedule(tasks.process_id).result()
    assert len(tasks.calls(log)) == 2 and tasks.calls(log)[1] == pid


@pytest.mark.parametrize(
    "initializer, cause",
    [(tasks.log_and_fail, "broken initializer"), (tasks.log_and_leave, "left")],
)
def test_raises(any_kind, log, initializer, cause):
    pool = any_kind(max_workers=1, initializer=initializer, initargs=(log,))
    assert_broken(pool, log, cause)


@pytest.mark.parametrize("start", ["", "x"])
def test_raises_with_a_text_that_is_cut_within_a_character(any_kind, start):
    error = LookupError, start + "é" * 10_000
    with any_kind(max_workers=1, initializer=tasks.fail, initargs=error) as pool:
        with pytest.raises(RuntimeError, match="initializer failed"):
            pool.schedule(int).result(10)
        with pytest.raises(RuntimeError, match="initializer failed"):
            pool.schedule(int)


def test_dies(log):
    pool = ProcessPool(1, initializer=tasks.log_and_die, initargs=(log,))
    assert_broken(pool, log, "exit code 7")


def test_crashes():
    pool = ProcessPool(1, initializer=tasks.crash)
    with pytest.raises(RuntimeError, match="SIGSEGV"):
        pool.schedule(tasks.value, args=(1,)).result(10)
    pool.close()
    pool.join()


def test_hangs(log, start_method):
    limit = 0.15 if start_method == "fork" else 1
    pool = ProcessPool(
        max_workers=1,
        initializer=tasks.log_and_hang,
        initargs=(log,),
        initializer_timeout=limit,
    )
    assert_broken(pool, log, f"the initializer took longer than {limit:.3f} s")


def test_maps_of_a_broken_pool_end(any_kind, log):
    pool = any_kind(max_workers=1, initializer=tasks.log_and_fail, initargs=(log,))
    future = pool.map(tasks.value, range(10), chunksize=3)
    assert concurrent.futures.wait([future], 10).done
    assert all(isinstance(error, RuntimeError) for error in outcomes(future.result()))
    pool.close()
    pool.join()


def test_raises_in_many_workers(any_kind, log):
    with any_kind(max_workers=4, initializer=tasks.log_and_fail, initargs=(log,)) as pool:
        errors = outcomes(pool.map(tasks.value, range(8)).result())
        assert all(isinstance(error, RuntimeError) for error in errors)
    assert len(tasks.calls(log)) <= 12


def test_fails_at_first(any_kind, log):
    with any_kind(
        max_workers=1, initializer=tasks.fail_at_first, initargs=(log,)
    ) as pool:
        assert pool.schedule(tasks.value, args=(1,)).result() == 1
        assert pool.active
    assert len(tasks.calls(log)) == 2


def test_only_the_initializer_is_limited_in_time(start_method):
    limit = 0.2 if start_method == "fork" else 1  # a start counts, too
    with ProcessPool(1, initializer=int, initializer_timeout=limit) as pool:
        assert pool.schedule(tasks.sleep, args=(limit + 0.1,)).result() == limit + 0.1


def test_its_time_is_not_the_tasks():
    with ProcessPool(1, initializer=tasks.sleep, initargs=(0.3,)) as pool:
        assert pool.schedule(tasks.value, args=(1,), timeout=0.2).result() == 1


# ---- What multiprocessing gives to processes that start only ----


@pytest.mark.parametrize(
    "kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"]
)
def test_locks_of_multiprocessing(start_method, kind):
    """One for all, also for workers that start later."""
    lock = getattr(multiprocessing.get_context(start_method), kind)()
    with ProcessPool(
        1, initializer=tasks.remember, initargs=(lock,), context=start_method
    ) as pool:
        for _ in range(2):
            with lock:
                assert pool.schedule(tasks.take_remembered).result() is False
            assert pool.schedule(tasks.take_remembered).result() is True
            pool.schedule(tasks.die).exception()


def test_an_event_of_multiprocessing(start_method):
    context = multiprocessing.get_context(start_method)
    events = context.Event(), context.Event()
    with ProcessPool(
        2, initializer=tasks.remember, initargs=(events,), context=start_method
    ) as pool:
        future = pool.schedule(tasks.answer_remembered)
        events[0].set()
        assert events[1].wait(10)
        assert future.result()


def test_a_lock_that_only_the_pool_keeps(start_method):
    context = multiprocessing.get_context(start_method)
    with ProcessPool(
        1, initializer=tasks.remember, initargs=(context.Lock(),), context=context
    ) as pool:
        assert pool.schedule(tasks.take_remembered).result() is True


def test_descriptors_are_not_for_each_worker(start_method):
    context = multiprocessing.get_context(start_method)
    if start_method == "fork":
        pytest.skip("inherits them")
    for each in context.Queue(), context.Value("i"), context.Barrier(2):
        with pytest.raises(RuntimeError, match="initargs .*Manager"):
            ProcessPool(1, initializer=tasks.remember, initargs=(each,), context=context)
        assert multiprocessing.context.get_spawning_popen() is None


def test_locks_are_no_arguments_of_tasks(process_pool, start_method):
    """Nor after they have been initargs: their worker has started."""
    lock = multiprocessing.get_context(start_method).Lock()
    ProcessPool(1, initializer=tasks.remember, initargs=(lock,)).close()
    error = process_pool.schedule(tasks.value, args=(lock,)).exception()
    assert isinstance(error, RuntimeError) and "inheritance" in str(error)


def test_nothing_is_left_of_locks(run):
    """No warning of a semaphore that leaked, or is not there to be removed."""
    assert run("""
        import multiprocessing, sys
        from pebble import ProcessPool, concurrent
        from tasks import remember, take_remembered, take

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            lock = multiprocessing.Lock()
            with ProcessPool(2, max_tasks=1, initializer=remember, initargs=(lock,)) as pool:
                print([pool.schedule(take_remembered).result() for _ in range(4)])
            print(concurrent.process(take)(lock).result(), take(lock))
        """) == "[True, True, True, True]\nTrue True\n"
