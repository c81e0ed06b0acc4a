"""One training with several seeds: a group of runs, each of which can be resumed, and one can fail alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ssrseg.config import Settings, flatten, read_yaml, resolve
from ssrseg.data import refuse_bad_data
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_text
from ssrseg.runs.folder import GroupFolder, RunFolder
from ssrseg.training.observers.trackers import check_trackers
from ssrseg.training.setup import Extensions
from ssrseg.training.train import finish


@dataclass(frozen=True)
class Group:
    """What became of the runs of a group in this call."""

    folder: Path
    finished: tuple[int, ...]
    """Seeds that are trained to the end, earlier ones included."""
    failed: dict[int, str]
    """Why, by seed."""


def train_seeds(
    settings: Settings | None,
    out: Path,
    seeds: Sequence[int] | None = None,
    *,
    resume: bool = False,
    console: Console | None = None,
    extensions: Extensions | None = None,
) -> Group:
    """Train one run per seed, one after the other, in `out`/seed-0, `out`/seed-1 and so on.

    A run that fails does not stop the others. Jobs that get one seed each may share `out`.

    Args:
        settings: of every run, whatever its seed; absent when resuming, which reads them from `out`.
        out: the folder of the group. It may hold a group of the same settings: seeds are added to it.
        seeds: to train; when resuming, all seeds of the group unless given.
        resume: finish the group: keep finished runs, resume interrupted ones, start missing ones.
        console: shows progress; silent when absent.
        extensions: parts of your own, of every run.

    Raises:
        UserError: the settings, the data or the folder allow no run at all; nothing was trained or overwritten.
    """
    folder = GroupFolder(Path(out))
    settings = _settings(settings, folder, resume)
    wanted = sorted(set(seeds if seeds is not None else folder.seeds()))
    _refuse(settings, wanted, folder, resume)
    if settings.stages:
        raise UserError("A recipe with stages has no groups: train each seed into a folder of its own, train.seed=N.")
    check_trackers(settings.train)
    refuse_bad_data(settings)  # what is wrong for every seed is said once
    _create(folder, settings, wanted)
    finished, failed = [], {}
    for seed in wanted:
        if console is not None:
            console.print(f"seed {seed}: {folder.run(seed).path}", soft_wrap=True, highlight=False, markup=False)
        try:
            finish(seeded(settings, seed), folder.run(seed).path, console=console, extensions=extensions)
            finished.append(seed)
        except (UserError, RuntimeError, OSError) as error:  # RuntimeError: torch's own, out of memory among them
            failed[seed] = str(error) or type(error).__name__
            if console is not None:
                console.print(f"seed {seed} failed: {failed[seed]}", soft_wrap=True, highlight=False, markup=False)
    return Group(folder.path, tuple(finished), failed)


def seeded(settings: Settings, seed: int) -> Settings:
    """The same settings with another seed."""
    return settings.model_copy(update={"train": settings.train.model_copy(update={"seed": seed})})


def _settings(settings: Settings | None, folder: GroupFolder, resume: bool) -> Settings:
    if resume:
        if not folder.exists:
            raise UserError(f"There is no group of runs in {folder.path} (no {folder.config.name}): nothing to resume.")
        return resolve(read_yaml(folder.config))
    if settings is None:
        raise UserError("Training needs settings: a preset, a YAML file, or key.path=value words.")
    return settings


def _refuse(settings: Settings, seeds: Sequence[int], folder: GroupFolder, resume: bool) -> None:
    if not seeds:
        raise UserError("No seed to train: give at least one, for example --seeds 0,1,2.")
    if len(seeds) > 1 and settings.train.devices > 1:
        raise UserError(
            f"{len(seeds)} seeds with train.devices={settings.train.devices}: processes are launched once per command. "
            "Give each seed a command of its own with the same --out: --seeds 0, then --seeds 1."
        )
    if RunFolder(folder.path).exists:
        raise UserError(f"{folder.path} holds a single run: a group needs a folder of its own. Give another --out.")
    if resume:
        return
    taken = [str(seed) for seed in seeds if folder.run(seed).exists]
    if taken:
        raise UserError(
            f"{folder.path} holds a run of seed {', '.join(taken)} already. "
            "Continue the group with --resume, or give other seeds or another --out."
        )
    if folder.exists and (unlike := _unlike(read_yaml(folder.config), _shared(settings))):
        raise UserError(
            f"{folder.path} holds a group with other settings ({', '.join(unlike[:5])} differ); the runs of a group "
            "differ in the seed alone. Give another --out."
        )


def _create(folder: GroupFolder, settings: Settings, seeds: Sequence[int]) -> None:
    """The folders first, for they are the list of seeds; two jobs that do this at once do the same."""
    try:
        for seed in seeds:
            folder.run(seed).path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {folder.path}: {error.strerror}.") from error
    if not folder.exists:
        write_text(folder.config, yaml.safe_dump(_shared(settings), sort_keys=False, allow_unicode=True))


def _shared(settings: Settings) -> dict[str, Any]:
    tree = settings.model_dump(mode="json")
    del tree["train"]["seed"]
    return tree


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    mine, theirs = flatten(one), flatten(other)
    return [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key) != theirs.get(key)]
