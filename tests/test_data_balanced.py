"""The class-balanced source list: the formula, its histogram, and that a draw is a function of seed and number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from ssrseg.config import ClassBalancedConfig
from ssrseg.data.balanced import ClassBalanced, class_weights
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.errors import UserError

# 90 files show class 0 alone, 9 classes 0 and 1, one all three; class 3 never occurs.
PIXELS = torch.zeros(100, 4, dtype=torch.int64)
PIXELS[:, 0] = 10
PIXELS[90:, 1] = 10
PIXELS[99, 2] = 10


def files(sampler: ClassBalanced, numbers: range) -> list[int]:
    return [sampler(number, Generator()).file for number in numbers]


def test_weights_by_hand() -> None:
    seen = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    raw = [1 / math.log(1.01 + share) for share in (0.75, 0.25, 0.0)]
    assert class_weights(seen, 1.01).tolist() == pytest.approx([value / sum(raw) for value in raw])
    assert class_weights(torch.zeros(3), 1.01).tolist() == pytest.approx([1 / 3] * 3)


def test_rare_classes_are_drawn_far_more_often_than_by_chance() -> None:
    sampler = ClassBalanced(ClassStatistics(PIXELS), ClassBalancedConfig(block=500), seed=0)
    drawn = files(sampler, range(500))
    assert sum(file >= 90 for file in drawn) > 250  # a tenth by chance
    assert drawn.count(99) > 100  # a hundredth by chance


def test_a_class_goes_through_its_files_before_one_comes_again() -> None:
    everywhere = ClassStatistics(torch.ones(50, 1, dtype=torch.int64))
    drawn = files(ClassBalanced(everywhere, ClassBalancedConfig(block=100), seed=3), range(100))
    assert sorted(drawn[:50]) == sorted(drawn[50:]) == list(range(50))


def test_a_draw_is_a_function_of_seed_and_number() -> None:
    config = ClassBalancedConfig(block=20)
    one, other = (ClassBalanced(ClassStatistics(PIXELS), config, seed=1) for _ in range(2))
    whole = files(one, range(60))
    assert files(other, range(35, 60)) == whole[35:]
    assert files(other, range(5)) == whole[:5]
    assert whole[:20] != whole[20:40]
    assert files(ClassBalanced(ClassStatistics(PIXELS), config, seed=2), range(60)) != whole


def test_labels_without_any_class_are_refused() -> None:
    with pytest.raises(UserError, match="shows any of the classes"):
        ClassBalanced(ClassStatistics(torch.zeros(2, 3, dtype=torch.int64)), ClassBalancedConfig(), seed=0)
