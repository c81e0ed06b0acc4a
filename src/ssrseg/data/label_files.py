"""Label files to class ids."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ssrseg.data.idd_polygons import draw_polygons, is_polygons
from ssrseg.data.images import BROKEN, first_line
from ssrseg.data.label_mapping import LabelCode, map_ids
from ssrseg.data.label_spaces import IGNORE, Color
from ssrseg.data.storage import read_bytes
from ssrseg.errors import UserError

Pixels = npt.NDArray[np.integer]
BLACK = 0
VALUE_MODES = ("L", "LA", "P", "I", "I;16", "1")
COLOR_MODES = ("RGB", "RGBA")


def read_labels(path: Path, code: LabelCode) -> Tensor:
    """A label map as class ids (H, W), uint8.

    Args:
        path: one channel of raw values, a palette image (its indices count, not its colours), an image of three
            channels that holds the colours of classes or three times the values, a 16-bit image of three channels
            with the values in the red one (SYNTHIA), or polygons in JSON (IDD).
        code: of its data set. Black that is no class is ignored.

    Raises:
        UserError: the file is missing, truncated, no label map, or holds a colour that is no class.
    """
    pixels = _read(path)
    if pixels.ndim == 3 and code.colors is not None:
        return _ids_of_colors(pixels, code.colors, path)
    return map_ids(_values(pixels, path), code.table)


def read_raw_labels(path: Path) -> Tensor:
    """The values of a label file (H, W), uint8, as they are; raises `UserError` for colours and as `read_labels`."""
    return _values(_read(path), path)


def is_colored(path: Path) -> bool:
    """Whether a label file has three channels of 8 bits: colours, where they are known; raises as `read_labels`."""
    return _read(path).ndim == 3


def _read(path: Path) -> Pixels:
    """Values (H, W), or RGB bytes (H, W, 3)."""
    encoded = read_bytes(path)
    if is_polygons(encoded):
        return draw_polygons(encoded, path)
    if encoded[:3] == b"\xff\xd8\xff":
        raise UserError(f"{path} is a JPEG: its compression has changed the labels. Write labels as PNG.")
    return _red_of_16_bits(encoded, path) if _is_deep(encoded) else _decoded(encoded, path)


def _decoded(encoded: bytes, path: Path) -> Pixels:
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            if file.mode not in VALUE_MODES + COLOR_MODES:
                raise UserError(
                    f"{path} is a label in {file.mode}, expected one channel of class values, a palette image, "
                    "or the colours of classes as RGB."
                )
            pixels = np.array(file)
            return pixels[..., 0] if file.mode == "LA" else pixels[..., :3] if file.mode in COLOR_MODES else pixels
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as a label map: {first_line(error)}") from error


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
    coded = {BLACK: IGNORE} | {red << 16 | green << 8 | blue: i for (red, green, blue), i in colors.items()}
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


def _is_deep(encoded: bytes) -> bool:
    """A PNG of 16 bits and three channels: Pillow keeps 8 of them, and not those of the label."""
    return encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[24:26] in (b"\x10\x02", b"\x10\x06")


def _red_of_16_bits(encoded: bytes, path: Path) -> Pixels:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{path} cannot be read as a label map: its PNG data are broken.")
    return image[..., 2].astype(np.int64)  # blue, green, red
