"""A teacher of your own: pseudo-labels from the mean over an image and its mirror image.

python examples/teacher.py SETTINGS.yaml runs/teacher
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from ssrseg import Extensions, Settings, resolve, train
from ssrseg.adapt import Teacher
from ssrseg.config import read_yaml


class MirrorTeacher(Teacher):
    """Average the probabilities of both; the moving average, the trust and the options are the package's."""

    def logits(self, images: Tensor) -> Tensor:
        mirrored = super().logits(images.flip(-1)).flip(-1)
        return ((super().logits(images).softmax(dim=1) + mirrored.softmax(dim=1)) / 2).log()


def extensions(settings: Settings) -> Extensions:
    """The class: it is built with the student and the options of `method.teacher`."""
    return Extensions(teacher=MirrorTeacher)


if __name__ == "__main__":
    settings = resolve(read_yaml(Path(sys.argv[1])))
    train(settings, Path(sys.argv[2]), extensions=extensions(settings))
