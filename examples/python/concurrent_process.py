"""Run a function in a separate process and wait for its results."""

from pebble import concurrent


@concurrent.process
def function(arg, kwarg=0):
    return arg + kwarg


if __name__ == "__main__":
    future = function(1, kwarg=1)
    print(future.result())
    assert future.result() == 2
