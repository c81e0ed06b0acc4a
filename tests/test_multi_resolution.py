"""HRDA's composition: context and detail in one segmenter, one window per view, every window of an image once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factories import CLASSES, random_image, tiny_frozen, write_pairs
from ssrseg.adapt import Batch, Regularizer, Segmentation, View, adapt, build_method
from ssrseg.adapt.views import DetailWindow
from ssrseg.config import DataConfig, LoaderConfig, resolve
from ssrseg.config.data import ImageMargins
from ssrseg.config.method import FeatureDistanceConfig, MaskedConfig, MethodConfig, MixedConfig, TeacherConfig
from ssrseg.data.cache import ScaledFiles
from ssrseg.data.datasets import TargetImages
from ssrseg.data.samplers import TARGET, Shuffled, generator_of
from ssrseg.errors import UserError
from ssrseg.inference import export
from ssrseg.inference.engines import run_in_torch
from ssrseg.inference.sliding_window import slide, whole
from ssrseg.label_shift.priors import fold_shift
from ssrseg.models import Description, Detail, Segmenter, build_segmenter, convert, load_segmenter, save_segmenter
from ssrseg.models.multi_resolution import MultiResolution
from ssrseg.models.weight_names import official_name
from ssrseg.training.optim import parameter_groups

DETAIL = Detail(window=(32, 32))


def twice(
    detail: Detail = DETAIL, *, head: str = "daformer", backbone: str = "timm:test_resnet", **options: Any
) -> MultiResolution:
    """A small ResNet with a narrow head that looks twice, in eval mode; what it predicts depends on the detail."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = build_segmenter(backbone, head, len(CLASSES), head_channels=8, detail=detail, **options)
        assert isinstance(segmenter, MultiResolution)
        for name, weight in segmenter.named_parameters():
            if name.endswith("classify.weight"):
                nn.init.normal_(weight)
    segmenter.description = Description(backbone, head, CLASSES, head_channels=8, detail=detail)
    return segmenter.eval()


def images(count: int = 1, height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def batch(size: int = 64) -> Batch:
    labels = torch.randint(0, len(CLASSES), (2, size // 16, size // 16)).repeat_interleave(16, 1)
    labels = labels.repeat_interleave(16, 2)
    return Batch(images(2, size, size), labels, images(2, size, size).flip(0), torch.ones(2, size, size) > 0)


class Counted(nn.Module):
    """Counts the images that a part sees."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.seen = 0
        part.register_forward_pre_hook(self.count)

    def count(self, part: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.seen += len(args[0])


@torch.no_grad()
def test_windows_that_crops_share_are_computed_once() -> None:
    model, picture = twice(), images(2, 64, 128)
    counted = Counted(model.backbone)
    logits = slide(model, picture, (64, 64), (32, 32))
    # Three crops, each with its context; their nine windows in three columns more for each of the two later ones.
    assert counted.seen == 2 * (3 + 3 * 7)
    apart = slide(lambda part: model(part), picture, (64, 64), (32, 32))
    assert torch.allclose(logits, apart, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (20, 90), (33, 37)])
@pytest.mark.parametrize("stride", [None, (32, 32)])
def test_images_of_any_size(size: tuple[int, int], stride: tuple[int, int] | None) -> None:
    model = twice(replace(DETAIL, stride=stride))
    picture = images(1, *size)
    assert model(picture).shape == (1, len(CLASSES), *size)
    assert model(picture).isfinite().all()
    assert slide(model, picture, (48, 48), (24, 24)).isfinite().all()


@torch.no_grad()
def test_fixed_attention_takes_context_alone_or_detail_alone() -> None:
    picture = images()
    context, both = twice(replace(DETAIL, attention=0.0)), twice()
    context.load_state_dict(both.state_dict(), strict=False)
    plain = Segmenter(both.backbone, both.head, len(CLASSES)).eval()
    halved = nn.functional.interpolate(picture, scale_factor=0.5, mode="bilinear")
    expected = plain.head(plain.encode(halved))
    found = context.scales(context.encode(picture), picture.shape[-2:]).fused
    assert torch.allclose(found, context.resize(expected, found.shape[-2:]), atol=1e-4)
    detail = twice(replace(DETAIL, attention=1.0, window=(64, 96)))
    detail.load_state_dict(both.state_dict(), strict=False)
    assert torch.allclose(detail(picture), plain(picture), atol=1e-4)


def test_each_view_has_a_window_of_its_own_and_its_draws_are_the_methods() -> None:
    config = MethodConfig(
        teacher=TeacherConfig(),
        mixed=MixedConfig(),
        masked=MaskedConfig(block=16),
        feature_distance=FeatureDistanceConfig(),
    )

    def step() -> tuple[list[Any], MultiResolution]:
        torch.manual_seed(0)
        student = twice(replace(DETAIL, window=(24, 32)))
        method = build_method(config, student, classes=CLASSES, crop=(64, 64), seed=3)
        method.learner.train()
        windows: list[Any] = []
        method.learner.register_forward_pre_hook(lambda learner, args: windows.append(args[0].window))
        losses = adapt(method.learner, method.teacher, method.makers, batch(), Tensor.backward)
        assert all(loss.isfinite() for loss in losses.values())
        return windows, student

    windows, student = step()
    assert windows == step()[0]
    assert len(windows) == 3
    assert len({(rows.start, columns.start) for rows, columns in windows}) > 1
    assert all(p.grad is not None for p in student.parameters())


def test_the_detail_has_its_share_of_the_loss_and_leaves_the_weight_of_the_view() -> None:
    student, one = twice(), batch()
    view = View("masked", one.source, one.labels, torch.full(one.labels.shape, 0.5))
    view = replace(view, window=DetailWindow(torch.Generator().manual_seed(0), DETAIL)((64, 64)))
    features = student.encode(view.images, view.window)
    alone = Segmentation(("masked",)).losses(view, features, student)
    shared = Segmentation(("masked",), detail_weight=0.25, factors={"masked": 2.0}).losses(view, features, student)
    assert alone.keys() == {"fused"}
    assert torch.allclose(shared["fused"], 0.75 * alone["fused"])
    logits = student.resize(student.scales(features, (64, 64), view.window).detail, (32, 32))
    labels = view.cut().labels
    assert torch.allclose(shared["detail"], 0.25 * nn.functional.cross_entropy(logits, labels))


def test_features_of_a_window_are_not_taken_for_those_of_all() -> None:
    student, window = twice(), (slice(0, 32), slice(8, 40))
    features = student.encode(images(1, 64, 64), window)
    assert student.decode(features, (64, 64), window).shape == (1, len(CLASSES), 64, 64)
    with pytest.raises(UserError, match=r"decode\(features, size, view.window\)"):
        student.decode(features, (64, 64))


def test_the_regularizer_enhances_the_context_alone() -> None:
    student = twice()
    term = Regularizer(tiny_frozen(), 8, student.backbone.channels)
    features = student.encode(images(1, 64, 64), (slice(0, 32), slice(8, 40)))
    enhanced = term.enhance(features, torch.rand(1, 8, 4, 4))
    assert [torch.equal(*pair) for pair in zip(features, enhanced, strict=True)] == [True] * 4 + [False] * 4


def test_the_attention_learns_as_fast_as_the_head() -> None:
    learner = nn.ModuleDict({"student": twice()})
    config = resolve({"source": {"root": "x"}}).optim
    rates = {name: group["lr"] for group in parameter_groups(learner, config) for name in group["names"]}
    assert rates["student.attention.fuse.conv.weight"] == rates["student.head.classify.weight"] == 10 * config.lr


@torch.no_grad()
def test_fused_and_with_other_priors_it_is_the_same_model() -> None:
    model, picture = twice(), images()
    expected = model(picture)
    assert torch.allclose(run_in_torch(model)(picture), expected, atol=1e-3)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0])
    assert torch.allclose(fold_shift(model, shift)(picture), expected + shift.view(1, -1, 1, 1), atol=1e-3)


def test_its_file_becomes_a_model_again(tmp_path: Path) -> None:
    model = twice(Detail((24, 40), stride=(8, 8), attention="shared"))
    save_segmenter(model, tmp_path / "model.safetensors")
    loaded = load_segmenter(tmp_path / "model.safetensors")
    assert loaded.detail == model.detail
    assert torch.equal(whole(loaded, images()), whole(model, images()))


CONFIG = """
model = dict(type='MultiResEncoderDecoder', hr_slide_inference=True, hr_slide_overlapping=False, crop_coord_divisible=4,
             scales=[0.5, 1], hr_crop_size=(32, 48),
             decode_head=dict(type='MultiResAttentionWrapper', single_scale_head='UniHead', attention_classwise=True))
"""


@pytest.mark.parametrize("head", ["daformer", "deeplabv2"])
def test_official_checkpoints_become_models(head: str, tmp_path: Path) -> None:
    model = twice(head=head, backbone="mit_b0")
    state = {f"model.{official_name(key, model)}": value for key, value in model.state_dict().items()}
    state |= {name.replace("model.", "ema_model."): torch.zeros_like(value) for name, value in state.items()}
    assert "model.decode_head.scale_attention." in str([*state])
    torch.save({"state_dict": state, "meta": {"config": CONFIG, "CLASSES": CLASSES}}, tmp_path / "hrda.pth")
    report = convert(tmp_path / "hrda.pth", tmp_path / "out.safetensors", part="model")
    assert report.loaded == len(model.state_dict())
    made = load_segmenter(tmp_path / "out.safetensors")
    assert made.detail == Detail((32, 48), stride=(32, 48), divisor=4)
    weights = made.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_its_export_is_the_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    report = export(twice(), tmp_path / "model.onnx", size=(32, 64))
    assert report.equal_labels > 0.9999
    assert report.max_difference < 1e-3


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"method": {"segmentation": {"detail_weight": 0.1}}}, "detail_weight is for a model that looks twice"),
        ({"method": {"feature_distance": {"of_detail": True}}}, "of_detail is for a model that looks twice"),
        ({"model": {"detail": {}, "align_corners": True}}, "set model.align_corners=false"),
        ({"model": {"detail": {"attention": "none"}}}, "model.detail.attention"),
        ({"target": {"root": "y", "margins": {"sides": [50, 50, 0, 0], "of": [100, 100]}}}, "leave nothing"),
    ],
)
def test_settings_that_do_not_fit_say_so(over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve({"source": {"root": "x"}, **over})


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_margins_of_the_image_travel_with_its_crops(flip: float, tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 1, height=64, width=96)
    margins = ImageMargins(sides=(25, 0, 50, 0), of=(100, 100))
    loader = LoaderConfig(crop=(32, 48), flip=flip)
    path = root / "images" / "00.png"
    target = TargetImages([path], ScaledFiles(None), margins, loader, Shuffled(1, 0, TARGET))
    assert DataConfig(root=root, margins=margins.model_dump()).margins == margins
    whole_image = torch.from_numpy(random_image(64, 96)).permute(2, 0, 1)
    for number in range(4):
        crop, valid, _, _ = target.draw(number, generator_of(0, TARGET, number))
        if flip:
            crop, valid = crop.flip(-1), valid.flip(-1)
        place = next(
            (top, left)
            for top in range(33)
            for left in range(49)
            if torch.equal(whole_image[:, top : top + 32, left : left + 48], crop)
        )
        rows, columns = torch.arange(32) + place[0], torch.arange(48) + place[1]
        assert torch.equal(valid, (rows >= 16)[:, None] & (columns >= 48))
