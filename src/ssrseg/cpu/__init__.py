"""Layers in forms that suit a CPU. A CPU run calls `optimize` for each network; a CUDA run imports nothing here."""

from __future__ import annotations

import ctypes
import sys
from typing import TypeVar

import torch
from torch import nn

from ssrseg.cpu import convolutions, matmul, training_layers
from ssrseg.models.heads import ConvNormAct
from ssrseg.models.segmenter import Segmenter

SCORES_AT_ONCE = 2**22
"""Attention scores that are worked on at once: 16 MB of them and their bias stay in a shared cache."""

Network = TypeVar("Network", bound=nn.Module)


def optimize(network: Network, *, training: bool = False, layers: bool = True) -> Network:
    """Let a network's layers compute the same, up to rounding, in ways that cost a CPU less; it is changed in place.

    From then on the process keeps the memory that it frees.

    Args:
        network: student, terms or teacher if it is trained: weights and their names stay, and in eval mode every layer
            is torch's own. Else a frozen encoder, or a segmenter of `ssrseg.models.fused.fuse`: not to be saved.
        training: it is used in training mode.
        layers: change layers with weights too; off under autocast and `torch.compile`, which bring their own kernels.

    Returns:
        The network.
    """
    keep_memory()
    for part in network.modules():
        if training:
            part.__class__ = training_layers.class_for(part, layers)
        elif type(part) is nn.Linear:
            part.__class__ = matmul.ConvolvedLinear
        elif isinstance(part, ConvNormAct):
            part._modules["conv"] = convolutions.for_inference(part.conv)
        elif hasattr(part, "scores_at_once"):  # of `ssrseg.adapt.sam_attention`, which may not be imported here
            part.scores_at_once = SCORES_AT_ONCE  # type: ignore[assignment]
    if isinstance(network, Segmenter) and not training:
        network.backbone.to(memory_format=torch.channels_last)
    return network


def keep_memory() -> None:
    """Let the C library keep freed memory instead of giving it back to the system, where it is GNU's.

    Else every map above 32 MB is made of new pages each time, which the system clears first: a third of a training step
    at 512x512, and of the head's inference. It holds for the whole process, whose memory stays as large as it was.
    """
    if sys.platform == "linux" and (adjust := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        adjust(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        adjust(-1, -1)  # M_TRIM_THRESHOLD: the heap stays as large as it was
