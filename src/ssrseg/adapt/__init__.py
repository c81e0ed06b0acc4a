"""The algorithm: views, terms, teacher, learner, and the step that combines them."""

from ssrseg.adapt.alignment import Alignment, Discriminator, frozen_call
from ssrseg.adapt.augment import StrongAugment, color_jitter, gaussian_blur
from ssrseg.adapt.batch import IGNORE, Batch, Pseudo, View
from ssrseg.adapt.foundation import Frozen, build_encoder, feature_map
from ssrseg.adapt.learner import Learner, ViewMaker, adapt
from ssrseg.adapt.methods import Method, build_method
from ssrseg.adapt.regularizer import CrossAttention, Regularizer
from ssrseg.adapt.teacher import NoTeacher, Teacher, pseudo_label
from ssrseg.adapt.terms import (
    FeatureDistance,
    Segmentation,
    Term,
    downscale_labels,
    feature_distance,
    segmentation_loss,
)
from ssrseg.adapt.views import (
    BlockMask,
    ClassMix,
    Masked,
    Mixed,
    Source,
    Target,
    block_mask,
    class_mask,
    mix,
)

__all__ = [
    "IGNORE",
    "Alignment",
    "Batch",
    "BlockMask",
    "ClassMix",
    "CrossAttention",
    "Discriminator",
    "FeatureDistance",
    "Frozen",
    "Learner",
    "Masked",
    "Method",
    "Mixed",
    "NoTeacher",
    "Pseudo",
    "Regularizer",
    "Segmentation",
    "Source",
    "StrongAugment",
    "Target",
    "Teacher",
    "Term",
    "View",
    "ViewMaker",
    "adapt",
    "block_mask",
    "build_encoder",
    "build_method",
    "class_mask",
    "color_jitter",
    "downscale_labels",
    "feature_distance",
    "feature_map",
    "frozen_call",
    "gaussian_blur",
    "mix",
    "pseudo_label",
    "segmentation_loss",
]
