"""Trackers: the numbers they get, that a resumed run is one run, and that no failure of theirs ends training."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from factories import tiny_frozen
from ssrseg.errors import UserError
from ssrseg.training import Extensions, train
from ssrseg.training.loop import Observer, StepResult
from test_training import records, run, settings_for, weights


class FakeWandb(types.ModuleType):
    """Remembers its calls; `broken` ones raise."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.events: list[int] = []
        """Files of TensorBoard's at each `init`: those that are written later are followed."""
        self.ended: list[int] = []
        self.broken: set[str] = set()

    def init(self, **options: Any) -> FakeWandb:
        if "init" in self.broken:
            raise ConnectionError("no route to host\nand a long story")
        self.inits.append(options)
        self.events.append(len(list(Path(options["dir"]).glob("tensorboard/*"))))
        self.id = options["id"] or f"id-{len(self.inits)}"
        return self

    def finish(self, *, exit_code: int) -> None:
        if "finish" in self.broken:
            raise ConnectionError("no route to host\nand a long story")
        self.ended.append(exit_code)


class FakeMLflow(types.ModuleType):
    """A server with experiments and runs, and the active run; `broken` calls raise."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.experiment = ""
        self.params: dict[str, str] = {}
        self.metrics: list[tuple[str, str, float, int]] = []
        self.status: dict[str, str] = {}
        self.active = ""
        self.broken: set[str] = set()
        self.failures = 0

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def start_run(self, *, run_id: str | None, run_name: str | None) -> types.SimpleNamespace:
        assert not self.active
        assert run_id is None or run_id in self.status
        self.active = run_id or f"{self.experiment}/{run_name}"
        self.status[self.active] = "RUNNING"
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=self.active))

    def log_params(self, params: Mapping[str, str]) -> None:
        assert all(len(value) <= 500 for value in params.values())
        self.params |= params

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        if "log" in self.broken:
            self.failures += 1
            raise ConnectionError("no route to host")
        self.metrics += [(self.active, name, value, step) for name, value in metrics.items()]

    def end_run(self, status: str) -> None:
        self.status[self.active], self.active = status, ""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMLflow:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


class Power(Observer):
    """Fails after the third step."""

    def stepped(self, result: StepResult) -> None:
        """The cut."""
        if result.step == 3:
            raise KeyboardInterrupt


def cut_and_resumed(root: Path, track: Mapping[str, Any]) -> Path:
    """A run that lost its power once."""
    with pytest.raises(KeyboardInterrupt):
        train(
            settings_for(root, train=track),
            root / "run",
            extensions=Extensions(foundation=tiny_frozen(), observers=[Power()]),
        )
    return train(None, root / "run", resume=True, extensions=Extensions(foundation=tiny_frozen())).folder


def test_wandb_follows_the_tensorboard_events_that_hold_the_journals_numbers(tmp_path: Path, wandb: FakeWandb) -> None:
    folder = run(tmp_path, "run", train={"track": ["wandb"], "track_project": "streets"})
    (options,) = wandb.inits
    assert (options["project"], options["name"], options["resume"]) == ("streets", "run", None)
    assert options["config"]["train.seed"] == 0
    assert options["config"]["model.backbone"] == "timm:test_resnet"
    assert options["sync_tensorboard"] is True
    assert wandb.events == [0]
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    seen = {(event.step, name): event.value for name in board.Tags()["scalars"] for event in board.Scalars(name)}
    for line in records(folder, "train"):
        for name, value in line["losses"].items():
            assert seen[line["step"], f"train/losses/{name}"] == pytest.approx(value)
    assert seen[4, "eval/student/miou"] == pytest.approx(records(folder, "eval")[-1]["student"]["miou"])
    assert seen[4, "selection/criteria/im"] == pytest.approx(records(folder, "selection")[-1]["criteria"]["im"])
    assert wandb.ended == [0]


def test_wandb_goes_on_with_the_run_of_a_resumed_run(tmp_path: Path, wandb: FakeWandb) -> None:
    folder = cut_and_resumed(tmp_path, {"track": ["wandb"]})
    assert [options["id"] for options in wandb.inits] == [None, "id-1"]
    assert [options["resume"] for options in wandb.inits] == [None, "allow"]
    assert wandb.ended == [1, 0]
    assert json.loads((folder / "tracking.json").read_text()) == {"wandb": "id-1"}


def test_mlflow_gets_numbers_and_settings_and_goes_on_when_resumed(tmp_path: Path, mlflow: FakeMLflow) -> None:
    folder = cut_and_resumed(tmp_path, {"track": ["mlflow"]})
    assert mlflow.status == {"ssrseg/run": "FINISHED"}
    assert mlflow.params["optim.lr"] == "0.001"
    last = records(folder, "train")[-1]["losses"]
    found = {name: value for _, name, value, step in mlflow.metrics if step == 4}
    assert all(found[f"train/losses/{name}"] == value for name, value in last.items())
    assert found["eval/student/miou"] == records(folder, "eval")[-1]["student"]["miou"]


def test_an_interrupted_run_is_marked_as_failed(tmp_path: Path, mlflow: FakeMLflow) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(
            settings_for(tmp_path, train={"track": ["mlflow"]}),
            tmp_path / "run",
            extensions=Extensions(foundation=tiny_frozen(), observers=[Power()]),
        )
    assert mlflow.status == {"ssrseg/run": "FAILED"}


@pytest.mark.parametrize("broken", ["init", "finish"])
def test_a_failing_wandb_is_reported_once_and_changes_nothing(broken: str, tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.broken.add(broken)
    tracked, plain = run(tmp_path, "run", train={"track": ["wandb"]}), run(tmp_path, "plain")
    assert_failure_is_reported_once(tracked, plain, "wandb")
    assert not wandb.ended


def test_a_failing_mlflow_is_reported_once_and_left_alone_for_a_while(tmp_path: Path, mlflow: FakeMLflow) -> None:
    mlflow.broken.add("log")
    tracked, plain = run(tmp_path, "run", train={"track": ["mlflow"]}), run(tmp_path, "plain")
    assert_failure_is_reported_once(tracked, plain, "mlflow")
    assert mlflow.failures == 1
    assert not mlflow.metrics


def assert_failure_is_reported_once(tracked: Path, plain: Path, name: str) -> None:
    (line,) = [line for line in records(tracked, "warning") if name in line["text"]]
    assert line["text"].startswith(f"{name} failed (no route to host); training goes on")
    assert records(tracked, "train") == records(plain, "train")
    one, other = weights(tracked), weights(plain)
    assert all((one[key] == other[key]).all() for key in one)


def test_a_missing_package_is_reported_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'ssrseg\[wandb\]'"):
        run(tmp_path, "run", train={"track": ["wandb"]})
    assert not (tmp_path / "run").exists()
