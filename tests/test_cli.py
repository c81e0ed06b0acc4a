"""The command line, from two folders to a deployed model, and what it says to mistakes."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from factories import CLASSES, write_pairs
from ssrseg.cli import main


def ssrseg(*words: str, cwd: Path, code: int = 0) -> str:
    """Run the command in `cwd`; gives what it printed."""
    printed, before = io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with (
            redirect_stdout(printed),
            redirect_stderr(printed),
            mock.patch("sys.argv", ["ssrseg", *words]),
            pytest.raises(SystemExit) as left,
        ):
            main()
    finally:
        os.chdir(before)
    assert (left.value.code or 0) == code, printed.getvalue()
    return printed.getvalue()


TINY = [
    f"classes=[{', '.join(CLASSES)}]",
    "model={backbone: timm:test_resnet, head_channels: 8, pretrained: none}",
    "loader={crop: [64, 64], workers: 0}",
    "train={steps: 4, evaluate_every: 4, log_every: 2, pictures_every: 2, accelerator: cpu}",
    "optim.warmup=2",
    "method.regularizer.foundation={encoder: demo, input_size: native}",
    "method.feature_distance.classes=[car]",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two domains and a finished run of DAFormer + SSR."""
    root = tmp_path_factory.mktemp("user")
    for name in ("game", "camera", "held-out"):
        write_pairs(root / name)
    (root / "camera" / "labels").rename(root / "nobody-reads-these")
    words = ["--preset", "daformer-ssr", "--source", "game", "--target", "camera", "--val", "held-out"]
    printed = ssrseg("train", *words, "--out", "runs/first", *TINY, cwd=root)
    assert "step 4/4" in printed
    assert "mixed/regularizer" in printed
    assert "mIoU" in printed
    return root


MODEL = "runs/first/student-last.safetensors"


def test_a_finished_run_is_not_overwritten_and_resumes_to_itself(trained: Path) -> None:
    words = ["--preset", "daformer-ssr", "--source", "game", "--target", "camera", "--out", "runs/first", *TINY]
    assert "holds a run already" in ssrseg("train", *words, cwd=trained, code=2)
    assert "runs/first" in ssrseg("train", "--resume", "--out", "runs/first", cwd=trained)


def test_evaluate(trained: Path) -> None:
    printed = ssrseg("evaluate", MODEL, "held-out", "--out", "scores.json", cwd=trained)
    assert "car" in printed
    assert 0 <= json.loads((trained / "scores.json").read_text())["miou"] <= 1


def test_evaluate_a_part_of_classes_that_are_said(trained: Path) -> None:
    classes = "classes=[{name: road, ids: [0]}, wall, tree, car]"
    words = ("held-out", classes, "--subset", "tree, car", "--out", "part.json")
    assert "of these, tree, car" in ssrseg("evaluate", MODEL, *words, cwd=trained)
    assert json.loads((trained / "part.json").read_text())["subset"] == ["tree", "car"]


def test_predict(trained: Path) -> None:
    assert "4 images labelled" in ssrseg("predict", MODEL, "camera/images", "--out", "seen", cwd=trained)
    assert {path.suffix for path in (trained / "seen").iterdir()} == {".png", ".jpg"}


def test_export(trained: Path) -> None:
    ssrseg("export", MODEL, "model.onnx", "--size", "96x64", cwd=trained)
    assert (trained / "model.onnx").stat().st_size > 100_000


def test_report(trained: Path) -> None:
    ssrseg("report", "runs/first", cwd=trained)
    page = (trained / "runs" / "first" / "report.html").read_text()
    assert "DAFormer + SSR" in page
    assert "mixed/regularizer" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "source"),
        (["train", "--preset", "dafomer"], "Did you mean 'daformer'"),
        (["train", "--preset", "daformer"], "There is no folder"),
        (["train", "--source", "nowhere", "train.stepz=4"], "Did you mean 'steps'"),
        (["train", "--resume", "--out", "nowhere"], "There is no run"),
        (["train", "--resume", "--preset", "mic"], "give no others"),
        (["predict", "none.safetensors", "camera", "--out", "x"], "There is no model file"),
        (["evaluate", MODEL, "nowhere"], "There is no folder"),
        (["report", "camera"], "camera"),
        (["convert", "none.pth", "out.safetensors"], "none.pth"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(words: list[str], said: str, trained: Path) -> None:
    assert said in ssrseg(*words, cwd=trained, code=2)


PREDICT = f"predict {MODEL} camera/images/00.png --out one"


@pytest.mark.parametrize(
    ("mistake", "said", "mended"),
    [
        (f"{PREDICT} spec=gta5", r"such as (\S+);", f"{PREDICT} $1"),
        (f"{PREDICT} --device gpu", r"Try `(\w+)` or `(\w+)`", f"{PREDICT} --device $1 && {PREDICT} --device $2"),
        (f"{PREDICT} --engine tensorrt", r"choose one of (auto), (torch)", f"{PREDICT} --engine $1 --engine $2"),
        (f"{PREDICT} --mode tiles", r"'(whole)' or '(slide)'", f"{PREDICT} --mode $1 && {PREDICT} --mode $2"),
        (f"{PREDICT} --write idz", r"choose some of (.*)\.", f"{PREDICT} --write '$1'"),
        (
            f"evaluate {MODEL} held-out --subset sea",
            r"the classes are (.*)\.",
            f"evaluate {MODEL} held-out --subset '$1'",
        ),
        (
            f"evaluate {MODEL} runs/first/config.yaml val=null",
            "set (val.root) to a folder",
            f"evaluate {MODEL} runs/first/config.yaml val=null $1=held-out",
        ),
        (
            f"recalibrate {MODEL} new.safetensors --target camera --keep 2",
            r"between (\d) \(.*\) and (\d);",
            f"recalibrate {MODEL} new.safetensors --target camera --keep $2",
        ),
        (
            f"suggest {MODEL} --target camera --count 0",
            r"count of (\d) or",
            f"suggest {MODEL} --target camera --count $1",
        ),
        ("train --resume runs/first", "ssrseg (.*)", "$1"),
        (
            "train --resume --preset mic",
            "as train.steps=60000 or (source.root=)F",
            "train --resume --out runs/first $1game",
        ),
        ("compare runs/first --against none", "choose one of ('.*')", "compare runs/first --against $1"),
        (
            "compare runs/first --format pdf",
            "(markdown), latex, csv, (html)",
            "compare runs/first --format $1 --format $2",
        ),
        (
            "compare runs/first --out a.pdf",
            "in (.*?), .*(--format markdown)",
            "compare runs/first --out a$1 --out a.pdf $2",
        ),
        ("env camera", "`ssrseg (train --out)` left", "env runs/first"),
        ("card camera", "that `ssrseg (train)` wrote", "card runs/first"),
    ],
)
def test_what_a_message_names_mends_the_mistake(mistake: str, said: str, mended: str, trained: Path) -> None:
    """The words in the message, in place of `$1` and `$2`, are what the command lacked."""
    found = re.search(said, ssrseg(*shlex.split(mistake), cwd=trained, code=2))
    assert found
    for number, word in enumerate(found.groups(), 1):
        mended = mended.replace(f"${number}", word)
    for words in mended.split(" && "):
        ssrseg(*shlex.split(words), cwd=trained)


def test_every_preset_is_listed(tmp_path: Path) -> None:
    printed = ssrseg("presets", cwd=tmp_path)
    assert "mic-ssr" in printed
    assert "non-commercial" in printed
    assert "\n _" not in printed
