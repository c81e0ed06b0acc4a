"""Label files to class ids."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ssrseg.config.data import Channel
from ssrseg.data.annotations import read_annotation
from ssrseg.data.images import BROKEN, decode, shown_size
from ssrseg.data.label_mapping import LabelCode, map_ids
from ssrseg.data.label_spaces import IGNORE, TABLES, Color
from ssrseg.data.shapes import Points, Size, draw
from ssrseg.data.storage import read_bytes
from ssrseg.errors import UserError, first_line

Pixels = npt.NDArray[np.integer]
MODES = ("L", "LA", "P", "I", "I;16", "1", "RGB", "RGBA")
CHANNELS = get_args(Channel)
"""In the order of a file."""
LEVEL3: dict[str, int] = TABLES["idd_polygons"]
"""Name of a polygon -> id of `idd26`, the third level of the data set's hierarchy (AutoNUE/public-code)."""


def read_labels(path: Path, code: LabelCode, image: Path | None = None) -> Tensor:
    """Read a label map as class ids (H, W), uint8.

    Args:
        path: one channel of raw values, a palette image (its indices count, not its colours), an image of three
            channels that holds the colours of classes or three times the values, a 16-bit image of three channels
            with the values in the red one (SYNTHIA), polygons in JSON (IDD), or shapes with names, as
            `read_annotation` reads them.
        code: of its data set. Black that is no class is ignored, and so are shapes of no class.
        image: whose label it is: its size is the label's where the label does not say one (YOLO, Label Studio).

    Raises:
        UserError: the file is missing, truncated, no label map, or holds a colour that is no class.
    """
    if code.names is not None:
        annotation = read_annotation(path, code.names)
        return torch.from_numpy(draw(annotation, code.names, annotation.size or _size_of(image), path))
    pixels = _read(path, code.channel)
    if pixels.ndim == 3 and code.colors is not None:
        return _ids_of_colors(pixels, code.colors, path)
    return map_ids(_values(pixels, path), code.table)


def read_raw_labels(path: Path, channel: Channel | None = None) -> Tensor:
    """Read the raw values of a label file (H, W), uint8; raises `UserError` for colours and as `read_labels`."""
    return _values(_read(path, channel), path)


def is_colored(path: Path) -> bool:
    """Return whether a label file has three channels of 8 bits, as for colours; raises as `read_labels`."""
    return _read(path).ndim == 3


def _size_of(image: Path | None) -> Size:
    if image is None:
        raise ValueError("this label does not say its size: hand over the image")
    return shown_size(image)


def _read(path: Path, channel: Channel | None = None) -> Pixels:
    """Values (H, W), or RGB bytes (H, W, 3)."""
    encoded = read_bytes(path)
    if encoded.lstrip()[:1] == b"{":
        return draw_polygons(encoded, path)
    if encoded[:3] == b"\xff\xd8\xff":
        raise UserError(f"{path} is a JPEG: its compression has changed the labels. Write labels as PNG.")
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            if file.mode not in MODES:
                raise UserError(
                    f"{path} is a label in {file.mode}, expected one channel of class values, a palette image, "
                    "or the colours of classes as RGB."
                )
            pixels = decode(file, encoded)
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as a label map: {first_line(error)}") from error
    if pixels.ndim == 2:
        return pixels
    if channel is not None:
        if (number := CHANNELS.index(channel)) >= pixels.shape[2]:
            raise UserError(f"{path} has {pixels.shape[2]} channels, and none is {channel}: choose another `channel`.")
        return pixels[..., number]
    if pixels.dtype == np.uint8:
        if encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[24:26] in (b"\x10\x02", b"\x10\x06"):
            # Of 16 bits and three channels, of which Pillow keeps 8 bits, and not those of the label.
            raise UserError(f"{path} cannot be read as a label map: its PNG data are broken.")
        return pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return pixels[..., 0]


def _values(pixels: Pixels, path: Path) -> Tensor:
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise UserError(
                f"{path} is coloured, and the colours of its classes are not known. Give every class in `classes` "
                "a `color` [red, green, blue] of its own, or convert them to values first."
            )
        pixels = pixels[..., 0]
    if pixels.max() > 255:
        raise UserError(f"{path} holds the label value {pixels.max()}; values lie in 0..255.")
    return torch.from_numpy(np.ascontiguousarray(pixels, np.uint8))


def _ids_of_colors(pixels: Pixels, colors: Mapping[Color, int], path: Path) -> Tensor:
    coded = {0: IGNORE} | {red << 16 | green << 8 | blue: i for (red, green, blue), i in colors.items()}
    known = np.array(sorted(coded), dtype=np.int32)
    ids = np.array([coded[color] for color in known.tolist()], dtype=np.uint8)
    wide = pixels.astype(np.int32)
    packed = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    places = np.searchsorted(known, packed).clip(max=len(known) - 1)
    unknown = known[places] != packed
    if unknown.any():
        row, column = np.argwhere(unknown)[0].tolist()
        color = tuple(pixels[row, column].tolist())
        count = int((packed == packed[row, column]).sum())
        raise UserError(
            f"{path} holds the colour {color}, which is no class: {count} pixels, the first in row {row}, column "
            f"{column}. The classes have {', '.join(map(str, colors))}; black is ignored. Correct the label or the "
            "`color` of a class (smoothed edges come from resizing with interpolation)."
        )
    return torch.from_numpy(ids[places])


# --- India Driving Dataset: polygons with names


def draw_polygons(encoded: bytes, path: Path) -> Pixels:
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
