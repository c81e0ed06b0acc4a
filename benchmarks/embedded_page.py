"""The page of the embedded benchmark: every cell with n, mean and deviation, every claim with its interval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rows import finished

from ssrseg.reporting import compare, comparison_text

RESULTS = Path(__file__).parent / "results"


def write_results(out: Path, rows: Sequence[str]) -> None:
    """Every seed's scores as JSON, and the comparison as Markdown."""
    runs = finished(out, rows)
    scores = {run.name: json.loads((run / "scores.json").read_text())["last"] for run in runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "embedded.json").write_text(json.dumps(scores, indent=1) + "\n")
    (RESULTS / "embedded.md").write_text(comparison_text(compare(runs, table1=True, table2=True), "markdown"))
