"""Class statistics, rare-class and class-balanced sampling."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from factories import random_labels, write_pairs
from ssrseg.config import ClassBalancedConfig, DataConfig, RareClassConfig
from ssrseg.data import LabelCode, find_pairs
from ssrseg.data.class_statistics import ClassStatistics, class_statistics
from ssrseg.data.label_mapping import lookup_table
from ssrseg.data.loader import draw_numbers
from ssrseg.data.samplers import (
    SOURCE,
    TARGET,
    ClassBalancedSampler,
    RareClassSampler,
    Shuffled,
    class_weights,
    generator_of,
    rare_class_probabilities,
    scaled_min_pixels,
)
from ssrseg.errors import UserError

TABLE = LabelCode(lookup_table({i: i for i in range(4)}))


def sampler(pixels, **config):
    return RareClassSampler(ClassStatistics(torch.tensor(pixels)), RareClassConfig(**config), (512, 512))


def test_exactly_min_pixels_is_not_enough():
    assert sampler([[3000], [3001]]).files[0] == [1]


def test_a_class_that_no_file_shows_enough_of_takes_those_with_most():
    assert sampler([[2900], [10], [1600], [0]]).files[0] == [0, 2]
    assert sampler([[0], [1]]).files[0] == [1]


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
    pairs = find_pairs(DataConfig(root=write_pairs(tmp_path / "data")))
    first = class_statistics(pairs, TABLE, 4).pixels
    folded = class_statistics(pairs, LabelCode(lookup_table({0: 0, 1: 0, 2: 0, 3: 0})), 4).pixels
    assert folded[:, 0].tolist() == first.sum(dim=1).tolist()
    assert class_statistics(pairs[1:], TABLE, 4).pixels.tolist() == first[1:].tolist()


def test_a_broken_entry_of_the_cache_does_not_matter(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    pairs = find_pairs(DataConfig(root=write_pairs(tmp_path / "data")))
    counted = class_statistics(pairs, TABLE, 4).pixels
    for broken in ('{"pixels": ', "[]", "{}"):
        (entry,) = (tmp_path / "user").rglob("*.json")
        entry.write_text(broken)
        assert torch.equal(class_statistics(pairs, TABLE, 4).pixels, counted)
    assert capfd.readouterr() == ("", "")  # a progress bar only where someone looks


GTA5_LIKE = torch.tensor([36, 8, 18, 2, 0.7, 1.1, 0.15, 0.1, 7, 2.3, 16, 0.4, 0.03, 4, 1.3, 0.4, 0.07, 0.04, 0.005])
"""Shares of the 19 classes, in percent, about as in GTA5."""


def gta5_like_sampler():
    present = torch.rand(300, 19, generator=Generator().manual_seed(0)) < (GTA5_LIKE / GTA5_LIKE.max()).sqrt()
    return sampler((present * GTA5_LIKE * 20_000).long().tolist())


def drawn_by(draws, numbers, seed=0):
    return [draws(n, generator_of(seed, SOURCE, n)) for n in numbers]


def test_twenty_thousand_draws_have_the_frequencies_of_the_formula():
    """The share of each class is within 0.02 of P(c), and within four standard errors."""
    draws = gta5_like_sampler()
    classes = torch.tensor([draw.rare for draw in drawn_by(draws, range(20_000))])
    measured = classes.bincount(minlength=19)[draws.classes] / 20_000
    assert (measured - draws.probabilities).abs().max() < 0.02
    error = (draws.probabilities * (1 - draws.probabilities) / 20_000).sqrt()
    assert ((measured - draws.probabilities).abs() < 4 * error + 1e-4).all()


def test_files_of_a_class_are_drawn_alike():
    draws = gta5_like_sampler()
    drawn = [draw for draw in drawn_by(draws, range(20_000)) if draw.rare == int(draws.classes[0])]
    files = draws.files[int(draws.classes[0])]
    counts = torch.tensor([draw.file for draw in drawn]).bincount(minlength=300)[files].float()
    assert counts.sum() == len(drawn)
    assert (counts - counts.mean()).abs().max() < 5 * counts.mean().sqrt()


@pytest.mark.parametrize("world", [2, 3])
def test_every_process_draws_other_numbers_and_other_images(world):
    draws, steps, batch = gta5_like_sampler(), 40, 2
    numbers = [[n for step in draw_numbers(range(steps), batch, rank, world) for n in step] for rank in range(world)]
    assert sorted(n for rank in numbers for n in rank) == list(range(steps * batch * world))
    drawn = [[(draw.rare, draw.file) for draw in drawn_by(draws, rank)] for rank in numbers]
    for one, other in itertools.combinations(drawn, 2):
        alike = sum(a == b for a, b in zip(one, other, strict=True))
        assert alike < 0.1 * len(one)


def test_a_resumed_run_draws_on_where_it_stopped():
    draws = gta5_like_sampler()
    whole = drawn_by(draws, [n for step in draw_numbers(range(30), 2, 1, 3) for n in step])
    stopped = drawn_by(draws, [n for step in draw_numbers(range(17), 2, 1, 3) for n in step])
    resumed = drawn_by(draws, [n for step in draw_numbers(range(17, 30), 2, 1, 3) for n in step])
    assert stopped + resumed == whole


def counting(pairs, calls):
    """`class_statistics` in a process of its own; gives how many files it counted."""
    import ssrseg.data.class_statistics as module

    torch.set_num_threads(1)  # torch mends its thread pool after a fork once, which threads must not do at a time
    read, seen = module.read_labels, []

    def slow(path, *how):
        seen.append(path)
        time.sleep(0.05)
        return read(path, *how)

    module.read_labels = slow
    class_statistics(pairs, TABLE, 4)
    calls.put(len(seen))


def test_of_several_processes_one_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    pairs = find_pairs(DataConfig(root=write_pairs(tmp_path / "data")))
    context = multiprocessing.get_context("fork")
    calls = context.Queue()
    processes = [context.Process(target=counting, args=(pairs, calls)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(calls.get(timeout=60) for _ in processes) == [0, 0, 4]
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_another_run_over_the_same_data_does_not_count_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    pairs = find_pairs(DataConfig(root=write_pairs(tmp_path / "data")))
    first = class_statistics(pairs, TABLE, 4).pixels
    monkeypatch.setattr("ssrseg.data.class_statistics.read_labels", None)
    assert torch.equal(class_statistics(pairs, TABLE, 4).pixels, first)


def test_without_a_users_cache_folder_the_run_still_counts(tmp_path, monkeypatch):
    (tmp_path / "user").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    pairs = find_pairs(DataConfig(root=write_pairs(tmp_path / "data")))
    counted = class_statistics(pairs, TABLE, 4).pixels
    assert counted.tolist() == [
        np.bincount(random_labels(seed=i).ravel(), minlength=256)[:4].tolist() for i in range(4)
    ]


def test_rare_classes_are_drawn_as_the_formula_says():
    pixels = torch.tensor([[9000, 400, 0, 50], [8000, 0, 0, 60], [7000, 500, 0, 0]])
    draws = RareClassSampler(ClassStatistics(pixels), RareClassConfig(temperature=0.5, min_pixels=100), (64, 64))
    totals = pixels.sum(0)
    chance = ((1 - totals[[3, 1, 0]] / totals.sum()) / 0.5).softmax(0)
    torch.testing.assert_close(draws.probabilities, chance)
    generator = Generator().manual_seed(0)
    drawn = torch.tensor([draws(i, generator).rare for i in range(20_000)])
    shares = torch.stack([(drawn == c).float().mean() for c in (3, 1, 0)])
    assert (shares - chance).abs().max() < 0.02


def test_a_class_that_never_occurs_is_left_out_and_a_scarce_one_is_not():
    pixels = torch.tensor([[9000, 400, 0, 50], [8000, 0, 0, 60]])
    draws = RareClassSampler(ClassStatistics(pixels), RareClassConfig(min_pixels=100), (64, 64))
    assert draws.classes.tolist() == [3, 1, 0]
    assert draws.files[3] == [0, 1]  # no file has more than 100 pixels: all that show it
    assert draws.files[1] == [0]


def test_probabilities_follow_ascending_pixel_counts():
    classes, chance = rare_class_probabilities(torch.tensor([5, 0, 90, 5_000]), 0.01)
    assert classes.tolist() == [0, 2, 3]
    assert chance[0] > chance[1] > chance[2]


def test_min_pixels_scale_with_the_crop():
    assert scaled_min_pixels((512, 512)) == 3000
    assert scaled_min_pixels((256, 256)) == 750


def test_statistics_are_counted_once_and_again_when_a_label_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    pairs = find_pairs(DataConfig(root=write_pairs(tmp_path / "data")))
    first = class_statistics(pairs, TABLE, 4)
    expected = [np.bincount(random_labels(seed=i).ravel(), minlength=256)[:4].tolist() for i in range(4)]
    assert first.pixels.tolist() == expected
    (entry,) = (tmp_path / "user").rglob("*.json")
    written = entry.stat().st_mtime_ns
    assert class_statistics(pairs, TABLE, 4).pixels.tolist() == expected
    assert entry.stat().st_mtime_ns == written
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(pairs[0].label)
    assert class_statistics(pairs, TABLE, 4).pixels[0].tolist() == [64 * 64, 0, 0, 0]


def test_no_image_twice_in_an_epoch():
    draw = Shuffled(7, seed=3, stream=0)
    numbers = [draw(i, Generator()).file for i in range(14)]
    assert sorted(numbers[:7]) == sorted(numbers[7:]) == list(range(7))
    assert numbers[:7] != numbers[7:]


# --- class-balanced

# 90 files show class 0 alone, 9 classes 0 and 1, one all three; class 3 never occurs.
PIXELS = torch.zeros(100, 4, dtype=torch.int64)
PIXELS[:, 0] = 10
PIXELS[90:, 1] = 10
PIXELS[99, 2] = 10


def files_drawn(draws, numbers):
    return [draws(number, Generator()).file for number in numbers]


def test_class_balanced_weights_by_hand():
    seen = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    raw = [1 / math.log(1.01 + share) for share in (0.75, 0.25, 0.0)]
    assert class_weights(seen, 1.01).tolist() == pytest.approx([value / sum(raw) for value in raw])
    assert class_weights(torch.zeros(3), 1.01).tolist() == pytest.approx([1 / 3] * 3)


def test_rare_classes_are_drawn_far_more_often_than_by_chance():
    draws = ClassBalancedSampler(ClassStatistics(PIXELS), ClassBalancedConfig(block=500), seed=0)
    drawn = files_drawn(draws, range(500))
    assert sum(file >= 90 for file in drawn) > 250  # a tenth by chance
    assert drawn.count(99) > 100  # a hundredth by chance


def test_a_class_goes_through_its_files_before_one_comes_again():
    everywhere = ClassStatistics(torch.ones(50, 1, dtype=torch.int64))
    drawn = files_drawn(ClassBalancedSampler(everywhere, ClassBalancedConfig(block=100), seed=3), range(100))
    assert sorted(drawn[:50]) == sorted(drawn[50:]) == list(range(50))


def test_a_class_balanced_draw_is_a_function_of_seed_and_number():
    config = ClassBalancedConfig(block=20)
    one, other = (ClassBalancedSampler(ClassStatistics(PIXELS), config, seed=1) for _ in range(2))
    whole = files_drawn(one, range(60))
    assert files_drawn(other, range(35, 60)) == whole[35:]
    assert files_drawn(other, range(5)) == whole[:5]
    assert whole[:20] != whole[20:40]
    assert files_drawn(ClassBalancedSampler(ClassStatistics(PIXELS), config, seed=2), range(60)) != whole


def test_labels_without_any_class_cannot_be_balanced():
    with pytest.raises(UserError, match="shows any of the classes"):
        ClassBalancedSampler(ClassStatistics(torch.zeros(2, 3, dtype=torch.int64)), ClassBalancedConfig(), seed=0)
