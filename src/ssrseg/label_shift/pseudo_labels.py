"""A model's labels for the target as a data set, for another student to be distilled into (Undoing, stage 5)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ssrseg.config import DataConfig, Settings
from ssrseg.data import find_images, read_image, resolve_space
from ssrseg.data.layouts import spec_of
from ssrseg.data.storage import name_below
from ssrseg.errors import UserError
from ssrseg.inference.predict import ids_picture, label_image
from ssrseg.inference.sliding_window import build_inference, evaluating, open_model, pick_device
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_atomically


def label_target(model: Path | str | Segmenter, settings: Settings, out: Path) -> DataConfig:
    """Label every target image, every pixel, with the most likely class.

    Images that have a label map in `out` already are left out, so an interrupted call goes on.

    Args:
        model: the teacher.
        settings: whose `target` is labelled, as their `inference` says.
        out: folder for the label maps: PNGs of class ids, each where its image lies below the target's root.

    Returns:
        The data set: the target's images, the labels in `out`.

    Raises:
        UserError: no target, or an image cannot be read.
    """
    data = labelled_by(settings, out)
    segmenter = open_model(model).to(pick_device(settings.train.accelerator))
    infer = build_inference(settings.inference)
    with evaluating(segmenter):
        for path in find_images(data):
            place = Path(out, name_below(path, data.root)).with_suffix(".png")
            if place.exists():
                continue
            image = read_image(path)
            ids = label_image(segmenter, image, infer).cpu()
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, partial(ids_picture(ids).save, format="PNG"))
    return data


def labelled_by(settings: Settings, folder: Path) -> DataConfig:
    """The target of the settings as a labelled data set, with label maps of ours in `folder`."""
    if settings.target is None:
        raise UserError("There is no target to label: set target.root to a folder of images.")
    data, space = settings.target, resolve_space(settings.classes, settings.source)
    images = data.images or spec_of(data).images
    folders, slash, name = images.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    labels = f"{folders}{slash}{stem}{dot}png" if dot else images
    identity = {i: i for i in range(space.num_classes)}
    return data.model_copy(update={"labels_root": folder, "labels": labels, "id_map": identity, "margins": (0, 0)})
