"""Compose views and terms to methods: `build_method` is the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torchvision.transforms import Compose

from ssrseg.adapt import views
from ssrseg.adapt.alignment import Alignment
from ssrseg.adapt.augment import GlobalIntensity, PhotometricDistortion, StrongAugment, fourier_adapt
from ssrseg.adapt.distillation import Affinity, Distillation
from ssrseg.adapt.foundation import Frozen, build_encoders, frozen_backbone
from ssrseg.adapt.learner import Learner, ViewMaker
from ssrseg.adapt.regions import Regions
from ssrseg.adapt.regularizer import Regularizer
from ssrseg.adapt.teacher import NoTeacher, Teacher
from ssrseg.adapt.terms import FeatureDistance, Segmentation, Term
from ssrseg.config.base import Strict
from ssrseg.config.method import AugmentConfig, FeatureDistanceConfig, MethodConfig, TeacherConfig
from ssrseg.label_shift import find_priors
from ssrseg.models.segmenter import Segmenter


@dataclass(frozen=True)
class Method:
    """Hold a composed method: what is trained, what labels the target, and what makes the views."""

    learner: Learner
    teacher: Teacher | NoTeacher
    makers: tuple[ViewMaker, ...]
    generator: Generator
    """Every draw of the view makers comes from here; its state belongs into a checkpoint."""
    frozen: tuple[Frozen, ...]
    """Encoders used in training, registered in no module."""
    notes: tuple[str, ...] = ()
    """What the user should know about this composition."""

    def to(self, device: torch.device | str) -> Method:
        """Move all parts in place; the generator stays on the CPU."""
        self.learner.to(device)
        self.teacher.to(device)
        for encoder in self.frozen:
            encoder.to(device)
        return self


def build_method(
    config: MethodConfig,
    student: Segmenter,
    *,
    classes: Sequence[str],
    crop: tuple[int, int] = (512, 512),
    seed: int = 0,
    foundation: Frozen | None = None,
    imagenet: Callable[[Tensor], Tensor] | None = None,
    terms: Mapping[str, Term] | None = None,
    makers: Sequence[ViewMaker] = (),
    teacher: type[Teacher] = Teacher,
) -> Method:
    """Build the method that `config` describes around `student`.

    Args:
        config: which views and terms.
        student: with its ImageNet weights already loaded: the feature distance copies its backbone as it is now.
        classes: names in the order of their ids.
        crop: (height, width) of the training crops.
        seed: of the view makers' draws.
        foundation: the frozen encoder itself, instead of those that the config names.
        imagenet: images in [0, 1] -> frozen ImageNet features, instead of the copied backbone.
        terms: terms of your own, by name, beside the method's.
        makers: view makers of your own, after the method's.
        teacher: class of the teacher, where the config has one.

    Raises:
        UserError: the foundation encoder is unknown or its weights cannot be loaded.
    """
    encoders = build_encoders(config.foundations, crop, foundation)
    frozen = [*dict.fromkeys(encoders.values())]
    notes = [encoder.note for encoder in frozen if encoder.note]
    if foundation is not None and not frozen:
        notes.append("a foundation encoder was given, but no part of the method has one: nothing uses it")
    if config.teacher is None and teacher is not Teacher:
        notes.append(f"{teacher.__name__} was given, but method.teacher is absent: nothing labels the target")
    if config.feature_distance is not None and imagenet is None:
        imagenet = frozen_backbone(student.backbone)
        frozen.append(imagenet)
    composed = dict(_terms(config, student, classes, encoders, imagenet, notes)) | dict(terms or {})
    generator = Generator().manual_seed(seed)
    makers = (*_makers(config, generator, student.mean), *makers)
    if student.detail is not None:
        draw = views.DetailWindow(generator, student.detail)
        makers = tuple(views.Zoomed(maker, draw) for maker in makers)
    return Method(
        Learner(student, composed, head_only=config.trains == "head", statistics_of=config.statistics_of),
        NoTeacher() if config.teacher is None else teacher(student, **_teacher_options(config.teacher, encoders)),
        makers,
        generator,
        tuple(frozen),
        tuple(notes),
    )


def _terms(
    config: MethodConfig,
    student: Segmenter,
    classes: Sequence[str],
    encoders: Mapping[str, Frozen],
    imagenet: Callable[[Tensor], Tensor] | None,
    notes: list[str],
) -> Iterator[tuple[str, Term]]:
    """Build the terms, by name, in their order in the step; what the user should know of them goes into `notes`."""
    channels, priors = student.backbone.channels, config.segmentation.priors
    yield (
        "segmentation",
        Segmentation(
            ("source", "labelled", "mixed", "masked"),
            shift=None if priors is None else -find_priors(priors).of(classes).shift,
            factors={} if config.masked is None else {"masked": 1 / config.masked.weight},  # MIC's code
            **_options(config.segmentation, "priors"),
        ),
    )
    if config.regularizer is not None and not config.regularizer.stages:
        notes.append("regularizer: no stage is regularised, which is the plain method")
    elif config.regularizer is not None:
        encoder, options = encoders["method.regularizer.foundation"], _options(config.regularizer, "bn_stats")
        shared = config.regularizer.bn_stats == "shared"
        yield "regularizer", Regularizer(encoder, encoder.channels, channels, own_statistics=shared, **options)
    if config.distillation is not None:
        encoder, stage = encoders["method.distillation.foundation"], channels[config.distillation.stage]
        yield "distillation", Distillation(encoder, encoder.channels, stage, **_options(config.distillation))
    if config.affinity is not None:
        yield "affinity", Affinity(encoders["method.affinity.foundation"], **_options(config.affinity))
    if config.feature_distance is not None and imagenet is not None:
        things, options = _things(config.feature_distance, classes, notes), _options(config.feature_distance, "classes")
        yield "feature_distance", FeatureDistance(imagenet, len(classes), classes=things, **options)
    if config.alignment is not None:  # its `lr` is the optimiser's
        yield "alignment", Alignment(channels[-1], student.num_classes, **_options(config.alignment, "lr"))


def _options(config: Strict, *others: str) -> dict[str, Any]:
    """Read the settings of a term that it takes under the same names: all but its encoder and `others`."""
    return config.model_dump(exclude={"foundation", *others})


def _teacher_options(config: TeacherConfig, encoders: Mapping[str, Frozen]) -> dict[str, Any]:
    options = config.model_dump(exclude={"regions"} if config.flip else {"regions", "flip"})
    if (regions := config.regions) is not None:  # a class of one's own that knows none is not asked for them
        encoder = encoders.get("method.teacher.regions.foundation")
        options["regions"] = Regions(encoder, regions.clusters, regions.majority)
    return options


def _things(config: FeatureDistanceConfig, classes: Sequence[str], notes: list[str]) -> list[int] | None:
    if config.classes is None:
        return None
    found = [classes.index(name) for name in config.classes if name in classes]
    if absent := [name for name in config.classes if name not in classes]:
        where = "it leaves them out" if found else "it applies to all locations"
        notes.append(f"feature distance: no class is called {', '.join(absent)}; {where}")
    return found or None


def _makers(config: MethodConfig, generator: Generator, mean: Tensor) -> Iterator[ViewMaker]:
    def augment(config: AugmentConfig | None, *, per_image: bool) -> views.Images:
        return StrongAugment(generator, **config.model_dump(), per_image=per_image) if config else views.unchanged

    distort = PhotometricDistortion(generator) if config.distort else views.unchanged
    style = None if config.fourier is None else partial(fourier_adapt, beta=config.fourier.beta)
    if config.global_intensity is None:
        yield views.Source(distort, style)
    else:
        colours = GlobalIntensity(generator, **config.global_intensity.model_dump())
        yield views.Source(Compose([colours, distort]), style)
    if config.labelled is not None:
        yield views.Labelled(distort, config.labelled.weight)
    if config.has_target_view:
        yield views.Target()
    if config.mixed is not None:
        draw = views.ClassMix(generator, of_batch=config.mixed.classes_of == "batch")
        yield views.Mixed(draw, augment(config.mixed.augment, per_image=True))
    if (masked := config.masked) is not None:
        select: dict[str, ViewMaker] = {"target": views.Target(), "source": views.Source(), "both": views.first_of_both}
        hide = views.BlockMask(generator, masked.ratio, masked.block)
        changed = augment(masked.augment, per_image=False)
        yield views.Masked(hide, mean.cpu(), select[masked.images_of], masked.weight, changed)
