"""The command of docs/log.md about agreement."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_prints_a_line_for_every_cell_that_logs_the_column():
    command = [sys.executable, "scripts/autocorrelation.py", "agreement"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].endswith("of agreement")
    named = [line.split()[:2] for line in lines[1:]]
    assert ["lsq_mini", "llama.fogzo"] in named
    assert all(-1 <= float(line.split()[-1]) <= 1 for line in lines[1:])
