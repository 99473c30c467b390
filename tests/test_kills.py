"""A kill at a random moment; `benchmarks/kills.py`, by hand, does a hundred."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks/kills.py"


def test_what_is_killed_again_and_again_comes_out_the_same():
    """Of the same number of devices to the bit, of others to 1e-12."""
    ran = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "1", "--steps", "20"],
        capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    kills, runs = re.match(r"(\d+) kills in (\d+) runs of 20 steps", ran.stdout).groups()
    assert kills == "1" and int(runs) >= 1
    assert "SHA-256" in ran.stdout
