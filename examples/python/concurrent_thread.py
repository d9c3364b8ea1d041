"""Run a function in a thread of its own, on the program's objects."""

import threading

from pebble import concurrent

seen = []


@concurrent.thread(name="reader")
def function(arg):
    seen.append(threading.current_thread().name)
    return arg * 2


if __name__ == "__main__":
    print(function(21).result(), seen)
    assert seen == ["reader"]
