"""The main job: a pool decompresses and parses the documents that the system ships, while some inputs
loop for ever, take all memory, crash, exit, raise, or give what cannot be pickled.

    documents.py [--method fork|forkserver|spawn] [--limit COUNT] [FOLDER]...

It checks that each honest document was done once, with the same outcome as without a pool, and that
each hostile one ended with its own reason.
"""

import argparse
import ctypes
import gzip
import multiprocessing
import os
import re
import resource
import sys
import time
from collections import Counter
from concurrent.futures import TimeoutError, as_completed

from pebble import ProcessExpired, ProcessPool

FOLDERS = ("/usr/share/man", "/usr/share/doc")
TIMEOUT = 3
MEMORY = 512 << 20
WORD = re.compile(rb"[A-Za-z]+")


# ---- What workers do


def parse(path):
    """Counts the words of a document, compressed or not."""
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        return len(WORD.findall(file.read()))


def loop(path):
    while True:
        pass


def take_all_memory(path):
    taken = []
    while True:
        taken.append(bytearray(64 << 20))


def crash(path):
    ctypes.memset(8, 0, 1)


def leave(path):
    os._exit(0)


def fail(path):
    raise ValueError("this document is not to my liking")


def give_a_lambda(path):
    return lambda: path


def limit_memory(limit):
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


HOSTILE = {
    loop: ["TimeoutError"],
    take_all_memory: ["MemoryError"],
    crash: ["ProcessExpired -11"],
    leave: ["ProcessExpired 0"],
    fail: ["ValueError"],
    give_a_lambda: ["PicklingError", "AttributeError"],  # before Python 3.12, the latter
}


# ---- What the program does


def find_documents(folders, limit):
    """The compressed ones; where there are none, any file."""
    found = sorted(
        os.path.join(directory, name)
        for folder in folders
        for directory, _, names in os.walk(folder)
        for name in names
    )
    return ([path for path in found if path.endswith(".gz")] or found)[:limit]


def outcome(call):
    """A number of words, or how it ended."""
    try:
        return call()
    except TimeoutError:
        return "TimeoutError"
    except ProcessExpired as error:
        return f"ProcessExpired {error.exitcode}"
    except Exception as error:
        return type(error).__name__


def run(pool, documents):
    """Schedules everything, the hostile inputs spread among the documents."""
    futures = {}
    every = max(len(documents) // len(HOSTILE), 1)
    hostile = list(HOSTILE)
    for number, path in enumerate(documents):
        futures[pool.schedule(parse, args=(path,), timeout=30)] = path
        if number % every == 0 and hostile:
            function = hostile.pop()
            futures[pool.schedule(function, args=(path,), timeout=TIMEOUT)] = function
    for function in hostile:
        futures[pool.schedule(function, args=("",), timeout=TIMEOUT)] = function
    return {futures[future]: outcome(future.result) for future in as_completed(futures)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=multiprocessing.get_all_start_methods())
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    options = parser.parse_args()
    documents = find_documents(options.folders, options.limit)
    if not documents:
        sys.exit(f"no documents under {', '.join(options.folders)}")
    print(f"{len(documents)} documents, {len(HOSTILE)} hostile inputs")

    begin = time.monotonic()
    with ProcessPool(
        initializer=limit_memory, initargs=(MEMORY,), context=options.method
    ) as pool:
        outcomes = run(pool, documents)
        seconds = time.monotonic() - begin
        mapped = pool.map(parse, documents, chunksize=50).result()
        again = [outcome(lambda: next(mapped)) for _ in documents]

    for function, expected in HOSTILE.items():
        print(f"  {function.__name__:16} {outcomes[function]}")
        assert outcomes[function] in expected, (function, outcomes[function])
    expected = [outcome(lambda: parse(path)) for path in documents]
    assert [outcomes[path] for path in documents] == expected == again
    words = sum(each for each in expected if isinstance(each, int))
    ends = Counter("read" if isinstance(each, int) else each for each in expected)
    print(f"  {words} words; {dict(ends)}; {seconds:.1f} s in all")


if __name__ == "__main__":
    sys.exit(main())
