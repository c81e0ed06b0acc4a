"""Files of every kind to bytes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factories import random_image, random_labels
from ssrseg.config import resolve
from ssrseg.data import eval_samples, find_pairs, read_image, read_labels
from ssrseg.data.checks.inspect import read_header
from ssrseg.data.images import count_pages, shown_size
from ssrseg.data.label_encodings import read_stored_labels
from ssrseg.data.label_files import read_raw_labels
from ssrseg.data.label_mapping import LabelCode, lookup_table
from ssrseg.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
RGB = random_image(48, 64)
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
ROTATED = 6  # EXIF: shown turned clockwise


def test_images_of_every_kind_become_rgb(tmp_path):
    image, grey = Image.fromarray(RGB), Image.fromarray(GREY)
    see_through = image.convert("RGBA")
    see_through.putalpha(100)
    palette = image.quantize(16)
    exact = {
        "rgb.png": (image, RGB),
        "rgb.bmp": (image, RGB),
        "rgb.tif": (image, RGB),
        "cmyk.tif": (image.convert("CMYK"), RGB),
        "alpha.png": (see_through, RGB),
        "grey.png": (grey, GREY),
        "grey_alpha.png": (image.convert("LA"), GREY),
        "deep.png": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        "deep.tif": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
    }
    for name, (file, expected) in exact.items():
        file.save(tmp_path / name)
        assert same(read_image(tmp_path / name), expected) == 0, name
    for name, file, expected in (("rgb.jpg", image, RGB), ("cmyk.jpg", image.convert("CMYK"), RGB)):
        file.save(tmp_path / name, quality=100, subsampling=0)
        assert same(read_image(tmp_path / name), expected) <= 4, name


def same(found, expected):
    """Largest difference in grey levels; the shape must be (3, H, W)."""
    assert found.dtype == torch.uint8
    wanted = np.broadcast_to(expected[..., None] if expected.ndim == 2 else expected, (*expected.shape[:2], 3))
    return int(np.abs(found.permute(1, 2, 0).numpy().astype(int) - wanted).max())


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_images_stand_as_the_camera_held_them(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    file = tmp_path / f"turned.{ending}"
    Image.fromarray(RGB).save(file, exif=exif, quality=100, lossless=True, subsampling=0)
    assert same(read_image(file), np.rot90(RGB, -1)) <= 4


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_a_broken_image_is_named(tmp_path, ending, kept):
    file = tmp_path / f"broken.{ending}"
    Image.fromarray(RGB).save(file)
    encoded = file.read_bytes()
    file.write_bytes(encoded[: int(len(encoded) * kept)])
    for read in (read_image, read_raw_labels):
        with pytest.raises(UserError, match=f"broken.{ending}"):
            read(file)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for name, message in (("text.png", "cannot be read"), ("none.png", "No such file")):
        with pytest.raises(UserError, match=message) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)


def test_labels_are_values_and_not_colours(tmp_path):
    labels = random_labels()
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([value for i in range(256) for value in (255 - i, i, i // 2)])
    palette.putdata(labels.flatten().tolist())
    files = {
        "grey.png": Image.fromarray(labels),
        "palette.png": palette,
        "deep.png": Image.fromarray(labels.astype(np.uint16)),
    }
    for name, file in files.items():
        file.save(tmp_path / name)
        assert np.array_equal(read_raw_labels(tmp_path / name), labels), name


def test_synthias_labels_are_in_the_red_channel_of_16_bits(tmp_path):
    labels = random_labels(8, 8)
    deep = np.stack([labels, np.full_like(labels, 7), np.full_like(labels, 9)], axis=-1).astype(">u2")
    write_deep_png(tmp_path / "synthia.png", deep)
    assert np.array_equal(read_raw_labels(tmp_path / "synthia.png"), labels)


def write_deep_png(path, pixels):
    """(H, W, 3) of 16 bits, big-endian: a kind that Pillow cannot write."""
    height, width, _ = pixels.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_labels_that_are_no_values_are_refused(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "colours.png")
    with pytest.raises(UserError, match="convert them to values"):
        read_raw_labels(tmp_path / "colours.png")
    np.save(tmp_path / "complex.npy", np.zeros((4, 4), complex))
    with pytest.raises(UserError, match=r"complex128 \(4, 4\): expected one channel of whole numbers"):
        read_raw_labels(tmp_path / "complex.npy")


COLORS = {(128, 64, 128): 0, (0, 0, 142): 1, (1, 0, 0): 2}


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_become_classes_and_black_is_ignored(tmp_path, alpha):
    wanted = np.random.default_rng(0).integers(0, 4, (40, 50))
    palette = np.array([*COLORS, (0, 0, 0)], dtype=np.uint8)
    image = Image.fromarray(palette[wanted])
    (image.convert("RGBA") if alpha else image).save(tmp_path / "a.png")
    labels = read_labels(tmp_path / "a.png", LabelCode(lookup_table({0: 0}), COLORS))
    assert labels.dtype == torch.uint8
    assert labels.tolist() == np.where(wanted == 3, 255, wanted).tolist()


def test_black_may_be_a_class(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    code = LabelCode(lookup_table({0: 0}), {(0, 0, 0): 1, (255, 255, 255): 0})
    assert read_labels(tmp_path / "a.png", code).tolist() == [[1, 1], [1, 1]]


def test_an_unknown_colour_is_named_with_its_place(tmp_path):
    pixels = np.full((6, 8, 3), (0, 0, 142), dtype=np.uint8)
    pixels[2, 3:6] = (9, 8, 7)
    pixels[4, 0] = (255, 255, 255)  # beyond every known one
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png holds the colour \(9, 8, 7\).*3 pixels.*row 2, column 3"):
        read_labels(tmp_path / "a.png", LabelCode(lookup_table({0: 0}), COLORS))
    code = LabelCode(lookup_table({0: 0}), {**COLORS, (9, 8, 7): 3, (255, 255, 255): 0})  # the `color` is corrected
    assert read_labels(tmp_path / "a.png", code).flatten().bincount().tolist() == [1, 44, 0, 3]


def test_palette_indices_count_even_where_colours_are_known(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", LabelCode(lookup_table({0: 5, 1: 6}), COLORS)).tolist() == [[5, 6]]


def test_three_equal_channels_are_values_where_no_colours_are_known(tmp_path):
    labels = random_labels()
    Image.fromarray(labels).convert("RGB").save(tmp_path / "a.png")
    assert np.array_equal(read_raw_labels(tmp_path / "a.png"), labels)


def test_jpeg_labels_are_refused_whatever_their_ending(tmp_path):
    Image.fromarray(random_labels()).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a JPEG"):
        read_labels(tmp_path / "a.png", LabelCode(lookup_table({0: 0})))


def test_labels_pass_through_the_table(tmp_path):
    Image.fromarray(np.array([[7, 8], [9, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", LabelCode(lookup_table({7: 0, 8: 1}))).tolist() == [[0, 1], [255, 255]]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets")
@pytest.mark.parametrize(
    ("folder", "spec", "count", "classes"),
    [
        ("format-samples/gta5", "gta5", 3, {0, 2, 3, 4, 5, 8, 9, 10, 11, 14, 255}),
        ("format-samples/cityscapes-layout", "cityscapes", 1, {*range(12), 13, 17, 18, 255}),
        ("format-samples/cityscapes-layout", "cityscapes-trainids", 1, {*range(12), 13, 17, 18, 255}),
        ("format-samples/synthia-layout", "synthia", 1, {0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 13, 17, 18, 255}),
        ("format-samples/carlascapes", "carlascapes", 1, {*range(12), 13, 17, 18, 255}),
        ("camvid", "camvid", 367, {0, 1, 2, 3, 4, 5, 6, 8, 9, 255}),
    ],
)
def test_real_files_are_read(folder, spec, count, classes):
    run = resolve({"source": {"root": SHARED / folder, "spec": spec, "resize": [320, 200]}})
    samples = eval_samples(run.source, run.classes)
    assert len(samples) == len(find_pairs(run.source)) == count
    sample = samples[0]
    assert max(sample.image.shape[1:]) <= 320
    assert set(sample.labels.unique().tolist()) == classes


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets")
def test_gta5_ids_equal_the_train_ids_that_were_made_from_them():
    ids = resolve({"source": {"root": SHARED / "synthetic-mini/gta5", "spec": "gta5", "images": "images/*.jpg"}})
    made = {"root": SHARED / "synthetic-mini/gta5", "images": "images/*.jpg", "labels": "labels_trainid/*.png"}
    train_ids = resolve({"classes": "cityscapes19", "source": made})
    for a, b in zip(*(eval_samples(run.source, run.classes) for run in (ids, train_ids)), strict=True):
        assert torch.equal(a.labels, b.labels)


def encoded(kind, **how):
    Image.fromarray(random_image(24, 32)).save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tif", encoded("TIFF", compression="tiff_lzw")),
        ("a.tif", encoded("TIFF")),
        ("a.avif", encoded("AVIF")),
        ("a.png", encoded("PNG")),
        ("a.gif", encoded("GIF")),
        ("a.jp2", encoded("JPEG2000")),
    ],
    ids=["lzw", "tiff", "avif", "png", "gif", "jp2"],
)
@pytest.mark.filterwarnings("ignore")  # Pillow's words about damaged tags
def test_damage_anywhere_is_named_or_harmless(name, content, tmp_path):
    """Bytes of the header changed at random: whatever a decoder raises becomes a `UserError`."""
    draws, path, named = np.random.default_rng(0), tmp_path / name, 0
    for _ in range(40):
        damaged = bytearray(content)
        for place in draws.integers(4, min(len(content), 200), 3):
            damaged[place] = int(draws.choice([0, 1, 128, 255]))
        path.write_bytes(bytes(damaged))
        for read in (read_image, read_header, shown_size, read_stored_labels, count_pages):
            try:
                read(path)
            except UserError as error:
                named += str(path) in str(error)
    assert named > 10
