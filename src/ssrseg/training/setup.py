"""What a run is made of, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch.optim import Optimizer

from ssrseg.adapt.foundation import Frozen
from ssrseg.adapt.learner import ViewMaker
from ssrseg.adapt.methods import Method, build_method
from ssrseg.adapt.terms import Term
from ssrseg.config import Settings
from ssrseg.cpu.allocation import keep_memory
from ssrseg.data import LabelSpace, resolve_space
from ssrseg.errors import UserError
from ssrseg.models.segmenter import Description, Segmenter, build_segmenter, load_segmenter
from ssrseg.models.weights import load_pretrained
from ssrseg.runs.folder import RunFolder
from ssrseg.training.distributed import build_fabric, joined
from ssrseg.training.optim import build_optimizer
from ssrseg.training.preparation import prepare
from ssrseg.training.randomness import seed_generators


@dataclass(frozen=True)
class RunContext:
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


def build_context(
    settings: Settings,
    folder: RunFolder,
    *,
    foundation: Frozen | None = None,
    extra_terms: Mapping[str, Term] | None = None,
    extra_makers: Sequence[ViewMaker] = (),
    notes: Sequence[str] = (),
) -> RunContext:
    """Launch the processes and build student, method and optimiser: the same weights and draws in each, other dropout.

    Raises:
        UserError: weights cannot be loaded, or parts or processes do not fit together.
    """
    space = resolve_space(settings)
    fabric = build_fabric(settings.train)
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_memory()
    torch.manual_seed(settings.train.seed)
    student, note = build_student(settings, space)
    method = build_method(
        settings.method,
        student,
        classes=space.names,
        crop=settings.loader.crop,
        seed=settings.train.seed,
        foundation=foundation,
        extra_terms=extra_terms,
        extra_makers=extra_makers,
    )
    regularizer = settings.method.regularizer
    joined(
        method,
        fabric,
        sync_batchnorm=settings.train.sync_batchnorm,
        shard=regularizer is not None and regularizer.foundation.shard,
    )
    seed_generators(settings.train.seed + fabric.global_rank)  # dropout and drop path differ
    adversary = settings.method.alignment
    rate = {} if adversary is None else {"discriminator_lr": adversary.lr}
    optimizer = build_optimizer(method.learner, settings.optim, **rate)
    economy = prepare(method, settings.train, fabric.device)
    return RunContext(fabric, settings, space, folder, method, optimizer, (note, *method.notes, *economy, *notes))


def start_from(student: Segmenter, path: Path) -> str:
    """Take over all weights of a model file, and what to say; raises `UserError` when it is another network."""
    start = load_segmenter(path)
    try:
        student.load_state_dict(start.state_dict())
    except RuntimeError as error:
        found = start.description
        network = f"{found.backbone} with {found.head} for {len(found.classes)} classes" if found else "another network"
        raise UserError(f"model.start: {path} is {network}; model and classes of this run differ from it.") from error
    return f"the student starts from {path}"


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
        align_corners=config.align_corners,
    )
    if config.start is None:
        note = load_pretrained(student, config.pretrained, config.backbone)
    else:
        note = start_from(student, config.start)
    bound = (settings.target or settings.source).resize
    student.description = Description(
        config.backbone, config.head, space.names, space.colors, bound, config.head_channels, config.align_corners
    )
    return student, note
