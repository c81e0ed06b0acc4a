"""One training step on tensors without data: its operations and its memory, found in seconds and without the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from ssrseg.adapt.batch import Batch, Pseudo, View
from ssrseg.adapt.foundation import build_encoder
from ssrseg.adapt.learner import adapt
from ssrseg.adapt.methods import Method, build_method
from ssrseg.config import Settings
from ssrseg.data import resolve_space
from ssrseg.planning.counters import Flops, LiveBytes
from ssrseg.planning.probe import noise, without_weights
from ssrseg.training.loop import to_batch
from ssrseg.training.optim import build_optimizer
from ssrseg.training.setup import build_student, prepare

HEAP, HEAP_SHARE = "kept by malloc", 0.3
"""What the C library's heap holds beyond live memory; measured in benchmarks/results/plan-memory.md."""

Record = TypeVar("Record", Batch, View)


@dataclass(frozen=True)
class StepCost:
    """The needs of one step."""

    parameters: dict[str, int]
    """By part."""
    flops: dict[str, tuple[int, int]]
    """By part: forward, backward. A forward that is computed again counts as backward."""
    memory: dict[str, int]
    """Bytes by part when most is alive."""

    @property
    def peak(self) -> int:
        """Bytes of the live tensors when most is alive."""
        return sum(self.memory.values())


def fake_step(settings: Settings, device: str, *, flops: bool = True) -> StepCost:
    """Run the second step of `settings` as it would be on `device` (`cpu`, `cuda`), on tensors without data.

    Weights are not needed and not read. What a compiler spares is not seen.

    Raises:
        UserError: names that are unknown, parts that do not fit together.
    """
    cast = _Cast(settings, device)
    batch, views = _one_batch(settings, cast.method)
    live, counter = LiveBytes(device), Flops(cast.networks, cast.encoders)
    with FakeTensorMode(), ExitStack() as watching:
        cast.lose_data()
        watching.enter_context(live)
        if flops:
            watching.enter_context(counter.counting())
        _step(settings, cast, _without_data(batch), views, live, counter)
    parameters = {name: sum(weight.numel() for weight in module.parameters()) for name, module in cast.parts.items()}
    if device == "cpu":
        live.peak[HEAP] = int(HEAP_SHARE * live.peak.total())
    memory = {part: size for part, size in live.peak.most_common() if size > 0}
    return StepCost(parameters, counter.by_part(), memory)


class _Cast:
    """The method and its parts by name."""

    def __init__(self, settings: Settings, device: str) -> None:
        settings = without_weights(settings)
        space, method, crop = resolve_space(settings.classes, settings.source), settings.method, settings.loader.crop
        foundation = None
        with torch.device("meta"):
            student, _ = build_student(settings, space)
            # The makers, which do run on data, fill with the mean colour.
            student.mean, student.std = torch.zeros(2, 1, 3, 1, 1, device="cpu")
            if method.regularizer is not None and method.regularizer.stages:
                foundation = build_encoder(method.regularizer.foundation, crop)
            self.method = build_method(method, student, classes=space.names, crop=crop, foundation=foundation)
        self.encoders = {
            "foundation encoder" if encoder is foundation else "frozen ImageNet backbone": encoder
            for encoder in self.method.frozen
        }
        for encoder in self.encoders.values():
            encoder.precision = "half" if encoder.runs_half(device) else "fp32"
            encoder.to("meta")
        prepare(self.method, settings.train.model_copy(update={"compile": "off"}), torch.device(device))
        self.networks = {
            "student backbone": student.backbone,
            "student head": student.head,
            "teacher": self.method.teacher,
        }
        frozen = {name: encoder.module for name, encoder in self.encoders.items()}
        self.parts = {**self.networks, "terms": self.method.learner.terms, **frozen}

    def lose_data(self) -> None:
        """Every tensor becomes one without data that says it is on the CPU."""
        for module in (self.method.learner, self.method.teacher, *(e.module for e in self.encoders.values())):
            module._apply(_empty)
        for encoder in self.encoders.values():
            encoder.mean, encoder.std = _empty(encoder.mean), _empty(encoder.std)


def _one_batch(settings: Settings, method: Method) -> tuple[Batch, list[View]]:
    """Make a batch of noise, and the views that the method really makes of one: their number and shapes are its own."""
    batch = to_batch(noise(settings), torch.device("cpu"))
    pseudo = Pseudo(batch.labels[: len(batch.target)], batch.valid.float())
    return batch, [make(batch, pseudo) for make in method.makers]


def _step(settings: Settings, cast: _Cast, batch: Batch, views: list[View], live: LiveBytes, counter: Flops) -> None:
    method = cast.method
    method.learner.train()
    method.learner.gradients = counter.gradients
    optimizer = _stepped_once(build_optimizer(method.learner, settings.optim))
    _label(live, cast, batch, optimizer)
    for weight in method.learner.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: live.label([weight.grad], "gradients"))
    live.forget_peak()

    def label(images: Tensor, valid: Tensor, inside: Tensor | None) -> Pseudo:
        with _autocast(settings):
            pseudo: Pseudo = method.teacher(images, valid, inside)
            return pseudo

    def learn(view: View) -> dict[str, Tensor]:
        with _autocast(settings), torch.autograd.graph.saved_tensors_hooks(live.pack, lambda saved: saved):
            losses: dict[str, Tensor] = method.learner(view)
            return losses

    def made(view: View) -> Callable[[Batch, Pseudo], View]:
        return lambda batch, pseudo: _without_data(view)

    method.teacher.update(method.learner.student, 1)
    adapt(learn, label, [made(view) for view in views], batch, counter.run_backward)
    optimizer.step()


def _stepped_once(optimizer: Optimizer) -> Optimizer:
    """Give an optimiser its states, as it has them from the second step on."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _label(live: LiveBytes, cast: _Cast, batch: Batch, optimizer: Optimizer) -> None:
    learner, teacher = cast.method.learner, cast.method.teacher
    live.label(_tensors(learner), "weights of student and terms")
    live.label(_tensors(teacher), "teacher")
    for name, encoder in cast.encoders.items():
        live.label(_tensors(encoder.module), name)
    states = (value for state in optimizer.state.values() for value in state.values())
    live.label((value for value in states if isinstance(value, Tensor)), "optimiser states")
    live.label(vars(batch).values(), "batch")


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _autocast(settings: Settings) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=settings.train.precision == "bf16")


def _without_data(record: Record) -> Record:
    found = {field.name: getattr(record, field.name) for field in fields(record)}
    empty: dict[str, Any] = {name: _empty(value) for name, value in found.items() if isinstance(value, Tensor)}
    return replace(record, **empty)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
