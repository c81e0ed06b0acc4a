"""Experiment trackers: they get the numbers of the journal, and may fail without harm to the run."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssrseg.config import TrainConfig, flatten
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_json
from ssrseg.training.setup import RunContext

PAUSE = 600.0
"""Seconds without another try after a failure: a tracker that waits for the network would hold up training."""


@dataclass(frozen=True)
class Tracker:
    """A run in an experiment tracker."""

    identity: str
    """By which a resumed run finds it again."""
    log: Callable[[int, Mapping[str, float]], object]
    """Log numbers at a step, by their names in TensorBoard."""
    close: Callable[[bool], object]
    """End the run: failed or not."""


def wandb_run(folder: Path, project: str, settings: Mapping[str, Any], identity: str | None) -> Tracker:
    """Start a run of Weights & Biases, which follows TensorBoard's events; `WANDB_MODE=offline` needs no account.

    Args:
        folder: of the run; its name is the run's, and wandb's own files lie in it.
        project: of wandb.
        settings: by dotted path.
        identity: of the run to continue; a new one when absent.
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
    return Tracker(str(run.id), lambda step, numbers: None, lambda failed: run.finish(exit_code=int(failed)))


def mlflow_run(folder: Path, project: str, settings: Mapping[str, Any], identity: str | None) -> Tracker:
    """Start a run of MLflow at `MLFLOW_TRACKING_URI`; arguments as for `wandb_run`, the project is an experiment."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(project)
    run = mlflow.start_run(run_id=identity, run_name=None if identity else folder.name)
    if identity is None:
        mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})
    return Tracker(
        str(run.info.run_id),
        lambda step, numbers: mlflow.log_metrics(dict(numbers), step=step),
        lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED"),
    )


TRACKERS = {"wandb": wandb_run, "mlflow": mlflow_run}


class FailSafeTracker:
    """A tracker whose failures are returned once, as text, and never stop training.

    Args:
        name: in `TRACKERS`.
        tracker: may raise anything.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._failed, self._paused_until = False, 0.0

    def log(self, step: int, numbers: Mapping[str, float]) -> str | None:
        """Pass numbers on unless it failed a moment ago; returns a warning at the first failure."""
        if not numbers or time.monotonic() < self._paused_until:
            return None
        return self._try(lambda: self._tracker.log(step, numbers))

    def close(self) -> str | None:
        """End its run, as failed while an exception is being handled; returns a warning at the first failure."""
        failed = sys.exc_info()[0] is not None
        return self._try(lambda: self._tracker.close(failed))

    def _try(self, act: Callable[[], object]) -> str | None:
        try:
            act()
        except Exception as error:  # whatever a service's client raises
            self._paused_until = time.monotonic() + PAUSE
            first, self._failed = not self._failed, True
            return _warning(self._name, error) if first else None
        return None


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


def start_trackers(context: RunContext) -> tuple[list[FailSafeTracker], list[str]]:
    """Start the trackers of the settings, in the first process; a resumed run continues its run in each of them.

    Call it before TensorBoard's writer is made: wandb hooks into that.

    Returns:
        Those that started, and a warning for each that did not.
    """
    config, folder = context.settings.train, context.folder
    if not config.track or not context.fabric.is_global_zero:
        return [], []
    identities: dict[str, str] = json.loads(folder.tracking.read_text("utf-8")) if folder.tracking.exists() else {}
    settings = flatten(context.settings.model_dump(mode="json"))
    started, warnings = [], []
    for name in config.track:
        try:
            tracker = TRACKERS[name](folder.path, config.track_project, settings, identities.get(name))
        except Exception as error:  # no account, no network: training does not depend on them
            warnings.append(_warning(name, error))
            continue
        identities[name] = tracker.identity
        started.append(FailSafeTracker(name, tracker))
    write_json(folder.tracking, identities)
    return started, warnings


def _warning(name: str, error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return f"{name} failed ({lines[0]}); training goes on, and metrics.jsonl and TensorBoard have everything."
