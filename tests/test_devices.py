"""What a run asks of its device, and of no other: tried on the CPU, with torch's functions for GPUs replaced."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning_fabric import Fabric
from timm.layers import BatchNormAct2d
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from factories import random_image, small_segmenter
from ssrseg.adapt.regularizer import still_statistics
from ssrseg.config import SGDConfig
from ssrseg.inference import Predictor
from ssrseg.models import build_segmenter
from ssrseg.training.checkpoint import generator_states, set_generators
from ssrseg.training.distributed import sync_batchnorm
from ssrseg.training.optim import build_optimizer
from test_preparation import dacs_ssr
from test_training import run

TWO = cast(Fabric, SimpleNamespace(world_size=2, device=torch.device("cuda")))
"""What `sync_batchnorm` asks of a run of two GPUs."""


def norms_of(network: nn.Module) -> list[_BatchNorm]:
    return [norm for norm in network.modules() if isinstance(norm, _BatchNorm)]


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU on which nothing may make a CUDA context: it takes half a GiB of a GPU that others use."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a run on the CPU has asked for the GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("_lazy_init", "get_device_name", "get_device_properties", "current_device", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(Tensor, "pin_memory", refuse)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)  # torch's optimisers look at its stream


@pytest.mark.usefixtures("forbidden")
def test_a_run_on_the_cpu_leaves_the_gpu_alone(tmp_path: Path) -> None:
    folder = run(tmp_path, "cpu", train={"steps": 2, "compile": "auto"})
    assert json.loads((folder / "environment.json").read_text())["device"] != ""


@pytest.mark.usefixtures("forbidden")
def test_a_prediction_on_the_cpu_leaves_the_gpu_alone() -> None:
    assert Predictor(small_segmenter(), device="cpu")(random_image()).shape == (64, 64)


@pytest.mark.parametrize(
    "backbone",
    ["mit_b0", "timm:test_resnet", "timm:test_efficientnet", "timm:mobilenetv3_small_050", "timm:regnetx_002"],
)
def test_synchronised_norms_compute_what_the_norms_did(backbone: str) -> None:
    """In evaluation, and in training as one process does it: of several, synchronised norms run on GPUs alone."""
    torch.manual_seed(0)
    student, images = build_segmenter(backbone, "daformer", 4, head_channels=8), torch.rand(2, 3, 64, 64)
    for place, norm in enumerate(norms_of(student)):  # with statistics and weights that are not those of no norm at all
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            nn.init.normal_(cast(Tensor, tensor), mean=0.5)
        norm.requires_grad_(place % 2 == 0)  # as in DACS's ResNet, whose norms are not trained
    method = dacs_ssr(deepcopy(student))
    sync_batchnorm(method, TWO)
    converted = method.learner.student
    assert {type(norm).__name__ for norm in norms_of(converted)} <= {"SyncBatchNorm", "SyncBatchNormAct"}
    trained = [{name for name, p in model.named_parameters() if p.requires_grad} for model in (student, converted)]
    assert trained[0] == trained[1]
    for training in (False, True):
        outputs = []
        for model in (student, converted):
            torch.manual_seed(1)
            outputs.append(model.train(training)(images))
        torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert all(map(torch.equal, student.state_dict().values(), converted.state_dict().values()))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d])
def test_every_kind_of_norm_can_be_held_still(kind: Any) -> None:
    norm, images = kind(3), torch.rand(2, 3, 4, 4)
    before = deepcopy(norm.state_dict())
    with still_statistics(norm):
        held = norm(images)
    assert all(map(torch.equal, before.values(), norm.state_dict().values()))
    assert torch.equal(norm(images), held)
    assert not any(
        torch.equal(norm.state_dict()[name], before[name]) for name in before if "run" in name or "num" in name
    )


def test_the_generator_of_mps_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.full((44,), 7, dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1].clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    views, mps = Generator(), torch.device("mps")
    kept = generator_states(views, mps)
    states.append(torch.zeros(44, dtype=torch.uint8))  # dropout has drawn
    set_generators(kept, views, mps)
    assert torch.equal(states[-1], states[0])
    others = generator_states(views, torch.device("cpu"))  # a checkpoint of the CPU's, or an older one
    set_generators(others, views, mps)
    assert len(states) == 3


def test_a_step_that_fails_leaves_the_optimizer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory runs out: who catches that and goes on has lost no group."""
    learner = dacs_ssr(build_segmenter("timm:test_resnet", "daformer", 4, head_channels=8)).learner
    optimizer = build_optimizer(learner, SGDConfig(steps_by_depth=True))
    groups, turns = list(optimizer.param_groups), list[int]()

    def step(optimizer: SGD, closure: object) -> None:
        turns.append(len(optimizer.param_groups))
        if len(turns) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SGD, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert turns[2] < turns[0] == len(groups)
    assert optimizer.param_groups == groups
