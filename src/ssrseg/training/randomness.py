"""Seeds, states of the random generators, and deterministic operations."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all its devices), for the user's terms and views."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


def generator_states(views: Generator, device: torch.device) -> dict[str, Tensor]:
    """Read the states of Python's, NumPy's and torch's global generators, the device's, and the view makers'.

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
    """Restore the states of `generator_states`."""
    gauss = float(states["python_gauss"])
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(states["numpy_gauss"])))
    torch.set_rng_state(states["torch"])
    views.set_state(states["views"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def deterministic_operations(wanted: bool) -> Iterator[None]:
    """Use deterministic operations only, inside the `with` block; torch raises `RuntimeError` where it has none.

    cuBLAS reads its setting when it is first used in the process: enter before anything runs on a GPU.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
