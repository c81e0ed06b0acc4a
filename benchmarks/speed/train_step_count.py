"""What a training step computes and keeps, ours and the references' way, from steps on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from reference_step import ReferenceStep
from torch._subclasses.fake_tensor import FakeTensorMode

from ssrseg.config import Settings
from ssrseg.planning.counters import LiveBytes
from ssrseg.planning.fake_step import HEAP, fake_step


def count(known: Mapping[str, Any], wanted: Mapping[str, Settings], variant: str) -> dict[str, Any]:
    """Arithmetic by part and the peak of live memory of every setting, beside what is `known` of other variants."""
    found = {}
    for name, settings in wanted.items():
        needs = fake_step(settings, "cpu")
        live = {part: size for part, size in needs.memory.items() if part != HEAP}
        row: dict[str, Any] = dict(known.get(name, {}))
        if variant == "before":
            row["before_memory"] = sum(live.values())
        else:
            with as_written():
                row |= {"flops": fake_step(settings, "cpu").flops, "needed": needs.flops, "memory": live}
        if "reference_memory" not in row:
            row["reference_memory"] = reference_peak(settings)
        found[name] = row
        print(name, sum(map(sum, needs.flops.values())) / 1e9, sum(live.values()), row["reference_memory"], flush=True)
    return found


@contextmanager
def as_written() -> Iterator[None]:
    """Layers do what their definition says: no convolution in another order, no window that is filled up later."""
    from ssrseg import cpu  # `before` has none of them
    from ssrseg.adapt import foundation

    as_is = lambda network, **_: network  # noqa: E731
    with patch.object(cpu, "optimize", as_is), patch.object(foundation, "without_padding", as_is):
        yield


def reference_peak(settings: Settings) -> int:
    """Bytes of live tensors when most is alive, in the second step of the references' way: four images in SAM."""
    regularizer, (height, width), batch = settings.method.regularizer, settings.loader.crop, settings.loader.batch
    with torch.device("meta"):
        step = ReferenceStep(ssr=regularizer is not None, masked=settings.method.masked is not None)
    modules = [step.student, step.teacher, step.imagenet, step.embed, step.attend, *([step.sam] if step.sam else [])]
    with FakeTensorMode(), torch.device("cpu"):
        for module in modules:
            module._apply(lambda tensor: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype))
        images, labels = torch.empty(batch, 3, height, width), torch.empty(batch, height, width, dtype=torch.int64)
        view = images, labels, torch.empty(batch, height, width)
        weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
        kept = [[torch.empty_like(weight) for weight in weights] for _ in range(3)]
        for weight, gradient in zip(weights, kept[0], strict=True):
            weight.grad = gradient  # the references' are set to zero, not dropped
        with LiveBytes("cpu") as live:
            owned = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
            live.label(owned, "weights")
            live.label(kept[0], "gradients")
            live.label([*kept[1], *kept[2]], "optimiser states")
            live.label(view, "batch")
            live.forget_peak()
            step.learn((images, labels, None), view, view)
    return sum(live.peak.values())
