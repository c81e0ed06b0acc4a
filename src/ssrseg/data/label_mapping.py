"""Map raw values and colours of label files to the class ids of a run."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssrseg.config import ClassConfig, Data, DataConfig, datasets
from ssrseg.config.data import Channel
from ssrseg.data.annotations import colors_by_name, names_in_order
from ssrseg.data.label_spaces import IGNORE, MAPPINGS, SPACES, VALUES, Color, LabelSpace
from ssrseg.data.layouts import find_names, is_named, spec_of
from ssrseg.data.shapes import BACKGROUND, REST, id_of
from ssrseg.errors import UserError

LARGEST = 65535
"""Of the raw values that may mean a class."""
Classes = str | Sequence[ClassConfig]
"""A label space by its name in `SPACES`, or the classes themselves."""


@dataclass(frozen=True)
class LabelCode:
    """Mapping of the pixels of a label file to class ids."""

    table: Tensor
    """Raw value -> class id, uint8: of 256 values, or of as many as the largest that has a meaning needs."""
    colors: Mapping[Color, int] | None = None
    """RGB -> class id, for files that hold colours; absent where the colours are not known."""
    names: Mapping[str, int] | None = None
    """Name in small letters -> class id, for shapes with names; see `names_of`."""
    channel: Channel | None = None
    """Of files of three channels, the one that holds the raw value."""
    by_colour: bool = True
    """Whether palettes and greys that are colours of classes are meant so; a published layout has values in them."""

    def digest(self) -> str:
        """Return a text that is equal for equal codes."""
        more = f" {sorted(self.names.items())}" if self.names else f" {self.channel}" if self.channel else ""
        return f"{self.table.tolist()} {sorted((self.colors or {}).items())}{more}"


def lookup_table(id_map: Mapping[int, int], num_classes: int = IGNORE) -> Tensor:
    """Turn a map of raw values to ids into a table, uint8; values that are not listed become ignore.

    It has 256 entries, or more where values above 255 are listed. Raises `UserError` for a raw value outside 0..65535,
    or an id that is neither a class nor ignore.
    """
    table = torch.full((max(256, 1 + min(max(id_map, default=0), LARGEST)),), IGNORE, dtype=torch.uint8)
    for raw, new in id_map.items():
        wrong = f"The id map says {raw} -> {new}, but"
        if not 0 <= raw <= LARGEST:
            raise UserError(
                f"{wrong} raw label values lie in 0..{LARGEST}; all others are ignored. Values of instances, as 26002, "
                "become those of classes by a division: 26002 // 1000."
            )
        if not (0 <= new < num_classes or new == IGNORE):
            raise UserError(f"{wrong} there are {num_classes} classes (0..{num_classes - 1}, and {IGNORE} to ignore).")
        table[raw] = new
    return table


def map_ids(labels: Tensor | npt.NDArray[Any], table: Tensor) -> Tensor:
    """Look raw values up in a table: the same shape, uint8. Values beyond it, or below 0, are ignored."""
    values = np.asarray(labels)
    if values.dtype == np.uint8:
        mapped = cv2.LUT(values, table[:256].numpy())  # twenty times faster than indexing tensors
        return torch.from_numpy(mapped).reshape(labels.shape)
    inside = (values >= 0) & (values < len(table))
    ids = np.full(values.shape, IGNORE, np.uint8)
    ids[inside] = table.numpy()[values[inside].astype(np.int64)]
    return torch.from_numpy(ids)


def space_of(classes: Classes) -> tuple[LabelSpace, dict[int, int] | None]:
    """Return the label space of `classes`, and the map of raw values to ids where a user's own classes give it.

    Raises:
        UserError: an unknown name, a class named twice, or a raw value claimed twice.
    """
    if isinstance(classes, str):
        if classes not in SPACES:
            raise UserError(f"There is no label space {classes!r}: use {', '.join(SPACES)}, or list your classes.")
        return SPACES[classes], None
    names = [entry.name for entry in classes]
    if not names:
        raise UserError("`classes` is empty: list at least one class.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"The class {twice[0]!r} is listed twice in `classes`.")
    if len(names) > IGNORE:
        raise UserError(
            f"`classes` lists {len(names)} classes; labels are bytes and {IGNORE} means ignore, so at most {IGNORE}."
        )
    colors = [entry.color or _color(i, len(names)) for i, entry in enumerate(classes)]
    space = LabelSpace(tuple(names), tuple(colors))
    if all(entry.ids is None for entry in classes):
        return space, None
    id_map: dict[int, int] = {}
    for i, entry in enumerate(classes):
        for raw in entry.ids if entry.ids is not None else (i,):
            if raw in id_map:
                raise UserError(f"Raw label value {raw} is claimed by {names[id_map[raw]]!r} and {entry.name!r}.")
            id_map[raw] = i
    return space, id_map


def names_of(classes: Classes) -> dict[str, int]:
    """Map the names of shapes, in small letters, to class ids: by what each class is made `of`, else by its own name.

    `*` takes all names that no class takes, and what no shape covers is `background`. Of two classes without further
    word (`binary`), all shapes are the second. Raises `UserError` for a name that two classes take.
    """
    if isinstance(classes, str):
        own = {name.casefold(): i for i, name in enumerate(space_of(classes)[0].names)}
        return own | {REST: own["foreground"]} if classes == "binary" else own
    taken: dict[str, int] = {}
    for i, entry in enumerate(classes):
        for name in (entry.name,) if entry.of is None else entry.of:
            if taken.setdefault(name.casefold(), i) != i:
                other = classes[taken[name.casefold()]].name
                raise UserError(f"The name {name!r} of labels is taken by {other!r} and by {entry.name!r}.")
    return taken


def _color(index: int, count: int) -> Color:
    """Return one of `count` evenly spread hues."""
    red, green, blue = colorsys.hsv_to_rgb(index / count, 0.65, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def resolve_space(classes: Classes | None, source: Data) -> LabelSpace:
    """Return the label space of a run: that of `classes`, else of the (first) source's layout; `UserError` without."""
    if classes is not None:
        space = space_of(classes)[0]
        if space.num_classes == 1:
            raise UserError(
                "One class cannot be told from anything: add a background class. Set classes=binary for masks of 0 and "
                f"1, or of 0 and 255; or 'classes=[background, {space.names[0]}]', names in the order of their values."
            )
        return space
    name = spec_of(datasets(source)[0]).space
    if name is None:
        raise UserError(
            "Which classes are there? Set `classes`: a label space "
            f"({', '.join(SPACES)}) or your own names in the order of their ids, e.g. 'classes=[road, car, other]'."
        )
    return SPACES[name]


def code_for(data: DataConfig, classes: Classes | None, source: Data | None = None) -> LabelCode:
    """Return how the label files of a data set become class ids of a run.

    The data set's own `id_map` comes first. The classes of a published data set become the run's by the known mapping
    or by what the run's own classes are made `of`, unless those give nothing but raw values (`ids`). `source` is the
    labelled data set of the run, or the first of them, and `data` itself when absent; its layout gives the classes
    where there are none.

    Raises:
        UserError: the layout has other classes than the run, and nothing says how they become the run's.
    """
    code = _code_for(data, classes, datasets(source or data)[0])
    return replace(code, channel=data.channel or spec_of(data).channel)


def _code_for(data: DataConfig, classes: Classes | None, source: DataConfig) -> LabelCode:
    spec, space = spec_of(data), resolve_space(classes, source)
    own = () if classes is None or isinstance(classes, str) else classes
    ids = space_of(own)[1] if own else None
    if spec.space is None:
        values = data.id_map or (VALUES.get(classes) if isinstance(classes, str) else ids)
        known = all(entry.color is not None for entry in own) and len(set(space.colors)) == space.num_classes
        colors = {color: i for i, color in enumerate(space.colors)} if known else None
        table = lookup_table(values or {i: i for i in range(space.num_classes)}, space.num_classes)
        assert classes is not None  # nothing else gave a label space
        return _by_name(LabelCode(table, colors), data, classes)
    if data.id_map is not None:
        return LabelCode(lookup_table(data.id_map, space.num_classes))
    if ids is not None and all(entry.of is None for entry in own):
        return LabelCode(lookup_table(ids))

    published = SPACES[spec.space]
    wanted = classes if isinstance(classes, str) else spec_of(source).space or spec.space
    if own:
        mapping = mapping_by_name(spec.space, own)
    elif wanted == spec.space:
        mapping = {i: i for i in range(published.num_classes)}
    elif (spec.space, wanted) in MAPPINGS:
        mapping = MAPPINGS[spec.space, wanted]
    else:
        raise UserError(
            f"{data.root} has the classes of {spec.space}, the run those of {wanted}, and no mapping between them is "
            "known. List the run's classes and say what each is made `of`, or give an `id_map` (raw value: class id)."
        )
    table = lookup_table(mapping)
    raw = spec.ids or {i: i for i in range(published.num_classes)}
    colors = {color: int(table[i]) for i, color in enumerate(published.colors)}
    return LabelCode(map_ids(lookup_table(raw), table), colors if spec.colored else None, by_colour=False)


def _by_name(code: LabelCode, data: DataConfig, classes: Classes) -> LabelCode:
    """Add what names mean where labels have names, and colours or numbers of names where a file says them."""
    place, names = find_names(data), names_of(classes)
    if is_named(data) and not spec_of(data).names:
        return replace(code, names=names)
    if is_named(data):  # by numbers
        if place is not None:
            ids = {i: id_of(name, names) for i, name in enumerate(names_in_order(place))}
        elif isinstance(classes, str) or all(entry.ids is None for entry in classes):
            known = ", ".join(spec_of(data).names)
            raise UserError(
                f"The labels of {data.root} are numbers, and no file says their names (looked for {known}): give every "
                "class its number, as in 'classes=[{name: background, ids: []}, {name: leaf, ids: [0]}]'."
            )
        else:
            ids = dict(enumerate(code.table.tolist()))
        numbers = {str(number): taken for number, taken in ids.items() if taken is not None and taken != IGNORE}
        return replace(code, names=numbers | {name: names[name] for name in (BACKGROUND, REST) if name in names})
    if place is None:
        return code
    colors = {color: id_of(name, names) for name, color in colors_by_name(place).items()}
    return replace(code, colors={color: IGNORE if taken is None else taken for color, taken in colors.items()})


def mapping_by_name(space: str, classes: Sequence[ClassConfig]) -> dict[int, int]:
    """Map ids of a data set's label space to a user's own classes, by what each is made `of`, else by its name.

    Upper and lower case are the same. A class may name classes of several data sets; those that this one has count.

    Raises:
        UserError: a name that no label space knows, a class that is taken twice, or nothing in common.
    """
    old = {name.casefold(): i for i, name in enumerate(SPACES[space].names)}
    elsewhere = {known.casefold() for other in SPACES.values() for known in other.names}
    mapping: dict[int, int] = {}
    for i, entry in enumerate(classes):
        for name in (entry.name,) if entry.of is None else entry.of:
            if name == REST and entry.of is not None:
                continue
            if name.casefold() not in old:
                if entry.of is None or name.casefold() not in elsewhere:  # a typing error
                    raise UserError(
                        f"The data have the classes of {space}, and {name!r} is none of them. "
                        f"{SPACES[space].hint(name)} Say which of them the class {entry.name!r} is made of: "
                        "`of: [...]` in `classes` (`of: []` for none, `of: ['*']` for all the rest), or give the data "
                        "set an `id_map` (raw value: class id)."
                    )
            elif mapping.setdefault(old[name.casefold()], i) != i:
                other = classes[mapping[old[name.casefold()]]].name
                raise UserError(f"The class {name!r} of {space} is taken by {other!r} and by {entry.name!r}.")
    for i, entry in enumerate(classes):
        if REST in (entry.of or ()):
            mapping = dict.fromkeys(old.values(), i) | mapping
    if not mapping:
        raise UserError(
            f"The data have the classes of {space} ({', '.join(SPACES[space].names)}), of which "
            f"{', '.join(entry.name for entry in classes)} take none: say what each is made `of`, or give an `id_map`."
        )
    return mapping
