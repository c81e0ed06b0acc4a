"""Folders of images and labels to batches of bytes."""

from ssrseg.data.checks.survey import refuse_bad_data as refuse_bad_data
from ssrseg.data.datasets import LabelledImage as LabelledImage, LabelledImages as LabelledImages
from ssrseg.data.images import read_image as read_image
from ssrseg.data.label_files import read_labels as read_labels
from ssrseg.data.label_mapping import LabelCode as LabelCode, code_for as code_for, resolve_space as resolve_space
from ssrseg.data.label_spaces import SPACES as SPACES, LabelSpace as LabelSpace
from ssrseg.data.layouts import (
    SPECS as SPECS,
    Pair as Pair,
    Spec as Spec,
    find_bounded as find_bounded,
    find_images as find_images,
    find_pairs as find_pairs,
)
from ssrseg.data.loader import RawBatch as RawBatch, train_batches as train_batches
from ssrseg.data.streams import eval_samples as eval_samples, find_labelled as find_labelled
