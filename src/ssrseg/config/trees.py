"""Presets, files and words of the command line, merged to one tree of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ssrseg.config.settings import nearest
from ssrseg.errors import UserError

DATA = ("classes", "source", "target", "val")
"""The groups that say which data; own data replace all of a preset's."""


def preset_names() -> list[str]:
    """List the names of the shipped recipes, sorted."""
    names = (entry.name for entry in (resources.files("ssrseg") / "presets").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name[0] != "_")


def presets() -> dict[str, str]:
    """Return the first comment line of every recipe, by name."""
    return {name: _preset_text(name).splitlines()[0].lstrip("# ") for name in preset_names()}


def read_preset(name: str) -> dict[str, Any]:
    """Read the settings of a shipped recipe, merged over those that it names as its `base`, in order."""
    tree: dict[str, Any] = yaml.safe_load(_preset_text(name))
    base: dict[str, Any] = {}
    for other in tree.pop("base", []):
        base = merge(base, read_preset(other))
    return merge(base, tree)


def _preset_text(name: str) -> str:
    entry = resources.files("ssrseg") / "presets" / f"{name}.yaml"
    if not entry.is_file():
        raise UserError(f"There is no preset {name!r}.{nearest(name, preset_names())} `ssrseg presets` lists them.")
    return entry.read_text()


def compose(
    preset: str | None, config: Path | None, own: Mapping[str, Mapping[str, Any]], words: Sequence[str]
) -> dict[str, Any]:
    """Compose a tree of settings: a preset, merged with a file, own data, and `key.path=value` words.

    Data in the file or in `own` (groups by name) replace *all* data of the preset: a task is a whole. Words only
    change what they name. What file and words set holds in every stage of the preset's recipe.
    """
    tree = read_preset(preset) if preset else {}
    for layer in (read_yaml(config) if config else {}, dict(own)):
        if any(group in layer for group in ("source", "target")):
            tree = {key: value for key, value in tree.items() if key not in DATA}
        tree = _merge_for_all_stages(tree, layer)
    return _merge_for_all_stages(tree, assignments(words))


def _merge_for_all_stages(tree: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    if "stages" in tree:
        below = {"settings": layer}
        tree = {**tree, "stages": [_without(stage, below) for stage in tree["stages"]]}
    return merge(tree, layer)


def _without(settings: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the values that a layer sets too; a part that the settings leave out (null) stays out."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        other = layer.get(key)
        if isinstance(value, dict) and isinstance(other, Mapping):
            kept[key] = _without(value, other)
        elif key not in layer or value is None or isinstance(other, Mapping):
            kept[key] = value
    return kept


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a settings file as a tree."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold settings as `key: value` lines, found {type(tree).__name__}.")
    return tree


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` into a copy of `base`, group by group; stages of a recipe are merged with those of the same name."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if key == "stages" and isinstance(old, list) and isinstance(value, list):
            named = {stage["name"]: stage for stage in old}
            named |= {stage["name"]: merge(named.get(stage["name"], {}), stage) for stage in value}
            result[key] = list(named.values())
        else:
            result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def assignments(words: Sequence[str]) -> dict[str, Any]:
    """Parse `key.path=value` words to a tree; values are YAML."""
    tree: dict[str, Any] = {}
    for word in words:
        path, equals, value = word.partition("=")
        if not equals or not path:
            raise UserError(f"Expected `key.path=value`, found {word!r}.")
        branch: Any = yaml.safe_load(value)
        for key in reversed(path.split(".")):
            branch = {key: branch}
        tree = merge(tree, branch)
    return tree
