"""Pictures that are too large, too small, cut off or of another kind: labelled, or named and gone on from."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from factories import CLASSES, random_image, small_segmenter, tiny_segmenter, write_pairs
from ssrseg.cli import app
from ssrseg.config import InferenceConfig, assignments, merge, resolve
from ssrseg.data import refuse_bad_data
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, evaluate, predict, rasters
from ssrseg.inference.rasters import Raster
from ssrseg.inference.sliding_window import build_inference, whole, within_memory
from ssrseg.models.segmenter import Segmenter, save_segmenter

SLIDE = InferenceConfig(mode="slide", window=(64, 64), stride=(40, 40))


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return small_segmenter().eval()


@pytest.fixture(scope="module")
def file(model: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_segmenter(model, path)
    return path


def ssrseg(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.array(image.convert("RGB") if path.suffix == ".jpg" else image)


# --- large ones


@pytest.mark.parametrize(
    "how",
    [
        {"tile": (32, 48), "compression": "deflate"},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"tile": (32, 32), "planarconfig": "separate"},
        {"tile": (64, 64), "compression": "jpeg"},
    ],
)
def test_parts_of_a_tiff_are_those_of_the_whole(how: dict[str, Any], tmp_path: Path) -> None:
    image = random_image(150, 170)
    stored = image.transpose(2, 0, 1) if "planarconfig" in how else image
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **how)
    expected = tifffile.imread(tmp_path / "a.tif")
    expected = expected.transpose(1, 2, 0) if "planarconfig" in how else expected
    with Raster(tmp_path / "a.tif", 3) as raster:
        assert raster.size == (150, 170)
        for rows, columns in (
            (slice(0, 150), slice(0, 170)),
            (slice(20, 77), slice(33, 170)),
            (slice(149, 150), slice(0, 1)),
        ):
            assert np.array_equal(raster.read(rows, columns).permute(1, 2, 0), expected[rows, columns])


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("columns", [1, 100])
def test_a_picture_by_bands_is_labelled_as_the_whole(
    name: str, columns: int, model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = random_image(150, 170)
    Image.fromarray(image).save(tmp_path / name)
    expected = Predictor(model, "cpu", mode=SLIDE)(image).numpy()
    monkeypatch.setattr(rasters, "LARGE", 1)
    monkeypatch.setattr(rasters, "LOGITS", 4 * 64 * 4 * columns)
    monkeypatch.setattr(rasters, "OVERVIEW", 100)
    done = predict(model, tmp_path / name, tmp_path / "out", inference=SLIDE, device="cpu")
    assert len(done) == 1
    assert np.array_equal(pixels(tmp_path / "out" / "a_ids.png"), expected)
    with Image.open(tmp_path / "out" / "a_color.png") as picture:
        shown = np.array(picture.convert("RGB"))
    assert np.array_equal(shown, Predictor(model, "cpu").colors[expected])
    overlay = pixels(tmp_path / "out" / "a_overlay.jpg").astype(int)
    assert np.abs(overlay - (image[::2, ::2].astype(int) + shown[::2, ::2]) // 2).mean() < 20


@pytest.mark.parametrize("bound", [(90, 70), (400, 300)])
def test_a_picture_by_bands_is_labelled_as_the_whole_when_the_network_sees_it_resized(
    bound: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = random_image(150, 170)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(32, 32))
    described = small_segmenter(resize=bound).eval()
    expected = Predictor(described, "cpu")(image).numpy()
    monkeypatch.setattr(rasters, "LARGE", 1)
    monkeypatch.setattr(rasters, "ROWS", 16)
    monkeypatch.setattr(rasters, "LOGITS", 4 * 4 * 170 * 11)
    predict(
        described,
        tmp_path / "a.tif",
        tmp_path / "out",
        values=",".join(f"{name}={10 * i}" for i, name in enumerate(CLASSES)),
        device="cpu",
    )
    found = pixels(tmp_path / "out" / "a_ids.png")
    assert np.mean(found == 10 * expected) > 0.99  # OpenCV rounds to 1/2048


def test_the_limit_of_pixels_is_a_setting_that_the_error_names(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(random_image(64, 64)).save(tmp_path / "a.png")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # as the command does
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    words = ["predict", str(file), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(UserError, match=r"4096 pixels exceed the limit of 2000.*inference\.max_pixels=4096"):
        ssrseg(*words)
    assert ssrseg(*words, "inference.max_pixels=4096").exit_code == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    tree = {"classes": list(CLASSES), "source": {"root": str(write_pairs(tmp_path / "game"))}, "method": {}}
    with pytest.raises(UserError, match=r"loader\.max_pixels") as refused:
        refuse_bad_data(resolve(tree))
    word = re.findall(r"loader\.max_pixels=\d+", str(refused.value))[0]
    refuse_bad_data(resolve(merge(tree, assignments([word]))))


# --- small ones, and ones that do not fit


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("size", [(20, 20), (1, 1), (5, 90)])
def test_a_picture_smaller_than_the_network_takes_is_labelled(
    mode: str, size: tuple[int, int], model: Segmenter
) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    found = Predictor(model, "cpu", mode=mode)(image)
    assert found.shape == size
    large = Predictor(model, "cpu")(np.full((max(32, size[0]), max(32, size[1]), 3), 90, np.uint8))
    assert torch.equal(found, large[: size[0], : size[1]])


def test_small_pictures_are_scored(file: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 1, height=20, width=20)
    assert int(evaluate(file, tmp_path / "data", device="cpu").confusion.sum()) > 300


class Narrow(torch.nn.Module):
    """A network for which images above 64 pixels do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_segmenter().eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if max(images.shape[-2:]) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return self.network(images)


def test_evaluations_of_a_training_go_on_in_windows(model: Segmenter) -> None:
    said: list[str] = []
    infer = within_memory(whole, (64, 64), said.append)
    with torch.no_grad():
        for _ in range(2):
            assert infer(Narrow(), torch.rand(1, 3, 100, 80), None).shape == (1, 4, 100, 80)
    assert len(said) == 1
    assert "An image of 100x80 does not fit into the memory whole" in said[0]
    words = shlex.split(said[0].partition("(")[2].partition(" does so with all)")[0])
    slides = build_inference(InferenceConfig(**assignments(words)["inference"]))
    with torch.no_grad():
        assert slides(Narrow(), torch.rand(1, 3, 100, 80), None).shape == (1, 4, 100, 80)


def test_a_picture_that_does_not_fit_is_named_and_the_others_are_labelled(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, side in (("a", 64), ("b", 96), ("c", 64)):
        Image.fromarray(random_image(side, side)).save(photos / f"{name}.png")
    call = Predictor.__call__

    def narrow(self: Predictor, images: Any) -> Any:
        if images.shape[-1] > 64 and self.inference.mode == "whole":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return call(self, images)

    monkeypatch.setattr(Predictor, "__call__", narrow)
    words = ["predict", str(file), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = ssrseg(*words)
    assert done.exit_code == 1
    assert "b.png does not fit into the memory: use --mode slide" in done.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*_ids.png")) == ["a_ids.png", "c_ids.png"]
    assert ssrseg(*words, "--mode", "slide").exit_code == 0


# --- what is not read


def test_other_formats_are_labelled_or_named(file: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    image = Image.fromarray(random_image(64, 64))
    for name in ("a.gif", "b.jfif", "c.tga", "d.jp2", "e.avif", "f.pgm"):
        image.save(photos / name, {"b.jfif": "JPEG"}.get(name))
    for name in ("g.heic", "h.heic", "readme.txt", "._a.png"):
        (photos / name).write_bytes(b"?")
    done = ssrseg("predict", str(file), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu")
    assert len(list((tmp_path / "out").glob("*_ids.png"))) == 6
    assert done.exit_code == 1
    assert "left out, not read: 3 files (.heic 2, .txt 1): g.heic, h.heic, readme.txt. Save" in done.output
    for name in ("g.heic", "h.heic"):
        (photos / name).unlink()
    assert ssrseg("predict", str(file), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu").exit_code == 0


def test_pages_beyond_the_first_are_named(file: Path, tmp_path: Path) -> None:
    pages = [Image.fromarray(random_image(64, 64, seed=seed)) for seed in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    done = ssrseg("predict", str(file), str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--device", "cpu")
    assert done.exit_code == 1
    assert "left out: all but the first of 3 pages of" in done.output
