"""The loop and what surrounds it."""

from ssrseg.train.loop import Moment, Observer, fit
from ssrseg.train.run import Run, train

__all__ = ["Moment", "Observer", "Run", "fit", "train"]
