"""A trained model and two domains in, a model corrected for the shift of their class priors out."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ssrseg.config import Settings
from ssrseg.data import code_for, find_images, find_pairs, read_image, resolve_space
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.datasets import bounded
from ssrseg.errors import UserError
from ssrseg.inference.sliding_window import build_inference, open_model, pick_device
from ssrseg.label_shift import Priors, find_priors, fold_shift, presence_counts, target_counts, write_priors
from ssrseg.models.segmenter import Segmenter, save_segmenter


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
        model: trained on these classes.
        settings: whose `source`, `target` and `inference` are meant.
        out: a JSON file for the result.
        min_share: 0 asks for one pixel.
        device: `auto` or a device of torch's.

    Raises:
        UserError: no target, another number of classes, or something cannot be read.
    """
    if settings.target is None:
        raise UserError("Class priors are those of two domains: set target.root to a folder of images.")
    segmenter, space = open_model(model), resolve_space(settings.classes, settings.source)
    if segmenter.num_classes != space.num_classes:
        raise UserError(f"The model has {segmenter.num_classes} classes, the settings name {space.num_classes}.")
    where = pick_device(device)
    pairs = find_pairs(settings.source)
    statistics = class_statistics(pairs, code_for(settings.source, settings.classes), space.num_classes)
    bound = settings.target.resize
    images = (bounded(read_image(path), bound) for path in find_images(settings.target))
    infer = build_inference(settings.inference)
    frequency = statistics.totals / statistics.totals.sum()
    target = target_counts(segmenter.to(where), images, frequency, infer, device=where)
    source = presence_counts(statistics.pixels, min_share)
    how = f"source: images in which a class covers more than {min_share} of the labelled pixels; target: images whose "
    how += "score exceeds the class's share of the source's pixels"
    priors = Priors(space.names, tuple(source.tolist()), tuple(target.tolist()), how)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_priors(out, priors)
    return priors


def priors_table(priors: Priors) -> Table:
    """Counts and shift per class, for a terminal."""
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
    """Inference adjustment: write the model with the shift of the priors in its classifier's bias.

    Args:
        model: a segmenter with a description, or the file of one.
        priors: themselves, a file, or `gta5-cityscapes`, `synthia-cityscapes`.
        out: the new model file.

    Raises:
        UserError: the priors do not count a class of the model.
    """
    segmenter = open_model(model)
    if segmenter.description is None:
        raise UserError("The model has no description, so its classes are not known: set `segmenter.description`.")
    known = priors if isinstance(priors, Priors) else find_priors(str(priors))
    adjusted = fold_shift(segmenter, known.of(segmenter.description.classes).shift)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_segmenter(adjusted, out)
    return out
