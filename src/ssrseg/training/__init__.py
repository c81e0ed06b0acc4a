"""The loop and what surrounds it."""

from ssrseg.training.loop import Moment, Observer, fit
from ssrseg.training.run import Run, train

__all__ = ["Moment", "Observer", "Run", "fit", "train"]
