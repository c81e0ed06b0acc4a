"""What a run is made of, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.optim import Optimizer

from ssrseg.adapt.learner import ViewMaker
from ssrseg.adapt.methods import Method, build_method
from ssrseg.adapt.terms import Term
from ssrseg.config import Settings, TrainConfig
from ssrseg.data import LabelSpace, resolve_space
from ssrseg.foundation import Frozen
from ssrseg.models.segmenter import Description, Segmenter, build_segmenter
from ssrseg.models.weights import load_pretrained
from ssrseg.training.folder import RunFolder
from ssrseg.training.generators import seed_generators
from ssrseg.training.optim import build_optimizer


@dataclass(frozen=True)
class Setup:
    """A run before its first step."""

    fabric: Fabric
    """Launched."""
    settings: Settings
    space: LabelSpace
    folder: RunFolder
    method: Method
    optimizer: Optimizer
    notes: tuple[str, ...]
    """What the user should know of it."""


def build_setup(
    settings: Settings,
    folder: RunFolder,
    *,
    foundation: Frozen | None = None,
    extra_terms: Mapping[str, Term] | None = None,
    extra_makers: Sequence[ViewMaker] = (),
    notes: Sequence[str] = (),
) -> Setup:
    """Launch the processes and build student, method and optimiser: the same weights on each, other draws.

    Raises:
        UserError: weights cannot be loaded, or the parts do not fit together.
    """
    space = resolve_space(settings)
    fabric = build_fabric(settings.train)
    fabric.launch()
    torch.manual_seed(settings.train.seed)
    student, note = build_student(settings, space)
    seed = settings.train.seed + fabric.global_rank
    method = build_method(
        settings.method,
        student,
        classes=space.names,
        crop=settings.loader.crop,
        seed=seed,
        foundation=foundation,
        extra_terms=extra_terms,
        extra_makers=extra_makers,
    )
    seed_generators(seed)
    optimizer = build_optimizer(method.learner, settings.optim)
    return Setup(fabric, settings, space, folder, method, optimizer, (note, *method.notes, *notes))


def build_fabric(config: TrainConfig) -> Fabric:
    """One process or many, as the settings say."""
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed" if config.precision == "bf16" else "32-true"
    # A view need not use every term, so a step may leave parameters without gradient.
    strategy = DDPStrategy(find_unused_parameters=True) if config.devices > 1 else "auto"
    return Fabric(accelerator=config.accelerator, devices=config.devices, precision=precision, strategy=strategy)


def build_student(settings: Settings, space: LabelSpace) -> tuple[Segmenter, str]:
    """The student with its pretrained backbone, and what to say about the weights."""
    config = settings.model
    student = build_segmenter(
        config.backbone,
        config.head,
        space.num_classes,
        head_channels=config.head_channels,
        drop_path=config.drop_path,
        dropout=config.dropout,
    )
    note = load_pretrained(student, config.pretrained, config.backbone)
    bound = (settings.target or settings.source).resize
    student.description = Description(
        config.backbone, config.head, space.names, space.colors, bound, config.head_channels
    )
    return student, note
