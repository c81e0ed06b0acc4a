"""Which unlabelled images to label first."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ssrseg.config import DataConfig, InferenceConfig
from ssrseg.config.data import Bound, Data
from ssrseg.data import find_bounded, read_image
from ssrseg.data.datasets import bounded
from ssrseg.data.images import Reading, as_rgb
from ssrseg.data.label_spaces import IGNORE
from ssrseg.errors import UserError
from ssrseg.inference.criteria import entropy
from ssrseg.inference.engines import pick_device
from ssrseg.inference.evaluate import evaluating
from ssrseg.inference.sliding_window import build_inference
from ssrseg.models.segmenter import Segmenter
from ssrseg.models.weights import load
from ssrseg.runs.atomic import write_atomically, write_text

ALIKE = 0.02
"""Images whose features are closer than this, as 1 - cosine, are one picture twice: frames of a car that stands."""
LOOKED_AT = (512, 512)
"""(width, height) that bounds an image for its features: they are to tell pictures apart, not pixels."""
CELL, COLUMNS, LINE = (224, 168), 5, 20
"""Of the contact sheet: pixels of a picture, pictures in a row, height of a line of text."""


@dataclass(frozen=True)
class Suggestion:
    """An image to label."""

    image: Path
    uncertainty: float
    """Mean entropy of the model's predictions as a share of the largest possible, in [0, 1]."""
    distance: float
    """1 - cosine of its features to the nearest of those suggested before it; 2 for the first."""


def suggest(
    model: Path | str | Segmenter,
    target: Data | Path | str,
    out: Path,
    *,
    count: int = 20,
    device: str = "auto",
    inference: InferenceConfig | None = None,
) -> list[Suggestion]:
    """Choose the unlabelled images whose labels would teach a model most, and lay out files to label them in.

    Greedily, the image is taken that is farthest from those taken before (Sener and Savarese: Active Learning for
    Convolutional Neural Networks: A Core-Set Approach, ICLR 2018, algorithm 1), the distance times the image's
    uncertainty. Features are the deepest of the backbone, averaged over the image; near-duplicates are left out.

    `out` gets `stems.txt` and `labels/STEM.png`, of each image's size and ignored everywhere, to be painted over: what
    `target.labelled.stems`, `target.labels_root` and `target.labels` name in a training. `suggested.csv` says why, and
    `contact-sheet.png` shows them in their order. Labels that are there already are never written over.

    Args:
        model: one trained for the classes, on the source at least; a segmenter or where one lies, as in `Predictor`.
        target: unlabelled images or their folder; resized as the model's description says, unless the data do.
        out: a folder.
        count: how many, at most: fewer where all others are near-duplicates of them.
        device: `auto` or a device of torch's.
        inference: how an image becomes logits: whole when absent.

    Raises:
        UserError: no image, a count below 1, two images of one stem, or a file cannot be read or written.
    """
    if count < 1:
        raise UserError(f"Expected a count of 1 or more, found {count}.")
    segmenter = load(model).to(pick_device(device))
    data = DataConfig(root=Path(target)) if isinstance(target, Path | str) else target
    found = find_bounded(data)
    if len({path.stem for path, _ in found}) < len(found):
        raise UserError("Two images have one stem, by which labels are named: suggest for each folder by itself.")
    features, uncertainty = _look(segmenter, found, inference or InferenceConfig())
    order, distances = farthest(features, uncertainty, count)
    chosen = [
        Suggestion(found[n][0], float(uncertainty[n]), distance) for n, distance in zip(order, distances, strict=True)
    ]
    _lay_out(chosen, Path(out), segmenter.reading)
    return chosen


def farthest(features: Tensor, weights: Tensor, count: int) -> tuple[list[int], list[float]]:
    """Choose rows of `features` (N, D), of length 1, greedily: far from those chosen, times `weights` (N) in [0, 1].

    Returns the rows in their order, and of each 1 - cosine to the nearest before it. Rows closer than `ALIKE` to a
    chosen one are never chosen.
    """
    nearest = torch.full((len(features),), 2.0)
    order, distances = list[int](), list[float]()
    while len(order) < min(count, len(features)):
        worth = torch.where(nearest < ALIKE, -1.0, nearest * weights)
        best = int(worth.argmax())
        if worth[best] < 0:
            break
        order.append(best)
        distances.append(float(nearest[best]))
        nearest = torch.minimum(nearest, 1 - features @ features[best])
        nearest[best] = 0
    return order, distances


def _look(
    segmenter: Segmenter, images: Sequence[tuple[Path, Bound | None]], inference: InferenceConfig
) -> tuple[Tensor, Tensor]:
    """Mean features (N, D) of length 1, and mean entropies (N) in [0, 1]."""
    infer, known = build_inference(inference), segmenter.description.resize if segmenter.description else None
    features, uncertainty = list[Tensor](), list[Tensor]()
    with evaluating(segmenter):
        for path, own in images:
            pixels = bounded(read_image(path, segmenter.reading), own or known)
            small, image = (
                each[None].to(segmenter.mean.device).float() / 255 for each in (bounded(pixels, LOOKED_AT), pixels)
            )
            features.append(segmenter.encode(small)[-1].mean(dim=(2, 3))[0].cpu())
            probabilities = infer(segmenter, image, None)[0].flatten(1).softmax(dim=0).T
            uncertainty.append(entropy(probabilities).mean().cpu() / np.log(segmenter.num_classes))
    return F.normalize(torch.stack(features), dim=1), torch.stack(uncertainty)


def _lay_out(chosen: Sequence[Suggestion], out: Path, bands: Reading) -> None:
    """Write the list, the empty labels, the reasons and the contact sheet."""
    (out / "labels").mkdir(parents=True, exist_ok=True)
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], rows * (CELL[1] + LINE)), "white")
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["image", "uncertainty", "distance"])
    for number, each in enumerate(chosen):
        lines.writerow([each.image, f"{each.uncertainty:.4f}", f"{each.distance:.4f}"])
        picture = Image.fromarray(as_rgb(read_image(each.image, bands)).permute(1, 2, 0).numpy())
        label = out / "labels" / f"{each.image.stem}.png"
        if not label.exists():
            empty = Image.new("L", picture.size, IGNORE)
            write_atomically(label, partial(empty.save, format="PNG"))
        picture.thumbnail(CELL)
        left, top = number % COLUMNS * CELL[0], number // COLUMNS * (CELL[1] + LINE)
        sheet.paste(picture, (left, top + LINE))
        ImageDraw.Draw(sheet).text((left + 4, top + 4), f"{number + 1}  {each.image.stem[:28]}", "black")
    write_text(out / "stems.txt", "".join(f"{each.image.stem}\n" for each in chosen))
    write_text(out / "suggested.csv", table.getvalue())
    write_atomically(out / "contact-sheet.png", partial(sheet.save, format="PNG"))
