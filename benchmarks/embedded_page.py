"""The page of the embedded benchmark: every cell with n, mean and deviation, every claim with its interval."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssrseg.reporting import compare, comparison_text

RESULTS = Path(__file__).parent / "results"


def finished(out: Path, rows: Iterable[str]) -> list[Path]:
    """The finished runs of rows, in order of row and seed."""
    runs = {name: sorted(out.glob(f"{name}-[0-9]*"), key=lambda run: int(run.name.rpartition("-")[2])) for name in rows}
    return [run for found in runs.values() for run in found if (run / "student-last.safetensors").exists()]


def write_results(out: Path, rows: Sequence[str]) -> None:
    """Every seed's scores as JSON, and the comparison as Markdown."""
    runs = finished(out, rows)
    scores = {run.name: json.loads((run / "scores.json").read_text())["last"] for run in runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "embedded.json").write_text(json.dumps(scores, indent=1) + "\n")
    (RESULTS / "embedded.md").write_text(comparison_text(compare(runs, table1=True, table2=True), "markdown"))
