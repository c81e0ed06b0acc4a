"""Presets, files and words of the command line, merged to one tree of settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

import yaml

from ssrseg.config.settings import Settings, nearest, resolve
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
    return entry.read_text(encoding="utf-8")


def compose(preset: str | None, config: Path | None, own: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Compose a tree of settings: a preset, merged with a file, own data, and `key.path=value` words.

    Data in the file or in `own` (groups by name, or lists of them) replace *all* data of the preset: a task is a whole.
    Of the file's data `own` changes the roots alone. Words only change what they name. What file and words set holds in
    every stage of the preset's recipe.

    Raises:
        UserError: the file lists several data sets where `own` says one group anew.
    """
    tree, file = read_preset(preset) if preset else {}, read_yaml(config) if config else {}
    if any(group in layer for group in ("source", "target") for layer in (file, own)):
        tree = {key: value for key, value in tree.items() if key not in DATA}
    if several := [group for group in own if isinstance(file.get(group), list)]:
        raise UserError(
            f"{config} lists several data sets as `{several[0]}`, all of which --{several[0]} would replace: change "
            f"the file, or leave --{several[0]} out."
        )
    roots = {name: _kept(file.get(name), group) for name, group in own.items()}
    for layer in (file, roots, assignments(words)):
        tree = _merge_for_all_stages(tree, layer)
    return tree


def _kept(known: Any, own: Any) -> Any:
    """Lay a group over a known one; several groups each."""
    if not isinstance(known, dict):
        return own
    return [merge(known, one) for one in own] if isinstance(own, list) else merge(known, own)


def _merge_for_all_stages(tree: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    if isinstance(tree.get("stages"), list):
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
    """Read a settings file as a tree; it is in UTF-8, or begins with the mark of UTF-16."""
    try:
        tree = _parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold settings as `key: value` lines, found {type(tree).__name__}.")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: the last one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; raises `ConstructorError` for a key that is there already."""
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is set twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: bytes) -> Any:
    """Read YAML; raises `ValueError` that says where it is none, and why."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, f"{error.problem or error.context}."
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = " Indent with spaces." if "'\\t'" in problem else ""
        hint = ' Put a text that begins with * in quotes: "*.png".' if "alias" in f"{error.context}{problem}" else hint
        raise ValueError(where + problem + hint) from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{error.reason} at position {error.position}. Save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:  # a date without such a month; a thousand brackets
        raise ValueError(f"{error}.") from error


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` into a copy of `base`, group by group; stages of a recipe are merged with those of the same name.

    Of a list of groups, as several sources, `over` may change all alike, or by number, counted from 0, single ones.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if key == "stages" and isinstance(old, list) and isinstance(value, list) and all(map(_named, old + value)):
            named = {stage["name"]: stage for stage in old}
            named |= {stage["name"]: merge(named.get(stage["name"], {}), stage) for stage in value}
            result[key] = list(named.values())
        elif isinstance(old, list) and isinstance(value, dict) and old and all(isinstance(one, dict) for one in old):
            single = {str(number): value.get(str(number), {}) for number in range(len(old))}
            common = {name: part for name, part in value.items() if name not in single}
            result[key] = [merge(merge(one, common), part) for one, part in zip(old, single.values(), strict=True)]
        else:
            result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _named(stage: Any) -> bool:
    return isinstance(stage, dict) and "name" in stage


def assignments(words: Sequence[str]) -> dict[str, Any]:
    """Parse `key.path=value` words to a tree; values are YAML."""
    tree: dict[str, Any] = {}
    for place, word in enumerate(words):
        path, equals, value = word.partition("=")
        if not equals or not path:
            before, after = words[max(0, place - 1) : place + 1], words[place : place + 3]
            parts = after if after[1:] and after[1][0] == "=" else before
            hint = f" If it belongs to what stands beside it: {shlex.quote(' '.join(parts))}" if parts[1:] else ""
            raise UserError(f"Expected `key.path=value`, found {word!r}.{hint}")
        try:
            # An alias has no anchor in a word: it is a glob.
            branch: Any = value if value.startswith("*") else _parse(_bytes(value))
            if not value:
                raise ValueError("nothing follows.")
        except ValueError as error:
            rest = list(takewhile(lambda other: "=" not in other, words[place + 1 :]))
            meant = shlex.quote(next(_meant(path, value, rest)))
            raise UserError(f"{word} is no YAML value: put the word in quotes: {meant} ({error})") from error
        for key in reversed(path.strip().split(".")):
            branch = {key: branch}
        tree = merge(tree, branch)
    return tree


def with_words(settings: Settings, words: Sequence[str]) -> Settings:
    """Change some `key.path=value` of the settings; raises `UserError` where the result is not valid."""
    return resolve(merge(settings.model_dump(mode="json"), assignments(words)))


def _meant(path: str, value: str, rest: Sequence[str]) -> Iterator[str]:
    """Guess what a value that is no YAML was to be: cut at its blanks by the shell, not closed, none, or plain text."""
    whole, ends = list(accumulate([value, *rest], "{} {}".format)), ""
    for sign in whole[-1]:
        ends = {"[": "]", "{": "}"}[sign] + ends if sign in "[{" else ends[1:] if sign in "]}" else ends
    for text in filter(None, [*whole, whole[-1] + ends]):
        try:
            _parse(_bytes(text))
        except ValueError:
            continue
        yield f"{path}={text}"
    yield f"{path}={json.dumps(value, ensure_ascii=False) if value else 'null'}"


def _bytes(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape")  # of a command line that is no text in this locale
