"""Strong augmentation in batches: every image comes out as it would alone, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Generator

from ssrseg.adapt.augment import (
    ADJUSTMENTS,
    GlobalIntensity,
    PhotometricDistortion,
    StrongAugment,
    color_jitter,
    fourier_adapt,
    global_intensity,
)

ORDERS = list(itertools.permutations(range(4)))


def drawn(count, seed=0):
    """Images, some of them grey or of few values: where hue and saturation have their edges."""
    images = torch.rand(count, 3, 12, 10, generator=Generator().manual_seed(seed))
    images[1::4] = (images[1::4] * 2).round() / 2
    images[2::4] = images[2::4, :1]
    return images


def factors_of(count, seed=0):
    factors = (2 * torch.rand(4, count, generator=Generator().manual_seed(seed)) - 1) * 0.3
    factors[:3] += 1
    return factors


def test_a_batch_of_all_orders_is_jittered_as_each_image_alone():
    images, factors = drawn(24), factors_of(24)
    jittered = color_jitter(images, factors, ORDERS)
    for i, order in enumerate(ORDERS):
        alone = images[i : i + 1]
        for kind in order:
            alone = ADJUSTMENTS[kind](alone, float(factors[kind, i]))
        assert torch.equal(jittered[i], alone[0]), order


def test_distortion_adjusts_what_it_draws_in_its_order():
    images, draws = drawn(32), Generator().manual_seed(1)
    distorted = PhotometricDistortion(Generator().manual_seed(1))(images)
    orders = set()
    for image, found in zip(images.split(1), distorted, strict=True):
        brightness, contrast, saturation, hue, early = (torch.rand(5, generator=draws) < 0.5).tolist()
        strengths = (2 * torch.rand(4, generator=draws) - 1) * torch.tensor([32 / 255, 0.5, 0.5, 0.1])
        kinds = [0] * brightness + [1] * (contrast and early) + [2] * saturation + [3] * hue
        kinds += [1] * (contrast and not early)
        orders.add(tuple(kinds))
        alone = image
        for kind in kinds:
            alone = ADJUSTMENTS[kind](alone, float(strengths[kind] + (kind != 3)))
        assert torch.equal(found, alone[0])
    assert {(), (0, 1)} < {order[:2] for order in orders}


@pytest.mark.parametrize("augment", [StrongAugment, PhotometricDistortion, GlobalIntensity])
def test_images_draw_differently_and_stay_in_range(augment):
    images = drawn(1).expand(6, 3, 12, 10)
    augmented = augment(Generator().manual_seed(4))(images)
    assert len({bytes(image.numpy().tobytes()) for image in augmented}) > 3
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_global_intensity_gives_each_image_its_own_colours_and_leaves_its_shapes():
    images = torch.rand(64, 3, 8, 8, generator=Generator().manual_seed(1)).round(decimals=1)
    images[:, :, 4:] = images[:, :, :4]
    changed = GlobalIntensity(Generator().manual_seed(2), probability=0.5)(images)
    same = (changed == images).flatten(1).all(1)
    assert 20 < same.sum() < 44, "half of the images stay bit for bit"
    assert torch.allclose(changed[:, :, 4:], changed[:, :, :4], atol=1e-5), "equal pixels stay equal: no edge moves"
    before, after = ((each - each.mean((2, 3), keepdim=True)).flatten(1) for each in (images, changed))
    turned = [torch.nn.functional.cosine_similarity(*pair, dim=0) for pair in zip(before, after, strict=True)]
    assert min(turned) < -0.2, "bright becomes dark in some"


def test_global_intensity_blends_an_image_with_its_network_s():
    images, share = torch.rand(2, 3, 6, 5, generator=Generator().manual_seed(1)), torch.tensor([0.3, 1.0])
    identity = torch.eye(3, 4).expand(2, 3, 4)  # no shift
    torch.testing.assert_close(global_intensity(images, share, [identity]), images)
    inverted = global_intensity(images * 0.4 + 0.3, share, [-identity])
    mean = (images * 0.4 + 0.3).mean((2, 3), keepdim=True)
    expected = mean + (1 - 2 * share)[:, None, None, None] * (images * 0.4 + 0.3 - mean)
    torch.testing.assert_close(inverted, expected)


def test_fourier_adaptation_replaces_amplitudes_of_low_frequencies_alone():
    images, others = torch.rand(2, 2, 3, 40, 30, generator=Generator().manual_seed(1))
    images, others = 0.3 + 0.4 * images, 0.4 + 0.2 * others  # nothing is clamped
    expected = images + (others - images).mean((2, 3), keepdim=True)
    torch.testing.assert_close(fourier_adapt(images, others, beta=0), expected)
    own, other, found = map(torch.fft.fft2, (images, others, fourier_adapt(images, others, beta=0.1)))
    low = torch.tensor([0, 1, 2, 3, -1, -2, -3])
    replaced = torch.zeros(40, 30, dtype=torch.bool)
    replaced[low[:, None], low] = True
    torch.testing.assert_close(found.abs()[..., replaced], other.abs()[..., replaced], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[..., ~replaced], own[..., ~replaced], rtol=1e-3, atol=1e-3)
    assert fourier_adapt(images, others[..., :20, :20]).shape == images.shape
