"""One training with several seeds: a group of runs, each of which can be resumed or fail alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ssrseg.config import Settings, flatten, read_yaml, resolve
from ssrseg.data import refuse_bad_data
from ssrseg.errors import UserError
from ssrseg.runs.atomic import writing
from ssrseg.runs.folder import TRAINED, GroupFolder, RecipeFolder, RunFolder
from ssrseg.training.observers.trackers import check_trackers
from ssrseg.training.resume import steps_left
from ssrseg.training.setup import Extensions
from ssrseg.training.stages import deployed, refuse_other_statistics
from ssrseg.training.train import finish


@dataclass(frozen=True)
class Group:
    """The outcome of one call of `train_seeds`."""

    folder: Path
    finished: tuple[int, ...]  # seeds that are trained to the end, earlier ones included
    failed: dict[int, str]  # why, by seed


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
        settings: of every run, whatever its seed; when resuming, those to go on with: what `out` has, unless given.
        out: the folder of the group. It may hold a group of the same settings: seeds are added to it.
        seeds: to train; when resuming, all seeds of the group unless given.
        resume: finish the group: keep finished runs, resume interrupted ones, start missing ones.
        console: shows progress; silent when absent.
        extensions: parts of your own, of every run.

    Raises:
        UserError: the settings, the data or the folder allow no run at all; nothing was trained or overwritten.
    """
    folder = GroupFolder(Path(out))
    if resume and not folder.exists:
        raise UserError(f"There is no group of runs in {folder.path} (no {folder.config.name}): nothing to resume.")
    if resume:
        own = resolve(read_yaml(folder.config))
        settings = settings or own
        path = folder.path / f"seed-N/{TRAINED}" if deployed(own).stages else folder.path / "seed-N"
        refuse_other_statistics(own, settings, str(RunFolder(path).student_last))
    if settings is None:
        raise UserError("Training needs settings: a preset, a YAML file, or key.path=value words.")
    wanted = sorted(set(seeds if seeds is not None else folder.seeds()))
    shared = settings.model_dump(mode="json")
    del shared["train"]["seed"]
    _refuse(settings, wanted, folder, None if resume else shared)
    check_trackers(settings.train)
    refuse_bad_data(settings)  # what is wrong for every seed is said once
    each = {seed: settings.train.model_copy(update={"seed": seed}) for seed in wanted}
    seeded = {seed: settings.model_copy(update={"train": train}) for seed, train in each.items()}
    for seed in wanted:
        steps_left(folder.run(seed), seeded[seed], places=False)  # refuses what one of them would
    with writing(folder.config):
        for seed in wanted:  # the folders first, for they are the list of seeds; two jobs at once do the same
            folder.run(seed).path.mkdir(exist_ok=True)
        if resume or not folder.exists:
            folder.write(yaml.safe_dump(shared, sort_keys=False, allow_unicode=True))
    say = partial((console or Console(quiet=True)).print, soft_wrap=True, highlight=False, markup=False)
    finished, failed = [], {}
    for seed in wanted:
        run = folder.run(seed).path
        say(f"seed {seed}: {run}")
        try:
            finish(seeded[seed], run, console=console, extensions=extensions)
            finished.append(seed)
        except (UserError, RuntimeError, OSError) as error:  # RuntimeError: torch's own, out of memory among them
            failed[seed] = str(error) or type(error).__name__
            say(f"seed {seed} failed: {failed[seed]}")
    return Group(folder.path, tuple(finished), failed)


def _refuse(settings: Settings, seeds: Sequence[int], folder: GroupFolder, shared: dict[str, Any] | None) -> None:
    """Raise `UserError` where nothing may be trained; `shared` are the settings of seeds that are added to a group."""
    if not seeds:
        raise UserError("No seed to train: give at least one, for example --seeds 0,1,2.")
    if settings.stages:
        raise UserError("A recipe with stages has no groups: train each seed into a folder of its own, train.seed=N.")
    if len(seeds) > 1 and settings.train.devices > 1:
        raise UserError(
            f"{len(seeds)} seeds with train.devices={settings.train.devices}: processes are launched once per command. "
            "Give each seed a command of its own with the same --out: --seeds 0, then --seeds 1."
        )
    if RunFolder(folder.path).exists:
        raise UserError(f"{folder.path} holds a single run: a group needs a folder of its own. Give another --out.")
    if shared is None:
        if settings.train.seed:
            raise UserError("train.seed is what the runs of a group differ in: add one with --resume --seeds N.")
        return
    runs = {seed: folder.run(seed) for seed in seeds}
    if taken := [str(seed) for seed, run in runs.items() if run.exists or RecipeFolder(run.path).exists]:
        raise UserError(
            f"{folder.path} holds a run of seed {', '.join(taken)} already. "
            "Continue the group with --resume, or give other seeds or another --out."
        )
    there, mine = flatten(read_yaml(folder.config) if folder.exists else shared), flatten(shared)
    if unlike := [key for key in dict.fromkeys([*there, *mine]) if there.get(key) != mine.get(key)]:
        raise UserError(
            f"{folder.path} holds a group with other settings ({', '.join(unlike[:5])} differ); the runs of a group "
            "differ in the seed alone. Give another --out."
        )
