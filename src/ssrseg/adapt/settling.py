"""Losses whose gradients are taken at once, so that the graph behind one is gone before the next is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The loss's gradient at every input, absent where the loss does not depend on it; frees the loss's graph.

    As in a backward pass outside of autocast: every operation runs in the type that its forward had.
    """
    with torch.autocast(loss.device.type, enabled=False):
        return torch.autograd.grad(loss, inputs, allow_unused=True)


def settled(loss: Tensor, inputs: Sequence[Tensor], found: Sequence[Tensor | None]) -> Tensor:
    """The loss as a function of `inputs` whose gradients were `found`; its backward pass hands them on."""
    pairs = [(tensor, gradient) for tensor, gradient in zip(inputs, found, strict=True) if gradient is not None]
    value: Tensor = _Settled.apply(loss.detach(), [gradient for _, gradient in pairs], *(tensor for tensor, _ in pairs))
    return value


class _Settled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, found: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*found)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(factor * gradient for gradient in ctx.saved_tensors)
