"""Labels as polygons with names: how the India Driving Dataset is published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ssrseg.data.label_spaces import IGNORE
from ssrseg.errors import UserError

LEVEL3 = {
    "road": 0,
    "parking": 1,
    "drivable fallback": 1,
    "sidewalk": 2,
    "rail track": 3,
    "non-drivable fallback": 3,
    "person": 4,
    "animal": 4,
    "rider": 5,
    "motorcycle": 6,
    "bicycle": 7,
    "autorickshaw": 8,
    "car": 9,
    "truck": 10,
    "bus": 11,
    "caravan": 12,
    "trailer": 12,
    "train": 12,
    "vehicle fallback": 12,
    "curb": 13,
    "wall": 14,
    "fence": 15,
    "guard rail": 16,
    "billboard": 17,
    "traffic sign": 18,
    "traffic light": 19,
    "pole": 20,
    "polegroup": 20,
    "obs-str-bar-fallback": 21,
    "building": 22,
    "bridge": 23,
    "tunnel": 23,
    "vegetation": 24,
    "sky": 25,
    "fallback background": 25,
    "unlabeled": IGNORE,
    "ego vehicle": IGNORE,
    "rectification border": IGNORE,
    "out of roi": IGNORE,
    "license plate": IGNORE,
}
"""Name of a polygon -> id of `idd26`, the third level of the data set's hierarchy (AutoNUE/public-code)."""


def is_polygons(encoded: bytes) -> bool:
    """Whether a label file is JSON."""
    return encoded.lstrip()[:1] == b"{"


def draw_polygons(encoded: bytes, path: Path) -> npt.NDArray[np.uint8]:
    """Ids of `idd26` (H, W): later polygons cover earlier ones, as in the data set's own tool.

    Raises:
        UserError: the file is damaged, or IDD does not know a polygon's name.
    """
    size, polygons = _read(encoded, path)
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
    """(width, height); raises `UserError` as `draw_polygons`."""
    return _read(encoded, path)[0]


Points = list[tuple[float, float]]


def _read(encoded: bytes, path: Path) -> tuple[tuple[int, int], list[tuple[str, Points]]]:
    """Size, and the polygons that are not deleted."""
    try:
        content = json.loads(encoded)
        size = int(content["imgWidth"]), int(content["imgHeight"])
        if min(size) < 1:
            raise ValueError(f"the size is {size[0]}x{size[1]}")
        kept = [entry for entry in content["objects"] if not entry.get("deleted")]
        return size, [(str(one["label"]), [(float(x), float(y)) for x, y, *_ in one["polygon"]]) for one in kept]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as polygons ({type(error).__name__}: {error}). Expected JSON with imgWidth, "
            "imgHeight and objects, each with a label and a polygon of points."
        ) from error
