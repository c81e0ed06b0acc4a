"""The algorithm: views, terms, teacher, learner, and the step that combines them."""

from ssrseg.adapt.alignment import Alignment, frozen_call
from ssrseg.adapt.augment import StrongAugment
from ssrseg.adapt.batch import IGNORE, Batch, Pseudo, View
from ssrseg.adapt.foundation import Frozen, build_encoder
from ssrseg.adapt.learner import Learner, ViewMaker, adapt
from ssrseg.adapt.methods import Method, build_method
from ssrseg.adapt.regularizer import Regularizer
from ssrseg.adapt.teacher import Teacher, pseudo_label
from ssrseg.adapt.terms import FeatureDistance, Segmentation, Term, feature_distance, segmentation_loss
from ssrseg.adapt.views import BlockMask, ClassMix, Masked, Mixed, Source, Target

__all__ = [
    "IGNORE",
    "Alignment",
    "Batch",
    "BlockMask",
    "ClassMix",
    "FeatureDistance",
    "Frozen",
    "Learner",
    "Masked",
    "Method",
    "Mixed",
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
    "build_encoder",
    "build_method",
    "feature_distance",
    "frozen_call",
    "pseudo_label",
    "segmentation_loss",
]
