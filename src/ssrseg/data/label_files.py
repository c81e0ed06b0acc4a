"""Label files to class ids."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ssrseg.data.labels import map_ids
from ssrseg.data.reading import BROKEN, first_line
from ssrseg.data.storage import read_bytes
from ssrseg.errors import UserError


@dataclass(frozen=True)
class LabelCode:
    """How the pixels of a label file become class ids."""

    table: Tensor
    """Raw value -> class id, (256,) uint8."""


def read_labels(path: Path, code: LabelCode) -> Tensor:
    """A label map as class ids (H, W), uint8.

    Args:
        path: one channel of raw values, a palette image (its indices count, not its colours), or a 16-bit image of
            three channels with the values in the red one (SYNTHIA).
        code: of its data set.

    Raises:
        UserError: the file is missing, truncated or no label map.
    """
    return map_ids(read_raw_labels(path), code.table)


def read_raw_labels(path: Path) -> Tensor:
    """The values of a label file (H, W), uint8, as they are; raises `UserError` as `read_labels`."""
    encoded = read_bytes(path)
    values = _red_of_16_bits(encoded, path) if _is_deep(encoded) else _single_channel(encoded, path)
    if values.max() > 255:
        raise UserError(f"{path} holds the label value {values.max()}; values lie in 0..255.")
    return torch.from_numpy(values.astype(np.uint8))


def _single_channel(encoded: bytes, path: Path) -> npt.NDArray[np.integer]:
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            if file.mode not in ("L", "P", "I", "I;16", "1"):
                raise UserError(
                    f"{path} is a label in {file.mode}, expected one channel of class values (or a palette image). "
                    "If its classes are colours, convert them to values first."
                )
            return np.array(file).astype(np.int64)
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as a label map: {first_line(error)}") from error


def _is_deep(encoded: bytes) -> bool:
    """A PNG of 16 bits and three channels: Pillow keeps 8 of them, and not those of the label."""
    return encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[24:26] in (b"\x10\x02", b"\x10\x06")


def _red_of_16_bits(encoded: bytes, path: Path) -> npt.NDArray[np.integer]:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{path} cannot be read as a label map: its PNG data are broken.")
    red = image[..., 2]  # blue, green, red
    return red.astype(np.int64)
