"""How thick the classes of a label are, beside what a network decides at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CELL = 4
"""Pixels across for which SegFormer's and DAFormer's heads decide once (DeepLabV2 even for 8): their output stride."""
Ids = npt.NDArray[np.uint8]


def run_lengths(ids: Ids) -> npt.NDArray[np.int64]:
    """Count, for each pixel (H, W), how many of its row are of its class without a gap."""
    begins = np.ones(ids.shape, bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    lengths = np.diff(np.flatnonzero(begins), append=ids.size)
    return np.repeat(lengths, lengths).reshape(ids.shape)


def thickness_counts(ids: Ids, size: tuple[int, int], num_classes: int) -> Tensor:
    """Count the pixels of each class by thickness (K, 100 `CELL` + 1): in hundredths, as if resized to `size`.

    The thickness of a class at a pixel of `ids` (H, W) is the shorter of its two runs through it, along the row and
    along the column: the width of a pole, the height of a kerb, up to 1.4 times that of what lies aslant. The last
    count is of all that is as thick as `CELL`. `size` is (width, height).
    """
    across = run_lengths(ids) * (size[0] / ids.shape[1])
    down = run_lengths(np.ascontiguousarray(ids.T)).T * (size[1] / ids.shape[0])
    hundredths = np.minimum(100 * np.minimum(across, down) + 1e-6, 100 * CELL).astype(np.int64)
    shape = 256, 100 * CELL + 1
    counts = np.bincount((ids * np.int64(shape[1]) + hundredths).ravel(), minlength=shape[0] * shape[1])
    return torch.from_numpy(counts.reshape(shape)[:num_classes])
