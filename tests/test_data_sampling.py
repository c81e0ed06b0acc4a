"""Class statistics and rare-class sampling at their edges."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from factories import write_pairs
from ssrseg.config import DataConfig, RareClassConfig
from ssrseg.data import LabelCode, find_pairs
from ssrseg.data.labels import lookup_table
from ssrseg.data.sampling import (
    SOURCE,
    TARGET,
    RareClassSampler,
    Shuffled,
    generator_of,
    rare_class_probabilities,
)
from ssrseg.data.statistics import ClassStatistics, class_statistics
from ssrseg.errors import UserError

TABLE = LabelCode(lookup_table({i: i for i in range(4)}))


def sampler(pixels, **config):
    return RareClassSampler(ClassStatistics(torch.tensor(pixels)), RareClassConfig(**config), (512, 512))


def test_exactly_min_pixels_is_not_enough():
    assert sampler([[3000], [3001]]).files_of(0) == [1]


def test_a_class_that_no_file_shows_enough_of_takes_those_with_most():
    assert sampler([[2900], [10], [1600], [0]]).files_of(0) == [0, 2]
    assert sampler([[0], [1]]).files_of(0) == [1]


def test_labels_without_any_class_are_refused():
    with pytest.raises(UserError, match="No source label shows any of the classes"):
        sampler([[0, 0]])


def test_a_crop_ratio_of_zero_asks_for_nothing():
    assert sampler([[5000]], min_crop_ratio=0.5).enough == 1500
    assert sampler([[5000]], min_crop_ratio=0).enough < 0


def test_an_infinite_temperature_draws_all_classes_alike():
    _, chances = rare_class_probabilities(torch.tensor([1, 10, 0, 1000]), float("inf"))
    torch.testing.assert_close(chances, torch.full((3,), 1 / 3))


def test_generators_seeded_by_draw_number_draw_classes_as_the_formula_says():
    draws = sampler([[90_000, 9_000, 4_000], [80_000, 0, 0]], temperature=0.5)
    numbers = range(6000)
    drawn = torch.tensor([draws(n, generator_of(0, SOURCE, n)).rare for n in numbers]).bincount(minlength=3) / 6000
    assert (drawn[draws.classes] - draws.probabilities).abs().max() < 0.025


def test_equally_many_images_do_not_meet_in_the_same_pairs():
    orders = [[Shuffled(20, 0, stream)(n, Generator()).file for n in range(20)] for stream in (SOURCE, TARGET)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] == [Shuffled(20, 0, SOURCE)(n, Generator()).file for n in range(20)]


def test_seeds_streams_and_numbers_have_generators_of_their_own():
    draws = {
        float(torch.rand((), generator=generator_of(seed, stream, number), dtype=torch.float64))
        for seed in range(20)
        for stream in (SOURCE, TARGET)
        for number in range(20)
    }
    assert len(draws) == 800


def test_statistics_are_counted_again_for_another_mapping_or_list(tmp_path):
    pairs, cache = find_pairs(DataConfig(root=write_pairs(tmp_path / "data"))), tmp_path / "statistics.json"
    first = class_statistics(pairs, TABLE, 4, cache=cache).pixels
    folded = class_statistics(pairs, LabelCode(lookup_table({0: 0, 1: 0, 2: 0, 3: 0})), 4, cache=cache).pixels
    assert folded[:, 0].tolist() == first.sum(dim=1).tolist()
    assert class_statistics(pairs[1:], TABLE, 4, cache=cache).pixels.tolist() == first[1:].tolist()


def test_a_broken_or_unwritable_cache_does_not_matter(tmp_path, capfd):
    pairs = find_pairs(DataConfig(root=write_pairs(tmp_path / "data")))
    counted = class_statistics(pairs, TABLE, 4).pixels
    (tmp_path / "broken.json").write_text('{"key": ')
    for cache in (tmp_path / "broken.json", tmp_path / "no/such/folder.json"):
        assert torch.equal(class_statistics(pairs, TABLE, 4, cache=cache).pixels, counted)
    assert capfd.readouterr() == ("", "")  # a progress bar only where someone looks
