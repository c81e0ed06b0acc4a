"""Maps of the regions of images, such as SAM's masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssrseg.config.data import MOST_MASKS
from ssrseg.data.images import shown_size
from ssrseg.data.label_encodings import read_stored_labels
from ssrseg.errors import UserError


def read_masks(path: Path, image: Path) -> Tensor:
    """Read a map of regions (H, W) int16: the ids of the file, numbered anew from 1; 0 is no region.

    Raises:
        UserError: it is not of the size of its `image`, has `MOST_MASKS` ids or more, or is no map of one channel.
    """
    pixels = read_stored_labels(path).pixels
    if pixels.ndim == 3:
        raise UserError(f"{path} has colours; a map of regions has one channel, of 8 or 16 bits, with an id per pixel.")
    width, height = shown_size(image)
    if pixels.shape != (height, width):
        raise UserError(f"{image} is {width}x{height}, its regions {path} are {pixels.shape[1]}x{pixels.shape[0]}.")
    ids, places = np.unique(np.append(0, pixels.astype(np.int64)), return_inverse=True)
    if len(ids) > MOST_MASKS:
        most = MOST_MASKS - 1
        raise UserError(f"{path} holds {len(ids) - 1} regions, at most {most} are allowed: join the smallest.")
    number = np.where(ids == 0, 0, np.cumsum(ids != 0))  # 0 stays 0 whatever lies below it
    return torch.from_numpy(number[places[1:]].reshape(pixels.shape).astype(np.int16))
