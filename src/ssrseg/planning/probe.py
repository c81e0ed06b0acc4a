"""A few real steps on noise, timed."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ssrseg.config import Settings
from ssrseg.data import RawBatch, resolve_space
from ssrseg.runs.folder import RunFolder
from ssrseg.training.loop import Observer, StepResult, fit
from ssrseg.training.setup import build_context

STEPS = 3
"""The first, in which memory is laid out and networks are compiled, is not counted."""


class Clock(Observer):
    """Times at which steps were over, in seconds."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times: list[float] = []

    def stepped(self, result: StepResult) -> None:
        """Wait for the device, then look at the clock."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter())


def probe(settings: Settings) -> float:
    """Measure the steps per second of one process on this machine, without loading data or evaluating.

    Raises:
        UserError: the settings do not allow the run.
    """
    alone = settings.model_copy(update={"train": settings.train.model_copy(update={"devices": 1, "steps": STEPS})})
    context = build_context(without_weights(alone), RunFolder(Path("plan")))  # which stays unwritten
    clock = Clock(context.fabric.device)
    batches = [noise(settings, seed) for seed in range(STEPS)]
    fit(context.fabric, context.method, context.optimizer, batches, alone, observers=[clock])
    return (STEPS - 1) / (clock.times[-1] - clock.times[0])


def without_weights(settings: Settings) -> Settings:
    """Ask for the same networks with random weights: they cost the same, and no file is needed."""
    model = settings.model.model_copy(update={"pretrained": "none"})
    method = settings.method
    if method.regularizer is not None:
        foundation = method.regularizer.foundation.model_copy(update={"weights": "none"})
        regularizer = method.regularizer.model_copy(update={"foundation": foundation})
        method = method.model_copy(update={"regularizer": regularizer})
    return settings.model_copy(update={"model": model, "method": method})


def noise(settings: Settings, seed: int = 0) -> RawBatch:
    """Draw a batch of random pixels, and labels in blocks."""
    (height, width), count = settings.loader.crop, settings.loader.batch
    targets = count if settings.target is not None else 0
    draws = torch.Generator().manual_seed(seed)
    classes = resolve_space(settings.classes, settings.source).num_classes
    images = torch.randint(256, (count + targets, 3, height, width), generator=draws, dtype=torch.uint8)
    blocks = torch.randint(classes, (count, -(-height // 32), -(-width // 32)), generator=draws, dtype=torch.uint8)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width].contiguous()
    valid = torch.ones(targets, height, width, dtype=torch.bool)
    names = tuple(f"noise {i}" for i in range(count + targets))
    return RawBatch(images[:count], labels, images[count:], valid, names)
