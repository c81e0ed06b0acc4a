"""Labels made of shapes with names, drawn as class ids."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ssrseg.data.label_spaces import IGNORE
from ssrseg.data.storage import read_bytes
from ssrseg.errors import UserError, first_line

Ids = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height)."""
Points = list[tuple[float, float]]
Paint = Callable[[ImageDraw.ImageDraw, int], object]
"""Fills a shape with a value."""
REST, BACKGROUND = "*", "background"
"""Names of whatever no class takes, and of what no shape covers."""
WRONG = (ValueError, LookupError, TypeError, AttributeError, StopIteration, ArithmeticError, RuntimeError, OSError)
"""Raised for a file of another structure than its tool writes."""


@dataclass(frozen=True)
class Shape:
    """An area that has a name."""

    name: str
    area: Paint | npt.NDArray[np.bool_]
    """As Pillow draws it, or a mask (H, W)."""


@dataclass(frozen=True)
class Annotation:
    """All that a tool wrote about one image; later shapes cover earlier ones."""

    shapes: Iterable[Shape]
    """Decoded as they are iterated over, once."""
    size: Size | None = None
    """Of the image; absent where the tool does not say it."""


def draw(annotation: Annotation, names: Mapping[str, int], size: Size, path: Path) -> Ids:
    """Draw class ids (H, W): shapes of no class, and what nothing covers, are ignored unless `names` say otherwise.

    `names` are in small letters; `*` stands for all others, `background` for what nothing covers. `size` counts where
    the annotation has none. Raises `UserError` for a mask of another size.
    """
    with as_written(path):
        size = possible(annotation.size or size)
    canvas = Image.new("L", size, names.get(BACKGROUND, IGNORE))
    pen = ImageDraw.Draw(canvas)
    with as_written(path):
        for shape in annotation.shapes:
            value = id_of(shape.name, names)
            if callable(shape.area):
                shape.area(pen, IGNORE if value is None else value)
            elif shape.area.shape != size[::-1]:
                found = "{1}x{0}".format(*shape.area.shape)
                raise UserError(f"{path} holds a mask of {found} for {shape.name!r}, expected {size[0]}x{size[1]}.")
            else:
                canvas.paste(IGNORE if value is None else value, mask=Image.fromarray(shape.area))
    return np.array(canvas)


def possible(size: Size) -> Size:
    """Return a size that a file claims; raises `ValueError` for one that no image has that is read."""
    width, height = size
    if min(size) < 1 or width * height > 2 * (Image.MAX_IMAGE_PIXELS or width * height):
        raise ValueError(f"an image of {width}x{height}")
    return size


def id_of(name: str, names: Mapping[str, int]) -> int | None:
    """Return the class id of a name; nothing when no class takes it."""
    if (folded := name.casefold()) in ("__ignore__", "_background_"):  # LabelMe's own
        return IGNORE if folded == "__ignore__" else names.get(BACKGROUND, IGNORE)
    return names.get(folded, names.get(REST))


def polygon(points: Points, *, shares: bool = False) -> Paint:
    """Fill a polygon, its outline with it; of `shares`, points are shares of the width and height."""

    def paint(pen: ImageDraw.ImageDraw, value: int) -> None:
        width, height = pen.im.size if shares else (1, 1)
        if len(points) > 1:
            pen.polygon([(x * width, y * height) for x, y in points], fill=value, outline=value)

    return paint


@contextlib.contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Turn what a file of another structure than its tool writes raises into a `UserError` that names it."""
    try:
        yield
    except WRONG as error:
        raise UserError(
            f"{path} is not as annotation tools write it ({type(error).__name__}: {first_line(error)}). Export it "
            "again; docs/data.md lists what is read of each tool."
        ) from error


def read_json(path: Path) -> Any:
    """Read JSON; raises `UserError` for what is none."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON: {first_line(error)}") from error
