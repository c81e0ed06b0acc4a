"""Label shift: class priors of two domains, and what they do to a trained classifier (Undoing, CVPR 2022)."""

from ssrseg.label_shift.counts import image_scores, presence_counts, target_counts
from ssrseg.label_shift.priors import (
    Priors,
    find_priors,
    fold_shift,
    log_ratio,
    published_priors,
    read_priors,
    write_priors,
)

__all__ = [
    "Priors",
    "find_priors",
    "fold_shift",
    "image_scores",
    "log_ratio",
    "presence_counts",
    "published_priors",
    "read_priors",
    "target_counts",
    "write_priors",
]
