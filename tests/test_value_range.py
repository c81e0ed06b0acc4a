"""Images of more than 8 bits: which values become black and white, in training and in a saved model alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from factories import random_image, write_pairs
from ssrseg.config import assignments, merge, resolve
from ssrseg.data import read_image, refuse_bad_data, train_batches
from ssrseg.data.images import Reading
from ssrseg.errors import UserError
from ssrseg.inference import Predictor
from ssrseg.runs.folder import RunFolder
from ssrseg.training import train

RANGE: Reading = (3, (0, 3000), None)
RGB = random_image(48, 64)
DEEP = ((RGB.astype(np.int64) * 3000 + 127) // 255).astype(np.uint16)
GREY = DEEP[..., 0]


def written(folder: Path, name: str, pixels: Any) -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack" if pixels.ndim == 2 else "rgb")
    return path


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.tif", DEEP),
        ("a.tif", DEEP.astype(np.float32)),
        ("a.npy", DEEP),
        ("a.tif", GREY),
        ("a.png", GREY),
    ],
)
def test_a_range_of_values_is_spread_over_the_bytes(name: str, pixels: Any, tmp_path: Path) -> None:
    image = read_image(written(tmp_path, name, pixels), RANGE).permute(1, 2, 0).numpy().astype(int)
    assert image.shape == (48, 64, 3)
    assert np.abs(image - (RGB if pixels.ndim == 3 else RGB[..., :1])).max() <= 1


def test_images_of_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.npy"):
        assert np.array_equal(read_image(written(tmp_path, name, RGB), RANGE).permute(1, 2, 0), RGB)


def test_percentiles_are_of_each_image(tmp_path: Path) -> None:
    pixels = np.linspace(500, 1500, 48 * 64).reshape(48, 64).astype(np.uint16)
    image = read_image(written(tmp_path, "a.tif", pixels), (3, None, (10, 90)))[0].float()
    assert (image == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert (image == 255).float().mean() == pytest.approx(0.1, abs=0.01)
    floats = np.where(np.arange(64) < 3, np.nan, pixels / 1e6)
    assert torch.equal(
        read_image(written(tmp_path, "b.tif", floats.astype(np.float32)), (3, None, (0, 100)))[:, 0, :3],
        torch.zeros(3, 3),
    )


def test_floats_without_a_range_say_which_would_do(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tif", DEEP[..., 0].astype(np.float32))
    with pytest.raises(UserError, match=r"'model\.value_range=\["):
        read_image(path)
    with pytest.raises(UserError, match=r"has 8 bands, expected 3: .*in_channels=8.*`gdal_translate -b 1"):
        read_image(written(tmp_path, "b.npy", np.zeros((9, 9, 8), np.uint16)))


@pytest.mark.parametrize("words", [{"value_range": [5, 5]}, {"value_range": [0, 9], "percentiles": [1, 99]}])
def test_ranges_that_are_none_are_refused(words: Any) -> None:
    with pytest.raises(UserError, match="value_range"):
        resolve({"source": {"root": "x"}, "target": {"root": "y"}, "classes": ["a", "b"], "model": words})


def test_the_range_that_the_warning_names_is_kept_by_the_model(tmp_path: Path) -> None:
    for name in ("game", "camera"):
        write_pairs(tmp_path / name, 2)
        for path in (tmp_path / name / "images").iterdir():
            written(path.parent, f"{path.stem}.tif", np.array(Image.open(path)).astype(np.uint16) * 8)
            path.unlink()
    tree = {
        "classes": ["road", "wall", "tree", "car"],
        "source": {"root": str(tmp_path / "game")},
        "target": {"root": str(tmp_path / "camera")},
        "loader": {"crop": [32, 32], "workers": 0},
        "method": {"teacher": {}, "mixed": {}},
        "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"},
        "train": {"steps": 1, "accelerator": "cpu"},
    }
    said = [note for note in refuse_bad_data(resolve(tree)) if "dark 16 bits" in note]
    assert len(said) == 2
    word = said[0].partition("'model.value_range=")[2].partition("'")[0]
    tree["model"]["value_range"] = json.loads(word)
    settings = resolve(tree)
    assert not any("dark 16 bits" in note for note in refuse_bad_data(settings))
    batch = next(train_batches(settings))
    assert batch.source.max() > 200
    run = train(settings, tmp_path / "run")
    image = tmp_path / "camera" / "images" / "00.tif"
    model = Predictor(RunFolder(run.folder).student_last, "cpu")
    assert model.reading == (3, tuple(json.loads(word)), None)
    bright = (read_image(image, model.reading)).permute(1, 2, 0)
    assert torch.equal(model(image), model(bright))


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.npy", random_image() / 255),
        ("a.tif", np.where(random_image()[..., 0] < 20, np.nan, random_image()[..., 0]).astype(np.float32)),
        ("a.tif", (random_image()[..., 0].astype(np.int16) - 128).astype(np.int8)),
        ("a.npy", random_image().astype(np.int64) * 10000),
    ],
    ids=["0 to 1", "NaN", "signed bytes", "large"],
)
def test_the_range_that_an_error_names_reads_the_image(name: str, pixels: Any, tmp_path: Path) -> None:
    if name == "a.npy":
        np.save(tmp_path / name, pixels)
    else:
        tifffile.imwrite(tmp_path / name, pixels)
    with pytest.raises(UserError, match=r"model\.value_range") as raised:
        read_image(tmp_path / name)
    word = re.findall(r"'(model\.value_range=[^']+)'", str(raised.value))[0]
    settings = resolve(merge({"classes": "binary", "source": {"root": "a"}}, assignments([word])))
    image = read_image(tmp_path / name, settings.model.reading)
    assert image.shape == (3, 64, 64)
    assert image.float().std() > 50
    assert 0 <= image.min() < image.max() <= 255


def test_a_deep_image_band_by_band_is_that_of_pixel_by_pixel(tmp_path: Path) -> None:
    deep = random_image().astype(np.uint16) * 257
    how: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(deep, -1, 0), **how)
    assert np.array_equal(read_image(tmp_path / "a.tif").permute(1, 2, 0).numpy(), random_image())


def test_a_deep_image_lies_as_it_is_shown_with_a_range_too(tmp_path: Path) -> None:
    deep = random_image(48, 64).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    plain, ranged = (read_image(tmp_path / "a.tif", reading) for reading in (3, (3, (0.0, 65535.0), None)))
    assert plain.shape == ranged.shape == (3, 64, 48)
    assert np.array_equal(plain.permute(1, 2, 0).numpy(), np.rot90(random_image(48, 64), -1))
    assert (plain.int() - ranged.int()).abs().max() <= 1


def test_an_array_of_one_band_is_grey(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", random_image()[..., 0])
    assert np.array_equal(read_image(tmp_path / "a.npy")[2].numpy(), random_image()[..., 0])
