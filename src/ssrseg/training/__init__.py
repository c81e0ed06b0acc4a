"""The loop and what surrounds it."""

from ssrseg.training.loop import Observer, StepResult, fit
from ssrseg.training.seeds import Group, train_seeds
from ssrseg.training.setup import Extensions
from ssrseg.training.signals import Interrupted
from ssrseg.training.train import Run, finish, train

__all__ = [
    "Extensions",
    "Group",
    "Interrupted",
    "Observer",
    "Run",
    "StepResult",
    "finish",
    "fit",
    "train",
    "train_seeds",
]
