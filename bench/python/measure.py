"""One measurement, in a process of its own: measure.py ROW CONTENDER prints a number."""

import sys

import contenders
import rows

if __name__ == "__main__":
    row, contender = int(sys.argv[1]), contenders.BY_NAME[sys.argv[2]]()
    print(rows.ALL[row].measure(contender))
