"""The GPU benchmark's script, as far as it can be run without a GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssrseg.training.loop import StepResult

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed" / "gpu_step.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_cuda_device_it_says_so_and_writes_nothing(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--out", str(tmp_path / "results")])
    script.main()
    assert "no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_it_waits_for_the_device_only_where_a_phase_begins_or_ends(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    modes: list[str] = []
    step = 0
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(step))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: step)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    clock = script.Clock("cuda", (2, 5, 3, 2))
    for step in range(1, 13):
        if step == 11:
            script.warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        clock.stepped(StepResult(step, {"source/segmentation": torch.zeros(())}, 0.0, 1))
    assert waited == [2, 7, 8, 9, 10]
    assert clock.peak == 7  # of the free steps, not of the reports
    assert modes == ["warn", "default"]
    assert [(place.partition(":")[0], count) for place, count in clock.waits.items()] == [("test_gpu_step.py", 1)]
    assert clock.times["began"] <= clock.times["submitted"] <= clock.times["ended"] < clock.times["synced ended"]


def test_the_table_says_what_the_figures_say(script: Any, tmp_path: Path) -> None:
    """bf16 is compared with what its maker states for bf16, and 32 bits with what is stated for them."""
    whole = {
        "device": "NVIDIA H100 80GB HBM3",
        "torch": "2.14.1",
        "precision": "fp32",
        "seconds": 2.0,
        "seconds_submitted": 1.0,
        "seconds_synchronised": 2.5,
        "seconds_without_ssr": 1.5,
        "waits_per_step": {},
        "peak_bytes": 3 * 2**30,
        "flops": 67e12,
        "product_tflops": 50.0,
        "losses": [1.0, 2.0],
        "notes": [],
    }
    half = {**whole, "precision": "bf16", "seconds": 0.5, "losses": [1.0, 2.2], "waits_per_step": {"augment.py:9": 6.0}}
    script.write_results(tmp_path, {"fp32, eager": whole, "bf16, eager": {**half, "notes": ["nothing is compiled"]}})
    text = (tmp_path / "gpu-step-mic-ssr.md").read_text()
    assert "| fp32, eager | 0.50 | 1.00 | 50% | 67% | 25% | 3.00 | 50% | +25% | 0.0 | 0.0e+00 |" in text
    assert "| bf16, eager | 2.00 | 4.00 | 14% | 268% |" in text
    assert "Waits at augment.py:9: 6.0 per step." in text
    assert "bf16, eager: nothing is compiled." in text


@pytest.mark.slow
def test_a_dry_run_goes_the_whole_way(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--dry-run", "--out", str(tmp_path)])
    script.main()
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "gpu-step-mic-ssr.json").read_text())
    assert list(found) == ["fp32, eager", "fp32, compiled", "bf16, eager", "bf16, compiled"]
    losses = {name: row["losses"] for name, row in found.items()}
    assert losses["fp32, eager"] == losses["fp32, compiled"]  # on the CPU `auto` compiles nothing
    assert losses["bf16, eager"] != losses["fp32, eager"] == pytest.approx(losses["bf16, eager"], rel=0.2)
    assert "| bf16, compiled |" in printed
    assert "these are no measurements" in printed
    for row in found.values():
        assert row["device"] == "cpu"
        assert row["peak_bytes"] is row["waits_per_step"] is None
        assert 0 < row["seconds_submitted"] <= row["seconds"]
        assert 0 < row["flops"] / row["seconds"] / 1e12 < row["product_tflops"]  # no step beats the products
