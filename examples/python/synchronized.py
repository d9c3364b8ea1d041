"""Functions of which one caller at a time is inside."""

import threading

from pebble import synchronized

count = 0


@synchronized
def increment(times):
    global count
    for _ in range(times):
        count += 1


@synchronized(threading.RLock())
def twice(times):
    increment(times)
    increment(times)


if __name__ == "__main__":
    threads = [threading.Thread(target=twice, args=(10000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(count)
    assert count == 80000
