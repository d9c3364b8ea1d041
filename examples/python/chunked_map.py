"""A million elements in one chunk for each processor."""

from multiprocessing import cpu_count

from pebble import ProcessPool


def function(n):
    return n


if __name__ == "__main__":
    elements = list(range(1000000))
    cpus = cpu_count()
    size = len(elements)
    chunksize = size / cpus
    # the timeout will be assigned to each chunk
    # therefore, we need to consider its size
    timeout = 10 * chunksize

    with ProcessPool(max_workers=cpus) as pool:
        future = pool.map(function, elements, chunksize=chunksize, timeout=timeout)
        assert list(future.result()) == elements
    print(size, "elements in chunks of", int(chunksize))
