"""The committed pages say what the committed scores say."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS / "accuracy"))

import camvid_dusk  # noqa: E402
import candidates  # noqa: E402
import embedded  # noqa: E402
import embedded_page  # noqa: E402
from rows import is_finished, restore  # noqa: E402


def test_the_embedded_page_is_that_of_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore(embedded.RESULTS / "embedded.json", lambda name, seed: embedded.row(name, seed, tmp_path), tmp_path)
    _pages_are_equal(
        "embedded", lambda: embedded_page.write_results(tmp_path, {0, 1, 2, 3, 4}), embedded_page, tmp_path, monkeypatch
    )


def test_the_page_of_day_and_dusk_is_that_of_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = argparse.Namespace(data=Path("camvid"), out=tmp_path, weights=Path("weights"))
    restore(camvid_dusk.RESULTS / "camvid-dusk.json", lambda name, seed: camvid_dusk.row(name, seed, places), tmp_path)
    assert is_finished(tmp_path / "undoing-0")  # a recipe of stages
    _pages_are_equal("camvid-dusk", lambda: camvid_dusk.write_results(tmp_path), camvid_dusk, tmp_path, monkeypatch)


def test_the_page_of_candidates_is_that_of_its_scores() -> None:
    scores = json.loads((candidates.RESULTS / "candidates.json").read_text())
    assert (candidates.RESULTS / "candidates.md").read_text() == candidates.page(scores)


def _pages_are_equal(
    name: str, write: Callable[[], None], module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    committed = BENCHMARKS / "results"
    write()
    for suffix in (".json", ".md"):
        written = (tmp_path / "results" / name).with_suffix(suffix).read_text()
        assert written == (committed / name).with_suffix(suffix).read_text()
