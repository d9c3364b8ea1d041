"""A map whose iterator gives each result, no matter its outcome."""

import os
from concurrent.futures import TimeoutError

from pebble import ProcessExpired, ProcessPool


def function(n):
    if n == 20:
        while True:
            pass
    if n == 40:
        os._exit(1)
    if n == 60:
        raise ValueError("sixty")
    return n


def outcomes(pool):
    future = pool.map(function, range(100), timeout=0.5)
    iterator = future.result()
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            break
        except TimeoutError as error:
            print("function took longer than %.1f seconds" % error.args[1])
            yield "timeout"
        except ProcessExpired as error:
            print("%s. Exit code: %d" % (error, error.exitcode))
            yield "expired"
        except Exception as error:
            print("function raised %s" % error)
            print(error.traceback)  # Python's traceback of remote process
            yield "error"


if __name__ == "__main__":
    with ProcessPool() as pool:
        found = list(outcomes(pool))
    expected = list(range(100))
    expected[20], expected[40], expected[60] = "timeout", "expired", "error"
    assert found == expected
    print(sum(isinstance(each, int) for each in found), "results")
