"""Label spaces of published data sets and the mappings between them; their tables are in `label_spaces.yaml`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from ssrseg.errors import UserError

IGNORE = 255
"""The class id of pixels that belong to no class."""
Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """Classes in the order of their ids."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the id of a class; raises `UserError` that names the nearest one."""
        if name not in self.names:
            raise UserError(f"There is no class {name!r}. {self.hint(name)}")
        return self.names.index(name)

    def hint(self, name: str) -> str:
        """Name the class that a wrong name is nearest to, or all classes."""
        folded = {known.casefold(): known for known in self.names}
        near = difflib.get_close_matches(name.casefold(), folded, n=1)
        return f"Did you mean {folded[near[0]]!r}?" if near else f"The classes are {', '.join(self.names)}."


def _mapping(old: LabelSpace, new: LabelSpace, parts: Mapping[str, Sequence[str]]) -> dict[int, int]:
    same = {name: [name] for name in new.names if name in old.names}
    return {old.index(part): new.index(name) for name, names in (same | {**parts}).items() for part in names}


TABLES: dict[str, Any] = yaml.safe_load(
    (resources.files("ssrseg.data") / "label_spaces.yaml").read_text(encoding="utf-8")
)
"""Content of `label_spaces.yaml`, which says what it means."""

SPACES: dict[str, LabelSpace] = {
    name: LabelSpace(tuple(classes), tuple((red, green, blue) for red, green, blue in classes.values()))
    for name, classes in TABLES["spaces"].items()
}
"""Label spaces by the name that `classes` takes."""

VALUES: dict[str, dict[int, int]] = TABLES["values"]
"""Label space -> class id of each raw value of a plain folder; the raw values are the class ids when absent."""

MAPPINGS: dict[tuple[str, str], dict[int, int]] = {
    (old, new): _mapping(SPACES[old], SPACES[new], parts)
    for old, targets in TABLES["mappings"].items()
    for new, parts in targets.items()
}
"""(from, to) -> class id of `from` -> class id of `to`; ids that are not listed become ignore."""
