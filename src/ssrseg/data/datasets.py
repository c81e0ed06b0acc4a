"""Data sets: draw numbers to training samples, indices to samples for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from ssrseg.config import LoaderConfig
from ssrseg.data.label_files import LabelCode, read_labels
from ssrseg.data.labels import IGNORE
from ssrseg.data.reading import read_image
from ssrseg.data.sampling import Draw, Sampler
from ssrseg.data.specs import Pair
from ssrseg.data.transforms import (
    Box,
    is_varied,
    mirrored,
    pad,
    random_box,
    rescale_size,
    resize_image,
    resize_labels,
    retry,
)
from ssrseg.errors import UserError


@dataclass(frozen=True)
class Labelled:
    """A sample for evaluation."""

    image: Tensor  # (3, h, w) uint8, resized as the settings say
    labels: Tensor  # (H, W) uint8, at the label's own resolution
    path: Path


class LabelledImages(Dataset[Labelled]):
    """Images with labels, in order, whole."""

    def __init__(self, pairs: list[Pair], code: LabelCode, resize: tuple[int, int] | None) -> None:
        self.pairs, self._code, self._resize = pairs, code, resize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Labelled:
        pair = self.pairs[index]
        return Labelled(bounded(read_image(pair.image), self._resize), read_labels(pair.label, self._code), pair.image)


@dataclass(frozen=True)
class SourceImages:
    """Labelled crops by draw number."""

    pairs: list[Pair]
    code: LabelCode
    resize: tuple[int, int] | None
    loader: LoaderConfig
    sampler: Sampler

    def draw(self, number: int, generator: Generator) -> tuple[Tensor, Tensor, str]:
        """Image (3, h, w) and labels (h, w), uint8, and the image's name."""
        draw = self.sampler(number, generator)
        pair = self.pairs[draw.file]
        image, labels = read_image(pair.image), read_labels(pair.label, self.code)
        if image.shape[-2:] != labels.shape:
            raise UserError(f"{pair.image} is {_size(image)}, its label {pair.label} is {_size(labels)}.")
        size = _bound(labels, self.resize)
        image, labels = resize_image(image, size), resize_labels(labels, size)
        rows, columns = self._crop(labels, draw, generator)
        image, labels = image[:, rows, columns], labels[rows, columns]
        if mirrored(generator, self.loader.flip):
            image, labels = image.flip(-1), labels.flip(-1)
        return pad(image, self.loader.crop, 0), pad(labels, self.loader.crop, IGNORE), str(pair.image)

    def _crop(self, labels: Tensor, draw: Draw, generator: Generator) -> Box:
        """A crop that is varied and shows enough of the class that its image was drawn for."""
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
    resize: tuple[int, int] | None
    margins: tuple[int, int]
    loader: LoaderConfig
    sampler: Sampler

    def draw(self, number: int, generator: Generator) -> tuple[Tensor, Tensor, str]:
        """Image (3, h, w) uint8, which pixels a pseudo-label may be trusted in (h, w) bool, and the image's name."""
        path = self.images[self.sampler(number, generator).file]
        image = bounded(read_image(path), self.resize)
        height, width = image.shape[-2:]
        rows, columns = random_box(height, width, self.loader.crop, generator)
        image = image[:, rows, columns]
        if mirrored(generator, self.loader.flip):
            image = image.flip(-1)
        valid = pad(torch.ones_like(image[0]), self.loader.crop, 0).bool()
        top, bottom = self.margins
        valid[:top] = False
        valid[len(valid) - bottom :] = False
        return pad(image, self.loader.crop, 0), valid, str(path)


def bounded(image: Tensor, bound: tuple[int, int] | None) -> Tensor:
    """An image that fits the bound (width, height), aspect ratio kept."""
    return resize_image(image, _bound(image, bound))


def _bound(image: Tensor, bound: tuple[int, int] | None) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return rescale_size(width, height, bound) if bound else (width, height)


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
