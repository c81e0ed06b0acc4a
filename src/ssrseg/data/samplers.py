"""Which image comes next: each once per epoch, or by rare-class sampling (DAFormer, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ssrseg.config import RareClassConfig
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.errors import UserError

SOURCE, TARGET, SOURCE_ORDER, TARGET_ORDER = range(4)
"""Streams of draws, and of the orders of their epochs."""


def generator_of(seed: int, stream: int, number: int) -> Generator:
    """The generator of one draw: a function of the run's seed, the stream and the draw number alone."""
    # The CPU generator takes 32 bits of a seed. A golden-ratio step spreads the streams of all runs over them, so
    # that the draw numbers, counted from there, do not run from one stream into another.
    return Generator().manual_seed(((seed * 4 + stream) * 0x9E3779B1 + number) & 0xFFFFFFFF)


def rare_class_probabilities(totals: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """P(c) = softmax((1 - f_c) / T) over the classes that occur, f_c the share of their pixels (DAFormer, eq. 6-7).

    Args:
        totals: pixels per class (K,).
        temperature: T.

    Returns:
        Class ids by ascending pixel count, and their probabilities, float32.
    """
    classes = totals.argsort(stable=True)
    classes = classes[totals[classes] > 0]
    frequency = totals[classes].float() / totals.sum().float()
    return classes, ((1 - frequency) / temperature).softmax(dim=0)


def scaled_min_pixels(crop: tuple[int, int]) -> int:
    """The references' 3000 pixels of a 512x512 crop, for another crop."""
    return max(1, round(3000 * crop[0] * crop[1] / 512**2))


@dataclass(frozen=True)
class Draw:
    """A drawn image; `rare` is the class it was drawn for, of which a crop should show more than `enough` pixels."""

    file: int
    rare: int | None = None
    enough: float = 0.0


class RareClassSampler:
    """Draws a class, then an image that shows enough of it.

    A class that no image shows enough of draws from the images that show most of it; a class that never occurs is
    not drawn.
    """

    def __init__(self, statistics: ClassStatistics, config: RareClassConfig, crop: tuple[int, int]) -> None:
        self.min_pixels = config.min_pixels or scaled_min_pixels(crop)
        # "More than": a ratio of 0 asks for nothing, not even one pixel.
        self.enough = self.min_pixels * config.min_crop_ratio if config.min_crop_ratio > 0 else -1.0
        self.classes, self.probabilities = rare_class_probabilities(statistics.totals, config.temperature)
        if not len(self.classes):
            raise UserError("No source label shows any of the classes: check `classes` and the raw values (`ids`).")
        self._files = {int(c): self._files_of(statistics.pixels[:, c]) for c in self.classes}

    def files_of(self, class_id: int) -> list[int]:
        """Indices of the files that are drawn for a class."""
        files: list[int] = self._files[class_id].tolist()
        return files

    def __call__(self, number: int, generator: Generator) -> Draw:
        """Class by probability, file uniformly; the draw number has seeded the generator already."""
        class_id = int(self.classes[int(torch.multinomial(self.probabilities, 1, generator=generator))])
        files = self._files[class_id]
        file = int(files[int(torch.randint(len(files), (), generator=generator))])
        return Draw(file, class_id, self.enough)

    def _files_of(self, pixels: Tensor) -> Tensor:
        many = (pixels > self.min_pixels).nonzero()[:, 0]
        return many if len(many) else (pixels > pixels.max() // 2).nonzero()[:, 0]


@dataclass(frozen=True)
class Shuffled:
    """Draws every image once per epoch, in an order that depends on seed, stream and epoch alone."""

    count: int
    seed: int
    stream: int
    """`SOURCE` or `TARGET`: with one order for both, equally many images would meet in the same pairs for ever."""

    def __call__(self, number: int, generator: Generator) -> Draw:
        """The image of a draw number."""
        epoch, place = divmod(number, self.count)
        order = torch.randperm(self.count, generator=generator_of(self.seed, self.stream + SOURCE_ORDER, epoch))
        return Draw(int(order[place]))


Sampler = Callable[[int, Generator], Draw]
"""Draw number and its generator -> which image."""
