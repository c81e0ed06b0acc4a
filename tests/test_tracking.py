"""Trackers: what they are told, that a resumed run is one run, and that no failure of theirs ends training."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from factories import tiny_frozen
from ssrseg.errors import UserError
from ssrseg.training import Extensions, train
from ssrseg.training.loop import Observer, StepResult
from test_training import records, run, settings_for, weights


class FakeWandb(types.ModuleType):
    """Remembers what it was told; fails when told to."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.ended: list[int] = []
        self.defined: list[tuple[str, str]] = []
        self.broken: set[str] = set()

    def init(self, **options: Any) -> FakeWandb:
        if "init" in self.broken:
            raise ConnectionError("no route to host\nand a long story")
        self.inits.append(options)
        self.id = options["id"] or f"id-{len(self.inits)}"
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.defined.append((name, step_metric))

    def log(self, row: dict[str, float]) -> None:
        if "log" in self.broken:
            raise ConnectionError("no route to host")
        self.rows.append(row)

    def finish(self, *, exit_code: int) -> None:
        self.ended.append(exit_code)


class FakeMLflow(types.ModuleType):
    """A server with experiments and runs."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.experiments: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.metrics: list[tuple[str, str, float, int]] = []
        self.status: dict[str, str] = {}
        self.entities = types.ModuleType("mlflow.entities")
        self.entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
        self.entities.Metric = lambda *parts: parts  # type: ignore[attr-defined]

    def MlflowClient(self) -> FakeMLflow:
        return self

    def get_experiment_by_name(self, name: str) -> types.SimpleNamespace | None:
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment: str, *, run_name: str) -> types.SimpleNamespace:
        identity = f"{experiment}/{run_name}"
        self.status[identity] = "RUNNING"
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=identity))

    def update_run(self, identity: str, *, status: str) -> None:
        assert identity in self.status
        self.status[identity] = status

    def set_terminated(self, identity: str, *, status: str) -> None:
        self.status[identity] = status

    def log_batch(
        self,
        identity: str,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Sequence[tuple[str, str]] = (),
    ) -> None:
        assert len(params) <= 100
        self.params |= dict(params)
        self.metrics += [(identity, name, value, step) for name, value, _, step in metrics]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMLflow:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
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


def test_wandb_gets_the_journals_numbers_and_the_settings(tmp_path: Path, wandb: FakeWandb) -> None:
    folder = run(tmp_path, "run", train={"track": ["wandb"], "track_project": "streets"})
    (options,) = wandb.inits
    assert (options["project"], options["name"], options["resume"]) == ("streets", "run", None)
    assert options["config"]["train.seed"] == 0
    assert options["config"]["model.backbone"] == "timm:test_resnet"
    assert wandb.defined == [("*", "step")]
    seen = {(row["step"], name): value for row in wandb.rows for name, value in row.items()}
    for line in records(folder, "train"):
        for name, value in line["losses"].items():
            assert seen[line["step"], f"train/losses/{name}"] == value
    assert seen[4, "eval/student/miou"] == records(folder, "eval")[-1]["student"]["miou"]
    assert seen[4, "selection/criteria/im"] == records(folder, "selection")[-1]["criteria"]["im"]
    assert wandb.ended == [0]


def test_wandb_goes_on_with_the_run_of_a_resumed_run(tmp_path: Path, wandb: FakeWandb) -> None:
    folder = cut_and_resumed(tmp_path, {"track": ["wandb"]})
    assert [options["id"] for options in wandb.inits] == [None, "id-1"]
    assert [options["resume"] for options in wandb.inits] == [None, "allow"]
    assert wandb.ended == [1, 0]
    assert json.loads((folder / "tracking.json").read_text()) == {"wandb": "id-1"}


def test_mlflow_gets_numbers_and_settings_and_goes_on_when_resumed(tmp_path: Path, mlflow: FakeMLflow) -> None:
    folder = cut_and_resumed(tmp_path, {"track": ["mlflow"]})
    assert mlflow.experiments == {"ssrseg": "0"}
    assert mlflow.status == {"0/run": "FINISHED"}
    assert mlflow.params["optim.lr"] == "0.001"
    last = records(folder, "train")[-1]["losses"]
    found = {name: value for _, name, value, step in mlflow.metrics if step == 4}
    assert all(found[f"train/losses/{name}"] == value for name, value in last.items())


def test_an_interrupted_run_is_marked_as_failed(tmp_path: Path, mlflow: FakeMLflow) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(
            settings_for(tmp_path, train={"track": ["mlflow"]}),
            tmp_path / "run",
            extensions=Extensions(foundation=tiny_frozen(), observers=[Power()]),
        )
    assert mlflow.status == {"0/run": "FAILED"}


@pytest.mark.parametrize("broken", ["init", "log"])
def test_a_failing_tracker_is_said_once_and_changes_nothing(broken: str, tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.broken.add(broken)
    tracked, plain = run(tmp_path, "run", train={"track": ["wandb"]}), run(tmp_path, "plain")
    (line,) = [line for line in records(tracked, "warning") if "wandb" in line["text"]]
    assert line["text"].startswith("wandb failed (no route to host); training goes on")
    assert records(tracked, "train") == records(plain, "train")
    one, other = weights(tracked), weights(plain)
    assert all((one[name] == other[name]).all() for name in one)
    assert not wandb.rows


def test_a_missing_package_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'ssrseg\[wandb\]'"):
        run(tmp_path, "run", train={"track": ["wandb"]})
    assert not (tmp_path / "run").exists()
