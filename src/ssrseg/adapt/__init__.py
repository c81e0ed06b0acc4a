"""The algorithm: views, terms, teacher, learner, and the step that joins them."""

from ssrseg.adapt.alignment import Alignment, Discriminator, Entropy, OutputAlignment
from ssrseg.adapt.augment import StrongAugment, color_jitter, gaussian_blur
from ssrseg.adapt.batch import IGNORE, Batch, Pseudo, View
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
    target_view,
)

__all__ = [
    "IGNORE",
    "Alignment",
    "Batch",
    "BlockMask",
    "ClassMix",
    "CrossAttention",
    "Discriminator",
    "Entropy",
    "FeatureDistance",
    "Learner",
    "Masked",
    "Method",
    "Mixed",
    "NoTeacher",
    "OutputAlignment",
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
    "build_method",
    "class_mask",
    "color_jitter",
    "downscale_labels",
    "feature_distance",
    "gaussian_blur",
    "mix",
    "pseudo_label",
    "segmentation_loss",
    "target_view",
]
