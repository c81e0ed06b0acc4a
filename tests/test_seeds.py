"""A group of runs: every seed its own run, one may fail, and what is missing is made up for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factories import CLASSES, write_pairs
from ssrseg.adapt import Term, View
from ssrseg.config import Settings, read_yaml
from ssrseg.errors import UserError
from ssrseg.models import Segmenter
from ssrseg.reporting import compare_records, members, overview, read_run, report, table_markdown
from ssrseg.runs.folder import GroupFolder
from ssrseg.training import Extensions, Run, train, train_seeds
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.stages import planned
from test_cli import ssrseg
from test_training import settings_for, weights

PLAIN: dict[str, Any] = {"method": {"regularizer": None, "masked": None, "feature_distance": None}, "selection": None}


def plain(root: Path, **over: Any) -> Settings:
    """DACS, which needs no parts handed in."""
    return settings_for(root, **{**PLAIN, **over})


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended in the same student."""
    mine, theirs = weights(one), weights(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


class Power(Observer):
    """Gone after the third step."""

    def stepped(self, result: StepResult) -> None:
        """The cut."""
        if result.step == 3:
            raise KeyboardInterrupt


class Flaky:
    """Trains, but the power or a guard ends the runs of some seeds."""

    def __init__(self, *, cut: int | None = None, faulty: int | None = None) -> None:
        self.cut, self.faulty, self.calls = cut, faulty, list[tuple[str, bool]]()

    def __call__(self, settings: Settings | None, out: Path, **options: Any) -> Run:
        """Train or fail."""
        self.calls.append((out.name, options["resume"]))
        if out.name == f"seed-{self.faulty}":
            raise UserError("the loss source/segmentation is NaN at step 3")
        if out.name == f"seed-{self.cut}":
            options["extensions"] = Extensions(observers=[Power()])
        return train(settings, out, **options)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Flaky]:
    """Runs of a group go through it from now on."""

    def patched(**whose: int) -> Flaky:
        each = Flaky(**whose)
        monkeypatch.setattr(sys.modules["ssrseg.training.train"], "train", each)
        return each

    return patched


def test_every_run_of_a_group_is_the_run_of_its_seed(tmp_path: Path) -> None:
    group = train_seeds(plain(tmp_path), tmp_path / "group", [0, 1])
    assert group.finished == (0, 1)
    assert not group.failed
    alone = train(plain(tmp_path, train={"seed": 1}), tmp_path / "alone").folder
    assert same(alone, tmp_path / "group" / "seed-1")
    assert not same(alone, tmp_path / "group" / "seed-0")
    assert "seed" not in read_yaml(tmp_path / "group" / "group.yaml")["train"]


class Shift(Term):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__({"source"})
        self.shift = torch.nn.Parameter(torch.ones(()))

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        return (features[-1].mean() + self.shift) ** 2


def test_every_run_of_a_group_starts_from_the_terms_as_they_are_given(tmp_path: Path) -> None:
    term = Shift()
    train_seeds(plain(tmp_path), tmp_path / "group", [0, 1], extensions=Extensions(terms={"shift": term}))
    alone = Extensions(terms={"shift": Shift()})
    run = train(plain(tmp_path, train={"seed": 1}), tmp_path / "alone", extensions=alone).folder
    assert same(run, tmp_path / "group" / "seed-1")
    assert term.shift.item() == 1 != alone.terms["shift"].shift.item()


def test_a_failed_seed_is_named_and_the_others_go_on(tmp_path: Path, flaky: Callable[..., Flaky]) -> None:
    flaky(faulty=1)
    group = train_seeds(plain(tmp_path), tmp_path / "group", [0, 1, 2])
    assert group.finished == (0, 2)
    assert group.failed == {1: "the loss source/segmentation is NaN at step 3"}


def test_a_resumed_group_keeps_resumes_and_starts(tmp_path: Path, flaky: Callable[..., Flaky]) -> None:
    settings = plain(tmp_path)
    flaky(cut=1)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(settings, tmp_path / "group", [0, 1, 2])
    before = (tmp_path / "group" / "seed-0" / "student-last.safetensors").stat().st_mtime_ns
    rest = flaky()
    group = train_seeds(None, tmp_path / "group", resume=True)
    assert group.finished == (0, 1, 2)
    assert rest.calls == [("seed-1", True), ("seed-2", False)]
    assert (tmp_path / "group" / "seed-0" / "student-last.safetensors").stat().st_mtime_ns == before
    alone = train(plain(tmp_path, train={"seed": 1}), tmp_path / "alone").folder
    assert same(alone, tmp_path / "group" / "seed-1")


def test_seeds_are_added_by_jobs_of_their_own(tmp_path: Path, flaky: Callable[..., Flaky]) -> None:
    each = flaky()
    for seed in (2, 0):
        train_seeds(plain(tmp_path, train={"seed": 5}), tmp_path / "group", [seed])
    assert GroupFolder(tmp_path / "group").seeds() == [0, 2]
    with pytest.raises(UserError, match="differ in: add one with --resume --seeds N"):
        train_seeds(plain(tmp_path, train={"seed": 3}), tmp_path / "group", resume=True)
    train_seeds(None, tmp_path / "group", [3], resume=True)
    assert each.calls == [("seed-2", False), ("seed-0", False), ("seed-3", False)]
    seeds = [read_run(run).seed for run in members(tmp_path / "group")]
    assert seeds == [0, 2, 3]


def test_what_does_not_fit_a_group_is_refused(tmp_path: Path) -> None:
    settings, group = plain(tmp_path), tmp_path / "group"
    train_seeds(settings, group, [0])
    with pytest.raises(UserError, match=r"run of seed 0 already\. Continue the group with --resume"):
        train_seeds(settings, group, [0, 1])
    with pytest.raises(UserError, match=r"other settings \(optim\.lr differ\)"):
        train_seeds(plain(tmp_path, optim={"lr": 0.1}), group, [1])
    with pytest.raises(UserError, match="single run"):
        train_seeds(settings, group / "seed-0", [1])
    with pytest.raises(UserError, match="no group"):
        train_seeds(None, tmp_path / "nowhere", resume=True)
    with pytest.raises(UserError, match="a command of its own"):
        train_seeds(plain(tmp_path, train={"devices": 2}), tmp_path / "other", [0, 1])
    stages = {"stages": [{"name": "one"}]}
    with pytest.raises(UserError, match=r"has no groups: train each seed into a folder of its own, train\.seed=N"):
        train_seeds(plain(tmp_path, **stages), tmp_path / "other", [0, 1])
    ((_, of_stage, _),) = planned(plain(tmp_path, train={"seed": 1}, **stages), tmp_path / "own")
    assert of_stage.train.seed == 1
    assert GroupFolder(group).seeds() == [0]
    assert not (tmp_path / "other").exists()


def test_the_report_of_a_group_is_one_table_of_all_its_seeds(tmp_path: Path) -> None:
    train_seeds(plain(tmp_path), tmp_path / "group", [0, 1])
    page = report([tmp_path / "group"])
    assert page == tmp_path / "group" / "report.html"
    runs = [read_run(run) for run in members(tmp_path / "group")]
    (group,) = compare_records(runs).groups
    found = [
        json.loads((run / "scores.json").read_text())["last"]["student"]["miou"] for run in members(tmp_path / "group")
    ]
    assert group.miou is not None
    assert (group.miou.n, group.miou.mean) == (2, pytest.approx(sum(found) / 2))
    text = table_markdown(overview(compare_records(runs)))
    assert f"mIoU by seed: 0: {100 * found[0]:.1f}, 1: {100 * found[1]:.1f}." in text
    assert "±" in text


TINY = [
    f"classes=[{', '.join(CLASSES)}]",
    "model={backbone: timm:test_resnet, head_channels: 8, pretrained: none}",
    "loader={crop: [64, 64], workers: 0}",
    "train={steps: 2, evaluate_every: 2, accelerator: cpu}",
]


def test_on_the_command_line(tmp_path: Path) -> None:
    for name in ("game", "val"):
        write_pairs(tmp_path / name)
    data = ["--source", "game", "--val", "val", "--out", "runs/g", *TINY]
    printed = ssrseg("train", "--seeds", "0,1", *data, cwd=tmp_path)
    assert "mIoU by seed: 0: " in printed
    assert "whole numbers" in ssrseg("train", "--seeds", "0;1", *data, cwd=tmp_path, code=2)
    assert "seed 0 already" in ssrseg("train", "--seeds", "0", *data, cwd=tmp_path, code=2)
    assert "mIoU by seed" in ssrseg("train", "--resume", "--out", "runs/g", cwd=tmp_path)
    assert "report.html" in ssrseg("report", "runs/g", cwd=tmp_path)
    (tmp_path / "runs" / "g" / "seed-2").mkdir()
    (tmp_path / "runs" / "g" / "seed-2" / "config.yaml").write_text("source: {root: nowhere}\n")
    printed = ssrseg("train", "--resume", "--out", "runs/g", cwd=tmp_path, code=1)
    assert "seed 2 failed: " in printed


def test_seeds_whose_students_get_the_statistics_of_the_target(tmp_path: Path) -> None:
    for name in ("game", "camera", "val"):
        write_pairs(tmp_path / name)
    data = ["--source", "game", "--target", "camera", "--val", "val", "--out", "g", *TINY, "deploy.statistics=blend"]
    said = " ".join(ssrseg("train", "--seeds", "0,1", *data, cwd=tmp_path).split())
    assert said.count("mIoU by seed: 0: ") == 2  # as trained and recalibrated
    assert "seed 1 already" in ssrseg("train", "--seeds", "1", *data, cwd=tmp_path, code=2)
    said = ssrseg("train", "--resume", "--out", "g", "deploy.statistics=target", cwd=tmp_path, code=2)
    assert "cannot change deploy.statistics: blend -> target" in said
    assert "recalibrate g/seed-N/trained/student-last.safetensors" in said
    assert "mIoU by seed" in ssrseg("train", "--resume", "--out", "g", cwd=tmp_path)  # nothing was changed
