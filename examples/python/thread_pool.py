"""A pool of threads: on the program's own objects; what stop does to queued calls."""

import threading
from concurrent.futures import CancelledError

from pebble import ThreadPool

if __name__ == "__main__":
    with ThreadPool(max_workers=2) as pool:
        words = ["threads", "share", "objects"]
        print(list(pool.map(str.upper, words, chunksize=2).result()))

    pool = ThreadPool(max_workers=1)
    started, release = threading.Event(), threading.Event()
    running = pool.schedule(lambda: started.set() or release.wait())
    queued = pool.schedule(int)
    started.wait()
    pool.stop()
    release.set()
    pool.join()
    assert running.result() is True
    try:
        queued.result()
    except CancelledError:
        print("the queued call was cancelled")
    assert queued.cancelled()
