"""Which image comes next: each once per epoch, by rare-class sampling (DAFormer), or class-balanced (Undoing)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ssrseg.config import ClassBalancedConfig, RareClassConfig
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.errors import UserError

SOURCE, TARGET, SOURCE_ORDER, TARGET_ORDER = range(4)
"""Streams of draws, and of the orders of their epochs."""
LABELLED = 1 << 31
"""Added to the draw numbers of the labelled target images, which are drawn as a source is: no run has so many draws."""
NO_CLASS = "No source label shows any of the classes: check `classes` and the raw values (`ids`)."


def generator_of(seed: int, stream: int, number: int) -> Generator:
    """Return the generator of one draw: a function of the run's seed, the stream and the draw number alone."""
    # The CPU generator takes 32 bits of a seed. A golden-ratio step spreads the streams of all runs over them, so
    # that the draw numbers, counted from there, do not run from one stream into another.
    return Generator().manual_seed(((seed * 4 + stream) * 0x9E3779B1 + number) & 0xFFFFFFFF)


@dataclass(frozen=True)
class Draw:
    """A drawn image; `rare` is the class it was drawn for, of which a crop should show more than `enough` pixels."""

    file: int
    rare: int | None = None
    enough: float = 0.0


Sampler = Callable[[int, Generator], Draw]
"""Draw number and its generator -> which image."""


@dataclass(frozen=True)
class Shuffled:
    """Draws every image once per epoch, in an order that depends on seed, stream and epoch alone."""

    count: int
    seed: int
    stream: int
    """`SOURCE` or `TARGET`: with one order for both, equally many images would meet in the same pairs for ever."""

    def __call__(self, number: int, generator: Generator) -> Draw:
        """Return the image of a draw number."""
        epoch, place = divmod(number, self.count)
        order = torch.randperm(self.count, generator=generator_of(self.seed, self.stream + SOURCE_ORDER, epoch))
        return Draw(int(order[place]))


def rare_class_probabilities(totals: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute P(c) = softmax((1 - f_c) / T) over the classes that occur (DAFormer, eq. 6-7); f_c: share of the pixels.

    Takes the pixels per class (K,); returns class ids by ascending pixel count, and their probabilities, float32.
    """
    classes = totals.argsort(stable=True)
    classes = classes[totals[classes] > 0]
    frequency = totals[classes].float() / totals.sum().float()
    return classes, ((1 - frequency) / temperature).softmax(dim=0)


def scaled_min_pixels(crop: tuple[int, int]) -> int:
    """Scale the references' 3000 pixels of a 512x512 crop to another crop."""
    return max(1, round(3000 * crop[0] * crop[1] / 512**2))


class RareClassSampler:
    """Rare-class sampling (DAFormer, section 3.2): draws a class, then an image that shows enough of it.

    A class that no image shows enough of draws from the images that show most of it; a class that never occurs is
    not drawn. The share `config.any_image` of the draws, none when absent, takes any image.

    Of several data sets each has a sampler: `among` are the statistics of all, and `weights` those of an image of
    each. The classes' frequencies are then those of all draws, what is enough is known from all images, and a set draws
    for the classes that it shows enough of, or any image if there is none.
    """

    def __init__(
        self,
        statistics: ClassStatistics,
        config: RareClassConfig,
        crop: tuple[int, int],
        among: Sequence[ClassStatistics] = (),
        weights: Sequence[float] = (),
    ) -> None:
        self.count, self.any_image = len(statistics.pixels), config.any_image or 0.0
        self.min_pixels = config.min_pixels or scaled_min_pixels(crop)
        # "More than": a ratio of 0 asks for nothing, not even one pixel.
        self.enough = self.min_pixels * config.min_crop_ratio if config.min_crop_ratio > 0 else -1.0
        totals, most = statistics.totals, statistics.pixels.amax(dim=0)
        if among:
            totals = torch.stack([w * one.totals.double() for one, w in zip(among, weights, strict=True)]).sum(dim=0)
            most = torch.stack([one.pixels.amax(dim=0) for one in among]).amax(dim=0)
        self.classes, self.probabilities = rare_class_probabilities(totals, config.temperature)
        if not len(self.classes):
            raise UserError(NO_CLASS)
        self.files: dict[int, list[int]] = {}
        """Class id -> indices of the files that are drawn for it."""
        for c in self.classes.tolist():
            pixels = statistics.pixels[:, c]
            enough = pixels > (self.min_pixels if most[c] > self.min_pixels else most[c] // 2)
            self.files[c] = enough.nonzero()[:, 0].tolist()
        shown = torch.tensor([bool(self.files[c]) for c in self.classes.tolist()])
        if not shown.any():
            self.any_image = 1.0
        elif not shown.all():
            self.classes, self.probabilities = self.classes[shown], self.probabilities[shown]
            self.probabilities /= self.probabilities.sum()

    def __call__(self, number: int, generator: Generator) -> Draw:
        """Draw the class by its probability, the file uniformly; the draw number has seeded the generator already."""
        if self.any_image and float(torch.rand((), generator=generator)) < self.any_image:
            return Draw(int(torch.randint(self.count, (), generator=generator)))
        class_id = int(self.classes[int(torch.multinomial(self.probabilities, 1, generator=generator))])
        files = self.files[class_id]
        return Draw(files[int(torch.randint(len(files), (), generator=generator))], class_id, self.enough)

    @property
    def chances(self) -> Tensor:
        """Probability of each file to be drawn (files,), float64."""
        chances = torch.full((self.count,), self.any_image / self.count, dtype=torch.float64)
        for c, probability in zip(self.classes.tolist(), self.probabilities.tolist(), strict=True):
            chances[self.files[c]] += (1 - self.any_image) * probability / len(self.files[c])
        return chances


class ClassBalancedSampler:
    """Class-balanced source list (Undoing's code): a class that was seen less often so far is drawn more often.

    Draws blocks of images, each a function of the seed and the block's number alone. Within a block every draw takes
    a class with weight 1 / ln(offset + r_c), r_c its share of the classes seen so far, then the next image that shows
    it, and counts every class of that image as seen. The reference's files go on from one block to the next; here
    every block shuffles them anew, so that a run can resume anywhere.
    """

    def __init__(self, statistics: ClassStatistics, config: ClassBalancedConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._shows = (statistics.pixels > 0).double()  # (files, K)
        self._classes = [c for c in range(self._shows.shape[1]) if self._shows[:, c].any()]
        if not self._classes:
            raise UserError(NO_CLASS)
        self._block: tuple[int, list[int]] = (-1, [])

    def __call__(self, number: int, generator: Generator) -> Draw:
        """Return the image of a draw number."""
        block, place = divmod(number, self.config.block)
        if self._block[0] != block:
            self._block = (block, self._draw_block(block))
        return Draw(self._block[1][place])

    def _draw_block(self, block: int) -> list[int]:
        generator = generator_of(self.seed, SOURCE_ORDER, block)
        queues = {c: _shuffled_again_and_again(self._shows[:, c].nonzero()[:, 0], generator) for c in self._classes}
        seen = torch.zeros(self._shows.shape[1], dtype=torch.float64)
        files: list[int] = []
        for _ in range(self.config.block):
            weights = class_weights(seen, self.config.offset)[self._classes]
            chosen = self._classes[int(torch.multinomial(weights, 1, generator=generator))]
            files.append(next(queues[chosen]))
            seen += self._shows[files[-1]]
        return files


def class_weights(seen: Tensor, offset: float) -> Tensor:
    """Compute weights 1 / ln(offset + r_c), normalised; r_c = n_c / sum n, and 0 before anything was seen.

    `seen` is n_c, (K,); `offset` is above 1.
    """
    shares = seen / seen.sum().clamp(min=1)
    weights = 1 / (offset + shares).log()
    return weights / weights.sum()


def _shuffled_again_and_again(files: Tensor, generator: Generator) -> Iterator[int]:
    while True:
        yield from files[torch.randperm(len(files), generator=generator)].flip(0).tolist()
