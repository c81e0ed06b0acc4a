"""Resize, crop, flip."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from factories import random_image, random_labels
from ssrseg.data.transforms import (
    is_varied,
    mirrored,
    pad,
    random_box,
    rescale_size,
    resize_image,
    resize_labels,
    retry,
)


@pytest.mark.parametrize(
    ("size", "bound", "expected"),
    [
        ((1914, 1052), (1280, 720), (1280, 704)),  # GTA5: not 1280x720
        ((1914, 1046), (1280, 720), (1280, 700)),
        ((1052, 1914), (1280, 720), (704, 1280)),
        ((100, 50), (400, 400), (400, 200)),
    ],
)
def test_rescaling_keeps_the_aspect_ratio(size, bound, expected):
    assert rescale_size(*size, bound) == expected


def test_images_are_resized_without_antialiasing():
    stripes = torch.tensor([0, 255, 0, 255, 0, 255], dtype=torch.uint8).expand(3, 6, 6)
    # Centres fall on 1, 4 of 0..5: single pixels, where antialiasing would average three.
    assert resize_image(stripes, (2, 2)).unique().tolist() == [0, 255]
    ramp = torch.tensor([0, 100], dtype=torch.uint8).expand(3, 1, 2)
    assert resize_image(ramp, (4, 1))[0, 0].tolist() == [0, 25, 75, 100]


def test_labels_are_resized_to_the_nearest_as_opencv_rounds():
    row = torch.arange(222, dtype=torch.uint8)
    assert resize_labels(row[None, :9], (4, 1)).tolist() == [[0, 2, 4, 6]]
    assert resize_labels(row[:2, None], (1, 82))[:, 0].tolist() == [0] * 41 + [1] * 41  # float32 has 42 zeros
    assert resize_labels(row[None, :5], (5, 3)).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_padding_is_right_and_below():
    padded = pad(torch.ones(2, 3, dtype=torch.uint8), (3, 4), 255)
    assert padded.tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4]
    assert pad(padded, (2, 2), 0) is padded


def test_crops_reach_every_place_evenly():
    generator = Generator().manual_seed(0)
    boxes = [random_box(10, 12, (8, 8), generator) for _ in range(3000)]
    places = [(rows.start, columns.start) for rows, columns in boxes]
    counts = [places.count((top, left)) for top in range(3) for left in range(5)]
    assert sum(counts) == 3000
    assert min(counts) > 150
    assert random_box(4, 4, (8, 8), generator) == (slice(0, 8), slice(0, 8))


@pytest.mark.parametrize(
    ("labels", "varied"),
    [
        ([1, 1, 1, 2], False),  # 0.75 is too much
        ([1, 1, 2, 2], True),
        ([1, 1, 1, 2, 2, 255, 255, 255], True),  # 255 counts neither as a class nor as a pixel
        ([1, 1, 1, 1], False),
        ([1, 255, 255, 255], False),
        ([255, 255, 255, 255], False),
    ],
)
def test_one_class_must_not_dominate(labels, varied):
    assert is_varied(torch.tensor(labels, dtype=torch.uint8), 0.75) is varied


def test_a_share_of_one_accepts_everything():
    assert is_varied(torch.full((4,), 255, dtype=torch.uint8), 1.0)


def test_the_eleventh_crop_is_taken_unseen():
    draws = iter(range(100))
    assert retry(lambda: next(draws), lambda draw: False) == 10
    draws = iter(range(100))
    assert retry(lambda: next(draws), lambda draw: draw == 3) == 3


def test_flips_have_the_asked_for_chance():
    generator = Generator().manual_seed(0)
    assert 420 < sum(mirrored(generator, 0.5) for _ in range(1000)) < 580
    assert not any(mirrored(generator, 0.0) for _ in range(100))
    assert all(mirrored(generator, 1.0) for _ in range(100))


def test_label_resize_takes_existing_values_only():
    labels = torch.from_numpy(random_labels(50, 70))
    small = resize_labels(labels, (33, 21))
    assert small.shape == (21, 33)
    assert set(small.unique().tolist()) <= set(labels.unique().tolist())
    assert resize_image(torch.from_numpy(random_image(50, 70)).permute(2, 0, 1), (33, 21)).shape == (3, 21, 33)
