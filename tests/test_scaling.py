"""`auto` in a recipe: numbers that follow from the length of each stage and from the images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factories import CLASSES, write_pairs
from ssrseg.cli import app
from ssrseg.config import compose, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.planning import scaled
from ssrseg.reporting import compare


def quick(root: Path, *words: str, height: int = 96, width: int = 160) -> dict[str, Any]:
    """The preset's tree on small images."""
    own = {name: {"root": str(write_pairs(root / name, height=height, width=width))} for name in ("source", "target")}
    return compose("quick", None, own, [f"classes={json.dumps(CLASSES)}", *words])


def test_numbers_follow_from_the_steps_of_each_stage(tmp_path: Path) -> None:
    tree = quick(tmp_path)
    tree["stages"][-1]["settings"]["train"] = {"steps": 500}
    found = scaled(tree)
    (source, styled, adapted), base = (stage["settings"] for stage in found["stages"]), found
    assert base["optim"]["warmup"] == 48
    assert base["train"]["evaluate_every"] == 150
    assert "warmup" not in source.get("optim", {})
    assert styled["optim"]["warmup"] == 24
    assert adapted["optim"]["warmup"] == 20
    assert adapted["method"]["teacher"]["decay"] == 0.99
    assert tree["optim"]["warmup"] == "auto"  # the tree that was given is left alone


@pytest.mark.parametrize(("steps", "decay"), [(100, 0.99), (8000, 0.995), (40_000, 0.999), (400_000, 0.999)])
def test_the_teacher_averages_over_a_part_of_the_run(steps: int, decay: float) -> None:
    found = scaled({"train": {"steps": steps}, "method": {"teacher": {"decay": "auto"}}})
    assert found["method"]["teacher"]["decay"] == decay


@pytest.mark.parametrize(
    ("height", "width", "crop"),
    [(240, 320, [160, 224]), (256, 256, [192, 192]), (1052, 1914, [512, 512]), (30, 50, [32, 32])],
)
def test_crops_are_three_quarters_of_the_smallest_image(
    height: int, width: int, crop: list[int], tmp_path: Path
) -> None:
    write_pairs(tmp_path / "target", 1, height=2000, width=2000)
    data = {name: {"root": str(tmp_path / name)} for name in ("source", "target")}
    write_pairs(tmp_path / "source", 1, height=height, width=width)
    found = scaled({**data, "loader": {"crop": "auto"}, "method": {"masked": {"block": "auto"}}})
    assert found["loader"]["crop"] == crop
    assert found["method"]["masked"]["block"] == max(8, min(crop) // 16)


@pytest.mark.parametrize("stages", [3, [3], [{"name": "a", "settings": 3}]])
def test_stages_of_another_shape_are_left_to_the_check_of_settings(stages: Any) -> None:
    with pytest.raises(UserError, match=r"stages"):
        resolve(scaled({"source": {"root": "x"}, "stages": stages}))


def test_what_a_number_depends_on_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"optim\.warmup is auto, which depends on train\.steps"):
        scaled({"optim": {"warmup": "auto"}})
    with pytest.raises(UserError, match=r"depends on train\.steps, found '20k': mend that"):
        scaled({"optim": {"warmup": "auto"}, "train": {"steps": "20k"}})
    assert scaled({"optim": {"warmup": "auto"}, "train": {"steps": 1000}})["optim"]["warmup"] == 40


def test_without_images_it_is_they_that_are_missing(tmp_path: Path) -> None:
    for words, text in (
        ([], "source: Field required"),
        (["--source", str(tmp_path / "none")], "There is no folder .*none"),
    ):
        failed = CliRunner().invoke(app, ["train", "--preset", "quick", *words, "--out", str(tmp_path / "run")])
        assert isinstance(failed.exception, UserError)
        assert re.search(text, str(failed.exception))
        assert "auto" not in str(failed.exception)


def test_words_go_before_auto_in_every_stage(tmp_path: Path) -> None:
    found = resolve(scaled(quick(tmp_path, "optim.warmup=7", "train.steps=300", "loader.crop=[32, 64]")))
    assert (found.optim.warmup, found.loader.crop) == (7, (32, 64))
    _, _, adapted, *_ = found.stages
    assert adapted.does == "train"
    assert "warmup" not in adapted.settings["optim"]
    assert adapted.settings["method"]["teacher"]["decay"] == 0.99


def test_the_quick_preset_trains_adapts_and_chooses(tmp_path: Path) -> None:
    quick(tmp_path)
    words = [
        *("train", "--preset", "quick", "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")),
        *("--val", str(tmp_path / "source"), "--out", str(tmp_path / "run"), f"classes={json.dumps(CLASSES)}"),
        *("train.steps=2", "model.pretrained=none", "model.backbone=timm:resnet18", "model.head_channels=8"),
        *("loader.workers=0", "train.accelerator=cpu"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "average of start, styled and teacher" in done.output
    assert (tmp_path / "run" / "chosen" / "student-last.safetensors").exists()
    assert read_yaml(tmp_path / "run" / "adapted" / "config.yaml")["loader"]["crop"] == [64, 96]
    names = [group.name for group in compare([tmp_path / "run"]).groups]
    assert names == ["source-only", "FDA", "DACS", "FDA + DACS, chosen without labels"]
