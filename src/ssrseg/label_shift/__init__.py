"""Label shift: class priors of two domains, and what they do to a trained classifier (Undoing, CVPR 2022)."""

from ssrseg.label_shift.correct import adjust, estimate_priors, priors_table
from ssrseg.label_shift.priors import Priors, find_priors, fold_shift, log_ratio, published_priors, read_priors
from ssrseg.label_shift.pseudo_labels import label_target, labelled_by

__all__ = [
    "Priors",
    "adjust",
    "estimate_priors",
    "find_priors",
    "fold_shift",
    "label_target",
    "labelled_by",
    "log_ratio",
    "priors_table",
    "published_priors",
    "read_priors",
]
