"""The pools that are measured, each under the same few calls.

A contender has open(workers), submit(), get(), map() and close(); what it cannot do it does not have, and
the rows that need it leave it out. `peers` says in which environment it lives.
"""


class OfPebble:
    """Ours, and the package of the same name in the registry: the same calls."""

    def open(self, workers, **options):
        import pebble

        return pebble.ProcessPool(max_workers=workers, **options)

    def submit(self, pool, function, *args, timeout=None):
        return pool.schedule(function, args=args, timeout=timeout)

    def get(self, future):
        return future.result()

    def map(self, pool, function, items, chunksize):
        return list(pool.map(function, items, chunksize=chunksize).result())

    def open_with_new_workers(self, workers):
        return self.open(workers, max_tasks=1)

    def call_alone(self, function):
        from pebble import concurrent

        return concurrent.process(function)

    def open_threads(self, workers):
        import pebble

        return pebble.ThreadPool(max_workers=workers)

    def submit_thread(self, pool, function, *args):
        return pool.schedule(function, args=args)

    def close(self, pool):
        pool.close()
        pool.join()


class Ours(OfPebble):
    name, peers = "ours", False


class Pebble(OfPebble):
    name, peers = "Pebble", True


class OfExecutor:
    peers = True

    def submit(self, pool, function, *args):
        return pool.submit(function, *args)

    def get(self, future):
        return future.result()

    def map(self, pool, function, items, chunksize):
        return list(pool.map(function, items, chunksize=chunksize))

    def close(self, pool):
        pool.shutdown()


class Executor(OfExecutor):
    name = "ProcessPoolExecutor"

    def open(self, workers):
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(workers)

    def open_with_new_workers(self, workers):
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context("forkserver")  # it refuses fork
        return ProcessPoolExecutor(workers, max_tasks_per_child=1, mp_context=context)

    def open_threads(self, workers):
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(workers)

    submit_thread = OfExecutor.submit


class Loky(OfExecutor):
    name = "loky"

    def open(self, workers):
        import loky

        return loky.ProcessPoolExecutor(workers)


class Deadpool(OfExecutor):
    name = "deadpool"

    def open(self, workers):
        import deadpool

        return deadpool.Deadpool(max_workers=workers)

    def submit(self, pool, function, *args, timeout=None):
        if timeout is None:
            return pool.submit(function, *args)
        return pool.submit(function, *args, deadpool_timeout=timeout)


class OfMultiprocessing:
    peers = True

    def submit(self, pool, function, *args):
        return pool.apply_async(function, args)

    def get(self, result):
        return result.get()

    def map(self, pool, function, items, chunksize):
        return pool.map(function, items, chunksize=chunksize)

    def close(self, pool):
        pool.close()
        pool.join()


class Multiprocessing(OfMultiprocessing):
    name = "multiprocessing.Pool"

    def open(self, workers, **options):
        import multiprocessing

        return multiprocessing.Pool(workers, **options)

    def open_with_new_workers(self, workers):
        return self.open(workers, maxtasksperchild=1)


class Billiard(OfMultiprocessing):
    name = "billiard"

    def open(self, workers, **options):
        import billiard

        return billiard.Pool(workers, **options)

    def open_with_new_workers(self, workers):
        return self.open(workers, maxtasksperchild=1)


class Mpire:
    name, peers = "mpire", True

    def open(self, workers):
        import mpire

        return mpire.WorkerPool(n_jobs=workers)

    def submit(self, pool, function, *args, timeout=None):
        return pool.apply_async(function, args, task_timeout=timeout)

    def get(self, result):
        return result.get()

    def map(self, pool, function, items, chunksize):
        return pool.map(function, items, chunk_size=chunksize)

    def close(self, pool):
        pool.stop_and_join()


ALL = [Ours, Pebble, Executor, Multiprocessing, Loky, Billiard, Mpire, Deadpool]
BY_NAME = {contender.name: contender for contender in ALL}
