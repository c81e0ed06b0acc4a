"""Matrix products on a CPU in oneDNN where MKL, to which torch gives them, is slow.

MKL keeps AVX-512 to processors that Intel made: on AMD's it multiplies float32 matrices half as fast as oneDNN, which
computes torch's convolutions. A product is one of those too: 1x1, of a picture one pixel wide.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 2**23
"""Multiplications below which the call of a convolution costs more than it gains."""


@cache
def mkl_lags() -> bool:
    """Tell whether MKL leaves this processor's AVX-512 unused: a rule, not a measurement, so that runs repeat."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear`: tokens (..., C), weight (D, C), bias (D,) -> (..., D)."""
    if not _convolves(tokens, weight) or tokens.numel() * len(weight) < SMALL:
        return F.linear(tokens, weight, bias)
    column = tokens.reshape(1, -1, 1, tokens.shape[-1]).permute(0, 3, 1, 2)  # in memory, channels are last
    result = F.conv2d(column, weight[:, :, None, None], bias)
    return result.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], len(weight))


def batched(left: Tensor, right: Tensor) -> Tensor:
    """Compute `torch.bmm` without gradient: (P, K, C) and (P, C, T) -> (P, K, T)."""
    (count, outputs, inputs), columns = left.shape, right.shape[-1]
    if not _convolves(left, right) or outputs * inputs * columns < SMALL:
        return torch.bmm(left, right)
    result = left.new_empty(count, outputs, columns)
    if right.stride(1) == 1:  # its columns lie in memory one by one, as kernels do
        for product, some, kernels in zip(result, left, right.transpose(1, 2), strict=True):
            product.copy_(linear(some, kernels))
    else:
        for product, kernels, row in zip(result, left[..., None, None], right[:, None, :, None], strict=True):
            product.copy_(F.conv2d(row, kernels)[0, :, 0])
    return result


class ConvolvedLinear(nn.Linear):
    """A linear layer by `linear`; not for export."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., D)."""
        return linear(tokens, self.weight, self.bias)


def _convolves(left: Tensor, right: Tensor) -> bool:
    if torch.compiler.is_compiling():  # a compiler has products of its own
        return False
    return left.device.type == "cpu" and left.dtype == right.dtype == torch.float32 and mkl_lags()


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
