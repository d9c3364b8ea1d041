"""Stands for code that loops, crashes, exits, takes all memory or raises."""

import ctypes
import os


def unstable_function(mood, kwarg=0):
    if mood == "hang":
        while True:
            pass
    if mood == "crash":
        ctypes.string_at(0)
    if mood == "exit":
        os._exit(3)
    if mood == "error":
        raise ValueError(f"I cannot work in this mood: {mood}")
    return kwarg
