"""Frozen encoders of every family at their own sizes and levels, with random weights; one for parts that share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from factories import CLASSES, write_pairs
from ssrseg import resolve, train
from ssrseg.adapt import build_encoder
from ssrseg.config import merge
from ssrseg.config.method import FoundationConfig
from ssrseg.errors import UserError
from ssrseg.runs.folder import RunFolder

SIZES: dict[str, tuple[int, tuple[int, int]]] = {
    "samvit_base_patch16": (112, (7, 7)),
    "sam2_hiera_tiny": (96, (3, 3)),
    "vit_small_patch14_dinov2": (112, (8, 8)),
    "vit_tiny_patch16_dinov3_qkvb": (112, (7, 7)),
    "vit_pe_spatial_tiny_patch16_512": (80, (5, 5)),
    "vit_base_patch16_radio_v3": (96, (6, 6)),
    "vit_base_patch32_siglip_256": (96, (3, 3)),
    "vit_base_patch14_reg1_tipsv2": (84, (6, 6)),
    "eva02_tiny_patch14_224": (98, (7, 7)),
    "beit_base_patch16_224": (112, (7, 7)),
    "convnext_atto": (100, (3, 3)),
    "resnet18": (100, (4, 4)),
}
"""Encoder of timm -> a size of its own, and the grid of its features there."""


def config_of(name: str, **options: Any) -> FoundationConfig:
    return FoundationConfig(encoder=f"timm:{name}", weights="none", **options)


@pytest.mark.parametrize("name", SIZES)
def test_an_encoder_of_every_family_takes_its_own_sizes_and_any_crop(name: str) -> None:
    side, grid = SIZES[name]
    with torch.device("meta"):
        encoder = build_encoder(config_of(name, input_size=side), (64, 64)).to("meta")
        assert encoder(torch.empty(2, 3, 50, 70)).shape == (2, encoder.channels, *grid)
        native = build_encoder(config_of(name, input_size="native"), (70, 100)).to("meta")
        features = native(torch.empty(1, 3, 70, 100))
    cell = native.divisor
    if name not in ("convnext_atto", "resnet18"):
        assert features.shape[-2:] == (-(-70 // cell), -(-100 // cell))


@pytest.mark.parametrize(
    ("name", "side", "near"),
    [
        ("vit_small_patch14_dinov2", 512, "504 or 518, a multiple of 14"),
        ("vit_tiny_patch16_dinov3_qkvb", 100, "96 or 112, a multiple of 16"),
        ("sam2_hiera_tiny", 100, "96 or 128, a multiple of 32"),
        ("samvit_base_patch16", 10, "16, a multiple of 16"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_the_nearest_that_can(name: str, side: int, near: str) -> None:
    with pytest.raises(UserError, match=rf"{name} takes no images of {side}x{side} .*input_size to .*{near}") as said:
        build_encoder(config_of(name, input_size=side), (64, 64), "method.distillation.foundation")
    assert "method.distillation.foundation.input_size" in str(said.value)
    advised = int(near.partition(",")[0].split()[-1])
    with torch.device("meta"):
        assert build_encoder(config_of(name, input_size=advised), (64, 64)).channels


@pytest.mark.parametrize(
    ("name", "level", "shape"),
    [
        ("sam2_hiera_tiny", -2, (384, 4, 6)),
        ("convnext_atto", -3, (80, 8, 12)),
        ("vit_tiny_patch16_224", -4, (192, 4, 6)),
    ],
)
def test_a_level_of_an_encoder(name: str, level: int, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        encoder = build_encoder(config_of(name, input_size="native", level=level), (64, 96)).to("meta")
        assert encoder(torch.empty(2, 3, 64, 96)).shape == (2, *shape)
    assert encoder.channels == shape[0]


def test_a_level_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"foundation\.level=-5: convnext_atto has 4 levels, -1 is the last"):
        build_encoder(config_of("convnext_atto", level=-5), (64, 64))
    with pytest.raises(UserError, match=r"has one level\. Leave it out"):
        build_encoder(FoundationConfig(encoder="demo", level=-2), (64, 64))
    with torch.device("meta"):
        assert build_encoder(config_of("convnext_atto", level=-1), (64, 64)).channels
    assert build_encoder(FoundationConfig(encoder="demo", weights="none"), (64, 64)).channels


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("timm:hiera_tiny_224", "gives tokens whose grid is unknown"),
        ("timm:mixer_s16_224", "gives tokens whose grid is unknown"),
        ("timm:crossvit_tiny_240", "takes no images of 68x68 pixels .*"),
        ("dino", "There is no foundation encoder 'dino'"),
    ],
)
def test_what_is_no_encoder_is_refused_with_one_that_is(encoder: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"{said}: choose (another encoder, such as )?(.*?),") as refused:
        build_encoder(FoundationConfig(encoder=encoder, weights="none", input_size="native"), (64, 64))
    assert "sam-vit-b," in str(refused.value)
    with torch.device("meta"):
        assert build_encoder(FoundationConfig(encoder="sam-vit-b", weights="none", input_size=64), (64, 64)).channels


@pytest.mark.parametrize("size", [112, "native"])
def test_a_step_with_dinov2(size: int | str, tmp_path: Path) -> None:
    for name in ("game", "camera"):
        write_pairs(tmp_path / name, 2)
    tree = {
        "classes": CLASSES,
        "source": {"root": tmp_path / "game"},
        "target": {"root": tmp_path / "camera"},
        "loader": {"crop": [64, 64], "workers": 0},
        "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"},
        "method": {"teacher": {}, "mixed": {}, "regularizer": {"foundation": {"weights": "none", "input_size": size}}},
        "selection": None,
        "train": {"steps": 1, "evaluate_every": 1, "accelerator": "cpu"},
    }
    encoder = {"method": {"regularizer": {"foundation": {"encoder": "timm:vit_small_patch14_dinov2"}}}}
    train(resolve(merge(tree, encoder)), tmp_path / "run")
    assert RunFolder(tmp_path / "run").finished
