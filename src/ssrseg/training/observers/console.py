"""Progress of a run on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Screen:
    """A progress bar on a terminal, plain lines elsewhere.

    Args:
        console: where to print; nothing is printed when absent.
        steps: length of the run.
        start: completed steps.
    """

    def __init__(self, console: Console | None, steps: int = 0, start: int = 0) -> None:
        self._console, self._steps = console, steps
        self._score = ""
        self._live: Progress | None = None
        if console is not None and console.is_terminal:
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
        elif self._console is not None:
            seconds = (time.perf_counter() - self._began) / (step - self._start) * (self._steps - step)
            left = f"{_clock(seconds)} left"
            self._console.print(f"step {step}/{self._steps}  {text}  {left}", soft_wrap=True, highlight=False)

    def show_score(self, step: int, student: float, teacher: float | None) -> None:
        """Show the latest mIoU (fractions)."""
        self._score = f"  mIoU {100 * student:.1f}"
        beside = "" if teacher is None else f" (teacher {100 * teacher:.1f})"
        self.print(f"step {step}: mIoU {100 * student:.2f}{beside}")

    def print(self, text: str) -> None:
        """Print a line of text."""
        if self._console is not None:
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
