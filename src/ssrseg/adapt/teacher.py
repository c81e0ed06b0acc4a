"""The mean teacher: an exponential moving average of the student that labels the target."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import IGNORE, Pseudo
from ssrseg.models.segmenter import Segmenter


class Teacher(nn.Module):
    """EMA of the segmenter's parameters; buffers are its own.

    It labels in training mode without dropout and drop path: its BatchNorm uses the statistics of the target
    batch, as in the references.

    Args:
        student: copied.
        decay: alpha, approached from below: min(1 - 1 / (step + 1), decay).
        threshold: the trust in every pixel of a batch is the share of its pixels that are at least this
            confident; 1 when absent.
        after_step: average after the student's step, as DACS does, instead of before it.
        look: the averaged segmenter and images -> logits; its own forward when absent.
    """

    def __init__(
        self,
        student: Segmenter,
        *,
        decay: float = 0.999,
        threshold: float | None = 0.968,
        after_step: bool = False,
        look: Callable[[Segmenter, Tensor], Tensor] = Segmenter.__call__,
    ) -> None:
        super().__init__()
        self.segmenter = deepcopy(student).requires_grad_(False)
        self._look = [look]  # in a list: a module in there is the learner's, not a part of the teacher
        self.decay, self.threshold = decay, threshold
        self._behind = int(after_step)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Training mode means: batch statistics, but nothing dropped."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _DropoutNd | DropPath):
                module.eval()
        return self

    @torch.no_grad()
    def update(self, student: Segmenter, step: int) -> None:
        """Move towards the student, who has completed `step` steps. Step 0 copies it.

        An average taken after step i is the one taken before step i + 1, with the factor of step i.
        """
        alpha = min(1 - 1 / max(1, step + 1 - self._behind), self.decay)
        mine: list[Tensor] = list(self.segmenter.parameters())
        theirs: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - alpha)

    @torch.no_grad()
    def forward(self, images: Tensor, valid: Tensor) -> Pseudo:
        """Labels and trust for target images in [0, 1]; trust is 0 where not `valid` (B, H, W)."""
        (look,) = self._look
        return pseudo_label(look(self.segmenter, images), valid, self.threshold)


def pseudo_label(logits: Tensor, valid: Tensor, threshold: float | None) -> Pseudo:
    """Argmax labels, and one confidence share for the whole batch as weight (DACS), taken before `valid` cuts rows.

    The whole batch is that of all processes.

    Args:
        logits: (B, K, H, W).
        valid: (B, H, W) bool.
        threshold: confidence in [0, 1]; weight 1 when absent.
    """
    confidence, labels = logits.softmax(dim=1).max(dim=1)
    weights = valid.to(confidence.dtype)
    if threshold is not None:
        weights = weights * distributed.mean((confidence >= threshold).to(confidence.dtype).mean())
    return Pseudo(labels, weights)


class NoTeacher(nn.Module):
    """For methods without pseudo-labels: every target pixel is ignored."""

    segmenter: Segmenter | None = None

    def update(self, student: Segmenter, step: int) -> None:
        """Nothing to average."""

    def forward(self, images: Tensor, valid: Tensor) -> Pseudo:
        """Labels that say nothing."""
        ignored = torch.full(valid.shape, IGNORE, device=valid.device)
        return Pseudo(ignored, torch.zeros(valid.shape, device=valid.device))
