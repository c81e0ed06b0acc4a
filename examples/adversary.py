"""An adversary of the output space: predictions of two domains that a discriminator cannot tell apart.

AdaptSegNet compares class probabilities, AdvEnt their self-information (`entropy=True`).

    python examples/adversary.py SETTINGS.yaml runs/adversary
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg import Extensions, Settings, resolve, train
from ssrseg.adapt import Target, Term, View, frozen_call
from ssrseg.config import read_yaml
from ssrseg.data import resolve_space
from ssrseg.models import Segmenter


class OutputAdversary(Term):
    """Align the predictions of source and target.

    A submodule called `discriminator` has an optimiser of its own: Adam with a rate of 1e-4.

    Args:
        num_classes: K.
        entropy: compare -p log2 p instead of p.
        weight: factor of the student's loss, to pass as source; the discriminator's has 1.
    """

    def __init__(self, num_classes: int, *, entropy: bool = False, weight: float = 0.001) -> None:
        super().__init__({"source", "target"})
        self.entropy, self.student_weight = entropy, weight
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((num_classes, 64, 128, 256, 512)):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        self.discriminator = nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 2, 1))

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        outputs = student.decode(features, view.images.shape[-2:], view.window).softmax(dim=1)
        if self.entropy:
            outputs = -outputs * torch.log2(outputs + 1e-30)
        is_target = float(view.name == "target")
        seen = self.discriminator(outputs.detach())  # trains the discriminator alone
        loss = 0.5 * F.binary_cross_entropy_with_logits(seen, torch.full_like(seen, is_target))
        if is_target:
            passing = frozen_call(self.discriminator, outputs)  # trains the student alone
            loss += self.student_weight * F.binary_cross_entropy_with_logits(passing, torch.zeros_like(passing))
        return loss


def extensions(settings: Settings) -> Extensions:
    """AdvEnt, beside what the settings compose; crops of at least 64 pixels."""
    term = OutputAdversary(resolve_space(settings.classes, settings.source).num_classes, entropy=True)
    return Extensions(terms={"adversary": term}, makers=[Target()])


if __name__ == "__main__":
    settings = resolve(read_yaml(Path(sys.argv[1])))
    train(settings, Path(sys.argv[2]), extensions=extensions(settings))
