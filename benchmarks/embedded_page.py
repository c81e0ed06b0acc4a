"""The page of the embedded benchmark: every cell with n, mean and deviation, every claim with its interval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rows import finished

from ssrseg.reporting import Comparison, compare
from ssrseg.reporting.formats import sheet_markdown
from ssrseg.reporting.paper import paper_tables
from ssrseg.reporting.sheets import Sheet, differences, per_class, scores, sentence

RESULTS = Path(__file__).parent / "results"
METHODS = ("source-only", "dacs", "dacs-ssr", "daformer", "daformer-ssr", "mic", "mic-ssr", "oracle")
STAGES = ("daformer", "stages-3", "stages-23", "stages-123", "daformer-ssr")
QUESTIONS = ("daformer-ssr", "shadow-statistics", "upscaled")
CONTROLS = ("daformer-ssr", "daformer", "random-encoder", "shuffled-channels", "other-images")
MASKED = ("mic-ssr", "masked-view")


def write_results(out: Path, found_on: set[int]) -> None:
    """Every seed's scores as JSON, and the page as Markdown, of the seeds of the study."""

    def of(*rows: str) -> list[Path]:
        return [run for run in finished(out, rows) if int(run.name.rpartition("-")[2]) in found_on]

    runs = of(*dict.fromkeys(METHODS + STAGES + QUESTIONS + CONTROLS + MASKED))
    last = {run.name: json.loads((run / "scores.json").read_text())["last"] for run in runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "embedded.json").write_text(json.dumps(last, indent=1) + "\n")
    methods = compare(of(*METHODS), against="source-only", table2=True)
    stages = compare(of(*STAGES), table1=True)
    sections = {
        "Open questions: against the authors' SSR": QUESTIONS,
        "Open question: the masked view sees the encoder too": MASKED,
        "Controls: what a gain is owed to": CONTROLS,
    }
    compared = {title: compare(of(*rows)) for title, rows in sections.items()}
    parts = [
        (RESULTS / "embedded-header.md").read_text().strip(),
        _section("The methods, with and without SSR", methods),
        *map(sheet_markdown, (*paper_tables(methods), per_class(methods))),
        *map(sheet_markdown, paper_tables(stages)),
        *(_section(title, found) for title, found in compared.items() if found.contrasts),
    ]
    (RESULTS / "embedded.md").write_text("\n\n".join(parts) + "\n")


def _section(title: str, comparison: Comparison) -> str:
    """Scores and differences, and each difference in words."""
    tables = (
        _titled(f"{title}: {sheet.title.lower()}", sheet) for sheet in (scores(comparison), differences(comparison))
    )
    words = "\n".join(f"- {sentence(each)}" for each in comparison.contrasts)
    return "\n\n".join([*map(sheet_markdown, tables), words])


def _titled(title: str, sheet: Sheet) -> Sheet:
    return replace(sheet, title=title)
