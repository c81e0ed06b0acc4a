"""Floating point operations of a step, by part, forward and backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ssrseg.adapt.foundation import Frozen
from ssrseg.adapt.learner import gradients

REST = "terms"
"""What happens outside the networks belongs to the terms."""


class Flops:
    """Counts matrix products, convolutions and attention; a multiplication and an addition are two.

    Every operation belongs to the part that is running; in the backward pass, to the part whose forward made the node.

    Args:
        parts: networks by name, none of which contains another.
        encoders: frozen encoders by name; they are called as functions.
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
            encoder.features = self._counted(name, encoder.features)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what happens inside."""
        with self._mode:
            yield
            self._enter(REST)

    def run_backward(self, loss: Tensor) -> None:
        """The loss's backward pass."""
        with self._going_back(loss):
            loss.backward()
        self._owned.clear()

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Compute those of `ssrseg.adapt.learner.gradients`."""
        with self._going_back(loss):
            return gradients(loss, inputs)

    def by_part(self) -> dict[str, tuple[int, int]]:
        """(forward, backward) of every part that has any."""
        names = (*self.forwards, *(name for name in self.backwards if name not in self.forwards))
        found = {name: (self.forwards[name], self.backwards[name]) for name in names}
        return {name: both for name, both in found.items() if any(both)}

    @contextmanager
    def _going_back(self, loss: Tensor) -> Iterator[None]:
        self._own(REST, [loss], ())
        self._enter(REST, self.backwards)
        yield
        self._enter(REST, self.forwards)

    def _enter(self, part: str, counting: Counter[str] | None = None) -> None:
        total: int = self._mode.get_total_flops()
        self._counting[self._part] += total - self._total
        self._part, self._total = part, total
        self._counting = self._counting if counting is None else counting

    def _counted(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self._begin(name)
            output = run(*args)
            self._end(name, None, args, output)
            return output

        return counted

    def _begin(self, name: str, *_: Any) -> None:
        self._before.append(self._part)
        self._enter(name)

    def _end(self, name: str, _: Any, args: Any, output: Any) -> None:
        self._enter(self._before.pop())
        self._own(name, tree_leaves(output), tree_leaves(args))

    def _own(self, name: str, outputs: Iterable[Any], inputs: Iterable[Any]) -> None:
        """The nodes between inputs and outputs that nobody owns yet say, when they run, that `name` is running."""
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
    grad: Sequence[int], images: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """Each gradient costs as much as the forward pass; torch 2.14 counts a depthwise weight's as if it were dense."""
    transposed, wanted = args[4], args[7]
    count, _, *places = images if transposed else grad
    flops: int = 2 * count * prod(places) * prod(weight) * sum(wanted[:2])
    return flops


def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Attention on the CPU, which torch does not count."""
    count: int = sdpa_flop_count(query, key, value)
    return count


def attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Its backward pass."""
    count: int = sdpa_backward_flop_count(grad, query, key, value)
    return count


CORRECTED = {
    torch.ops.aten.convolution_backward: convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}
