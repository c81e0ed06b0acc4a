"""Which source image comes next: class statistics, and rare-class sampling (DAFormer, section 3.2)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Generator, Tensor

from ssrseg.config import RareClassConfig
from ssrseg.data.label_files import LabelCode, read_labels
from ssrseg.data.specs import Pair
from ssrseg.data.storage import stamp
from ssrseg.errors import UserError
from ssrseg.files import write_json

SOURCE, TARGET, SOURCE_ORDER, TARGET_ORDER = range(4)
"""Streams of draws, and of the orders of their epochs."""


def generator_of(seed: int, stream: int, number: int) -> Generator:
    """The generator of one draw: a function of the run's seed, the stream and the draw number alone."""
    # The CPU generator takes 32 bits of a seed. A golden-ratio step spreads the streams of all runs over them, so
    # that the draw numbers, counted from there, do not run from one stream into another.
    return Generator().manual_seed(((seed * 4 + stream) * 0x9E3779B1 + number) & 0xFFFFFFFF)


@dataclass(frozen=True)
class ClassStatistics:
    """Pixels per file and class."""

    pixels: Tensor  # (files, K) int64

    @property
    def totals(self) -> Tensor:
        """Pixels per class (K,)."""
        return self.pixels.sum(dim=0)


def class_statistics(
    pairs: Sequence[Pair], code: LabelCode, num_classes: int, *, cache: Path | None = None, workers: int = 4
) -> ClassStatistics:
    """Count every label file once, in parallel; later calls read the cache while files and mapping are the same.

    Args:
        pairs: the source.
        code: how label files are read.
        num_classes: K.
        cache: a JSON file beside the user's cache folder, which all runs share. What cannot be written is no error.
        workers: threads.
    """
    key = _fingerprint(pairs, code, num_classes)
    if cache is not None and (known := _read_cache(cache, key)) is not None:
        return ClassStatistics(known)
    if (known := _read_cache(_remembered(key), key)) is not None:
        return _saved(ClassStatistics(known), pairs, key, [cache])

    def count(pair: Pair) -> Tensor:
        return torch.bincount(read_labels(pair.label, code).flatten(), minlength=256)[:num_classes]

    with ThreadPoolExecutor(workers) as pool:
        counted = track(
            pool.map(count, pairs),
            "counting classes",
            total=len(pairs),
            transient=True,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        pixels = torch.stack(list(counted))
    return _saved(ClassStatistics(pixels), pairs, key, [cache, _remembered(key)])


def save_statistics(
    statistics: ClassStatistics, pairs: Sequence[Pair], code: LabelCode, num_classes: int, place: Path
) -> None:
    """Keep what was counted elsewhere where `class_statistics` finds it: in a file, and in the user's cache folder."""
    key = _fingerprint(pairs, code, num_classes)
    _saved(statistics, pairs, key, [place, _remembered(key)])


def _saved(
    statistics: ClassStatistics, pairs: Sequence[Pair], key: str, places: Sequence[Path | None]
) -> ClassStatistics:
    content = {"key": key, "files": [str(pair.label) for pair in pairs], "pixels": statistics.pixels.tolist()}
    for place in places:
        if place is not None:
            with contextlib.suppress(OSError):  # a read-only folder: counted again next time
                place.parent.mkdir(parents=True, exist_ok=True)
                write_json(place, content)
    return statistics


def _remembered(key: str) -> Path:
    """Where all runs of a user look for the statistics of these files (XDG base directories)."""
    home = os.path.expanduser("~")  # stays "~" for a user without home, as in some containers
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home if home != "~" else tempfile.gettempdir(), ".cache")
    return Path(cache) / "ssrseg" / "class-statistics" / f"{key}.json"


def _fingerprint(pairs: Sequence[Pair], code: LabelCode, num_classes: int) -> str:
    digest = hashlib.sha256(f"{code.digest()} {num_classes}".encode())
    for pair in pairs:
        text = f"{pair.label.absolute()}\0{stamp(pair.label)}\0"
        digest.update(text.encode(errors="surrogateescape"))  # names that are no UTF-8
    return digest.hexdigest()


def _read_cache(path: Path, key: str) -> Tensor | None:
    try:
        content = json.loads(path.read_text())
        return torch.tensor(content["pixels"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
