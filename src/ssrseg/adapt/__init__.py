"""The algorithm: views, terms, teacher, learner, and the step that combines them."""

from ssrseg.adapt.alignment import Alignment as Alignment, frozen_call as frozen_call
from ssrseg.adapt.augment import StrongAugment as StrongAugment
from ssrseg.adapt.batch import IGNORE as IGNORE, Batch as Batch, Pseudo as Pseudo, View as View
from ssrseg.adapt.distillation import Affinity as Affinity, Distillation as Distillation
from ssrseg.adapt.foundation import Frozen as Frozen, build_encoder as build_encoder
from ssrseg.adapt.learner import Learner as Learner, ViewMaker as ViewMaker, adapt as adapt
from ssrseg.adapt.methods import Method as Method, build_method as build_method
from ssrseg.adapt.regions import Regions as Regions
from ssrseg.adapt.regularizer import Regularizer as Regularizer
from ssrseg.adapt.teacher import Teacher as Teacher, pseudo_label as pseudo_label
from ssrseg.adapt.terms import (
    FeatureDistance as FeatureDistance,
    Segmentation as Segmentation,
    Term as Term,
    feature_distance as feature_distance,
    segmentation_loss as segmentation_loss,
)
from ssrseg.adapt.views import (
    BlockMask as BlockMask,
    ClassMix as ClassMix,
    Masked as Masked,
    Mixed as Mixed,
    Source as Source,
    Target as Target,
)
