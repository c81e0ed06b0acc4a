"""Folders of images and labels to batches of bytes."""

from ssrseg.data.checks.survey import refuse_bad_data
from ssrseg.data.datasets import LabelledImage, LabelledImages
from ssrseg.data.images import read_image
from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode, code_for, resolve_space
from ssrseg.data.label_spaces import SPACES, LabelSpace
from ssrseg.data.layouts import SPECS, Pair, Spec, find_bounded, find_images, find_pairs
from ssrseg.data.loader import RawBatch, train_batches
from ssrseg.data.streams import eval_samples, find_labelled

__all__ = [
    "SPACES",
    "SPECS",
    "LabelCode",
    "LabelSpace",
    "LabelledImage",
    "LabelledImages",
    "Pair",
    "RawBatch",
    "Spec",
    "code_for",
    "eval_samples",
    "find_bounded",
    "find_images",
    "find_labelled",
    "find_pairs",
    "read_image",
    "read_labels",
    "refuse_bad_data",
    "resolve_space",
    "train_batches",
]
