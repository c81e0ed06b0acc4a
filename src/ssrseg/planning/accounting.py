"""The bytes that live tensors hold, by part, while a step runs on tensors without data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WORKING = "working memory"
SAVED = "saved for backward"
SCRATCH = "scratch of convolutions"
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class LiveBytes(TorchDispatchMode):
    """Follows every storage from the operation that makes it to the moment when nothing refers to it.

    Python and autograd let go of a tensor without data when they would let go of a real one, so the course of the
    memory is that of the real step. What kernels allocate inside is estimated: a convolution reorders its inputs and
    outputs for the hardware (oneDNN's blocks, cuDNN's channels-last), which takes as much memory again.

    Args:
        device: `cuda` has kernels of its own for depthwise convolutions, which reorder nothing.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self.parts: Counter[str] = Counter()
        """Bytes that live now, by part."""
        self.peak: Counter[str] = Counter()
        """The parts when most was alive."""
        self._now = self._most = 0
        self._depthwise_reorders = device != "cuda"

    def label(self, tensors: Iterable[Tensor | None], part: str) -> None:
        """Count the storages of these tensors to `part`, from now on."""
        for tensor in tensors:
            if tensor is not None:
                self._follow(tensor.untyped_storage(), part)

    def forget_peak(self) -> None:
        """Look for the peak from here on."""
        self._most, self.peak = 0, Counter()
        self._compare()

    def _compare(self, scratch: int = 0) -> None:
        if self._now + scratch > self._most:
            self._most = self._now + scratch
            self.peak = self.parts + Counter({SCRATCH: scratch})

    def pack(self, tensor: Tensor) -> Tensor:
        """A hook for what autograd saves: counted as such where it was working memory."""
        storage = tensor.untyped_storage()
        if id(storage) in self._live and self._live[id(storage)][2] == WORKING:
            self._follow(storage, SAVED)
        return tensor.detach() if tensor.requires_grad else tensor  # else it would hold its own graph alive

    def _follow(self, storage: torch.UntypedStorage, part: str) -> None:
        key = id(storage)
        if key in self._live:
            reference, size, before = self._live[key]
            self.parts[before] -= size
        else:
            reference, size = weakref.ref(storage, lambda _: self._drop(key)), storage.nbytes()
            self._now += size
        self._live[key] = reference, size, part
        self.parts[part] += size
        self._compare()

    def _drop(self, key: int) -> None:
        _, size, part = self._live.pop(key)
        self.parts[part] -= size
        self._now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and follow what is new in its output."""
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._live:
                self._follow(leaf.untyped_storage(), WORKING)
        if func in CONVOLUTIONS and (args[-1 if func is CONVOLUTIONS[0] else -2] == 1 or self._depthwise_reorders):
            self._compare(sum(leaf.nbytes for leaf in tree_leaves((args, output)) if isinstance(leaf, Tensor)))
        return output
