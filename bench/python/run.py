"""Measures the Python package beside its peers, and prints a table.

    run.py --ours PYTHON --peers PYTHON --json FILE [--rounds N] [--only TEXT]

PYTHON: interpreters of the same version, one with our package, one with the peers (Pebble of the registry
has the same name). Each measurement is a fresh process; the contenders of a row take turns, round by
round. The figures are medians; a ratio over 1 says how many times faster (smaller) ours is. FILE gets
every number, with what it was measured on; with --only its other rows and curves stay.
"""

import argparse
import datetime
import json
import mmap
import os
import platform
import subprocess

import contenders
import curves
import results
import rows

HERE = os.path.dirname(os.path.abspath(__file__))
TIMEOUT = 240


def measure(python, *arguments):
    """A number, or why there is none."""
    command = [python, "-W", "ignore", os.path.join(HERE, "measure.py"), *map(str, arguments)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"more than {TIMEOUT} s"
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines()
        return lines[-1][:80] if lines else f"exit code {run.returncode}"
    return float(run.stdout.split()[-1])


def python_for(options, contender):
    return options.peers if contender.peers else options.ours


def measure_row(options, number, row):
    """Contender's name → the numbers of its rounds, or why it has none."""
    found = {}
    for _ in range(options.rounds):
        for contender in rows.contenders_of(row, contenders.ALL):
            if isinstance(found.get(contender.name), str):
                continue
            result = measure(python_for(options, contender), "row", number, contender.name)
            if isinstance(result, str):
                found[contender.name] = result
            else:
                found.setdefault(contender.name, []).append(result)
    return found


def measure_curve(options, number, curve):
    """Contender's name → point → number, or why there is none: then there are no more points."""
    found = {name: {} for name in curve.names}
    for point in curve.points:
        for name, points in found.items():
            contender = contenders.BY_NAME[name]
            failed = any(isinstance(result, str) for result in points.values())
            if failed or (contender.peers and point > curve.most_for_peers):
                continue
            points[point] = measure(
                python_for(options, contender), "curve", number, name, point
            )
    return found


def print_row(row, found):
    medians = results.medians_of(found)
    print(f"\n{row.name}, {row.unit}")
    for name, numbers in found.items():
        if name not in medians:
            print(f"  {name:22} -            {numbers}")
            continue
        against = f"{medians[name] / medians['ours']:10.2f} x" if "ours" in medians else ""
        print(f"  {name:22}{medians[name]:12.2f}{against if name != 'ours' else ''}")
    for against, found_ratio, wanted in results.ratios_of(row, medians):
        verdict = "" if wanted is None else f" (to reach: {wanted:g})"
        if wanted is not None and found_ratio < wanted:
            verdict = f" (NOT REACHED: {wanted:g})"
        print(f"  against {against:14}{found_ratio:12.2f} x{verdict}")


def print_curve(curve, found):
    print(f"\n{curve.title}, {curve.y}")
    print(f"  {curve.x:22}" + "".join(f"{point:>12}" for point in curve.points))
    for name, points in found.items():
        cells = [points.get(point, "") for point in curve.points]
        shown = ["-" if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
        print(f"  {name:22}" + "".join(f"{cell:>12}" for cell in shown))
        for point, reason in points.items():
            if isinstance(reason, str):
                print(f"    at {point}: {reason}")


def versions(python):
    """Of the peers that are there."""
    with open(os.path.join(HERE, "requirements.txt")) as file:
        wanted = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    command = "import importlib.metadata as m, sys; print(sys.argv[1], m.version(sys.argv[1]))"
    runs = [
        subprocess.run([python, "-c", command, name], capture_output=True, text=True)
        for name in wanted
        if name != "matplotlib"
    ]
    return [run.stdout.strip() for run in runs if run.returncode == 0]


def machine(options):
    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "processors": len(os.sched_getaffinity(0)),
        "model": models[0] if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": options.rounds,
        "load": os.getloadavg()[0],
        "peers": versions(options.peers),
    }


def touch_memory():
    """A virtual machine's host gives memory when it is first touched, at 2 s a GiB here: that is
    nobody's of those who are measured."""
    size = min(8 << 30, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for at in range(0, size, 4096):
        memory[at] = 1
    memory.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only rows and curves whose name holds this")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    touch_memory()
    everything = {"machine": machine(options), "rows": {}, "curves": {}}
    if options.only and os.path.exists(options.json):
        with open(options.json) as file:
            everything = json.load(file)
    for number, row in enumerate(rows.ALL):
        if options.only in row.name:
            everything["rows"][row.name] = found = measure_row(options, number, row)
            print_row(row, found)
    for number, curve in enumerate(curves.ALL):
        if options.only in curve.title:
            everything["curves"][curve.key] = found = measure_curve(options, number, curve)
            print_curve(curve, found)
    with open(options.json, "w") as file:
        json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
