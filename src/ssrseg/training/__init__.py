"""The loop and what surrounds it."""

from ssrseg.training.loop import Observer, StepResult, fit
from ssrseg.training.seeds import Group, train_seeds
from ssrseg.training.signals import Interrupted
from ssrseg.training.train import Run, train

__all__ = ["Group", "Interrupted", "Observer", "Run", "StepResult", "fit", "train", "train_seeds"]
