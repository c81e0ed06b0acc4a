"""Folders of images and labels to batches of bytes."""

from ssrseg.data.checks.check import check_data
from ssrseg.data.datasets import Labelled, LabelledImages
from ssrseg.data.images import read_image
from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode, code_for, resolve_space
from ssrseg.data.label_spaces import SPACES, LabelSpace
from ssrseg.data.layouts import SPECS, Pair, Spec, find_images, find_pairs
from ssrseg.data.loader import Batches, Raw
from ssrseg.data.loaders import eval_samples, train_batches

__all__ = [
    "SPACES",
    "SPECS",
    "Batches",
    "LabelCode",
    "LabelSpace",
    "Labelled",
    "LabelledImages",
    "Pair",
    "Raw",
    "Spec",
    "check_data",
    "code_for",
    "eval_samples",
    "find_images",
    "find_pairs",
    "read_image",
    "read_labels",
    "resolve_space",
    "train_batches",
]
