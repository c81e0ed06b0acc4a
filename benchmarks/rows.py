"""Studies of rows and seeds: of each seed one source-trained student, and every row goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from ssrseg.config import Settings, read_yaml
from ssrseg.pipeline import finish
from ssrseg.seeded import STAGES
from ssrseg.training.folder import RunFolder

Maker = Callable[[str, int], Settings]
"""(row, seed) -> its settings; the row `source` is the student that the others go on from."""


def run_rows(make: Maker, rows: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Train what is missing, seed by seed; an interrupted run is resumed."""
    torch.set_num_threads(1)  # small tensors: a second thread waits more than it works
    for seed in seeds:
        for row in ("source", *rows):
            folder = out / f"{row}-{seed}"
            print(f"== {folder.name}", flush=True)
            finish(make(row, seed), folder, console=Console(force_terminal=False))


def is_finished(folder: Path) -> bool:
    """Whether the run, or the last stage of the recipe, has ended."""
    recipe = folder / STAGES
    last = folder / read_yaml(recipe)["stages"][-1]["name"] if recipe.exists() else folder
    return RunFolder(last).student_last.exists()


def finished(out: Path, rows: Iterable[str]) -> list[Path]:
    """The finished runs of rows, in order of row and seed."""
    runs = {name: sorted(out.glob(f"{name}-[0-9]*"), key=lambda run: int(run.name.rpartition("-")[2])) for name in rows}
    return [run for found in runs.values() for run in found if is_finished(run)]


def start_of(seed: int, out: Path) -> Path:
    """The student that the rows of a seed go on from."""
    return RunFolder(out / f"source-{seed}").student_last
