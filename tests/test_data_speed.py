"""Decoded, scaled and kept faster, and yet the same."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from factories import random_image, write_pairs
from ssrseg.data import read_image, train_batches
from ssrseg.data.checks.inspect import read_header
from ssrseg.data.images import read_pixels
from ssrseg.data.transforms import resize_crop
from ssrseg.errors import UserError
from test_data_loader import same, settings


def photograph(height=60, width=80, seed=0):
    """Noise on smooth ground: every filter of a PNG gets used."""
    draws = np.random.default_rng(seed)
    ground = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    return (ground + draws.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)


def encoded(image, format="PNG", **how):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format, **how)
    return stream.getvalue()


def as_pillow(content):
    """RGB (H, W, 3), as Pillow reads it."""
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def kinds():
    """Files that imagecodecs decodes, and how they may go wrong there."""
    colour = Image.fromarray(photograph(61, 83))
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "a camera")
    yield "plain.png", encoded(photograph(61, 83), pnginfo=text)
    yield "profile.png", encoded(photograph(61, 83), icc_profile=b"no profile")
    yield "see-through.png", encoded(photograph(61, 83), transparency=(1, 2, 3))
    for subsampling in (0, 2):
        yield f"{subsampling}.jpg", encoded(photograph(61, 83), "JPEG", quality=90, subsampling=subsampling)
    yield "progressive.jpg", encoded(photograph(61, 83), "JPEG", progressive=True)
    yield "rgb.jpg", encoded(photograph(61, 83), "JPEG", keep_rgb=True)
    yield "grey.jpg", encoded(photograph(61, 83)[..., 0], "JPEG")
    yield "lossy.webp", encoded(photograph(61, 83), "WEBP")
    yield "alpha.webp", encoded(np.array(colour.convert("RGBA")), "WEBP", lossless=True)
    yield "moving.webp", encoded(photograph(61, 83), "WEBP", save_all=True, append_images=[colour.rotate(180)])
    yield "moving.png", encoded(photograph(61, 83), save_all=True, append_images=[colour.rotate(180)])
    yield "white-is-0.tif", encoded(photograph(61, 83)[..., 0], "TIFF", tiffinfo={262: 0})
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        yield f"{compression}.tif", encoded(photograph(61, 83), "TIFF", compression=compression)


@pytest.mark.parametrize(("name", "content"), [pytest.param(*one, id=one[0]) for one in kinds()])
def test_files_are_decoded_as_pillow_decodes_them(tmp_path, name, content, capfd):
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), as_pillow(content))
    assert capfd.readouterr().err == ""


def test_imagecodecs_decodes_what_is_common(tmp_path, monkeypatch):
    files = [one for one in kinds() if not one[0].startswith(("moving", "white"))]
    monkeypatch.setattr(Image.Image, "load", None)  # how Pillow would decode
    for name, content in files:
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name).shape == (3, 61, 83)


@pytest.mark.parametrize("late", [False, True])
def test_a_png_is_turned_wherever_it_says_so(tmp_path, late):
    image = photograph()
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(image, exif=exif)
    if late:
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        before_end = content.index(b"IEND") - 4
        content = content[:start] + content[end:before_end] + content[start:end] + content[before_end:]
    (tmp_path / "turned.png").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "turned.png").permute(1, 2, 0), np.rot90(image, -1))
    assert read_header(tmp_path / "turned.png").shown == (60, 80)


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


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the damage
@pytest.mark.parametrize("name", ["plain.png", "2.jpg", "lossy.webp", "tiff_lzw.tif", "jpeg.tif"])
def test_damage_anywhere_is_read_or_named_as_pillow_does(tmp_path, name):
    content, draws = dict(kinds())[name], np.random.default_rng(0)
    for turn in range(60):
        damaged = bytearray(content)
        if turn % 2:
            del damaged[int(draws.integers(1, len(content))) :]
        else:
            place = int(draws.integers(len(content)))
            damaged[place : place + 9] = draws.bytes(len(damaged[place : place + 9]))
        (tmp_path / name).write_bytes(damaged)
        try:
            expected = as_pillow(bytes(damaged))
        except Exception:  # of Pillow's many kinds
            with pytest.raises(UserError, match=name):
                read_image(tmp_path / name)
        else:
            assert read_image(tmp_path / name).shape[1:] == expected.shape[:2]


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
        pixels, size = read_pixels(tmp_path / "a.jpg", bound)
        assert (pixels.shape, size) == ((grid[1], grid[0], 3), (240, 320))
    small, _ = read_pixels(tmp_path / "a.jpg", (80, 60))
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
    assert np.array_equal(resize_crop(image, (new_width, new_height), box), whole[box])


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


def test_a_cache_that_cannot_be_written_is_warned_of_and_done_without(scaled, tmp_path):
    (tmp_path / "kept").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match=r"The image cache .*written .Not a directory.: images are not kept"):
        without = scaled(tmp_path / "kept")
    assert [same(a, b) for a, b in zip(scaled(None), without, strict=True)] == [True] * 6


def test_a_full_disk_is_warned_of_and_leaves_no_halves(scaled, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssrseg.data.cache.np.save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        scaled(tmp_path / "kept")
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
