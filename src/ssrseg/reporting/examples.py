"""The same held-out images as several runs predict them, with what is wrong: from largest gain to largest loss."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssrseg.reporting.pictures import data_uri
from ssrseg.reporting.tables import Group
from ssrseg.runs.records import RunRecord, read_json

MOST_RUNS = 6
UNLABELLED = 255
ERROR_COLOURS = (0, 0, 0, 224, 32, 60, 128, 128, 128)
"""RGB of what is right, wrong, unlabelled."""
ERROR_ALPHA = bytes((0, 255, 150))

Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layer:
    """What one run predicts for an image; scores are fractions, `None` where nothing is labelled."""

    labels: str
    """A `data:` address, as the others."""
    errors: str
    miou: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True)
class Example:
    """An image with its labels and a layer per run."""

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
    """Settings of which no run left predictions."""

    @property
    def size(self) -> int:
        """Characters that they take."""
        return sum(image.size for image in self.images)


@dataclass(frozen=True)
class _Predicted:
    """The predictions that a run left."""

    run: RunRecord
    name: str
    record: dict[str, Any]
    entries: dict[str, dict[str, Any]]
    """By the image's name."""

    def path(self, image: str, kind: str) -> Path:
        return self.run.folder / "pictures" / "val" / f"{int(self.entries[image]['number']):03}-{kind}"


def examples(groups: Sequence[Group], budget: int) -> Examples | None:
    """The images that the runs have in common, from both ends of the last run's gain over the first, as far as fits.

    Args:
        groups: one run stands for each; of a single group, its runs.
        budget: characters of embedded pictures.

    Returns:
        `None` where no run left predictions.

    Raises:
        UserError: a record of predictions is damaged.
    """
    runs = [run for run in map(_predicted, *_representatives(groups)) if run][:MOST_RUNS]
    if not runs:
        return None
    first = runs[0]
    names = [name for name in first.entries if all(name in run.entries for run in runs)]
    shown: list[Example] = []
    for name in from_both_ends(sorted(names, key=lambda name: -_gain(runs, name))):
        example = _example(runs, name)
        if example and example.size <= budget:
            budget -= example.size
            shown.append(example)
    colours = [f"#{int(red):02x}{int(green):02x}{int(blue):02x}" for red, green, blue in first.record.get("colors", ())]
    classes = tuple(zip(map(str, first.record.get("classes", ())), colours, strict=False))
    of = int(first.record.get("of", len(first.entries)))
    without = tuple(group.name for group in groups if not any(_record_path(run).is_file() for run in group.runs))
    return Examples(tuple(run.name for run in runs), classes, tuple(shown), len(names), of, without)


def from_both_ends(ordered: Sequence[str]) -> list[str]:
    """First, last, second, last but one and so on: whatever is cut off is from the middle."""
    count = len(ordered)
    return [ordered[i // 2] if i % 2 == 0 else ordered[count - 1 - i // 2] for i in range(count)]


def _representatives(groups: Sequence[Group]) -> tuple[list[RunRecord], list[str]]:
    """One run per group, of the smallest seed that all groups have, else its first; the runs of a single group."""
    left = [(group, runs) for group in groups if (runs := [run for run in group.runs if _record_path(run).is_file()])]
    if len(groups) == 1 and left:
        (group, runs) = left[0]
        return runs, [f"seed {run.seed}" if len(group.runs) > 1 else "student" for run in runs]
    shared = set.intersection(*({run.seed for run in runs} for _, runs in left)) if left else set()
    seed = min((each for each in shared if each is not None), default=None)
    chosen = [next((run for run in runs if seed is not None and run.seed == seed), runs[0]) for _, runs in left]
    names = [
        f"{group.name}, seed {run.seed}" if len(group.runs) > 1 else group.name
        for (group, _), run in zip(left, chosen, strict=True)
    ]
    return chosen, names


def _record_path(run: RunRecord) -> Path:
    return run.folder / "pictures" / "val" / "images.json"


def _predicted(run: RunRecord, name: str) -> _Predicted | None:
    record = read_json(_record_path(run))
    entries = {str(entry["name"]): entry for entry in record.get("images", ())}
    return _Predicted(run, name, record, entries) if entries else None


def _miou(run: _Predicted, name: str) -> float | None:
    value: float | None = run.entries[name].get("miou")
    return value


def _gain(runs: Sequence[_Predicted], name: str) -> float:
    """Of the last run over the first, or what a single one has; zero, in the middle, where nothing is labelled."""
    before, after = _miou(runs[0], name) if len(runs) > 1 else 0.0, _miou(runs[-1], name)
    return 0.0 if before is None or after is None else after - before


def _example(runs: Sequence[_Predicted], name: str) -> Example | None:
    """`None` when a file is unreadable, or when the runs were scored with other labels."""
    try:
        truths = [_ids(run.path(name, "truth.png")) for run in runs]
        predictions = [_ids(run.path(name, "student.png")) for run in runs]
        image, truth = runs[0].path(name, "image.jpg").read_bytes(), runs[0].path(name, "truth.png").read_bytes()
        if any(not np.array_equal(truths[0], ids) for ids in truths[1:]):
            return None
        if any(ids.shape != truths[0].shape for ids in predictions):
            return None
        layers = tuple(_layers(runs, name, truths[0], predictions))
    except (OSError, SyntaxError, ValueError):  # Pillow's word for a broken PNG is SyntaxError
        return None
    height, width = truths[0].shape
    return Example(name, width, height, data_uri(image, "jpeg"), data_uri(truth, "png"), layers)


def _layers(runs: Sequence[_Predicted], name: str, truth: Ids, predictions: Sequence[Ids]) -> Iterator[Layer]:
    for run, ids in zip(runs, predictions, strict=True):
        labels = data_uri(run.path(name, "student.png").read_bytes(), "png")
        accuracy: float | None = run.entries[name].get("pixel_accuracy")
        yield Layer(labels, data_uri(error_map(truth, ids), "png"), _miou(run, name), accuracy)


def error_map(truth: Ids, ids: Ids) -> bytes:
    """A PNG over an image: transparent where the prediction (H, W) is right, red where wrong, grey without a label."""
    unlabelled = truth == UNLABELLED
    kinds = np.where(unlabelled, 2, (truth != ids).astype(np.uint8)).astype(np.uint8)
    picture, buffer = Image.fromarray(kinds), io.BytesIO()
    picture.putpalette(ERROR_COLOURS)
    picture.save(buffer, "PNG", transparency=ERROR_ALPHA, optimize=True)
    return buffer.getvalue()


def _ids(path: Path) -> Ids:
    """Class ids (H, W) of a palette PNG."""
    with Image.open(path) as picture:
        if picture.mode != "P":
            raise ValueError(f"{path} has no palette")
        return np.asarray(picture)
