"""Experiment trackers: they get the numbers that the journal gets, and may fail without harm to the run."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ssrseg.config import TrainConfig, flatten
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_json
from ssrseg.training.observers.console import Screen
from ssrseg.training.observers.journal import Journal
from ssrseg.training.setup import RunContext

PAUSE = 600.0
"""Seconds without another try after a failure: a tracker that waits for the network would hold up training."""


class Tracker(Protocol):
    """A run in an experiment tracker."""

    @property
    def identity(self) -> str:
        """By which a resumed run finds it again."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers at a step, by their names in TensorBoard."""

    def close(self, *, failed: bool) -> None:
        """The run has ended, as it should or by an exception."""


class Wandb:
    """Weights & Biases; with `WANDB_MODE=offline` it needs neither account nor network.

    Args:
        folder: of the run; its name is the run's, and wandb's own files lie in it.
        project: of wandb.
        config: settings by dotted path.
        identity: of the run to continue; a new one when absent.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any], identity: str | None) -> None:
        wandb = importlib.import_module("wandb")
        resume = None if identity is None else "allow"
        self._run = wandb.init(
            project=project, name=folder.name, dir=str(folder), config=dict(config), id=identity, resume=resume
        )
        # Steps of our own: wandb's must not fall, but a resumed run repeats those since its checkpoint.
        self._run.define_metric("*", step_metric="step")

    @property
    def identity(self) -> str:
        """The run id of wandb."""
        return str(self._run.id)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row of the run's history."""
        self._run.log({"step": step, **numbers})

    def close(self, *, failed: bool) -> None:
        """Wait until everything is stored."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """MLflow, at `MLFLOW_TRACKING_URI`, or where mlflow puts runs without it.

    Args:
        folder: of the run; its name is the run's.
        project: name of the experiment.
        config: settings by dotted path.
        identity: of the run to continue; a new one when absent.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any], identity: str | None) -> None:
        self._entities = importlib.import_module("mlflow.entities")
        self._client = importlib.import_module("mlflow").MlflowClient()
        if identity is not None:
            self._id = identity
            self._client.update_run(identity, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if known is None else known.experiment_id
        self._id = str(self._client.create_run(experiment, run_name=folder.name).info.run_id)
        parameters = [self._entities.Param(key, str(value)[:500]) for key, value in config.items()]
        for start in range(0, len(parameters), 100):  # as many as a server takes at once
            self._client.log_batch(self._id, params=parameters[start : start + 100])

    @property
    def identity(self) -> str:
        """The run id of mlflow."""
        return self._id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Metrics at a step."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, number, now, step) for name, number in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], str | None], Tracker]] = {"wandb": Wandb, "mlflow": MLflow}


class Careful:
    """A tracker whose failures are said once and never stop training.

    Args:
        name: in `TRACKERS`.
        tracker: fails now and then.
        warn: shows a text.
    """

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._name, self._tracker, self._warn = name, tracker, warn
        self._warned, self._quiet_until = False, 0.0

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Pass the numbers on, unless it failed a moment ago."""
        if numbers and time.monotonic() >= self._quiet_until:
            self._try(lambda: self._tracker.log(step, numbers))

    def close(self) -> None:
        """End it; called while an exception is on its way out, it tells the tracker that the run failed."""
        failed = sys.exc_info()[0] is not None
        self._try(lambda: self._tracker.close(failed=failed))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a service's client raises
            self._quiet_until = time.monotonic() + PAUSE
            if not self._warned:
                self._warned = True
                self._warn(failure(self._name, error))


def check_trackers(config: TrainConfig) -> None:
    """Raises `UserError` when a tracker that the settings name is not installed."""
    for name in config.track:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"train.track names {name}, which is not installed here ({error}): pip install 'ssrseg[{name}]', "
                "or leave it out; TensorBoard and metrics.jsonl are always written."
            ) from error


def track(journal: Journal, context: RunContext, screen: Screen, step: int) -> None:
    """Let the trackers of the settings follow the journal; a resumed run continues its run in each of them.

    Args:
        journal: of the run.
        context: the run.
        screen: shows what goes wrong.
        step: completed steps.
    """

    def warn(text: str) -> None:
        screen.say(f"warning: {text}")
        journal.write("warning", step, text=text)

    config, folder = context.settings.train, context.folder.path
    if not config.track or not context.fabric.is_global_zero:
        return
    known = folder / "tracking.json"
    identities: dict[str, str] = json.loads(known.read_text()) if known.exists() else {}
    settings = flatten(context.settings.model_dump(mode="json"))
    for name in config.track:
        try:
            tracker = TRACKERS[name](folder, config.track_project, settings, identities.get(name))
        except Exception as error:  # no account, no network: training does not depend on them
            warn(failure(name, error))
            continue
        identities[name] = tracker.identity
        journal.followers.append(Careful(name, tracker, warn))
    write_json(known, identities)


def failure(name: str, error: Exception) -> str:
    """What to say of a tracker that failed."""
    lines = str(error).splitlines() or [type(error).__name__]
    return f"{name} failed ({lines[0]}); training goes on, and metrics.jsonl and TensorBoard have everything."
