"""A run that goes on with other settings, for longer or shorter, and one that ends early by itself."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from factories import tiny_segmenter
from ssrseg.adapt import Learner
from ssrseg.cli import app
from ssrseg.config import Settings, assignments, merge, read_yaml, resolve
from ssrseg.config.training import AdamWConfig, GuardConfig, SGDConfig
from ssrseg.errors import UserError
from ssrseg.reporting import compare_records, read_run, report
from ssrseg.runs.folder import RunFolder
from ssrseg.training import Extensions, train, train_seeds
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.alarms import ClassCollapse
from ssrseg.training.optim import build_optimizer, learning_rate, load_optimizer
from test_training import records, settings_for, weights

PLAIN = ["val=null", "selection=null", "loader.rare_class=null", "train.steps=8", "train.log_every=1"]


class Cut(Observer):
    """The power is gone after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def stepped(self, result: StepResult) -> None:
        if result.step == self._step:
            raise KeyboardInterrupt


def plain(root: Path, *words: str) -> Settings:
    """Source-only on tiny pictures: eight steps, a checkpoint every two."""
    tree = settings_for(root).model_dump(mode="json") | {"method": {}}
    return resolve(merge(tree, assignments([*PLAIN, *words])))


def cut(settings: Settings | None, out: Path, step: int, *, resume: bool = False) -> Path:
    """Train until a step; its checkpoint is the one before it."""
    with pytest.raises(KeyboardInterrupt):
        train(settings, out, resume=resume, extensions=Extensions(observers=[Cut(step)]))
    return out


def edit(folder: Path, *words: str) -> None:
    """What a user does to config.yaml."""
    config = RunFolder(folder).config
    config.write_text(yaml.safe_dump(merge(read_yaml(config), assignments(words))))


def resumed(folder: Path) -> str:
    """Resume a run; what it said on the screen."""
    console = Console(file=(screen := io.StringIO()), width=1000)
    train(None, folder, resume=True, console=console)
    return screen.getvalue()


def notes(folder: Path) -> list[str]:
    return [note["text"] for note in records(folder, "note") if note["step"]]


def same(one: Path, other: Path) -> bool:
    """Whether two runs left the same student and the same journal."""
    mine, theirs = weights(one), weights(other)
    kinds = ("train", "selection", "settings", "note", "stopped")
    return all(torch.equal(mine[name], theirs[name]) for name in mine) and all(
        records(one, kind) == records(other, kind) for kind in kinds
    )


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in step 5, whose checkpoint is of step 4."""
    root = tmp_path_factory.mktemp("continuing")
    return cut(plain(root), root / "half", 5)


@pytest.fixture(scope="module")
def done(half: Path) -> Path:
    """A run that is finished after four steps."""
    return train(plain(half.parent, "train.steps=4"), half.parent / "done").folder


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run"))


@pytest.fixture
def finished(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "finished"))


CHANGED = ("optim.lr=0.01", "optim.weight_decay=0", "loader.batch=3", "loader.crop=[32, 64]", "loader.workers=1")


def test_changed_settings_are_in_force_and_said(run: Path, tmp_path: Path) -> None:
    edit(run, *CHANGED)
    again = Path(shutil.copytree(run, tmp_path / "again"))
    screen = resumed(run)
    expected = [
        "loader.crop: [64, 64] -> [32, 64] from step 5 on",
        "loader.batch: 2 -> 3 from step 5 on",
        "optim.lr: 0.001 -> 0.01 from step 5 on",
        "optim.weight_decay: 0.01 -> 0.0 from step 5 on",
        "samples are numbered by step and batch: 8 to 11 are left out",
        "the learning rate was 0.000625 in step 4, is 0.005 in step 5, and decays to 0 until step 8",
    ]
    assert notes(run) == expected
    assert all(f"note: {text}" in screen for text in expected)
    assert "loader.workers: 0 -> 1" in screen
    rates = {line["step"]: line["lr"] for line in records(run, "train")}
    assert rates[4] == learning_rate(0.001, 3, 8, warmup=2)
    assert rates[5] == learning_rate(0.01, 4, 8, warmup=2) == 0.005
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.0}
    cut(None, again, 7, resume=True)
    resumed(again)
    assert same(run, again)


def test_reports_and_comparisons_tell_the_parts_apart(run: Path, half: Path) -> None:
    edit(run, "optim.lr=0.01")
    resumed(run)
    whole = train(plain(half.parent, "optim.lr=0.01"), run.parent / "whole").folder
    one, other = read_run(run), read_run(whole)
    assert one.config == other.config
    groups = compare_records([one, other]).groups
    assert len(groups) == 2
    assert groups[0].settings["optim.lr until step 4"] == 0.001
    assert "other optim.lr until step 4" in report([run]).read_text()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optim={kind: sgd}", "optim.kind: adamw -> sgd"),
        ("model.backbone=mit_b0", "model.backbone: timm:test_resnet -> mit_b0"),
        ("model.in_channels=4", "model.in_channels: 3 -> 4"),
        ("classes=[wall, road, tree, car]", "of: classes.0: road -> wall, classes.1: wall -> road. Put back"),
        ("classes=[road, wall, tree, {name: car, ids: [3, 26]}]", "of: classes.3: car -> car (ids [3, 26]). Put back"),
        ("classes=[road, {name: car, color: [0, 0, 9]}]", "[road, wall, tree, car] -> [road, car (color [0, 0, 9])]"),
        ("method.teacher={}", "method.teacher: null -> "),
        ("train.seed=1", "train.seed: 0 -> 1"),
    ],
)
def test_what_the_state_is_made_of_is_refused_by_name(word: str, said: str, run: Path) -> None:
    before = read_yaml(run / "config.yaml")
    edit(run, word)
    with pytest.raises(UserError, match="cannot change what the state of a run is made of") as error:
        resumed(run)
    assert said in str(error.value)
    (run / "config.yaml").write_text(yaml.safe_dump(before))  # the advice
    if word == "train.seed=1":
        resumed(run)
        assert not notes(run)


def without_settings(run: Path) -> None:
    """Make the checkpoint one of a version that did not keep them."""
    path = run / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    del state["settings"]
    torch.save(state, path)


def test_a_checkpoint_of_an_earlier_version_resumes_and_says_what_is_not_known(run: Path) -> None:
    without_settings(run)
    edit(run, "optim={kind: sgd}")
    with pytest.raises(UserError, match="its optimiser was another one than RepeatedSGD"):
        resumed(run)
    edit(run, "optim={kind: adamw}")
    resumed(run)
    assert "no change of them could be seen" in notes(run)[0]


def test_moments_find_their_parameters_in_other_groups() -> None:
    learner = Learner(tiny_segmenter(), {})
    before = build_optimizer(learner, AdamWConfig(weight_decay=0.1))
    for number, weight in enumerate(learner.parameters()):
        weight.grad = torch.full_like(weight, number + 1.0)
    before.step()
    after = build_optimizer(learner, AdamWConfig(weight_decay=0, head_lr_factor=1))
    assert len(after.param_groups) < len(before.param_groups)
    load_optimizer(after, before.state_dict())
    assert all(torch.equal(after.state[weight]["exp_avg"], before.state[weight]["exp_avg"]) for weight in before.state)
    assert {(group["base_lr"], group["weight_decay"]) for group in after.param_groups} == {(6e-5, 0)}
    with pytest.raises(ValueError, match="another one than RepeatedSGD"):
        load_optimizer(build_optimizer(learner, SGDConfig()), before.state_dict())


def test_the_thresholds_of_alarms_are_those_of_the_settings() -> None:
    def alarm(**thresholds: float) -> ClassCollapse:
        guard = GuardConfig(learned_iou=0.5, **thresholds)
        settings = SimpleNamespace(train=SimpleNamespace(guard=guard, log_every=1), optim=SimpleNamespace(warmup=0))
        return ClassCollapse(
            cast(Any, SimpleNamespace(settings=settings, space=SimpleNamespace(names=["car"]))), journal
        )

    said: list[str] = []
    journal = cast(Any, SimpleNamespace(warn=lambda step, text: said.append(text)))
    before, after = alarm(), alarm(lost_iou=0.4)
    before.scored(1, cast(Any, SimpleNamespace(iou=[0.6])))
    after.restore(before.state())
    after.scored(2, cast(Any, SimpleNamespace(iou=[0.3])))
    assert "below 40.0%" in said[0]


def on_the_command_line(*words: str) -> Any:
    return CliRunner().invoke(app, ["train", "--resume", "--out", *words])


def test_a_finished_run_is_trained_longer(finished: Path, tmp_path: Path) -> None:
    student = (finished / "student-last.safetensors").read_bytes()
    by_hand, killed = (Path(shutil.copytree(finished, tmp_path / name)) for name in ("by_hand", "killed"))
    done = on_the_command_line(str(finished), "train.steps=7")
    assert done.exit_code == 0, done.output
    assert notes(finished) == [
        "train.steps: 4 -> 7 from step 5 on",
        "the learning rate was 0.00025 in step 4, is 0.0004286 in step 5, and decays to 0 until step 7",
    ]
    assert f"the student of step 4 is kept as {finished / 'student-step-000004.safetensors'}" in done.output
    assert (finished / "student-step-000004.safetensors").read_bytes() == student
    assert read_yaml(finished / "config.yaml")["train"]["steps"] == 7
    assert [line["lr"] for line in records(finished, "train")][4:] == [
        learning_rate(0.001, step, 7, warmup=2) for step in (4, 5, 6)
    ]
    edit(by_hand, "train.steps=7")
    resumed(by_hand)
    assert same(finished, by_hand)
    edit(killed, "train.steps=7")
    cut(None, killed, 5, resume=True)
    assert not RunFolder(killed).finished
    cut(None, killed, 7, resume=True)
    resumed(killed)
    assert same(finished, killed)


def test_shorter_is_possible_down_to_what_is_done(run: Path, tmp_path: Path) -> None:
    ended = Path(shutil.copytree(run, tmp_path / "ended"))
    refused = on_the_command_line(str(run), "train.steps=3")
    assert "has done 4 steps, and takes none back: set it to 4, which ends the run there, or to more" in str(
        refused.exception
    )
    assert read_yaml(run / "config.yaml")["train"]["steps"] == 8
    assert on_the_command_line(str(run), "train.steps=6").exit_code == 0
    assert [line["step"] for line in records(run, "train")] == [1, 2, 3, 4, 5, 6]
    assert on_the_command_line(str(ended), "train.steps=4").exit_code == 0
    assert [line["step"] for line in records(ended, "train")] == [1, 2, 3, 4]
    assert "finished: nothing to resume" in resumed(ended)


def test_a_finished_run_refuses_what_could_not_be_in_force(finished: Path) -> None:
    edit(finished, "optim.lr=0.01")
    with pytest.raises(
        UserError, match=r"finished after step 4, .* optim\.lr: 0\.001 -> 0\.01\. Put back what was, or go on"
    ):
        resumed(finished)
    longer = shutil.copytree(finished, finished.parent / "longer")
    assert on_the_command_line(str(longer), "train.steps=5").exit_code == 0  # with that rate: the other advice
    edit(finished, "optim.lr=0.001", "loader.workers=1")
    assert "finished: nothing to resume" in resumed(finished)
    shutil.rmtree(finished / "checkpoints")
    refused = on_the_command_line(str(finished), "train.steps=6")
    assert "its checkpoints are gone" in str(refused.exception)
    advice = str(refused.exception).rpartition("): ")[2].removesuffix(".")
    train(plain(finished.parent, advice, "train.steps=1"), finished.parent / "new")


def test_the_rate_has_no_end_before_the_run(finished: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.length=4 ends before train\.steps=6"):
        resolve(merge(read_yaml(finished / "config.yaml"), assignments(["optim.length=4", "train.steps=6"])))


def test_a_group_is_trained_longer_and_its_runs_stay_alike(done: Path, tmp_path: Path) -> None:
    group, words = tmp_path / "group", ("train.steps=2", "train.log_every=1")
    train_seeds(plain(done.parent, *words), group, [0, 1])
    longer = on_the_command_line(str(group), "train.steps=3")
    assert longer.exit_code == 0, longer.output
    alone = [read_yaml(group / f"seed-{seed}" / "config.yaml")["train"] for seed in (0, 1)]
    assert [(train["seed"], train["steps"]) for train in alone] == [(0, 3), (1, 3)]
    assert records(group / "seed-1", "train")[-1]["step"] == 3
    assert read_yaml(group / "group.yaml")["train"]["steps"] == 3
    refused = on_the_command_line(str(group), "optim.lr=1")
    assert "optim.lr: 0.001 -> 1.0" in str(refused.exception)
    assert read_yaml(group / "group.yaml")["optim"]["lr"] == 0.001
    edit(group / "seed-1", "optim.lr=1")
    assert (
        "differs from the settings of its group or recipe (optim.lr: 1.0 -> 0.001)"
        in train_seeds(None, group, resume=True).failed[1]
    )


def test_a_recipe_changes_only_what_is_not_finished(done: Path, tmp_path: Path) -> None:
    stages = "stages=[{name: one}, {name: two, settings: {model: {start: '{one}'}}}]"
    out = tmp_path / "recipe"
    train(plain(done.parent, stages, "train.steps=2"), out)
    (out / "two" / "student-last.safetensors").unlink()
    shutil.rmtree(out / "two" / "checkpoints")
    refused = on_the_command_line(str(out), "train.steps=3")
    assert "Stage 'one' is finished, and others start from it: train.steps: 2 -> 3" in str(refused.exception)
    tree = read_yaml(out / "stages.yaml")
    assert tree["train"]["steps"] == 2
    tree["stages"][1]["settings"]["train"] = {"steps": 3}
    (out / "stages.yaml").write_text(yaml.safe_dump(tree))
    shutil.rmtree(out / "two")
    resumed(out)
    assert records(out / "two", "train")[-1]["step"] == 3


EARLY = ("selection={images: 2, keep: []}", "train.evaluate_every=1", "optim.lr=0.05")


def test_a_run_ends_early_and_can_go_on(done: Path, tmp_path: Path) -> None:
    whole = train(plain(done.parent, *EARLY), tmp_path / "whole").folder
    early = train(plain(done.parent, *EARLY, "train.early_stop=1"), tmp_path / "early").folder
    ims = [line["criteria"]["im"] for line in records(whole, "selection")]
    last = next(step for step in range(2, 9) if ims[step - 1] <= max(ims[: step - 1]))
    assert last < 8
    assert records(early, "selection")[-1]["step"] == last
    best = max(range(last), key=lambda step: ims[step]) + 1
    text = f"stopped early at step {last}: im has not improved for 1 selections, since step {best} (train.early_stop)"
    assert notes(early) == [text]
    assert f"stopped early at step {last} of 8" in report([early]).read_text()
    assert "finished: nothing to resume" in resumed(early)
    (early / "student-last.safetensors").unlink()  # killed just before it was written
    resumed(early)
    assert notes(early) == [text]
    refused = on_the_command_line(str(early), "train.steps=9")
    assert "train.early_stop=null" in str(refused.exception)
    assert on_the_command_line(str(early), "train.early_stop=null").exit_code == 0
    mine, theirs = weights(whole), weights(early)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.early_stop=0", "train.early_stop.patience"),
        ("train.early_stop={by: agreement}", "set method.teacher"),
        ("train.early_stop={by: miou}", "train.early_stop.by"),
        ("target=null", "needs a target"),
    ],
)
def test_an_early_stop_that_cannot_be_is_refused(word: str, said: str, done: Path) -> None:
    with pytest.raises(UserError, match=said):
        plain(done.parent, *EARLY, "train.early_stop=true", word)
