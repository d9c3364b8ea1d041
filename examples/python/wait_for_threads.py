"""Waiting for any of several threads."""

import threading

from pebble import waitforthreads

if __name__ == "__main__":
    release = threading.Event()
    quick = threading.Thread(target=int, name="quick")
    slow = threading.Thread(target=release.wait, name="slow")
    for thread in (quick, slow):
        thread.start()

    ready = waitforthreads([slow, quick])
    print("ready:", [thread.name for thread in ready])
    assert ready == [quick]
    assert waitforthreads([slow], timeout=0.1) == []
    release.set()
    assert waitforthreads([slow]) == [slow]
