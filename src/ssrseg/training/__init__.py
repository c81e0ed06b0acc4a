"""The loop and what surrounds it."""

from ssrseg.training.distributed import Interrupted
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.seeds import train_seeds
from ssrseg.training.setup import Extensions
from ssrseg.training.train import Run, finish, train

__all__ = [
    "Extensions",
    "Interrupted",
    "Observer",
    "Run",
    "StepResult",
    "finish",
    "train",
    "train_seeds",
]
