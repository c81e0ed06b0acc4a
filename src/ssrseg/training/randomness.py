"""Every random generator of a process as tensors, and back."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Generator, Tensor


def seed_generators(seed: int) -> None:
    """Start the global generators of Python, NumPy and torch (all its devices), for terms and views of one's own."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


def generator_states(views: Generator, device: torch.device) -> dict[str, Tensor]:
    """The states of Python's, NumPy's and torch's global generators, the device's, and that of the view makers.

    The workers of the loader have none: a sample is a function of the run's seed and its draw number.
    """
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": torch.tensor(words),  # (625,) int64: 624 words and the position
        "python_gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss]),  # (626,) int64
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "views": views.get_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, Tensor], views: Generator, device: torch.device) -> None:
    """Put the states of `generator_states` back."""
    gauss = float(states["python_gauss"])
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(states["numpy_gauss"])))
    torch.set_rng_state(states["torch"])
    views.set_state(states["views"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
