"""One image, with its label or without: what it shows and what is wrong with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ssrseg.data.checks.colours import Colour, colour_of
from ssrseg.data.checks.headers import Header, read_header
from ssrseg.data.checks.problems import Problem, problem
from ssrseg.data.images import read_image
from ssrseg.data.label_files import read_labels, read_raw_labels
from ssrseg.data.label_mapping import LabelCode, map_ids
from ssrseg.data.label_spaces import IGNORE
from ssrseg.data.storage import read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

EXTREME = 8
"""Long side by short side."""


@dataclass(frozen=True)
class Wanted:
    """What the files of a data set are expected to be."""

    domain: str
    crop: tuple[int, int]
    """(height, width)."""
    resize: tuple[int, int] | None
    code: LabelCode | None
    """Absent when the settings give no valid one: then labels are only decoded."""
    num_classes: int
    strict: bool
    """Whether a raw value of no class is a fault: nothing maps the values, so it cannot be meant."""

    @property
    def trained(self) -> bool:
        """Whether crops are cut from it."""
        return self.domain != "val"


@dataclass
class Look:
    """What was seen of one image and its label; what was not looked at is absent."""

    image: Path
    label: Path | None
    problems: list[Problem] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """(width, height), as shown."""
    colour: Colour | None = None
    pixels: Tensor | None = None
    """Per class (K,) int64."""
    digest: bytes | None = None
    """Of the image file."""


def look(image: Path, label: Path | None, wanted: Wanted, *, whole: bool) -> Look:
    """Look at a file and its label.

    Args:
        image: the image.
        label: absent for a target.
        wanted: what they should be.
        whole: decode them; else only the headers are read, unless a file seems cut off.
    """
    seen = Look(image, label)

    headers: dict[str, Header] = {}
    for name, path in (("image", image), ("label", label)):
        if path is not None:
            try:
                headers[name] = read_header(path)
            except UserError as error:
                seen.problems.append(problem(f"{name} cannot be read", wanted.domain, path, str(error)))
    if "image" in headers:
        seen.size = headers["image"].shown
        _look_at_header(seen, headers["image"], wanted)
        if whole or not headers["image"].complete:
            _look_at_image(seen, headers["image"], wanted)
    if label is not None and "label" in headers:
        if "image" in headers:
            _compare(seen, headers["image"], headers["label"], wanted)
        if headers["label"].format in ("JPEG", "MPO"):
            seen.problems.append(problem("label is a JPEG", wanted.domain, label, f"{label} is a JPEG."))
        elif whole or not headers["label"].complete:
            _look_at_label(seen, label, headers["label"], wanted)
    return seen


def _look_at_header(seen: Look, header: Header, wanted: Wanted) -> None:
    width, height = header.shown
    shown = f"{seen.image} ({width}x{height}"
    if header.pages > 1:
        text = f"{seen.image} holds {header.pages} pictures."
        seen.problems.append(problem("several pages", wanted.domain, seen.image, text))
    if not wanted.trained:
        return
    seen_size = rescale_size(width, height, wanted.resize) if wanted.resize else (width, height)
    if max(width, height) > EXTREME * min(width, height):
        seen.problems.append(problem("extreme shape", wanted.domain, seen.image, f"{shown})."))
    elif seen_size[1] < wanted.crop[0] or seen_size[0] < wanted.crop[1]:
        text = f"{shown}, crop {wanted.crop[1]}x{wanted.crop[0]})."
        seen.problems.append(problem("smaller than the crop", wanted.domain, seen.image, text))


def _compare(seen: Look, image: Header, label: Header, wanted: Wanted) -> None:
    """Whether image and label are of one size; an image turned by EXIF is compared as it is shown."""
    if image.shown != label.stored:
        text = (
            f"{seen.image} and its label {seen.label} differ in size: {_size(image.shown)} and {_size(label.stored)}."
        )
        if image.stored == label.stored:
            text += (
                f" The camera's EXIF says that the image is to be shown turned (orientation {image.orientation}); "
                "its label shows it as it is stored: turn the label."
            )
        seen.problems.append(problem("sizes differ", wanted.domain, seen.image, text))
    elif image.orientation > 1 and image.stored == image.shown:
        text = (
            f"{seen.image} is shown turned (EXIF orientation {image.orientation}), and the size does not tell whether "
            "its label is."
        )
        seen.problems.append(problem("turned by its camera", wanted.domain, seen.image, text))


def _look_at_image(seen: Look, header: Header, wanted: Wanted) -> None:
    try:
        image = read_image(seen.image)
    except UserError as error:
        seen.problems.append(problem("image cannot be read", wanted.domain, seen.image, str(error)))
        return
    seen.colour = colour_of(image)
    seen.digest = hashlib.blake2b(read_bytes(seen.image), digest_size=16).digest()
    if seen.label is None and wanted.code is not None and _is_label_map(seen.image, image, header, wanted.code):
        text = f"{seen.image} holds values of classes only."
        seen.problems.append(problem("looks like a label map", wanted.domain, seen.image, text))


def _is_label_map(path: Path, image: Tensor, header: Header, code: LabelCode) -> bool:
    """One channel, all of whose values mean a class or ignore; black and white alone is a picture."""
    if header.mode not in ("L", "P"):
        return False
    values = torch.unique(image[0] if header.mode == "L" else read_raw_labels(path)).int()
    known = bool(((code.table[values] != IGNORE) | (values == IGNORE)).all())
    return known and not set(values.tolist()) <= {0, IGNORE}


def _look_at_label(seen: Look, label: Path, header: Header, wanted: Wanted) -> None:
    def report(kind: str, text: str) -> None:
        seen.problems.append(problem(kind, wanted.domain, label, text))

    try:
        ids, strange = _ids(label, header, wanted)
    except UserError as error:
        report("label cannot be read", str(error))
        return
    if ids is None:
        return
    seen.pixels = torch.bincount(ids.flatten(), minlength=256)[: wanted.num_classes]
    shown = int((seen.pixels > 0).sum())
    if strange:
        values = ", ".join(map(str, strange[:5])) + (" ..." if len(strange) > 5 else "")
        plural = "s" if len(strange) > 1 else ""
        classes = f"{wanted.num_classes} classes (0..{wanted.num_classes - 1}, and {IGNORE} to ignore)"
        report("value of no class", f"{label} holds the value{plural} {values}, but there are {classes}.")
    elif not shown:
        report("label without any class", f"{label} shows no class.")
    elif wanted.domain == "source" and shown == 1 and wanted.num_classes > 1:
        report("label of one class", f"{label} shows class {int(seen.pixels.argmax())} only.")


def _ids(label: Path, header: Header, wanted: Wanted) -> tuple[Tensor | None, list[int]]:
    """Class ids, absent without a code, and the raw values that should mean a class but do not."""
    code = wanted.code
    if code is not None and header.mode in ("RGB", "RGBA") and code.colors is not None:
        return read_labels(label, code), []  # colours: an unknown one is their reader's error
    raw = read_raw_labels(label)
    if code is None:
        return None, []
    values = torch.unique(raw).int()
    strange = values[(code.table[values] == IGNORE) & (values != IGNORE)]
    return map_ids(raw, code.table), strange.tolist() if wanted.strict else []


def _size(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)
