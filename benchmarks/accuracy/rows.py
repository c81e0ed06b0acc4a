"""Studies of rows and seeds: of each seed one source-trained student, and every row goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from controls import control_of
from rich.console import Console

from ssrseg.config import Settings, dump, read_yaml
from ssrseg.data import resolve_space
from ssrseg.runs.atomic import write_json
from ssrseg.runs.folder import RecipeFolder, RunFolder
from ssrseg.training import Extensions, finish

Maker = Callable[[str, int], Settings]
"""(row, seed) -> its settings; the row `source` is the student that the others go on from."""

RESTORED = "restored.txt"
"""Marks a run folder that holds another machine's scores."""


def run_rows(make: Maker, rows: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Train what is missing, seed by seed; an interrupted run is resumed, a restored one is left alone."""
    torch.set_num_threads(1)  # small tensors: a second thread waits more than it works
    for seed in seeds:
        for row in ("source", *rows):
            folder = out / f"{row}-{seed}"
            if is_finished(folder):
                continue
            print(f"== {folder.name}", flush=True)
            settings = make(row, seed)
            extensions = Extensions(foundation=control_of(settings))
            finish(settings, folder, console=Console(force_terminal=False), extensions=extensions)


def restore(record: Path, make: Maker, out: Path) -> None:
    """Runs that are only in a committed record, as far as a comparison reads them: settings and scores, no student.

    So a row can be added, or compared with, without training the others anew.
    """
    for name, last in json.loads(record.read_text(encoding="utf-8")).items():
        row, _, seed = name.rpartition("-")
        folder = RunFolder(out / name)
        if folder.exists:
            continue
        settings = make(row, int(seed))
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(dump(settings))
        scores = {"last": last, "best": last} if last["step"] else {"last": last}  # scored once, at the end
        write_json(folder.scores, {"classes": resolve_space(settings.classes, settings.source).names, **scores})
        (folder.path / RESTORED).write_text(f"The scores are those of {record.name}; nothing was trained here.\n")


def is_finished(folder: Path) -> bool:
    """Whether the run, or the last stage of the recipe, has ended."""
    recipe = RecipeFolder(folder)
    last = recipe.stage(read_yaml(recipe.config)["stages"][-1]["name"]) if recipe.exists else RunFolder(folder)
    return last.finished or (last.path / RESTORED).exists()


def finished(out: Path, rows: Iterable[str]) -> list[Path]:
    """The finished runs of rows, in order of row and seed."""
    runs = {name: sorted(out.glob(f"{name}-[0-9]*"), key=lambda run: int(run.name.rpartition("-")[2])) for name in rows}
    return [run for found in runs.values() for run in found if is_finished(run)]


def start_of(seed: int, out: Path) -> Path:
    """The student that the rows of a seed go on from."""
    return RunFolder(out / f"source-{seed}").student_last
