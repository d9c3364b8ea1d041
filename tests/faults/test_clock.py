"""Row 16: the wall clock set an hour ahead or back leaves all timeouts where they are.

The C library's clocks are replaced in a program and its workers by some that can be shifted.
"""

import subprocess

import pytest

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static long shift;

void shift_clock(long seconds) {
    shift = seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int error = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += shift;
    return error;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    *now = (struct timeval){precise.tv_sec, precise.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now != NULL)
        *now = precise.tv_sec;
    return precise.tv_sec;
}
"""

PROGRAM = """
    import concurrent.futures, ctypes, multiprocessing, sys, time
    from pebble import ProcessPool
    from tasks import hang, sleep, value

    def set_clock(seconds):
        ctypes.CDLL(None).shift_clock(seconds)

    def assert_ends_after(future, seconds, begin):
        assert isinstance(future.exception(30), concurrent.futures.TimeoutError)
        late = time.monotonic() - begin - seconds
        assert 0 <= late < 2, late

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        with ProcessPool(max_workers=3) as pool:
            assert pool.schedule(value, args=(1,)).result() == 1
            begin, wall = time.monotonic(), time.time()
            futures = [pool.schedule(hang, timeout=0.4), pool.schedule(hang, timeout=0.8)]
            lasting = pool.schedule(sleep, args=(1.2,), timeout=60)
            while not all(future.running() or future.done() for future in futures + [lasting]):
                time.sleep(0.001)
            set_clock(SHIFT)
            pool.schedule(set_clock, args=(SHIFT,)).result()
            assert abs(time.time() - wall - SHIFT) < 60
            for future, seconds in zip(futures, (0.4, 0.8)):
                assert_ends_after(future, seconds, begin)
            begin = time.monotonic()
            assert_ends_after(pool.schedule(hang, timeout=0.3), 0.3, begin)
            begin = time.monotonic()
            try:
                pool.schedule(hang, timeout=5).result(0.2)
                assert False
            except concurrent.futures.TimeoutError:
                assert 0.2 <= time.monotonic() - begin < 2
            assert lasting.result() == 1.2
            pool.stop()
            pool.join(30)
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clock")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    return library


@pytest.mark.parametrize("shift", [3600, -3600])
def test_timeouts_are_unmoved(run, monkeypatch, clock, shift):
    monkeypatch.setenv("LD_PRELOAD", str(clock), prepend=":")
    run(PROGRAM.replace("SHIFT", str(shift)))
