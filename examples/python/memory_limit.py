"""Control the resources of workers: memory limited by an initializer."""

import resource

from pebble import ProcessPool

MAX_MEM = 1024


def initializer(limit):
    """Set maximum amount of memory each worker process can allocate."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def function():
    """This function tries to allocate 1Mb worth of string."""
    string = ""

    for _ in range(1024):
        string += 1024 * "A"


if __name__ == "__main__":
    pool = ProcessPool(initializer=initializer, initargs=(MAX_MEM,))
    future = pool.schedule(function)

    assert isinstance(future.exception(), MemoryError)
    print(repr(future.exception()))
    pool.close()
    pool.join()
