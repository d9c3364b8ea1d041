"""Checks that the library exports what its header declares, and nothing else.

    check_exports.py PEBBLE_H SHARED_LIBRARY STATIC_LIBRARY [--fault-injection]
"""

import re
import subprocess
import sys


def declared(header):
    with open(header, encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/", "", file.read(), flags=re.DOTALL)
    text = re.sub(r"^#.*(?:\\\n.*)*", "", text, flags=re.MULTILINE)
    return set(re.findall(r"\bPEBBLE_API\b[^();]*?\b(\w+)\s*\(", text))


def exported(library, *options):
    lines = subprocess.run(
        ["nm", "--defined-only", "--extern-only", *options, library],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()
    return {line.split()[2] for line in lines if len(line.split()) == 3}


def complaints(library, names, wanted, fault_injection):
    test_names = {name for name in names if name.startswith("pebble_test_")}
    if fault_injection:
        if not test_names:
            yield f"{library}: no pebble_test_ names, in spite of fault injection"
        names -= test_names
    for name in sorted(names - wanted):
        yield f"{library}: exports {name}, which the header does not declare"
    for name in sorted(wanted - names):
        yield f"{library}: does not export {name}, which the header declares"
    for name in sorted(names):
        if not name.startswith("pebble_"):
            yield f"{library}: exports {name}, which does not start with pebble_"


def main():
    fault_injection = "--fault-injection" in sys.argv
    header, shared, static = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    wanted = declared(header)
    if not wanted:
        sys.exit(f"{header}: declares nothing")
    problems = [
        *complaints(shared, exported(shared, "--dynamic"), wanted, fault_injection),
        *complaints(static, exported(static), wanted, fault_injection),
    ]
    for problem in problems:
        print(problem)
    print(f"{len(wanted)} declared functions, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
