"""Image files to pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssrseg.data.storage import read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are no image, or half of one."""
Pixels = npt.NDArray[np.uint8]
"""RGB (H, W, 3)."""
ORIENTATION = 0x0112
"""The EXIF tag that turns an image; 1 leaves it."""
TURNING = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
"""What a PNG holds that may turn its image."""


@dataclass(frozen=True)
class Decoded:
    """An image out of its file."""

    pixels: Pixels
    """Smaller than `size` where it was scaled while decoding."""
    size: tuple[int, int]
    """(width, height) that the file has."""


def read_image(path: Path) -> Tensor:
    """An image as RGB bytes (3, H, W), whatever it was: grey, palette, RGBA, CMYK, 16-bit, EXIF-rotated.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    return to_tensor(decode(path).pixels)


def decode(path: Path, bound: tuple[int, int] | None = None) -> Decoded:
    """An image as RGB bytes; see `read_image`.

    Args:
        path: the file.
        bound: (width, height). A JPEG that is to be half as large or smaller in it is scaled by 2, 4 or 8 while it is
            decoded, by leaving out frequencies; no image is when absent.
    """
    encoded = read_bytes(path)
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            size = _scale_while_decoding(file, bound) if bound is not None and file.format == "JPEG" else None
            pixels = _decode_plain(encoded) if size is None and _is_plain(file, encoded) else None
            pixels = _decode(file, path) if pixels is None else pixels
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as an image: {first_line(error)}") from error
    height, width = pixels.shape[:2]
    return Decoded(pixels, size or (width, height))


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


def _is_plain(file: Image.Image, encoded: bytes) -> bool:
    """Whether OpenCV decodes the file to the same bytes as Pillow, and faster: whole, 8-bit RGB, upright."""
    if file.mode != "RGB":
        return False
    if file.format == "JPEG":  # of half a JPEG, OpenCV would make the rest up
        return encoded.endswith(b"\xff\xd9") and file.getexif().get(ORIENTATION, 1) == 1
    if file.format == "PNG":  # libpng complains about colour profiles, once per image
        return encoded[24] == 8 and "icc_profile" not in file.info and not any(mark in encoded for mark in TURNING)
    return False


def _decode_plain(encoded: bytes) -> Pixels | None:
    """Pixels, or nothing for a broken file: Pillow then says what is wrong."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _scale_while_decoding(file: Image.Image, bound: tuple[int, int]) -> tuple[int, int] | None:
    """Ask for a smaller image, and say how large it would have been; nothing when it is not to be half as large."""
    stored = file.size
    # The bound holds for the long and the short side, so it does not matter whether the image will be turned.
    file.draft(None, rescale_size(*stored, bound))
    if file.size == stored:
        return None
    return stored[::-1] if file.getexif().get(ORIENTATION, 1) >= 5 else stored
