"""Examine one image, with its label or without: header, pixels, colours, faults."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ssrseg.config.data import Bound
from ssrseg.data.annotations import names_of_no_class, read_annotation
from ssrseg.data.checks.problems import Problem
from ssrseg.data.images import BROKEN, TAIL, as_rgb, bands_beyond_pillow, orientation_of, read_image
from ssrseg.data.label_files import polygons_size, read_labels, read_raw_labels
from ssrseg.data.label_mapping import LabelCode, map_ids
from ssrseg.data.label_spaces import IGNORE
from ssrseg.data.storage import open_file, read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError, first_line

SAMPLES = 277
"""The TIFF tag that counts bands."""
EXTREME = 8
"""Ratio of the long to the short side above which an image is reported."""
PIXELS = 256
"""Rows and columns, about, from which the colour statistics of an image are computed."""
CELL = 4
"""Pixels across for which SegFormer's and DAFormer's heads decide once (DeepLabV2 even for 8): their output stride."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in perceived brightness (ITU-R BT.601)."""


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
        read_bytes(path)  # an empty file has a message of its own
        raise UserError(f"{path} cannot be read as an image: {first_line(error)}") from error


Ids = npt.NDArray[np.uint8]

Moments = npt.NDArray[np.float64]
"""Colours of an image (2 C + 3,): means of its C bands in 0..255, means of their squares, mean and standard deviation
of the luma (ITU-R BT.601), and mean saturation: (max - min) / max, as in HSV; these of the bands shown as RGB."""


def colour_moments(image: Tensor) -> Moments:
    """Compute the statistics of one image: bytes (C, H, W)."""
    step = max(1, min(image.shape[1:]) // PIXELS)
    bands = image[:, ::step, ::step].numpy().astype(np.float64)
    rgb = as_rgb(image[:, ::step, ::step]).numpy().astype(np.float64)
    luma = np.tensordot(LUMA, rgb, axes=1)
    high, low = rgb.max(axis=0), rgb.min(axis=0)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1), 0)
    means = bands.mean(axis=(1, 2)), (bands**2).mean(axis=(1, 2))
    return np.concatenate([*means, [luma.mean(), luma.std(), saturation.mean()]])


def colour_facts(moments: Sequence[Moments]) -> dict[str, Any] | None:
    """Average over images, each counted once whatever its size; None without any.

    Returns:
        `mean` and `std` of each band over all pixels, `brightness`, `contrast` (the luma's standard
        deviation within an image) and `saturation`.
    """
    if not moments:
        return None
    average = np.mean(moments, axis=0)
    mean, square = np.split(average[:-3], 2)
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    return {
        "mean": mean.tolist(),
        "std": spread.tolist(),
        **dict(zip(("brightness", "contrast", "saturation"), average[-3:].tolist(), strict=True)),
    }


def run_lengths(ids: Ids) -> npt.NDArray[np.int64]:
    """Count, for each pixel (H, W), how many of its row are of its class without a gap."""
    begins = np.ones(ids.shape, bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    lengths = np.diff(np.flatnonzero(begins), append=ids.size)
    return np.repeat(lengths, lengths).reshape(ids.shape)


def thickness_counts(ids: Ids, size: tuple[int, int], num_classes: int) -> Tensor:
    """Count the pixels of each class by thickness (K, 100 `CELL` + 1): in hundredths, as if resized to `size`.

    The thickness of a class at a pixel of `ids` (H, W) is the shorter of its two runs through it, along the row and
    along the column: the width of a pole, the height of a kerb, up to 1.4 times that of what lies aslant. The last
    count is of all that is as thick as `CELL`. `size` is (width, height).
    """
    across = run_lengths(ids) * (size[0] / ids.shape[1])
    down = run_lengths(np.ascontiguousarray(ids.T)).T * (size[1] / ids.shape[0])
    hundredths = np.minimum(100 * np.minimum(across, down) + 1e-6, 100 * CELL).astype(np.int64)
    shape = 256, 100 * CELL + 1
    counts = np.bincount((ids * np.int64(shape[1]) + hundredths).ravel(), minlength=shape[0] * shape[1])
    return torch.from_numpy(counts.reshape(shape)[:num_classes])


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
    bands: int
    """`model.in_channels`."""
    strict: bool
    """Whether a raw value of no class is a fault: nothing maps the values, so it cannot be meant."""

    @property
    def role(self) -> str:
        """`source`, `target` or `val`."""
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
    pixels: Tensor | None = None
    """Per class (K,) int64."""
    thickness: Tensor | None = None
    """`thickness_counts` at the training size."""
    digest: bytes | None = None
    """Of the image file."""

    def report(self, kind: str, path: Path, text: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, self.expected.domain, path, text))


def inspect_files(
    image: Path, label: Path | None, expected: Expected, *, whole: bool, measured: bool = False
) -> Inspection:
    """Examine an image and its label: decode them if `whole`, else read the headers, unless a file seems cut off.

    How thick its classes are is only `measured` in a label that is decoded.
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
        if "image" in headers:
            _compare(seen, headers["image"], header)
        if header.format in ("JPEG", "MPO"):
            seen.report("label is a JPEG", label, f"{label} is a JPEG.")
        elif whole or not header.complete:
            _check_label(seen, label, header, measured)
    return seen


def _check_header(seen: Inspection, header: Header) -> None:
    width, height = header.shown
    crop, resize = seen.expected.crop, seen.expected.resize
    shown = f"{seen.image} ({width}x{height}"
    if header.pages > 1:
        seen.report("several pages", seen.image, f"{seen.image} holds {header.pages} pictures.")
    if seen.expected.bands == 3 and header.bands not in (1, 3) and header.mode != "CMYK":
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
    """Report an image and a label that differ in size; an image turned by EXIF is compared as it is shown."""
    if image.shown != label.stored:
        sizes = "{}x{} and {}x{}".format(*image.shown, *label.stored)
        text = f"{seen.image} and its label {seen.label} differ in size: {sizes}."
        if image.stored == label.stored:
            text += (
                f" The camera's EXIF says that the image is to be shown turned (orientation {image.orientation}); "
                "its label shows it as it is stored: turn the label."
            )
        seen.report("sizes differ", seen.image, text)
    elif image.orientation > 1 and image.stored == image.shown:
        text = (
            f"{seen.image} is shown turned (EXIF orientation {image.orientation}), and the size does not tell whether "
            "its label is."
        )
        seen.report("turned by its camera", seen.image, text)


def _check_image(seen: Inspection, header: Header) -> None:
    code = seen.expected.code
    try:
        image = read_image(seen.image, seen.expected.bands)
    except UserError as error:
        seen.report("image cannot be read", seen.image, str(error))
        return
    seen.colour = colour_moments(image)
    seen.digest = hashlib.blake2b(read_bytes(seen.image), digest_size=16).digest()
    if seen.label is None and code is not None and header.mode in ("L", "P"):
        values = torch.unique(image[0] if header.mode == "L" else read_raw_labels(seen.image)).int()
        known = bool(((code.table[values] != IGNORE) | (values == IGNORE)).all())
        if known and not set(values.tolist()) <= {0, IGNORE}:  # black and white alone is a picture
            seen.report("looks like a label map", seen.image, f"{seen.image} holds values of classes only.")


def _check_label(seen: Inspection, label: Path, header: Header, measured: bool) -> None:
    code, count, strange = seen.expected.code, seen.expected.num_classes, list[int]()
    try:
        named = code is not None and code.names is not None
        if code is not None and (named or (header.mode in ("RGB", "RGBA") and code.colors is not None)):
            ids = read_labels(label, code, seen.image)  # colours: an unknown one is their reader's error
        else:
            raw = read_raw_labels(label, None if code is None else code.channel)
            if code is None:
                return
            ids, values = map_ids(raw, code.table), torch.unique(raw).int()
            if seen.expected.strict:
                strange = values[(code.table[values] == IGNORE) & (values != IGNORE)].tolist()
    except UserError as error:
        seen.report("label cannot be read", label, str(error))
        return
    seen.pixels = torch.bincount(ids.flatten(), minlength=256)[:count]
    if measured:
        size, resize = (ids.shape[1], ids.shape[0]), seen.expected.resize
        seen.thickness = thickness_counts(ids.numpy(), rescale_size(*size, resize) if resize else size, count)
    shown = int((seen.pixels > 0).sum())
    if code.names is not None and (foreign := names_of_no_class(label, code.names)):
        listed = ", ".join(map(repr, foreign[:5])) + (" ..." if len(foreign) > 5 else "")
        seen.report("name of no class", label, f"{label} names {listed}, which no class takes.")
    if strange:
        listed = ", ".join(map(str, strange[:5])) + (" ..." if len(strange) > 5 else "")
        plural = "s" if len(strange) > 1 else ""
        classes = f"{count} classes (0..{count - 1}, and {IGNORE} to ignore)"
        seen.report("value of no class", label, f"{label} holds the value{plural} {listed}, but there are {classes}.")
    elif not shown:
        seen.report("label without any class", label, f"{label} shows no class.")
    elif seen.expected.role == "source" and shown == 1 and count > 1:
        seen.report("label of one class", label, f"{label} shows class {int(seen.pixels.argmax())} only.")
