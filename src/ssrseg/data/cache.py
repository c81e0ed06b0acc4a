"""Images and labels at the size they are trained at: decoded now, or kept on the disk from an earlier epoch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssrseg.config.data import Bound
from ssrseg.data.images import Reading, parts_of, plain, read_pixels, to_tensor
from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode
from ssrseg.data.layouts import Pair
from ssrseg.data.storage import stamp
from ssrseg.data.transforms import Box, rescale_size, resize_crop, resize_labels
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically

Change = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
"""Image (H, W, 3) -> image."""
Planes = npt.NDArray[np.uint8]
"""(C, H, W): red, green, blue, and the class ids where there are labels."""


@dataclass(frozen=True)
class ScaledImage:
    """An image of which crops are asked for: only those are scaled, or read from the cache."""

    size: tuple[int, int]
    """(width, height)."""
    crop: Callable[[Box], Tensor]
    """Box, which may reach beyond the image -> RGB bytes (3, h, w)."""

    def whole(self) -> Tensor:
        """Return all of it, RGB bytes (3, H, W)."""
        width, height = self.size
        return self.crop((slice(0, height), slice(0, width)))


@dataclass(frozen=True)
class ScaledFiles:
    """Reads images, alone or with their labels, bounded in size."""

    bound: Bound | None
    """Of their size; as they are when absent."""
    scale_jpeg: bool = False
    """Whether a JPEG is scaled while it is decoded."""
    cache: Path | None = None
    """Folder that keeps them for later epochs and runs."""
    bands: Reading = 3
    """`model.in_channels`, and what becomes black and white."""

    def image(self, path: Path) -> ScaledImage:
        """Read an image; raises `UserError` for what is none."""
        if self.cache is None:
            return self._decoded(path)[0]
        return self._kept(_cached(self.cache, self._key(path), lambda: self._decoded(path)[0].whole().numpy()))

    def pair(self, pair: Pair, code: LabelCode, change: Change | None = None) -> tuple[ScaledImage, Tensor]:
        """Read an image and its class ids (H, W) uint8; raises `UserError` when their sizes differ.

        `change` is applied to the image before it is resized, which a cache would not allow.
        """
        if self.cache is None:
            return self._decoded_pair(pair, code, change)

        def planes() -> Planes:
            image, labels = self._decoded_pair(pair, code)
            return torch.cat([image.whole(), labels[None]]).numpy()

        key = _key(self._key(pair.image), self._key(pair.label), code.digest())
        kept = _cached(self.cache, key, planes)
        return self._kept(kept), torch.from_numpy(np.array(kept[-1]))

    def _kept(self, planes: Planes) -> ScaledImage:
        size = planes.shape[2], planes.shape[1]
        return ScaledImage(
            size, lambda box: torch.from_numpy(np.array(planes[: parts_of(self.bands)[0], box[0], box[1]], order="C"))
        )

    def _key(self, path: Path) -> str:
        return _key(path, stamp(path), self.bound, self.scale_jpeg, plain(self.bands))

    def _decoded_pair(self, pair: Pair, code: LabelCode, change: Change | None = None) -> tuple[ScaledImage, Tensor]:
        (image, (width, height)), labels = self._decoded(pair.image, change), read_labels(pair.label, code, pair.image)
        if labels.shape != (height, width):
            found = f"{labels.shape[1]}x{labels.shape[0]}"
            raise UserError(f"{pair.image} is {width}x{height}, its label {pair.label} is {found}.")
        return image, resize_labels(labels, image.size)

    def _decoded(self, path: Path, change: Change | None = None) -> tuple[ScaledImage, tuple[int, int]]:
        """Return the image, and the (width, height) of its file."""
        pixels, stored = read_pixels(path, self.bound if self.scale_jpeg else None, self.bands)
        pixels = pixels if change is None else change(pixels)
        size = rescale_size(*stored, self.bound) if self.bound else stored
        return ScaledImage(size, lambda box: to_tensor(resize_crop(pixels, size, box))), stored


def _cached(folder: Path, key: str, make: Callable[[], Planes]) -> Planes:
    """Return the entry of a key, read-only; make it, and keep it if possible, when it is not there or broken.

    An entry is an uncompressed `.npy` file, mapped into memory and read where a crop lies. It is written whole or not
    at all, so any number of workers and runs may share the folder. What cannot be written is not kept; nothing else
    is lost.
    """
    path = folder / key[:2] / f"{key}.npy"
    try:
        kept: Planes = np.load(path, mmap_mode="r", allow_pickle=False)
        if kept.ndim == 3 and kept.dtype == np.uint8:
            return kept
    except (OSError, ValueError, EOFError):
        pass
    planes = make()

    def write(place: Path) -> None:
        with place.open("wb") as file:
            np.save(file, planes, allow_pickle=False)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        why = error.strerror or error
        warnings.warn(f"The image cache {folder} cannot be written ({why}): images are not kept.", stacklevel=2)
    return planes


def _key(*facts: object) -> str:
    """Return the key of an entry: the same facts, the same key."""
    return hashlib.sha256("\0".join(map(str, facts)).encode("utf-8", "surrogateescape")).hexdigest()[:40]
