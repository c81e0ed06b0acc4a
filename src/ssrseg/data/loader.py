"""Draw numbers to batches of bytes, by workers that may die."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import cv2
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssrseg.data.datasets import SourceImages, TargetImages
from ssrseg.data.samplers import SOURCE, TARGET, generator_of
from ssrseg.errors import UserError

LOOK = 5
"""Seconds after which a wait for a batch is interrupted to look whether the workers live."""
RESTARTS = 5
"""How often dead workers are replaced before a run gives up."""


@dataclass(frozen=True)
class Raw:
    """A batch as the loader gives it: bytes."""

    source: Tensor  # (B, 3, H, W) uint8
    labels: Tensor  # (B, H, W) uint8
    target: Tensor  # (B', 3, H, W) uint8; B' is 0 without a target
    valid: Tensor  # (B', H, W) bool
    names: tuple[str, ...]
    """Image files, source then target, for messages."""
    notes: tuple[str, ...] = ()
    """What the user should know of its making, once for every time that it happened."""

    def pin_memory(self) -> Raw:
        """The same batch in page-locked memory."""
        return Raw(
            self.source.pin_memory(),
            self.labels.pin_memory(),
            self.target.pin_memory(),
            self.valid.pin_memory(),
            self.names,
            self.notes,
        )


@dataclass(frozen=True)
class Sample:
    """One draw of both streams."""

    source: tuple[Tensor, Tensor, str]
    target: tuple[Tensor, Tensor, str] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draws(Dataset[Sample]):
    """Draw number -> sample: each stream has a generator of its own, seeded by seed, stream and number."""

    source: SourceImages
    target: TargetImages | None
    seed: int

    def __getitem__(self, number: int) -> Sample:
        source = self.source.draw(number, generator_of(self.seed, SOURCE, number))
        notes = self.source.files.take_notes()
        if self.target is None:
            return Sample(source, None, tuple(notes))
        target = self.target.draw(number, generator_of(self.seed, TARGET, number))
        return Sample(source, target, (*notes, *self.target.files.take_notes()))

    def __getitems__(self, numbers: list[int]) -> list[Sample] | UserError:
        """A batch of samples, or the user's mistake: raised in a worker, it would arrive with a worker's traceback."""
        try:
            return [self[number] for number in numbers]
        except UserError as error:
            return error


@dataclass(frozen=True)
class DrawNumbers(Sampler[list[int]]):
    """The draw numbers of each turn's batch: no two turns or processes share one.

    A step takes one turn, or as many as it accumulates batches.
    """

    turns: range
    batch: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[int]]:
        for turn in self.turns:
            first = (turn * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        return len(self.turns)


def collate(samples: list[Sample] | UserError) -> Raw | UserError:
    """Samples to a batch."""
    if isinstance(samples, UserError):
        return samples
    images, labels, names = zip(*(sample.source for sample in samples), strict=True)
    notes = tuple(note for sample in samples for note in sample.notes)
    source = torch.stack(images)
    targets = [sample.target for sample in samples if sample.target is not None]
    if not targets:
        return Raw(source, torch.stack(labels), source[:0], source[:0, 0].bool(), names, notes)
    target, valid, target_names = zip(*targets, strict=True)
    return Raw(source, torch.stack(labels), torch.stack(target), torch.stack(valid), (*names, *target_names), notes)


class Batches(Iterator[Raw]):
    """The batches of some turns, in order.

    When a worker is killed, for example because memory ran out, all are started anew at the batch that was due, which
    has a note of it: a batch is a function of its turn, so nothing is lost or seen twice.
    """

    def __init__(
        self, draws: Draws, numbers: DrawNumbers, *, workers: int, timeout: int = 0, start_method: str | None = None
    ) -> None:
        self._draws, self._numbers, self._workers, self._start_method = draws, numbers, workers, start_method
        self._timeout = timeout
        self._turn, self._restarts = numbers.turns.start, 0
        self._processes: set[Any] = set()
        self._iterator: Iterator[Raw | UserError] | None = None
        self._notes: list[str] = []

    def __next__(self) -> Raw:
        """The batch of the next turn; raises `UserError` when a file is at fault, or workers keep dying."""
        began = time.monotonic()
        while True:
            if self._iterator is None:
                self._iterator = self._start()
            try:
                raw = next(self._iterator)
                break
            except (RuntimeError, OSError, EOFError) as error:
                if any(process.exitcode not in (None, 0) for process in self._processes):
                    self._bury(error)
                elif "timed out after" not in str(error):
                    raise
                elif self._timeout and time.monotonic() - began >= self._timeout:
                    raise UserError(
                        f"No batch has come from the loader's workers for {self._timeout} seconds: a file that cannot "
                        "be read to its end (a network disk that hangs?), or a worker that was stopped. Try "
                        "loader.workers=0 to see where, or raise loader.timeout (seconds; 0 waits for ever)."
                    ) from error
        if isinstance(raw, UserError):
            raise raw
        self._turn += 1
        notes, self._notes = self._notes, []
        return replace(raw, notes=(*notes, *raw.notes)) if notes else raw

    def _start(self) -> Iterator[Raw | UserError]:
        numbers = self._numbers
        turns = range(self._turn, numbers.turns.stop)
        loader: DataLoader[Any] = DataLoader(
            self._draws,
            batch_sampler=DrawNumbers(turns, numbers.batch, numbers.rank, numbers.world),
            num_workers=self._workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=Generator().manual_seed(self._draws.seed),  # else it would take its seed from the global one
            multiprocessing_context=self._start_method,
            worker_init_fn=_prepare_worker,
            timeout=min(LOOK, self._timeout or LOOK) if self._workers else 0,
        )
        others = set(multiprocessing.active_children())
        iterator = iter(loader)
        self._processes = set(multiprocessing.active_children()) - others
        if self._processes and threading.current_thread() is threading.main_thread():
            _let_workers_die()
        return iterator

    def _bury(self, error: Exception) -> None:
        """Count a death; raises `UserError` after too many."""
        codes = sorted(process.exitcode for process in self._processes if process.exitcode not in (None, 0))
        self._iterator = None  # ends the workers that are left
        self._restarts += 1
        how = ", ".join(f"signal {-code}" if code < 0 else f"exit code {code}" for code in codes)
        if self._restarts > RESTARTS:
            raise UserError(
                f"Workers of the data loader died {self._restarts} times, the last before batch {self._turn + 1} "
                f"({how}): most often memory runs out. Set loader.workers lower (now {self._workers}; 0 loads in the "
                "training process and shows what happens), loader.batch or loader.crop smaller."
            ) from error
        self._notes.append(f"a data loader worker died ({how}): all were started again at the batch that was due")


def _prepare_worker(index: int) -> None:
    cv2.setNumThreads(0)  # a worker is one core's; and OpenCV's thread pool does not survive a fork


def _let_workers_die() -> None:
    """Where torch hears of a dead worker, in the midst of any step, keep still: `Batches` asks at the next batch."""
    heard = signal.getsignal(signal.SIGCHLD)
    if callable(heard) and not isinstance(heard, _Calm):
        signal.signal(signal.SIGCHLD, _Calm(heard))


@dataclass(frozen=True)
class _Calm:
    handler: Any

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):
            self.handler(number, frame)
