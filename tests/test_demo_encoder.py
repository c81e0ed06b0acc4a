"""The demo's frozen encoder: small, loadable, and better than chance at what it was trained for."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.demo.encoder import CHANNELS, MEAN, PATCH, STD, WEIGHTS, demo_encoder, untrained_encoder
from streets.anything import draw_anything


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return demo_encoder()


def pictures(count: int) -> tuple[Tensor, Tensor]:
    images, ids = zip(*(draw_anything((128, 256), np.random.default_rng((99, i))) for i in range(count)), strict=True)
    scaled = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), torch.from_numpy(
        np.stack(ids)
    )


def grouping(encoder: nn.Module, images: Tensor, ids: Tensor) -> float:
    """Chance that two cells of one object are more alike than two cells of different objects (ROC AUC, per picture)."""
    with torch.no_grad():
        features = F.normalize(encoder.forward_features(images).flatten(2), dim=1)
    found = []
    for cells, owners in zip(features, ids[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(1), strict=True):
        same = (owners[:, None] == owners).flatten()
        rank = (cells.T @ cells).flatten().argsort().argsort().double()
        count = same.sum()
        found.append(float((rank[same].sum() - count * (count - 1) / 2) / (count * (~same).sum())))
    return float(np.mean(found))


def test_weights_are_small() -> None:
    assert len((resources.files("ssrseg.demo") / WEIGHTS).read_bytes()) < 4e6
    assert sum(parameter.numel() for parameter in untrained_encoder().parameters()) < 1.5e6


@pytest.mark.parametrize("size", [(128, 256), (128, 128), (64, 96)])
def test_features_have_a_cell_per_patch(encoder: nn.Module, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder.forward_features(images)
    assert features.shape == (2, CHANNELS, size[0] // PATCH, size[1] // PATCH)
    assert features.isfinite().all()


def test_loading_is_deterministic(encoder: nn.Module) -> None:
    torch.manual_seed(123)
    again = demo_encoder()
    assert not again.training
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again.forward_features(images), encoder.forward_features(images), rtol=0, atol=0)


def test_every_weight_is_trained(encoder: nn.Module) -> None:
    for name, parameter in encoder.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.std() > 0, name


def test_features_group_objects_better_than_random_weights(encoder: nn.Module) -> None:
    images, ids = pictures(6)
    torch.manual_seed(0)
    random = grouping(untrained_encoder().eval(), images, ids)
    assert grouping(encoder, images, ids) > random + 0.03
