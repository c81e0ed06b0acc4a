"""`cpu.optimize`: the one call of a CPU run, which a CUDA run does without."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from factories import small_segmenter, tiny_frozen, tiny_segmenter
from ssrseg import cpu
from ssrseg.cpu.matmul import ConvolvedLinear
from ssrseg.cpu.training_layers import CONVOLUTIONS, ProductResize, TrainedLinear
from ssrseg.models.fused import fuse
from ssrseg.models.heads import Resize

FAULTS = """
import resource, torch
from ssrseg.cpu import keep_memory
def faults():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        maps = [torch.zeros(16, 1024, 1024) for _ in range(4)]  # 256 MB
        del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
keep_memory()
print(faults())
"""

OTHER_DEVICE = """
import sys
import torch
import ssrseg.inference, ssrseg.models, ssrseg.training, ssrseg.planning, ssrseg.label_shift, ssrseg.cli
from ssrseg.adapt import build_method
from ssrseg.adapt.foundation import build_encoder
from ssrseg.config import TrainConfig
from ssrseg.config.method import FoundationConfig, MethodConfig, MixedConfig, RegularizerConfig, TeacherConfig
from ssrseg.inference.engines import ENGINES
from ssrseg.models import build_segmenter
from ssrseg.training.setup import prepare

torch.set_default_device("meta")  # whose type is not cpu
student = build_segmenter("mit_b0", "daformer", 3, head_channels=8)
encoder = build_encoder(FoundationConfig(encoder="demo", weights="none"), (64, 64))
config = MethodConfig(teacher=TeacherConfig(), mixed=MixedConfig(), regularizer=RegularizerConfig())
method = build_method(config, student, classes=("a", "b", "c"), crop=(64, 64), foundation=encoder)
prepare(method, TrainConfig(compile="off"), torch.device("cuda"))
method.learner.student.decode(student.encode(torch.rand(1, 3, 64, 64)), (64, 64)).sum().backward()
assert ENGINES["torch"](student)(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
print(*(name for name in sys.modules if name.startswith("ssrseg.cpu")))
torch.set_default_device("cpu")
prepare(method, TrainConfig(compile="off"), torch.device("cpu"))
print(*(name for name in sys.modules if name.startswith("ssrseg.cpu")))
"""


def kinds(network: nn.Module) -> set[type[nn.Module]]:
    return {type(part) for part in network.modules()}


def printed(program: str) -> str:
    return subprocess.check_output([sys.executable, "-c", program], text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's C library")
def test_a_second_step_is_given_no_new_pages() -> None:
    given_back, kept = map(int, printed(FAULTS).split())
    assert kept < given_back / 2


def test_a_run_on_another_device_imports_nothing_of_it() -> None:
    before, after = printed(OTHER_DEVICE).splitlines()
    assert before == ""
    assert "ssrseg.cpu.winograd" in after.split()


def test_a_trained_network_is_given_layers_for_training_and_eval_mode_stays_torchs() -> None:
    network, images = small_segmenter(), torch.rand(1, 3, 64, 64)
    names, expected = list(network.state_dict()), network.eval()(images)
    assert cpu.optimize(network, training=True) is network
    assert kinds(network) >= {ProductResize, TrainedLinear}
    assert kinds(network) & set(CONVOLUTIONS)
    assert not kinds(network) & {Resize, nn.Linear}
    assert list(network.state_dict()) == names
    assert torch.equal(network(images), expected)


def test_under_autocast_only_interpolation_is_changed() -> None:
    network = tiny_segmenter()
    before = kinds(network)
    cpu.optimize(network, training=True, layers=False)
    assert kinds(network) ^ before == {Resize, ProductResize}


def test_what_only_infers_is_given_layers_without_gradient() -> None:
    fused = cpu.optimize(fuse(small_segmenter()))
    assert ConvolvedLinear in kinds(fused.backbone)
    assert next(fused.backbone.parameters()).is_contiguous(memory_format=torch.channels_last)
    encoder, images = tiny_frozen(), torch.rand(1, 3, 64, 64)
    expected = encoder(images)
    cpu.optimize(encoder.module)
    assert torch.equal(encoder(images), expected)
