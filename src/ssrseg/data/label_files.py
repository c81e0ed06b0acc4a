"""Label files to class ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssrseg.data.annotations import read_annotation
from ssrseg.data.images import shown_size
from ssrseg.data.label_encodings import EXPECTED, Pixels, StoredLabels, UnknownEncoding, read_stored_labels
from ssrseg.data.label_mapping import LabelCode, map_ids
from ssrseg.data.label_spaces import IGNORE, Color
from ssrseg.data.shapes import Size, draw

UNNAMED = "nothing that has the name of a class"
"""What is ignored where labels are shapes with names."""


@dataclass(frozen=True)
class LabelMap:
    """A label file as class ids, and what it holds."""

    ids: Tensor
    """(H, W) uint8."""
    ignored: dict[str, int]
    """Value, or colour, of no class -> its pixels."""
    values: tuple[float, ...] | None
    """Those that occur; absent in a file of colours."""
    encoding: str
    """How it was understood: `values`, `palette by index`, `palette by colour`, `colours` or `names`."""


def read_labels(path: Path, code: LabelCode, image: Path | None = None) -> Tensor:
    """Read a label map as class ids (H, W), uint8.

    Args:
        path: one channel of raw values of any width, signed or not, or floats that are whole numbers; a palette image
            (its colours count where all that occur are the classes', else its indices); an image of three channels
            that holds the colours of classes or three times the values; a 16-bit image of three channels with the
            values in the red one (SYNTHIA); polygons in JSON (IDD); or shapes with names, as `read_annotation` reads
            them.
        code: of its data set. Black that is no class is ignored, and so are transparent pixels, values of no class and
            shapes of no class.
        image: whose label it is: its size is the label's where the label does not say one (YOLO, Label Studio).

    Raises:
        UserError: the file is missing, truncated, no label map, or holds a colour that is no class.
    """
    if code.names is not None:
        annotation = read_annotation(path, code.names)
        return torch.from_numpy(draw(annotation, code.names, annotation.size or _size_of(image), path))
    stored = read_stored_labels(path, code.channel)
    return _ids(stored, _understood(stored, code, path)[0], code, path)


def describe_labels(path: Path, code: LabelCode, image: Path | None = None) -> LabelMap:
    """Read a label map as `read_labels` does, and count what is ignored in it."""
    if code.names is not None:
        ids = read_labels(path, code, image)
        lost = int((ids == IGNORE).sum())
        return LabelMap(ids, {UNNAMED: lost} if lost else {}, None, "names")
    stored = read_stored_labels(path, code.channel)
    pixels, encoding = _understood(stored, code, path)
    ids = _ids(stored, pixels, code, path)
    lost = ids.numpy() == IGNORE
    ignored, values, clear = dict[str, int](), None, stored.clear
    if clear is None and stored.transparent and pixels.ndim == 2:
        clear = lost & np.isin(pixels, stored.transparent)
    if clear is not None:
        ignored |= {"transparent": int(clear.sum())} if clear.any() else {}
        lost = lost & ~clear
    if pixels.ndim == 3:
        pixels = _packed(pixels)
    else:
        values = tuple(np.unique(pixels if clear is None else pixels[~clear]).tolist())
    for value, count in zip(*(part.tolist() for part in np.unique(pixels[lost], return_counts=True)), strict=True):
        colour = f"colour {(value >> 16, value >> 8 & 255, value & 255)}" if values is None else ""
        ignored[colour or f"value {value:.9g}"] = count
    return LabelMap(ids, ignored, values, encoding)


def read_raw_labels(path: Path) -> Pixels:
    """Read the raw values of a label file (H, W); raises `UserError` for colours and as `read_labels`."""
    return _values(read_stored_labels(path), path)


def _size_of(image: Path | None) -> Size:
    if image is None:
        raise ValueError("this label does not say its size: hand over the image")
    return shown_size(image)


def _understood(stored: StoredLabels, code: LabelCode, path: Path) -> tuple[Pixels, str]:
    """Return the values (H, W) or the colours (H, W, 3) of a file, whichever count, and how it was understood."""
    pixels, colours = stored.pixels, code.colors is not None
    if pixels.ndim == 3:
        if colours and not (_is_grey(pixels) and not _are_colours(_used(pixels[..., 0]), code)):
            return pixels, "colours"
    elif stored.palette is not None:
        palette = stored.palette.copy()
        void = [i for i in stored.transparent if i < len(palette) and _packed(palette[i]) not in _known(code)]
        palette[void] = 0
        if colours and code.by_colour and _is_of_classes(palette, _used(pixels), code):
            return palette[pixels], "palette by colour"
        return pixels, "palette by index"
    elif colours and code.by_colour and pixels.dtype == np.uint8:
        used = _used(pixels)
        if bool((code.table[used[used > 0]] == IGNORE).any()) and _are_colours(used, code):
            return np.repeat(pixels[..., None], 3, axis=2), "colours"
    return _values(stored, path), "values"


def _used(pixels: Pixels) -> Pixels:
    """Return the values of bytes that occur."""
    return np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))


def _is_grey(pixels: Pixels) -> bool:
    return not (pixels != pixels[..., :1]).any()


def _known(code: LabelCode) -> Pixels:
    return _packed(np.array([(0, 0, 0), *(code.colors or ())]))


def _are_colours(values: Pixels, code: LabelCode) -> bool:
    """Whether greys are all colours of classes, or black."""
    return bool(np.isin(values * 0x010101, _known(code)).all())


def _is_of_classes(palette: Pixels, used: Pixels, code: LabelCode) -> bool:
    """Whether the colours of the indices that occur are those of classes; black alone says nothing."""
    packed, known = _packed(palette), _known(code)
    if used.max() >= len(packed):
        return False
    colours = packed[used]
    return bool(np.isin(colours, known).all()) and (bool(colours.any()) or bool(np.isin(known, packed).all()))


def _packed(colours: Pixels) -> Pixels:
    wide = colours.astype(np.int32)
    packed: Pixels = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return packed


def _ids(stored: StoredLabels, pixels: Pixels, code: LabelCode, path: Path) -> Tensor:
    if pixels.ndim == 3:
        ids = _ids_of_colors(pixels, code.colors or {}, stored.clear, path)
    else:
        ids = map_ids(pixels, code.table)
    if stored.clear is not None:
        ids[torch.from_numpy(stored.clear)] = IGNORE
    return ids


def _values(stored: StoredLabels, path: Path) -> Pixels:
    pixels = stored.pixels
    if pixels.ndim == 3:
        if not _is_grey(pixels):
            raise UnknownEncoding(
                f"{path} is coloured, and the colours of its classes are not known. Give every class in `classes` "
                "a `color` [red, green, blue] of its own, or convert them to values first."
            )
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        finite = pixels[np.isfinite(pixels)]
        if (broken := finite[finite != np.rint(finite)]).size:
            raise UnknownEncoding(
                f"{path} holds {pixels.dtype} values such as {broken[0]:.9g}, which is no whole number: {EXPECTED} "
                "Probabilities become values by their largest class."
            )
    return np.ascontiguousarray(pixels)


def _ids_of_colors(
    pixels: Pixels, colors: Mapping[Color, int], clear: npt.NDArray[np.bool_] | None, path: Path
) -> Tensor:
    coded = {0: IGNORE} | {red << 16 | green << 8 | blue: i for (red, green, blue), i in colors.items()}
    known = np.array(sorted(coded), dtype=np.int32)
    ids = np.array([coded[color] for color in known.tolist()], dtype=np.uint8)
    packed = _packed(pixels)
    places = np.searchsorted(known, packed).clip(max=len(known) - 1)
    unknown = known[places] != packed
    unknown = unknown if clear is None else unknown & ~clear
    if unknown.any():
        row, column = np.argwhere(unknown)[0].tolist()
        color = tuple(pixels[row, column].tolist())
        count = int((packed == packed[row, column]).sum())
        raise UnknownEncoding(
            f"{path} holds the colour {color}, which is no class: {count} pixels, the first in row {row}, column "
            f"{column}. The classes have {', '.join(map(str, colors))}; black is ignored. Correct the label or the "
            "`color` of a class (smoothed edges come from resizing with interpolation)."
        )
    return torch.from_numpy(ids[places])
