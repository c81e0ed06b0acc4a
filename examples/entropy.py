"""Entropy minimisation (MinEnt; AdvEnt, section 3.1): a term of your own on the raw target images.

python examples/entropy.py SETTINGS.yaml runs/entropy
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from torch import Tensor

from ssrseg import Extensions, Settings, resolve, train
from ssrseg.adapt import Target, Term, View
from ssrseg.config import read_yaml
from ssrseg.models import Segmenter


class Entropy(Term):
    """Minimise the mean entropy of the predictions, divided by log K: in [0, 1]."""

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        log_p = student.decode(features, view.images.shape[-2:], view.window).log_softmax(dim=1)  # (B, K, H, W)
        entropy: Tensor = -(log_p.exp() * log_p).sum(dim=1).mean()
        return entropy / math.log(log_p.shape[1])


def extensions(settings: Settings) -> Extensions:
    """The target view, which no published method but Undoing makes, and the loss on it."""
    return Extensions(terms={"entropy": Entropy({"target"}, weight=0.001)}, makers=[Target()])


if __name__ == "__main__":
    settings = resolve(read_yaml(Path(sys.argv[1])))
    train(settings, Path(sys.argv[2]), extensions=extensions(settings))
