"""Two streams, source and target, into one batch: every sample a function of seed and draw number alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssrseg.config import DataConfig, Settings
from ssrseg.data import sampling
from ssrseg.data.codes import code_for, resolve_space
from ssrseg.data.datasets import LabelledImages, SourceImages, TargetImages
from ssrseg.data.sampling import SOURCE, TARGET, RareClassSampler, Shuffled, class_statistics, generator_of
from ssrseg.data.specs import find_images, find_pairs
from ssrseg.errors import UserError


@dataclass(frozen=True)
class Raw:
    """A batch as the loader gives it: bytes."""

    source: Tensor  # (B, 3, H, W) uint8
    labels: Tensor  # (B, H, W) uint8
    target: Tensor  # (B', 3, H, W) uint8; B' is 0 without a target
    valid: Tensor  # (B', H, W) bool
    names: tuple[str, ...]
    """Image files, source then target, for messages."""

    def pin_memory(self) -> Raw:
        """The same batch in page-locked memory."""
        return Raw(
            self.source.pin_memory(),
            self.labels.pin_memory(),
            self.target.pin_memory(),
            self.valid.pin_memory(),
            self.names,
        )


def eval_samples(data: DataConfig, settings: Settings) -> LabelledImages:
    """A labelled data set for evaluation."""
    return LabelledImages(find_pairs(data), code_for(data, settings), data.resize)


def train_batches(
    settings: Settings, *, start: int = 0, rank: int = 0, world: int = 1, cache: Path | None = None
) -> Iterator[Raw]:
    """Batches from step `start` to the last one, `train.accumulate` of them for each step.

    Args:
        settings: of the run.
        start: completed steps. A resumed run draws exactly what the uninterrupted one would have.
        rank: of this process; every process draws other samples.
        world: number of processes.
        cache: where the class statistics are kept.
    """
    seed, config = settings.train.seed, settings.loader
    draws = Draws(source_images(settings, cache), target_images(settings), seed)
    accumulate = settings.train.accumulate
    turns = range(start * accumulate, settings.train.steps * accumulate)
    numbers = DrawNumbers(turns, config.batch, rank, world)
    loader: DataLoader[Any] = DataLoader(
        draws,
        batch_sampler=numbers,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=Generator().manual_seed(seed),  # else it would take its seed from the global generator
        timeout=config.timeout if config.workers else 0,
    )
    return punctual(iter(loader), config.timeout)


def punctual(batches: Iterator[Raw], timeout: int) -> Iterator[Raw]:
    """The batches; raises `UserError` when the loader has given up on its workers."""
    try:
        yield from batches
    except RuntimeError as error:
        if "timed out after" not in str(error):
            raise
        raise UserError(
            f"No batch has come from the loader's workers for {timeout} seconds: a file that cannot be read to its end "
            "(a network disk that hangs?), or a worker that was stopped. Try loader.workers=0 to see where, or raise "
            "loader.timeout (seconds; 0 waits for ever)."
        ) from error


def source_images(settings: Settings, cache: Path | None = None) -> SourceImages:
    """The labelled stream."""
    data, config = settings.source, settings.loader
    pairs, code = find_pairs(data), code_for(data, settings)
    sampler: sampling.Sampler = Shuffled(len(pairs), settings.train.seed, SOURCE)
    if config.rare_class is not None:
        classes = resolve_space(settings).num_classes
        statistics = class_statistics(pairs, code, classes, cache=cache)
        sampler = RareClassSampler(statistics, config.rare_class, config.crop)
    return SourceImages(pairs, code, data.resize, config, sampler)


def target_images(settings: Settings) -> TargetImages | None:
    """The unlabelled stream; absent for a method that only looks at the source."""
    data = settings.target
    if data is None or settings.method.teacher is None:
        return None
    images = find_images(data)
    order = Shuffled(len(images), settings.train.seed, TARGET)
    return TargetImages(images, data.resize, data.margins, settings.loader, order)


@dataclass(frozen=True)
class Sample:
    """One draw of both streams."""

    source: tuple[Tensor, Tensor, str]
    target: tuple[Tensor, Tensor, str] | None


@dataclass(frozen=True)
class Draws(Dataset[Sample]):
    """Draw number -> sample: each stream has a generator of its own, seeded by seed, stream and number."""

    source: SourceImages
    target: TargetImages | None
    seed: int

    def __getitem__(self, number: int) -> Sample:
        return Sample(
            self.source.draw(number, generator_of(self.seed, SOURCE, number)),
            None if self.target is None else self.target.draw(number, generator_of(self.seed, TARGET, number)),
        )


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


def collate(samples: list[Sample]) -> Raw:
    """Samples to a batch."""
    images, labels, names = zip(*(sample.source for sample in samples), strict=True)
    source = torch.stack(images)
    targets = [sample.target for sample in samples if sample.target is not None]
    if not targets:
        return Raw(source, torch.stack(labels), source[:0], source[:0, 0].bool(), names)
    target, valid, target_names = zip(*targets, strict=True)
    return Raw(source, torch.stack(labels), torch.stack(target), torch.stack(valid), (*names, *target_names))
