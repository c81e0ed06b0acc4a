"""One training step on tensors without data: its operations and its memory, found in seconds and without the memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ssrseg.adapt.batch import Batch, Pseudo, View
from ssrseg.adapt.foundation import Frozen
from ssrseg.adapt.learner import adapt
from ssrseg.adapt.methods import build_method
from ssrseg.config import Settings
from ssrseg.data import RawBatch, resolve_space
from ssrseg.planning.counters import Flops, LiveBytes
from ssrseg.training.loop import to_batch
from ssrseg.training.optim import build_optimizer, parameter_groups
from ssrseg.training.rehearsal import without_weights
from ssrseg.training.setup import build_student, prepare

HEAP, HEAP_SHARE = "kept by malloc", 0.5
"""What the C library's heap holds beside what a step makes and frees; measured in benchmarks/results/plan-memory.md."""
LEARNER, TEACHER, STATES = "weights of student and terms", "teacher", "optimiser states"
"""Parts that stay; the rest, beside the frozen encoders, comes and goes with every step."""

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
    batch = to_batch(noise(settings), torch.device("cpu"))
    pseudo = Pseudo(batch.labels[: len(batch.target)], batch.valid.float())
    views = [make(batch, pseudo) for make in cast.method.makers]  # their number and shapes are the method's own
    parameter_groups(cast.method.learner, settings.optim)  # looks up the order of layers, once and with numbers
    live, counter = LiveBytes(device), Flops(cast.networks, cast.encoders)
    with FakeTensorMode():
        cast.lose_data()
        with live, counter.counting() if flops else nullcontext():
            _step(settings, cast, _without_data(batch), views, live, counter)
    parts = {**cast.networks, "terms": cast.method.learner.terms, **cast.frozen}
    parameters = {name: sum(weight.numel() for weight in module.parameters()) for name, module in parts.items()}
    if device == "cpu":
        lasting = sum(live.peak[part] for part in (LEARNER, TEACHER, STATES, *cast.frozen))
        live.peak[HEAP] = int(HEAP_SHARE * (live.peak.total() - lasting))
    memory = {part: size for part, size in live.peak.most_common() if size > 0}
    return StepCost(parameters, counter.by_part(), memory)


class _Cast:
    """The method and its parts by name."""

    def __init__(self, settings: Settings, device: str) -> None:
        settings = without_weights(settings)
        space, method, crop = resolve_space(settings.classes, settings.source), settings.method, settings.loader.crop
        with torch.device("meta"):
            student, _ = build_student(settings, space)
            # The makers, which do run on data, fill with the mean colour.
            student.mean, student.std = torch.zeros(2, 1, settings.model.in_channels, 1, 1, device="cpu")
            self.method = build_method(method, student, classes=space.names, crop=crop)
        terms, self.encoders = self.method.learner.terms, dict[str, Frozen]()
        own: Any = terms["feature_distance"].frozen if "feature_distance" in terms else None
        for encoder in self.method.frozen:
            name = "frozen ImageNet backbone" if encoder is own else "foundation encoder"
            self.encoders[f"{name} {len(self.encoders) + 1}" if name in self.encoders else name] = encoder
        for encoder in self.encoders.values():
            encoder.precision = "half" if encoder.runs_half(device) else "fp32"
            encoder.to("meta")
        prepare(self.method, settings.train.model_copy(update={"compile": "off"}), torch.device(device))
        teacher = self.method.teacher
        self.networks = {"student backbone": student.backbone, "student head": student.head, TEACHER: teacher}
        if (attention := getattr(student, "attention", None)) is not None:
            self.networks["student scale attention"] = attention
        self.frozen = {name: encoder.module for name, encoder in self.encoders.items()}

    def lose_data(self) -> None:
        """Every tensor becomes one without data that says it is on the CPU."""
        for module in (self.method.learner, self.method.teacher, *self.frozen.values()):
            module._apply(_empty)
        for encoder in self.encoders.values():
            encoder.mean, encoder.std = _empty(encoder.mean), _empty(encoder.std)


def _step(settings: Settings, cast: _Cast, batch: Batch, views: list[View], live: LiveBytes, counter: Flops) -> None:
    method = cast.method
    method.learner.train()
    method.learner.gradients = counter.gradients
    optimizer = build_optimizer(method.learner, settings.optim)
    learnt = [weight for weight in method.learner.parameters() if weight.requires_grad]
    for weight in learnt:  # which gives it its states, as it has them from the second step on
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    owners = {LEARNER: method.learner, TEACHER: method.teacher, **cast.frozen}
    for name, module in owners.items():
        live.label((*module.parameters(), *module.buffers()), name)
    states = (value for state in optimizer.state.values() for value in state.values())
    live.label((value for value in states if isinstance(value, Tensor)), STATES)
    live.label(vars(batch).values(), "batch")
    for weight in learnt:
        weight.register_post_accumulate_grad_hook(lambda weight: live.label([weight.grad], "gradients"))
    live.forget_peak()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=settings.train.precision == "bf16")

    def label(images: Tensor, valid: Tensor, *more: Tensor | None) -> Pseudo:
        with autocast:
            pseudo: Pseudo = method.teacher(images, valid, *more)
            return pseudo

    def learn(view: View) -> dict[str, Tensor]:
        with autocast, torch.autograd.graph.saved_tensors_hooks(live.pack, lambda saved: saved):
            losses: dict[str, Tensor] = method.learner(view)
            return losses

    method.teacher.update(method.learner.student, 1)
    left = iter(views)
    adapt(learn, label, [lambda *_: _without_data(next(left))] * len(views), batch, counter.run_backward)
    optimizer.step()


def _without_data(record: Record) -> Record:
    empty: dict[str, Any] = {name: _empty(value) for name, value in vars(record).items() if isinstance(value, Tensor)}
    return replace(record, **empty)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def noise(settings: Settings, seed: int = 0) -> RawBatch:
    """Draw a batch of random pixels, and labels in blocks."""
    (height, width), count = settings.loader.crop, settings.loader.batch
    targets = count if settings.target is not None else 0
    draws = torch.Generator().manual_seed(seed)
    classes = resolve_space(settings.classes, settings.source).num_classes
    shape = (count + targets, settings.model.in_channels, height, width)
    images = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
    blocks = torch.randint(classes, (count, -(-height // 32), -(-width // 32)), generator=draws, dtype=torch.uint8)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width].contiguous()
    valid = torch.ones(targets, height, width, dtype=torch.bool)
    names = tuple(f"noise {i}" for i in range(len(images)))
    batch = RawBatch(images[:count], labels, images[count:], valid, names)
    if settings.method.labelled is None:
        return batch
    again = torch.arange(settings.loader.of_labelled) % count
    return replace(batch, labelled=images[again], labelled_labels=labels[again])
