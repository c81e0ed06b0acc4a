"""Decoded, scaled and kept faster, and yet the same."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from factories import random_image, write_pairs
from ssrseg.data import png, read_image, train_batches
from ssrseg.data.images import open_image
from ssrseg.data.transforms import resize_crop
from ssrseg.errors import UserError
from test_data_loader import same, settings

INFLATERS = [pytest.param(zlib, id="isal-or-like-it"), pytest.param(None, id="without")]


def photograph(height=60, width=80, seed=0):
    """Noise on smooth ground: every filter of a PNG gets used."""
    draws = np.random.default_rng(seed)
    ground = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    return (ground + draws.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)


def encoded(image, format="PNG", **how):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format, **how)
    return stream.getvalue()


@pytest.fixture(params=INFLATERS)
def inflater(request, monkeypatch):
    """With a fast inflater, for which zlib stands in, and without."""
    monkeypatch.setattr(png, "isal", request.param)


@pytest.mark.usefixtures("inflater")
def test_the_first_rows_of_a_png_are_those_of_all():
    image = photograph(300, 220)  # filtered, more than one block of 65535 bytes
    for rows in (1, 7, 299, 300, 400):
        first = png.decode_rows(encoded(image), rows)
        assert len(first) >= min(rows, 300)
        assert np.array_equal(first, image[: len(first)])


def test_the_installed_inflater_gives_what_zlib_gives(monkeypatch):
    if png.isal is None:
        pytest.skip("isal is not installed")
    content = encoded(photograph(300, 220))
    ours = png.inflated(content, 100)
    monkeypatch.setattr(png, "isal", zlib)
    assert ours == png.inflated(content, 100)


@pytest.mark.usefixtures("inflater")
def test_a_png_that_may_be_turned_is_not_plain(tmp_path):
    image = photograph()
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "a camera")
    profile = PngImagePlugin.PngInfo()
    profile.add_text("Raw profile type exif", "more of it")
    assert png.is_plain(encoded(image, pnginfo=text))
    assert not png.is_plain(encoded(image, exif=exif))
    assert not png.is_plain(encoded(image, pnginfo=profile))
    assert not png.is_plain(encoded(image[..., 0]))
    (tmp_path / "turned.png").write_bytes(encoded(image, exif=exif))
    assert torch.equal(
        read_image(tmp_path / "turned.png").permute(1, 2, 0), torch.from_numpy(np.rot90(image, -1).copy())
    )


@pytest.mark.usefixtures("inflater")
@pytest.mark.parametrize("damage", ["a bit", "the end"])
def test_a_damaged_png_is_named(tmp_path, damage, capfd):
    content = bytearray(encoded(photograph(200, 200)))
    if damage == "a bit":
        content[len(content) // 2] ^= 4
    else:
        del content[-40:]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png cannot be read as an image"):
        read_image(tmp_path / "bad.png")


def test_a_jpeg_is_decoded_as_pillow_decodes_it(tmp_path):
    for subsampling in (0, 2):
        content = encoded(photograph(61, 83), "JPEG", quality=90, subsampling=subsampling)
        (tmp_path / "a.jpg").write_bytes(content)
        assert np.array_equal(
            read_image(tmp_path / "a.jpg").permute(1, 2, 0), np.array(Image.open(io.BytesIO(content)))
        )


def test_half_a_jpeg_is_named(tmp_path):
    (tmp_path / "half.jpg").write_bytes(encoded(photograph(200, 200), "JPEG")[:-900])
    with pytest.raises(UserError, match=r"half\.jpg cannot be read as an image"):
        read_image(tmp_path / "half.jpg")


def test_a_jpeg_is_scaled_while_it_is_decoded_when_that_is_asked_for(tmp_path):
    ground = np.linspace(0, 200, 320)[None, :, None].repeat(240, 0).repeat(3, 2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ground).save(tmp_path / "a.jpg", quality=95, exif=exif)
    for bound, grid in (((80, 60), (60, 80)), ((120, 120), (120, 160)), ((200, 200), (240, 320)), (None, (240, 320))):
        opened = open_image(tmp_path / "a.jpg", bound)
        assert (opened.size, opened.grid) == ((240, 320), grid)
        assert opened.first_rows(1).shape == (grid[1], grid[0], 3)
    small = open_image(tmp_path / "a.jpg", (80, 60)).first_rows(80)
    whole = cv2.resize(np.rot90(ground, -1), (60, 80))
    assert np.abs(small.astype(int) - whole).max() <= 3


@pytest.mark.parametrize("seed", range(40))
def test_a_crop_is_scaled_as_the_whole_image_is(seed):
    draws = np.random.default_rng(seed)
    height, width, new_height, new_width = draws.integers(3, 300, 4).tolist()
    if seed % 3 == 0:  # the aspect ratio kept, as in training; half as large is a case of its own for OpenCV
        factor = 0.5 if seed % 2 else draws.uniform(0.2, 2)
        new_height, new_width = (max(1, int(side * factor + 0.5)) for side in (height, width))
    image = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    top, left = int(draws.integers(new_height)), int(draws.integers(new_width))
    box = slice(top, top + 50), slice(left, left + 70)

    def first_rows(count):
        part = image.copy()
        part[count:] = 0
        return part

    crop = resize_crop(first_rows, (width, height), (new_width, new_height), box)
    assert np.array_equal(crop, whole[box])


def batches(root, steps=6, **loader):
    return list(train_batches(settings(root, steps=steps, **loader)))


@pytest.fixture
def scaled(tmp_path):
    """Images twice as large as they are trained at, and the settings that say so."""
    for domain in ("game", "camera"):
        write_pairs(tmp_path / domain, height=128, width=120)

    def draw(cache, steps=6, **loader):
        run = settings(tmp_path, steps=steps, cache=cache, rare_class={}, **loader)
        bounded = {name: getattr(run, name).model_copy(update={"resize": (60, 90)}) for name in ("source", "target")}
        return list(train_batches(run.model_copy(update=bounded)))

    return draw


def entries(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.npy")}


def test_kept_images_are_the_same_and_kept_once(scaled, tmp_path):
    without, first = scaled(None), scaled(tmp_path / "kept")
    written = entries(tmp_path / "kept")
    again = scaled(tmp_path / "kept", workers=2)
    for other in (first, again):
        assert [same(a, b) for a, b in zip(without, other, strict=True)] == [True] * 6
    assert len(written) == 8  # four pairs, four target images
    assert entries(tmp_path / "kept") == written
    assert sorted(np.load(path).shape for path in written) == [(3, 64, 60)] * 4 + [(4, 64, 60)] * 4
    assert not list((tmp_path / "kept").rglob("*.partial"))


def test_an_image_that_changed_is_not_taken_from_the_cache(scaled, tmp_path):
    scaled(tmp_path / "kept")
    for path in (tmp_path / "game" / "images").iterdir():
        Image.fromarray(random_image(128, 120, seed=99)).save(path)
    assert [same(a, b) for a, b in zip(scaled(None), scaled(tmp_path / "kept"), strict=True)] == [True] * 6
    assert len(entries(tmp_path / "kept")) == 12


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00v\x00{'descr': '|O'", b"no array"])
def test_a_broken_entry_is_made_again(scaled, tmp_path, content):
    whole = scaled(tmp_path / "kept")
    for path in entries(tmp_path / "kept"):
        path.write_bytes(content)
    assert [same(a, b) for a, b in zip(whole, scaled(tmp_path / "kept"), strict=True)] == [True] * 6
    assert all(np.load(path).ndim == 3 for path in entries(tmp_path / "kept"))


def test_a_pickle_in_the_cache_is_never_opened(scaled, tmp_path):
    scaled(tmp_path / "kept")
    for path in entries(tmp_path / "kept"):
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    scaled(tmp_path / "kept")
    assert all(np.load(path).ndim == 3 for path in entries(tmp_path / "kept"))


def test_a_cache_that_cannot_be_written_is_noted_and_done_without(scaled, tmp_path):
    (tmp_path / "kept").write_text("a file where a folder should be")
    whole, noted = scaled(None), scaled(tmp_path / "kept")
    assert [same(a, b) for a, b in zip(whole, noted, strict=True)] == [True] * 6
    notes = [note for raw in noted for note in raw.notes]
    assert len(notes) == 24  # two source and two target images of six steps
    assert set(notes) == {
        f"the image cache {tmp_path / 'kept'} cannot be written (Not a directory): an image is not kept"
    }


def test_a_full_disk_is_noted_and_leaves_no_halves(scaled, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssrseg.data.cache.np.save", full)
    noted = scaled(tmp_path / "kept")
    assert "No space left on device" in noted[0].notes[0]
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
