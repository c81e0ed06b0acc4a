"""The loop and what surrounds it."""

from ssrseg.training.loop import Moment, Observer, fit
from ssrseg.training.run import Run, train
from ssrseg.training.seeds import Group, train_seeds
from ssrseg.training.stopping import Interrupted

__all__ = ["Group", "Interrupted", "Moment", "Observer", "Run", "fit", "train", "train_seeds"]
