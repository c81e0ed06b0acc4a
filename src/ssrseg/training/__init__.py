"""The loop and what surrounds it."""

from ssrseg.training.distributed import Interrupted as Interrupted
from ssrseg.training.loop import Observer as Observer, StepResult as StepResult
from ssrseg.training.seeds import train_seeds as train_seeds
from ssrseg.training.setup import Extensions as Extensions
from ssrseg.training.train import Run as Run, finish as finish, train as train
