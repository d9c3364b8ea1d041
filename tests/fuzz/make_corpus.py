#!/usr/bin/env python3
"""Writes the seeds of fuzz_receiver: tests/fuzz/corpus/seed-*, one for each thing that a worker
may do or get wrong. The steps are those of fuzz_receiver.c."""

import pathlib
import struct

TAIL_SET, TAIL_ADD, RAW, RECORD, LIE = 0, 1, 2, 3, 5
RECEIVE, RELEASE, HEAD_SET, TAKE_ALL, WORDS, SLOT, CRASH, PUT, STATE = 6, 8, 9, 10, 11, 12, 13, 14, 15
DATA, DONE, FAILED = 0, 1, 2


def tail_set(value):
    return struct.pack("<BI", TAIL_SET, value)


def tail_add(value):
    return struct.pack("<BH", TAIL_ADD, value)


def raw(offset, data, add):
    return struct.pack("<BBB", RAW, offset, len(data)) + data + bytes([add])


def record(kind, size):
    return struct.pack("<BBHH", RECORD, kind, size, 7)


def lie(kind, payload, size, sequence):
    return struct.pack("<BBHQBH", LIE, kind, payload, size, sequence, 7)


def receive(count=3):
    return bytes([RECEIVE, count, RELEASE])


def put(size, kind=0):
    return struct.pack("<BBBH", PUT, 0, kind, size)


def words(value, which):
    return struct.pack("<BIB", WORDS, value, which)


def slot(number, word):
    return struct.pack("<BHQQ", SLOT, number, word, 1)


def crash_bytes(offset, data):
    return struct.pack("<BBHB", CRASH, 1, offset, len(data)) + data


CRASH_TEXT = bytes([CRASH, 0])


def frame(known, module, function):
    return struct.pack("<IHHQQQ", known, module, function, 0x1234, 0x34, 4)


SEEDS = {
    "empty-result": record(DONE, 0) + receive(),
    "small-result": record(DONE, 16) + receive(),
    "allocated-result": record(DONE, 5000) + receive(),
    "pieces": record(DATA, 10) + record(DATA, 100) + record(DONE, 3) + receive(),
    "failed": record(FAILED, 20) + receive(),
    "failed-after-pieces": record(DATA, 1000) + record(FAILED, 1023) + receive(),
    "failed-too-long": record(FAILED, 1024) + receive(),
    "batch": record(DONE, 4) * 20 + receive(30),
    "around": (record(DONE, 60000) + receive()) * 6,
    "full": record(DATA, 60000) * 4 + receive() + record(DONE, 60000) + receive(),
    "half-record": lie(DONE, 100, 1000, 0) + receive() + tail_add(932) + receive(),
    "claims-much": lie(DONE, 100, 1 << 40, 0) + receive(),
    "claims-most": lie(DATA, 100, (1 << 63) - 1, 0) + receive() + tail_add(60000) + receive(),
    "claims-too-much": lie(DONE, 100, 1 << 63, 0) + receive(),
    "no-memory-then-more": lie(DATA, 64000, 17 << 20, 0) + receive() + (tail_add(65472) + receive()) * 300,
    "wrong-sequence": record(DATA, 10) + lie(DONE, 10, 10, 9) + receive(),
    "wrong-kind": raw(0, struct.pack("<HHiQQQ", 77, 0, 0, 0, 0, 0), 64) + receive(),
    "pad-kind": raw(0, bytes(32), 64) + receive(),
    "tail-beyond": tail_set(300000) + receive(),
    "tail-back": record(DONE, 10) + receive() + tail_set(0) + receive(),
    "tail-odd": record(DONE, 10) + receive() + tail_add(3) + receive(),
    "tasks": (put(0) + put(100) + put(500, 1) + bytes([TAKE_ALL])) * 30,
    "large-tasks": (put(0, 2) + bytes([TAKE_ALL]) * 2) * 8,
    "ring-full": put(16000) * 20 + struct.pack("<BB", STATE, 1) * 4,
    "task-head-beyond": put(100) + struct.pack("<BI", HEAD_SET, 1 << 30) + put(100) * 3,
    "withdrawn": put(1) * 5 + bytes([STATE, 1, STATE, 2, STATE, 5, STATE, 9]),
    "slots": put(1) * 3 + slot(0, 2) + slot(1, 5) + slot(2, 1 << 60) + bytes([STATE, 1, STATE, 2, STATE, 3]),
    "sleeps": b"".join(words(value, which) + put(10) + record(DONE, 9) + receive()
                       for which in range(5) for value in (1, 2, 3)),
    "crash": crash_bytes(0, struct.pack("<IIQ", 11, 0, 1) + frame(3, 0, 5) + frame(2, 0, 0))
             + crash_bytes(16 + 64 * 32, b"prog\0fun\0") + CRASH_TEXT,
    "crash-offsets": crash_bytes(0, struct.pack("<IIQ", 6, 0, 1) + frame(3, 65535, 14319))
             + crash_bytes(16384 - 20, b"x" * 20) + CRASH_TEXT,
    "crash-nonsense": crash_bytes(0, struct.pack("<IIQ", 99, 0, 1)) + CRASH_TEXT
             + crash_bytes(0, struct.pack("<I", 8)) + CRASH_TEXT,
}

folder = pathlib.Path(__file__).parent / "corpus"
folder.mkdir(exist_ok=True)
for name, steps in SEEDS.items():
    (folder / f"seed-{name}").write_bytes(steps)
