"""What would go wrong later is said before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from ssrseg.config import DataConfig, Settings
from ssrseg.data.codes import code_for, resolve_space
from ssrseg.data.label_files import is_colored, read_labels, read_raw_labels
from ssrseg.data.labels import IGNORE, LabelSpace
from ssrseg.data.polygons import polygons_size
from ssrseg.data.reading import read_image
from ssrseg.data.specs import Pair, find_images, find_pairs, spec_of
from ssrseg.data.storage import open_file, read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

File = TypeVar("File", Path, Pair)
LOOKED_AT = 50
"""Files that are read whole; of the others only the header."""


def check_data(settings: Settings) -> list[str]:
    """Look at all data of a run.

    Returns:
        What the user should know, but which does not prevent training.

    Raises:
        UserError: something that does.
    """
    space = resolve_space(settings)
    pairs = find_pairs(settings.source)
    notes = [*_check_labelled(settings.source, settings, space, pairs)]
    notes += _small(settings.source, [pair.image for pair in pairs], settings.loader.crop, "source")
    images: list[Path] = []
    if settings.target is not None:
        images = find_images(settings.target)
        _check_distinct(pairs, images)
        for path in _some(images):
            read_image(path)
        notes += _small(settings.target, images, settings.loader.crop, "target")
    if settings.val is not None:
        scored = find_pairs(settings.val)
        notes += _check_labelled(settings.val, settings, space, scored)
        notes += _shared(scored, [pair.image for pair in pairs], "the source")
        notes += _shared(scored, images, "the target")
    return notes


def _check_labelled(data: DataConfig, settings: Settings, space: LabelSpace, pairs: list[Pair]) -> list[str]:
    code = code_for(data, settings)
    for pair in pairs:
        sizes = size_of(pair.image), size_of(pair.label)
        if sizes[0] != sizes[1]:
            shown = " and ".join("{}x{}".format(*size) for size in sizes)
            raise UserError(f"{pair.image} and its label {pair.label} differ in size: {shown}.")
    seen = torch.zeros(256, dtype=torch.bool)
    plain = data.id_map is None and spec_of(data).ids is None and not _own_ids(settings)
    for pair in _some(pairs):
        read_image(pair.image)
        seen[torch.unique(read_labels(pair.label, code)).int()] = True
        if not plain or (code.colors is not None and is_colored(pair.label)):
            continue
        values = torch.unique(read_raw_labels(pair.label)).int()
        unknown = values[(code.table[values] == IGNORE) & (values != IGNORE)]
        if len(unknown):
            raise UserError(
                f"{pair.label} holds the value {int(unknown[0])}, but there are {space.num_classes} classes "
                f"(0..{space.num_classes - 1}, and {IGNORE} to ignore). "
                "Give every class its raw values (`ids` in `classes`) or the data set an `id_map`."
            )
    absent = [name for i, name in enumerate(space.names) if not seen[i]]
    if len(absent) == space.num_classes:
        raise UserError(
            f"No label of {data.root} shows any class: check `classes` and the raw values (`ids`, `id_map`)."
        )
    if absent:
        return [f"{data.root}: no pixel of {', '.join(absent)} in the {len(_some(pairs))} labels looked at"]
    return []


def _own_ids(settings: Settings) -> bool:
    return isinstance(settings.classes, tuple) and any(entry.ids is not None for entry in settings.classes)


def _check_distinct(pairs: list[Pair], images: list[Path]) -> None:
    source = {pair.image.resolve() for pair in pairs}
    if all(path.resolve() in source for path in images):
        raise UserError("The target's images are all in the source: point `target` at the unlabelled domain.")


def _shared(scored: list[Pair], trained: list[Path], domain: str) -> list[str]:
    """What to say when images are both learnt from and scored, as when `val.split` was forgotten."""
    known = {path.resolve() for path in trained}
    shared = sum(pair.image.resolve() in known for pair in scored)
    if not shared:
        return []
    return [f"{shared} of {len(scored)} images of val are also in {domain}: their score says little about new images"]


def _small(data: DataConfig, images: Sequence[Path], crop: tuple[int, int], domain: str) -> list[str]:
    def is_small(path: Path) -> bool:
        width, height = size_of(path)
        width, height = rescale_size(width, height, data.resize) if data.resize else (width, height)
        return height < crop[0] or width < crop[1]

    small = [path for path in images if is_small(path)]
    if not small:
        return []
    size = "{}x{}".format(*size_of(small[0]))
    return [
        f"{len(small)} of {len(images)} {domain} images are smaller than the crop {crop[1]}x{crop[0]} and will be "
        f"padded, for example {small[0]} ({size}): a smaller loader.crop wastes less"
    ]


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) from the header, as the image is shown (EXIF); raises `UserError` for what is no image."""
    if path.suffix.lower() == ".json":
        return polygons_size(read_bytes(path), path)
    try:
        with open_file(path) as opened, Image.open(opened) as file:
            turned = file.getexif().get(0x0112, 1) >= 5
            return (file.height, file.width) if turned else (file.width, file.height)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def _some(files: list[File]) -> list[File]:
    """At most `LOOKED_AT` of them, evenly spread."""
    return files[:: max(1, -(-len(files) // LOOKED_AT))]
