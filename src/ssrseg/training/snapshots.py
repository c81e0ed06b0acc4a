"""Pictures of what the student sees and what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ssrseg.adapt.batch import View
from ssrseg.data import LabelledImages
from ssrseg.data.transforms import resize_image
from ssrseg.files import write_atomically
from ssrseg.inference import Infer, evaluating, predict_ids
from ssrseg.models.segmenter import Segmenter
from ssrseg.training.loop import Observer

Pixels = npt.NDArray[np.uint8]
GAP = 4


class Snapshots(Observer):
    """Every `every` steps one picture per view: a row per image, of image, labels and trust.

    Args:
        folder: where the pictures go.
        colors: RGB of the classes, in the order of their ids.
        every: steps between pictures; the first step is always shown.
    """

    def __init__(self, folder: Path, colors: Sequence[tuple[int, int, int]], every: int) -> None:
        self._folder, self._palette, self._every = folder, palette(colors), every

    def saw(self, step: int, view: View) -> None:
        """Draw the view when it is time."""
        if step % self._every == 0:
            save_picture(draw_view(view, self._palette), self._folder / f"step-{step:06}-{view.name}.png")


class PredictedPictures(Observer):
    """After the last step, one picture per image: the image, its labels, the student's prediction.

    Args:
        folder: where the pictures go.
        colors: RGB of the classes, in the order of their ids.
        dataset: labelled target images; `count` of them, evenly spread, are shown.
        student: predicts.
        infer: how.
        device: where.
        count: pictures.
    """

    def __init__(
        self,
        folder: Path,
        colors: Sequence[tuple[int, int, int]],
        dataset: LabelledImages,
        student: Segmenter,
        infer: Infer,
        device: torch.device,
        count: int = 6,
    ) -> None:
        self._folder, self._palette = folder, palette(colors)
        self._dataset, self._student, self._infer, self._device, self._count = dataset, student, infer, device, count

    def finished(self) -> None:
        """Draw them."""
        total = len(self._dataset)
        for number in range(min(self._count, total)):
            sample = self._dataset[number * total // min(self._count, total)]
            height, width = sample.labels.shape
            with evaluating(self._student):
                ids = predict_ids(self._student, sample.image.to(self._device), self._infer, (height, width)).cpu()
            picture = resize_image(sample.image, (width, height)).permute(1, 2, 0).numpy()
            row = [picture, self._palette[sample.labels.numpy()], self._palette[ids.numpy()]]
            save_picture(grid([row]), self._folder / f"val-{number:03}.png")


def save_picture(pixels: Pixels, path: Path) -> None:
    """RGB (H, W, 3) as PNG, atomically."""
    picture = Image.fromarray(pixels)
    write_atomically(path, lambda partial: picture.save(partial, format="PNG", compress_level=3))


def palette(colors: Sequence[tuple[int, int, int]]) -> Pixels:
    """Colours of all 256 label values; those of no class are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    return table


def draw_view(view: View, colors: Pixels) -> Pixels:
    """Rows of image | labels | trust."""
    weights = view.weights if view.weights is not None else view.images.new_ones(view.labels.shape)
    return grid(
        [
            [pixels_of(image), colors[labels.cpu().numpy()], pixels_of(trust.expand(3, -1, -1))]
            for image, labels, trust in zip(view.images, view.labels, weights, strict=True)
        ]
    )


def pixels_of(image: Tensor) -> Pixels:
    """An image (3, H, W) in [0, 1] as bytes (H, W, 3)."""
    pixels: Pixels = image.clamp(0, 1).mul(255).byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def grid(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    """Pictures of one size as a sheet with white gaps."""
    lines = [np.concatenate([_framed(cell) for cell in row], axis=1) for row in rows]
    return np.concatenate(lines, axis=0)


def _framed(cell: Pixels) -> Pixels:
    return np.pad(cell, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)
