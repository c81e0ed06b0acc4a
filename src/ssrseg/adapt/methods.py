"""`build_method` composes views and terms: the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ssrseg.adapt import views
from ssrseg.adapt.alignment import Alignment, Entropy, OutputAlignment
from ssrseg.adapt.augment import PhotometricDistortion, StrongAugment
from ssrseg.adapt.foundation import Frozen, build_encoder, frozen_backbone
from ssrseg.adapt.jitter import Jitter
from ssrseg.adapt.learner import Learner, ViewMaker
from ssrseg.adapt.regularizer import Regularizer
from ssrseg.adapt.teacher import NoTeacher, Teacher
from ssrseg.adapt.terms import FeatureDistance, Segmentation, Term
from ssrseg.config import (
    AlignmentConfig,
    AugmentConfig,
    FeatureDistanceConfig,
    MaskedConfig,
    MethodConfig,
    MixedConfig,
    RegularizerConfig,
    SegmentationConfig,
)
from ssrseg.label_shift import find_priors
from ssrseg.models.segmenter import Segmenter


@dataclass(frozen=True)
class Method:
    """A method, composed: what is trained, who labels, what the student looks at."""

    learner: Learner
    teacher: Teacher | NoTeacher
    makers: tuple[ViewMaker, ...]
    generator: Generator
    """Every draw of the view makers comes from here; its state belongs into a checkpoint."""
    frozen: tuple[Frozen, ...]
    """Used in training, registered nowhere."""
    notes: tuple[str, ...] = ()
    """What the user should know about this composition."""

    def to(self, device: torch.device | str) -> Method:
        """All parts moved in place; the generator stays on the CPU."""
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
) -> Method:
    """The method that `config` describes, around `student`.

    Args:
        config: which views and terms.
        student: with its ImageNet weights already loaded: the feature distance copies its backbone as it is now.
        classes: names in the order of their ids.
        crop: (height, width) of the training crops.
        seed: of the view makers' draws.
        foundation: the frozen encoder itself, instead of the one that the config names.
        imagenet: images in [0, 1] -> frozen ImageNet features, instead of the copied backbone.
        terms: terms of your own, by name, beside the method's.
        makers: view makers of your own, after the method's.

    Raises:
        UserError: the foundation encoder is unknown or its weights cannot be loaded.
    """
    generator, notes = Generator().manual_seed(seed), list[str]()
    composed: dict[str, Term] = {"segmentation": _segmentation(config.segmentation, classes)}
    frozen: list[Frozen] = []
    if config.regularizer is not None and not config.regularizer.stages:
        notes.append("regularizer: no stage is regularised, which is the plain method")
    elif config.regularizer is not None:
        foundation = foundation or build_encoder(config.regularizer.foundation, crop)
        frozen.append(foundation)
        notes += [foundation.note] if foundation.note else []
        composed["regularizer"] = _regularizer(config.regularizer, student, foundation)
    if config.feature_distance is not None:
        if imagenet is None:
            imagenet = frozen_backbone(student.backbone)
            frozen.append(imagenet)
        composed["feature_distance"] = _feature_distance(config.feature_distance, imagenet, classes, notes)
    if config.alignment is not None:
        composed["alignment"] = _alignment(config.alignment, student)
    if config.entropy is not None:
        composed["entropy"] = Entropy(weight=config.entropy.weight)
    return Method(
        learner=Learner(student, {**composed, **(terms or {})}, head_only=config.trains == "head"),
        teacher=_teacher(config, student, composed),
        makers=(*_makers(config, generator, student.mean), *makers),
        generator=generator,
        frozen=tuple(frozen),
        notes=tuple(notes),
    )


def _makers(config: MethodConfig, generator: Generator, mean: Tensor) -> Iterator[ViewMaker]:
    jitter = config.jitter and Jitter(generator, config.jitter.strength, config.jitter.hue)
    yield views.Source(PhotometricDistortion(generator) if config.distort else jitter or views.unchanged)
    if config.alignment is not None or config.entropy is not None:
        yield views.Target(jitter or views.unchanged)
    if config.mixed is not None:
        yield _mixed(config.mixed, generator)
    if config.masked is not None:
        yield _masked(config.masked, generator, mean)


def _teacher(config: MethodConfig, student: Segmenter, terms: Mapping[str, Term]) -> Teacher | NoTeacher:
    if config.teacher is None:
        return NoTeacher()
    return Teacher(
        student,
        decay=config.teacher.decay,
        threshold=config.teacher.threshold,
        after_step=config.teacher.after_step,
        look=_look(config.regularizer, terms),
    )


def _segmentation(config: SegmentationConfig, classes: Sequence[str]) -> Segmentation:
    return Segmentation(
        ("source", "mixed", "masked"),
        temperature=config.temperature,
        shift=None if config.priors is None else -find_priors(config.priors).of(classes).shift,
        over_labelled=config.over_labelled,
    )


def _alignment(config: AlignmentConfig, student: Segmenter) -> Term:
    if config.of != "class":
        return OutputAlignment(student.num_classes, entropy=config.of == "entropy", weight=config.weight)
    return Alignment(
        student.backbone.channels[-1],
        student.num_classes,
        weight=config.weight,
        temperature=config.temperature,
        clip=config.clip,
    )


def _regularizer(config: RegularizerConfig, student: Segmenter, foundation: Frozen) -> Regularizer:
    return Regularizer(
        foundation,
        foundation.channels,
        student.backbone.channels,
        stages=config.stages,
        heads=config.heads,
        own_statistics=config.bn_stats == "shared",
        views=config.views,
        weight=config.weight,
    )


def _look(config: RegularizerConfig | None, terms: Mapping[str, Term]) -> Callable[[Segmenter, Tensor], Tensor]:
    regularizer = terms.get("regularizer")
    if config is not None and config.pseudo_labels == "both" and isinstance(regularizer, Regularizer):
        return regularizer.by_both
    return Segmenter.__call__


def _feature_distance(
    config: FeatureDistanceConfig, imagenet: Callable[[Tensor], Tensor], classes: Sequence[str], notes: list[str]
) -> FeatureDistance:
    things = _things(config, classes, notes)
    return FeatureDistance(imagenet, len(classes), classes=things, min_share=config.min_share, weight=config.weight)


def _things(config: FeatureDistanceConfig, classes: Sequence[str], notes: list[str]) -> list[int] | None:
    if config.classes is None:
        return None
    found = [classes.index(name) for name in config.classes if name in classes]
    absent = [name for name in config.classes if name not in classes]
    if absent:
        where = "it applies to all locations" if not found else "it leaves them out"
        notes.append(f"feature distance: no class is called {', '.join(absent)}; {where}")
    return found or None


def _mixed(config: MixedConfig, generator: Generator) -> views.Mixed:
    draw = views.ClassMix(generator, of_batch=config.classes_of == "batch")
    return views.Mixed(draw, _augment(config.augment, generator, per_image=True))


def _masked(config: MaskedConfig, generator: Generator, mean: Tensor) -> views.Masked:
    select = {"target": views.of_target, "source": views.of_source, "both": views.of_both}[config.images_of]
    augment = _augment(config.augment, generator, per_image=False)
    return views.Masked(
        views.BlockMask(generator, config.ratio, config.block), mean.cpu(), select, config.weight, augment
    )


def _augment(config: AugmentConfig | None, generator: Generator, *, per_image: bool) -> views.Images:
    if config is None:
        return views.unchanged
    return StrongAugment(generator, config.strength, config.jitter_skipped, config.blur_skipped, per_image)
