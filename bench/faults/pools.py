"""The pools that are tried, each under the same few calls, by what its documentation offers.

A contender has open(), submit(), result(), close() in order, stop() as fast as it can be. `can` says what else
its documentation offers: a timeout that ends the task, cancelling, a stop that ends running tasks, callbacks,
workers replaced after some tasks, an initializer. `died` names the exceptions that tell that the task's process
died, `timed_out` those of its timeout. `peers` says in which environment it lives.
"""

import concurrent.futures

TIMEOUT, CANCEL, STOP, CALLBACK, MAX_TASKS, INITIALIZER = range(6)


class Pending(Exception):
    """The task has not ended in time."""


class Contender:
    died = timed_out = set()

    def map(self, pool, function, items):
        futures = [self.submit(pool, function, item) for item in items]
        return [self.result(future, None) for future in futures]


class OfFutures(Contender):
    """Futures of concurrent.futures."""

    def result(self, future, seconds):
        try:
            return future.result(timeout=seconds)
        except (TimeoutError, concurrent.futures.TimeoutError):
            if not future.done():
                raise Pending from None
            raise

    def cancel(self, future):
        return future.cancel()


class OfPebble(OfFutures):
    """Ours, and the package of the same name in the registry: the same calls."""

    can = {TIMEOUT, CANCEL, STOP, CALLBACK, MAX_TASKS, INITIALIZER}
    died, timed_out = {"ProcessExpired"}, {"TimeoutError"}

    def open(self, workers=2, **options):
        import pebble

        return pebble.ProcessPool(max_workers=workers, **options)

    def submit(self, pool, function, *args, timeout=None, callback=None):
        future = pool.schedule(function, args=args, timeout=timeout)
        if callback:
            future.add_done_callback(callback)
        return future

    def close(self, pool):
        pool.close()
        pool.join()

    def stop(self, pool, wait=True):
        pool.stop()
        if wait:
            pool.join()


class Ours(OfPebble):
    name, peers = "ours", False


class Pebble(OfPebble):
    name, peers = "Pebble", True


class OfExecutor(OfFutures):
    peers = True
    can = {CANCEL, CALLBACK, INITIALIZER}

    def submit(self, pool, function, *args, callback=None):
        future = pool.submit(function, *args)
        if callback:
            future.add_done_callback(callback)
        return future

    def close(self, pool):
        pool.shutdown()

    def stop(self, pool, wait=True):
        pool.shutdown(wait=wait, cancel_futures=True)


class Executor(OfExecutor):
    name = "ProcessPoolExecutor"
    can = OfExecutor.can | {MAX_TASKS}
    died = {"BrokenProcessPool"}

    def open(self, workers=2, max_tasks=None, **options):
        from concurrent.futures import ProcessPoolExecutor

        if max_tasks:
            import multiprocessing

            options["max_tasks_per_child"] = max_tasks
            options["mp_context"] = multiprocessing.get_context("forkserver")  # it refuses fork
        return ProcessPoolExecutor(workers, **options)


class Loky(OfExecutor):
    name = "loky"
    can = OfExecutor.can | {STOP}
    died = {"TerminatedWorkerError", "BrokenProcessPool"}

    def open(self, workers=2, **options):
        import loky

        return loky.ProcessPoolExecutor(workers, **options)

    def stop(self, pool, wait=True):
        pool.shutdown(wait=wait, kill_workers=True)


class Deadpool(OfExecutor):
    name = "deadpool"
    can = OfExecutor.can | {TIMEOUT, MAX_TASKS}
    died, timed_out = {"ProcessError"}, {"TimeoutError"}

    def open(self, workers=2, max_tasks=None, **options):
        import deadpool

        return deadpool.Deadpool(max_workers=workers, max_tasks_per_child=max_tasks, **options)

    def submit(self, pool, function, *args, timeout=None, callback=None):
        options = {} if timeout is None else {"deadpool_timeout": timeout}
        future = pool.submit(function, *args, **options)
        if callback:
            future.add_done_callback(callback)
        return future

    def cancel(self, future):
        return future.cancel_and_kill_if_running()


class OfAsyncResults(Contender):
    """Results of multiprocessing's kind."""

    peers = True

    def result(self, future, seconds):
        future.wait(seconds)
        if not future.ready():
            raise Pending
        return future.get()

    def close(self, pool):
        pool.close()
        pool.join()

    def stop(self, pool, wait=True):
        pool.terminate()
        if wait:
            pool.join()


class Multiprocessing(OfAsyncResults):
    name = "multiprocessing.Pool"
    can = {STOP, CALLBACK, MAX_TASKS, INITIALIZER}

    def open(self, workers=2, max_tasks=None, **options):
        import multiprocessing

        return multiprocessing.Pool(workers, maxtasksperchild=max_tasks, **options)

    def submit(self, pool, function, *args, callback=None):
        return pool.apply_async(function, args, callback=callback, error_callback=callback)


class Billiard(OfAsyncResults):
    name = "billiard"
    can = {TIMEOUT, STOP, CALLBACK, MAX_TASKS, INITIALIZER}
    died, timed_out = {"WorkerLostError"}, {"TimeLimitExceeded"}

    def open(self, workers=2, max_tasks=None, **options):
        from billiard.pool import Pool

        # A task's timeout is heeded only with the one; a lost worker is noticed after 10 s without the other.
        options |= {"enable_timeouts": True, "lost_worker_timeout": 1}
        return Pool(workers, maxtasksperchild=max_tasks, **options)

    def submit(self, pool, function, *args, timeout=None, callback=None):
        return pool.apply_async(
            function, args, timeout=timeout, callback=callback, error_callback=callback
        )

    def result(self, future, seconds):
        try:
            return super().result(future, seconds)
        except Exception as error:
            raise getattr(error, "exc", error) from None


class Mpire(OfAsyncResults):
    name = "mpire"
    can = {TIMEOUT, STOP, CALLBACK, MAX_TASKS, INITIALIZER}
    died, timed_out = {"RuntimeError"}, {"TimeoutError"}

    def open(self, workers=2, initializer=None, max_tasks=None):
        import mpire

        self.initializer, self.max_tasks = initializer, max_tasks
        return mpire.WorkerPool(n_jobs=workers)

    def submit(self, pool, function, *args, timeout=None, callback=None):
        return pool.apply_async(
            function,
            args,
            task_timeout=timeout,
            callback=callback,
            error_callback=callback,
            worker_init=self.initializer,
        )

    def map(self, pool, function, items):
        return pool.map(function, items, chunk_size=1, worker_lifespan=self.max_tasks)

    def close(self, pool):
        pool.stop_and_join()

    def stop(self, pool, wait=True):
        pool.terminate()


ALL = [Ours, Pebble, Executor, Multiprocessing, Loky, Billiard, Mpire, Deadpool]
BY_NAME = {contender.name: contender for contender in ALL}
