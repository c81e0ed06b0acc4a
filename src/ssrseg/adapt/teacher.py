"""The mean teacher: an exponential moving average of the student that labels the target."""

from __future__ import annotations

from copy import deepcopy

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import IGNORE, Pseudo
from ssrseg.adapt.regions import Regions
from ssrseg.models.segmenter import Segmenter


class Teacher(nn.Module):
    """Average the segmenter's parameters over the steps (EMA), and label target images; buffers are its own.

    It labels in training mode without dropout and drop path: its BatchNorm uses the statistics of the target
    batch, as in the references. A teacher of your own overrides `logits`, or `forward`.

    Args:
        student: copied.
        decay: alpha, approached from below: min(1 - 1 / (step + 1), decay).
        threshold: the trust in every pixel of a batch is the share of its pixels that are at least this
            confident; 1 when absent.
        after_step: average after the student's step, as DACS does, instead of before it.
        regions: refine the labels; the trust is theirs then.
        flip: label by the mean of its probabilities for an image and for its mirror image (VFM-UDA).
    """

    def __init__(
        self,
        student: Segmenter,
        *,
        decay: float = 0.999,
        threshold: float | None = 0.968,
        after_step: bool = False,
        regions: Regions | None = None,
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.segmenter = deepcopy(student).requires_grad_(False)
        self.decay, self.threshold, self._behind = decay, threshold, int(after_step)
        self.regions, self.flip = regions, flip
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Set training mode, which means batch statistics, but nothing dropped."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _DropoutNd | DropPath):
                module.eval()
        return self

    @torch.no_grad()
    def update(self, student: Segmenter, step: int) -> None:
        """Move the average towards the student, which has completed `step` steps; step 0 copies it.

        An average taken after step i is the one taken before step i + 1, with the factor of step i.
        """
        alpha = min(1 - 1 / max(1, step + 1 - self._behind), self.decay)
        mine: list[Tensor] = list(self.segmenter.parameters())
        theirs: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - alpha)

    @torch.no_grad()
    def forward(
        self, images: Tensor, valid: Tensor, inside: Tensor | None = None, masks: Tensor | None = None
    ) -> Pseudo:
        """Label target images (B, C, H, W) in [0, 1]; the trust is 0 where not `valid`; see `pseudo_label`.

        `masks` (B, H, W) are ids of regions from files, where there are such.
        """
        logits = self.logits(images)
        if self.flip:  # logarithms of probabilities are logits of them
            mirrored = self.logits(images.flip(-1)).flip(-1)
            logits = ((logits.softmax(dim=1) + mirrored.softmax(dim=1)) / 2).log()
        pseudo = pseudo_label(logits, valid, self.threshold, inside)
        return pseudo if self.regions is None else self.regions(images, logits, pseudo, valid, inside, masks)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, K, H, W) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.segmenter(images)
        return logits


def pseudo_label(logits: Tensor, valid: Tensor, threshold: float | None, inside: Tensor | None = None) -> Pseudo:
    """Label by the largest logit; the trust is one confidence share for the whole batch (DACS), 0 where not `valid`.

    The share is taken over all pixels but padding, before `valid` cuts rows, and over the batches of all processes.

    Logits (B, K, H, W), valid (B, H, W) bool; without a threshold, a confidence in [0, 1], the trust is 1. `inside`
    (B, H, W) bool is what is not padding; everywhere when absent.
    """
    confidence, labels = logits.softmax(dim=1).max(dim=1)
    trust = valid.to(confidence.dtype)
    if threshold is not None:
        confident = (confidence >= threshold).to(confidence.dtype)
        share = confident.mean() if inside is None else (confident * inside).sum() / inside.sum().clamp(min=1)
        trust = trust * distributed.all_mean(share)
    return Pseudo(labels, trust)


class NoTeacher(nn.Module):
    """Stand for the teacher in methods without pseudo-labels: every target pixel is ignored."""

    segmenter: Segmenter | None = None

    def update(self, student: Segmenter, step: int) -> None:
        """Do nothing: there is nothing to average."""

    def forward(self, images: Tensor, valid: Tensor, inside: Tensor | None = None) -> Pseudo:
        ignored = torch.full(valid.shape, IGNORE, device=valid.device)
        return Pseudo(ignored, torch.zeros(valid.shape, device=valid.device))
