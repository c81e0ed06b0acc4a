"""What a run is made of, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch.optim import Optimizer

from ssrseg.adapt.foundation import Frozen
from ssrseg.adapt.learner import ViewMaker
from ssrseg.adapt.methods import Method, build_method
from ssrseg.adapt.teacher import Teacher
from ssrseg.adapt.terms import Term
from ssrseg.config import Settings
from ssrseg.data import LabelSpace, resolve_space
from ssrseg.errors import UserError
from ssrseg.models.segmenter import Description, Segmenter, build_segmenter, load_segmenter
from ssrseg.models.weights import load_pretrained
from ssrseg.runs.folder import RunFolder
from ssrseg.training.distributed import build_fabric, sync_batchnorm
from ssrseg.training.loop import Observer
from ssrseg.training.optim import build_optimizer
from ssrseg.training.preparation import prepare
from ssrseg.training.randomness import seed_generators


@dataclass(frozen=True)
class Extensions:
    """Parts of your own that a run has beside those that its settings name (`docs/extend.md`).

    The seeds of a group and the stages of a recipe each train copies of the terms, and share the other parts.
    """

    terms: Mapping[str, Term] = field(default_factory=dict)
    """Losses by name. Their weights are trained and saved in checkpoints, and are no part of the deployed model."""
    makers: Sequence[ViewMaker] = ()
    """Make further views of every batch, after the method's."""
    foundation: Frozen | None = None
    """SSR's frozen encoder, instead of the one that `method.regularizer.foundation` names."""
    teacher: type[Teacher] = Teacher
    """Class of the teacher; it is built with the options of `method.teacher`, which must not be absent."""
    observers: Sequence[Observer] = ()
    """Watch the run in the first process, beside the package's own; checkpoints keep their `state`, by their place."""

    def fresh(self) -> Extensions:
        """Copy the terms, so that one of several runs starts from their weights as they are now."""
        return replace(self, terms=deepcopy(self.terms))


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
    extensions: Extensions | None = None,
    notes: Sequence[str] = (),
) -> RunContext:
    """Launch the processes and build student, method and optimiser: the same weights and draws in each, other dropout.

    Raises:
        UserError: weights cannot be loaded, or parts or processes do not fit together.
    """
    extensions = extensions or Extensions()
    space = resolve_space(settings.classes, settings.source)
    fabric = build_fabric(settings.train)
    fabric.launch()
    torch.manual_seed(settings.train.seed)
    student, note = build_student(settings, space)
    method = build_method(
        settings.method,
        student,
        classes=space.names,
        crop=settings.loader.crop,
        seed=settings.train.seed,
        foundation=extensions.foundation,
        terms=extensions.terms,
        makers=extensions.makers,
        teacher=extensions.teacher,
    )
    if settings.train.sync_batchnorm:
        sync_batchnorm(method, fabric)
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
