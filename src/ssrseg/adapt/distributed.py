"""Reductions over the processes of a run, and each one's rows of what is drawn for the whole batch.

n processes with batches of b do what one process with a batch of n * b does: what a method computes over the batch is
reduced over the processes, and draws are made for the whole batch, from generators that are alike in every process.
Nothing here waits for the device. In one process the reductions return their argument.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def rows(batch: int) -> slice:
    """Return where this process's `batch` rows lie among the `world() * batch` of the whole batch."""
    return slice(rank() * batch, (rank() + 1) * batch)


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, without gradient; every process must call this, in the same order."""
    if world() == 1:
        return tensor
    summed = tensor.detach().clone()
    dist.all_reduce(summed)
    return summed


def all_mean(tensor: Tensor) -> Tensor:
    """Average over the processes, without gradient."""
    return all_sum(tensor) / world()


def all_any(mask: Tensor) -> Tensor:
    """Return where a bool mask is true in any process."""
    return mask if world() == 1 else all_sum(mask.int()) > 0
