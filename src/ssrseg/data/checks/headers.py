"""What the first and last bytes of an image file say, without decoding it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from ssrseg.data.idd_polygons import polygons_size
from ssrseg.data.images import BROKEN, first_line
from ssrseg.data.storage import open_file, read_bytes
from ssrseg.errors import UserError

ORIENTATION = 0x0112
"""EXIF: 1 is upright, 2 to 4 keep width and height, 5 to 8 swap them."""


@dataclass(frozen=True)
class Header:
    """Of one file."""

    stored: tuple[int, int]
    """(width, height) of the pixels as they lie in the file: a label's size."""
    shown: tuple[int, int]
    """(width, height) as the camera held it: an image's size."""
    orientation: int
    mode: str
    """Pillow's."""
    format: str
    pages: int
    complete: bool
    """Whether the file ends as its format says; the last bytes are looked at in PNG and JPEG only."""


def read_header(path: Path) -> Header:
    """The header of an image file; raises `UserError` for what is missing or no image."""
    if path.suffix.lower() == ".json":
        size = polygons_size(read_bytes(path), path)
        return Header(size, size, 1, "L", "JSON", 1, True)
    try:
        with open_file(path) as file, Image.open(file) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            stored = image.size
            shown = (stored[1], stored[0]) if orientation >= 5 else stored
            # A phone's JPEG of format MPO holds a preview or depth beside the photograph.
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            kind = image.format or ""
            return Header(stored, shown, orientation, image.mode, kind, pages, _is_complete(file, kind))
    except BROKEN as error:
        read_bytes(path)  # an empty file says so
        raise UserError(f"{path} cannot be read as an image: {first_line(error)}") from error


def _is_complete(file: IO[bytes], kind: str) -> bool:
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - 64))
    tail = file.read()
    if kind == "PNG":
        return b"IEND" in tail
    if kind == "JPEG":
        return b"\xff\xd9" in tail
    return True
