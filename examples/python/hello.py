"""The first program: functions run in another process, with a time limit; one hangs, one crashes."""

import ctypes
from concurrent.futures import TimeoutError

from pebble import ProcessExpired, ProcessPool


def shout(text):
    return text.upper()


def hang(text):
    while True:
        pass


def crash(text):
    ctypes.string_at(0)


if __name__ == "__main__":
    with ProcessPool() as pool:
        for function in (shout, hang, crash):
            future = pool.schedule(function, args=("hello",), timeout=0.2)
            try:
                print(future.result())
            except TimeoutError as error:
                print("TimeoutError after", error.args[1], "s")
            except ProcessExpired as error:
                print(error)
                assert error.exitcode == -11
