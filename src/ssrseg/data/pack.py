"""`ssrseg pack`: a data set into one zip archive, which is read in place from a disk or a URL."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from ssrseg.config import DataConfig
from ssrseg.config.data import Bound
from ssrseg.data.cache import ScaledFiles
from ssrseg.data.checks.inspect import read_header
from ssrseg.data.images import Pixels
from ssrseg.data.label_encodings import read_stored_labels
from ssrseg.data.label_files import read_raw_labels
from ssrseg.data.layouts import find_images, find_pairs, is_named
from ssrseg.data.storage import INDEX, name_below, read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically, writing

Counts = Mapping[str, int] | None
"""Raw value -> pixels; absent for colours and images."""


def pack(data: DataConfig, out: Path, *, images_only: bool = False) -> int:
    """Pack the images of a data set, and their labels, under their names: `out` then is read as the folder is.

    Files go in as they are, or, when the settings say `resize`, as PNGs of that size. The pixels of each label value
    are counted on the way, so that no run over the packed data counts them again.

    Args:
        data: what to pack.
        out: a `.zip` file that is not there yet. Nothing in it is compressed, as images are.
        images_only: leave labels out, as of a target.

    Returns:
        The number of images.

    Raises:
        UserError: `out` is there, no `.zip` or cannot be written, a file is broken, or image and label have one name.
    """
    if out.suffix.lower() != ".zip" or out.exists():
        found = "is there already" if out.exists() else "does not end in .zip"
        raise UserError(f"{out} {found}: pack into a new .zip file.")
    if not images_only and is_named(data):
        raise UserError(
            f"The labels of {data.root} are drawn when they are read: pack the images alone (--images-only), and set "
            f"`labels_root` to {data.labels_root or data.root}."
        )
    pairs = [] if images_only else find_pairs(data)
    images = find_images(data) if images_only else [pair.image for pair in pairs]

    def write(place: Path) -> None:
        index: dict[str, tuple[int, Counts]] = {}
        with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:

            def add(name: str, content: bytes, counts: Counts = None) -> None:
                if name in index:
                    raise UserError(
                        f"Two files of {data.root} would be {name} in {out}: pack the images (--images-only) and the "
                        "labels into an archive each, and set `labels_root` to that of the labels."
                    )
                info = zipfile.ZipInfo(name)  # without a time: the same files, the same archive
                archive.writestr(info, content)
                index[name] = info.CRC, counts

            for number, image in enumerate(images):
                if not images_only:
                    label = pairs[number].label
                    add(name_below(label, data.labels_root or data.root), *_label(label, data))
                add(name_below(image, data.root), _image(image, data.resize))
            counted = {name: entry for name, entry in index.items() if entry[1] is not None}
            archive.writestr(zipfile.ZipInfo(INDEX), json.dumps(counted))

    with writing(out):
        write_atomically(out, write)
    return len(images)


def _image(path: Path, bound: Bound | None) -> bytes:
    """Return a file as it is, or its bands in a PNG of that size; a broken one raises `UserError`."""
    header = read_header(path)
    if bound is not None and (not header.mode or header.bands > 4):
        raise UserError(f"{path} ({header.bands} bands) cannot become a PNG, which resize makes of it: pack without.")
    as_stored = header.mode in ("L", "I;16", "LA", "RGBA", "RGBX")  # else RGB, as of a palette and CMYK
    if header.mode:  # otherwise it was decoded for its bands
        pixels = ScaledFiles(bound, bands=header.bands if bound and as_stored else 3).image(path).whole()
    return read_bytes(path) if bound is None else _png(pixels.permute(1, 2, 0).numpy())


def _label(path: Path, data: DataConfig) -> tuple[bytes, Counts]:
    stored = read_stored_labels(path)
    values = stored.pixels if stored.pixels.ndim == 3 else read_raw_labels(path)
    content = read_bytes(path)
    if data.resize is not None:
        if values.dtype.kind != "u" or values.dtype.itemsize > 2 or stored.clear is not None:
            raise UserError(f"{path} ({values.dtype}) cannot become a PNG, which resize makes of it: pack without.")
        size = rescale_size(values.shape[1], values.shape[0], data.resize)
        values = np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_NEAREST))
        content = _png(values) if stored.palette is None else _palette_png(values, stored.palette)
    if values.ndim == 3 or stored.palette is not None or stored.clear is not None:  # its colours may count
        return content, None
    found, counts = np.unique(values, return_counts=True)
    return content, {str(int(v)): n for v, n in zip(found.tolist(), counts.tolist(), strict=True) if math.isfinite(v)}


def _palette_png(indices: Pixels, palette: Pixels) -> bytes:
    image, file = Image.fromarray(indices), io.BytesIO()
    image.putpalette(palette.tobytes())
    image.save(file, "PNG")
    return file.getvalue()


def _png(pixels: Pixels) -> bytes:
    grey = pixels.shape[2:] == (1,)
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels[..., 0] if grey else pixels)))
