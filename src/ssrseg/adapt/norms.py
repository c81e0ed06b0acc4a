"""BatchNorm in training: whether its running statistics move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Hold the running statistics of every BatchNorm inside; it still normalises by the batch's."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # a copy of the counter moves: a synchronised norm refuses to be without one
        norm.momentum, norm.num_batches_tracked = 0.0, cast(Tensor, norm.num_batches_tracked).clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
