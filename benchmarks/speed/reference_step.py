"""MIC + SSR's step the references' way, restated plainly: what `train_step.py` compares with.

The networks are the package's, whose parity with the authors' is tested; what is done with them is as in the authors'
code: attention writes its scores and their softmax to memory, SAM sees 1024x1024 in fp32 and adds a bias as large as
its scores, images come normalised and are un-normalised, augmented one by one and normalised again, the feature
distance has a backward of its own through the source's graph, the teacher's average and the optimiser go weight by
weight. It is slow on purpose; nothing else uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.adapt.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
)
from ssrseg.adapt.regularizer import CrossAttention
from ssrseg.adapt.terms import downscale_labels, feature_distance
from ssrseg.models import build_segmenter

CLASSES, IGNORE, THINGS = 19, 255, (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
Timed = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def untimed(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Nobody looks at the clock."""
    return run


class NaiveCrossAttention(CrossAttention):
    """Scores and softmax as tensors of their own."""

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries (B, N, C) and context (B, M, C) -> (B, N, C)."""
        parts = (self.q(queries), *self.kv(context).chunk(2, dim=-1))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        output: Tensor = self.proj(attended)
        return output


class ReferenceStep:
    """One training step.

    Args:
        ssr: with the regularisation branch.
        masked: with MIC's masked view.
        sam_images: images that go through SAM at once; the authors' four need more memory than small machines have.
        timed: wraps every part in a clock.
    """

    def __init__(self, *, ssr: bool = True, masked: bool = True, sam_images: int = 4, timed: Timed = untimed) -> None:
        self.student = naive(build_segmenter("mit_b5", "daformer", CLASSES))
        self.teacher, self.imagenet = deepcopy(self.student), deepcopy(self.student.backbone).eval()
        self.sam_images, self.masked = sam_images, masked
        self.sam = naive(timm.create_model("samvit_base_patch16.sa1b")).eval() if ssr else None
        channels = self.student.backbone.channels
        self.embed = nn.ModuleList(nn.Linear(256, width) for width in channels) if ssr else nn.ModuleList()
        self.attend = nn.ModuleList(NaiveCrossAttention(width, width // 64) for width in channels)
        for module in (self.teacher, self.imagenet, self.sam):
            _ = module and module.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self._groups(), fused=False, foreach=False)
        self.normalise = lambda images: (images - self.student.mean) / self.student.std
        self.restore = lambda images: images * self.student.std + self.student.mean
        self.average = timed("teacher's average", self._average)
        self.label = timed("teacher's labels", self._label)
        self.views = timed("views", self._views)
        self.encode = timed("encode", self.student.backbone)
        self.decode = timed("decode", self._decode)
        self.foundation = timed("foundation encoder", self._foundation)
        self.enhance = timed("cross-attention", self._enhance)
        self.distance = timed("ImageNet encoder", self._distance)
        self.backward = timed("backward", lambda loss, **options: loss.backward(**options))
        self.update = timed("optimiser", self.optimizer.step)

    def _groups(self) -> list[dict[str, Any]]:
        """The references' rates and decays, a group per weight."""
        groups = []
        for name, weight in self.student.named_parameters(prefix="student"):
            rate = 10.0 if name.startswith("student.head.") else 1.0
            decay = 0.0 if name.startswith("student.backbone.") and "norm" in name else 1.0
            groups.append({"params": [weight], "lr": 6e-5 * rate, "weight_decay": 0.01 * decay})
        own = [*self.embed.parameters(), *(self.attend.parameters() if self.sam else ())]
        return groups + [{"params": [weight], "lr": 6e-5} for weight in own]

    def __call__(self, source: Tensor, labels: Tensor, target: Tensor, step: int) -> None:
        """Source and target (B, 3, H, W) in [0, 1], labels (B, H, W)."""
        self.average(step)
        self.optimizer.zero_grad(set_to_none=False)
        # The loader normalises each sample.
        source, target = (
            torch.cat([self.normalise(image) for image in images.split(1)]) for images in (source, target)
        )
        pseudo, trust = self.label(target)
        mixed, masked = self.views(source, labels, target, pseudo, trust)
        self.learn((source, labels, None), mixed, masked)
        self.update()

    def learn(self, source: Any, mixed: Any, masked: Any) -> None:
        """The gradients of all losses: a graph for each view, and two backwards through the source's."""
        seen = [None, None]
        if self.sam is not None:
            seen = self.foundation(torch.cat([source[0], mixed[0]])).chunk(2)
        features = self.encode(source[0])
        self.backward(self._loss(features, seen[0], *source[1:]), retain_graph=True)
        self.backward(0.005 * self.distance(features, source[0], source[1]))
        del features
        self.backward(self._loss(self.encode(mixed[0]), seen[1], *mixed[1:]))
        if self.masked:
            self.backward(self._loss(self.encode(masked[0]), None, *masked[1:]))

    def _loss(self, features: list[Tensor], seen: Tensor | None, labels: Tensor, trust: Tensor | None) -> Tensor:
        loss = cross_entropy(self.decode(features, labels.shape[-2:]), labels, trust)
        if seen is not None:
            enhanced = self.enhance(features, seen)
            loss = loss + cross_entropy(self.decode(enhanced, labels.shape[-2:]), labels, trust)
        return loss

    def _decode(self, features: list[Tensor], size: Any) -> Tensor:
        return F.interpolate(self.student.head(features), tuple(size), mode="bilinear", align_corners=False)

    def _enhance(self, features: list[Tensor], seen: Tensor) -> list[Tensor]:
        tokens = seen.flatten(2).transpose(1, 2)
        enhanced = []
        for level, embed, attend in zip(features, self.embed, self.attend, strict=True):
            attended = attend(level.flatten(2).transpose(1, 2), embed(tokens))
            enhanced.append(level + attended.transpose(1, 2).reshape(level.shape))
        return enhanced

    @torch.no_grad()
    def _foundation(self, images: Tensor) -> Tensor:
        assert self.sam is not None
        large = F.interpolate(images, (1024, 1024), mode="bilinear", align_corners=False)
        return torch.cat([self.sam.forward_features(some) for some in large.split(self.sam_images)])

    def _distance(self, features: list[Tensor], images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self.imagenet(images)[-1]
        cells = downscale_labels(labels, labels.shape[-1] // reference.shape[-1], CLASSES, 0.75)
        return feature_distance(features[-1], reference, torch.isin(cells, torch.tensor(THINGS)))

    @torch.no_grad()
    def _average(self, step: int) -> None:
        alpha = min(1 - 1 / (step + 1), 0.999)
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.data[:] = alpha * mine[:].data[:] + (1 - alpha) * theirs[:].data[:]

    @torch.no_grad()
    def _label(self, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.interpolate(self.teacher.head(self.teacher.backbone(target)), target.shape[-2:], mode="bilinear")
        confidence, pseudo = logits.softmax(dim=1).max(dim=1)
        return pseudo, torch.full(pseudo.shape, float((confidence >= 0.968).float().mean()))

    def _views(self, source: Tensor, labels: Tensor, target: Tensor, pseudo: Tensor, trust: Tensor) -> tuple[Any, Any]:
        """The mixed view and the masked one, image by image."""
        mixed = []
        for i in range(len(source)):
            classes = labels[i].unique()
            chosen = classes[torch.randperm(len(classes))[: (len(classes) + 1) // 2]]
            pasted = (labels[i][None] == chosen[:, None, None]).any(dim=0)
            image = self._augmented(torch.where(pasted, source[i], target[i])[None])
            parts = torch.where(pasted, labels[i], pseudo[i]), torch.where(pasted, 1.0, trust[i])
            mixed.append((image[0], *parts))
        images, their_labels, their_trust = (torch.stack(parts) for parts in zip(*mixed, strict=True))
        blocks = (torch.rand(len(target), 1, target.shape[-2] // 32, target.shape[-1] // 32) > 0.7).float()
        hidden = torch.cat([self._augmented(image) for image in target.split(1)]) * F.interpolate(
            blocks, target.shape[-2:], mode="nearest"
        )
        return (images, their_labels, their_trust), (hidden, pseudo, trust)

    def _augmented(self, image: Tensor) -> Tensor:
        """Jitter in four passes of their own, and blur; in [0, 1], and normalised again."""
        image = self.restore(image).clamp(0, 1)
        adjustments = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for i in torch.randperm(4).tolist():
            image = adjustments[i](image, (i < 3) + 0.4 * float(torch.rand(())) - 0.2)
        return self.normalise(gaussian_blur(image, [0.15 + float(torch.rand(()))]))


def naive(module: Any) -> Any:
    """The module with attention that writes its scores to memory; changed in place."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return module


def cross_entropy(logits: Tensor, labels: Tensor, trust: Tensor | None) -> Tensor:
    """Mean over all pixels."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return (losses if trust is None else losses * trust).mean()
