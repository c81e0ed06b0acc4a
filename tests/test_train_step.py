"""The benchmark of the training step: what its clock, its restated reference and its page say."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssrseg.adapt.regularizer import CrossAttention

BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "speed"


def benchmark(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def test_the_naive_cross_attention_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = benchmark(monkeypatch, "reference_step")
    torch.manual_seed(0)
    ours, naive = CrossAttention(16, 2), reference.NaiveCrossAttention(16, 2)
    naive.load_state_dict(ours.state_dict())
    queries, context = torch.randn(2, 12, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(naive(queries, context), ours(queries, context))


def test_a_part_is_not_counted_to_the_part_that_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = benchmark(monkeypatch, "train_step").Stopwatch()
    inner = watch.timed("inner", lambda: time.sleep(0.2))
    watch.timed("outer", lambda: (time.sleep(0.05), inner()))()
    assert watch.seconds["inner"] >= 0.2
    assert 0.05 <= watch.seconds["outer"] < 0.2


def test_measuring_the_rate_is_counted_to_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark(monkeypatch, "train_step")
    rates = {"@": 50.0, "convolution": 100.0}
    monkeypatch.setattr(module, "product_rates", lambda: time.sleep(0.3) or rates)
    watch = module.Stopwatch()
    encode = watch.timed("encode", lambda: time.sleep(0.02))
    found = module.clocked(lambda settings, number: encode(), None, watch, 0)
    assert found["rates"] == [rates] * 3  # before, within, after
    assert found["rate"] == 100
    assert 0.02 <= found["seconds"] < 0.2
    assert set(found["parts"]) == {"rest", "encode"}


def test_the_page_compares_time_over_floor_and_not_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = benchmark(monkeypatch, "train_step_page")

    def counted(gflop: float) -> dict[str, Any]:
        flops = {"foundation encoder": [gflop * 1e9 / 2, 0], "terms": [0, 0], "student head": [gflop * 1e9 / 2, 0]}
        needed = {"foundation encoder": [gflop * 1e9 / 4, 0], "terms": [0, 0], "student head": [gflop * 1e9 / 2, 0]}
        return {"flops": flops, "needed": needed, "memory": {"weights": 2**30}, "reference_memory": 4 * 2**30}

    def step(seconds: float, rate: float) -> list[dict[str, Any]]:
        parts = {"foundation encoder": seconds / 4, "rest": 3 * seconds / 4}
        rates = [{"@": rate / 2, "convolution": rate}]
        return [{"seconds": seconds, "rate": rate, "rates": rates, "parts": parts, "resident": 2**30}]

    name, plain = "MIC + SSR at 1024, crops of 256", "MIC, crops of 256"
    timed = {name: {"ours": step(20, 100), "reference": step(80, 50)}, plain: {"ours": step(15, 100)}}
    growth = [{"axis": axis, "value": value, **step(value, 1)[0]} for axis in page.AXES for value in (1, 2)]
    measured = {"timed": timed, "growth": growth, "shares": {name: [[15, 20], [16, 20], [9, 20]]}}
    page.write_page(tmp_path, {"counted": {name: counted(1000), plain: counted(600)}, **measured})
    text = (tmp_path / "train-step.md").read_text()
    # The other machine was half as fast.
    assert f"| {name} | ours | 20.0 | 1 | 100 (50) | 10.0 | 2.00 (1.00) | 2.00 | 75% |" in text
    assert f"| {name} | 25% | 33% | 25% (3) | 40% |" in text
    assert f"| {name} | 4.00 | - | 1.00 | 0.25 | 1.00 | 1.00 |" in text
    assert (tmp_path / "train-step.svg").read_text().count("<polyline") == len(page.AXES)
