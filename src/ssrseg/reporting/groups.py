"""The folder of a group, or of a recipe of stages, stands for its runs."""

from __future__ import annotations

from pathlib import Path

from ssrseg.config import read_yaml
from ssrseg.errors import UserError
from ssrseg.runs.groups import STAGES, GroupFolder


def members(folder: Path) -> list[Path]:
    """The runs of a group or of a recipe, or the run itself; raises `UserError` where none has begun."""
    group = GroupFolder(folder)
    if group.exists:
        runs = [run for seed in group.seeds() for run in _stages(group.run(seed)) if (run / "config.yaml").is_file()]
    elif (folder / STAGES).is_file():
        runs = _stages(folder)
    else:
        return [folder]
    if not runs:
        raise UserError(f"No run of {folder} has begun. Train it with --resume --out {folder}.")
    return runs


def _stages(folder: Path) -> list[Path]:
    """The stages that are runs, in the recipe's order; the folder itself when it holds no recipe."""
    if not (folder / STAGES).is_file():
        return [folder]
    stages = read_yaml(folder / STAGES).get("stages") or ()
    return [run for stage in stages if ((run := folder / str(stage["name"])) / "config.yaml").is_file()]
