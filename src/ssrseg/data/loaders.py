"""Settings to the streams of a run: every sample a function of seed and draw number alone."""

from __future__ import annotations

from pathlib import Path

from ssrseg.config import DataConfig, LoaderConfig, Settings
from ssrseg.data import samplers
from ssrseg.data.balanced import ClassBalanced
from ssrseg.data.cache import ImageCache
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.datasets import LabelledImages, SourceImages, TargetImages
from ssrseg.data.label_mapping import Classes, code_for, resolve_space
from ssrseg.data.layouts import find_images, find_pairs
from ssrseg.data.loader import Batches, DrawNumbers, Draws
from ssrseg.data.samplers import SOURCE, TARGET, RareClassSampler, Shuffled
from ssrseg.data.scaled import ScaledFiles


def eval_samples(data: DataConfig, classes: Classes | None, source: DataConfig | None = None) -> LabelledImages:
    """Return a labelled data set for evaluation; `classes` and `source` as for `code_for`."""
    return LabelledImages(find_pairs(data), code_for(data, classes, source), data.resize)


def train_batches(
    settings: Settings,
    *,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    cache: Path | None = None,
    start_method: str | None = None,
) -> Batches:
    """Batches from step `start` to the last one, `train.accumulate` of them for each step.

    Args:
        settings: of the run.
        start: completed steps. A resumed run draws exactly what the uninterrupted one would have.
        rank: of this process; every process draws other samples.
        world: number of processes.
        cache: where the class statistics are kept.
        start_method: of the workers: `fork`, `spawn` or `forkserver`; Python's own choice when absent.
    """
    config, accumulate = settings.loader, settings.train.accumulate
    draws = Draws(source_images(settings, cache), target_images(settings), settings.train.seed)
    turns = range(start * accumulate, settings.train.steps * accumulate)
    numbers = DrawNumbers(turns, config.batch, rank, world)
    return Batches(draws, numbers, workers=config.workers, timeout=config.timeout, start_method=start_method)


def source_images(settings: Settings, cache: Path | None = None) -> SourceImages:
    """The labelled stream."""
    data, config = settings.source, settings.loader
    pairs, code = find_pairs(data), code_for(data, settings.classes, settings.source)
    sampler: samplers.Sampler = Shuffled(len(pairs), settings.train.seed, SOURCE)
    if config.rare_class is not None or config.class_balanced is not None:
        classes = resolve_space(settings.classes, settings.source).num_classes
        statistics = class_statistics(pairs, code, classes, cache=cache)
        if config.rare_class is not None:
            sampler = RareClassSampler(statistics, config.rare_class, config.crop)
        elif config.class_balanced is not None:
            sampler = ClassBalanced(statistics, config.class_balanced, settings.train.seed)
    return SourceImages(pairs, code, scaled_files(data, config), config, sampler)


def target_images(settings: Settings) -> TargetImages | None:
    """The unlabelled stream; absent for a method that only looks at the source."""
    data = settings.target
    if data is None or not settings.method.looks_at_target:
        return None
    images = find_images(data)
    order = Shuffled(len(images), settings.train.seed, TARGET)
    return TargetImages(images, scaled_files(data, settings.loader), data.margins, settings.loader, order)


def scaled_files(data: DataConfig, config: LoaderConfig) -> ScaledFiles:
    """The reader of a data set that is trained on."""
    cache = None if config.cache is None else ImageCache(config.cache)
    return ScaledFiles(data.resize, config.scale_jpeg, cache)
