"""Folders to batches: pairing, reading, sampling, and draws that depend on nothing but seed and number."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from factories import CLASSES, random_image, random_labels, write_pairs
from ssrseg.config import DataConfig, RareClassConfig, Settings, resolve
from ssrseg.data import (
    SPACES,
    LabelCode,
    find_images,
    find_pairs,
    read_image,
    read_labels,
    refuse_bad_data,
    train_batches,
)
from ssrseg.data.class_statistics import ClassStatistics, class_statistics
from ssrseg.data.label_mapping import code_for, lookup_table, map_ids, resolve_space, space_of
from ssrseg.data.label_spaces import MAPPINGS
from ssrseg.data.loader import RawBatch, eval_samples
from ssrseg.data.samplers import (
    RareClassSampler,
    Shuffled,
    rare_class_probabilities,
    scaled_min_pixels,
)
from ssrseg.data.transforms import is_varied, rescale_size, resize_image, resize_labels, retry
from ssrseg.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
IDENTITY = LabelCode(lookup_table({i: i for i in range(256)}))


def settings_for(root: Path, **loader: object) -> Settings:
    """Four labelled source images, four target images without labels."""
    write_pairs(root / "game")
    write_pairs(root / "camera")
    (root / "camera" / "labels").rename(root / "hidden")
    return resolve(
        {
            "classes": CLASSES,
            "source": {"root": root / "game"},
            "target": {"root": root / "camera", "margins": [4, 6]},
            "loader": {"crop": [32, 48], "workers": 0, **loader},
            "method": {"teacher": {}, "mixed": {}},
            "train": {"steps": 6},
        }
    )


# --- pairing


def test_wildcards_pair_images_with_labels(tmp_path: Path) -> None:
    for name in ("rgb/day/a_img.jpg", "rgb/day/b_img.jpg", "seg/day/a_ids.png", "seg/day/b_ids.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_labels()).save(tmp_path / name)
    data = DataConfig(root=tmp_path, images="rgb/*/*_img.jpg", labels="seg/*/*_ids.png")
    pairs = find_pairs(data)
    assert [(pair.image.name, pair.label.name) for pair in pairs] == [
        ("a_img.jpg", "a_ids.png"),
        ("b_img.jpg", "b_ids.png"),
    ]


def test_an_image_without_label_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "labels" / "02.png").unlink()
    with pytest.raises(UserError, match=r"1 of 4 images .* have no label matching 'labels/\*\*/\*'.*\n.*02\.png"):
        find_pairs(DataConfig(root=tmp_path))


def test_a_target_needs_no_labels(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    assert len(find_images(DataConfig(root=tmp_path))) == 4


def test_one_stem_twice_is_an_error(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    Image.fromarray(random_image()).save(tmp_path / "images" / "00.jpg")
    with pytest.raises(UserError, match="only the ending differs"):
        find_images(DataConfig(root=tmp_path))


def test_no_image_at_all_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No image matches 'images/\*\*/\*'"):
        find_images(DataConfig(root=tmp_path))
    with pytest.raises(UserError, match="There is no folder"):
        find_images(DataConfig(root=tmp_path / "nowhere"))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    os.symlink(tmp_path, tmp_path / "images" / "again")
    assert len(find_images(DataConfig(root=tmp_path))) == 4


def test_stems_select(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "some.txt").write_text("01\n03\n")
    data = DataConfig(root=tmp_path, stems=tmp_path / "some.txt")
    assert [pair.image.stem for pair in find_pairs(data)] == ["01", "03"]
    (tmp_path / "some.txt").write_text("01\n77\n")
    with pytest.raises(UserError, match="for example '77'"):
        find_pairs(data)


def test_names_beyond_ascii(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "Straße 通り")
    (pair, *_) = find_pairs(DataConfig(root=root))
    assert read_image(pair.image).shape == (3, 64, 64)


@needs_shared
@pytest.mark.parametrize(
    ("spec", "folder", "count"),
    [
        ("gta5", "format-samples/gta5", 3),
        ("cityscapes", "format-samples/cityscapes-layout", 1),
        ("cityscapes-trainids", "format-samples/cityscapes-layout", 1),
        ("synthia", "format-samples/synthia-layout", 1),
        ("carlascapes", "format-samples/carlascapes", 1),
        ("camvid", "camvid", 367),
    ],
)
def test_published_layouts(spec: str, folder: str, count: int) -> None:
    settings = resolve({"source": {"root": SHARED / folder, "spec": spec}})
    assert len(find_pairs(settings.source)) == count
    sample = eval_samples(settings.source, settings.classes)[0]
    present = set(sample.labels.unique().tolist())
    assert sample.image.shape[1:] == sample.labels.shape
    assert present <= {*range(resolve_space(settings.classes, settings.source).num_classes), 255}
    assert len(present) > 5


@needs_shared
def test_one_street_in_three_layouts_has_one_label_map() -> None:
    def labels_of(spec: str, folder: str) -> torch.Tensor:
        settings = resolve({"source": {"root": SHARED / "format-samples" / folder, "spec": spec}})
        return eval_samples(settings.source, settings.classes)[0].labels

    ids = labels_of("cityscapes", "cityscapes-layout")
    assert torch.equal(ids, labels_of("cityscapes-trainids", "cityscapes-layout"))
    assert torch.equal(ids, labels_of("carlascapes", "carlascapes"))


# --- reading


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode: str, tmp_path: Path) -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (32, 1))
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 64)
    if mode != "1":
        assert (image.int() - torch.from_numpy(grey).int()).abs().max() <= 6


def test_rotation_from_a_camera_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(random_image(32, 48)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 48, 32)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\nnot really"])
def test_what_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png"):
        read_image(path)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(random_image()).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.png cannot be read"):
        read_image(path)


def test_palette_labels_count_by_index(tmp_path: Path) -> None:
    image = Image.fromarray(random_labels())
    image.putpalette([7, 7, 7] * 256)
    image.save(tmp_path / "palette.png")
    assert torch.equal(read_labels(tmp_path / "palette.png", IDENTITY), torch.from_numpy(random_labels()))


def test_coloured_labels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(random_image()).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match=r"colour\.png is coloured.*`color`"):
        read_labels(tmp_path / "colour.png", IDENTITY)


# --- labels


def test_folding_cityscapes_into_camvid_covers_every_class() -> None:
    fold = MAPPINGS["cityscapes19", "camvid11"]
    names = SPACES["cityscapes19"].names
    assert {names[i] for i in range(19)} - {names[i] for i in fold} == {"wall"}
    assert set(fold.values()) == set(range(11))


def test_own_raw_values() -> None:
    settings = resolve(
        {"classes": [{"name": "road", "ids": [7, 8]}, {"name": "car", "ids": [26]}], "source": {"root": "x"}}
    )
    table = code_for(settings.source, settings.classes).table
    assert map_ids(torch.tensor([7, 8, 26, 3], dtype=torch.uint8), table).tolist() == [0, 0, 1, 255]


def test_a_raw_value_claimed_twice_is_an_error() -> None:
    settings = resolve(
        {"classes": [{"name": "road", "ids": [7]}, {"name": "car", "ids": [7]}], "source": {"root": "x"}}
    )
    with pytest.raises(UserError, match="7 is claimed by 'road' and 'car'"):
        code_for(settings.source, settings.classes)


def test_an_unknown_class_names_its_neighbour() -> None:
    with pytest.raises(UserError, match="Did you mean 'sidewalk'"):
        space_of("cityscapes19")[0].index("sidewalks")


# --- transforms


def test_resize_keeps_the_aspect_ratio() -> None:
    assert rescale_size(1914, 1052, (1280, 720)) == (1280, 704)
    assert rescale_size(1052, 1914, (1280, 720)) == (704, 1280)


def test_label_resize_takes_existing_values_only() -> None:
    labels = torch.from_numpy(random_labels(50, 70))
    small = resize_labels(labels, (33, 21))
    assert small.shape == (21, 33)
    assert set(small.unique().tolist()) <= set(labels.unique().tolist())
    assert resize_image(torch.from_numpy(random_image(50, 70)).permute(2, 0, 1), (33, 21)).shape == (3, 21, 33)


def test_a_crop_of_exactly_three_quarters_is_refused() -> None:
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    labels[0] = 1
    assert not is_varied(labels, 0.75)
    labels[1, 0] = 1
    assert is_varied(labels, 0.75)
    labels[labels == 1] = 255
    assert not is_varied(labels, 0.99)  # one class alone


def test_the_eleventh_crop_is_taken_unseen() -> None:
    drawn: list[int] = []

    def draw() -> tuple[slice, slice]:
        drawn.append(len(drawn))
        return slice(len(drawn)), slice(0)

    assert retry(draw, lambda box: False)[0].stop == 11


# --- sampling


def test_rare_classes_are_drawn_as_the_formula_says() -> None:
    pixels = torch.tensor([[9000, 400, 0, 50], [8000, 0, 0, 60], [7000, 500, 0, 0]])
    sampler = RareClassSampler(ClassStatistics(pixels), RareClassConfig(temperature=0.5, min_pixels=100), (64, 64))
    totals = pixels.sum(0)
    chance = ((1 - totals[[3, 1, 0]] / totals.sum()) / 0.5).softmax(0)
    torch.testing.assert_close(sampler.probabilities, chance)
    generator = Generator().manual_seed(0)
    drawn = torch.tensor([sampler(i, generator).rare for i in range(20_000)])
    shares = torch.stack([(drawn == c).float().mean() for c in (3, 1, 0)])
    assert (shares - chance).abs().max() < 0.02


def test_a_class_that_never_occurs_is_left_out_and_a_scarce_one_is_not() -> None:
    pixels = torch.tensor([[9000, 400, 0, 50], [8000, 0, 0, 60]])
    sampler = RareClassSampler(ClassStatistics(pixels), RareClassConfig(min_pixels=100), (64, 64))
    assert sampler.classes.tolist() == [3, 1, 0]
    assert sampler.files_of(3) == [0, 1]  # no file has more than 100 pixels: all that show it
    assert sampler.files_of(1) == [0]


def test_probabilities_follow_ascending_pixel_counts() -> None:
    classes, chance = rare_class_probabilities(torch.tensor([5, 0, 90, 5_000]), 0.01)
    assert classes.tolist() == [0, 2, 3]
    assert chance[0] > chance[1] > chance[2]


def test_min_pixels_scale_with_the_crop() -> None:
    assert scaled_min_pixels((512, 512)) == 3000
    assert scaled_min_pixels((256, 256)) == 750


def test_statistics_are_counted_once_and_again_when_a_label_changes(tmp_path: Path) -> None:
    root, cache = write_pairs(tmp_path / "data"), tmp_path / "statistics.json"
    pairs = find_pairs(DataConfig(root=root))
    first = class_statistics(pairs, IDENTITY, 4, cache=cache)
    expected = [np.bincount(random_labels(seed=i).ravel(), minlength=256)[:4].tolist() for i in range(4)]
    assert first.pixels.tolist() == expected
    written = cache.read_text()
    assert class_statistics(pairs, IDENTITY, 4, cache=cache).pixels.tolist() == expected
    assert cache.read_text() == written
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(pairs[0].label)
    assert class_statistics(pairs, IDENTITY, 4, cache=cache).pixels[0].tolist() == [64 * 64, 0, 0, 0]


def test_no_image_twice_in_an_epoch() -> None:
    draw = Shuffled(7, seed=3, stream=0)
    numbers = [draw(i, Generator()).file for i in range(14)]
    assert sorted(numbers[:7]) == sorted(numbers[7:]) == list(range(7))
    assert numbers[:7] != numbers[7:]


# --- batches


def same(one: RawBatch, other: RawBatch) -> bool:
    """Bitwise equality."""
    parts = ("source", "labels", "target", "valid")
    return one.names == other.names and all(torch.equal(getattr(one, p), getattr(other, p)) for p in parts)


def test_batches_are_bytes_of_the_crop_with_margins(tmp_path: Path) -> None:
    (raw, *_) = train_batches(settings_for(tmp_path))
    assert raw.source.shape == raw.target.shape == (2, 3, 32, 48)
    assert raw.labels.shape == raw.valid.shape == (2, 32, 48)
    assert raw.source.dtype == raw.labels.dtype == torch.uint8
    rows = raw.valid.all(dim=2)
    assert not rows[:, :4].any()
    assert rows[:, 4:26].all()
    assert not rows[:, 26:].any()


def test_a_resumed_stream_draws_on_where_it_stopped_with_any_number_of_workers(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rare_class={})
    whole = list(train_batches(settings))
    workers = settings.model_copy(update={"loader": settings.loader.model_copy(update={"workers": 2})})
    rest = list(train_batches(workers, start=3))
    assert len(whole) == 6
    assert len(rest) == 3
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_every_process_draws_other_images(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, batch=1)
    streams = [[raw.names for raw in train_batches(settings, rank=rank, world=2)] for rank in (0, 1)]
    first_epoch = [name for step in range(2) for stream in streams for name in stream[step]]
    assert len(set(first_epoch)) == 8


def test_a_small_image_is_padded_with_ignored_pixels(tmp_path: Path) -> None:
    (raw, *_) = train_batches(settings_for(tmp_path, crop=[80, 72], max_class_share=1))
    assert (raw.labels[:, 64:] == 255).all()
    assert not raw.valid[:, 64:].any()


# --- checks


def test_good_data_pass(tmp_path: Path) -> None:
    assert refuse_bad_data(settings_for(tmp_path)) == []


def test_a_value_beyond_the_classes_is_named(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "game" / "labels" / "01.png")
    with pytest.raises(UserError, match=r"01\.png holds the value 9, but there are 4 classes"):
        refuse_bad_data(settings)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    Image.fromarray(random_labels(64, 32)).save(tmp_path / "game" / "labels" / "01.png")
    with pytest.raises(UserError, match=r"differ in size: 64x64 and 32x64"):
        refuse_bad_data(settings)


def test_the_source_as_target_is_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    same_folder = settings.model_copy(update={"target": DataConfig(root=tmp_path / "game")})
    with pytest.raises(UserError, match="images are all in the source"):
        refuse_bad_data(same_folder)


def test_small_images_and_absent_classes_are_said(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, crop=[128, 128])
    for label in (tmp_path / "game" / "labels").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(label)
    notes = refuse_bad_data(settings)
    assert any("no pixel of wall, tree, car" in note for note in notes)
    assert any("source: smaller than the crop (4 files)" in note for note in notes)


def test_classes_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Which classes are there"):
        resolve_space(None, resolve({"source": {"root": tmp_path}}).source)
