"""Which runs are one setting with several seeds, and what to call it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssrseg.config import affects_result, dump, flatten, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.runs.groups import STAGES
from ssrseg.runs.records import RunRecord, method_name, setting

PLACES = re.compile(r"(source|target|val)\.(root|stems|labels_root)|.*\.weights|model\.pretrained")
LEFT_BY_RUNS = re.compile(r"model\.start|method\.segmentation\.priors")
"""Settings that name what another run left, in a folder whose name may end in its seed."""

COMMON = {"train", "val", "test", "images", "labels", "data", "source", "target"}
"""Names of folders that say too little without the one above."""

CORRECTIONS = {"trained": "", "adjusted": " + IA", "refined": " + CR"}
"""Stages of a prior correction after any method: the training itself, then the correction that they make."""


LACKING = object()
"""Stands for the value of a setting that a run does not have."""


def grouped(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs that differ in nothing that can change the result but the seed, in the order of their first."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(json.dumps(essentials(run), sort_keys=True, default=str), []).append(run)
    return list(found.values())


def essentials(run: RunRecord) -> dict[str, Any]:
    """Dotted path -> value of all settings that can change the result; of a path, only the end that names it."""
    flat = flatten(_completed(run.config))
    kept = {key: _end(key, value) for key, value in flat.items() if key != "train.seed" and affects_result(key)}
    stage = _stage(run.folder)
    return kept | ({"stage": stage} if stage and CORRECTIONS.get(stage) != "" else {})


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of what an older version did not know; as it is where this version cannot read it."""
    try:
        tree: dict[str, Any] = yaml.safe_load(dump(resolve(config)))
    except UserError:
        return config
    return tree


def _end(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = Path(value).parts
    if LEFT_BY_RUNS.fullmatch(key):
        return "/".join([*(re.sub(r"[-_]?(seed)?[-_]?\d+$", "", part) for part in parts[-2:-1]), *parts[-1:]])
    if PLACES.fullmatch(key) and not _on_the_hub(key, value):
        return "/".join(parts[-2:] if parts and parts[-1] in COMMON else parts[-1:])
    return value


def _on_the_hub(key: str, value: str) -> bool:
    """`owner/name` of weights: both parts are the name."""
    weights = key.endswith(("weights", "pretrained"))
    return weights and value.count("/") == 1 and not value.endswith((".safetensors", ".pth", ".pt", ".bin"))


def _stage(folder: Path) -> str | None:
    """The stage's name if the run is one of a recipe."""
    return folder.name if (folder.parent / STAGES).is_file() else None


def methods(runs: Sequence[RunRecord]) -> list[str]:
    """The method of each run; `oracle` is one that trains with labels on what is a target elsewhere among them."""
    targets = [found for run in runs for role in ("target", "val") if (found := _data(run, role)) is not None]
    return [
        "oracle" if name == "source-only" and _data(run, "source") in targets else name
        for run in runs
        for name in [_method(run)]
    ]


def _method(run: RunRecord) -> str:
    """As the settings compose it; of a recipe's stage, what the recipe makes with it."""
    stage = _stage(run.folder)
    if stage is None:
        return method_name(run.config)
    recipe = read_yaml(run.folder.parent / STAGES)
    whole = method_name(recipe)
    if stage in CORRECTIONS and whole != "FADA":
        return whole + CORRECTIONS[stage]
    whole = "Undoing" if whole == "FADA" else whole  # what Undoing builds on FADA's alignment are the other stages
    training = [each["name"] for each in recipe.get("stages") or () if each.get("does", "train") == "train"]
    return whole if training and stage == training[-1] else f"{whole}: {stage}"


def _data(run: RunRecord, role: str) -> tuple[Any, ...] | None:
    data = setting(run.config, role)
    if data is None:
        return None
    split = None if data.get("split") in COMMON else data.get("split")
    return (split, *(_end(f"{role}.{key}", data.get(key)) for key in ("spec", "root", "images", "stems")))


def names(parts: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Distinct names of groups: the method; those of one method add the settings in which they are unusual."""
    whose = methods([part[0] for part in parts])
    settings = [essentials(part[0]) for part in parts]
    found = []
    for method, own in zip(whose, settings, strict=True):
        alike = [other for name, other in zip(whose, settings, strict=True) if name == method]
        words = list(_differing(own, alike))
        found.append((method, words, f"{method} ({', '.join(_few(words))})" if words else method))
    repeated = Counter(name for _, _, name in found)
    return [f"{method} ({', '.join(words)})" if repeated[name] > 1 else name for method, words, name in found]


def _few(words: list[str]) -> list[str]:
    return [*words[:3], "…"] if len(words) > 3 else words


def _differing(own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """`key=value` as the command line takes them, `without key` for what others alone have; the usual is left out."""
    for key in dict.fromkeys(key for config in alike for key in config):
        values, mine = [other.get(key, LACKING) for other in alike], own.get(key, LACKING)
        if all(values.count(value) < values.count(mine) for value in values if value != mine):
            continue
        if key in own:
            yield f"{key}={_word(own[key])}"
        elif not any(key.startswith(f"{above}.") for above in own):
            yield f"without {key}"


def _word(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).strip().removesuffix("...").strip()


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """In how many settings two differ."""
    return sum(one.get(key) != other.get(key) for key in one.keys() | other.keys())


def caveats(named: Sequence[tuple[str, Sequence[RunRecord]]]) -> Iterator[str]:
    """What makes the scores of groups less comparable than a table of them suggests."""
    runs = [run for _, group in named for run in group]
    scored = [run for run in runs if run.last]
    if len(scored) < len(runs):
        yield f"{len(runs) - len(scored)} of {len(runs)} runs have no scores and count in no mean."
    steps = sorted({run.last.step for run in scored if run.last and run.last.step})
    if len(steps) > 1:
        yield f"The runs were scored at different steps: {', '.join(map(str, steps))}."
    if _several([_of(run, "val.") for run in scored]) or len({run.classes for run in scored}) > 1:
        yield "The runs were scored on different data or classes: their mIoU is not one measure."
    if _several([_of(run, "inference.") for run in scored]):
        yield "The runs were scored with different inference settings."
    for name, group in named:
        twice = [str(seed) for seed, count in Counter(run.seed for run in group).items() if count > 1]
        if twice:
            yield f"{name}: seed {', '.join(twice)} ran more than once; such runs are hardly independent."


def _of(run: RunRecord, prefix: str) -> dict[str, Any]:
    return {key: value for key, value in essentials(run).items() if key.startswith(prefix)}


def _several(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)
