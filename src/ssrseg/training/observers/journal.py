"""What a run says and records: screen, metrics.jsonl, TensorBoard, trackers; and the observer of losses."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssrseg.runs.folder import RunFolder
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.trackers import Tracker


class Screen:
    """A progress bar on a terminal, plain lines elsewhere; nothing without a console. `start`: completed steps."""

    def __init__(self, console: Console | None, steps: int = 0, start: int = 0) -> None:
        self._console, self._steps, self._score = console or Console(quiet=True), steps, ""
        self._live: Progress | None = None
        if console is not None and console.is_terminal and not console.quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._live = Progress(*columns, console=console)
            self._task = self._live.add_task("", total=steps, completed=start)
            self._live.start()
        self._began, self._start = time.perf_counter(), start

    def advance(self, step: int) -> None:
        """Move the bar to `step` completed steps."""
        if self._live is not None:
            self._live.update(self._task, completed=step)

    def show_losses(self, step: int, losses: Mapping[str, float], speed: float) -> None:
        """Show the mean losses since the last time, and images per second."""
        text = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        text = f"{text}  {speed:.1f} images/s{self._score}"
        if self._live is not None:
            self._live.update(self._task, description=text)
        else:
            seconds = (time.perf_counter() - self._began) / (step - self._start) * (self._steps - step)
            self.print(f"step {step}/{self._steps}  {text}  {timedelta(seconds=round(seconds))} left")

    def show_score(self, step: int, student: float, teacher: float | None) -> None:
        """Show the latest mIoU (fractions)."""
        self._score = f"  mIoU {100 * student:.1f}"
        beside = "" if teacher is None else f" (teacher {100 * teacher:.1f})"
        self.print(f"step {step}: mIoU {100 * student:.2f}{beside}")

    def print(self, text: str) -> None:
        """Print a line of text."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()


class Journal(Observer):
    """Append records to metrics.jsonl, TensorBoard and trackers; print notes and warnings.

    Without a folder nothing is written: every process but the first has such a journal. `start` are the completed
    steps of a run that is continued: TensorBoard shows none of its later ones.
    """

    def __init__(
        self, folder: RunFolder | None, screen: Screen, *, start: int = 0, trackers: Sequence[Tracker] = ()
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
        numbers = _numbers(kind, fields)
        for name, value in numbers.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            if (failure := tracker.log(step, numbers)) is not None:
                self.warn(step, failure)

    def state(self) -> dict[str, Any]:
        """Bytes of metrics.jsonl, which are on the disk by then, as are TensorBoard's."""
        if self._file is None:
            return {}
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()
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


def _numbers(path: str, value: Any) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {key: x for name, inner in value.items() for key, x in _numbers(f"{path}/{name}", inner).items()}
    return {path: value} if isinstance(value, int | float) else {}


class Losses(Observer):
    """Record means of the losses every `every` steps; they are summed on the device and read then."""

    kept = ("sums", "steps")

    def __init__(self, journal: Journal, every: int) -> None:
        self._journal, self._every = journal, every
        self.sums: dict[str, Tensor] = {}
        self.steps, self._since = 0, time.perf_counter()

    def stepped(self, result: StepResult) -> None:
        for name, loss in result.losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss
        self.steps += 1
        if result.step % self._every == 0:
            means = torch.stack(list(self.sums.values())).div(self.steps).tolist()
            losses = dict(zip(self.sums, means, strict=True))
            speed = self.steps * result.images / (time.perf_counter() - self._since)
            finite = {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}  # as JSON has it
            self._journal.write("train", result.step, lr=result.rate, losses=finite, images_per_second=round(speed, 3))
            self._journal.screen.show_losses(result.step, losses, speed)
            self.sums, self.steps, self._since = {}, 0, time.perf_counter()
        self._journal.screen.advance(result.step)
