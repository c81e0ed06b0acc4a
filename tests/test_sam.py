"""timm's SAM is the original SAM, and the original's weights reach it by our path."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from ssrseg.adapt.foundation import build_encoder
from ssrseg.config.method import FoundationConfig
from ssrseg.errors import UserError

sam = pytest.importorskip("segment_anything.modeling.image_encoder", reason="segment-anything is not installed")


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """The image encoder of `sam_vit_b`, with random weights in every place."""
    encoder = sam.ImageEncoderViT(
        depth=12,
        embed_dim=768,
        img_size=1024,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=12,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=[2, 5, 8, 11],
        window_size=14,
        out_chans=256,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        nn.init.normal_(parameter, std=scale, generator=generator)
    for parameter in (p for name, p in encoder.named_parameters() if "norm" in name and name.endswith("weight")):
        nn.init.ones_(parameter)
    return encoder.eval()


@pytest.fixture(scope="module")
def checkpoint(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like `sam_vit_b_01ec64.pth`: the prompt encoder and the mask decoder are in it too."""
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    state = {f"image_encoder.{name}": value for name, value in original.state_dict().items()}
    state |= {
        "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 256),
        "mask_decoder.iou_token.weight": torch.zeros(1),
    }
    torch.save(state, path)
    return path


def encode(path: Path | str, images: Tensor, size: int | str = 1024) -> Tensor:
    config = FoundationConfig(encoder="sam-vit-b", weights=str(path), input_size=size)
    return build_encoder(config, (images.shape[-2], images.shape[-1]))(images)


@pytest.mark.slow
def test_timm_equals_segment_anything_at_1024(original: nn.Module, checkpoint: Path) -> None:
    """Every block has the original's windows and weights; the second and third, which sees all, give its numbers."""
    config = FoundationConfig(encoder="sam-vit-b", weights=str(checkpoint), input_size=1024)
    encoder = build_encoder(config, (1024, 1024))
    for mine, theirs in zip(encoder.module.blocks, original.blocks, strict=True):
        assert (mine.attn.window or 0) == theirs.window_size
        weights = zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in weights)
    shallow = copy.copy(original)
    shallow._modules = {**original._modules, "blocks": original.blocks[1:3]}
    encoder.module.blocks = encoder.module.blocks[1:3]
    images = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = shallow((images - mean[:, None, None]) / std[:, None, None])
    found = encoder(images)
    assert found.shape == (1, 256, 64, 64)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_published_weights_fit_at_native_size_too(checkpoint: Path) -> None:
    images = torch.rand(2, 3, 100, 132)
    assert encode(checkpoint, images, "native").shape == (2, 256, 7, 9)  # sides are rounded up to multiples of 16


@torch.no_grad()
def test_at_native_size_it_is_what_timm_makes_of_it(checkpoint: Path, tmp_path: Path) -> None:
    """Positions are resized, and windows filled up: 7 x 20 places are one row of windows of 14, and two."""
    config = FoundationConfig(encoder="sam-vit-b", weights=str(checkpoint), input_size="native")
    torch.save(build_encoder(config, (112, 320)).module.state_dict(), tmp_path / "timm.pth")
    theirs = timm.create_model("samvit_base_patch16", checkpoint_path=str(tmp_path / "timm.pth")).eval()
    images = torch.rand(1, 3, 112, 320)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = theirs.forward_features((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(encode(checkpoint, images, "native"), expected, rtol=1e-4, atol=1e-5)


def test_what_is_left_out_of_the_file_is_listed(checkpoint: Path) -> None:
    config = FoundationConfig(encoder="sam-vit-b", weights=str(checkpoint), input_size="native")
    note = build_encoder(config, (64, 64)).note
    assert "1 of prompt_encoder, 1 of mask_decoder" in note


def test_timm_names_load(checkpoint: Path, tmp_path: Path) -> None:
    config = FoundationConfig(encoder="sam-vit-b", weights=str(checkpoint), input_size="native")
    module = build_encoder(config, (64, 64)).module
    torch.save(module.state_dict(), tmp_path / "timm.pth")
    again = build_encoder(config.model_copy(update={"weights": str(tmp_path / "timm.pth")}), (64, 64))
    assert again.note == ""
    for mine, theirs in zip(again.module.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_file_that_does_not_fit_is_named(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    del state["image_encoder.pos_embed"]
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=r"(?s)cannot be loaded from .*broken\.pth.*pos_embed"):
        encode(tmp_path / "broken.pth", torch.rand(1, 3, 64, 64), "native")
    torch.save({"state_dict": state, "trap": print}, tmp_path / "pickle.pth")
    with pytest.raises(UserError, match=r"holds the Python object .*print"):
        encode(tmp_path / "pickle.pth", torch.rand(1, 3, 64, 64), "native")


def test_random_weights_are_called_a_control() -> None:
    config = FoundationConfig(encoder="timm:resnet18", weights="none")
    assert "control" in build_encoder(config, (64, 64)).note
