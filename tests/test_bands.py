"""Images of other bands than RGB, from the files to the deployed model."""

from __future__ import annotations

import re
import shlex
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import ssrseg
from factories import CLASSES, random_image, random_labels, small_segmenter, tiny_frozen, tiny_segmenter
from ssrseg.adapt.augment import ADJUSTMENTS
from ssrseg.config import DataConfig, Settings, assignments, merge, resolve
from ssrseg.data import read_image, refuse_bad_data, resolve_space
from ssrseg.data.cache import ScaledFiles
from ssrseg.data.images import as_rgb
from ssrseg.data.pack import pack
from ssrseg.errors import UserError
from ssrseg.inference import graph_signature
from ssrseg.models import Segmenter, load_segmenter, save_segmenter
from ssrseg.models.segmenter import take_bands
from ssrseg.training.setup import Extensions, build_student


def bands_of(count: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.concatenate([random_image(seed=seed + 10 * i) for i in range(-(-count // 3))], axis=2)[..., :count]


def write(path: Path, pixels: npt.NDArray[Any]) -> None:
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        write_tiff(path, pixels)
    else:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


def write_tiff(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """As GDAL writes more bands than three: grey, with samples beside it. Needs four bands or more."""
    height, width, count = pixels.shape
    end = 8 + pixels.size
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, count, end), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, pixels.size), (284, 3, 1, 1)]
    tags += [(338, 3, count - 1, end + 2 * count)]
    numbers = [8] * count + [0] * (count - 1)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    begin = struct.pack("<2sHI", b"II", 42, end + 2 * len(numbers))
    path.write_bytes(begin + pixels.tobytes() + struct.pack(f"<{len(numbers)}H", *numbers) + directory)


def write_domain(root: Path, count: int, suffix: str, *, images: int = 3) -> None:
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(images):
        write(root / "images" / f"{i}{suffix}", bands_of(count, i))
        Image.fromarray(random_labels(seed=i)).save(root / "labels" / f"{i}.png")


def run_of(root: Path, *words: str) -> Settings:
    tree = {
        "classes": CLASSES,
        **{group: {"root": root / group} for group in ("source", "target", "val")},
        "loader": {"crop": [64, 64], "workers": 0, "batch": 1},
        "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"},
        "method": {"teacher": {}, "mixed": {}, "masked": {}, "feature_distance": {}, "regularizer": {}},
        "train": {"steps": 2, "accelerator": "cpu", "log_every": 1, "pictures_every": 1},
        "selection": {"images": 1},
    }
    return resolve(merge(tree, assignments(words)))


def test_a_fourth_band_that_is_not_used_is_said_with_the_setting_that_uses_it(tmp_path: Path) -> None:
    for group in ("source", "target", "val"):
        write_domain(tmp_path / group, 4, ".png")
    notes = refuse_bad_data(run_of(tmp_path))
    assert "source: band that is not used (3 files), for example" in notes[0]
    assert "0.png has 4 bands: the fourth is not used, but by model.in_channels=4. Whether it is" in notes[0]
    (word,) = set(re.findall(r"model\.\w+=\d", "".join(notes)))
    assert "not used" not in "".join(refuse_bad_data(run_of(tmp_path, word)))


@pytest.mark.parametrize(("count", "suffix"), [(1, ".png"), (2, ".npy"), (4, ".png"), (5, ".tif"), (6, ".npy")])
def test_bands_are_read_as_they_are_stored(count: int, suffix: str, tmp_path: Path) -> None:
    pixels = bands_of(count, 0)
    write(tmp_path / f"a{suffix}", pixels)
    assert torch.equal(read_image(tmp_path / f"a{suffix}", count), torch.from_numpy(pixels).permute(2, 0, 1))
    if (count, suffix) not in ((1, ".png"), (4, ".png")):  # which RGB can be made of
        with pytest.raises(
            UserError,
            match=rf"a\{suffix} has {count} bands, expected 3: convert it, or train with model.in_channels={count},",
        ):
            read_image(tmp_path / f"a{suffix}")


def test_bands_by_plane_and_of_16_bits(tmp_path: Path) -> None:
    pixels = bands_of(5, 0)
    np.save(tmp_path / "a.npy", (pixels.astype(np.uint16) << 8 | 7).transpose(2, 0, 1))
    assert torch.equal(read_image(tmp_path / "a.npy", 5), torch.from_numpy(pixels).permute(2, 0, 1))
    np.save(tmp_path / "b.npy", pixels.astype(np.float32))
    with pytest.raises(UserError, match=r"b\.npy holds float32 \(64, 64, 5\), expected uint8 or uint16"):
        read_image(tmp_path / "b.npy", 5)
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"c\.npy cannot be read as an image"):
        read_image(tmp_path / "c.npy", 5)


def test_source_and_target_of_different_bands_are_refused(tmp_path: Path) -> None:
    for group, count in (("source", 4), ("target", 5), ("val", 4)):
        write_domain(tmp_path / group, count, ".npy")
    with pytest.raises(UserError, match=r"(?s)target: image cannot be read.*has 5 bands, expected 4"):
        refuse_bad_data(run_of(tmp_path, "model.in_channels=4"))


@pytest.mark.parametrize(("count", "suffix"), [(1, ".png"), (4, ".png"), (5, ".tif")])
def test_a_run_from_files_to_onnx(count: int, suffix: str, tmp_path: Path) -> None:
    for group in ("source", "target", "val"):
        write_domain(tmp_path / group, count, suffix)
    mean, std = [0.1 * (i + 1) for i in range(count)], [0.2] * count
    run = run_of(tmp_path, f"model.in_channels={count}", f"model.mean={mean}", f"model.std={std}")
    if count == 5:
        facts = ssrseg.check_data(run, tmp_path / "check").facts["domains"]["source"]["colour"]
        assert len(facts["mean"]) == len(facts["std"]) == count
    extensions = Extensions(foundation=tiny_frozen())
    done = ssrseg.train(run, tmp_path / "run", extensions=extensions)
    model = load_segmenter(tmp_path / "run" / "student-last.safetensors")
    assert model.in_channels == count
    assert model.mean.flatten().tolist() == pytest.approx(mean)
    image = torch.from_numpy(bands_of(count, 0)).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(model(image), done.student(image))
    again = run_of(
        tmp_path, f"model.in_channels={count}", f"model.start={tmp_path / 'run' / 'student-last.safetensors'}"
    )
    started = build_student(again, resolve_space(again.classes, again.source))[0]
    assert started.description == model.description  # with its mean and std
    assert torch.equal(started.mean, model.mean)
    scores = ssrseg.evaluate(tmp_path / "run" / "student-last.safetensors", tmp_path / "val")
    assert scores.miou is not None
    assert len(ssrseg.predict(model, tmp_path / "target" / "images", tmp_path / "out")) == 3


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_the_backbone_alone_of_a_model_brings_its_bands(count: int, name: str, tmp_path: Path) -> None:
    model = small_segmenter()
    mean, std = tuple(0.1 * (i + 1) for i in range(count)), (0.3,) * count
    take_bands(model, count, mean, std)
    assert model.description is not None
    model.description = replace(model.description, in_channels=count, mean=mean, std=std)
    model.save_pretrained(tmp_path / "folder")
    save_segmenter(model, tmp_path / "model.safetensors")
    network = [f"model.in_channels={count}", f"model.backbone={model.description.backbone}", "model.head=deeplabv2"]
    start = f"model.start={tmp_path / name}"
    with pytest.raises(UserError, match="is another network") as refused:
        student_of(tmp_path, *network, start)
    (way,) = re.findall(r"^  (model\.start=null .*): its backbone alone", str(refused.value), re.M)
    student = student_of(tmp_path, *network, *shlex.split(way))
    assert student.description is not None
    assert student.description.mean == pytest.approx(mean)
    assert student.mean.flatten().tolist() == pytest.approx(mean)
    for one, other in zip(student.backbone.parameters(), model.backbone.parameters(), strict=True):
        assert torch.equal(one, other)
    if count == 4:
        with pytest.raises(UserError, match=r"for images of 4 bands, not 3: set model\.in_channels=4\."):
            student_of(tmp_path, *network, *shlex.split(way), "model.in_channels=3")


def student_of(root: Path, *words: str) -> Segmenter:
    run = run_of(root, *words)
    return build_student(run, resolve_space(run.classes, run.source))[0]


def test_a_folder_of_other_files_is_never_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_domain(tmp_path / "owner" / "name", 3, ".png", images=1)
    with pytest.raises(UserError, match=r"found the folder owner/name without a \*\.safetensors file"):
        student_of(tmp_path, "model.pretrained=owner/name")


@pytest.mark.parametrize(("count", "suffix"), [(1, ".png"), (2, ".npy"), (4, ".png"), (4, ".tif"), (5, ".tif")])
def test_a_pack_keeps_the_bands(count: int, suffix: str, tmp_path: Path) -> None:
    write_domain(tmp_path / "game", count, suffix, images=1)
    name = Path("images") / f"0{suffix}"
    expected = read_image(tmp_path / "game" / name, count)
    pack(DataConfig(root=tmp_path / "game"), tmp_path / "whole.zip")
    assert torch.equal(read_image(tmp_path / "whole.zip" / name, count), expected)
    small = DataConfig(root=tmp_path / "game", resize=(32, 32))
    if suffix == ".png":
        pack(small, tmp_path / "small.zip")
        resized = ScaledFiles((32, 32), bands=count).image(tmp_path / "game" / name).whole()
        assert torch.equal(read_image(tmp_path / "small.zip" / name, count), resized)
        assert torch.equal(read_image(tmp_path / "small.zip" / name), as_rgb(resized[:3]))
    else:
        with pytest.raises(UserError, match=rf"0\{suffix} \({count} bands\) cannot become a PNG.*: pack without"):
            pack(small, tmp_path / "small.zip")


def test_the_graph_of_an_export_takes_the_bands() -> None:
    model = tiny_segmenter()
    take_bands(model, 4)
    shapes = graph_signature(model).parameters
    assert shapes["backbone.pyramid.levels.0.0.weight"][1] == 4


def test_the_cache_keeps_all_bands(tmp_path: Path) -> None:
    for group in ("source", "target"):
        write_domain(tmp_path / group, 4, ".png")
    plain, cached = (
        run_of(tmp_path, "val=null", "model.in_channels=4", *words)
        for words in ([], [f"loader.cache={tmp_path / 'cache'}"])
    )
    for _ in range(2):
        for one, other in zip(ssrseg.data.train_batches(plain), ssrseg.data.train_batches(cached), strict=True):
            assert one.source.shape[1] == one.target.shape[1] == 4
            assert torch.equal(one.source, other.source)
            assert torch.equal(one.labels, other.labels)


def test_weights_of_rgb_are_repeated_and_scaled(tmp_path: Path) -> None:
    one, other = small_segmenter().eval(), small_segmenter().eval()
    take_bands(other, 6)
    assert other.backbone.mean == one.backbone.mean * 2
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(other(images.repeat(1, 2, 1, 1)), one(images), rtol=1e-3, atol=1e-3)
    grey = small_segmenter()
    take_bands(grey, 1)
    assert grey.backbone.mean == pytest.approx([sum(one.backbone.mean) / 3])


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_colours_are_those_of_the_first_three_bands(count: int) -> None:
    images = torch.rand(1, count, 8, 8)
    for adjust in ADJUSTMENTS[2:]:
        changed = adjust(images, 0.7)
        rgb = adjust(images[:, :3], 0.7) if count > 3 else images
        assert torch.equal(changed, torch.cat([rgb, images[:, 3:]], 1) if count > 3 else images)
    assert as_rgb(images).shape == (1, 3, 8, 8)


def test_numbers_that_are_not_one_per_band_are_refused() -> None:
    with pytest.raises(UserError, match=r"model: mean has 3 numbers: give one for each of 4 bands"):
        resolve({"source": {"root": "x"}, "model": {"in_channels": 4, "mean": [0.5, 0.5, 0.5]}})
    with pytest.raises(UserError, match=r"loader\.jitter is for RGB"):
        resolve({"source": {"root": "x"}, "model": {"in_channels": 4}, "loader": {"jitter": {}}})
