"""Group runs of one setting over seeds, and name the groups."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssrseg.config import affects_result, flatten, merge, read_yaml, resolve
from ssrseg.config.data import COMMON, numbered, telling_end
from ssrseg.errors import UserError
from ssrseg.runs.folder import (
    ADJUSTED,
    CHOSEN,
    RECALIBRATED,
    REFINED,
    SOURCE,
    TRAINED,
    GroupFolder,
    RecipeFolder,
    RunFolder,
    resume_command,
)
from ssrseg.runs.records import RunRecord, method_name, setting

PLACES = re.compile(r"(source|target|val)(\.\d+)?(\.labelled)?\.(root|stems|labels_root)|.*\.weights|model\.pretrained")
LEFT_BY_RUNS = re.compile(r"model\.start|method\.segmentation\.priors")
"""Settings that name what another run left, in a folder whose name may end in its seed."""

CORRECTIONS = {
    TRAINED: "",
    ADJUSTED: " + IA",
    REFINED: " + CR",
    RECALIBRATED: " + target statistics",
    CHOSEN: ", chosen without labels",
}
"""Stages after any method: the training itself, then what a correction or a choice makes of it."""


def members(folder: Path) -> list[Path]:
    """List the runs of a group or of a recipe, or the run itself; raises `UserError` where none has begun."""
    group = GroupFolder(folder)
    if not (group.exists or RecipeFolder(folder).exists):
        return [folder]
    runs = []
    for path in [group.run(seed).path for seed in group.seeds()] if group.exists else [folder]:
        if (recipe := RecipeFolder(path)).exists:
            stages = [recipe.stage(str(stage["name"])) for stage in read_yaml(recipe.config).get("stages") or ()]
        else:
            stages = [RunFolder(path)]
        runs += [stage.path for stage in stages if stage.exists]
    if not runs:
        raise UserError(f"No run of {folder} has begun. Train it with: {resume_command(folder)}")
    return runs


def grouped(runs: Sequence[RunRecord]) -> Iterator[tuple[str, str, list[RunRecord], dict[str, Any]]]:
    """Put runs together that differ in nothing that can change the result but the seed, in the order of their first.

    Yields name, method, runs and `essentials` of each group. `oracle` is the method of one that trains with the labels
    of another's target (or of what that is scored on), and is scored on the same data. A name is the method; those of
    one method add the settings in which they are unusual, the first three unless these leave two names equal.
    """
    parts: dict[str, list[RunRecord]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        own = essentials(run)
        key = json.dumps(own, sort_keys=True, default=str)
        settings[key] = settings.get(key, own)
        parts.setdefault(key, []).append(run)
    firsts = {key: part[0] for key, part in parts.items()}
    whose = {key: _method(run) for key, run in firsts.items()}
    data = {key: tuple(dataset_of(run, role) for role in ("source", "target", "val")) for key, run in firsts.items()}
    aims = {(aim, val) for source, target, val in data.values() for aim in (target, val) if aim not in (source, None)}
    for key, (source, _, val) in data.items():
        if whose[key].startswith("source-only") and (source, val) in aims:
            whose[key] = whose[key].replace("source-only", "oracle")
    long, short = {}, {}
    for key, method in whose.items():
        words = list(_unusual(settings[key], [other for each, other in settings.items() if whose[each] == method]))
        few = [*words[:3], "…"] if len(words) > 3 else words
        long[key], short[key] = (f"{method} ({', '.join(shown)})" if shown else method for shown in (words, few))
    repeated = Counter(short.values())
    for key, part in parts.items():
        yield long[key] if repeated[short[key]] > 1 else short[key], whose[key], part, settings[key]


def essentials(run: RunRecord) -> dict[str, Any]:
    """Map dotted path -> value of all settings that can change the result; of a path, only the end that names it."""
    try:
        tree = resolve(run.config).model_dump(mode="json")  # with the defaults of what is new since
    except UserError:  # of another version
        tree = run.config
    flat = {key: _end(key, value) for key, value in flatten(numbered(tree)).items()}
    kept = {key: value for key, value in flat.items() if key != "train.seed" and affects_result(key)}
    of_recipe = RecipeFolder(run.folder.parent).exists and CORRECTIONS.get(run.folder.name) != ""
    before = {f"{key} until step {each.step}": old for each in run.changes for key, (old, _) in each.changed.items()}
    return kept | before | ({"stage": run.folder.name} if of_recipe else {})


def _end(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = Path(value).parts
    if LEFT_BY_RUNS.fullmatch(key):
        return "/".join([*(re.sub(r"[-_]?(seed)?[-_]?\d+$", "", part) for part in parts[-2:-1]), *parts[-1:]])
    on_the_hub = (  # `owner/name` of weights: both parts are the name
        key.endswith(("weights", "pretrained"))
        and value.count("/") == 1
        and not value.endswith((".safetensors", ".pth", ".pt", ".bin"))
    )
    if PLACES.fullmatch(key) and not on_the_hub:
        return telling_end(Path(value))
    return value


def _method(run: RunRecord) -> str:
    """Name the method that the settings compose; of a recipe's stage, what the recipe makes with it."""
    stage, folder = run.folder.name, RecipeFolder(run.folder.parent)
    if not folder.exists:
        return method_name(run.config)
    recipe = read_yaml(folder.config)
    trainings = [each for each in recipe.get("stages") or () if each.get("does", "train") == "train"]
    names = [method_name(tree) for tree in (recipe, *(merge(recipe, each.get("settings") or {}) for each in trainings))]
    whole = next((name for name in reversed(names) if name != "source-only"), "source-only")
    if stage in CORRECTIONS and whole != "FADA":
        return ("FDA + " if "FDA" in names and whole != "FDA" else "") + whole + CORRECTIONS[stage]
    own = method_name(run.config)
    if own == "FDA" or (stage == SOURCE and own == "source-only"):
        return own
    whole = "Undoing" if whole == "FADA" else whole  # what Undoing builds on FADA's alignment are the other stages
    return whole if trainings and stage == trainings[-1]["name"] else f"{whole}: {stage}"


def dataset_of(run: RunRecord, role: str) -> tuple[Any, ...] | None:
    """Tell which data a run has as source, target or val, wherever they lie; `None` for none."""
    data = setting(run.config, role)
    if data is None:
        return None
    return tuple(_dataset(role, one) for one in data) if isinstance(data, list) else _dataset(role, data)


def _dataset(role: str, data: Mapping[str, Any]) -> tuple[Any, ...]:
    split = None if data.get("split") in COMMON else data.get("split")
    return (split, *(_end(f"{role}.{key}", data.get(key)) for key in ("spec", "root", "images", "stems")))


def _unusual(own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """`key=value` as the command line takes them, `without key` for what others alone have; the usual is left out."""
    for key in dict.fromkeys(key for config in alike for key in config):
        values = [(key in other, other.get(key)) for other in alike]
        mine = (key in own, own.get(key))
        if all(values.count(value) < values.count(mine) for value in values if value != mine):
            continue
        if key in own:
            word = str(yaml.safe_dump(own[key], default_flow_style=True, width=10**6)).strip()
            yield f"{key}={word.removesuffix('...').strip()}"
        elif not any(key.startswith(f"{above}.") for above in own):
            yield f"without {key}"
