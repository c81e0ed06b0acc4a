"""Image files to pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssrseg.data import png
from ssrseg.data.png import Pixels
from ssrseg.data.storage import read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are no image, or half of one."""
ORIENTATION = 0x0112
"""The EXIF tag that turns an image; 1 leaves it."""


@dataclass(frozen=True)
class Opened:
    """An image file of which rows can be asked for."""

    size: tuple[int, int]
    """(width, height) that the file has."""
    grid: tuple[int, int]
    """(width, height) of its pixels: smaller than `size` when it is scaled while it is decoded."""
    first_rows: Callable[[int], Pixels]
    """How many -> the first rows of the grid, so many at least; raises `UserError` when the file is broken."""


def read_image(path: Path) -> Tensor:
    """An image as RGB bytes (3, H, W), whatever it was: grey, palette, RGBA, CMYK, 16-bit, EXIF-rotated.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    image = open_image(path)
    return to_tensor(image.first_rows(image.grid[1]))


def open_image(path: Path, bound: tuple[int, int] | None = None) -> Opened:
    """An image as RGB bytes, decoded if need be as far as it is asked for; see `read_image`.

    Args:
        path: the file.
        bound: (width, height). A JPEG that is to be half as large or smaller in it is scaled by 2, 4 or 8 while it is
            decoded, by leaving out frequencies; no image is when absent.
    """
    encoded = read_bytes(path)
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            if file.format == "PNG" and png.is_plain(encoded):
                return Opened(file.size, file.size, lambda rows: _plain_rows(encoded, rows, path))
            size = _scale_while_decoding(file, bound) if bound is not None and file.format == "JPEG" else None
            pixels = _decode_jpeg(encoded) if size is None and _is_plain_jpeg(file, encoded) else None
            pixels = _decode(file, path) if pixels is None else pixels
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as an image: {first_line(error)}") from error
    grid = pixels.shape[1], pixels.shape[0]
    return Opened(size or grid, grid, lambda rows: pixels)


def to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) -> (3, H, W), contiguous."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def first_line(error: Exception) -> str:
    """What an error says, shortly."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no known image format"  # Pillow's own words name a buffer
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _decode(file: Image.Image, path: Path) -> Pixels:
    image = ImageOps.exif_transpose(file)
    if image.mode in ("F", "I"):
        raise UserError(f"{path} has 32 bits per pixel, expected 8 or 16: convert it first.")
    if image.mode.startswith("I;16"):  # Pillow would cut, not scale
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def _plain_rows(encoded: bytes, rows: int, path: Path) -> Pixels:
    pixels = png.decode_rows(encoded, rows)
    if pixels is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            return _decode(file, path)  # which says what is wrong
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as an image: {first_line(error)}") from error


def _is_plain_jpeg(file: Image.Image, encoded: bytes) -> bool:
    """Whether OpenCV decodes the file to the same bytes as Pillow, and faster; half a file it would make up."""
    upright = file.mode == "RGB" and file.getexif().get(ORIENTATION, 1) == 1
    return file.format == "JPEG" and upright and encoded.endswith(b"\xff\xd9")


def _decode_jpeg(encoded: bytes) -> Pixels | None:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else np.asarray(image, np.uint8)


def _scale_while_decoding(file: Image.Image, bound: tuple[int, int]) -> tuple[int, int] | None:
    """Ask for a smaller image, and say how large it would have been; nothing when it is not to be half as large."""
    stored = file.size
    # The bound holds for the long and the short side, so it does not matter whether the image will be turned.
    file.draft(None, rescale_size(*stored, bound))
    if file.size == stored:
        return None
    return stored[::-1] if file.getexif().get(ORIENTATION, 1) >= 5 else stored
