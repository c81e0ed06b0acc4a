"""`ssrseg pack`: a data set into chunks that are read from a disk, a cluster's or object storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from ssrseg.config import DataConfig
from ssrseg.data.images import read_image
from ssrseg.data.label_files import is_colored, read_raw_labels
from ssrseg.data.layouts import find_images, find_pairs
from ssrseg.data.png import Pixels
from ssrseg.data.scaled import ScaledFiles, whole
from ssrseg.data.shards import write_shards
from ssrseg.data.storage import name_below, read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

Packed = tuple[str, bytes, Mapping[str, int] | None]


def pack(data: DataConfig, out: Path, *, images_only: bool = False) -> int:
    """Pack the images of a data set, and their labels, under their names: `out` then is read as the folder is.

    Files go in as they are, or, when the settings say `resize`, as PNGs of that size. What the labels hold is counted
    on the way, so that no run over the packed data counts it again.

    Args:
        data: what to pack.
        out: a folder that is empty or not there yet.
        images_only: leave labels out, as of a target.

    Returns:
        The number of images.

    Raises:
        UserError: `out` holds something, a file is broken, or litdata is not installed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: pack into a new one.")
    pairs = [] if images_only else find_pairs(data)
    images = find_images(data) if images_only else [pair.image for pair in pairs]

    def files() -> Iterator[Packed]:
        for place, image in enumerate(images):
            if not images_only:
                yield _label(pairs[place].label, data)
            yield name_below(image, data.root), _image(image, data), None

    write_shards(out, files())
    return len(images)


def _image(path: Path, data: DataConfig) -> bytes:
    pixels = whole(ScaledFiles(data.resize).image(path)).permute(1, 2, 0).numpy()  # a broken one is found now
    return read_bytes(path) if data.resize is None else _png(pixels[..., ::-1])


def _label(path: Path, data: DataConfig) -> Packed:
    name = name_below(path, data.root)
    if is_colored(path):
        pixels = read_image(path).permute(1, 2, 0).numpy()
        return name, read_bytes(path) if data.resize is None else _png(_nearest(pixels, data.resize)[..., ::-1]), None
    values = read_raw_labels(path).numpy()
    values = values if data.resize is None else _nearest(values, data.resize)
    counts = np.bincount(values.ravel(), minlength=256).tolist()
    content = read_bytes(path) if data.resize is None else _png(values)
    return name, content, {str(value): count for value, count in enumerate(counts) if count}


def _nearest(pixels: Pixels, bound: tuple[int, int]) -> Pixels:
    size = rescale_size(pixels.shape[1], pixels.shape[0], bound)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _png(pixels: Pixels) -> bytes:
    """Grey (H, W), or blue, green and red (H, W, 3)."""
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()
