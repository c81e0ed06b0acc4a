"""Types that all groups of settings share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field

View = Literal["source", "labelled", "mixed", "masked", "target"]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class Url(PosixPath):
    """A URL as a path: `/`, `stem`, `relative_to` and the like hold, and `str` gives the URL.

    What asks the disk finds nothing there: files below a URL are read by `ssrseg.data.storage`.
    """

    def __str__(self) -> str:
        """Restore the second slash after the protocol, which paths drop."""
        return super().__str__().replace(":/", "://", 1)

    def absolute(self) -> Url:
        """Return the URL itself."""
        return self


def as_path(value: Any) -> Any:
    """Convert text or a path to a `Path`: `~` to the user's home, `protocol://...` to a `Url`."""
    if not isinstance(value, str | Path):
        return value
    # As the system spells paths in this locale: what is no ASCII in one that has only that.
    text = os.fsdecode(str(value).encode("utf-8", "surrogateescape"))
    if text.startswith("file:/"):
        return Path("/" + text.removeprefix("file:").lstrip("/"))
    # A command line's paths arrive with one slash; one letter and a colon is a drive of Windows.
    return Url(text) if re.match(r"[A-Za-z][\w+.-]+:/", text) else Path(os.path.expanduser(text))


UserPath = Annotated[Path, BeforeValidator(as_path)]
"""A local path or a URL of the user's."""


NO_EFFECT = Field(json_schema_extra={"affects_result": False})
"""Marks a setting, or a group of them, that changes where, how fast or how visibly a run computes.

Its last scores differ by rounding at most, so reports take runs that differ in nothing else for one setting.
"""
EFFECT = Field(json_schema_extra={"affects_result": True})
"""Marks a setting that does change the result, in a group that else does not."""


class Strict(BaseModel):
    """Hold a group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def by_default(**tag: str) -> BeforeValidator:
    """Let the key that chooses a member of a union of groups be absent: it has this value then."""
    return BeforeValidator(lambda value: {**tag, **value} if isinstance(value, Mapping) else value)


def chosen_by(kind: type | tuple[type, ...], tag: str, other: str) -> Discriminator:
    """Choose the member of a union by a value's type: `tag` for a `kind`, else `other`.

    A mistake is one in that member alone, not in each of them. Tags are in angle brackets: no user writes them.
    """
    return Discriminator(lambda value: tag if isinstance(value, kind) else other)
