"""What all groups of settings share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

View = Literal["source", "mixed", "masked", "target"]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
UserPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
"""A path in which `~` is the user's home."""


NO_EFFECT = Field(json_schema_extra={"affects_result": False})
"""Marks a setting, or a group of them, that changes where, how fast or how visibly a run computes.

Its last scores differ by rounding at most, so reports take runs that differ in nothing else for one setting.
"""
EFFECT = Field(json_schema_extra={"affects_result": True})
"""Marks a setting that does change the result, in a group that else does not."""


class Strict(BaseModel):
    """A group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
