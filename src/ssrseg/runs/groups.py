"""The folder of a group: runs that differ in their seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STAGES = "stages.yaml"
"""In the folder of a recipe of stages: its settings. Every stage has a folder of its own beside it."""


@dataclass(frozen=True)
class GroupFolder:
    """Where each thing of a group lies; a seed belongs to it from the moment that its folder exists."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings that all runs share: everything but the seed."""
        return self.path / "group.yaml"

    @property
    def exists(self) -> bool:
        """Whether a group lies here."""
        return self.config.is_file()

    def run(self, seed: int) -> Path:
        """The run folder of a seed."""
        return self.path / f"seed-{seed}"

    def seeds(self) -> list[int]:
        """The seeds of the group, sorted, started or not."""
        names = (found.name.removeprefix("seed-") for found in self.path.glob("seed-*") if found.is_dir())
        return sorted(int(name) for name in names if name.removeprefix("-").isdigit())

    def runs(self) -> list[Path]:
        """The run folders in which training has begun, by seed."""
        return [self.run(seed) for seed in self.seeds() if (self.run(seed) / "config.yaml").is_file()]
