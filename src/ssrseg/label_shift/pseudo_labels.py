"""A model's labels for the target as a data set, for another student to be distilled into (Undoing, stage 5)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ssrseg.config import DataConfig
from ssrseg.data import find_images, read_image
from ssrseg.data.layouts import spec_of
from ssrseg.data.storage import name_below
from ssrseg.errors import UserError
from ssrseg.inference.predictor import Predictor
from ssrseg.inference.results import draw
from ssrseg.runs.atomic import write_atomically, writing


def label_target(predictor: Predictor, data: DataConfig, out: Path) -> None:
    """Label every image of a data set, every pixel, with the most likely class.

    Images that have a label map in `out` already are left out, so an interrupted call goes on.

    Args:
        predictor: the teacher.
        data: whose images are labelled.
        out: folder for the label maps: PNGs of class ids, each where its image lies below the data's root.

    Raises:
        UserError: an image cannot be read.
    """
    for path in find_images(data):
        place = Path(out, name_below(path, data.root)).with_suffix(".png")
        if place.exists():
            continue
        image = read_image(path, predictor.reading)
        picture = draw("ids", image, predictor(image), predictor.colors)
        with writing(place):
            write_atomically(place, partial(picture.save, format="PNG"))


def labelled_by(data: DataConfig | None, num_classes: int, folder: Path) -> DataConfig:
    """Describe a target as a labelled data set, with label maps of `label_target` in `folder`.

    Raises:
        UserError: no target.
    """
    if data is None:
        raise UserError("There is no target to label: set target.root to a folder of images.")
    images = data.images or spec_of(data).images
    folders, slash, name = images.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    labels = f"{folders}{slash}{stem}{dot}png" if dot else images
    identity = {i: i for i in range(num_classes)}
    known = {"labels_root": folder, "labels": labels, "id_map": identity}
    return data.model_copy(update={**known, "margins": (0, 0), "labelled": None})
