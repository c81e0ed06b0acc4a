"""Controls of SSR: what shuffled, swapped and random features take away."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ssrseg.adapt import build_encoder
from ssrseg.adapt.regularizer import Stage
from ssrseg.config.method import FoundationConfig
from ssrseg.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "accuracy"))

import embedded
import embedded_page
from controls import CONTROLS, control_of, next_images, shuffled_channels, shuffled_pixels

FEATURES = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).view(2, 3, 4, 5)


def test_shuffled_pixels_keep_their_channels_together() -> None:
    torch.manual_seed(0)
    shuffled = shuffled_pixels(FEATURES)
    assert not torch.equal(shuffled, FEATURES)
    before, after = (sorted(map(tuple, each.flatten(2)[1].T.tolist())) for each in (FEATURES, shuffled))
    assert before == after


def test_shuffled_channels_keep_each_channels_values_alone() -> None:
    torch.manual_seed(0)
    shuffled = shuffled_channels(FEATURES)
    assert torch.equal(shuffled.flatten(2).sort(dim=2).values, FEATURES.flatten(2))
    tokens = {tuple(token) for token in FEATURES.flatten(2)[0].T.tolist()}
    assert len(tokens & {tuple(token) for token in shuffled.flatten(2)[0].T.tolist()}) < len(tokens) / 2


def test_another_images_features_are_whole() -> None:
    assert torch.equal(next_images(FEATURES), FEATURES[[1, 0]])
    with pytest.raises(UserError, match=r"loader\.batch"):
        next_images(FEATURES[:1])


@pytest.mark.parametrize(
    ("how", "changes"), [("locations shuffled", False), ("channels shuffled", True), ("of another image", True)]
)
def test_attention_knows_no_order_of_the_tokens_so_shuffled_pixels_are_no_control(how: str, changes: bool) -> None:
    torch.manual_seed(1)
    stage, level = Stage(6, 8, 2).double(), torch.rand(2, 8, 4, 4, dtype=torch.float64)
    features = torch.rand(2, 6, 3, 5, dtype=torch.float64)
    plain, disturbed = (stage(level, each.flatten(2).mT) for each in (features, CONTROLS[how](features)))
    assert torch.allclose(plain, disturbed, atol=1e-12) is not changes


def test_the_rows_of_the_embedded_study_name_their_controls(tmp_path: Path) -> None:
    settings = embedded.row("other-images", 0, tmp_path)
    encoder, images = control_of(settings), torch.rand(2, 3, 64, 64)
    plain = build_encoder(FoundationConfig(encoder="demo", input_size="native"), (64, 64))
    assert encoder is not None
    assert "control" in encoder.note
    assert torch.equal(encoder(images), plain(images)[[1, 0]])
    assert control_of(embedded.row("daformer-ssr", 0, tmp_path)) is None


@pytest.mark.parametrize("part", embedded.PARTS)
def test_other_uses_of_the_encoder_have_controls_too(part: str, tmp_path: Path) -> None:
    settings = embedded.row(f"{part}-shuffled", 0, tmp_path)
    (named,) = settings.method.foundations.values()
    assert named.encoder == "demo, locations shuffled"
    encoder, images = control_of(settings), torch.rand(2, 3, 64, 64)
    assert encoder is not None
    plain = build_encoder(FoundationConfig(encoder="demo", input_size="native"), (64, 64))(images)
    assert not torch.equal(encoder(images), plain)
    torch.testing.assert_close(encoder(images).sum(dim=(2, 3)), plain.sum(dim=(2, 3)))
    assert control_of(embedded.row(part, 0, tmp_path)) is None
    (random,) = embedded.row(f"{part}-random-encoder", 0, tmp_path).method.foundations.values()
    assert random.weights == "none"
    assert {*embedded_page.USES, *embedded_page.USES_CONTROLS[part]} <= embedded.ROWS.keys()


def test_the_demos_encoder_takes_a_square_where_one_is_asked_for() -> None:
    images, square = torch.rand(1, 3, 48, 64), FoundationConfig(encoder="demo", input_size=96)
    assert build_encoder(square, (48, 64))(images).shape[-2:] == (12, 12)
    native = FoundationConfig(encoder="demo", input_size="native")
    assert build_encoder(native, (48, 64))(images).shape[-2:] == (6, 8)
