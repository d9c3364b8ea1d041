"""Tries the Python package and its peers with the same faults, and prints what becomes of each.

    run.py --ours PYTHON --peers PYTHON --json FILE [--document FILE] [--only TEXT]

PYTHON: interpreters of the same version, one with our package, one with the peers. Each scenario with each
contender is a fresh process, in a session of its own, and is ended with all that came of it after LIMIT
seconds. A line of JSON for each. FILE keeps the last one of each, and once it has all of them the table goes
between the marks of the document. TEXT: only scenarios whose key, or contenders whose name holds that.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time

import pools
import processes
import scenarios

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 40
END_LIMIT = 8  # seconds from the last word to the end of the process
LABELS = {"ours": "this package", "Pebble": "Pebble (registry)"}


def left_over():
    """What came of the scenarios and is alive."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    return processes.descendants(os.getpid())


def wait_for_end(process, path):
    """True if it has ended by itself."""
    end = time.monotonic() + LIMIT
    while process.poll() is None and not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.01)
    try:
        process.wait(END_LIMIT if os.path.exists(path) else 0.1)
    except subprocess.TimeoutExpired:
        return False
    return True


def kill_all(process):
    while process.poll() is None or left_over():
        for pid in processes.descendants(os.getpid()):
            processes.kill(pid)
        time.sleep(0.01)


def try_one(python, scenario, contender):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "seen")
        start = time.monotonic()
        process = subprocess.Popen(
            [python, "-W", "ignore", os.path.join(HERE, "scenarios.py"), "run"]
            + [scenario.key, contender.name, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ended = wait_for_end(process, path)
        left = processes.gone(left_over, 1) if ended else 0
        kill_all(process)
        seen = {"notes": [], "figures": [], "ends": {}, "left": left}
        if os.path.exists(path):
            with open(path) as file:
                seen |= json.load(file)
        elif ended:
            seen["notes"] = [f"died ({process.returncode})"]
        if not ended:
            seen["notes"].append("never ends" if os.path.exists(path) else "hangs")
        elif left and not seen.get("gave_up"):
            seen["notes"].append(f"left {left} process{'es' * (left > 1)}")
    seen["seconds"] = round(time.monotonic() - start, 1)
    return seen


def one(options, scenario, contender):
    seen = {"row": scenario.row, "scenario": scenario.key, "contender": contender.name}
    if not scenario.possible_for(contender):
        return seen | {"notes": ["cannot"], "figures": []}
    return seen | try_one(options.peers if contender.peers else options.ours, scenario, contender)


def cell_of(seen):
    figures = f" ({', '.join(seen['figures'])})" if seen["figures"] else ""
    return (", ".join(seen["notes"]) or "ok") + figures


def read(path):
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return []


def table(everything):
    names = [contender.name for contender in pools.ALL]
    head = "".join(f" {LABELS.get(name, name)} |" for name in names)
    lines = [f"| row | what happens |{head}", "|---|---|" + "---|" * len(names)]
    for scenario in scenarios.ALL:
        row = "".join(f" {cell_of(everything[scenario.key, name])} |" for name in names)
        lines.append(f"| {scenario.row} | {scenario.title} |{row}")
    return "\n".join(lines)


def put_into(document, text):
    with open(document) as file:
        page = file.read()
    begin, end = "<!-- faults:peers -->", "<!-- /faults:peers -->"
    page, count = re.subn(
        f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL
    )
    assert count == 1, f"{document} has no {begin}"
    with open(document, "w") as file:
        file.write(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--document")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    processes.adopt_orphans()
    everything = {(seen["scenario"], seen["contender"]): seen for seen in read(options.json)}
    for scenario in scenarios.ALL:
        for contender in pools.ALL:
            if options.only in contender.name or options.only in scenario.key:
                seen = one(options, scenario, contender)
                everything[scenario.key, contender.name] = seen
                print(json.dumps(seen), flush=True)
    with open(options.json, "w") as file:
        json.dump(list(everything.values()), file, indent=1)
    is_whole = all(
        (scenario.key, contender.name) in everything
        for scenario in scenarios.ALL
        for contender in pools.ALL
    )
    if options.document and is_whole:
        put_into(options.document, table(everything))


if __name__ == "__main__":
    main()
