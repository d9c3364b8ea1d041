"""One measurement, in a process of its own; prints a number.

measure.py row NUMBER CONTENDER
measure.py curve NUMBER CONTENDER POINT
"""

import sys

import contenders
import curves
import rows

if __name__ == "__main__":
    kind, number, contender = sys.argv[1], int(sys.argv[2]), contenders.BY_NAME[sys.argv[3]]()
    if kind == "row":
        print(rows.ALL[number].measure(contender))
    else:
        print(curves.ALL[number].measure(contender, int(sys.argv[4])))
