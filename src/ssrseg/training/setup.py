"""The parts of a run: processes, student, method and optimiser, built from the settings."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from shutil import which
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.optim import Optimizer
from torch.utils._triton import has_triton

from ssrseg.adapt.foundation import Frozen
from ssrseg.adapt.learner import ViewMaker
from ssrseg.adapt.methods import Method, build_method
from ssrseg.adapt.teacher import Teacher
from ssrseg.adapt.terms import Term
from ssrseg.config import Settings, TrainConfig, datasets
from ssrseg.config.data import ExactSize
from ssrseg.data import LabelSpace, resolve_space
from ssrseg.errors import UserError
from ssrseg.models.backbones import BACKBONES
from ssrseg.models.description import Description, Detail
from ssrseg.models.segmenter import Segmenter, build_segmenter, take_bands
from ssrseg.models.weights import load, load_pretrained
from ssrseg.runs.folder import RunFolder
from ssrseg.training.deterministic import refuse_nondeterministic
from ssrseg.training.distributed import build_fabric, sync_batchnorm
from ssrseg.training.loop import Observer
from ssrseg.training.optim import build_optimizer
from ssrseg.training.start import start_from


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
    """The frozen encoder, instead of those that the `foundation` of the method's parts name."""
    teacher: type[Teacher] = Teacher
    """Class of the teacher; it is built with the options of `method.teacher`, which must not be absent."""
    observers: Sequence[Observer] = ()
    """Watch the run in the first process, beside the package's own; checkpoints keep their `state`, by their place."""


@dataclass(frozen=True)
class RunContext:
    """A run before its first step: the arguments of most observers."""

    fabric: Fabric  # launched
    settings: Settings
    space: LabelSpace
    folder: RunFolder
    method: Method
    optimizer: Optimizer
    notes: tuple[str, ...]  # texts for the user: licences of weights, what is not compiled,


def build_context(
    settings: Settings, folder: RunFolder, *, extensions: Extensions | None = None, notes: Sequence[str] = ()
) -> RunContext:
    """Launch the processes and build student, method and optimiser: the same weights and draws in each, other dropout.

    Raises `UserError` where weights cannot be loaded, parts or processes do not fit, or cannot be deterministic.
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
    if settings.train.deterministic:
        refuse_nondeterministic(student, fabric.device, settings.loader.crop)
    if settings.train.sync_batchnorm:
        sync_batchnorm(method, fabric)
    seed = settings.train.seed + fabric.global_rank  # dropout and drop path differ, and the user's terms and views
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
    adversary = settings.method.alignment
    rate = {} if adversary is None else {"discriminator_lr": adversary.lr}
    optimizer = build_optimizer(method.learner, settings.optim, **rate)
    notes = (note, *method.notes, *prepare(method, settings.train, fabric.device), *notes)
    return RunContext(fabric, settings, space, folder, method, optimizer, notes)


def built_size(settings: Settings, start: Segmenter | None = None) -> tuple[int, int]:
    """Return the (height, width) that a student is built for: that of `model.start`, else what holds all crops.

    With `model.detail`, it is what holds the windows and the smaller crops.
    """
    config = settings.model
    crops: tuple[tuple[int, int], ...] = settings.loader.crop, settings.loader.of_target
    if (detail := config.detail) is not None:
        smaller = [(int(height * detail.scale), int(width * detail.scale)) for height, width in crops]
        crops = (detail.window, *smaller)
    size = max(height for height, _ in crops), max(width for _, width in crops)
    if config.start is None or config.backbone in BACKBONES:
        return size
    return (start or load(str(config.start))).backbone.sizes.built or size


def build_student(settings: Settings, space: LabelSpace, size: tuple[int, int] | None = None) -> tuple[Segmenter, str]:
    """Build the student with the weights of a model file or a pretrained backbone; returns a note about them too.

    It is built for images of `size`, (height, width), or `built_size` when absent.

    Raises `UserError` where weights cannot be loaded, or `model.start` is another network or has other classes.
    """
    config = settings.model
    start = None if config.start is None else load(str(config.start))
    same = ("head_channels", "align_corners", "taps", "image_scale")
    parts: dict[str, Any] = {name: getattr(config, name) for name in same}
    student = build_segmenter(
        config.backbone,
        config.head,
        space.num_classes,
        drop_path=config.drop_path,
        dropout=config.dropout,
        size=size or built_size(settings, start),
        detail=None if config.detail is None else Detail(**config.detail.model_dump()),
        **parts,
    )
    bands, usual = (config.in_channels, config.mean, config.std), (student.backbone.mean, student.backbone.std)
    if start is None:
        note = load_pretrained(student, config.pretrained, config.backbone, config.pretrained_part)
        take_bands(student, *bands)
    else:
        take_bands(student, *bands)
        note = start_from(student, start, config, space.names)
    bound = datasets(settings.target or settings.source)[0].resize
    bound = bound.exact if isinstance(bound, ExactSize) else bound
    parts |= {"value_range": config.value_range, "percentiles": config.percentiles}
    description = Description(config.backbone, config.head, space.names, space.colors, bound, **parts)
    own = student.backbone
    if config.in_channels != 3 or (own.mean, own.std) != usual:
        description = replace(description, in_channels=config.in_channels, mean=own.mean, std=own.std)
    student.description = replace(description, image_size=student.backbone.sizes.built, detail=student.detail)
    return student, note


def prepare(method: Method, config: TrainConfig, device: torch.device) -> list[str]:
    """Set up activation checkpointing, compilation and, on a CPU, the layers of `ssrseg.cpu`; returns notes.

    The method is changed in place; names in state dicts stay the same. Raises `UserError` for `train.compile: on`
    where nothing can be compiled.
    """
    notes: list[str] = []
    if config.activation_checkpointing and not method.learner.student.backbone.checkpoint_activations():
        notes.append("train.activation_checkpointing: this backbone cannot, so nothing is recomputed")
    compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    if device.type == "cpu":
        from ssrseg.cpu import optimize  # a CUDA run does without it

        for network in filter(None, (method.learner, method.teacher.segmenter)):
            optimize(network, training=True, layers=config.precision == "fp32" and not compiled)
        for encoder in method.frozen:
            optimize(encoder.module)
    return [*notes, *_compile(method, config, device)] if compiled else notes


def _compile(method: Method, config: TrainConfig, device: torch.device) -> list[str]:
    missing = None if has_compiler() else "C++ compiler (g++ or clang++)"
    if device.type == "cuda" and not has_triton():
        missing = "Triton that knows this GPU (pip install triton; compute capability 7.0 and later)"
    if missing is not None:
        if config.compile == "on":
            raise UserError(f"train.compile: on, but there is no {missing}: install one, or set train.compile=off.")
        return [f"train.compile: auto found no {missing}: nothing is compiled"]
    student, teacher = method.learner.student, method.teacher.segmenter
    student.compile_training("head", *(() if config.activation_checkpointing else ("backbone",)))
    if teacher is not None:
        teacher.compile_training("backbone", "head")
    for encoder in method.frozen:
        encoder.features = torch.compile(encoder.features, dynamic=False)
    if config.activation_checkpointing:
        return ["train.compile: the student's backbone is recomputed in the backward pass, and not compiled"]
    return []


def has_compiler() -> bool:
    """Look for a C++ compiler, which `torch.compile` needs on every device; on CUDA it needs Triton too."""
    return any(map(which, (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")))
