"""The Fibonacci sequence up to a certain duration, after which all remaining computations are cancelled."""

from concurrent.futures import TimeoutError

from pebble import ProcessPool


def fibonacci(n):
    if n == 0:
        return 0
    elif n == 1:
        return 1
    else:
        return fibonacci(n - 1) + fibonacci(n - 2)


if __name__ == "__main__":
    found = []
    with ProcessPool() as pool:
        future = pool.map(fibonacci, range(50), timeout=0.5)
        try:
            for n in future.result():
                found.append(n)
        except TimeoutError:
            print("TimeoutError: aborting remaining computations")
            future.cancel()
    print(found)
    assert found[:10] == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34] and len(found) < 50
