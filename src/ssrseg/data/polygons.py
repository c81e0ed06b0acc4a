"""Labels that are polygons with names: the India Driving Dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ssrseg.data.label_spaces import IGNORE, TABLES
from ssrseg.data.shapes import Points, possible
from ssrseg.errors import UserError

LEVEL3: dict[str, int] = TABLES["idd_polygons"]
"""Name of a polygon -> id of `idd26`, the third level of the data set's hierarchy (AutoNUE/public-code)."""


def draw_polygons(encoded: bytes, path: Path) -> npt.NDArray[np.uint8]:
    """Draw ids of `idd26` (H, W): later polygons cover earlier ones, as in the data set's own tool.

    Raises:
        UserError: the file is damaged, or IDD does not know a polygon's name.
    """
    size, polygons = _read_polygons(encoded, path)
    image = Image.new("L", size, IGNORE)
    pen = ImageDraw.Draw(image)
    for name, points in polygons:
        known = name if name in LEVEL3 else name.removesuffix("group")  # several at once, as cargroup
        if known not in LEVEL3:
            raise UserError(f"{path} holds a polygon named {name!r}; IDD's names are {', '.join(LEVEL3)}.")
        if len(points) > 1:
            pen.polygon(points, fill=LEVEL3[known])
    return np.array(image)


def polygons_size(encoded: bytes, path: Path) -> tuple[int, int]:
    """Read the (width, height); raises `UserError` as `draw_polygons`."""
    return _read_polygons(encoded, path)[0]


def _read_polygons(encoded: bytes, path: Path) -> tuple[tuple[int, int], list[tuple[str, Points]]]:
    """Size, and the polygons that are not deleted."""
    try:
        content = json.loads(encoded)
        size = possible((int(content["imgWidth"]), int(content["imgHeight"])))
        kept = [entry for entry in content["objects"] if not entry.get("deleted")]
        return size, [(str(one["label"]), [(float(x), float(y)) for x, y, *_ in one["polygon"]]) for one in kept]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} cannot be read as polygons ({type(error).__name__}: {error}). Expected JSON with imgWidth, "
            "imgHeight and objects, each with a label and a polygon of points."
        ) from error
