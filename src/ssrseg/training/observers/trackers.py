"""Experiment trackers: they get the numbers of the journal, and may fail without harm to the run."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssrseg.config import TrainConfig, flatten
from ssrseg.errors import UserError, first_line
from ssrseg.runs.atomic import read_json, write_json
from ssrseg.training.setup import RunContext

PAUSE = 600.0
"""Seconds without another try after a failure: a tracker that waits for the network would hold up training."""


@dataclass
class Tracker:
    """A run in an experiment tracker, whose failures are returned once, as text, and never stop training."""

    name: str  # in `TRACKERS`
    identity: str  # by which a resumed run finds it again
    send: Callable[[int, Mapping[str, float]], object]
    """Send numbers at a step, by their names in TensorBoard; may raise anything."""
    end: Callable[[bool], object]  # end the run: failed or not; may raise anything
    failed: bool = False
    paused_until: float = 0.0

    def log(self, step: int, numbers: Mapping[str, float]) -> str | None:
        """Pass numbers on unless it failed a moment ago; returns a warning at the first failure."""
        if not numbers or time.monotonic() < self.paused_until:
            return None
        return self._try(partial(self.send, step, numbers))

    def close(self) -> str | None:
        """End its run, as failed while an exception is being handled; returns a warning at the first failure."""
        return self._try(partial(self.end, sys.exc_info()[0] is not None))

    def _try(self, act: Callable[[], object]) -> str | None:
        try:
            act()
        except Exception as error:  # whatever a service's client raises
            self.paused_until = time.monotonic() + PAUSE
            first, self.failed = not self.failed, True
            return _warning(self.name, error) if first else None
        return None


def wandb_run(folder: Path, project: str, settings: Mapping[str, Any], identity: str | None) -> Tracker:
    """Start a run of Weights & Biases, which follows TensorBoard's events; `WANDB_MODE=offline` needs no account.

    wandb's own files lie in `folder`; `settings` are by dotted path; `identity` is that of a run to continue.
    """
    run = importlib.import_module("wandb").init(
        project=project,
        name=folder.name,
        dir=str(folder),
        config=dict(settings),
        id=identity,
        resume=None if identity is None else "allow",
        sync_tensorboard=True,
    )
    return Tracker("wandb", str(run.id), lambda step, numbers: None, lambda failed: run.finish(exit_code=int(failed)))


def mlflow_run(folder: Path, project: str, settings: Mapping[str, Any], identity: str | None) -> Tracker:
    """Start a run of MLflow at `MLFLOW_TRACKING_URI`; arguments as for `wandb_run`, the project is an experiment."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(project)
    run = mlflow.start_run(run_id=identity, run_name=None if identity else folder.name)
    if identity is None:
        mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})
    return Tracker(
        "mlflow",
        str(run.info.run_id),
        lambda step, numbers: mlflow.log_metrics(dict(numbers), step=step),
        lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED"),
    )


TRACKERS = {"wandb": wandb_run, "mlflow": mlflow_run}


def check_trackers(config: TrainConfig) -> None:
    """Raise `UserError` when a tracker that the settings name is not installed."""
    for name in config.track:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"train.track names {name}, which is not installed here ({error}): pip install 'ssrseg[{name}]', "
                "or leave it out; TensorBoard and metrics.jsonl are always written."
            ) from error


def start_trackers(context: RunContext) -> tuple[list[Tracker], list[str]]:
    """Start the trackers of the settings, in the first process; a resumed run continues its run in each of them.

    Call it before TensorBoard's writer is made: wandb hooks into that. Returns a warning for each that did not start.
    """
    config, folder = context.settings.train, context.folder
    if not config.track or not context.fabric.is_global_zero:
        return [], []
    identities = read_json(folder.tracking)
    settings = flatten(context.settings.model_dump(mode="json"))
    started, warnings = [], []
    for name in config.track:
        try:
            tracker = TRACKERS[name](folder.path, config.track_project, settings, identities.get(name))
        except Exception as error:  # no account, no network: training does not depend on them
            warnings.append(_warning(name, error))
            continue
        identities[name] = tracker.identity
        started.append(tracker)
    write_json(folder.tracking, identities)
    return started, warnings


def _warning(name: str, error: Exception) -> str:
    return f"{name} failed ({first_line(error)}); training goes on, and metrics.jsonl and TensorBoard have everything."
