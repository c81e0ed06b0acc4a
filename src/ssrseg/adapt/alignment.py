"""Adversarial terms: features or outputs of two domains that a discriminator cannot tell apart.

Each term owns its discriminator. The student is asked to fool it: that gradient reaches the student alone, because the
discriminator is applied with its weights held fixed. The discriminator is asked to tell the domains apart: that
gradient reaches it alone, because it sees detached features. Both are of the state before the step, so one backward
does what the references do in two, and each side has an optimiser of its own (`discriminator` in a parameter's name).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ssrseg.adapt.batch import View
from ssrseg.adapt.terms import Term
from ssrseg.cpu.interpolate import scaled
from ssrseg.models.segmenter import Segmenter


class Discriminator(nn.Module):
    """Which domain and class a location is: (B, C, h, w) -> (B, 2K, h, w); source classes first (FADA)."""

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
        """Logits of the 2K answers."""
        trunk = self.trunk(features)
        return torch.cat([self.source(trunk), self.target(trunk)], dim=1)


class Alignment(Term):
    """Class-level adversarial alignment of the deepest features (FADA; stage 2 of Undoing).

    Args:
        channels: C of the deepest features.
        num_classes: K.
        views: the first is the source, the second the target.
        weight: of fooling the discriminator; telling the domains apart has weight 1.
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
        self.source, self.target = views
        self.fooling, self.temperature, self.clip = weight, temperature, clip
        self.discriminator = Discriminator(channels, num_classes)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """Half the discriminator's loss on either view; on the target also the student's, of passing as source."""
        size, deepest = view.images.shape[-2:], features[-1]
        with torch.no_grad():
            logits = student.decode([level.detach() for level in features], size)
            soft = (logits / self.temperature).softmax(dim=1).clamp(max=self.clip)
        domain = 0 if view.name == self.source else 1
        told = resize(student, self.discriminator(deepest.detach()), size)
        loss = 0.5 * domain_loss(told, soft, domain)
        if domain == 1:
            fooled = resize(student, fixed(self.discriminator, deepest), size)
            loss = loss + self.fooling * domain_loss(fooled, soft, 0)
        return loss


def domain_loss(answers: Tensor, soft: Tensor, domain: int) -> Tensor:
    """H(d, q): mean over all pixels of -sum_k q_k log softmax(d)[domain * K + k].

    Args:
        answers: (B, 2K, H, W) logits; source classes first.
        soft: (B, K, H, W) class probabilities q.
        domain: 0 for source, 1 for target.
    """
    classes = soft.shape[1]
    likely = answers.log_softmax(dim=1)[:, domain * classes : (domain + 1) * classes]
    return -(soft * likely).sum(dim=1).mean()


def fixed(module: nn.Module, inputs: Tensor) -> Tensor:
    """A module applied as it is: gradients reach the inputs, not its weights."""
    held = {name: weight.detach() for name, weight in module.named_parameters()}
    output: Tensor = functional_call(module, held, (inputs,))
    return output


def resize(student: Segmenter, logits: Tensor, size: torch.Size) -> Tensor:
    """To image size, as the student resizes its own."""
    return scaled(logits, size, align_corners=student.align_corners)


class OutputAlignment(Term):
    """Adversarial alignment of the output space: probabilities (AdaptSegNet) or self-information maps (AdvEnt).

    Args:
        num_classes: K.
        entropy: align -p log2 p instead of p.
        views: the first is the source, the second the target.
        weight: of fooling the discriminator.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        entropy: bool = False,
        views: tuple[str, str] = ("source", "target"),
        weight: float = 0.001,
    ) -> None:
        super().__init__(views)
        self.source, self.fooling, self.entropy = views[0], weight, entropy
        widths = (num_classes, 64, 128, 256, 512)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        self.discriminator = nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 2, 1))

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """Half the discriminator's loss on either view; on the target also the student's, of passing as source."""
        outputs = student.decode(features, view.images.shape[-2:]).softmax(dim=1)
        if self.entropy:
            outputs = -outputs * torch.log2(outputs + 1e-30)
        told = self.discriminator(outputs.detach())
        is_target = view.name != self.source
        loss = 0.5 * F.binary_cross_entropy_with_logits(told, torch.full_like(told, float(is_target)))
        if is_target:
            fooled = fixed(self.discriminator, outputs)
            loss = loss + self.fooling * F.binary_cross_entropy_with_logits(fooled, torch.zeros_like(fooled))
        return loss


class Entropy(Term):
    """Mean entropy of the predictions, divided by log K: minimised, the target's decisions sharpen (MinEnt)."""

    def __init__(self, views: Iterable[str] = ("target",), weight: float = 0.001) -> None:
        super().__init__(views, weight)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """In [0, 1]."""
        likely = student.decode(features, view.images.shape[-2:]).log_softmax(dim=1)
        entropy: Tensor = -(likely.exp() * likely).sum(dim=1).mean()
        return entropy / math.log(likely.shape[1])
