"""The examples of the specification, as programs."""


def test_concurrent_decorators(run):
    assert run("""
            import sys
            from pebble import concurrent

            @concurrent.process(context=sys.argv[1])
            def function(arg, kwarg=0):
                return arg + kwarg

            if __name__ == "__main__":
                future = function(1, kwarg=1)

                print(future.result())
            """) == "2\n"


UNSTABLE = """
    import os, sys, time
    from pebble import ProcessExpired, concurrent
    from concurrent.futures import TimeoutError

    def unstable_function(arg, kwarg):
        if arg == "hang":
            time.sleep(1000)
        if arg == "die":
            os._exit(3)
        if arg == "fail":
            raise ValueError(kwarg)

    @concurrent.process(timeout=1, context=sys.argv[1])
    def function(arg, kwarg=0):
        unstable_function(arg, kwarg=kwarg)

    if __name__ == "__main__":
        for arg in "hang", "die", "fail", "return":
            future = function(arg, kwarg=1)

            try:
                results = future.result()
                print("returned", results)
            except TimeoutError as error:
                print("unstable_function took longer than %d seconds" % error.args[1])
            except ProcessExpired as error:
                print("%s. Exit code: %d" % (error, error.exitcode))
            except Exception as error:
                print("unstable_function raised %s" % error)
                print(error.traceback)  # Python's traceback of remote process
"""


def test_unstable_function(run):
    lines = run(UNSTABLE).splitlines()
    assert lines[0] == "unstable_function took longer than 1 seconds"
    assert lines[1].endswith(". Exit code: 3")
    assert lines[2] == "unstable_function raised 1"
    assert lines[3] == "Traceback (most recent call last):"
    assert lines[-1] == "returned None"


POOLS = """
    import os, sys, time
    from concurrent.futures import TimeoutError
    from pebble import ProcessPool, ProcessExpired

    def function(n):
        if n == 20:
            time.sleep(1000)
        if n == 40:
            os._exit(3)
        if n == 60:
            raise ValueError(n)
        return n

    if __name__ == "__main__":
        with ProcessPool(context=sys.argv[1]) as pool:
            future = pool.map(function, range(100), timeout=1)

            iterator = future.result()

            while True:
                try:
                    result = next(iterator)
                    print(result)
                except StopIteration:
                    break
                except TimeoutError as error:
                    print("function took longer than %d seconds" % error.args[1])
                except ProcessExpired as error:
                    print("Exit code: %d" % error.exitcode)
                except Exception as error:
                    print("function raised %s" % error)
                    assert "raise ValueError(n)" in error.traceback
"""


def test_pools(run):
    expected = [str(n) for n in range(100)]
    expected[20] = "function took longer than 1 seconds"
    expected[40] = "Exit code: 3"
    expected[60] = "function raised 60"
    assert run(POOLS).splitlines() == expected


FIBONACCI = """
    import sys
    from pebble import ProcessPool
    from concurrent.futures import TimeoutError

    def fibonacci(n):
        if n == 0: return 0
        elif n == 1: return 1
        else: return fibonacci(n - 1) + fibonacci(n - 2)

    if __name__ == "__main__":
        with ProcessPool(context=sys.argv[1]) as pool:
            future = pool.map(fibonacci, range(50), timeout=0.2)

            try:
                for n in future.result():
                    print(n)
            except TimeoutError:
                print("TimeoutError: aborting remaining computations")
                future.cancel()
"""


def test_fibonacci(run):
    *numbers, last = run(FIBONACCI).splitlines()
    assert numbers[:10] == ["0", "1", "1", "2", "3", "5", "8", "13", "21", "34"]
    assert last == "TimeoutError: aborting remaining computations"


CHUNKS = """
    import sys
    from pebble import ProcessPool
    from multiprocessing import cpu_count
    from concurrent.futures import TimeoutError

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

        with ProcessPool(max_workers=cpus, context=sys.argv[1]) as pool:
            future = pool.map(function, elements, chunksize=chunksize, timeout=timeout)

            assert list(future.result()) == elements
"""


def test_chunks(run):
    assert run(CHUNKS) == ""


RESOURCES = """
    import resource, sys
    from pebble import ProcessPool

    MAX_MEM = 1024

    def initializer(limit):
        \"\"\"Set maximum amount of memory each worker process can allocate.\"\"\"
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))

    def function():
        \"\"\"This function tries to allocate 1Mb worth of string.\"\"\"
        string = ''

        for _ in range(1024):
            string += 1024 * 'A'

    if __name__ == "__main__":
        pool = ProcessPool(initializer=initializer, initargs=(MAX_MEM,), context=sys.argv[1])
        future = pool.schedule(function)

        assert isinstance(future.exception(), MemoryError)
"""


def test_control_of_resources(run):
    assert run(RESOURCES) == ""


def test_sighandler(run):
    assert run("""
            import os, signal
            from pebble import sighandler

            @sighandler((signal.SIGINT, signal.SIGTERM))
            def signal_handler(signum, frame):
                print("Termination request received!")

            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            """) == 2 * "Termination request received!\n"
