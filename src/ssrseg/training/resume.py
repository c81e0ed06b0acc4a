"""What a resumed run may change: its settings now, held against those that its checkpoint was saved with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from ssrseg.config import Settings, affects_result, resolve
from ssrseg.config.data import numbered
from ssrseg.errors import UserError
from ssrseg.runs.folder import RunFolder
from ssrseg.training.checkpoint import previous
from ssrseg.training.optim import scheduled

FIXED = re.compile(
    r"classes|source(\.\d+)?\.spec|stages|deploy\..*|train\.seed|optim\.kind|model\.(backbone|head|\w+_channels)"
    r"|method\.(\w+|regularizer\.(stages|heads)|distillation\.(stage|standardize)|\w+\.foundation\.(encoder|level))"
)
"""Settings that the state of a run is made of: its classes, weights and moments, the parts of the method, the seed."""

PLACES = re.compile(
    r"(source|target|val)(\.\d+)?(\.labelled)?\.\w*(root|stems)|.*\.weights|model\.(pretrained|start)|method\..*\.priors"
)
"""Settings that say where something lies."""

Changed = dict[str, tuple[Any, Any]]
"""Dotted path -> value before and now."""


@dataclass(frozen=True)
class Continuation:
    """A run that goes on after `step` steps: its settings before, where the checkpoint has them, and now."""

    step: int
    before: Settings | None
    now: Settings
    stalled: int = 0  # evaluations without improvement, for an early stop

    @cached_property
    def changed(self) -> Changed:
        """All settings that differ."""
        return {} if self.before is None else differences(self.before, self.now)

    @cached_property
    def essential(self) -> Changed:
        """Those of them that can change the result."""
        return {key: values for key, values in self.changed.items() if affects_result(key)}

    @property
    def ended(self) -> tuple[str, ...]:
        """The settings by which the run ends here."""
        stop = self.now.train.early_stop
        early = ("train.early_stop",) if stop is not None and self.stalled >= stop.patience else ()
        return ("train.steps", *early) if self.now.train.steps == self.step else early

    @property
    def reopened(self) -> bool:
        """Whether a finished run has steps left, since settings have changed that say when it ends."""
        ends = any(key.startswith(("train.steps", "train.early_stop")) for key in self.changed)
        return (ends or self.before is None) and not self.ended

    def refuse(self, folder: RunFolder) -> None:
        """Raise `UserError` for what cannot be in force."""
        if fixed := {key: values for key, values in self.changed.items() if FIXED.fullmatch(key)}:
            raise UserError(
                f"--resume cannot change what the state of a run is made of: {listed(fixed)}. Put back what was, in "
                "its settings file or by leaving out the word, or start a new run with another --out."
            )
        if (steps := self.now.train.steps) < self.step:
            raise UserError(
                f"train.steps={steps}, but the run in {folder.path} has done {self.step} steps, and takes none back: "
                f"set it to {self.step}, which ends the run there, or to more."
            )

    def asides(self) -> tuple[str, ...]:
        """Say what is in force from now on that cannot change the result."""
        return tuple(listed({key: values}) for key, values in self.changed.items() if key not in self.essential)

    def notes(self, processes: int) -> tuple[str, ...]:
        """Say what is in force from now on that can, and what follows from it."""
        if self.before is None:
            return ("the checkpoint does not say which settings it was saved with: no change of them could be seen",)
        step = self.step
        said = [f"{listed({key: values})} from step {step + 1} on" for key, values in self.essential.items()]
        before, now = (of.loader.batch * of.train.accumulate * processes * step for of in (self.before, self.now))
        if before != now:
            how = "left out" if before < now else "drawn a second time"
            said.append(
                f"samples are numbered by step and batch: {min(before, now)} to {max(before, now) - 1} are {how}"
            )
        if any(key.startswith(("model.pretrained", "model.start")) for key in self.essential):
            said.append("the student keeps the weights of the checkpoint, whatever it started from")
        steps, optim = self.now.train.steps, self.now.optim
        if step < steps and any(key.startswith(("optim.", "train.steps")) for key in self.essential):
            was = scheduled(self.before.optim.lr, self.before.optim, step - 1, self.before.train.steps)
            rate = scheduled(optim.lr, optim, step, steps)
            said.append(
                f"the learning rate was {was:.4g} in step {step}, is {rate:.4g} in step {step + 1}, "
                f"and decays to {optim.min_lr:g} until step {optim.length or steps}"
            )
        return tuple(said)


def differences(before: Settings, now: Settings) -> Changed:
    """Find the settings that differ; a group that comes or goes is one."""
    return _differences(numbered(before.model_dump(mode="json")), numbered(now.model_dump(mode="json")))


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Changed:
    found: Changed = {}
    for key in dict.fromkeys([*before, *now]):
        one, two = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found |= _differences(one, two, f"{prefix}{key}.")
        elif one != two:
            found[prefix + key] = one, two
    return found


def listed(changed: Changed) -> str:
    """Write differences as `key: before -> now`; of as many classes as before, those that differ."""
    pairs = dict(changed)
    before, now = pairs.get("classes", ("", ""))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        del pairs["classes"]
        each = {f"classes.{number}": pair for number, pair in enumerate(zip(before, now, strict=True))}
        pairs |= {key: pair for key, pair in each.items() if pair[0] != pair[1]}
    return ", ".join(f"{key}: {' -> '.join(_written(value, key) for value in pair)}" for key, pair in pairs.items())


def _written(value: Any, key: str) -> str:
    """Write a value as JSON, and classes by their names, with what else is set of them."""
    if isinstance(value, list) and key == "classes":
        return f"[{', '.join(_written(one, 'classes.') for one in value)}]"
    if isinstance(value, dict) and key.startswith("classes."):
        more = [f"{name} {json.dumps(what)}" for name, what in value.items() if name != "name" and what is not None]
        return f"{value['name']} ({', '.join(more)})" if more else str(value["name"])
    return value if isinstance(value, str) else json.dumps(value)


def continuation(folder: RunFolder, settings: Settings) -> Continuation | None:
    """Open what `folder` holds, to go on with these settings; `None` where nothing is saved."""
    state = peek(folder.checkpoint)
    if state is None:
        return None
    stalled = state["observers"].get("selection", {}).get("stalled", 0)
    return Continuation(state["step"], readable(state.get("settings")), settings, stalled)


def peek(path: Path) -> dict[str, Any] | None:
    """Open the last checkpoint, or the one before, without reading its tensors; `None` where neither opens."""
    for file in (path, previous(path)):
        with suppress(Exception):  # see `read_checkpoint`
            state: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            return state
    return None


def readable(tree: Mapping[str, Any] | None) -> Settings | None:
    """Check the settings of a checkpoint; `None` in one of another version."""
    with suppress(UserError):
        return None if tree is None else resolve(tree)
    return None


def unlike(folder: RunFolder, settings: Settings, *, places: bool = True) -> Changed:
    """Find what in these settings would have given the run in `folder` another result."""
    run = continuation(folder, settings)
    found = differences((run and run.before) or folder.settings(), settings)
    true = run.ended if run else ()  # a run that goes on to where it is has no step by its settings
    essential = {key: values for key, values in found.items() if affects_result(key) and not key.startswith(true)}
    return {key: values for key, values in essential.items() if places or not PLACES.fullmatch(key)}


def steps_left(folder: RunFolder, settings: Settings, *, places: bool = True) -> bool:
    """Tell whether the run in `folder` has anything left to do by these settings.

    Without `places`, it does not matter to a finished run that what it was made of lies elsewhere by now.

    Raises:
        UserError: settings were changed that cannot be in force.
    """
    run = continuation(folder, settings)
    if run is not None:
        run.refuse(folder)
    if not folder.finished or (run is not None and run.reopened):
        return True
    if changed := unlike(folder, settings, places=places):
        after = f" after step {run.step}" if run else ""
        go_on = "go on with --resume train.steps=N, for more steps"
        if run is None:
            start = quote(f"model.start={folder.student_last}")
            go_on = f"start a new run from its student (its checkpoints are gone): {start}"
        elif settings.train.early_stop:
            go_on += " (train.early_stop=null, if it has stopped early)"
        raise UserError(
            f"The run in {folder.path} is finished{after}, so that this could not be in force: {listed(changed)}. "
            f"Put back what was, or {go_on}."
        )
    return False


def agree(folder: RunFolder, settings: Settings) -> None:
    """Raise `UserError` where a run of a group or recipe was given settings of its own, which `settings` are not."""
    own, run = folder.settings(), continuation(folder, settings)
    found = differences(own, settings)
    if run is not None:
        edited = differences(run.before or own, own)
        found = {key: values for key, values in found.items() if key in edited}
    if unlike := {key: found[key] for key in found if affects_result(key) and not PLACES.fullmatch(key)}:
        raise UserError(
            f"{folder.config} differs from the settings of its group or recipe ({listed(unlike)}). Make it agree, and "
            "change settings for all runs: --resume --out THE FOLDER OF ALL key.path=value."
        )
