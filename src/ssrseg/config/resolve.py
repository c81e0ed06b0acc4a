"""Trees of plain values to checked settings and back."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from ssrseg.config.base import Strict
from ssrseg.config.settings import Settings
from ssrseg.errors import UserError

Group = TypeVar("Group", bound=Strict)


def resolve(tree: Mapping[str, Any]) -> Settings:
    """A tree as checked settings; raises `UserError` that names every wrong key."""
    return resolve_group(Settings, tree)


def resolve_group(group: type[Group], tree: Mapping[str, Any], name: str = "settings") -> Group:
    """A tree as one checked group of settings; raises `UserError` that names every wrong key."""
    try:
        return group.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(_explain(problem, group) for problem in error.errors())
        raise UserError(f"The {name} are not valid:\n{problems}") from error


def dump(settings: Settings) -> str:
    """The settings as YAML that `resolve` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree as dotted path -> leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def affects_result(path: str) -> bool:
    """Tell whether the setting at a dotted path can change a run's result by more than rounding.

    Settings are marked where they are declared, alone or by their group. An unknown path is taken to matter.
    """
    group: type[Strict] | None = Settings
    affects = True
    for key in path.split("."):
        if group is None or key not in group.model_fields:
            break
        found = group.model_fields[key]
        extra = found.json_schema_extra
        affects = bool(extra.get("affects_result", affects)) if isinstance(extra, dict) else affects
        group = _group_of(found.annotation)
    return affects


def _explain(error: Any, root: type[Strict]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        group = _group_at(root, error["loc"][:-1])
        valid = list(group.model_fields) if group else []
        return f"  {path}: no such setting.{nearest(str(error['loc'][-1]), valid)}"
    found = "" if error["type"] in ("missing", "value_error") else f" (found {error['input']!r})"
    return f"  {path or 'settings'}: {error['msg'].removeprefix('Value error, ')}{found}"


def _group_at(group: type[Strict], path: tuple[Any, ...]) -> type[Strict] | None:
    for key in path:
        if key not in group.model_fields:
            continue  # an index, or pydantic's name for a member of a union
        found = _group_of(group.model_fields[key].annotation)
        if found is None:
            return None
        group = found
    return group


def _group_of(annotation: Any) -> type[Strict] | None:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next((group for part in get_args(annotation) if (group := _group_of(part))), None)


def nearest(word: str, valid: list[str]) -> str:
    """` Did you mean ...?`, or what would be valid, or nothing."""
    close = difflib.get_close_matches(word, valid, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid here: {', '.join(valid)}." if valid else ""
