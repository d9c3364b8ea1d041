# The newcomer's front: each target installs what it needs (tools/setup), then does its work.
# Build folders are under build/.

PREFIX ?= /usr/local
SECONDS_OF_FUZZING ?= 60
SECONDS_OF_SOAK ?= 600

help:
	@echo "make build           the library"
	@echo "make demo            build and run the examples"
	@echo "make test            build and run all tests"
	@echo "make test-pythons    the Python package's tests, with every CPython there is"
	@echo "make test-sanitize   the tests again, with address, undefined and thread sanitizers"
	@echo "make bench           measure, beside what else there is"
	@echo "make fuzz            fuzz for SECONDS_OF_FUZZING ($(SECONDS_OF_FUZZING))"
	@echo "make soak            every fault at once for SECONDS_OF_SOAK ($(SECONDS_OF_SOAK))"
	@echo "make model           verify the models of the protocols between processes"
	@echo "make format          format all C and C++ code"
	@echo "make check-format    say what is not formatted"
	@echo "make install         install the library under PREFIX ($(PREFIX))"
	@echo "make clean           remove build/"

build:
	@tools/setup build
	@tools/build build/release

demo:
	@tools/demo

test:
	@tools/test

test-pythons:
	@tools/test_pythons

test-sanitize:
	@tools/test_sanitize

bench:
	@tools/bench
	@tools/bench_python

fuzz:
	@tools/fuzz $(SECONDS_OF_FUZZING)

soak:
	@tools/soak $(SECONDS_OF_SOAK)

model:
	@tools/setup model
	@tests/model/run

format:
	@tools/format

check-format:
	@tools/format --check

install:
	@tools/install "$(PREFIX)"

clean:
	rm -rf build

.PHONY: help build demo test test-pythons test-sanitize bench fuzz soak model format check-format install clean
