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
from ssrseg.data import find_images, read_image
from ssrseg.data.datasets import bounded
from ssrseg.data.images import Reading, as_rgb
from ssrseg.data.label_spaces import IGNORE
from ssrseg.data.layouts import spec_of
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
    target: DataConfig | Path | str,
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

    `out` gets `stems.txt` and in `labels` a file for each, of its size and ignored everywhere, to be painted over: what
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
    images = find_images(data)
    if len({path.stem for path in images}) < len(images):
        raise UserError("Two images have one stem, by which they are listed: suggest for each folder by itself.")
    features, uncertainty = _look(segmenter, images, data, inference or InferenceConfig())
    order, distances = farthest(features, uncertainty, count)
    chosen = [
        Suggestion(images[n], float(uncertainty[n]), distance) for n, distance in zip(order, distances, strict=True)
    ]
    _lay_out(chosen, Path(out), _below(data)[0], segmenter.reading)
    return chosen


def labels_glob(data: DataConfig) -> str:
    """Return the `target.labels` that finds the files which `suggest` lays out for the images of a data set."""
    glob = _below(data)[1]
    return f"labels/{glob if '.' not in glob.rpartition('/')[2] else glob.rpartition('.')[0] + '.png'}"


def _below(data: DataConfig) -> tuple[Path, str]:
    """Split the glob of the images: the folder without wildcards, and the rest."""
    *folders, name = (
        (data.images or spec_of(data).images).replace("{split}", data.split or spec_of(data).split).split("/")
    )
    fixed = next((n for n, part in enumerate(folders) if set(part) & set("*?")), len(folders))
    return data.root.joinpath(*folders[:fixed]), "/".join([*folders[fixed:], name])


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
    segmenter: Segmenter, images: Sequence[Path], data: DataConfig, inference: InferenceConfig
) -> tuple[Tensor, Tensor]:
    """Mean features (N, D) of length 1, and mean entropies (N) in [0, 1]."""
    infer, known = build_inference(inference), segmenter.description.resize if segmenter.description else None
    features, uncertainty = list[Tensor](), list[Tensor]()
    with evaluating(segmenter):
        for path in images:
            pixels = bounded(read_image(path, segmenter.reading), data.resize or known)
            small, image = (
                each[None].to(segmenter.mean.device).float() / 255 for each in (bounded(pixels, LOOKED_AT), pixels)
            )
            features.append(segmenter.encode(small)[-1].mean(dim=(2, 3))[0].cpu())
            probabilities = infer(segmenter, image, None)[0].flatten(1).softmax(dim=0).T
            uncertainty.append(entropy(probabilities).mean().cpu() / np.log(segmenter.num_classes))
    return F.normalize(torch.stack(features), dim=1), torch.stack(uncertainty)


def _lay_out(chosen: Sequence[Suggestion], out: Path, folder: Path, reading: Reading) -> None:
    """Write the list, the empty labels, as the images lie below `folder`, the reasons and the contact sheet."""
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], rows * (CELL[1] + LINE)), "white")
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["image", "uncertainty", "distance"])
    for number, each in enumerate(chosen):
        lines.writerow([each.image, f"{each.uncertainty:.4f}", f"{each.distance:.4f}"])
        picture = Image.fromarray(as_rgb(read_image(each.image, reading)).permute(1, 2, 0).numpy())
        label = (out / "labels" / each.image.relative_to(folder)).with_suffix(".png")
        if not label.exists():
            empty = Image.new("L", picture.size, IGNORE)
            label.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(label, partial(empty.save, format="PNG"))
        picture.thumbnail(CELL)
        left, top = number % COLUMNS * CELL[0], number // COLUMNS * (CELL[1] + LINE)
        sheet.paste(picture, (left, top + LINE))
        ImageDraw.Draw(sheet).text((left + 4, top + 4), f"{number + 1}  {each.image.stem[:28]}", "black")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "stems.txt", "".join(f"{each.image.stem}\n" for each in chosen))
    write_text(out / "suggested.csv", table.getvalue())
    write_atomically(out / "contact-sheet.png", partial(sheet.save, format="PNG"))
