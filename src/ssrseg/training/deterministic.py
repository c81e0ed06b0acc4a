"""`train.deterministic`: torch is asked before the first step whether it can."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.segmenter import Segmenter

REFUSAL = " does not have a deterministic implementation"
"""What torch says after the name of an operation."""


def refuse_nondeterministic(student: Segmenter, device: torch.device, crop: tuple[int, int]) -> None:
    """Run a copy of the student forward and backward on one image, under `torch.use_deterministic_algorithms`.

    Raises `UserError` with operation and layer where torch has only a version that differs from run to run.
    """
    network, reached = deepcopy(student).to(device).eval(), list[str]()
    for name, layer in network.named_modules():
        named = f"{name} ({type(layer).__name__})"
        layer.register_forward_pre_hook(partial(_entered, reached, named))
        layer.register_forward_hook(partial(_left, reached, named))
    try:
        network(torch.zeros(1, student.in_channels, *crop, device=device)).sum().backward()
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(REFUSAL)
        if not refused:
            raise
        raise UserError(
            f"train.deterministic: on this {device.type} device torch {torch.__version__} has no deterministic "
            f"{operation}, which the layer {reached[-1]} needs. Choose another model.backbone or model.head "
            "(docs/reproducibility.md), or set train.deterministic=false."
        ) from error


def _entered(reached: list[str], name: str, layer: nn.Module, inputs: Any) -> None:
    reached.append(name)


def _left(reached: list[str], name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(lambda gradient: reached.append(name))  # the backward pass is about to enter
