"""Runs that start from runs: the stages of Undoing on tiny folders, and the corrections of any method."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from factories import CLASSES, write_pairs
from ssrseg.cli import app
from ssrseg.config import Settings, merge, read_preset, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.label_shift import labelled_by, read_priors
from ssrseg.models import load_segmenter
from ssrseg.reporting import compare
from ssrseg.runs.folder import RunFolder
from ssrseg.training import train
from ssrseg.training.stages import corrected, planned

SMALL: dict[str, Any] = {
    "loader": {"crop": [64, 64], "target_crop": None, "batch": 2, "workers": 0},
    "model": {"backbone": "timm:test_resnet", "pretrained": "none", "head": "deeplabv2-whole"},
    "optim": {"length": 8},
    "train": {
        **dict.fromkeys(("steps", "evaluate_every", "checkpoint_every", "log_every", "pictures_every"), 2),
        "accelerator": "cpu",
        "seed": 1,  # after two steps a student of seed 0 labels all with one class, which no other can learn from
    },
}
GROUPS = ("loader", "model", "optim", "train")


def small(preset: str, root: Path, **over: Any) -> Settings:
    """A published recipe on pictures of 64x64, two steps a stage."""
    for name in ("game", "camera", "val"):
        if not (root / name).exists():
            write_pairs(root / name)
    tree = merge(read_preset(preset), SMALL)
    data = {"source": "game", "target": "camera", "val": "val"}
    tree |= {"classes": CLASSES, **{name: {"root": str(root / folder)} for name, folder in data.items()}}
    for stage in tree.get("stages", []):
        if "settings" in stage:
            stage["settings"] = merge(
                stage["settings"], {group: SMALL[group] for group in GROUPS if group in stage["settings"]}
            )
    return resolve(merge(tree, over))


def weights(path: Path) -> dict[str, Tensor]:
    return load_segmenter(path).state_dict()


def parts(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(part)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages of Undoing."""
    root = tmp_path_factory.mktemp("undoing")
    train(small("undoing", root), root / "out")
    return root / "out"


def test_every_stage_leaves_what_the_next_one_needs(undone: Path) -> None:
    students = ["pretrain", "align", "adjusted", "refined", "distilled"]
    assert all((undone / name / "student-last.safetensors").exists() for name in students)
    assert read_priors(undone / "priors" / "priors.json").classes == CLASSES
    assert len(list((undone / "labels" / "labels").rglob("*.png"))) == 4


def test_alignment_is_learnt_with_a_discriminator_that_is_not_deployed(undone: Path) -> None:
    lines = [json.loads(line) for line in (undone / "align" / "metrics.jsonl").read_text().splitlines()]
    losses = next(line["losses"] for line in lines if line["kind"] == "train")
    assert set(losses) == {"source/segmentation", "source/alignment", "target/alignment"}
    assert not any("discriminator" in name for name in weights(undone / "align" / "student-last.safetensors"))


def test_refinement_changes_the_head_alone(undone: Path) -> None:
    before, after = (weights(undone / name / "student-last.safetensors") for name in ("align", "refined"))
    assert same(parts(before, "backbone."), parts(after, "backbone."))
    assert not same(parts(before, "head."), parts(after, "head."))


def test_adjustment_changes_one_bias_by_the_shift(undone: Path) -> None:
    before, after = (weights(undone / name / "student-last.safetensors") for name in ("align", "adjusted"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["head.branches.0.bias"]
    shift = read_priors(undone / "priors" / "priors.json").shift
    assert torch.allclose(after[changed[0]] - before[changed[0]], shift, atol=1e-6)
    assert json.loads((undone / "adjusted" / "scores.json").read_text())["last"]["student"]["miou"] >= 0


def test_an_interrupted_recipe_goes_on_where_it_stopped(undone: Path, tmp_path: Path) -> None:
    settings = small("undoing", tmp_path)
    train(settings, tmp_path / "out")
    reference = weights(tmp_path / "out" / "distilled" / "student-last.safetensors")
    finished = (tmp_path / "out" / "align" / "student-last.safetensors").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "distilled")
    train(None, tmp_path / "out", resume=True)
    assert same(reference, weights(tmp_path / "out" / "distilled" / "student-last.safetensors"))
    assert (tmp_path / "out" / "align" / "student-last.safetensors").stat().st_mtime_ns == finished
    with pytest.raises(UserError, match="--resume"):
        train(settings, tmp_path / "out")


@pytest.mark.parametrize(("how", "last"), [("ia", "adjusted"), ("cr", "refined")])
def test_any_method_can_be_corrected(how: str, last: str, tmp_path: Path) -> None:
    method = {"feature_distance": None, "mixed": {"augment": None}}
    settings = corrected(small("daformer", tmp_path, loader={"rare_class": None}, method=method), how)
    train(settings, tmp_path / "out")
    before = weights(tmp_path / "out" / "trained" / "student-last.safetensors")
    after = weights(tmp_path / "out" / last / "student-last.safetensors")
    assert same(parts(before, "backbone."), parts(after, "backbone."))
    assert not same(parts(before, "head."), parts(after, "head."))


def test_the_last_stage_gives_the_student_the_statistics_of_the_target(tmp_path: Path) -> None:
    settings = small("daformer", tmp_path, loader={"rare_class": None}, deploy={"statistics": "blend"})
    assert train(settings, tmp_path / "out").folder == tmp_path / "out" / "recalibrated"
    models = {name: tmp_path / "out" / name / "student-last.safetensors" for name in ("trained", "recalibrated")}
    before, after = map(weights, models.values())
    changed = {name.rpartition(".")[2] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"running_mean", "running_var"}
    scores = tmp_path / "out" / "recalibrated" / "scores.json"
    assert json.loads(scores.read_text())["last"]["student"]["miou"] >= 0
    names = [group.name for group in compare([tmp_path / "out"]).groups]
    assert names == ["DAFormer", "DAFormer + target statistics"]
    drawn = [tmp_path / "out" / name / "pictures" / "val" for name in models]
    shown = [{path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in drawn]
    assert shown[0].keys() == shown[1].keys()
    assert shown[0]["000-truth.png"] == shown[1]["000-truth.png"]
    assert "000-student.png" in shown[0]
    scores.unlink()  # killed between model and scores
    train(None, tmp_path / "out", resume=True)
    assert scores.exists()
    for other, keep in (("target", "0"), ("as-trained", "1")):
        changed = read_yaml(tmp_path / "out" / "stages.yaml") | {"deploy": {"statistics": other}}
        with pytest.raises(UserError, match=f"cannot change deploy.statistics: blend -> {other}") as refused:
            train(resolve(changed), tmp_path / "out", resume=True)
        follow(str(refused.value), f"--keep {keep}", tmp_path)
    text = (tmp_path / "out" / "stages.yaml").read_text()
    for wrong in ("keep: 0.25", "keep: 0.0"):
        (tmp_path / "out" / "stages.yaml").write_text(text.replace("keep: 0.5", wrong))
        with pytest.raises(UserError, match=f"'recalibrated' has {wrong.replace(': ', '=')[:-1]}") as refused:
            train(None, tmp_path / "out", resume=True)
    with pytest.raises(UserError, match="a folder of images"):
        resolve({**small("source-only", tmp_path).model_dump(), "target": None, "deploy": {"statistics": "target"}})


def follow(said: str, keep: str, root: Path) -> None:
    """Make the other student that a message tells of."""
    words = shlex.split(said.partition(": ssrseg ")[2].replace("NEW", str(root / "new")))
    assert keep in " ".join(words)
    done = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output


def test_a_stage_of_ones_own_keeps_the_share_it_was_made_with(tmp_path: Path) -> None:
    own = {"stages": [{"name": "trained"}, {"name": "mine", "does": "recalibrate", "keep": 0.25}]}
    settings = small("source-only", tmp_path, loader={"rare_class": None}, val=None, selection=None, **own)
    train(settings, tmp_path / "out")
    stages = tmp_path / "out" / "stages.yaml"
    stages.write_text(stages.read_text().replace("keep: 0.25", "keep: 0.75"))
    with pytest.raises(UserError, match=r"'mine' has keep=0.75, and cannot: its model has 0.25") as refused:
        train(None, tmp_path / "out", resume=True)
    follow(str(refused.value), "--keep 0.75", tmp_path)


def test_a_single_run_becomes_no_recipe(tmp_path: Path) -> None:
    settings = small("source-only", tmp_path, loader={"rare_class": None}, val=None, selection=None)
    RunFolder(tmp_path / "out").create(settings, {})  # killed before its first checkpoint
    other = resolve({**settings.model_dump(), "deploy": {"statistics": "target"}})
    with pytest.raises(UserError, match="is a single run") as refused:
        train(other, tmp_path / "out", resume=True)
    train(None, tmp_path / "out", resume=True)
    follow(str(refused.value), "--keep 0", tmp_path)


def test_mistakes_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    settings = small("daformer", tmp_path, loader={"rare_class": None})
    with pytest.raises(UserError, match="choose ia or cr"):
        corrected(settings, "both")
    with pytest.raises(UserError, match="stages of its own"):
        corrected(small("undoing", tmp_path), "ia")
    lost = resolve({**settings.model_dump(), "stages": [{"name": "a", "settings": {"model": {"start": "{b}"}}}]})
    with pytest.raises(UserError, match="no stage before it is called 'b'"):
        planned(lost, tmp_path / "out")
    counts = {"stages": [{"name": "a"}, {"name": "b", "does": "priors"}]}
    with pytest.raises(UserError, match=r"'b' looks at the target: set target\.root to a folder of images"):
        planned(resolve(small("source-only", tmp_path).model_dump() | counts | {"target": None}), tmp_path / "out")
    assert planned(resolve({**small("source-only", tmp_path).model_dump(), **counts}), tmp_path / "out")
    wrong = resolve({**settings.model_dump(), "stages": [{"name": "a", "settings": {"train": {"stepps": 1}}}]})
    with pytest.raises(UserError, match="Did you mean 'steps'"):
        train(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_of_ours_are_a_data_set(tmp_path: Path) -> None:
    settings = small("daformer", tmp_path)
    data = labelled_by(settings.target, len(CLASSES), tmp_path / "labels")
    assert (data.labels_root, data.labels) == (tmp_path / "labels", "images/**/*")
    assert data.id_map == {0: 0, 1: 1, 2: 2, 3: 3}


def test_the_published_recipe_is_whole(tmp_path: Path) -> None:
    for preset in ("undoing", "undoing-vgg"):
        plan = {stage.name: settings for stage, settings, _ in planned(resolve(read_preset(preset)), tmp_path)}
        assert list(plan) == ["pretrain", "align", "priors", "adjusted", "refined", "labels", "distilled"]
        assert plan["align"].model.start == tmp_path / "pretrain" / "student-last.safetensors"
        assert plan["refined"].method.segmentation.priors == str(tmp_path / "priors" / "priors.json")
        assert plan["distilled"].source.labels_root == tmp_path / "labels" / "labels"


def words(root: Path, *more: str) -> list[str]:
    """The small task as the command line has it."""
    return [
        *("--source", str(root / "game"), "--target", str(root / "camera")),
        *(f"classes=[{', '.join(CLASSES)}]", "loader.crop=[64, 64]", "loader.workers=0", "train.accelerator=cpu"),
        *("model.backbone=timm:test_resnet", "model.pretrained=none", "model.head_channels=8", "train.steps=2"),
        *more,
    ]


def test_the_words_of_the_command_line(tmp_path: Path) -> None:
    write_pairs(tmp_path / "game")
    write_pairs(tmp_path / "camera")
    runner = CliRunner()

    def said(*arguments: str) -> str:
        result = runner.invoke(app, list(arguments))
        assert result.exit_code == 0, result.output + str(result.exception)
        return result.output

    said("train", "--out", str(tmp_path / "run"), "--prior-correction", "ia", *words(tmp_path))
    model = tmp_path / "run" / "trained" / "student-last.safetensors"
    assert (tmp_path / "run" / "adjusted" / "student-last.safetensors").exists()
    said("train", "--resume", "--out", str(tmp_path / "run"))
    priors = tmp_path / "priors.json"
    assert "shift" in said("estimate-priors", str(model), "--out", str(priors), "--device", "cpu", *words(tmp_path))
    said("adjust", str(model), str(priors), str(tmp_path / "adjusted.safetensors"))
    by_hand, by_stage = (
        weights(tmp_path / "adjusted.safetensors"),
        weights(tmp_path / "run" / "adjusted" / "student-last.safetensors"),
    )
    assert same(by_hand, by_stage)
    refused = runner.invoke(app, ["adjust", str(model), "gta5-cityscapes", str(tmp_path / "no.safetensors")])
    assert isinstance(refused.exception, UserError)
    assert "'tree'" in str(refused.exception)
