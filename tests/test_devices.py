"""What a run asks of its device, and of no other: tried on the CPU, with torch's functions for GPUs replaced."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from lightning_fabric import Fabric
from timm.layers import BatchNormAct2d
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from factories import random_image, small_segmenter
from ssrseg.adapt.norms import still_statistics
from ssrseg.config import SGDConfig
from ssrseg.errors import UserError
from ssrseg.inference import Predictor
from ssrseg.models import Segmenter, build_segmenter
from ssrseg.models.backbones import Backbone
from ssrseg.training import setup
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


class Unsorted(torch.autograd.Function):
    """What torch refuses on every device: writing to places that may be the same, here in the backward pass."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient).put_(torch.arange(gradient.numel()), gradient)


class Unpooling(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return Unsorted.apply(maps)


def test_what_cannot_be_deterministic_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any, **options: Any) -> Segmenter:
        student = build_segmenter(*args, **options)
        student.head.dropout = Unpooling()
        return student

    monkeypatch.setattr(setup, "build_segmenter", build)
    with pytest.raises(UserError, match=r"no deterministic put_, which the layer head\.dropout \(Unpooling\) needs"):
        run(tmp_path, "refused", train={"deterministic": True, "steps": 1})
    assert not (tmp_path / "refused").exists()
    run(tmp_path, "followed", train={"deterministic": False, "steps": 1})


REFUSED = re.compile(
    "adaptive_(avg|max)_pool.d_backward|upsample_(bi|tri)?(linear|cubic).*backward|(reflection|replication)_pad[13]d_backward"
    "|(avg|max|fractional_max)_pool3d.*backward|grid_sampler.*backward|nll_loss2d|ctc_loss.*backward|put_$|histc|median"
)
"""Operators that torch 2.14's CUDA library refuses; those of two dimensions that it does not are absent."""


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if REFUSED.search(name := func.overloadpacket.__name__):
            self.refused.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("backbone", "head", "options", "refused"),
    [
        ("pvt_v2_b0", "daformer", {}, set()),
        ("resnet18d", "deeplabv2", {}, set()),
        ("test_efficientnet", "aspp-attentive", {}, set()),
        ("pvt_v2_b0", "segformer", {"linear": True}, {"_adaptive_avg_pool2d_backward"}),  # as PVT v2 "li"
    ],
)
def test_what_torch_refuses_on_cuda_is_in_no_network_but_those_that_the_docs_name(
    backbone: str, head: str, options: dict[str, bool], refused: set[str]
) -> None:
    """On tensors without data that, as on a GPU, are not the CPU's: there `interpolate` takes the deterministic way."""
    with torch.device("meta"):
        pyramid = timm.create_model(backbone, features_only=True, **options)
        network = build_segmenter(Backbone(pyramid, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), head, 4, head_channels=32)
        images = torch.zeros(2, 3, 64, 64)
    torch.use_deterministic_algorithms(True)
    try:
        with Operators() as operators:
            network(images).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert operators.refused == refused
