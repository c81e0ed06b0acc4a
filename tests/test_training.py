"""Training end to end on tiny folders: what a run leaves, that it resumes, and that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from factories import CLASSES, tiny_frozen, write_pairs
from ssrseg.adapt import Target, Term, View
from ssrseg.config import Settings, merge, resolve
from ssrseg.errors import UserError
from ssrseg.inference import Scores
from ssrseg.models import Segmenter, load_segmenter
from ssrseg.runs.folder import RunFolder
from ssrseg.training import Extensions, train
from ssrseg.training.loop import Observer, StepResult

MIC = {"teacher": {}, "mixed": {}, "feature_distance": {"classes": ["car"]}, "masked": {"block": 16}}
SSR = {"regularizer": {"stages": [1, 3]}}


def settings_for(root: Path, **over: Any) -> Settings:
    """MIC + SSR on 64x64 pictures, four steps."""
    for name in ("game", "camera", "val"):
        if not (root / name).exists():
            write_pairs(root / name)
    tree = {
        "classes": CLASSES,
        "source": {"root": root / "game"},
        "target": {"root": root / "camera"},
        "val": {"root": root / "val"},
        "loader": {"crop": [64, 64], "workers": 0, "rare_class": {}},
        "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"},
        "method": {**MIC, **SSR},
        "optim": {"warmup": 2, "lr": 1e-3},
        "train": {
            "steps": 4,
            "evaluate_every": 2,
            "checkpoint_every": 2,
            "log_every": 2,
            "pictures_every": 2,
            "accelerator": "cpu",
        },
    }
    return resolve(merge(tree, over))


def run(root: Path, name: str, **over: Any) -> Path:
    """Train, and give the run folder."""
    return train(settings_for(root, **over), root / name, extensions=Extensions(foundation=tiny_frozen())).folder


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without what the clock wrote."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines if line["kind"] == kind]


def weights(folder: Path) -> dict[str, Tensor]:
    """The deployable student's tensors."""
    return load_segmenter(folder / "student-last.safetensors").state_dict()


def test_two_do_not_train_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with RunFolder(out).held(), pytest.raises(UserError, match=r"Another process is training in .*run"):
        run(tmp_path, "run")
    assert not (out / "config.yaml").exists()
    run(tmp_path, "run")


def test_a_run_leaves_what_the_readme_says(tmp_path: Path) -> None:
    folder = run(tmp_path, "run")
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
        "scores.json",
        "pictures",
        "student-last.safetensors",
        "teacher-last.safetensors",
        "student-best.safetensors",
        *(f"student-best-by-{name}.safetensors" for name in ("im", "snd", "agreement", "confidence")),
        "checkpoints",
    }
    losses = records(folder, "train")[-1]["losses"]
    assert set(losses) == {
        "source/segmentation",
        "source/regularizer",
        "source/feature_distance",
        "mixed/segmentation",
        "mixed/regularizer",
        "masked/segmentation",
    }
    evaluations = records(folder, "eval")
    assert [line["step"] for line in evaluations] == [2, 4]
    assert evaluations[-1]["teacher"]["miou"] >= 0
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["classes"] == list(CLASSES)
    assert scores["last"]["step"] == 4
    assert len(scores["best"]["student"]["iou"]) == 4
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert {f"step-{step:06}-{view}.png" for step in (0, 2) for view in ("source", "mixed", "masked")} <= names
    with Image.open(folder / "pictures" / "step-000000-mixed.png") as picture:
        assert picture.width == 4 + 3 * (64 + 4)
    assert np.array(scores["last"]["student"]["confusion"]).shape == (4, 4)
    compared = json.loads((folder / "pictures" / "val" / "images.json").read_text())
    assert compared["classes"] == list(CLASSES)
    assert [image["name"] for image in compared["images"]] == ["00.png", "01.png", "02.png", "03.png"]
    for name in ("000-image.jpg", "000-truth.png", "003-student.png"):
        with Image.open(folder / "pictures" / "val" / name) as picture:
            assert picture.size == (64, 64)


def test_nothing_of_ssr_or_the_teacher_is_in_the_student(tmp_path: Path) -> None:
    with_ssr = weights(run(tmp_path, "ssr"))
    plain = weights(run(tmp_path, "plain", method={"regularizer": None}))
    assert with_ssr.keys() == plain.keys()


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole")

    class Power(Observer):
        def stepped(self, result: StepResult) -> None:
            if result.step == 3:
                raise KeyboardInterrupt

    settings = settings_for(tmp_path, loader={"workers": 1})
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "cut", extensions=Extensions(foundation=tiny_frozen(), observers=[Power()]))
    torch.manual_seed(99)
    cut = train(None, tmp_path / "cut", resume=True, extensions=Extensions(foundation=tiny_frozen())).folder
    one, other = weights(whole), weights(cut)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for kind in ("train", "eval"):
        assert records(whole, kind) == records(cut, kind)
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, cut)]
    assert all(torch.equal(states[0]["teacher"][name], states[1]["teacher"][name]) for name in states[0]["teacher"])


def test_a_broken_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole")
    reference = weights(whole)
    (whole / "checkpoints" / "last.ckpt").write_bytes(b"half of a checkp")
    (whole / "student-last.safetensors").unlink()
    train(None, whole, resume=True, extensions=Extensions(foundation=tiny_frozen()))
    again = weights(whole)
    assert all(torch.equal(reference[name], again[name]) for name in reference)


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    folder = run(tmp_path, "run")
    before = (folder / "student-last.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds a run already\. Continue it with --resume"):
        run(tmp_path, "run")
    assert (folder / "student-last.safetensors").read_bytes() == before


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run in"):
        train(None, tmp_path / "nowhere", resume=True)


def test_bad_data_are_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    (tmp_path / "game" / "labels" / "01.png").unlink()
    with pytest.raises(UserError, match="has no label"):
        train(settings, tmp_path / "run", extensions=Extensions(foundation=tiny_frozen()))
    assert not (tmp_path / "run").exists()


def test_source_only_reads_no_target(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    tree = {**settings.model_dump(), "method": {"distort": True}, "target": None, "val": None}
    folder = train(resolve(tree), tmp_path / "run").folder
    assert set(records(folder, "train")[-1]["losses"]) == {"source/segmentation"}
    assert not (folder / "scores.json").exists()


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path: Path) -> None:
    one, again = weights(run(tmp_path, "one")), weights(run(tmp_path, "again"))
    other = weights(run(tmp_path, "other", train={"seed": 1}))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_term_of_ones_own_takes_part(tmp_path: Path) -> None:
    class Entropy(Term):
        def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
            p = student.decode(features, view.labels.shape[-2:]).softmax(dim=1)
            return -(p * p.clamp(min=1e-8).log()).sum(dim=1).mean()

    terms = {"entropy": Entropy({"target"}, weight=0.005)}
    settings = settings_for(tmp_path, method={"regularizer": None})
    folder = train(settings, tmp_path / "run", extensions=Extensions(terms=terms, makers=[Target()])).folder
    assert 0 < records(folder, "train")[-1]["losses"]["target/entropy"] < 0.005 * 1.4


def test_a_view_without_a_term_is_said(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, method={"regularizer": None})
    with pytest.raises(UserError, match="no term asks anything of"):
        train(settings, tmp_path / "run", extensions=Extensions(makers=[Target()]))


def test_what_was_not_measured_is_null_in_the_journal() -> None:
    nothing = Scores(CLASSES, torch.zeros(4, 4, dtype=torch.int64))
    means = nothing.to_dict()
    assert (means["miou"], means["pixel_accuracy"]) == (None, None)
