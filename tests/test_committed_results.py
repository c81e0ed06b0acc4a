"""The committed pages say what the committed scores say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS / "accuracy"), str(BENCHMARKS), str(BENCHMARKS / "speed")]

import candidates  # noqa: E402
import embedded  # noqa: E402
import embedded_page  # noqa: E402
import real_page  # noqa: E402
import students  # noqa: E402
import suggest  # noqa: E402
from rows import restore  # noqa: E402


def test_the_embedded_page_is_that_of_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore(embedded.RESULTS / "embedded.json", lambda name, seed: embedded.row(name, seed, tmp_path), tmp_path)
    _pages_are_equal(
        "embedded", lambda: embedded_page.write_results(tmp_path, {0, 1, 2, 3, 4}), embedded_page, tmp_path, monkeypatch
    )


def test_the_page_of_real_images_is_that_of_its_scores() -> None:
    scores = json.loads(real_page.RESULTS.with_suffix(".json").read_text())
    assert real_page.RESULTS.with_suffix(".md").read_text() == real_page.page(scores)


def test_the_page_of_candidates_is_that_of_its_scores() -> None:
    scores = json.loads((candidates.RESULTS / "candidates.json").read_text())
    assert (candidates.RESULTS / "candidates.md").read_text() == candidates.page(scores)


def test_the_page_of_suggested_labels_is_that_of_its_scores() -> None:
    found = json.loads(suggest.RECORD.read_text())
    assert suggest.RECORD.with_suffix(".md").read_text() == suggest.page(found)


def test_the_page_of_students_is_that_of_its_results() -> None:
    found = json.loads(students.RESULTS.read_text())
    assert students.RESULTS.with_suffix(".md").read_text() == students.page(found)


def _pages_are_equal(
    name: str, write: Callable[[], None], module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    committed = BENCHMARKS / "results"
    write()
    for suffix in (".json", ".md"):
        written = (tmp_path / "results" / name).with_suffix(suffix).read_text()
        assert written == (committed / name).with_suffix(suffix).read_text()
