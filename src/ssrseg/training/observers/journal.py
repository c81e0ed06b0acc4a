"""The journal of a run: metrics.jsonl, TensorBoard, trackers; and the observer of losses."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssrseg.runs.folder import RunFolder
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.console import Screen
from ssrseg.training.observers.trackers import FailSafeTracker


class Journal(Observer):
    """Append records to metrics.jsonl, TensorBoard and trackers; print notes and warnings.

    Args:
        folder: of the run. Without one nothing is written: every process but the first has such a journal.
        screen: prints notes and warnings; other observers print their results on it.
        start: completed steps of the run that is continued: TensorBoard shows none of its later ones.
        trackers: get the numbers of every record, and are closed with the journal.
    """

    def __init__(
        self, folder: RunFolder | None, screen: Screen, *, start: int = 0, trackers: Sequence[FailSafeTracker] = ()
    ) -> None:
        self.screen, self._start, self._trackers = screen, start, trackers
        self._file = None if folder is None else folder.metrics.open("ab", buffering=0)
        self._board: SummaryWriter | None = None
        if folder is not None:
            self._board = SummaryWriter(str(folder.tensorboard), purge_step=start + 1 if start else None)

    def note(self, step: int, text: str) -> None:
        """Print and record something worth knowing."""
        self.screen.print(f"note: {text}")
        self.write("note", step, text=text)

    def warn(self, step: int, text: str) -> None:
        """Print and record something that may be wrong."""
        self.screen.print(f"warning: {text}")
        self.write("warning", step, text=text)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append one record; numbers among its fields become TensorBoard curves."""
        if self._file is None:
            return
        line = (json.dumps({"kind": kind, "step": step, **fields}) + "\n").encode()
        while line:  # a disk that fills up takes a part first, and then says why
            line = line[self._file.write(line) :]
        numbers = {f"{kind}/{name}": value for name, value in _flat(fields)}
        try:
            for name, value in numbers.items():
                if self._board is not None:
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            self._drop_board(step, error)
        for tracker in self._trackers:
            if (failure := tracker.log(step, numbers)) is not None:
                self.warn(step, failure)

    def state(self) -> dict[str, Any]:
        """Bytes of metrics.jsonl, which are on the disk by then, as are TensorBoard's."""
        if self._file is None:
            return {}
        os.fsync(self._file.fileno())
        try:
            if self._board is not None:
                self._board.flush()
        except OSError as error:
            self._drop_board(self._start, error)
        return {"bytes": self._file.tell()}

    def restore(self, state: dict[str, Any]) -> None:
        """Cut off what was written after the checkpoint."""
        if self._file is None:
            return
        missing = state["bytes"] - os.fstat(self._file.fileno()).st_size
        if missing > 0:
            lost = f"{missing} bytes of metrics.jsonl that the checkpoint knows are missing: records were lost"
            self.write("warning", self._start, text=lost)
            return
        self._file.truncate(state["bytes"])
        self._file.seek(0, os.SEEK_END)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush everything to disk, then end the trackers' runs."""
        if self._file is None:
            return
        if self._board is not None:  # first: a tracker may read what it wrote
            with contextlib.suppress(OSError):
                self._board.close()
        self._board = None
        for tracker in self._trackers:
            if (failure := tracker.close()) is not None:
                self.warn(self._start, failure)
        os.fsync(self._file.fileno())
        self._file.close()

    def _drop_board(self, step: int, error: OSError) -> None:
        """Go on without curves: metrics.jsonl has the numbers."""
        self._board = None
        self.write("warning", step, text=f"TensorBoard's events cannot be written any more: {error}")


def _flat(fields: Mapping[str, Any]) -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            pairs += [(f"{name}/{inner}", number) for inner, number in _flat(value)]
        elif isinstance(value, int | float):
            pairs.append((name, value))
    return pairs


class Losses(Observer):
    """Record means of the losses every `every` steps: the only time that the host waits for the device."""

    kept = ("sums", "steps")

    def __init__(self, journal: Journal, every: int) -> None:
        self._journal, self._every = journal, every
        self.sums: dict[str, Tensor] = {}
        self.steps, self._since = 0, time.perf_counter()

    def stepped(self, result: StepResult) -> None:
        """Add up; write when it is time."""
        for name, loss in result.losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss
        self.steps += 1
        if result.step % self._every == 0:
            self._write(result)
        self._journal.screen.advance(result.step)

    def _write(self, result: StepResult) -> None:
        means = torch.stack(list(self.sums.values())).div(self.steps).tolist()
        losses = dict(zip(self.sums, means, strict=True))
        speed = self.steps * result.images / (time.perf_counter() - self._since)
        finite = {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}  # as JSON has it
        self._journal.write("train", result.step, lr=result.rate, losses=finite, images_per_second=round(speed, 3))
        self._journal.screen.show_losses(result.step, losses, speed)
        self.sums, self.steps, self._since = {}, 0, time.perf_counter()
