"""The programs in README.md and in the page for Python users run as they stand there."""

import os
import re
import subprocess
import sys

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def programs():
    for page in ("README.md", "docs/python.md"):
        with open(os.path.join(TOP, page)) as file:
            found = re.findall(r"^```python\n(.*?)^```$", file.read(), re.DOTALL | re.MULTILINE)
        assert found
        for number, program in enumerate(found):
            yield pytest.param(program, id=f"{page}-{number}")


@pytest.mark.parametrize("program", list(programs()))
def test_program(program, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(program)
    library = os.path.join(TOP, "examples", "python")  # has a third_party_lib
    search = filter(None, [library, os.environ.get("PYTHONPATH")])
    run = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
    )
    assert (run.returncode, run.stderr) == (0, "")
