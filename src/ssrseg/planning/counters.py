"""Counters of a step that runs on tensors without data: bytes of live tensors and floating point operations, by part.

torch's `MemTracker` refuses frozen weights and losses whose gradients are taken early; `FlopCounterMode` counts all
operations, but gives the backward pass of such losses to the wrong modules.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ssrseg.adapt.foundation import Frozen
from ssrseg.adapt.learner import gradients

WORKING = "working memory"
SAVED = "saved for backward"
SCRATCH = "scratch of convolutions"
CONVOLUTIONS = {torch.ops.aten.convolution.default: -1, torch.ops.aten.convolution_backward.default: -2}
"""Where their arguments have the number of groups."""
REST = "terms"
"""The part of all that happens outside the networks."""


class LiveBytes(TorchDispatchMode):
    """Follows every storage from the operation that makes it to the moment when nothing refers to it.

    Python and autograd let go of a tensor without data when they would let go of a real one, so the course of the
    memory is that of the real step. What kernels allocate inside is estimated: a convolution reorders its inputs and
    outputs for the hardware (oneDNN's blocks, cuDNN's channels-last), which takes as much memory again; `cuda` has
    kernels of its own for depthwise ones, which reorder nothing.
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
        self._most = 0
        self._compare()

    def _compare(self, scratch: int = 0) -> None:
        if self._now + scratch > self._most:
            self._most = self._now + scratch
            self.peak = self.parts + Counter({SCRATCH: scratch})

    def pack(self, tensor: Tensor) -> Tensor:
        """Count what autograd saves as such where it was working memory; a hook."""
        storage = tensor.untyped_storage()
        if id(storage) in self._live and self._live[id(storage)][2] == WORKING:
            self._follow(storage, SAVED)
        return tensor.detach() if tensor.requires_grad else tensor  # else it would hold its own graph alive

    def _follow(self, storage: torch.UntypedStorage, part: str) -> None:
        key = id(storage)

        def drop(_: object) -> None:
            _, size, part = self._live.pop(key)
            self.parts[part] -= size
            self._now -= size

        if key in self._live:
            reference, size, before = self._live[key]
            self.parts[before] -= size
        else:
            reference, size = weakref.ref(storage, drop), storage.nbytes()
            self._now += size
        self._live[key] = reference, size, part
        self.parts[part] += size
        self._compare()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and follow what is new in its output."""
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._live:
                self._follow(leaf.untyped_storage(), WORKING)
        if func in CONVOLUTIONS and (args[CONVOLUTIONS[func]] == 1 or self._depthwise_reorders):
            self._compare(sum(leaf.nbytes for leaf in tree_leaves((args, output)) if isinstance(leaf, Tensor)))
        return output


class Flops:
    """Counts matrix products, convolutions and attention; a multiplication and an addition are two.

    Every operation belongs to the part that is running; in the backward pass, to the part whose forward made the node.
    No part contains another. Encoders are frozen, and called as functions.
    """

    def __init__(self, parts: Mapping[str, nn.Module], encoders: Mapping[str, Frozen]) -> None:
        self.forwards: Counter[str] = Counter()
        self.backwards: Counter[str] = Counter()
        self._part, self._counting, self._total = REST, self.forwards, 0
        self._owned: set[Node] = set()
        self._before: list[str] = []
        self._mode: Any = FlopCounterMode(display=False, custom_mapping=CORRECTED)
        for name, part in parts.items():
            part.register_forward_pre_hook(partial(self._begin, name))
            part.register_forward_hook(partial(self._end, name))
        for name, encoder in encoders.items():
            encoder.features = partial(self._counted, name, encoder.features)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what happens inside."""
        with self._mode:
            yield
            self._enter(REST)

    def run_backward(self, loss: Tensor) -> None:
        """Run the loss's backward pass, counted."""
        with self._in_backward(loss):
            loss.backward()
        self._owned.clear()

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Compute those of `ssrseg.adapt.learner.gradients`."""
        with self._in_backward(loss):
            return gradients(loss, inputs)

    def by_part(self) -> dict[str, tuple[int, int]]:
        """(forward, backward) of every part that has any."""
        found = {name: (self.forwards[name], self.backwards[name]) for name in {**self.forwards, **self.backwards}}
        return {name: both for name, both in found.items() if any(both)}

    @contextmanager
    def _in_backward(self, loss: Tensor) -> Iterator[None]:
        self._own(REST, [loss], ())
        self._enter(REST, self.backwards)
        yield
        self._enter(REST, self.forwards)

    def _enter(self, part: str, counting: Counter[str] | None = None) -> None:
        total: int = self._mode.get_total_flops()
        self._counting[self._part] += total - self._total
        self._part, self._total = part, total
        self._counting = self._counting if counting is None else counting

    def _counted(self, name: str, run: Callable[..., Any], *args: Any) -> Any:
        self._begin(name)
        output = run(*args)
        self._end(name, None, args, output)
        return output

    def _begin(self, name: str, *_: Any) -> None:
        self._before.append(self._part)
        self._enter(name)

    def _end(self, name: str, _: Any, args: Any, output: Any) -> None:
        """Let the nodes between inputs and outputs that have no owner yet enter `name` when they run backward."""
        self._enter(self._before.pop())
        self._own(name, tree_leaves(output), tree_leaves(args))

    def _own(self, name: str, outputs: Iterable[Any], inputs: Iterable[Any]) -> None:
        passed = {leaf.grad_fn for leaf in inputs if isinstance(leaf, Tensor)}
        waiting = [leaf.grad_fn for leaf in outputs if isinstance(leaf, Tensor)]
        while waiting:
            node = waiting.pop()
            if node is None or node in passed:
                continue
            passed.add(node)
            if node not in self._owned:
                self._owned.add(node)
                node.register_prehook(lambda *_: self._enter(name))
            waiting += [following for following, _ in node.next_functions]


def convolution_backward(
    grad: Sequence[int], images: Sequence[int], weight: Sequence[int], *args: Any, **_: Any
) -> int:
    """Count each gradient as the forward pass; torch 2.14 counts a depthwise weight's as if it were dense."""
    transposed, wanted = args[4], args[7]
    count, _channels, *places = images if transposed else grad
    flops: int = 2 * count * prod(places) * prod(weight) * sum(wanted[:2])
    return flops


CORRECTED: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution_backward: convolution_backward,
    # torch counts no attention of the CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}
