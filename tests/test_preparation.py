"""What makes a step cheaper must not change what it learns: recomputed blocks, half precision, bf16, compilation."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from factories import CLASSES, TinyPyramid, tiny_frozen, tiny_segmenter
from ssrseg.adapt import Batch, Method, adapt, build_method
from ssrseg.adapt.foundation import Frozen, build_encoder
from ssrseg.adapt.norms import still_statistics
from ssrseg.config import TrainConfig, assignments, resolve
from ssrseg.config.method import (
    FeatureDistanceConfig as Distance,
    FoundationConfig,
    MethodConfig,
    MixedConfig,
    RegularizerConfig,
    TeacherConfig,
)
from ssrseg.cpu.training_layers import CONVOLUTIONS
from ssrseg.errors import UserError
from ssrseg.models import Segmenter, build_segmenter, load_segmenter
from ssrseg.models.backbones import Backbone
from ssrseg.models.heads import DAFormerHead
from ssrseg.runs.folder import RunFolder
from ssrseg.training import setup
from ssrseg.training.setup import has_compiler, prepare
from test_training import records, run

CPU = torch.device("cpu")
PLAIN = TrainConfig()


def dacs_ssr(student: Segmenter, foundation: Frozen | None = None) -> Method:
    torch.manual_seed(1)  # the regularizer's weights
    config = MethodConfig(
        teacher=TeacherConfig(), mixed=MixedConfig(), feature_distance=Distance(), regularizer=RegularizerConfig()
    )
    return build_method(
        config, student, classes=CLASSES, crop=(64, 64), foundation=foundation or tiny_frozen().to("cpu")
    )


def step(method: Method, backward: Callable[[Tensor], None] = Tensor.backward) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    source, target = torch.rand(2, 2, 3, 64, 64, generator=generator)
    labels = torch.randint(0, len(CLASSES), (2, 64, 64), generator=generator)
    torch.manual_seed(3)  # dropout and drop path
    batch = Batch(source, labels, target, torch.ones(2, 64, 64, dtype=torch.bool))
    return adapt(method.learner, method.teacher, method.makers, batch, backward)


def segmenter(backbone: str) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(backbone, "daformer", len(CLASSES), head_channels=8, drop_path=0.3, dropout=0.3)


def test_only_a_cpu_that_computes_in_single_precision_is_given_other_convolutions() -> None:
    def changed(config: TrainConfig, device: torch.device) -> list[int]:
        """How many in the student's backbone and head, and in the teacher's."""
        method = dacs_ssr(segmenter("mit_b0"))
        prepare(method, config, device)
        networks = method.learner.student, method.teacher.segmenter
        parts = [part for network in networks if network is not None for part in (network.backbone, network.head)]
        return [sum(isinstance(module, tuple(CONVOLUTIONS)) for module in part.modules()) for part in parts]

    assert changed(TrainConfig(), CPU) == [6, 7, 6, 7]
    assert changed(TrainConfig(precision="bf16"), CPU) == [0, 0, 0, 0]
    assert changed(TrainConfig(compile="off"), torch.device("cuda")) == [0, 0, 0, 0]


@pytest.mark.parametrize("backbone", ["mit_b0", "timm:test_resnet", "timm:tf_efficientnet_lite0"])
def test_recomputing_changes_memory_and_nothing_else(backbone: str) -> None:
    """Gradients to 1e-6 of their size, statistics of norms and names exactly; dropout and drop path are on."""
    kept, recomputed = dacs_ssr(segmenter(backbone)), dacs_ssr(segmenter(backbone))
    names = list(recomputed.learner.state_dict())
    assert prepare(kept, TrainConfig(), CPU) == []
    assert prepare(recomputed, TrainConfig(activation_checkpointing=True), CPU) == []

    def backward(loss: Tensor) -> None:  # as the loop does it
        with still_statistics(recomputed.learner.student.backbone):
            loss.backward()

    for ours, theirs in zip(step(recomputed, backward).values(), step(kept).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert list(recomputed.learner.state_dict()) == names
    theirs = dict(kept.learner.named_parameters())
    for name, parameter in recomputed.learner.named_parameters():
        if theirs[name].grad is None:
            assert parameter.grad is None
            continue
        scale = float(theirs[name].grad.abs().max())
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=1e-6 * max(scale, 1e-3), msg=name)
    for (name, ours), theirs in zip(recomputed.learner.named_buffers(), kept.learner.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_run_that_recomputes_moves_statistics_once(tmp_path: Path) -> None:
    model = {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"}
    trains = {"kept": {"steps": 2}, "less": {"steps": 2, "activation_checkpointing": True}}
    folders = [RunFolder(run(tmp_path, name, model=model, train=train)) for name, train in trains.items()]
    kept, less = (load_segmenter(folder.student_last) for folder in folders)
    for (name, ours), theirs in zip(less.named_buffers(), kept.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("backbone", "share"), [("mit_b0", 0.7), ("timm:resnet18", 0.9), ("timm:convnext_atto", 0.7)])
def test_recomputed_activations_are_not_kept(backbone: str, share: float) -> None:
    def saved(recompute: bool) -> int:
        network = segmenter(backbone).backbone
        assert not recompute or network.checkpoint_activations()
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = sum(weight.nbytes for weight in network.parameters())
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = network(torch.rand(1, 3, 128, 128))
        assert all(level.requires_grad for level in features)
        return sum(sizes.values()) - weights

    assert saved(True) < share * saved(False)


def test_a_backbone_that_cannot_recompute_is_reported() -> None:
    method = dacs_ssr(tiny_segmenter())
    notes = prepare(method, TrainConfig(activation_checkpointing=True), CPU)
    assert "nothing is recomputed" in notes[0]


def test_still_statistics_are_still_and_move_again() -> None:
    norm, images = nn.BatchNorm2d(3), torch.rand(2, 3, 4, 4)
    with still_statistics(norm):
        held = norm(images)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm(images), held)
    assert not torch.equal(norm.running_mean, torch.zeros(3))


def test_a_half_encoder_gives_nearly_the_same_features_in_the_images_type() -> None:
    half, whole = (
        build_encoder(FoundationConfig(encoder="demo", input_size="native", precision=precision), (64, 64)).to("cpu")
        for precision in ("half", "fp32")
    )
    assert {weight.dtype for weight in half.module.parameters()} == {torch.bfloat16}
    images = torch.rand(2, 3, 64, 64)
    ours, theirs = half(images), whole(images)
    assert ours.dtype == torch.float32
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.03
    with torch.autocast("cpu", torch.bfloat16):
        assert half(images).dtype == torch.float32
        assert torch.equal(half(images), ours)


def test_auto_is_half_on_cuda_alone() -> None:
    encoder = build_encoder(FoundationConfig(encoder="demo", precision="auto"), (64, 64)).to("cpu")
    assert not encoder.half
    assert encoder.runs_half("cuda")
    assert not encoder.runs_half("cpu")


def test_bf16_trains_and_teacher_and_encoders_run_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.dtype] = {}

    def build(*args: object, **options: object) -> Method:
        method = build_method(*args, **options)  # type: ignore[arg-type]
        assert method.teacher.segmenter is not None
        head = method.teacher.segmenter.head

        def labelled(head: nn.Module, _: object, logits: Tensor) -> None:
            if head.training:  # not when it is scored
                seen["teacher"] = logits.dtype

        head.register_forward_hook(labelled)
        for name, encoder in zip(("foundation", "imagenet"), method.frozen, strict=True):
            features = encoder.features

            def watched(images: Tensor, name: str = name, features: object = features) -> Tensor:
                output: Tensor = features(images)  # type: ignore[operator]
                seen[name] = output.dtype
                return output

            encoder.features = watched
        return method

    monkeypatch.setattr("ssrseg.training.setup.build_method", build)
    folder = run(tmp_path, "bf16", train={"precision": "bf16"})
    assert seen == dict.fromkeys(("teacher", "foundation", "imagenet"), torch.bfloat16)
    losses = [value for record in records(folder, "train") for value in record["losses"].values()]
    assert losses
    assert all(0 <= value < 100 for value in losses)  # finite


def test_without_a_compiler_auto_says_so_and_on_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "has_compiler", lambda: False)
    method = dacs_ssr(tiny_segmenter())
    monkeypatch.setattr(setup, "has_triton", lambda: True)
    cuda = torch.device("cuda")
    assert prepare(method, TrainConfig(compile="auto"), CPU) == []  # off on the CPU
    assert "no C++ compiler" in prepare(method, TrainConfig(compile="auto"), cuda)[0]
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        prepare(method, TrainConfig(compile="on"), CPU)
    monkeypatch.setattr(setup, "has_compiler", lambda: True)
    monkeypatch.setattr(setup, "has_triton", lambda: False)
    assert "no Triton" in prepare(method, TrainConfig(compile="auto"), cuda)[0]
    words = ["source.root=x", "train.compile=on"]
    with pytest.raises(UserError, match=r"no Triton.* set train\.compile=off") as refused:
        prepare(method, resolve(assignments(words)).train, cuda)
    words += re.findall(r"train\.compile=\w+", str(refused.value))
    assert prepare(method, resolve(assignments(words)).train, cuda) == []


def of_few_kernels() -> Segmenter:
    """A network of three norms and three convolutions: each is kernels, and each kernel seconds of the compiler."""
    torch.manual_seed(0)
    pyramid = TinyPyramid((4, 4, 4, 4))
    pyramid.levels = nn.ModuleList([pyramid.levels[0], *(nn.AvgPool2d(2) for _ in range(3))])
    head = DAFormerHead((4, 4, 4, 4), len(CLASSES), channels=8, dilations=(1, 2), dropout=0)
    head.branches[1] = head.branches[0]
    return Segmenter(Backbone(pyramid, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), head, len(CLASSES))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_a_compiled_network_is_the_network_and_whole_images_are_not_compiled() -> None:
    network, twin = of_few_kernels(), of_few_kernels()
    torch._dynamo.reset()
    network.compile_training("backbone")  # the head and the rest: below, without the compiler's minute
    images, before = torch.rand(2, 3, 64, 64), graphs()
    ours, theirs = network(images), twin(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    first, second = (next(model.backbone.parameters()).grad for model in (network, twin))
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-4)
    assert list(network.state_dict()) == list(twin.state_dict())
    assert graphs() == before + 1
    network.eval()(torch.rand(1, 3, 96, 32))
    assert graphs() == before + 1


@pytest.mark.filterwarnings("ignore")
def test_on_compiles_student_teacher_and_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured as inductor would, then run as they are: quick."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(setup, "has_compiler", lambda: True)
    eager, compiled = (dacs_ssr(tiny_segmenter(dropout=0)) for _ in range(2))
    names = list(compiled.learner.state_dict()), list(compiled.teacher.state_dict())
    torch._dynamo.reset()
    before = graphs()
    assert prepare(compiled, TrainConfig(compile="on"), CPU) == []
    ours, theirs = step(compiled), step(eager)
    assert graphs() - before >= 6  # backbone and head of student and teacher, two encoders
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert (list(compiled.learner.state_dict()), list(compiled.teacher.state_dict())) == names


def graphs() -> int:
    """How many have been captured in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
