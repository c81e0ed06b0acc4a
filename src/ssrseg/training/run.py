"""`train`: settings in, a run folder out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from ssrseg.adapt.learner import ViewMaker
from ssrseg.adapt.methods import Method, build_method
from ssrseg.adapt.terms import Term
from ssrseg.config import Settings, TrainConfig
from ssrseg.data import LabelSpace, check_data, eval_samples, resolve_space, train_batches
from ssrseg.errors import UserError
from ssrseg.foundation import Frozen
from ssrseg.inference import build_inference, evaluating, predict_ids
from ssrseg.models.segmenter import Description, Segmenter, build_segmenter
from ssrseg.models.weights import load_pretrained
from ssrseg.training.checkpoints import load_checkpoint
from ssrseg.training.console import Screen
from ssrseg.training.folder import RunFolder
from ssrseg.training.journal import Journal, Losses
from ssrseg.training.loop import Observer, fit
from ssrseg.training.optim import build_optimizer
from ssrseg.training.scoring import Saving, Scoring
from ssrseg.training.snapshots import PredictedPictures, Snapshots


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    student: Segmenter
    """In eval mode."""


def train(
    settings: Settings | None,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    foundation: Frozen | None = None,
    extra_terms: Mapping[str, Term] | None = None,
    extra_makers: Sequence[ViewMaker] = (),
    observers: Sequence[Observer] = (),
) -> Run:
    """Train a segmenter and leave a run folder.

    Args:
        settings: of the run; absent when resuming, which reads them from the run folder.
        out: the run folder. It must not hold a run yet, unless resuming.
        resume: continue the run in `out` from its last checkpoint.
        console: shows progress; silent when absent.
        foundation: SSR's frozen encoder itself, instead of the one that the settings name.
        extra_terms: terms of your own, by name.
        extra_makers: view makers of your own.
        observers: watch the run beside the package's own.

    Raises:
        UserError: the settings, the data or the folder do not allow the run; nothing was trained or overwritten.
    """
    folder = RunFolder(Path(out))
    if resume:
        settings = folder.settings()
    elif settings is None:
        raise UserError("Training needs settings: a preset, a YAML file, or key.path=value words.")
    else:
        folder.refuse_overwriting()
    space = resolve_space(settings)
    notes = check_data(settings)
    fabric = build_fabric(settings.train)
    fabric.launch()
    torch.manual_seed(settings.train.seed)
    student, note = build_student(settings, space)
    seed = settings.train.seed + fabric.global_rank  # same weights, other draws on every process
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
    torch.manual_seed(seed)
    optimizer = build_optimizer(method.learner, settings.optim)
    start, best = load_checkpoint(folder.checkpoint, method, optimizer) if resume else (0, None)
    if fabric.is_global_zero and not resume:
        folder.create(settings)
    fabric.barrier()
    batches = train_batches(
        settings, start=start, rank=fabric.global_rank, world=fabric.world_size, cache=folder.class_statistics
    )
    if fabric.is_global_zero:
        notes = [note, *method.notes, *notes]
        with _watched(fabric, method, optimizer, settings, space, folder, console, notes, start, best) as watching:
            fit(fabric, method, optimizer, batches, settings, start=start, observers=[*watching, *observers])
    else:
        fit(fabric, method, optimizer, batches, settings, start=start)
    return Run(folder.path, student.eval())


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


@contextmanager
def _watched(
    fabric: Fabric,
    method: Method,
    optimizer: Optimizer,
    settings: Settings,
    space: LabelSpace,
    folder: RunFolder,
    console: Console | None,
    notes: Sequence[str],
    start: int,
    best: float | None,
) -> Iterator[list[Observer]]:
    """The package's own observers; journal and screen are closed whatever happens."""
    journal = Journal(folder.metrics, resumed_at=start)
    screen = Screen(console, settings.train.steps, start)
    for text in notes:
        screen.say(text)
        journal.write("note", start, text=text)
    config = settings.train
    watching: list[Observer] = [
        Losses(journal, screen, config.log_every),
        Snapshots(folder.pictures, space.colors, config.pictures_every),
    ]
    scoring: Scoring | None = None
    if settings.val is not None:
        samples, infer = eval_samples(settings.val, settings), build_inference(settings.inference)
        student = method.learner.student

        def predict(image: Tensor, size: tuple[int, int]) -> Tensor:
            with evaluating(student):
                return predict_ids(student, image.to(fabric.device), infer, size)

        watching.append(PredictedPictures(folder.pictures, space.colors, samples, predict))
        scoring = Scoring(
            fabric.device,
            method,
            samples,
            infer,
            folder,
            journal,
            screen,
            space=space,
            every=config.evaluate_every,
            steps=config.steps,
            best=best,
        )
        watching.append(scoring)
    # Last: a checkpoint holds what the others did in its step.
    watching.append(
        Saving(
            method,
            optimizer,
            folder,
            every=config.checkpoint_every,
            steps=config.steps,
            best=lambda: None if scoring is None else scoring.best,
        )
    )
    try:
        yield watching
    finally:
        screen.close()
        journal.close()
