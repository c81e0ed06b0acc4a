"""Class-balanced source list: a class that was seen less often so far is drawn more often (Undoing's code)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ssrseg.config import ClassBalancedConfig
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.data.samplers import SOURCE_ORDER, Draw, generator_of
from ssrseg.errors import UserError


class ClassBalanced:
    """Draws blocks of images, each a function of the seed and the block's number alone.

    Within a block every draw takes a class with weight 1 / ln(offset + r_c), r_c its share of the classes seen so far,
    then the next image that shows it, and counts every class of that image as seen. The reference's files go on from
    one block to the next; here every block shuffles them anew, so that a run can resume anywhere.
    """

    def __init__(self, statistics: ClassStatistics, config: ClassBalancedConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._shows = (statistics.pixels > 0).double()  # (files, K)
        self._classes = [c for c in range(self._shows.shape[1]) if self._shows[:, c].any()]
        if not self._classes:
            raise UserError("No source label shows any of the classes: check `classes` and the raw values (`ids`).")
        self._block: tuple[int, list[int]] = (-1, [])

    def __call__(self, number: int, generator: Generator) -> Draw:
        """The image of a draw number."""
        block, place = divmod(number, self.config.block)
        if self._block[0] != block:
            self._block = (block, self._draw_block(block))
        return Draw(self._block[1][place])

    def _draw_block(self, block: int) -> list[int]:
        generator = generator_of(self.seed, SOURCE_ORDER, block)
        queues = {c: Queue(self._shows[:, c].nonzero()[:, 0], generator) for c in self._classes}
        seen = torch.zeros(self._shows.shape[1], dtype=torch.float64)
        files: list[int] = []
        for _ in range(self.config.block):
            weights = class_weights(seen, self.config.offset)[self._classes]
            chosen = self._classes[int(torch.multinomial(weights, 1, generator=generator))]
            files.append(queues[chosen].next())
            seen += self._shows[files[-1]]
        return files


def class_weights(seen: Tensor, offset: float) -> Tensor:
    """Weights 1 / ln(offset + r_c), normalised; r_c = n_c / sum n, and 0 before anything was seen.

    Args:
        seen: n_c, (K,).
        offset: above 1.
    """
    shares = seen / seen.sum().clamp(min=1)
    weights = 1 / (offset + shares).log()
    return weights / weights.sum()


class Queue:
    """The files of a class in random order, again and again."""

    def __init__(self, files: Tensor, generator: Generator) -> None:
        self._files, self._generator = files, generator
        self._waiting: list[int] = []

    def next(self) -> int:
        """A file that was not drawn since the last shuffle."""
        if not self._waiting:
            order = torch.randperm(len(self._files), generator=self._generator)
            self._waiting = self._files[order].tolist()
        return self._waiting.pop()
