"""Real training is killed, and goes on as if it had not been: the small version of benchmarks/crash_test.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_four_killed_runs_are_the_undisturbed_one(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "benchmarks" / "crash_test.py", "--out", tmp_path, "--no-results"]
    words += ["--kills", "4", "--steps", "6"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 equal" in done.stdout
    assert "half-written" in done.stdout  # else no kill fell into the writing of a checkpoint
