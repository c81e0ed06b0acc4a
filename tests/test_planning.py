"""`plan`: what it counts, against what is known, and what it advises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import ssrseg
from factories import CLASSES
from ssrseg.config import Settings, merge, resolve, with_words
from ssrseg.errors import UserError
from ssrseg.models import build_backbone
from ssrseg.models.heads import HEADS
from ssrseg.planning import plan
from ssrseg.planning.counters import SAVED, WORKING, Flops, LiveBytes
from ssrseg.planning.fake_step import StepCost, fake_step
from ssrseg.planning.plan import GIB, Plan
from test_cli import ssrseg as command

TREE: dict[str, Any] = {
    "classes": CLASSES,
    "source": {"root": "there-is-no-such-folder"},
    "target": {"root": "nor-such"},
    "loader": {"crop": [128, 128]},
    "model": {"backbone": "timm:test_resnet", "head_channels": 16},  # pretrained: hub, which is not asked
    "method": {
        "teacher": {},
        "mixed": {},
        "masked": {},
        "feature_distance": {},
        "regularizer": {"foundation": {"encoder": "demo", "input_size": "native"}},
    },
    "train": {"accelerator": "cpu", "steps": 100},
}


def settings(**over: Any) -> Settings:
    return resolve(merge(TREE, over))


@pytest.fixture(scope="module")
def whole() -> StepCost:
    return fake_step(settings(), "cpu")


def test_live_bytes_follow_storages() -> None:
    with FakeTensorMode(), LiveBytes("cpu") as live:
        weight = torch.empty(100)  # 400 bytes
        live.label([weight], "weights")
        other = weight[:50] * 2  # the slice is no storage of its own
        assert live.parts["weights"] == 400
        assert live.parts[WORKING] == 200
        live.pack(other)
        assert live.parts[SAVED] == 200
        del other
        assert live.parts.total() == 400
    assert live.peak.total() == 600


def test_an_unchanged_convolution_needs_its_tensors_again() -> None:
    with FakeTensorMode():
        conv, images = nn.Conv2d(2, 4, 1, bias=False), torch.empty(1, 2, 8, 8)
        with LiveBytes("cpu") as live, torch.no_grad():
            live.label([images, conv.weight], "inputs")
            conv(images)
    inputs, output = 4 * (2 * 64 + 8), 4 * 4 * 64
    assert live.peak.total() == 2 * (inputs + output)


def test_flops_of_a_part_forward_and_backward() -> None:
    """Every matrix product, convolution and their gradients cost what the arithmetic says, a depthwise one too."""
    first, second = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)
    flops = Flops({"first": first, "second": second}, {})
    with flops.counting():
        between = first(torch.rand(2, 8, 10, 10)).flatten(2) @ torch.rand(100, 100)
        flops.run_backward(second(between.view(2, 8, 10, 10)).sum())
    depthwise, dense, product = 2 * 2 * 100 * 8 * 9, 2 * 2 * 100 * 8 * 4, 2 * 2 * 8 * 100 * 100
    assert flops.by_part() == {
        "first": (depthwise, depthwise),  # no gradient for the images
        "second": (dense, 2 * dense),
        "terms": (product, product),  # no gradient for the constant
    }


def test_every_part_is_counted(whole: StepCost) -> None:
    backbone = sum(weight.numel() for weight in build_backbone("timm:test_resnet").parameters())
    student = {"student backbone", "student head"}
    frozen = {"teacher", "foundation encoder", "frozen ImageNet backbone"}
    assert whole.parameters.keys() == whole.flops.keys() == student | frozen | {"terms"}
    assert whole.parameters["student backbone"] == whole.parameters["frozen ImageNet backbone"] == backbone
    for part in student | {"terms"}:
        forward, backward = whole.flops[part]
        assert 1.5 * forward < backward < 2.6 * forward, part  # attention's is 2.5
    assert all(whole.flops[part][1] == 0 for part in frozen)


def test_weights_are_what_they_are(whole: StepCost) -> None:
    trained = sum(whole.parameters[part] for part in ("student backbone", "student head", "terms"))
    assert whole.memory.get("gradients", 0) <= 4 * trained
    assert whole.memory["optimiser states"] == pytest.approx(8 * trained, rel=0.01)
    assert whole.memory["foundation encoder"] == pytest.approx(4 * whole.parameters["foundation encoder"], rel=0.01)


@pytest.mark.parametrize(
    ("word", "part", "most"),
    [
        ("train.activation_checkpointing=true", SAVED, 0.95),  # this backbone is a tenth of what is saved
        ("train.precision=bf16", SAVED, 0.8),
        ("loader.batch=1", SAVED, 0.55),
        ("method.regularizer.foundation.precision=half", "foundation encoder", 0.51),
    ],
)
def test_each_economy_lowers_its_part(whole: StepCost, word: str, part: str, most: float) -> None:
    changed = fake_step(with_words(settings(), (word,)), "cpu", flops=False)
    assert changed.memory[part] < most * whole.memory[part]
    assert changed.peak < whole.peak
    assert changed.parameters == whole.parameters


def test_source_only_has_no_teacher_and_no_target() -> None:
    alone = fake_step(settings(method={"teacher": None, "mixed": None, "masked": None, "regularizer": None}), "cpu")
    assert "teacher" not in alone.flops
    assert "teacher" not in alone.memory


def test_a_plan_that_fits_advises_nothing() -> None:
    planned = ssrseg.plan(settings(method={"masked": None, "regularizer": None}), memory=4)
    assert planned.fits
    assert planned.changes == ()
    assert planned.steps_per_second is not None
    assert planned.seconds == pytest.approx(100 / planned.steps_per_second)
    assert json.loads(json.dumps(planned.to_dict()))["peak"] == planned.peak


def test_a_plan_that_does_not_fit_says_what_to_change() -> None:
    regularizer = TREE["method"]["regularizer"]
    large = settings(method={"mixed": None, "masked": None, "feature_distance": None, "regularizer": regularizer})
    planned = plan(large, memory=0.6 * fake_step(large, "cpu", flops=False).peak / GIB)
    assert not planned.fits
    assert planned.steps_per_second is None  # it would not fit
    assert planned.changes[0].words == ("train.activation_checkpointing=true",)
    peaks = [planned.peak, *(change.peak for change in planned.changes)]
    assert peaks == sorted(peaks, reverse=True)
    words = tuple(word for change in planned.changes for word in change.words)
    assert fake_step(with_words(large, words), "cpu", flops=False).peak == peaks[-1]


SECOND = ("target", "method")
"""What adaptation has beside source-only."""


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_planned(head: str) -> None:
    """Some have weights that do not learn."""
    model = {"backbone": "timm:test_resnet", "head": head, "head_channels": 16}
    plain = resolve({key: value for key, value in merge(TREE, {"model": model}).items() if key not in SECOND})
    assert fake_step(plain, "cpu", flops=False).memory["weights of student and terms"] > 0


def test_unknown_memory_is_no_verdict() -> None:
    planned = Plan("cuda", 1, {}, {}, {"weights": 10}, None, None, ())
    assert planned.fits
    assert planned.seconds is None


def test_unknown_names_are_users_mistakes() -> None:
    with pytest.raises(UserError, match="no backbone 'mit_b9'"):
        plan(settings(model={"backbone": "mit_b9"}), probe=False)


def test_the_command_prints_a_plan(tmp_path: Path) -> None:
    words = ["model={backbone: mit_b0, head_channels: 16}", "loader.crop=[64, 64]", "train.accelerator=cpu"]
    printed = command("plan", "--preset", "dacs", "--no-probe", "--out", "plan.json", *words, cwd=tmp_path)
    assert "student backbone" in printed
    assert "all, estimated" in printed
    assert "fits" in printed
    assert json.loads((tmp_path / "plan.json").read_text())["device"] == "cpu"
