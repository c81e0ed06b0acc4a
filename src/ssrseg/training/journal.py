"""What a run writes down while it runs: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssrseg.training.console import Screen
from ssrseg.training.loop import Moment, Observer


class Follower(Protocol):
    """Gets the numbers of every record, by their names in TensorBoard, and is closed with the journal."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a record."""

    def close(self) -> None:
        """There will be no more."""


class Journal:
    """Appends records to metrics.jsonl and TensorBoard.

    Args:
        path: of metrics.jsonl; TensorBoard's events lie beside it.
        resumed_at: completed steps of the run that is continued: later records are dropped.
    """

    def __init__(self, path: Path, *, resumed_at: int = 0) -> None:
        if path.exists():
            _keep_until(path, resumed_at)
        self._file: TextIO = path.open("a")
        self.followers: list[Follower] = []
        self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=resumed_at or None)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """One record; numbers among its fields become TensorBoard curves."""
        self._file.write(json.dumps({"kind": kind, "step": step, **fields}) + "\n")
        self._file.flush()
        numbers = {f"{kind}/{name}": value for name, value in _flat(fields)}
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        for follower in self.followers:
            follower.log(step, numbers)

    def close(self) -> None:
        """Flush everything to disk."""
        for follower in self.followers:  # first, for they may have something to say
            follower.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()


class Silent(Journal):
    """The journal of every process but the first: writes nothing."""

    def __init__(self) -> None:
        """No file."""

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing to close."""


def _keep_until(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line that a crash cut
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    path.write_text("".join(kept))


def _flat(fields: Mapping[str, Any]) -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            pairs += [(f"{name}/{inner}", number) for inner, number in _flat(value)]
        elif isinstance(value, int | float):
            pairs.append((name, value))
    return pairs


class Losses(Observer):
    """Means of the losses, every `every` steps: the only time that the host waits for the device."""

    def __init__(self, journal: Journal, screen: Screen, every: int) -> None:
        self._journal, self._screen, self._every = journal, screen, every
        self._sums: dict[str, Tensor] = {}
        self._steps, self._since = 0, time.perf_counter()

    def stepped(self, moment: Moment) -> None:
        """Add up; write when it is time."""
        for name, loss in moment.losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss
        self._steps += 1
        if moment.step % self._every == 0:
            self._write(moment)
        self._screen.advance(moment.step)

    def _write(self, moment: Moment) -> None:
        means = torch.stack(list(self._sums.values())).div(self._steps).tolist()
        losses = dict(zip(self._sums, means, strict=True))
        speed = self._steps * moment.images / (time.perf_counter() - self._since)
        finite = {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}  # as JSON has it
        self._journal.write("train", moment.step, lr=moment.rate, losses=finite, images_per_second=round(speed, 3))
        self._screen.losses(moment.step, losses, speed)
        self._sums, self._steps, self._since = {}, 0, time.perf_counter()
