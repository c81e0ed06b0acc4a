"""Settings to streams of crops: the files of each data set, how they are read, and which comes next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssrseg.config import Data, DataConfig, LoaderConfig, Settings, datasets
from ssrseg.data.cache import ScaledFiles
from ssrseg.data.class_statistics import ClassStatistics, class_statistics
from ssrseg.data.datasets import LabelledImages, Several, SourceImages, TargetImages
from ssrseg.data.images import Reading
from ssrseg.data.label_mapping import Classes, code_for, resolve_space
from ssrseg.data.layouts import Pair, find_images, find_masks, find_pairs, listing_of, spec_of, spread
from ssrseg.data.samplers import SOURCE, TARGET, ClassBalancedSampler, RareClassSampler, Sampler, Shuffled
from ssrseg.errors import UserError

ANY_IMAGE = 0.25
"""Share of rare-class sampling's draws that take any image, for a folder of the user's own that says nothing else."""


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
    files = [scaled_files(data, config, settings.model.reading) for data in sets]
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
            scaled_files(data, config, settings.model.reading),
            data.margins,
            config,
            Shuffled(len(each), settings.train.seed, TARGET),
            None if data.masks is None else find_masks(data),
        )
        for data, each in zip(sets, images, strict=True)
    ]
    return streams[0] if len(sets) == 1 else Several(streams, shares(sets, [len(each) for each in images]))


def labelled_images(settings: Settings) -> SourceImages | Several | None:
    """Return the stream of labelled target images; None where no target has any. Each is drawn once per epoch."""
    sets, config, bands = [*settings.labelled.values()], settings.loader, settings.model.reading
    pairs = [find_labelled(data) for data in sets]
    streams = [
        SourceImages(
            each,
            code_for(data, settings.classes, settings.source),
            scaled_files(data, config, bands),
            config,
            Shuffled(len(each), settings.train.seed, SOURCE),
        )
        for data, each in zip(sets, pairs, strict=True)
    ]
    if len(streams) < 2:
        return next(iter(streams), None)
    return Several(streams, shares(sets, [*map(len, pairs)]))


def find_labelled(data: DataConfig) -> list[Pair]:
    """Find the images of a target that `data.labelled` names, with their labels.

    Raises `UserError` as `find_pairs`, where they are no images of the target, or fewer than wanted.
    """
    part, images = data.labelled, set(find_images(data))
    assert part is not None  # else there are none to look for
    if part.stems is not None:
        pairs = find_pairs(data.model_copy(update={"stems": part.stems}))
        if strange := [pair.image for pair in pairs if pair.image not in images]:
            raise UserError(f"{part.stems} lists {strange[0].stem!r}, which is no image of the target (`stems`).")
    else:
        pairs = listing_of(data).pairs
    if len(pairs) < (part.count or 1):
        wanted = f"so target.labelled.count={part.count} is too many" if pairs else "so none can be learnt from"
        raise UserError(
            f"{len(pairs)} images of {data.root} have a label, {wanted}: see `labels`, `labels_root` of the target."
        )
    return spread(pairs, part.count)


def scaled_files(data: DataConfig, config: LoaderConfig, bands: Reading = 3) -> ScaledFiles:
    """Return the reader of a data set that is trained on."""
    return ScaledFiles(data.resize, config.scale_jpeg, config.cache, bands)


def eval_samples(data: Data, classes: Classes | None, source: Data | None = None, bands: Reading = 3) -> LabelledImages:
    """Return what is labelled for evaluation; `classes` and `source` as for `code_for`, `bands` of the model."""
    return LabelledImages(
        [
            (find_pairs(one), code_for(one, classes, source or data), ScaledFiles(one.resize, bands=bands))
            for one in datasets(data)
        ]
    )
