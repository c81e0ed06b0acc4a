"""Examine one image, with its label or without: header, pixels, colours, faults."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssrseg.config.data import Bound
from ssrseg.data.annotations import names_of_no_class, read_annotation
from ssrseg.data.checks.colours import Moments, colour_moments
from ssrseg.data.checks.problems import Problem, id_map_word
from ssrseg.data.checks.thickness import thickness_counts
from ssrseg.data.encodings import BROKEN, reason_of
from ssrseg.data.images import TAIL, Reading, bands_beyond_pillow, deep_values, orientation_of, parts_of, read_image
from ssrseg.data.label_encodings import LossyLabel, UnknownEncoding, read_stored_labels
from ssrseg.data.label_files import LabelMap, describe_labels, read_raw_labels
from ssrseg.data.label_mapping import LabelCode
from ssrseg.data.label_spaces import IGNORE
from ssrseg.data.polygons import polygons_size
from ssrseg.data.storage import open_file, read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

SAMPLES = 277
"""The TIFF tag that counts bands."""
LISTED = 5
"""Values of no class that a message lists; more of them are no mistake of one value."""
NO_CLASSES = ("label of another kind", "label is a JPEG")
"""Faults of labels that may be photographs."""
EXTREME = 8
"""Ratio of the long to the short side above which an image is reported."""


@dataclass(frozen=True)
class Header:
    """Properties of an image file, from its first and last bytes alone."""

    stored: tuple[int, int]
    """(width, height) of the pixels as they lie in the file: a label's size."""
    shown: tuple[int, int]
    """(width, height) as the camera held it: an image's size."""
    orientation: int
    """EXIF: 1 is upright, 2 to 4 keep width and height, 5 to 8 swap them."""
    mode: str
    """Pillow's."""
    format: str
    pages: int
    bands: int
    complete: bool
    """Whether the file ends as its format demands; only PNG and JPEG are examined."""


def read_header(path: Path) -> Header:
    """Read the header of an image file; raises `UserError` for what is missing or no image."""
    if path.suffix.lower() == ".json":
        size = polygons_size(read_bytes(path), path)
        return Header(size, size, 1, "L", "JSON", 1, 1, True)
    if path.suffix.lower() in (".npy", ".tif", ".tiff") and (bands := bands_beyond_pillow(path)) is not None:
        return Header(bands[:2], bands[:2], 1, "", "", 1, bands[2], True)
    try:
        with open_file(path) as file, Image.open(file) as image:
            stored, kind, begin = image.size, image.format or "", file.tell()
            file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL))
            tail = file.read()
            file.seek(begin)  # where Pillow goes on
            orientation = orientation_of(image, tail)
            shown = (stored[1], stored[0]) if orientation >= 5 else stored
            # A phone's JPEG of format MPO holds a preview or depth beside the photograph.
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            complete = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind, b"") in tail[-64:]
            bands = getattr(image, "tag_v2", {}).get(SAMPLES, len(image.getbands()))  # Pillow drops a TIFF's fifth
            return Header(stored, shown, orientation, image.mode, kind, pages, bands, complete)
    except BROKEN as error:
        encoded = read_bytes(path)  # an empty file has a message of its own
        raise UserError(f"{path} cannot be read as an image: {reason_of(error, encoded)}") from error


@dataclass(frozen=True)
class Expected:
    """Requirements on the files of a data set."""

    domain: str
    """Its role, and of several data sets its name."""
    crop: tuple[int, int]
    """(height, width)."""
    resize: Bound | None
    code: LabelCode | None
    """Absent when the settings give no valid one: then labels are only decoded."""
    num_classes: int
    reading: Reading
    """How images are read: `model.in_channels`, and what becomes black and white."""
    strict: bool
    """Whether a raw value of no class is a fault: nothing maps the values, so it cannot be meant."""

    @property
    def role(self) -> str:
        """`source`, `target`, `labelled` (of the target) or `val`."""
        return self.domain.partition(" ")[0]


@dataclass
class Inspection:
    """Findings in one image and its label; None where nothing was examined."""

    image: Path
    label: Path | None
    """Absent for a target."""
    expected: Expected
    problems: list[Problem] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """(width, height), as shown."""
    colour: Moments | None = None
    deep: tuple[float, float] | None = None
    """Of an image of 16 bits: the value that 99.9% of its pixels stay below, and the largest possible."""
    pixels: Tensor | None = None
    """Per class (K,) int64."""
    labels: LabelMap | None = None
    """What the label holds."""
    thickness: Tensor | None = None
    """`thickness_counts` at the training size."""
    digest: bytes | None = None
    """Of the image file."""
    holds_classes: bool = False
    """Whether the image has values of classes only, as a label map."""

    def report(self, kind: str, path: Path, text: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, self.expected.domain, path, text))


def inspect_files(
    image: Path,
    label: Path | None,
    expected: Expected,
    *,
    whole: bool,
    labelled: bool | None = None,
    measured: bool = False,
) -> Inspection:
    """Examine an image and its label: decode them if `whole`, else read the headers, unless a file seems cut off.

    The label is decoded if `labelled`, or as the image when absent. How thick its classes are is only `measured` in a
    label that is decoded.
    """
    seen = Inspection(image, label, expected)
    headers: dict[str, Header] = {}
    named = expected.code is not None and expected.code.names is not None
    for name, path in (("image", image), ("label", label)):
        if path is not None:
            try:
                if named and name == "label":
                    size = read_annotation(path).size or headers["image"].shown
                    headers[name] = Header(size, size, 1, "", "", 1, 1, True)
                    continue
                headers[name] = read_header(path)
            except UserError as error:
                seen.report(f"{name} cannot be read", path, str(error))
    if header := headers.get("image"):
        seen.size = header.shown
        _check_header(seen, header)
        if whole or not header.complete:
            _check_image(seen, header)
    if label is not None and (header := headers.get("label")):
        if header.pages > 1:
            seen.report("several pages", label, f"{label} holds {header.pages} labels.")
        if "image" in headers:
            _compare(seen, headers["image"], header)
        if header.format in ("JPEG", "MPO"):
            seen.report("label is a JPEG", label, f"{label} is a JPEG.")
        elif (whole if labelled is None else labelled) or not header.complete:
            _check_label(seen, label, measured)
        if seen.holds_classes and any(one.kind in NO_CLASSES for one in seen.problems):
            seen.problems = [one for one in seen.problems if one.kind not in NO_CLASSES]
            text = f"{image} holds values of classes only, and its label {label} none."
            seen.report("image and label are exchanged", image, text)
    return seen


def _check_header(seen: Inspection, header: Header) -> None:
    width, height = header.shown
    crop, resize = seen.expected.crop, seen.expected.resize
    shown = f"{seen.image} ({width}x{height}"
    if header.pages > 1:
        seen.report("several pages", seen.image, f"{seen.image} holds {header.pages} pictures.")
    if parts_of(seen.expected.reading)[0] == 3 and header.bands not in (1, 3) and header.mode != "CMYK":
        unused = {2: "the second is", 4: "the fourth is"}.get(header.bands, "those after the third are")
        text = f"{seen.image} has {header.bands} bands: {unused} not used, but by model.in_channels={header.bands}."
        seen.report("band that is not used", seen.image, text)
    if seen.expected.role == "val":  # no crops are cut from it
        return
    resized = rescale_size(width, height, resize) if resize else (width, height)
    if max(width, height) > EXTREME * min(width, height):
        seen.report("extreme shape", seen.image, f"{shown}).")
    elif resized[1] < crop[0] or resized[0] < crop[1]:
        seen.report("smaller than the crop", seen.image, f"{shown}, crop {crop[1]}x{crop[0]}).")


def _compare(seen: Inspection, image: Header, label: Header) -> None:
    """Report an image and a label that differ in size; an image turned by EXIF is compared as it is shown.

    A label that is only scored with may be larger or smaller than its image, of the same shape.
    """
    if image.shown != label.shown and not (seen.expected.role == "val" and _same_shape(image.shown, label.shown)):
        sizes = "{}x{} and {}x{}".format(*image.shown, *label.shown)
        text = f"{seen.image} and its label {seen.label} differ in size: {sizes}."
        if image.stored == label.shown:
            text += (
                f" The camera's EXIF says that the image is to be shown turned (orientation {image.orientation}); "
                "its label shows it as it is stored: turn the label."
            )
        seen.report("sizes differ", seen.image, text)
    elif image.orientation > 1 and image.stored == image.shown and label.orientation == 1:
        text = (
            f"{seen.image} is shown turned (EXIF orientation {image.orientation}), and the size does not tell whether "
            "its label is."
        )
        seen.report("turned by its camera", seen.image, text)


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other times a factor, and not the same but for a few pixels at the border."""
    factor = other[0] / size[0]
    return abs(other[1] - size[1] * factor) <= max(1, factor) and not 0.9 < factor < 1.1


def _check_image(seen: Inspection, header: Header) -> None:
    code = seen.expected.code
    try:
        image = read_image(seen.image, seen.expected.reading)
    except UserError as error:
        seen.report("image cannot be read", seen.image, str(error))
        return
    seen.colour = colour_moments(image)
    if parts_of(seen.expected.reading)[1:] == (None, None):
        seen.deep = deep_values(seen.image)
    seen.digest = hashlib.blake2b(read_bytes(seen.image), digest_size=16).digest()
    if code is not None and header.mode in ("L", "P"):
        values = np.unique(image[0] if header.mode == "L" else read_raw_labels(seen.image))
        known = bool(((code.table[values.astype(np.int64)] != IGNORE) | torch.from_numpy(values == IGNORE)).all())
        seen.holds_classes = known and not set(values.tolist()) <= {0, IGNORE}  # black and white alone is a picture
    if seen.holds_classes and seen.label is None:
        seen.report("looks like a label map", seen.image, f"{seen.image} holds values of classes only.")


def _strange_values(found: LabelMap, code: LabelCode) -> list[float]:
    """Return the values that nothing says the meaning of; negative and infinite ones mean no class."""
    values = [value for value in found.values or () if value >= 0 and np.isfinite(value) and value != IGNORE]
    return [value for value in values if value >= len(code.table) or code.table[int(value)] == IGNORE]


def _check_label(seen: Inspection, label: Path, measured: bool) -> None:
    code, count = seen.expected.code, seen.expected.num_classes
    try:
        if code is None:
            read_stored_labels(label)
            return
        seen.labels = found = describe_labels(label, code, seen.image)
    except UserError as error:
        kinds = {UnknownEncoding: "label of another kind", LossyLabel: "label is a JPEG"}
        seen.report(kinds.get(type(error), "label cannot be read"), label, str(error))
        return
    ids = found.ids
    seen.pixels = torch.bincount(ids.flatten(), minlength=256)[:count]
    if measured:
        size, resize = (ids.shape[1], ids.shape[0]), seen.expected.resize
        seen.thickness = thickness_counts(ids.numpy(), rescale_size(*size, resize) if resize else size, count)
    shown = int((seen.pixels > 0).sum())
    if code.names is not None and (unnamed := names_of_no_class(label, code.names)):
        listed = ", ".join(map(repr, unnamed[:5])) + (" ..." if len(unnamed) > 5 else "")
        seen.report("name of no class", label, f"{label} names {listed}, which no class takes.")
    if seen.expected.strict and (strange := _strange_values(found, code)):
        listed = ", ".join(f"{value:.9g}" for value in strange[:LISTED]) + (" ..." if len(strange) > LISTED else "")
        plural = "s" if len(strange) > 1 else ""
        raw = torch.nonzero(code.table != IGNORE).flatten().tolist()
        values = f"0..{count - 1}" if raw == [*range(count)] else ", ".join(map(str, raw))
        classes = f"{count} classes ({values}{'' if IGNORE in raw else f', and {IGNORE} to ignore'})"
        text = f"{label} holds the value{plural} {listed}, but there are {classes}."
        kept = {value: int(code.table[value]) for value in raw if value in (found.values or ())}
        if IGNORE in kept:
            kept.pop(1, None)  # 0 and 255 are the mask, and 1 one of the values between
        if len(strange) > LISTED and len(kept) > 1:
            word = id_map_word(seen.expected.domain, kept)
            text += f" Values between those of classes come from resizing with interpolation: {word} ignores them."
        seen.report("value of no class", label, text)
    elif not shown:
        seen.report("label without any class", label, f"{label} shows no class.")
    elif seen.expected.role == "source" and shown == 1 and count > 1:
        seen.report("label of one class", label, f"{label} shows class {int(seen.pixels.argmax())} only.")
