"""Waiting for any of several queues."""

import queue
import threading

from pebble import waitforqueues

if __name__ == "__main__":
    first, second = queue.Queue(), queue.Queue()
    assert waitforqueues([first, second], timeout=0.1) == []

    threading.Timer(0.1, second.put, args=["an item"]).start()
    ready = waitforqueues([first, second])
    assert ready == [second]
    print(second.get())
