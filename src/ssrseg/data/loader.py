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
from typing import Any

import cv2
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from ssrseg.config import Data, DataConfig, LoaderConfig, Settings, datasets
from ssrseg.data.cache import ScaledFiles
from ssrseg.data.class_statistics import ClassStatistics, class_statistics
from ssrseg.data.datasets import Crop, LabelledImages, Several, SourceImages, TargetImages
from ssrseg.data.label_mapping import Classes, code_for, resolve_space
from ssrseg.data.layouts import find_images, find_masks, find_pairs, spec_of
from ssrseg.data.samplers import SOURCE, TARGET, ClassBalancedSampler, RareClassSampler, Sampler, Shuffled, generator_of
from ssrseg.errors import UserError

ANY_IMAGE = 0.25
"""Share of rare-class sampling's draws that take any image, for a folder of the user's own that says nothing else."""
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
    """Image files, source then target, for messages."""
    source_inside: Tensor | None = None  # (B, H, W) bool: not padding; absent when nothing was padded
    target_inside: Tensor | None = None  # (B', H, W) bool: likewise
    regions: Tensor | None = None  # (B', H, W) int16: ids of masks, where the target has such

    def pin_memory(self) -> RawBatch:
        """Return the same batch in page-locked memory."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in tensors.items()}
        return replace(self, **pinned)


Sample = tuple[Crop, Crop | None]
"""One draw of both streams."""


@dataclass(frozen=True)
class Draws(Dataset[Sample]):
    """Draw number -> sample: each stream has a generator of its own, seeded by seed, stream and number."""

    source: SourceImages | Several
    target: TargetImages | Several | None
    seed: int

    def __getitem__(self, number: int) -> Sample:
        source = self.source.draw(number, generator_of(self.seed, SOURCE, number))
        if self.target is None:
            return source, None
        return source, self.target.draw(number, generator_of(self.seed, TARGET, number))

    def __getitems__(self, numbers: list[int]) -> list[Sample] | UserError:
        """Return a batch of samples, or the user's mistake: raised, it would arrive with a worker's traceback."""
        try:
            return [self[number] for number in numbers]
        except UserError as error:
            return error


def draw_numbers(turns: range, batch: int, rank: int, world: int) -> Iterator[list[int]]:
    """Yield the draw numbers of each turn's batch: no two turns or processes share one.

    A step takes one turn, or as many as it accumulates batches.
    """
    for turn in turns:
        first = (turn * world + rank) * batch
        yield list(range(first, first + batch))


def collate(samples: list[Sample] | UserError) -> RawBatch | UserError:
    """Stack samples to a batch; an error is passed on."""
    if isinstance(samples, UserError):
        return samples
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
        collate_fn=collate,
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
    draws = Draws(source_images(settings), target_images(settings), settings.train.seed)
    turns = range(start * accumulate, settings.train.steps * accumulate)
    numbers = draw_numbers(turns, config.batch, rank, world)
    return load(draws, numbers, workers=config.workers, timeout=config.timeout, pin_memory=pin_memory)


def source_images(settings: Settings) -> SourceImages | Several:
    """Return the labelled stream."""
    sets, config, seed = datasets(settings.source), settings.loader, settings.train.seed
    pairs = [find_pairs(data) for data in sets]
    codes = [code_for(data, settings.classes, settings.source) for data in sets]
    samplers: Sequence[Sampler] = [Shuffled(len(each), seed, SOURCE) for each in pairs]
    if config.rare_class is not None or config.class_balanced is not None:
        classes = resolve_space(settings.classes, settings.source).num_classes
        statistics = [class_statistics(each, code, classes) for each, code in zip(pairs, codes, strict=True)]
        if config.rare_class is not None:
            samplers = rare_class_samplers(statistics, settings)
        elif config.class_balanced is not None:
            samplers = [ClassBalancedSampler(one, config.class_balanced, seed) for one in statistics]
    files = [scaled_files(data, config, settings.model.in_channels) for data in sets]
    streams = [
        SourceImages(each, code, reader, config, sampler)
        for each, code, reader, sampler in zip(pairs, codes, files, samplers, strict=True)
    ]
    return streams[0] if len(sets) == 1 else Several(streams, shares(sets, [len(each) for each in pairs]))


def rare_class_samplers(statistics: Sequence[ClassStatistics], settings: Settings) -> list[RareClassSampler]:
    """Return the samplers of a run, one for each source; they draw for the classes of all sources."""
    config, crop, sets = settings.loader.rare_class, settings.loader.crop, datasets(settings.source)
    assert config is not None
    counts = [len(one.pixels) for one in statistics]
    weights = (shares(sets, counts) / torch.tensor(counts)).tolist()
    several = (statistics, weights) if len(sets) > 1 else ()
    samplers = []
    for data, one in zip(sets, statistics, strict=True):
        any_image = ANY_IMAGE if spec_of(data).space is None else 0.0
        known = config if config.any_image is not None else config.model_copy(update={"any_image": any_image})
        samplers.append(RareClassSampler(one, known, crop, *several))
    return samplers


def shares(sets: Sequence[DataConfig], counts: Sequence[int]) -> Tensor:
    """Return the probability of each data set, float64: its share, or by the `counts` of their images."""
    given = [one.share or count for one, count in zip(sets, counts, strict=True)]
    return torch.tensor(given, dtype=torch.float64) / sum(given)


def target_images(settings: Settings) -> TargetImages | Several | None:
    """Return the unlabelled stream; None for a method that only looks at the source."""
    sets, config = datasets(settings.target), settings.loader
    if not sets or not settings.method.looks_at_target:
        return None
    images = [find_images(data) for data in sets]
    streams = [
        TargetImages(
            each,
            scaled_files(data, config, settings.model.in_channels),
            data.margins,
            config,
            Shuffled(len(each), settings.train.seed, TARGET),
            None if data.masks is None else find_masks(data),
        )
        for data, each in zip(sets, images, strict=True)
    ]
    return streams[0] if len(sets) == 1 else Several(streams, shares(sets, [len(each) for each in images]))


def scaled_files(data: DataConfig, config: LoaderConfig, bands: int = 3) -> ScaledFiles:
    """Return the reader of a data set that is trained on."""
    return ScaledFiles(data.resize, config.scale_jpeg, config.cache, bands)


def eval_samples(data: Data, classes: Classes | None, source: Data | None = None, bands: int = 3) -> LabelledImages:
    """Return what is labelled for evaluation; `classes` and `source` as for `code_for`, `bands` of the model."""
    return LabelledImages(
        [
            (find_pairs(one), code_for(one, classes, source or data), ScaledFiles(one.resize, bands=bands))
            for one in datasets(data)
        ]
    )
