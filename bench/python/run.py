"""Measures the Python package beside its peers, and prints a table.

    run.py --ours PYTHON --peers PYTHON [--rounds N] [--row TEXT] [--json FILE]

PYTHON: interpreters of the same version, one with our package, one with the peers (Pebble of the registry
has the same name). Each measurement is a fresh process; the contenders of a row take turns, round by
round. The figures are medians; a ratio over 1 says how many times faster (smaller) ours is.
"""

import argparse
import json
import os
import statistics
import subprocess

import contenders
import rows

HERE = os.path.dirname(os.path.abspath(__file__))
TIMEOUT = 180


def measure(python, row, contender):
    """A number, or why there is none."""
    try:
        run = subprocess.run(
            [python, "-W", "ignore", os.path.join(HERE, "measure.py"), str(row), contender.name],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"more than {TIMEOUT} s"
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines()
        return lines[-1][:80] if lines else f"exit code {run.returncode}"
    return float(run.stdout.split()[-1])


def measure_row(options, number, row):
    """Contender's name → the numbers of its rounds, or why it has none."""
    found = {}
    for _ in range(options.rounds):
        for contender in rows.contenders_of(row, contenders.ALL):
            if isinstance(found.get(contender.name), str):
                continue
            python = options.peers if contender.peers else options.ours
            result = measure(python, number, contender)
            if isinstance(result, str):
                found[contender.name] = result
            else:
                found.setdefault(contender.name, []).append(result)
    return found


def ratio(medians, names):
    others = [medians[name] for name in names if name in medians]
    return min(others) / medians["ours"] if others and "ours" in medians else None


def verdict(reached, wanted):
    if wanted is None or reached is None:
        return ""
    return f" (to reach {wanted:g})" if reached >= wanted else f" (NOT REACHED: {wanted:g})"


def print_row(row, found):
    medians = {
        name: statistics.median(numbers)
        for name, numbers in found.items()
        if isinstance(numbers, list)
    }
    print(f"\n{row.name}, {row.unit}")
    for name, numbers in found.items():
        if name not in medians:
            print(f"  {name:22} -            {numbers}")
            continue
        against = f"{medians[name] / medians['ours']:10.2f} x" if "ours" in medians else ""
        print(f"  {name:22}{medians[name]:12.2f}{against if name != 'ours' else ''}")
    pebble, best = ratio(medians, ["Pebble"]), ratio(medians, set(medians) - {"ours"})
    if pebble is not None:
        print(f"  against Pebble   {pebble:8.2f} x{verdict(pebble, row.against_pebble)}")
    if best is not None:
        print(f"  against the best {best:8.2f} x{verdict(best, row.against_best)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", default="", help="only rows whose name holds this")
    parser.add_argument("--json")
    options = parser.parse_args()
    everything = {}
    for number, row in enumerate(rows.ALL):
        if options.row in row.name:
            everything[row.name] = found = measure_row(options, number, row)
            print_row(row, found)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
