"""Correction of a trained model for the shift of class priors between two domains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from rich.table import Table

from ssrseg.config import Settings, datasets
from ssrseg.data import code_for, find_bounded, find_pairs, read_image, refuse_bad_data, resolve_space
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.datasets import bounded
from ssrseg.errors import UserError
from ssrseg.inference.predict import prefetch
from ssrseg.inference.predictor import Predictor
from ssrseg.label_shift.priors import Priors, find_priors, fold_shift, presence_counts, target_counts
from ssrseg.models.classes import check_classes
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.models.weights import load
from ssrseg.runs.atomic import write_json, writing


def estimate_priors(
    model: Path | str | Segmenter,
    settings: Settings,
    *,
    out: Path | None = None,
    min_share: float = 0.0,
    device: str = "auto",
) -> Priors:
    """Count in how many images every class occurs: by labels in the source, by the model's predictions in the target.

    The rule of the target is the one of Undoing's release (`ssrseg.label_shift.target_counts`). Its rule of the source
    is not known; ours counts an image for a class that covers more than `min_share` of its labelled pixels.

    Args:
        model: trained on these classes; or where it lies, as in `ssrseg.Predictor`.
        settings: `classes`, `source`, `target` and `inference` of them.
        out: a JSON file for the result.
        min_share: 0 asks for one pixel.
        device: `auto` or a device of torch's.

    Raises:
        UserError: no target, other classes, labels that mean something else, or something cannot be read.
    """
    if settings.target is None:
        raise UserError("Class priors are those of two domains: set target.root to a folder of images.")
    source, target, space = settings.source, settings.target, resolve_space(settings.classes, settings.source)
    segmenter = load(model)
    check_classes(segmenter, space.names)
    refuse_bad_data(settings)
    predictor = Predictor(segmenter, device, mode=settings.inference)
    codes = [(find_pairs(one), code_for(one, settings.classes, source)) for one in datasets(source)]
    pixels = torch.cat([class_statistics(pairs, code, space.num_classes).pixels for pairs, code in codes])
    frequency = pixels.sum(dim=0) / pixels.sum()
    images = prefetch(bounded(read_image(path, predictor.reading), bound) for path, bound in find_bounded(target))
    counts = presence_counts(pixels, min_share), target_counts(predictor, images, frequency)
    how = f"source: images in which a class covers more than {min_share} of the labelled pixels; target: images whose "
    how += "score exceeds the class's share of the source's pixels"
    priors = Priors(space.names, tuple(counts[0].tolist()), tuple(counts[1].tolist()), how)
    if out is not None:
        with writing(out):
            write_json(out, dataclasses.asdict(priors))
    return priors


def priors_table(priors: Priors) -> Table:
    """Tabulate counts and shift per class, for a terminal."""
    table = Table("class", box=None)
    for heading in ("source", "target", "shift"):
        table.add_column(heading, justify="right")
    for name, source, target, shift in zip(
        priors.classes, priors.source, priors.target, priors.shift.tolist(), strict=True
    ):
        guessed = " (a guess: hardly any image)" if name in priors.rare else ""
        table.add_row(name, f"{source:g}", f"{target:g}", f"{shift:+.2f}{guessed}")
    return table


def adjust(model: Path | str | Segmenter, priors: Priors | Path | str, out: Path) -> Path:
    """Write the model with the shift of the priors in its classifier's bias: inference adjustment.

    The priors may be a file, or `gta5-cityscapes` or `synthia-cityscapes`.

    Raises:
        UserError: the priors do not count a class of the model, or the model has no description.
    """
    segmenter = load(model)
    if segmenter.description is None:
        raise UserError("The model has no description, so its classes are not known: set `segmenter.description`.")
    known = priors if isinstance(priors, Priors) else find_priors(str(priors))
    adjusted = fold_shift(segmenter, known.of(segmenter.description.classes).shift)
    with writing(out):
        save_segmenter(adjusted, out)
    return out
