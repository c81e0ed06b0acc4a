"""Classes that a run cannot learn from, or would not see: refused, or said in numbers, before it trains."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

import ssrseg
from factories import random_image
from ssrseg.config import RareClassConfig, Settings, assignments, merge, read_preset, resolve
from ssrseg.data import refuse_bad_data, train_batches
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.data.samplers import RareClassSampler
from ssrseg.data.streams import rare_class_samplers
from ssrseg.errors import UserError

IMAGES = 10


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def cracks(root: Path, values: dict[int, int], *, count: int = IMAGES) -> None:
    """`count` images; label value -> in how many of them it has an eighth of the pixels; the rest is 0."""
    for kind in ("images", "labels"):
        (root / "wall" / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        label = np.zeros((64, 64), np.uint8)
        for row, (value, shown) in enumerate(values.items()):
            label[8 * row : 8 * row + 8] = value if i < shown else 0
        Image.fromarray(random_image(seed=i)).save(root / "wall" / "images" / f"{i:02}.png")
        Image.fromarray(label).save(root / "wall" / "labels" / f"{i:02}.png")


def run_of(root: Path, *words: str, classes: Any = ("background", "crack"), preset: str | None = None) -> Settings:
    (root / "street" / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image(seed=99)).save(root / "street" / "images" / "0.png")
    loader = {"crop": [32, 32], "workers": 0}
    data = {"source": {"root": root / "wall"}, "target": {"root": root / "street"}, "classes": classes, "val": None}
    tree = merge(read_preset(preset), {**data, "loader": loader}) if preset else {**data, "loader": loader}
    for group in ("source", "target"):
        tree[group] = data[group]
    return resolve(merge(tree, assignments(words)))


@pytest.mark.parametrize("white", [1, 255])
def test_one_class_is_refused_with_classes_that_train(white: int, tmp_path: Path) -> None:
    cracks(tmp_path, {white: 5})
    with pytest.raises(UserError, match="One class cannot be told from anything: add a background class") as raised:
        refuse_bad_data(run_of(tmp_path, classes=["crack"]))
    advice = re.findall(r"classes=binary|'classes=.*?'", str(raised.value))
    followed = [word for quoted in advice for word in shlex.split(quoted)]
    assert followed == ["classes=binary", "classes=[background, crack]"]
    for word in followed[:1] if white == 255 else followed:
        run = run_of(tmp_path, word, "train.steps=5")
        refuse_bad_data(run)
        assert {int(v) for batch in train_batches(run) for v in batch.labels.unique()} == {0, 1}


def test_labels_that_show_one_class_alone_are_refused(tmp_path: Path) -> None:
    cracks(tmp_path, {255: 5})  # 255 is ignored: masks whose classes were named, not `binary`
    with pytest.raises(
        UserError,
        match=r"show background alone\. Ignored.* value 255: 6.2%\.\n.*masks of 0 and 255 are `classes=binary`",
    ) as raised:
        refuse_bad_data(run_of(tmp_path))
    assert "one class in all labels" in str(raised.value)
    assert not ssrseg.check_data(run_of(tmp_path), tmp_path / "out").trainable
    refuse_bad_data(run_of(tmp_path, "classes=binary"))


def test_a_class_beyond_the_labels_that_are_looked_at_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cracks(tmp_path, {1: 2})
    monkeypatch.setattr("ssrseg.data.checks.survey.DECODED", 1)
    lonely = tmp_path / "wall" / "labels" / "00.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(lonely)  # the one that is looked at
    refuse_bad_data(run_of(tmp_path))
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(lonely.with_name("01.png"))
    with pytest.raises(UserError, match="one class in all labels"):
        refuse_bad_data(run_of(tmp_path))


def test_images_that_are_never_drawn_are_counted_before_training(tmp_path: Path) -> None:
    cracks(tmp_path, {1: 5})
    published = run_of(tmp_path, "loader.rare_class.any_image=0", preset="daformer")
    (note,) = [note for note in refuse_bad_data(published) if "will never" in note]
    said = "5 of 10 source images will never be drawn (rare-class sampling, temperature 0.01)."
    assert said in note
    report = ssrseg.check_data(published, tmp_path / "out")
    assert said in [one.text for one in report.problems]
    assert report.facts["drawn"]["crack"] == pytest.approx(1)
    assert 0 < report.facts["drawn"]["background"] < 1e-30
    for word in re.findall(r"`([\w.]+=[\d.]+)`", note):  # the remedy
        assert not [note for note in refuse_bad_data(run_of(tmp_path, word, preset="daformer")) if "will never" in note]


def test_a_folder_of_ones_own_has_every_image_drawn(tmp_path: Path) -> None:
    cracks(tmp_path, {1: 5})
    run = run_of(tmp_path, "train.steps=100", preset="daformer")
    assert not [note for note in refuse_bad_data(run) if "will never" in note or "in vain" in note]
    drawn = {Path(name).stem for batch in train_batches(run) for name in batch.names[: len(batch.source)]}
    assert len(drawn) == IMAGES


def test_published_data_are_sampled_as_published() -> None:
    statistics = ClassStatistics(torch.tensor([[9000, 0], [8000, 1000]]).repeat(1, 10)[:, :19])
    run = resolve(read_preset("daformer"))
    assert run.loader.rare_class is not None
    (sampler,) = rare_class_samplers([statistics], run)
    assert sampler.any_image == 0
    again = RareClassSampler(statistics, RareClassConfig(), run.loader.crop)
    seeds = [(Generator().manual_seed(i), Generator().manual_seed(i)) for i in range(50)]
    assert [sampler(0, one) for one, _ in seeds] == [again(0, other) for _, other in seeds]


def test_chances_are_the_frequencies_of_draws() -> None:
    statistics = ClassStatistics(torch.tensor([[900, 0], [800, 100], [700, 200], [900, 0]]))
    sampler = RareClassSampler(statistics, RareClassConfig(temperature=0.5, any_image=0.4, min_pixels=1), (8, 8))
    assert float(sampler.chances.sum()) == pytest.approx(1)
    generator = Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([sampler(i, generator).file for i in range(20_000)]), minlength=4)
    assert (counts / 20_000 - sampler.chances).abs().max() < 0.015


def test_a_class_of_fewer_pixels_than_asked_for_is_said_with_their_number(tmp_path: Path) -> None:
    cracks(tmp_path, {1: 5})
    run = run_of(tmp_path, "loader.rare_class.min_pixels=3000")
    (note,) = [note for note in refuse_bad_data(run) if "min_pixels" in note]
    assert "no image shows more than 3000 pixels of some classes; the most are crack 512." in note
    assert "min_pixels" not in "".join(refuse_bad_data(run_of(tmp_path, "loader.rare_class.min_pixels=511")))


def test_things_that_no_label_shows_leave_the_feature_distance_nothing(tmp_path: Path) -> None:
    cracks(tmp_path, {1: 10})
    classes = ["background", "crack", "car", "bus"]
    words = "method.feature_distance={classes: [car, bus]}", "method.feature_distance={classes: [car, crack]}"
    (note,) = [note for note in refuse_bad_data(run_of(tmp_path, words[0], classes=classes)) if "no thing" in note]
    assert "car, bus: in none of the labels looked at. The feature distance is always 0" in note
    for word in ("method.feature_distance=null", words[1]):  # the remedies
        assert "no thing" not in "".join(refuse_bad_data(run_of(tmp_path, word, classes=classes)))


def test_a_label_of_one_class_is_not_said_to_be_drawn(tmp_path: Path) -> None:
    cracks(tmp_path, {1: 5})
    (note,) = refuse_bad_data(run_of(tmp_path))
    assert "label of one class (5 files)" in note
    assert "Each of its crops shows that class alone" in note
