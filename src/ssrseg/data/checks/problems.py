"""Faults in data: their kinds, those that were found, and messages about them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ssrseg.errors import UserError

SHOWN = 10
"""Problems that an error lists in full."""


_TABLE: dict[str, dict[str, Any]] = yaml.safe_load(
    (resources.files("ssrseg.data.checks") / "problems.yaml").read_text(encoding="utf-8")
)
KINDS: dict[str, str] = _TABLE["errors"] | _TABLE["warnings"]
"""Every kind of fault that is detected -> instruction for the user."""
EFFECTS: dict[str, list[str]] = _TABLE["effects"]
"""Kind of fault -> kinds that only follow from it in the same data set, and are not reported too."""


@dataclass(frozen=True)
class Problem:
    """One fault of one file or data set."""

    kind: str
    """A key of `KINDS`."""
    domain: str
    """Its role, `source`, `target`, `labelled` or `val`, and of several data sets its name."""
    path: Path
    text: str
    """The finding and, where it is not plain, the expectation; names the path."""

    @property
    def remedy(self) -> str:
        """Instruction for the user."""
        return KINDS[self.kind]

    @property
    def fatal(self) -> bool:
        """Whether training could not work."""
        return self.kind in _TABLE["errors"]


def grouped(problems: Iterable[Problem]) -> list[tuple[str, list[Problem]]]:
    """Group problems by domain and kind, fatal ones first, each group with its headline."""
    groups: dict[tuple[bool, str, str], list[Problem]] = {}
    for one in problems:
        groups.setdefault((one.fatal, one.domain, one.kind), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: not item[0][0])
    return [
        (f"{domain}: {kind}" + (f" ({len(found)} files)" if len(found) > 1 else ""), found)
        for (_, domain, kind), found in ordered
    ]


def word_of(domain: str, key: str, value: str) -> str:
    """Write the word that sets a key of a data set, or the line in one of several; labelled images are a target's."""
    domain = domain.replace("labelled", "target", 1)
    return f"'{domain}.{key}={value}'" if " " not in domain else f"`{key}: {value}` in {domain}"


def id_map_word(domain: str, id_map: Mapping[int, int]) -> str:
    """Write an `id_map` as `word_of` does."""
    return word_of(domain, "id_map", json.dumps(id_map).replace('"', ""))


def refuse(problems: Iterable[Problem], use: str = "trained") -> None:
    """Raise one `UserError` that names the fatal problems, the first `SHOWN` in full."""
    fatal = [one for one in problems if one.fatal]
    if not fatal:
        return
    lines, left = [], SHOWN
    for headline, found in grouped(fatal):
        if left <= 0:
            break
        lines += [headline, *(f"  {one.text}" for one in found[:left]), f"  -> {found[0].remedy}"]
        left -= len(found)
    if left < 0 or len(fatal) > SHOWN:
        more = ": `ssrseg check-data` with the same settings shows all." if use == "trained" else "."
        lines.append(f"... and {len(fatal) - SHOWN} more{more}")
    count = "one problem" if len(fatal) == 1 else f"{len(fatal)} problems"
    raise UserError("\n".join([f"These data cannot be {use} on, {count}:", *lines]))


def notes(problems: Iterable[Problem]) -> list[str]:
    """Describe what does not prevent training: one line per domain and kind, counted, with an example."""
    groups = grouped(one for one in problems if not one.fatal)
    return [f"{head}{', for example' if f[1:] else ':'} {f[0].text} {f[0].remedy}" for head, f in groups]
