"""Pictures that travel inside the page: predictions of several runs compared, and what each student saw."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssrseg.reporting.comparison import Group
from ssrseg.runs.atomic import read_json
from ssrseg.runs.folder import RunFolder
from ssrseg.runs.records import PictureFile, RunRecord

MOST_RUNS = 6
UNLABELLED = 255
ERROR_COLOURS = (0, 0, 0, 224, 32, 60, 128, 128, 128)
"""RGB of what is right, wrong, unlabelled."""
ERROR_ALPHA = bytes((0, 255, 150))
MAX_SIZE = (1200, 1600)
"""(width, height) in pixels: sharp enough on a phone and on half a desktop screen."""
UNREADABLE = (OSError, SyntaxError, ValueError)
"""Of a picture that is half-written; Pillow's error for a broken PNG is SyntaxError."""

Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layer:
    """One run's prediction for an image, as `data:` addresses; scores are fractions, `None` without any label."""

    labels: str
    errors: str
    miou: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True)
class Example:
    """An image with its labels, as `data:` addresses, and a layer per run."""

    name: str
    width: int
    height: int
    image: str
    truth: str
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Characters that it takes."""
        layers = sum(len(layer.labels) + len(layer.errors) for layer in self.layers)
        return len(self.image) + len(self.truth) + layers


@dataclass(frozen=True)
class Examples:
    """The images that a page can compare."""

    runs: tuple[str, ...]
    """Names of the layers."""
    classes: tuple[tuple[str, str], ...]
    """Name and colour (`#rrggbb`)."""
    images: tuple[Example, ...]
    common: int
    """Images of which all these runs left a prediction; those beyond `images` did not fit the page."""
    of: int
    """Held-out images in all."""
    without: tuple[str, ...] = ()
    """Groups of which no run left predictions."""


class _Predictions:
    """The predictions that a run left."""

    def __init__(self, name: str, run: RunRecord) -> None:
        self.name, self._folder = name, RunFolder(run.folder)
        self.record = read_json(self._folder.predicted_index)
        self.entries: dict[str, dict[str, Any]] = {str(each["name"]): each for each in self.record.get("images", ())}

    def path(self, image: str, kind: str) -> Path:
        return self._folder.predicted_picture(int(self.entries[image]["number"]), kind)


def examples(groups: Sequence[Group], budget: int) -> Examples | None:
    """Compare the images that the runs have in common, from both ends of the last run's gain over the first.

    One run stands for each group; of a single group, its runs. Pictures beyond `budget` characters are left out. `None`
    where no run left predictions; raises `UserError` where their record is damaged.
    """
    left = {
        group.name: [run for run in group.runs if RunFolder(run.folder).predicted_index.is_file()] for group in groups
    }
    found = [_Predictions(name, run) for name, run in _representatives(groups, left)]
    runs = [run for run in found if run.entries][:MOST_RUNS]
    if not runs:
        return None
    first, last = runs[0], runs[-1]

    def gain(name: str) -> float:
        """Of a single run the score itself; zero, in the middle, without labels."""
        before = first.entries[name].get("miou") if len(runs) > 1 else 0.0
        after = last.entries[name].get("miou")
        return 0.0 if before is None or after is None else after - before

    names = [name for name in first.entries if all(name in run.entries for run in runs)]
    shown: list[Example] = []
    for name in from_both_ends(sorted(names, key=gain, reverse=True)):
        example = _example(runs, name)
        if example and example.size <= budget:
            budget -= example.size
            shown.append(example)
    colours = ["#" + bytes(map(int, colour)).hex() for colour in first.record.get("colors", ())]
    classes = tuple(zip(map(str, first.record.get("classes", ())), colours, strict=False))
    of = int(first.record.get("of", len(first.entries)))
    without = tuple(name for name, chosen in left.items() if not chosen)
    return Examples(tuple(run.name for run in runs), classes, tuple(shown), len(names), of, without)


def from_both_ends(ordered: Sequence[str]) -> list[str]:
    """Order as first, last, second, last but one and so on: whatever is cut off is from the middle."""
    count = len(ordered)
    return [ordered[i // 2] if i % 2 == 0 else ordered[count - 1 - i // 2] for i in range(count)]


def _representatives(groups: Sequence[Group], left: Mapping[str, list[RunRecord]]) -> Iterator[tuple[str, RunRecord]]:
    """Choose a run per group, of the smallest seed that all have, else its first; of a single group, all runs."""
    if len(groups) == 1:
        for run in left[groups[0].name]:
            yield f"seed {run.seed}" if len(groups[0].runs) > 1 else "student", run
        return
    seeds = [{run.seed for run in runs if run.seed is not None} for runs in left.values() if runs]
    shared = min(set.intersection(*seeds), default=None) if seeds else None
    for group in groups:
        if runs := left[group.name]:
            run = next((run for run in runs if run.seed == shared), runs[0])
            yield f"{group.name}, seed {run.seed}" if len(group.runs) > 1 else group.name, run


def _example(runs: Sequence[_Predictions], name: str) -> Example | None:
    """Embed an image; `None` when a file is unreadable, or when the runs were scored with other labels."""
    layers = []
    try:
        image, truth = (runs[0].path(name, kind) for kind in ("image.jpg", "truth.png"))
        labels = _ids(truth)
        for run in runs:
            path = run.path(name, "student.png")
            ids = _ids(path)
            if ids.shape != labels.shape or not np.array_equal(_ids(run.path(name, "truth.png")), labels):
                return None
            shown, errors = data_uri(path.read_bytes(), "png"), data_uri(error_map(labels, ids), "png")
            layers.append(Layer(shown, errors, run.entries[name].get("miou"), run.entries[name].get("pixel_accuracy")))
        pictures = data_uri(image.read_bytes(), "jpeg"), data_uri(truth.read_bytes(), "png")
    except UNREADABLE:
        return None
    height, width = labels.shape
    return Example(name, width, height, *pictures, tuple(layers))


def error_map(truth: Ids, ids: Ids) -> bytes:
    """Draw a PNG that covers an image (H, W): transparent where the ids are right, red if wrong, grey without label."""
    kinds = np.where(truth == UNLABELLED, 2, truth != ids).astype(np.uint8)
    picture, buffer = Image.fromarray(kinds), io.BytesIO()
    picture.putpalette(ERROR_COLOURS)
    picture.save(buffer, "PNG", transparency=ERROR_ALPHA, optimize=True)
    return buffer.getvalue()


def _ids(path: Path) -> Ids:
    """Read class ids (H, W) from a palette PNG."""
    with Image.open(path) as picture:
        if picture.mode != "P":
            raise ValueError(f"{path} has no palette")
        return np.asarray(picture)


def data_uri(content: bytes, kind: str) -> str:
    """Write a picture file as an address; `kind` is `jpeg` or `png`."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


Picture = tuple[str, str, int, int]
"""Caption, `data:` address, width and height of a picture of a view."""
Gallery = tuple[str, list[tuple[int, list[Picture]]], int]
"""A run, its pictures by step, and how many more stay in the run folder."""


def galleries(runs: Sequence[tuple[str, RunRecord]], budget: int) -> Iterator[Gallery]:
    """Show what each student saw, by the name of its run; all share the budget, in characters."""
    shown = [(name, run) for name, run in runs if run.views]
    for name, run in shown:
        left, steps = budget // len(shown), []
        # the latest first, so that a spent budget costs the oldest
        for step in reversed(spaced(sorted({file.step for file in run.views}), 5 if len(runs) > 1 else 10)):
            pictures: list[Picture] = []
            for file in run.views:
                if file.step == step and left > 0 and (picture := _embedded(file)):
                    left -= len(picture[1])
                    pictures.append(picture)
            steps += [(step, pictures)] if pictures else []
        yield name, steps[::-1], len(run.views) - sum(len(pictures) for _, pictures in steps)


def _embedded(file: PictureFile) -> Picture | None:
    """Embed a picture, downscaled; `None` when it is unreadable."""
    try:
        with Image.open(file.path) as opened:
            image = opened.convert("RGB")
    except UNREADABLE:
        return None
    image.thumbnail(MAX_SIZE)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)  # full colour resolution, for the edges of label maps
    return file.view, data_uri(buffer.getvalue(), "jpeg"), *image.size


def spaced(numbers: Sequence[int], count: int) -> list[int]:
    """Pick at most `count` of the numbers, two or more, evenly spaced, the first and last among them."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)]
