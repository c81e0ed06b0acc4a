"""The GPU benchmark's script, as far as it can be run without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed" / "gpu_step.py"


def script(*words: str) -> str:
    """What it prints; it must succeed."""
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="what it says where there is no CUDA device")
def test_without_a_cuda_device_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    assert "no CUDA device" in script("--out", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_dry_run_goes_the_whole_way(tmp_path: Path) -> None:
    printed = script("--dry-run", "--out", str(tmp_path))
    found = json.loads((tmp_path / "gpu-step.json").read_text())
    assert list(found) == ["fp32, eager", "bf16, compiled"]
    assert all(len(row["losses"]) == 4 and all(0 < loss < 100 for loss in row["losses"]) for row in found.values())
    first, second = (row["losses"] for row in found.values())
    assert first != second  # bf16 is not fp32
    assert first == pytest.approx(second, rel=0.2)
    assert "| bf16, compiled |" in printed
    assert all(row[key] > 0 for row in found.values() for key in ("flops", "rate", "seconds_without_ssr"))
    assert "polyline" in (tmp_path / "gpu-step.html").read_text()
