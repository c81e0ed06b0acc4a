"""How fast this machine multiplies matrices: what floors are measured by."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F

Rates = Mapping[str, float]
"""GFLOP/s by the way to multiply."""


def product_rates() -> Rates:
    """The best of three products of 2048x2048 matrices: by `@`, and as a convolution of 1x1.

    torch gives the two to different libraries (on x86 to MKL and to oneDNN), and a processor may suit one of them only.
    """
    left, right = torch.rand(2, 2048, 2048)
    picture, kernels = left.view(1, 2048, 1, 2048).permute(0, 3, 1, 2), right.t()[:, :, None, None].contiguous()
    ways = {"@": lambda: left @ right, "convolution": lambda: F.conv2d(picture, kernels)}
    best = dict.fromkeys(ways, 0.0)
    with torch.no_grad():
        for _ in range(3):
            for name, multiply in ways.items():
                began = time.perf_counter()
                multiply()
                best[name] = max(best[name], 2 * 2048**3 / (time.perf_counter() - began) / 1e9)
    return best


def best_rate(rates: Rates) -> float:
    """Of the faster way, by which a floor is a floor."""
    return max(rates.values())
