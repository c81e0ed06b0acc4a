"""The classes of a run, and how raw label values become their ids."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import cv2
import torch
from torch import Tensor

from ssrseg.config import ClassConfig
from ssrseg.data.label_spaces import IGNORE, SPACES, LabelSpace
from ssrseg.errors import UserError

__all__ = ["IGNORE", "SPACES", "LabelSpace", "lookup_table", "map_ids", "space_of"]


def lookup_table(id_map: Mapping[int, int], num_classes: int = IGNORE) -> Tensor:
    """A map of raw values to ids as a table (256,) uint8; values that are not listed become ignore.

    Raises:
        UserError: a raw value outside 0..255, or an id that is neither a class nor ignore.
    """
    table = torch.full((256,), IGNORE, dtype=torch.uint8)
    for raw, new in id_map.items():
        if not 0 <= raw <= 255:
            raise UserError(f"The id map says {raw} -> {new}, but raw label values lie in 0..255.")
        if not (0 <= new < num_classes or new == IGNORE):
            raise UserError(
                f"The id map says {raw} -> {new}, but there are {num_classes} classes "
                f"(0..{num_classes - 1}, and {IGNORE} to ignore)."
            )
        table[raw] = new
    return table


def map_ids(labels: Tensor, table: Tensor) -> Tensor:
    """Raw values, uint8, through a table (256,): the same shape, uint8."""
    mapped = cv2.LUT(labels.numpy(), table.numpy())  # twenty times faster than indexing tensors
    return torch.from_numpy(mapped).reshape(labels.shape)


def space_of(classes: str | Sequence[ClassConfig]) -> tuple[LabelSpace, dict[int, int] | None]:
    """The label space that `classes` means, and the raw values of a user's own classes where they are given.

    Raises:
        UserError: an unknown name, a class named twice, or a raw value claimed twice.
    """
    if isinstance(classes, str):
        if classes not in SPACES:
            raise UserError(f"There is no label space {classes!r}: use {', '.join(SPACES)}, or list your classes.")
        return SPACES[classes], None
    names = [entry.name for entry in classes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"The class {twice[0]!r} is listed twice in `classes`.")
    if not names:
        raise UserError("`classes` is empty: list at least one class.")
    if len(names) > IGNORE:
        raise UserError(
            f"`classes` lists {len(names)} classes; labels are bytes and {IGNORE} means ignore, so at most {IGNORE}."
        )
    colors = [entry.color or _color(i, len(names)) for i, entry in enumerate(classes)]
    return LabelSpace(tuple(names), tuple(colors)), _own_ids(classes)


def _own_ids(classes: Sequence[ClassConfig]) -> dict[int, int] | None:
    if all(entry.ids is None for entry in classes):
        return None
    id_map: dict[int, int] = {}
    for i, entry in enumerate(classes):
        for raw in entry.ids if entry.ids is not None else (i,):
            if raw in id_map:
                raise UserError(
                    f"Raw label value {raw} is claimed by {classes[id_map[raw]].name!r} and {entry.name!r}."
                )
            id_map[raw] = i
    return id_map


def _color(index: int, count: int) -> tuple[int, int, int]:
    """Evenly spread hues."""
    red, green, blue = colorsys.hsv_to_rgb(index / count, 0.65, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)
