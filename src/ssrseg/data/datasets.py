"""Data sets: training samples by draw number, evaluation samples by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from ssrseg.config import LoaderConfig
from ssrseg.config.data import Bound, ImageMargins, Margins
from ssrseg.data.cache import ScaledFiles
from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode
from ssrseg.data.label_spaces import IGNORE
from ssrseg.data.layouts import Pair
from ssrseg.data.masks import read_masks
from ssrseg.data.samplers import Draw, Sampler
from ssrseg.data.transforms import (
    Box,
    is_varied,
    jitter,
    mirrored,
    pad,
    random_box,
    rescale_size,
    resize_image,
    resize_labels,
    retry,
    valid_pixels,
)

Crop = tuple[Tensor, Tensor, str, tuple[int, int]]
"""A crop of an image (3, h, w) uint8, of its labels or of where to trust pseudo-labels (h, w), the image's name, and
the (height, width) that is no padding. Where to trust is bool, or the id of a pixel's region, negative where not."""


@dataclass(frozen=True)
class LabelledImage:
    """A sample for evaluation: a whole image and its label."""

    image: Tensor  # (3, h, w) uint8, resized to the bound of its data set
    labels: Tensor  # (H, W) uint8, at the label's own resolution
    path: Path
    domain: int = 0
    """Which of several data sets it is of."""


class LabelledImages(Dataset[LabelledImage]):
    """Images with labels, in order, whole: of one data set, or of several one after the other."""

    def __init__(self, sets: Sequence[tuple[Sequence[Pair], LabelCode, ScaledFiles]]) -> None:
        self.pairs = [pair for pairs, *_ in sets for pair in pairs]
        self._domains = [number for number, (pairs, *_) in enumerate(sets) for _ in pairs]
        self._readers = [(code, files) for _, code, files in sets]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabelledImage:
        pair, domain = self.pairs[index], self._domains[index]
        code, files = self._readers[domain]
        labels = read_labels(pair.label, code, pair.image)
        return LabelledImage(files.image(pair.image).whole(), labels, pair.image, domain)


@dataclass(frozen=True)
class SourceImages:
    """Labelled crops by draw number."""

    pairs: list[Pair]
    code: LabelCode
    files: ScaledFiles
    loader: LoaderConfig
    sampler: Sampler

    def draw(self, number: int, generator: Generator) -> Crop:
        """Return a crop of an image (3, h, w) and of its labels (h, w), uint8, and the image's name."""
        draw = self.sampler(number, generator)
        pair = self.pairs[draw.file]
        config = self.loader.jitter
        change = None if config is None else partial(jitter, config=config, generator=generator)
        scaled, labels = self.files.pair(pair, self.code, change)
        box = self._crop(labels, draw, generator)
        image, labels = scaled.crop(box), labels[box]
        if mirrored(generator, self.loader.flip):
            image, labels = image.flip(-1), labels.flip(-1)
        crop, (height, width) = self.loader.crop, labels.shape
        return pad(image, crop, 0), pad(labels, crop, IGNORE), str(pair.image), (height, width)

    def _crop(self, labels: Tensor, draw: Draw, generator: Generator) -> Box:
        """Choose a crop that is varied and shows enough of the class that its image was drawn for."""
        height, width = labels.shape

        def varied() -> Box:
            return retry(
                lambda: random_box(height, width, self.loader.crop, generator),
                lambda box: is_varied(labels[box], self.loader.max_class_share),
            )

        if draw.rare is None:
            return varied()
        rare = labels == draw.rare
        return retry(varied, lambda box: int(rare[box].sum()) > draw.enough)


@dataclass(frozen=True)
class TargetImages:
    """Unlabelled crops by draw number."""

    images: list[Path]
    files: ScaledFiles
    margins: Margins
    loader: LoaderConfig
    sampler: Sampler
    masks: list[Path] | None = None
    """Maps of regions, one for each image."""

    def draw(self, number: int, generator: Generator) -> Crop:
        """Return a crop (3, h, w) uint8, where to trust pseudo-labels in it (h, w) bool, and the image's name."""
        file = self.sampler(number, generator).file
        path = self.images[file]
        scaled = self.files.image(path)
        width, height = scaled.size
        box = random_box(height, width, self.loader.of_target, generator)
        image, nowhere = scaled.crop(box), 0
        valid = valid_pixels(scaled.size, self.margins)[box]
        if self.masks is not None:
            nowhere = -1
            valid = resize_labels(read_masks(self.masks[file], path), scaled.size)[box].where(valid, nowhere)
        if mirrored(generator, self.loader.flip):
            image, valid = image.flip(-1), valid.flip(-1)
        valid = pad(valid, self.loader.of_target, nowhere)
        if not isinstance(self.margins, ImageMargins):
            top, bottom = self.margins
            valid[:top] = nowhere
            valid[len(valid) - bottom :] = nowhere
        return pad(image, self.loader.of_target, 0), valid, str(path), (image.shape[-2], image.shape[-1])


@dataclass(frozen=True)
class Several:
    """Crops of several data sets by draw number: a set by its share, and of it the crop of that number."""

    parts: Sequence[SourceImages] | Sequence[TargetImages]
    shares: Tensor
    """Probability of each set."""

    def draw(self, number: int, generator: Generator) -> Crop:
        """Return the crop of the drawn set."""
        return self.parts[int(torch.multinomial(self.shares, 1, generator=generator))].draw(number, generator)


def bounded(image: Tensor, bound: Bound | None) -> Tensor:
    """Resize an image (3, H, W) to fit the bound (width, height), aspect ratio kept; unchanged without a bound."""
    height, width = image.shape[-2:]
    return resize_image(image, rescale_size(width, height, bound)) if bound else image
