"""Image files to tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssrseg.data.storage import read_bytes
from ssrseg.errors import UserError

BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are no image, or half of one."""


def read_image(path: Path) -> Tensor:
    """An image as RGB bytes (3, H, W), whatever it was: grey, palette, RGBA, CMYK, 16-bit, EXIF-rotated.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    encoded = read_bytes(path)
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("F", "I"):
                raise UserError(f"{path} has 32 bits per pixel, expected 8 or 16: convert it first.")
            if image.mode.startswith("I;16"):  # Pillow would cut, not scale
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            rgb = np.array(image.convert("RGB"))
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as an image: {first_line(error)}") from error
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()


def first_line(error: Exception) -> str:
    """What an error says, shortly."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no known image format"  # Pillow's own words name a buffer
    return str(error).splitlines()[0] if str(error) else type(error).__name__
