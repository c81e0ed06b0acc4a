"""Folders to pixels and class ids: the plain cases of pairing and reading."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factories import random_image, random_labels, write_pairs
from ssrseg.config import DataConfig, resolve
from ssrseg.data import (
    LabelCode,
    eval_samples,
    find_images,
    find_pairs,
    read_image,
    read_labels,
    resolve_space,
)
from ssrseg.data.label_mapping import lookup_table
from ssrseg.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
IDENTITY = LabelCode(lookup_table({i: i for i in range(256)}))


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
    (tmp_path / "images" / "02.png").rename(tmp_path / "images" / "A.png")
    Image.fromarray(random_image()[..., 0]).save(tmp_path / "labels" / "a.png")
    with pytest.raises(UserError, match=r"A\.png: .*labels/a\.png differs in capital letters alone") as raised:
        find_pairs(DataConfig(root=tmp_path))
    image, label = re.findall(r"(\S+): (\S+) differs", str(raised.value))[0]
    Path(label).rename(Path(label).with_name(Path(image).name))
    assert len(find_pairs(DataConfig(root=tmp_path))) == 4


def test_a_target_needs_no_labels(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    assert len(find_images(DataConfig(root=tmp_path))) == 4


def test_one_stem_twice_is_an_error(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    Image.fromarray(random_image()).save(tmp_path / "images" / "00.jpg")
    with pytest.raises(UserError, match=r"only the ending differs\. Remove one\."):
        find_images(DataConfig(root=tmp_path))
    (tmp_path / "images" / "00.jpg").unlink()
    assert len(find_images(DataConfig(root=tmp_path))) == 4


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
