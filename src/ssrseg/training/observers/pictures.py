"""Pictures of the views that the student is trained on, and of its predictions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid, save_image

from ssrseg.adapt.batch import View
from ssrseg.data import LabelledImages
from ssrseg.data.datasets import LabelledImage
from ssrseg.data.images import as_rgb
from ssrseg.data.label_spaces import LabelSpace
from ssrseg.data.transforms import resize_image
from ssrseg.inference import Scores, evaluating
from ssrseg.inference.metrics import confusion_matrix
from ssrseg.inference.sliding_window import Infer, predict_ids
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_atomically, write_json
from ssrseg.runs.folder import RunFolder
from ssrseg.training.loop import Observer
from ssrseg.training.setup import RunContext

Pixels = npt.NDArray[np.uint8]
GAP = 4
COUNT = 24
LONGER_SIDE = 512
"""Pixels to which predicted pictures are reduced: 24 of them take about 2 MB."""


class ViewPictures(Observer):
    """Draw one picture per view every `train.pictures_every` steps and in the first: a row per image of a batch."""

    def __init__(self, context: RunContext) -> None:
        self._folder, self._every = context.folder, context.settings.train.pictures_every
        self._colors = torch.from_numpy(palette(context.space.colors)) / 255

    def saw(self, step: int, view: View) -> None:
        if step % self._every == 0:
            picture, path = draw_view(view, self._colors), self._folder.view_picture(step, view.name)
            write_atomically(path, lambda partial: save_image(picture, partial, format="PNG"))


class PredictedPictures(Observer):
    """After the last step, `save_predictions` of the student."""

    def __init__(self, context: RunContext, dataset: LabelledImages, infer: Infer) -> None:
        self._context, self._dataset, self._infer = context, dataset, infer

    def finished(self) -> None:
        context = self._context
        student, device = context.method.learner.student, context.fabric.device
        save_predictions(student, self._dataset, self._infer, context.space, context.folder, device)


def save_predictions(
    student: Segmenter,
    dataset: LabelledImages,
    infer: Infer,
    space: LabelSpace,
    folder: RunFolder,
    device: torch.device | str,
) -> None:
    """Save images, their labels and the student's prediction in a run folder, to compare runs by them.

    At most `COUNT` images, evenly spread. Beside them lies `images.json`: names and colours of the classes and, for
    each image, how good the prediction is. Images are JPEG; ids are 8-bit PNG with the classes' colours as their
    palette. The pictures are reduced; the figures are measured before that, at the resolution of the labels. The
    student lies on `device`.
    """
    total = len(dataset)
    shown = min(COUNT, total)
    # The folder that holds all images: below it, their names are the same wherever the data lie.
    home = os.path.commonpath([pair.image.parent for pair in dataset.pairs])
    colors = palette(space.colors)

    def write(number: int, sample: LabelledImage) -> dict[str, Any]:
        """Save three pictures; return the image's entry in the record."""
        height, width = sample.labels.shape
        ids = predict_ids(student, sample.image.to(device), infer, (height, width)).cpu()
        size = reduced(width, height)
        picture = resize_image(as_rgb(sample.image), (width, height)).permute(1, 2, 0).numpy()
        image = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        path = folder.predicted_picture(number, "image.jpg")
        write_atomically(path, lambda partial: image.save(partial, format="JPEG", quality=90))
        save_ids(sample.labels.numpy(), colors, size, folder.predicted_picture(number, "truth.png"))
        save_ids(ids.numpy().astype(np.uint8), colors, size, folder.predicted_picture(number, "student.png"))
        name, scores = sample.path.relative_to(home).as_posix(), image_scores(sample.labels, ids, space.names)
        return {"number": number, "name": name, **scores}

    folder.predicted_pictures.mkdir(parents=True, exist_ok=True)
    with evaluating(student):
        images = [write(number, dataset[number * total // shown]) for number in range(shown)]
    write_json(folder.predicted_index, {"classes": space.names, "colors": space.colors, "of": total, "images": images})


def image_scores(labels: Tensor, ids: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Score the prediction for one image: fractions, `None` where there is nothing to measure.

    Only classes that the labels (H, W; 255 where there is none) hold have an IoU: a stray pixel of another class would
    count as a whole class of zero. Its pixels still lower the IoU of the class in whose place they stand.
    """
    scores = Scores(tuple(classes), confusion_matrix(labels, ids, len(classes)))
    iou = [None if held is None else value for value, held in zip(scores.iou, scores.accuracy, strict=True)]
    held = [value for value in iou if value is not None]
    accuracy = scores.pixel_accuracy if held else None
    return {"miou": sum(held) / len(held) if held else None, "pixel_accuracy": accuracy, "iou": iou}


def reduced(width: int, height: int) -> tuple[int, int]:
    """(width, height) with a longer side of at most `LONGER_SIDE` pixels."""
    factor = min(1.0, LONGER_SIDE / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def save_ids(ids: Pixels, colors: Pixels, size: tuple[int, int], path: Path) -> None:
    """Class ids (H, W) as an 8-bit PNG of the size (width, height), in the classes' colours, atomically."""
    picture = Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)
    picture.putpalette(colors.tobytes())
    write_atomically(path, lambda partial: picture.save(partial, format="PNG", optimize=True))


def palette(colors: Sequence[tuple[int, int, int]]) -> Pixels:
    """Colours of all 256 label values; those of no class are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    return table


def draw_view(view: View, colors: Tensor) -> Tensor:
    """Draw a view (B images) as rows of image | labels | trust: (3, H, W) in [0, 1]; `colors` is (256, 3)."""
    trust = view.trust if view.trust is not None else view.images.new_ones(view.labels.shape)
    labels = colors.to(view.labels.device)[view.labels].permute(0, 3, 1, 2)
    cells = torch.stack([as_rgb(view.images), labels, trust[:, None].expand_as(labels)], dim=1).flatten(0, 1)
    return make_grid(cells.clamp(0, 1), nrow=3, padding=GAP, pad_value=1.0)
