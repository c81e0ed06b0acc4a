"""One picture of all data sets: images, what their labels mark, and the colours of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssrseg.data.images import read_image
from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode
from ssrseg.data.label_spaces import LabelSpace

CELL = (240, 180)
"""(width, height) that bounds a picture."""
GAP, LINE, COLUMNS = 8, 20, 6
WIDTH = GAP + COLUMNS * (CELL[0] + GAP)
OPACITY = 0.6
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

Row = tuple[str, Sequence[tuple[Path, Path | None]], LabelCode | None]
"""A title, images with their labels, and how these are read."""


def contact_sheet(rows: Sequence[Row], space: LabelSpace, shares: Sequence[float] | None = None) -> Image.Image:
    """Draw each row's images, `COLUMNS` at most, above the same with their labels overlaid, and a legend below.

    Args:
        rows: files that can be read.
        space: names and colours of the classes.
        shares: of the classes among the labelled pixels, in 0..1, for the legend.
    """
    strips = [_strip(*row, space) for row in rows]
    strips.append(_legend(space, shares))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), WHITE)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _strip(
    title: str, files: Sequence[tuple[Path, Path | None]], code: LabelCode | None, space: LabelSpace
) -> Image.Image:
    shown = files[:COLUMNS]
    lines = 2 if any(label for _, label in shown) else 1
    strip = Image.new("RGB", (WIDTH, LINE + 2 * GAP + lines * (CELL[1] + GAP)), WHITE)
    ImageDraw.Draw(strip).text((GAP, GAP), title, BLACK, ImageFont.load_default())
    for column, (path, label) in enumerate(shown):
        left, top = GAP + column * (CELL[0] + GAP), LINE + GAP
        image = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
        scale = min(CELL[0] / image.width, CELL[1] / image.height)
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        small = image.resize(size)
        strip.paste(small, (left, top))
        if label is not None and code is not None:
            palette = np.zeros((256, 3), np.uint8)  # ignored pixels are black
            palette[: space.num_classes] = space.colors
            marks = Image.fromarray(palette[read_labels(label, code).numpy()]).resize(size, Image.Resampling.NEAREST)
            strip.paste(Image.blend(small, marks, OPACITY), (left, top + CELL[1] + GAP))
    return strip


def _legend(space: LabelSpace, shares: Sequence[float] | None) -> Image.Image:
    per_line = WIDTH // (CELL[0] + GAP)
    lines = -(-(space.num_classes + 1) // per_line)
    strip = Image.new("RGB", (WIDTH, 2 * GAP + lines * LINE), WHITE)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default()
    names = [*space.names, "ignored"]
    for i, (name, color) in enumerate(zip(names, [*space.colors, BLACK], strict=True)):
        left, top = GAP + i % per_line * (CELL[0] + GAP), GAP + i // per_line * LINE
        draw.rectangle((left, top, left + LINE, top + LINE - 6), fill=color)
        share = f"  {shares[i]:.2%}" if shares is not None and i < len(shares) else ""
        draw.text((left + LINE + GAP, top), f"{name}{share}", BLACK, font)
    return strip
