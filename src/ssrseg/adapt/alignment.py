"""Adversarial alignment of the features of two domains, class by class (FADA; stage 2 of Undoing).

The term owns its discriminator. The student's loss is to pass as the other domain: its gradient reaches the student
alone, as the discriminator is applied with its weights held fixed. The discriminator's loss is to classify the domain:
its gradient reaches the discriminator alone, as the features are detached. Both are of the state before the step, so
one backward pass replaces the references' two, and parameters in a `discriminator` have an optimiser of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssrseg.adapt.batch import View
from ssrseg.adapt.terms import Term
from ssrseg.models.segmenter import Segmenter


class Discriminator(nn.Module):
    """Classify the domain and class of every location: (B, C, h, w) -> (B, 2K, h, w), source classes first (FADA)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 256, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(256, 128, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.source = nn.Conv2d(128, num_classes, 3, padding=1)
        self.target = nn.Conv2d(128, num_classes, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        trunk = self.trunk(features)
        return torch.cat([self.source(trunk), self.target(trunk)], dim=1)


class Alignment(Term):
    """Class-level adversarial alignment of the deepest features (FADA; stage 2 of Undoing).

    Args:
        channels: C of the deepest features.
        num_classes: K.
        views: the first is the source, the second the target.
        weight: factor of the student's loss; the discriminator's has 1.
        temperature: divides the logits whose probabilities are the soft classes.
        clip: the largest soft class probability; not normalised afterwards.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        views: tuple[str, str] = ("source", "target"),
        weight: float = 0.001,
        temperature: float = 1.8,
        clip: float = 0.9,
    ) -> None:
        super().__init__(views)
        self.source, self.student_weight, self.temperature, self.clip = views[0], weight, temperature, clip
        self.discriminator = Discriminator(channels, num_classes)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """Return half the discriminator's loss, and on the target the student's, to pass as source."""
        size, deepest = view.images.shape[-2:], features[-1]
        with torch.no_grad():
            logits = student.decode([level.detach() for level in features], size, view.window)
            soft = soft_classes(logits, self.temperature, self.clip)
        domain = 0 if view.name == self.source else 1
        detached = student.resize(self.discriminator(deepest.detach()), size)
        loss = 0.5 * domain_loss(detached, soft, domain, view.inside)
        if domain == 1:
            attached = student.resize(frozen_call(self.discriminator, deepest), size)
            loss = loss + self.student_weight * domain_loss(attached, soft, 0, view.inside)
        return loss


def soft_classes(logits: Tensor, temperature: float, clip: float) -> Tensor:
    """Clip the class probabilities of logits over a temperature, elementwise; they are not normalised again."""
    return (logits / temperature).softmax(dim=1).clamp(max=clip)


def domain_loss(logits: Tensor, soft: Tensor, domain: int, inside: Tensor | None = None) -> Tensor:
    """Return the cross entropy H(d, q): mean over pixels of -sum_k q_k log softmax(d)[domain * K + k].

    The logits d (B, 2K, H, W) have the source's classes first, q (B, K, H, W) is soft; domain 0 is source, 1 target.
    Only pixels `inside` (B, H, W) bool count, if it is given: the border of a padded image would tell its domain.
    """
    classes = soft.shape[1]
    log_probabilities = logits.log_softmax(dim=1)[:, domain * classes : (domain + 1) * classes]
    losses = -(soft * log_probabilities).sum(dim=1)
    return losses.mean() if inside is None else (losses * inside).sum() / inside.sum().clamp(min=1)


def frozen_call(module: nn.Module, inputs: Tensor) -> Tensor:
    """Apply a module so that gradients reach its inputs and not its weights."""
    held = {name: weight.detach() for name, weight in module.named_parameters()}
    output: Tensor = functional_call(module, held, (inputs,))
    return output
