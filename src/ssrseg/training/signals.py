"""Signals: the first one ends the run after the step, the second one at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, `kill`, and SLURM's warning ahead of a time limit (`#SBATCH --signal=USR1@120`)."""

ECHO = 1.0
"""Seconds in which a second signal counts as the first: launchers pass on what the terminal has sent already."""


class Interrupted(SystemExit):
    """A signal has ended the run after a step, and its state was kept. The exit code is 128 + the signal's number."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signal, self.step = signal.Signals(signum), step


class Stop:
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        self.signum = 0
        """0: none."""

    def agreed(self, fabric: Fabric, *, due: bool) -> int:
        """Return the signal that any process has received; 0 when there is none, or it is not yet time to ask.

        Args:
            fabric: the processes.
            due: whether it is time: the same in all processes. A single process need not wait for it.
        """
        if fabric.world_size == 1:
            return self.signum
        if not due:
            return 0
        highest = fabric.all_reduce(torch.tensor(self.signum, device=fabric.device), reduce_op="max")
        return int(cast(Tensor, highest))


@contextmanager
def signals_noted() -> Iterator[Stop]:
    """Note the first of `SIGNALS`; the second does what it did before. Signals that were ignored stay ignored.

    Only Python's main thread can do so; in another one nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    noted_at = 0.0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal noted_at
        if not stop.signum:
            stop.signum, noted_at = signum, time.monotonic()
        elif time.monotonic() - noted_at > ECHO:
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)

    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
