"""Folders of images and labels to batches of bytes."""

from ssrseg.data.checks import check_data
from ssrseg.data.datasets import Labelled, LabelledImages
from ssrseg.data.labels import SPACES, LabelSpace
from ssrseg.data.loaders import Raw, eval_samples, resolve_space, table_for, train_batches
from ssrseg.data.reading import read_image, read_labels
from ssrseg.data.specs import SPECS, Pair, Spec, find_images, find_pairs

__all__ = [
    "SPACES",
    "SPECS",
    "LabelSpace",
    "Labelled",
    "LabelledImages",
    "Pair",
    "Raw",
    "Spec",
    "check_data",
    "eval_samples",
    "find_images",
    "find_pairs",
    "read_image",
    "read_labels",
    "resolve_space",
    "table_for",
    "train_batches",
]
