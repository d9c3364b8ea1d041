"""Ctrl-C beside handlers of SIGINT in C, faulthandler's: they may lead to the package's, and may leave
their place to it again."""

import os
import signal
import time

import pytest

from support import eventually, is_waiting

PROGRAM = """
import faulthandler, multiprocessing, os, signal, sys
nowhere = open(os.devnull, "w")
if __name__ == "__main__":
    BEFORE_THE_IMPORT
from pebble import ProcessPool, ThreadPool
from tasks import hang

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    pool = ProcessPool(max_workers=1)
    pool.schedule(int).result()
    AFTER_THE_FIRST_WAIT
    try:
        print("ready", flush=True)
        pool.schedule(hang).result()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""

REGISTER = "faulthandler.register(signal.SIGINT, nowhere, chain=True)"

FOR_A_TIME = """
    faulthandler.register(signal.SIGINT, nowhere)
    pool.schedule(int).result()
    threads = ThreadPool(max_workers=1)
    faulthandler.unregister(signal.SIGINT)
"""


@pytest.mark.parametrize(
    "before, after",
    [(REGISTER, ""), ("pass", REGISTER), ("pass", FOR_A_TIME)],
    ids=["from the beginning", "later", "for a time"],
)
def test_interrupt(program, before, after):
    source = PROGRAM.replace("BEFORE_THE_IMPORT", before)
    process = program(source.replace("AFTER_THE_FIRST_WAIT", after.strip()))
    assert process.line() == "ready"
    assert eventually(lambda: is_waiting(process.pid))
    begin = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.line() == "interrupted"
    assert time.monotonic() - begin < 2
    assert process.end() == (0, "", "")
