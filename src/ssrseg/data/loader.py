"""Settings to batches of bytes: every sample is a function of the seed and its draw number alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import cv2
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from ssrseg.config import Settings
from ssrseg.data.datasets import Crop, Several, SourceImages, TargetImages
from ssrseg.data.samplers import LABELLED, SOURCE, TARGET, generator_of
from ssrseg.data.streams import labelled_images, source_images, target_images
from ssrseg.errors import UserError

POLL = 5
"""Seconds after which a wait for a batch is interrupted to see whether all workers live."""


@dataclass(frozen=True)
class RawBatch:
    """A batch as the loader gives it: bytes; C is `model.in_channels`, 3 for RGB."""

    source: Tensor  # (B, C, H, W) uint8
    labels: Tensor  # (B, H, W) uint8
    target: Tensor  # (B', C, H, W) uint8; B' is 0 without a target
    valid: Tensor  # (B', H, W) bool
    names: tuple[str, ...]
    """Image files, source, target, then labelled, for messages."""
    source_inside: Tensor | None = None  # (B, H, W) bool: not padding; absent when nothing was padded
    target_inside: Tensor | None = None  # (B', H, W) bool: likewise
    regions: Tensor | None = None  # (B', H, W) int16: ids of masks, where the target has such
    labelled: Tensor | None = None  # (B'', C, H, W) uint8: target images with labels; absent for a method without
    labelled_labels: Tensor | None = None  # (B'', H, W) uint8
    labelled_inside: Tensor | None = None  # (B'', H, W) bool: likewise

    def pin_memory(self) -> RawBatch:
        """Return the same batch in page-locked memory."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in tensors.items()}
        return replace(self, **pinned)


Sample = tuple[Crop, Crop | None]
"""One draw of both streams."""
Drawn = tuple[list[Sample], list[Crop]]
"""A batch of them, and the labelled target images beside it."""


@dataclass(frozen=True)
class Draws(Dataset[Sample]):
    """Draw number -> sample: each stream has a generator of its own, seeded by seed, stream and number."""

    source: SourceImages | Several
    target: TargetImages | Several | None
    seed: int
    labelled: SourceImages | Several | None = None
    each: tuple[int, int] = (1, 1)
    """Labelled images for so many samples."""

    def __getitem__(self, number: int) -> Sample:
        source = self.source.draw(number, generator_of(self.seed, SOURCE, number))
        if self.target is None:
            return source, None
        return source, self.target.draw(number, generator_of(self.seed, TARGET, number))

    def __getitems__(self, numbers: list[int]) -> Drawn | UserError:
        """Return a batch of samples, or the user's mistake: raised, it would arrive with a worker's traceback."""
        try:
            return [self[number] for number in numbers], [*self._labelled_beside(numbers)]
        except UserError as error:
            return error

    def _labelled_beside(self, numbers: list[int]) -> Iterator[Crop]:
        count, samples = self.each
        first, end = (number * count // samples for number in (numbers[0], numbers[-1] + 1))
        for number in range(first + LABELLED, end + LABELLED) if self.labelled is not None else ():
            assert self.labelled is not None
            yield self.labelled.draw(number, generator_of(self.seed, SOURCE, number))


def draw_numbers(turns: range, batch: int, rank: int, world: int) -> Iterator[list[int]]:
    """Yield the draw numbers of each turn's batch: no two turns or processes share one.

    A step takes one turn, or as many as it accumulates batches.
    """
    for turn in turns:
        first = (turn * world + rank) * batch
        yield list(range(first, first + batch))


def collate_drawn(drawn: Drawn | UserError) -> RawBatch | UserError:
    """Stack what was drawn to a batch; an error is passed on."""
    if isinstance(drawn, UserError):
        return drawn
    samples, labelled = drawn
    batch = collate(samples)
    if not labelled:
        return batch
    images, labels, names, sizes = zip(*labelled, strict=True)
    return replace(
        batch,
        labelled=torch.stack(images),
        labelled_labels=torch.stack(labels),
        labelled_inside=_inside(images[0], sizes),
        names=(*batch.names, *names),
    )


def collate(samples: list[Sample]) -> RawBatch:
    """Stack samples to a batch."""
    images, labels, names, sizes = zip(*(source for source, _ in samples), strict=True)
    source, inside = torch.stack(images), _inside(images[0], sizes)
    targets = [target for _, target in samples if target is not None]
    if not targets:
        return RawBatch(source, torch.stack(labels), source[:0], source[:0, 0].bool(), names, inside)
    target, valid, target_names, target_sizes = zip(*targets, strict=True)
    names, others = (*names, *target_names), [torch.stack(part) for part in (labels, target, valid)]
    regions = None if others[2].dtype == torch.bool else others[2].clamp(min=0)
    others[2] = others[2] if regions is None else others[2] >= 0
    return RawBatch(source, others[0], others[1], others[2], names, inside, _inside(target[0], target_sizes), regions)


def _inside(image: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor | None:
    """Mark what is no padding in crops of an image's size; nothing where none was padded."""
    height, width = image.shape[-2:]
    if all(size == (height, width) for size in sizes):
        return None
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return torch.stack([(rows < size[0]) & (columns < size[1]) for size in sizes])


def load(
    draws: Draws, numbers: Iterable[list[int]], *, workers: int, timeout: int = 0, pin_memory: bool = False
) -> Iterator[RawBatch]:
    """Yield batches in order, made by worker processes.

    Args:
        draws: the samples.
        numbers: the draw numbers of each batch.
        workers: how many processes; 0 makes the batches in this one.
        timeout: seconds without a batch after which to give up; 0 waits for ever.
        pin_memory: put batches in page-locked memory, which goes to a GPU without waiting.

    Raises:
        UserError: a file is at fault, a worker died, or the time is over.
    """
    loader: DataLoader[Any] = DataLoader(
        draws,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=cast(Any, collate_drawn),
        pin_memory=pin_memory,
        generator=Generator().manual_seed(draws.seed),  # else it would take its seed from the global one
        worker_init_fn=partial(_prepare_worker, pixels=Image.MAX_IMAGE_PIXELS),
        timeout=min(POLL, timeout or POLL) if workers else 0,
    )
    others = set(multiprocessing.active_children())
    with _without_torchs_sigchld():
        iterator = iter(loader)
    processes = set(multiprocessing.active_children()) - others
    began = time.monotonic()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if codes := [process.exitcode for process in processes if process.exitcode]:
                how = ", ".join(f"signal {-code}" if code < 0 else f"exit code {code}" for code in sorted(codes))
                raise UserError(
                    f"A worker of the data loader died ({how}): most often memory runs out. Set loader.workers "
                    f"lower (now {workers}; 0 loads in the training process and shows what happens), loader.batch "
                    "or loader.crop smaller; continue with --resume."
                ) from error
            if "timed out after" not in str(error):
                raise
            if timeout and time.monotonic() - began >= timeout:
                raise UserError(
                    f"No batch has come from the loader's workers for {timeout} seconds: a file that cannot "
                    "be read to its end (a network disk that hangs?), or a worker that was stopped. Try "
                    "loader.workers=0 to see where, or raise loader.timeout (seconds; 0 waits for ever)."
                ) from error
            continue
        if isinstance(batch, UserError):
            del iterator  # now, as the error holds this frame: the garbage collector would wait for workers for 5 s
            raise batch
        yield batch
        began = time.monotonic()


@contextmanager
def _without_torchs_sigchld() -> Iterator[None]:
    """Restore the handler of SIGCHLD, where there is one: torch's, which loaders set, raises in the midst of any step.

    A worker that dies is seen at the next batch. torch's may be there already, from a loader of somebody else.
    """
    number = getattr(signal, "SIGCHLD", None)  # not on Windows
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(number)
    yield
    torchs = getattr(handler, "__module__", None) == signal_handling.__name__
    if handler is not None:
        signal.signal(number, signal.SIG_DFL if torchs else handler)


def _prepare_worker(index: int, pixels: int | None = None) -> None:
    if pixels is not None:
        Image.MAX_IMAGE_PIXELS = pixels  # as in the parent, from which it need not be forked
    parent = multiprocessing.parent_process()
    if os.getppid() == 1 and parent is not None and parent.pid != 1:
        os._exit(1)  # its parent was killed meanwhile, which torch's workers see only if it happens later
    cv2.setNumThreads(0)  # a worker is one core's; and OpenCV's thread pool does not survive a fork


def train_batches(
    settings: Settings, *, start: int = 0, rank: int = 0, world: int = 1, pin_memory: bool = False
) -> Iterator[RawBatch]:
    """Yield the batches from step `start` to the last one, `train.accumulate` of them for each step.

    Args:
        settings: of the run.
        start: completed steps. A resumed run draws exactly what the uninterrupted one would have.
        rank: of this process; every process draws other samples.
        world: number of processes.
        pin_memory: for a run on CUDA.

    Raises:
        UserError: at once when files are missing or no label shows a class; later see `load`.
    """
    config, accumulate = settings.loader, settings.train.accumulate
    streams, each = (source_images(settings), target_images(settings)), (config.of_labelled, config.batch)
    draws = Draws(*streams, settings.train.seed, labelled_images(settings), each)
    turns = range(start * accumulate, settings.train.steps * accumulate)
    numbers = draw_numbers(turns, config.batch, rank, world)
    return load(draws, numbers, workers=config.workers, timeout=config.timeout, pin_memory=pin_memory)
