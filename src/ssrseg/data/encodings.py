"""What the bytes of a file say beside its pixels: how it lies, what was lost, and what it is if it is no image."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ssrseg.errors import first_line

BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, EOFError, struct.error),
    *(zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for files that are no image, half of one or damaged; `UnidentifiedImageError` is an `OSError`."""
ORIENTATION = 0x0112
"""The EXIF tag that turns an image; 1 leaves it."""
RECODE = "`gdal_translate -co COMPRESS=DEFLATE IN OUT` writes one that is read"
STRANGERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS: `git lfs pull` fetches the file",
    b"<!doctype html": "it is a web page, as failed downloads leave it: download it again",
    b"<html": "it is a web page, as failed downloads leave it: download it again",
    b"\x1f\x8b": "it is packed by gzip: unpack it",
    b"PK\x03\x04": "it is a zip archive: unpack it",
    b"%PDF": "it is a PDF: save its pages as PNG",
}
"""First bytes, in small letters -> what to do about a file that is taken for an image."""
TRANSFORM = 13
"""Where in JPEG 2000's segment COD the wavelet stands; 0 is the one that rounds."""


def reason_of(error: Exception, encoded: bytes) -> str:
    """Say why a file cannot be decoded: what it is, if it is no image, else the error's own words."""
    if not isinstance(error, UnidentifiedImageError):
        text = first_line(error)
        return f"{text} ({RECODE})" if "ompression scheme" in text else text
    start = encoded[:64].lstrip().lower()
    if not encoded.strip(b"\0"):
        return "it holds nothing but zeros, as broken downloads and disks leave it"
    known = (text for first, text in STRANGERS.items() if start.startswith(first.lower()))
    return next(known, first_line(error))


def load_array(encoded: bytes) -> npt.NDArray[Any]:
    """Read a `.npy` file; raises `ValueError` for one without numbers."""
    if encoded[:4] == b"PK\x03\x04":
        raise ValueError("it holds arrays with names (.npz): save one alone, numpy.save(path, arrays[name])")
    pixels: npt.NDArray[Any] = np.load(io.BytesIO(encoded), allow_pickle=False)
    if not pixels.size:
        raise ValueError(f"it has no pixels, its shape is {pixels.shape}")
    return pixels


def lossy_format(encoded: bytes) -> str:
    """Name the compression of an image that has changed its values, as far as the file says; empty for others."""
    if encoded[:3] == b"\xff\xd8\xff":
        return "a JPEG"
    if encoded[:4] == b"RIFF" and b"VP8 " in encoded[12:4096]:
        return "a WebP with loss"
    if encoded[4:8] == b"ftyp":
        return "an AVIF or HEIF"
    if encoded[4:8] == b"jP  " or encoded[:4] == b"\xff\x4f\xff\x51":
        place = encoded.find(b"\xff\x52", 0, 4096)
        return "a JPEG 2000 with loss" if encoded[place + TRANSFORM : place + TRANSFORM + 1] == b"\0" else ""
    return ""


def describe_tiff(encoded: bytes) -> tuple[str, int, bool]:
    """Return Pillow's mode of a TIFF, empty where it has none, its orientation, and whether there is JPEG inside."""
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            compression = file.info.get("compression")
            orientation = int(getattr(file, "tag_v2", {}).get(ORIENTATION, 1))
            return str(file.mode), orientation, compression in ("jpeg", "tiff_jpeg")
    except BROKEN:
        return "", 1, False


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn pixels (H, W) or (H, W, C) as they are shown by an EXIF orientation of 1 (as they are) to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
