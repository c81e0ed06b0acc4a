"""Activation checkpointing: blocks whose activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_blocks(module: nn.Module) -> int:
    """Let the repeated blocks of `module` keep only their inputs for the backward pass; changed in place.

    Weights, their names, gradients and the statistics of norms stay what they were: random layers draw the same
    again, and norms do not count the second pass. Call it after all copies are made: a copy would run the blocks
    of its original.

    Returns:
        The number of such blocks; 0 for an architecture that repeats none.
    """
    blocks = list(repeated_blocks(module))
    for block in blocks:
        block.forward = _recomputed(block)
    return len(blocks)


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of rows of one class, layers and plain rows apart: a transformer's blocks, a ResNet's bottlenecks."""
    children = list(module.children())
    kinds = {type(child) for child in children}
    in_a_row = isinstance(module, nn.ModuleList | nn.Sequential) and len(kinds) == 1
    if in_a_row and not kinds & {nn.ModuleList, nn.Sequential} and any(True for _ in children[0].children()):
        yield from children
        return
    for child in children:
        yield from repeated_blocks(child)


def _recomputed(block: nn.Module) -> Callable[..., Any]:
    kept = block.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), still_statistics(block)

    recomputed = partial(checkpoint, kept, use_reentrant=False, context_fn=contexts)

    def forward(*args: Any, **options: Any) -> Any:
        return recomputed(*args, **options) if torch.is_grad_enabled() else kept(*args, **options)

    return forward


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm inside normalises by batch statistics as ever but leaves its running statistics alone."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
