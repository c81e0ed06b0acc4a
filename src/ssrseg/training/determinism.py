"""The same bits every time, where torch allows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """While it lasts, torch uses deterministic operations only, and raises `RuntimeError` where it has none.

    cuBLAS reads its setting when it is first used in the process: enter before anything runs on a GPU.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _set(True, True, False)
    try:
        yield
    finally:
        _set(*before)


def _set(algorithms: bool, deterministic: bool, benchmark: bool) -> None:
    torch.use_deterministic_algorithms(algorithms)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
