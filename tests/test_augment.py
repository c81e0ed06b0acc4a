"""Strong augmentation in batches: every image comes out as it would alone, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode

from ssrseg.adapt.augment import (
    PhotometricDistortion,
    StrongAugment,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    distort,
)

ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
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
            alone = ADJUSTMENTS[kind](alone, factors[kind, i].view(1, 1, 1))
        assert torch.equal(jittered[i], alone[0]), order


def test_a_batch_is_distorted_as_each_image_alone():
    images, draws = drawn(32), Generator().manual_seed(1)
    chosen = torch.tensor(list(itertools.product([False, True], repeat=5))).T  # (5, 32): every combination
    strengths = 0.4 * torch.rand(4, 32, generator=draws) - 0.2
    distorted = distort(images, chosen, strengths)
    for i in range(32):
        brightness, contrast, saturation, hue, early = chosen[:, i].tolist()
        kinds = [0] * brightness + [1] * (contrast and early) + [2] * saturation + [3] * hue
        alone = images[i : i + 1]
        for kind in [*kinds, *[1] * (contrast and not early)]:
            alone = ADJUSTMENTS[kind](alone, (strengths[kind, i] + (kind != 3)).view(1, 1, 1))
        assert torch.equal(distorted[i], alone[0])


@pytest.mark.parametrize("augment", [StrongAugment, PhotometricDistortion])
def test_images_draw_differently_and_stay_in_range(augment):
    images = drawn(1).expand(6, 3, 12, 10)
    augmented = augment(Generator().manual_seed(4))(images)
    assert len({bytes(image.numpy().tobytes()) for image in augmented}) > 3
    assert augmented.min() >= 0
    assert augmented.max() <= 1


class Operations(TorchDispatchMode):
    """Counts operations on whole images."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += any(isinstance(arg, torch.Tensor) and arg.shape[-2:] == (12, 10) for arg in args)
        return function(*args, **(kwargs or {}))


def test_eight_images_take_hardly_more_operations_than_two():
    def operations(count):
        with Operations() as seen:
            color_jitter(drawn(count), factors_of(count), ORDERS[::3][:count])
        return seen.count

    assert operations(8) < 1.3 * operations(2)
