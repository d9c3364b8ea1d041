"""Row 24: the soak, for some seconds, so that it stays well; `make soak` is the long one."""

import os
import subprocess
import sys

import pytest

SOAK = os.path.join(os.path.dirname(__file__), "soak.py")


@pytest.mark.timeout(200)  # its own limits come first, and say more
def test_a_short_soak(start_method):
    soak = subprocess.run(
        [sys.executable, SOAK, "--seconds", "4", "--start-method", start_method],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert soak.returncode == 0, soak.stdout
    assert "worker killed" in soak.stdout
