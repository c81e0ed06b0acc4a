"""Plain ViTs as students: four levels of one stride, at any size, with rates that fall from block to block."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from factories import CLASSES, random_image, random_labels, tiny_frozen, tiny_segmenter, write_pairs
from ssrseg import Predictor, resolve, train
from ssrseg.adapt import FeatureDistance, Learner, Segmentation, View
from ssrseg.adapt.terms import downscale_labels
from ssrseg.config import Settings, merge, with_words
from ssrseg.config.training import AdamWConfig
from ssrseg.data import resolve_space
from ssrseg.errors import UserError
from ssrseg.inference import engines, export
from ssrseg.models import Description, Segmenter, build_backbone, build_segmenter, load_segmenter, save_segmenter
from ssrseg.models.pyramids import ImageSizes
from ssrseg.models.weights import licence, load_pretrained
from ssrseg.planning.fake_step import fake_step
from ssrseg.training import Extensions
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.optim import depths, parameter_groups
from ssrseg.training.setup import build_student

TEST = "timm:test_vit"  # six blocks, 64 wide, patches of 16
FAMILIES = {
    "dinov2-s": 14,
    "dinov3-s": 16,
    "timm:samvit_base_patch16": 16,
    "timm:vit_pe_spatial_tiny_patch16_512": 16,
    "timm:eva02_tiny_patch14_224": 14,
}


def student(name: str = TEST, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    segmenter = build_segmenter(name, "segformer", len(CLASSES), head_channels=8, **options)
    torch.nn.init.normal_(segmenter.head.classify.weight)
    kept = {key: options[key] for key in ("taps", "image_scale") if key in options}
    segmenter.description = Description(name, "segformer", CLASSES, head_channels=8, **kept)
    return segmenter


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_four_levels_at_every_size(name: str) -> None:
    patch = FAMILIES[name]
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(name, size=(64, 64))
        assert backbone.strides == (patch / 4, patch / 2, patch, 2 * patch)
        for height, width in ((100, 132), (128, 160)):
            levels = backbone(torch.empty(1, 3, height, width))
            cells = -(-height // (2 * patch)), -(-width // (2 * patch))
            assert [level.shape[2:] for level in levels] == [(n * cells[0], n * cells[1]) for n in (8, 4, 2, 1)]
            assert tuple(level.shape[1] for level in levels) == backbone.channels


def test_the_levels_are_of_the_last_blocks_tokens_or_of_four() -> None:
    image = torch.rand(1, 3, 64, 96)
    last, four = (student(taps=taps).eval().backbone for taps in ("last", "four"))
    with torch.no_grad():
        blocks = last.pyramid.model.forward_intermediates(image, norm=True, intermediates_only=True)
        assert torch.equal(last(image)[2], blocks[5])
        assert torch.equal(last(image)[3], F.max_pool2d(blocks[5], 2))
        assert torch.equal(last(image)[1], last.pyramid.up[1](blocks[5]))
        for level, block in zip(
            four(image)[1:3], (2, 3), strict=True
        ):  # quarters of six blocks end after 1, 3, 4 and 6
            expected = four.pyramid.up[1](blocks[block]) if block == 2 else blocks[block]
            assert torch.equal(level, expected)
        assert torch.equal(four(image)[0], four.pyramid.up[0](blocks[0]))


def test_an_image_of_another_size_is_resized_to_whole_patches() -> None:
    backbone, image = student().eval().backbone, torch.rand(1, 3, 97, 131)
    with torch.no_grad():
        levels, resized = backbone(image), backbone(F.interpolate(image, (128, 160), mode="bilinear"))
    for level, other in zip(levels, resized, strict=True):
        assert torch.equal(level, other)


def test_vfm_udas_scale_makes_1120_of_1024() -> None:
    scaled = ImageSizes(multiple=(28, 28), scale=1.1)
    assert scaled.seen((1024, 1024)) == (1120, 1120)
    assert ImageSizes(multiple=(28, 28), scale=1.0).seen((512, 1024)) == (532, 1036)
    assert build_backbone(TEST, scale=1.1).sizes == ImageSizes(multiple=(32, 32), scale=1.1)


@pytest.mark.parametrize("option", ["taps", "scale"])
def test_a_pyramid_has_neither_taps_nor_scale(option: str) -> None:
    value: Any = {"taps": "four", "scale": 1.1}[option]
    with pytest.raises(UserError, match=r"mit_b0 is no plain ViT.*: set model\.\w+=null\."):
        build_backbone("mit_b0", **{option: value})


@pytest.mark.parametrize("taps", ["last", "four"])
def test_a_gradient_reaches_every_parameter(taps: Any) -> None:
    segmenter = build_segmenter(TEST, "daformer", 4, head_channels=8, taps=taps).train()
    segmenter(torch.rand(2, 3, 50, 70)).square().mean().backward()
    assert [name for name, weight in segmenter.named_parameters() if weight.grad is None] == []


def test_nothing_is_dropped_unless_it_is_asked_for() -> None:
    def rates(name: str, **options: Any) -> set[float]:
        return {m.drop_prob for m in build_backbone(name, **options).modules() if hasattr(m, "drop_prob")}

    assert rates(TEST) == set()
    assert max(rates(TEST, drop_path=0.3)) == pytest.approx(0.3)
    assert max(rates("mit_b0")) == pytest.approx(0.1)


def test_feature_distance_compares_labels_of_the_resized_image() -> None:
    segmenter, size = student(), (100, 132)
    images, labels = torch.rand(1, 3, *size), torch.from_numpy(random_labels(*size)).long()[None]
    labels[:, :60, :60] = 3
    features = segmenter.encode(images)
    term = FeatureDistance(lambda images: features[-1].detach() + 1, len(CLASSES), classes=[3])
    loss = term(View("source", images, labels), features, segmenter)
    seen = F.interpolate(labels[None].float(), (128, 160), mode="nearest")[0].long()
    assert (downscale_labels(seen, 32, len(CLASSES), 0.75) == 3).any()
    torch.testing.assert_close(loss, torch.tensor(8.0))  # 64 channels that are off by one


def test_a_saved_model_is_the_model(tmp_path: Path) -> None:
    segmenter, image = student(taps="four", image_scale=1.5).eval(), random_image(70, 100)
    save_segmenter(segmenter, tmp_path / "vit.safetensors")
    again = load_segmenter(tmp_path / "vit.safetensors")
    assert again.backbone.sizes.scale == 1.5
    assert torch.equal(Predictor(again, "cpu")(image), Predictor(segmenter, "cpu")(image))


def test_a_start_with_other_taps_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    save_segmenter(student(taps="four"), tmp_path / "vit.safetensors")
    model = {"backbone": TEST, "head": "segformer", "head_channels": 8, "start": str(tmp_path / "vit.safetensors")}
    tree = {"classes": CLASSES, "source": {"root": "game"}, "model": model}
    with pytest.raises(UserError, match=r"has model\.taps=four, found null: set model\.taps=four\."):
        build_student(resolve(tree), resolve_space(resolve(tree).classes, resolve(tree).source))
    tree = merge(tree, {"model": {"taps": "four"}})
    build_student(resolve(tree), resolve_space(resolve(tree).classes, resolve(tree).source))


@pytest.mark.parametrize(
    "model",
    [
        {"backbone": TEST, "head": "upscale", "taps": "four"},
        {"backbone": "timm:test_resnet", "taps": "four"},
        {"backbone": "timm:test_resnet", "image_scale": 1.5},
    ],
)
def test_what_a_backbone_has_not_is_refused_with_the_word_for_that(model: dict[str, Any]) -> None:
    run = {"classes": CLASSES, "source": {"root": "game"}, "model": {"head_channels": 8, "pretrained": "none"} | model}
    with pytest.raises(UserError, match=r": set model\.\w+=null\.$") as refused:
        build_student(resolve(run), resolve_space(resolve(run).classes, resolve(run).source))
    mended = with_words(resolve(run), [str(refused.value).rpartition(" ")[2][:-1]])
    build_student(mended, resolve_space(mended.classes, mended.source))


def groups(config: AdamWConfig, segmenter: Segmenter | None = None) -> dict[str, dict[str, Any]]:
    """The group of each parameter, without its parameters."""
    learner = Learner(segmenter or student(), {"segmentation": Segmentation(("source",))})
    return {
        name.removeprefix("student.backbone.pyramid."): {k: v for k, v in group.items() if k not in ("params", "names")}
        for group in parameter_groups(learner, config)
        for name in group["names"]
    }


def test_rates_fall_from_the_last_block_to_the_first() -> None:
    found = groups(AdamWConfig(lr=1.0, head_lr_factor=2.0, backbone_lr_factor=0.1, layer_decay=0.9))
    for name, rate in {
        "model.blocks.5.mlp.fc1.weight": 0.1,
        "model.norm.weight": 0.1,
        "model.blocks.4.attn.qkv.bias": 0.09,
        "model.blocks.0.norm1.weight": 0.1 * 0.9**5,
        "model.patch_embed.proj.weight": 0.1 * 0.9**6,
        "model.pos_embed": 0.1 * 0.9**6,
        "up.0.second.weight": 2.0,
        "student.head.classify.weight": 2.0,
    }.items():
        assert found[name]["lr"] == found[name]["base_lr"] == pytest.approx(rate), name


def test_layer_decay_of_a_pyramid_counts_the_blocks_of_all_stages() -> None:
    segmenter = build_segmenter("timm:convnext_atto", "segformer", 4, head_channels=8)  # 2, 2, 6 and 2 blocks
    found = groups(AdamWConfig(lr=1.0, layer_decay=0.5), segmenter)
    assert found["stages_3.blocks.1.mlp.fc1.weight"]["lr"] == 1
    assert found["stages_3.blocks.0.mlp.fc1.weight"]["lr"] == 0.5
    assert found["stages_2.blocks.5.mlp.fc1.weight"]["lr"] == 0.25
    assert found["stem_0.weight"]["lr"] == 0.5**12


def test_positions_tokens_norms_and_scales_do_not_decay() -> None:
    with torch.device("meta"):
        segmenter = build_segmenter("timm:vit_small_patch14_reg4_dinov2", "segformer", 4, head_channels=8)
    still = {name for name, group in groups(AdamWConfig(), segmenter).items() if group["weight_decay"] == 0}
    for name in ("pos_embed", "cls_token", "reg_token", "norm.weight", "blocks.3.ls1.gamma", "blocks.3.norm2.bias"):
        assert f"model.{name}" in still
    assert "up.0.norm.weight" in still
    assert not {name for name in still if name.endswith(("qkv.weight", "fc1.bias", "proj.weight"))}


@pytest.mark.parametrize("network", [tiny_segmenter, student])
def test_a_layer_decay_of_one_is_none(network: Any) -> None:
    assert groups(AdamWConfig(layer_decay=1.0), network()) == groups(AdamWConfig(), network())


def test_a_pyramid_decays_as_it_did() -> None:
    segmenter = build_segmenter("timm:convnext_atto", "segformer", 4, head_channels=8)
    found = groups(AdamWConfig(), segmenter)
    assert found["stages_0.blocks.0.gamma"]["weight_decay"] == 0.01
    assert {group["lr"] for group in found.values()} == {6e-5, 10 * 6e-5}


def test_layers_without_an_order_are_said_so() -> None:
    with pytest.raises(UserError, match=r"no known order\. Set optim\.layer_decay=null"):
        groups(AdamWConfig(layer_decay=0.9), tiny_segmenter())
    assert groups(AdamWConfig(layer_decay=None), tiny_segmenter())


def test_the_licence_is_said_when_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained=False, **options: create(name, **options))
    note = load_pretrained(student(), "hub", TEST)
    assert "timm's weights of test_vit (apache-2.0); the layers that make a pyramid of them are random" in note
    assert licence("dinov2-b") == "apache-2.0"
    assert "no military" in licence("dinov3-s")
    assert "non-commercial" in licence("mit_b5")


def test_the_encoder_of_a_vfm_uda_checkpoint_loads(tmp_path: Path) -> None:
    theirs = deepcopy(student().backbone.pyramid.model)
    torch.manual_seed(5)
    state = {f"network.encoder.{name}": torch.randn_like(value) for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": {**state, "network.head.conv.weight": torch.rand(2)}}, tmp_path / "theirs.ckpt")
    mine = student()
    load_pretrained(mine, str(tmp_path / "theirs.ckpt"), TEST)
    own = mine.backbone.pyramid.model.state_dict()
    assert all(torch.equal(own[name], state[f"network.encoder.{name}"]) for name in own)


def test_a_plain_vit_is_exported_at_one_size(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    report = export(student().eval(), tmp_path / "vit.onnx", size=(50, 70))
    assert report.equal_labels == 1


@torch.no_grad()
def test_openvino_computes_it_at_more_sizes_than_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(engines, "SHAPES", 2)
    model = student().eval()
    network = engines.run_in_openvino(model)
    for height, width in ((64, 96), (96, 64), (50, 70), (128, 64), (64, 96)):
        images = torch.rand(1, 3, height, width)
        torch.testing.assert_close(network(images), model(images), rtol=1e-3, atol=1e-3)


def settings(root: Path) -> Settings:
    """MIC with feature distance and SSR on 50x70 crops, which are no multiple of the patches, two steps."""
    for name in ("game", "camera", "val"):
        if not (root / name).exists():
            write_pairs(root / name, 2, height=64, width=80)
    method = {"teacher": {}, "mixed": {}, "masked": {"block": 16}, "feature_distance": {"classes": ["car"]}}
    return resolve(
        {
            "classes": CLASSES,
            "source": {"root": root / "game"},
            "target": {"root": root / "camera"},
            "val": {"root": root / "val"},
            "loader": {"crop": [50, 70], "workers": 0},
            "model": {"backbone": TEST, "taps": "four", "head_channels": 8, "pretrained": "none"},
            "method": {**method, "regularizer": {}},
            "optim": {"backbone_lr_factor": 0.1, "layer_decay": 0.9, "lr": 1e-3, "warmup": 0},
            "train": {"steps": 2, "evaluate_every": 2, "checkpoint_every": 1, "accelerator": "cpu"},
        }
    )


def test_a_plan_knows_the_order_of_layers(tmp_path: Path) -> None:
    chosen = with_words(settings(tmp_path), ["method.regularizer=null"])
    depths.cache_clear()
    assert fake_step(chosen, "cpu", flops=False).peak > 0


def test_a_run_of_a_plain_vit_resumes_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    class Power(Observer):
        def stepped(self, result: StepResult) -> None:
            if result.step == 2:
                raise KeyboardInterrupt

    chosen = settings(tmp_path)
    train(chosen, tmp_path / "whole", extensions=Extensions(foundation=tiny_frozen()))
    with pytest.raises(KeyboardInterrupt):
        train(chosen, tmp_path / "cut", extensions=Extensions(foundation=tiny_frozen(), observers=[Power()]))
    train(None, tmp_path / "cut", resume=True, extensions=Extensions(foundation=tiny_frozen()))
    one, other = (
        load_segmenter(tmp_path / name / "student-last.safetensors").state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
