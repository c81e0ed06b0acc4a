"""What a run writes down while it runs: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.console import Screen


class Follower(Protocol):
    """Gets the numbers of every record, by their names in TensorBoard, and is closed with the journal."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a record."""

    def close(self) -> None:
        """There will be no more."""


class Journal(Observer):
    """Appends records to metrics.jsonl and TensorBoard.

    Args:
        path: of metrics.jsonl.
        board: folder of TensorBoard's events.
        start: completed steps of the run that is continued: TensorBoard shows none of its later ones.
    """

    def __init__(self, path: Path, board: Path, *, start: int = 0) -> None:
        self._path, self._start = path, start
        self._file = path.open("ab", buffering=0)
        self.followers: list[Follower] = []
        self._board: SummaryWriter | None = SummaryWriter(str(board), purge_step=start + 1 if start else None)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """One record; numbers among its fields become TensorBoard curves."""
        line = (json.dumps({"kind": kind, "step": step, **fields}) + "\n").encode()
        while line:  # a disk that fills up takes a part first, and then says why
            line = line[self._file.write(line) :]
        numbers = {f"{kind}/{name}": value for name, value in _flat(fields)}
        for follower in self.followers:
            follower.log(step, numbers)
        if self._board is None:
            return
        try:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            self._drop_board(step, error)

    def state(self) -> dict[str, Any]:
        """Bytes of metrics.jsonl, which are on the disk by then, as are TensorBoard's."""
        os.fsync(self._file.fileno())
        try:
            if self._board is not None:
                self._board.flush()
        except OSError as error:
            self._drop_board(self._start, error)
        return {"bytes": self._file.tell()}

    def restore(self, state: dict[str, Any]) -> None:
        """Cut off what was written after the checkpoint."""
        missing = state["bytes"] - self._path.stat().st_size
        if missing > 0:
            lost = f"{missing} bytes of {self._path.name} that the checkpoint knows are missing: records were lost"
            self.write("warning", self._start, text=lost)
            return
        self._file.truncate(state["bytes"])
        self._file.seek(0, os.SEEK_END)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush everything to disk."""
        for follower in self.followers:  # first, for they may have something to say
            follower.close()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()

    def _drop_board(self, step: int, error: OSError) -> None:
        """Curves are no reason to stop: metrics.jsonl has the numbers."""
        self._board = None
        self.write("warning", step, text=f"TensorBoard's events cannot be written any more: {error}")


class Silent(Journal):
    """The journal of every process but the first: writes nothing."""

    def __init__(self) -> None:
        """No file."""

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to cut."""

    def close(self) -> None:
        """Nothing to close."""


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

    def state(self) -> dict[str, Any]:
        """The sums since the last record."""
        return {"sums": self._sums, "steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on adding up."""
        self._sums, self._steps = state["sums"], state["steps"]

    def stepped(self, result: StepResult) -> None:
        """Add up; write when it is time."""
        for name, loss in result.losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss
        self._steps += 1
        if result.step % self._every == 0:
            self._write(result)
        self._screen.advance(result.step)

    def _write(self, result: StepResult) -> None:
        means = torch.stack(list(self._sums.values())).div(self._steps).tolist()
        losses = dict(zip(self._sums, means, strict=True))
        speed = self._steps * result.images / (time.perf_counter() - self._since)
        finite = {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}  # as JSON has it
        self._journal.write("train", result.step, lr=result.rate, losses=finite, images_per_second=round(speed, 3))
        self._screen.losses(result.step, losses, speed)
        self._sums, self._steps, self._since = {}, 0, time.perf_counter()
