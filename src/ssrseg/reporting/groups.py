"""The folder of a group stands for its runs."""

from __future__ import annotations

from pathlib import Path

from ssrseg.errors import UserError
from ssrseg.seeded import GroupFolder


def members(folder: Path) -> list[Path]:
    """The runs of a group, or the run itself; raises `UserError` for a group in which no run has begun."""
    group = GroupFolder(folder)
    if not group.exists:
        return [folder]
    if not (runs := group.runs()):
        raise UserError(f"No run of the group {folder} has begun. Train it with --resume --out {folder}.")
    return runs
