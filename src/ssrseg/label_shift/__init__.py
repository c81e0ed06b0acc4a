"""Label shift: class priors of two domains, and what they do to a trained classifier (Undoing, CVPR 2022)."""

from ssrseg.label_shift.correct import (
    adjust as adjust,
    estimate_priors as estimate_priors,
    priors_table as priors_table,
)
from ssrseg.label_shift.priors import (
    Priors as Priors,
    find_priors as find_priors,
    fold_shift as fold_shift,
    log_ratio as log_ratio,
    published_priors as published_priors,
    read_priors as read_priors,
)
from ssrseg.label_shift.pseudo_labels import label_target as label_target, labelled_by as labelled_by
