"""The loop and what surrounds it."""

from ssrseg.training.loop import Moment, Observer, fit
from ssrseg.training.run import Run, train
from ssrseg.training.stopping import Interrupted

__all__ = ["Interrupted", "Moment", "Observer", "Run", "fit", "train"]
