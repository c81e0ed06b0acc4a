"""Images and labels at the size they are trained at: decoded now, or kept from an earlier epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ssrseg.data.cache import ImageCache, Planes, key_of
from ssrseg.data.images import Opened, open_image, to_tensor
from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode
from ssrseg.data.layouts import Pair
from ssrseg.data.storage import stamp
from ssrseg.data.transforms import Box, rescale_size, resize_crop, resize_labels
from ssrseg.errors import UserError


class Scaled(Protocol):
    """An image of which crops are asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        ...

    def crop(self, box: Box) -> Tensor:
        """RGB bytes (3, h, w) of a box, which may reach beyond the image."""
        ...


@dataclass(frozen=True)
class Fresh:
    """An image out of its file: decoded and scaled only as far as a crop needs it."""

    file: Opened
    size: tuple[int, int]

    def crop(self, box: Box) -> Tensor:
        """See `Scaled`; raises `UserError` when the file is broken."""
        return to_tensor(resize_crop(self.file.first_rows, self.file.grid, self.size, box))


@dataclass(frozen=True)
class Kept:
    """An image out of the cache."""

    planes: Planes

    @property
    def size(self) -> tuple[int, int]:
        """See `Scaled`."""
        return self.planes.shape[2], self.planes.shape[1]

    def crop(self, box: Box) -> Tensor:
        """See `Scaled`."""
        return torch.from_numpy(np.array(self.planes[:3, box[0], box[1]], order="C"))

    def labels(self) -> Tensor:
        """Class ids (H, W)."""
        return torch.from_numpy(np.array(self.planes[3]))


@dataclass(frozen=True)
class ScaledFiles:
    """Reads images, alone or with their labels, bounded in size."""

    bound: tuple[int, int] | None
    """(width, height), aspect ratio kept; as they are when absent."""
    scale_jpeg: bool = False
    """Whether a JPEG is scaled while it is decoded."""
    cache: ImageCache | None = None

    def image(self, path: Path) -> Scaled:
        """An image; raises `UserError` for what is none."""
        if self.cache is None:
            return self._fresh(path)
        return Kept(self.cache.planes(self._key(path), lambda: whole(self._fresh(path)).numpy()))

    def pair(self, pair: Pair, code: LabelCode) -> tuple[Scaled, Tensor]:
        """An image and its class ids (H, W) uint8; raises `UserError` when their sizes differ."""
        if self.cache is None:
            return self._fresh_pair(pair, code)

        def planes() -> Planes:
            image, labels = self._fresh_pair(pair, code)
            return torch.cat([whole(image), labels[None]]).numpy()

        key = key_of(self._key(pair.image), self._key(pair.label), code.digest())
        kept = Kept(self.cache.planes(key, planes))
        return kept, kept.labels()

    def take_notes(self) -> list[str]:
        """What to say of the images read since the last call, one note for each that it concerns."""
        if self.cache is None:
            return []
        notes = list(self.cache.notes)
        self.cache.notes.clear()
        return notes

    def _key(self, path: Path) -> str:
        return key_of(path, stamp(path), self.bound, self.scale_jpeg)

    def _fresh_pair(self, pair: Pair, code: LabelCode) -> tuple[Fresh, Tensor]:
        image, labels = self._fresh(pair.image), read_labels(pair.label, code)
        width, height = image.file.size
        if labels.shape != (height, width):
            found = f"{labels.shape[1]}x{labels.shape[0]}"
            raise UserError(f"{pair.image} is {width}x{height}, its label {pair.label} is {found}.")
        return image, resize_labels(labels, image.size)

    def _fresh(self, path: Path) -> Fresh:
        file = open_image(path, self.bound if self.scale_jpeg else None)
        return Fresh(file, rescale_size(*file.size, self.bound) if self.bound else file.size)


def whole(image: Scaled) -> Tensor:
    """All of an image, RGB bytes (3, H, W)."""
    width, height = image.size
    return image.crop((slice(0, height), slice(0, width)))
