"""Label files as tools write them: the right classes, or a message that says what the file holds."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image, ImageOps
from rich.console import Console

from factories import CLASSES, random_image, small_segmenter, write_pairs
from ssrseg.cli import main
from ssrseg.config import ClassConfig, DataConfig, assignments, merge, resolve
from ssrseg.data import code_for, find_pairs, read_labels, refuse_bad_data
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.label_files import describe_labels
from ssrseg.data.label_mapping import LabelCode, lookup_table
from ssrseg.data.pack import pack
from ssrseg.errors import UserError
from ssrseg.inference import evaluate
from ssrseg.label_shift import estimate_priors
from ssrseg.models.segmenter import save_segmenter

IDS = np.random.default_rng(0).integers(0, 3, (24, 32))
VOID = np.random.default_rng(1).random((24, 32)) < 0.1
WANTED = np.where(VOID, 255, IDS)
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
COLORS = np.array([RED, GREEN, BLUE], np.uint8)
PLAIN = LabelCode(lookup_table({0: 0, 1: 1, 2: 2}))
COLOURED = LabelCode(PLAIN.table, {RED: 0, GREEN: 1, BLUE: 2})


def read(path: Path, code: LabelCode = PLAIN) -> Any:
    return read_labels(path, code).numpy()


@pytest.mark.parametrize(
    ("dtype", "void"),
    [("i1", -1), ("i2", -32768), ("i4", -9999), ("i8", -9999), ("u2", 65535), ("f4", -3.4e38), ("f8", np.nan)],
)
def test_rasters_of_any_type_are_read_and_their_nodata_is_ignored(dtype: str, void: float, tmp_path: Path) -> None:
    pixels = np.where(VOID, void, IDS).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    assert np.array_equal(read(tmp_path / "a.tif"), WANTED)
    ignored = describe_labels(tmp_path / "a.tif", PLAIN).ignored
    assert ignored == {f"value {pixels[VOID][0]:.9g}": VOID.sum()}
    np.save(tmp_path / "a.npy", pixels[..., None])
    assert np.array_equal(read(tmp_path / "a.npy"), WANTED)


def test_values_above_255_may_be_classes(tmp_path: Path) -> None:
    Image.fromarray(np.where(VOID, 7, 100 * IDS + 200).astype(np.uint16)).save(tmp_path / "a.png")
    classes = [ClassConfig(name=name, ids=(value,)) for name, value in (("a", 200), ("b", 300), ("c", 400))]
    assert np.array_equal(read(tmp_path / "a.png", code_for(DataConfig(root=tmp_path), classes)), WANTED)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (IDS + 0.25, "holds float64 values such as .*25, which is no whole number"),
        (np.zeros((24, 32, 7), np.uint8), r"holds uint8 \(24, 32, 7\): expected one channel.*gdal_translate -b 1"),
    ],
)
def test_what_is_no_label_says_what_it_is(pixels: Any, says: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(UserError, match=says):
        read(tmp_path / "a.npy")


def palette(path: Path, indices: Any, colors: Any) -> None:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(np.array(colors, np.uint8).tobytes())
    image.save(path)


def test_a_palette_of_the_classes_colours_counts_by_colour(tmp_path: Path) -> None:
    order = np.array([3, 1, 2, 0])  # black, then the classes in another order
    table = np.concatenate([COLORS, np.zeros((1, 3), np.uint8)])[order]
    palette(tmp_path / "a.png", np.argsort(order)[np.where(VOID, 3, IDS)], table)
    found = describe_labels(tmp_path / "a.png", COLOURED)
    assert (found.encoding, found.ignored) == ("palette by colour", {"colour (0, 0, 0)": VOID.sum()})
    assert np.array_equal(found.ids, WANTED)


def test_another_palette_counts_by_index(tmp_path: Path) -> None:
    palette(tmp_path / "a.png", IDS, [RED, GREEN, (1, 2, 3)])
    assert describe_labels(tmp_path / "a.png", COLOURED).encoding == "palette by index"
    assert np.array_equal(read(tmp_path / "a.png", COLOURED), IDS)
    palette(tmp_path / "b.png", IDS, np.repeat(np.arange(256), 3).reshape(-1, 3))  # a grey ramp
    assert np.array_equal(read(tmp_path / "b.png", COLOURED), IDS)


@pytest.mark.parametrize("resize", [None, (16, 12)])
def test_a_packed_palette_keeps_its_colours(resize: Any, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / "game" / name).mkdir(parents=True)
    Image.fromarray(random_image(24, 32)).save(tmp_path / "game/images/a.png")
    palette(tmp_path / "game/labels/a.png", IDS[::2, ::2].repeat(2, 0).repeat(2, 1), COLORS[[2, 0, 1]])
    pack(DataConfig(root=tmp_path / "game", resize=resize), tmp_path / "a.zip")
    pairs = [find_pairs(DataConfig(root=root))[0] for root in (tmp_path / "game", tmp_path / "a.zip")]
    step = 1 if resize is None else 2
    assert np.array_equal(read(pairs[1].label, COLOURED), read(pairs[0].label, COLOURED)[::step, ::step])
    counted = class_statistics(pairs, COLOURED, 3).pixels
    assert counted[0].tolist() == (step**2 * counted[1]).tolist()


def test_ids_in_three_channels_are_values_though_colours_are_known(tmp_path: Path) -> None:
    Image.fromarray(WANTED.astype(np.uint8)).convert("RGB").save(tmp_path / "a.png")
    found = describe_labels(tmp_path / "a.png", COLOURED)
    assert (found.encoding, found.ignored) == ("values", {"value 255": VOID.sum()})
    assert np.array_equal(found.ids, WANTED)


def test_grey_colours_of_classes_are_found_in_one_channel(tmp_path: Path) -> None:
    code = LabelCode(lookup_table({0: 0, 1: 1}), {(0, 0, 0): 0, (255, 255, 255): 1})
    Image.fromarray((IDS > 0).astype(np.uint8) * 255).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", code), IDS > 0)
    Image.fromarray((IDS > 0).astype(np.uint8)).save(tmp_path / "b.png")
    assert np.array_equal(read(tmp_path / "b.png", code), IDS > 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_ignored_whatever_lies_under_them(mode: str, tmp_path: Path) -> None:
    under = np.where(VOID, (IDS + 1) % 3, IDS)
    image = Image.fromarray(COLORS[under] + np.uint8(9) * VOID[..., None].astype(np.uint8))
    if mode == "LA":
        image = Image.fromarray(under.astype(np.uint8))
    image.putalpha(Image.fromarray(np.where(VOID, 0, 255).astype(np.uint8)))
    image.save(tmp_path / "a.png")
    found = describe_labels(tmp_path / "a.png", COLOURED)
    assert found.ignored == {"transparent": VOID.sum()}
    assert np.array_equal(found.ids, WANTED)


# --- what no class takes, as a run and an evaluation see it


def masks(root: Path, value: int = 255, *, height: int = 48, width: int = 64) -> Path:
    """Three images with masks of which a third holds `value`, the rest 0."""
    write_pairs(root, 3, height=height, width=width)
    for path in (root / "labels").iterdir():
        mask = np.zeros((height, width), np.uint8)
        mask[: height // 3] = value
        Image.fromarray(mask).save(path)
    return root


def settings(root: Path, **more: Any) -> dict[str, Any]:
    (root / "camera" / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image(seed=99)).save(root / "camera" / "images" / "a.png")
    tree = {"source": {"root": str(root / "game")}, "target": {"root": str(root / "camera")}}
    return {**tree, "loader": {"crop": [32, 32], "workers": 0}, "method": {"teacher": {}, "mixed": {}}, **more}


def test_masks_of_0_and_255_say_what_to_set_and_that_works(tmp_path: Path) -> None:
    masks(tmp_path / "game")
    with pytest.raises(UserError, match=r"no pixel of crack.*but 33.3% hold 255") as refused:
        refuse_bad_data(resolve(settings(tmp_path, classes=["background", "crack"])))
    words = [part for part in str(refused.value).split("'") if part.startswith(("classes=", "source.id_map="))]
    classes, id_map = (yaml.safe_load(word.partition("=")[2]) for word in words)
    assert refuse_bad_data(resolve(settings(tmp_path, classes=classes))) == []
    pairs, code = find_pairs(DataConfig(root=tmp_path / "game")), resolve(settings(tmp_path, classes=classes)).classes
    counted = class_statistics(pairs, code_for(DataConfig(root=tmp_path / "game"), code), 2).totals
    assert counted.tolist() == [3 * 32 * 64, 3 * 16 * 64]
    tree = settings(tmp_path, classes=["background", "crack"])
    tree["source"]["id_map"] = id_map
    with pytest.raises(UserError, match="background alone"):  # then there is nothing to tell it from
        refuse_bad_data(resolve(tree))


def test_check_data_counts_what_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks(tmp_path / "game", 254)
    classes = [{"name": "a", "ids": [0]}, {"name": "b", "ids": [1]}, {"name": "c", "ids": [2]}]
    (tmp_path / "run.yaml").write_text(json.dumps(settings(tmp_path, classes=classes)), encoding="utf-8")
    argv = ["ssrseg", "check-data", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]
    with mock.patch("sys.argv", argv), pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert "ignored, of all pixels" in printed
    assert "value 254: 33.333%" in printed
    source = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["domains"]["source"]
    assert source["ignored"]["values"] == {"value 254": pytest.approx(1 / 3)}
    assert source["encodings"] == {"values": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of road, wall, tree and car."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_segmenter(small_segmenter(), path)
    return path


def spoilt(root: Path, change: Any) -> Path:
    write_pairs(root, 2, height=32, width=48)
    for path in (root / "labels").iterdir():
        ids = np.array(Image.open(path))
        Image.fromarray(change(np.where(ids == 255, 0, ids)).astype(np.uint8)).save(path)
    return root


@pytest.mark.parametrize(
    ("change", "says", "scored"),
    [
        (lambda ids: ids + 7, r"labels/00.png holds the values .*4 classes.*\n.*labels/01.png holds the values", []),
        (lambda ids: ids + 1, r"holds the value 4, but there are 4 classes", [3072]),
        (lambda ids: ids.T, r"differ in size: 48x32 and 32x48", []),
        (lambda ids: ids[1:, 1:], r"differ in size: 48x32 and 47x31", []),
        (lambda ids: 0 * ids + 255, "No label of .* shows any class. Ignored, of all pixels: value 255: 100", []),
        (lambda ids: np.where(ids < 2, 255, ids), "no pixel of road, wall .* hold 255, which is ign", [3072, 1600]),
    ],
)
def test_evaluate_refuses_labels_that_mean_something_else(
    change: Any, says: str, scored: list[int], model: Path, tmp_path: Path
) -> None:
    """And scores so many pixels with each word that it gives."""
    with pytest.raises(UserError, match=f"(?s)These data cannot be scored on.*{says}") as raised:
        evaluate(model, spoilt(tmp_path / "data", change), device="cpu")
    words = re.findall(r"'(id_map=[^']+)'", str(raised.value))
    sets = [DataConfig(root=tmp_path / "data", **assignments([word])) for word in words]
    assert [int(evaluate(model, one, device="cpu").confusion.sum()) for one in sets] == scored


def test_evaluate_takes_labels_of_another_resolution(model: Path, tmp_path: Path) -> None:
    whole = evaluate(model, spoilt(tmp_path / "data", lambda ids: ids), device="cpu")
    half = evaluate(model, spoilt(tmp_path / "half", lambda ids: ids[::2, ::2]), device="cpu")
    assert int(whole.confusion.sum()) == 4 * int(half.confusion.sum())


def test_evaluate_says_that_images_are_dark(model: Path, tmp_path: Path) -> None:
    """As `check-data` does; the model was trained on bytes, and such images are all but black to it."""
    root = spoilt(tmp_path / "data", lambda ids: ids)
    for path in (root / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path))[..., 0].astype(np.uint16) * 12).save(path)
    evaluate(model, root, device="cpu", console=Console(file=(said := io.StringIO())))
    assert "note: val: dark 16 bits: " in said.getvalue()
    assert "train with 'model.value_range=[0, 3" in said.getvalue()


# --- encodings that other tools write


def png_of(pixels: Any, **how: Any) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG", **how)
    return file.getvalue()


def tiff_of(pixels: Any, **how: Any) -> bytes:
    tifffile.imwrite(file := io.BytesIO(), pixels, **how)
    return file.getvalue()


BYTES = IDS.astype(np.uint8)
PER_BAND: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate"}
EXTRA: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified"]}


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.tif", tiff_of(np.moveaxis(COLORS[BYTES], -1, 0), **PER_BAND), COLOURED),
        ("a.tif", tiff_of(np.stack([BYTES] * 3), **PER_BAND), PLAIN),
        ("a.png", imagecodecs.png_encode(COLORS[BYTES].astype(np.uint16) * 257), COLOURED),
        ("a.tif", tiff_of(COLORS[BYTES].astype(np.uint16) * 257, photometric="rgb"), COLOURED),
        ("a.tif", tiff_of(BYTES.astype(">i4"), byteorder=">"), PLAIN),
        ("a.tif", tiff_of(BYTES.astype(np.float16), bigtiff=True), PLAIN),
        ("a.tif", tiff_of(BYTES[::-1, ::-1].copy(), extratags=[(274, 3, 1, 3, True)]), PLAIN),
    ],
)
def test_encodings_of_other_tools_are_read(name: str, content: bytes, code: LabelCode, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(read(tmp_path / name, code), IDS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_lies_as_it_is_shown(orientation: int, tmp_path: Path) -> None:
    """As its image does; editors turn both by the same tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(png_of(BYTES, exif=exif))
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(read(tmp_path / "a.png"), np.asarray(ImageOps.exif_transpose(file)))


@pytest.mark.parametrize("code", [PLAIN, COLOURED])
def test_a_transparent_index_of_no_class_is_ignored(code: LabelCode, tmp_path: Path) -> None:
    """The palette's order is not the classes', and the void has a colour of its own."""
    order = np.array([2, 0, 1], np.uint8) if code is COLOURED else np.arange(3, dtype=np.uint8)
    image = Image.fromarray(np.where(VOID, 3, order[BYTES]).astype(np.uint8))
    palette = np.full((4, 3), 9, np.uint8)
    palette[order] = COLORS
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "a.png", transparency=3)
    assert np.array_equal(read(tmp_path / "a.png", code), WANTED)
    assert describe_labels(tmp_path / "a.png", code).values in (None, (0, 1, 2))


@pytest.mark.parametrize(
    ("name", "kind", "how"),
    [
        ("a.webp", "WEBP", {"quality": 80}),
        ("a.jp2", "JPEG2000", {"irreversible": True}),
        ("a.avif", "AVIF", {}),
        ("a.png", "JPEG", {}),
        ("a.tif", "TIFF", {"compression": "jpeg"}),
    ],
)
def test_labels_that_lost_something_are_refused(name: str, kind: str, how: Any, tmp_path: Path) -> None:
    Image.fromarray(100 * BYTES).convert("RGB").save(tmp_path / name, kind, **how)
    with pytest.raises(UserError, match="compression has changed the labels"):
        read(tmp_path / name)


@pytest.mark.parametrize(("name", "kind", "how"), [("a.webp", "WEBP", {"lossless": True}), ("a.jp2", "JPEG2000", {})])
def test_labels_that_lost_nothing_are_read(name: str, kind: str, how: Any, tmp_path: Path) -> None:
    Image.fromarray(BYTES).convert("RGB").save(tmp_path / name, kind, **how)
    assert np.array_equal(read(tmp_path / name), IDS)


SCORES = np.eye(3, dtype=np.float32)[IDS]


@pytest.mark.parametrize(
    ("name", "content", "says", "mended"),
    [
        ("a.npy", SCORES, "float32 (24, 32, 3).*scores.argmax(axis)", SCORES.argmax(-1)),
        ("a.npy", SCORES.astype(int), "int64 (24, 32, 3).*argmax", SCORES.argmax(-1)),
        ("a.npy", SCORES[..., :2].astype(np.uint8), "uint8 (24, 32, 2): expected one channel of whole numbers", IDS),
        ("a.npy", np.zeros((0, 4), np.uint8), "has no pixels", IDS),
        ("a.tif", tiff_of(np.dstack([BYTES] * 2), **EXTRA), "-b 1 -ot UInt16 IN OUT", tiff_of(BYTES.astype("u2"))),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull", png_of(BYTES)),
        ("a.png", b"\n<!DOCTYPE html><html>", "web page, .*: download it again", png_of(BYTES)),
        ("a.png", gzip.compress(png_of(BYTES), mtime=0), "gzip: unpack", png_of(BYTES)),
        ("a.png", bytes(99), "nothing but zeros", png_of(BYTES)),
    ],
)
def test_what_is_no_label_says_what_it_holds(name: str, content: Any, says: str, mended: Any, tmp_path: Path) -> None:
    def write(content: Any) -> None:
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            np.save(tmp_path / name, content)

    write(content)
    with pytest.raises(UserError, match=says.replace("(", r"\(").replace(")", r"\)")):
        read(tmp_path / name)
    write(mended)
    assert np.array_equal(read(tmp_path / name), IDS)


def test_named_arrays_are_no_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=IDS)
    path = (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"\.npz\): save one alone, numpy\.save\(path, arrays\[name\]\)"):
        read(path)
    arrays = np.load(path)
    np.save(path, arrays["ids"])
    assert np.array_equal(read(path), IDS)


def test_a_channel_that_a_label_has_not_is_answered_by_another(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([BYTES, BYTES + 1, BYTES + 2])).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has 3 channels, and none is alpha: choose another `channel`"):
        read(tmp_path / "a.png", replace(PLAIN, channel="alpha"))
    assert np.array_equal(read(tmp_path / "a.png", replace(PLAIN, channel="red")), IDS)


# --- what a message advises


def blobs(root: Path, change: Callable[[Any], Any], count: int = 3) -> dict[str, Any]:
    """Data of `count` classes whose labels are `change` of ids, and the settings of a run on them."""
    write_pairs(root, 4)
    for number, path in enumerate(sorted((root / "labels").iterdir())):
        ids = np.random.default_rng(number).integers(0, count, (8, 8)).repeat(8, 0).repeat(8, 1)
        Image.fromarray(np.asarray(change(ids), np.uint8)).save(path)
    return {
        "classes": ["a", "b", "c"] if count == 3 else "binary",
        "source": {"root": str(root)},
        "loader": {"crop": [32, 32]},
        "method": {},
    }


def alpha(ids: Any) -> Any:
    return np.dstack([np.zeros((*ids.shape, 3)), 255 * ids])


def blurred(ids: Any) -> Any:
    return cv2.GaussianBlur((255 * ids).astype(np.uint8), (5, 5), 0)


@pytest.mark.parametrize(
    ("change", "count", "ignored"),
    [
        (lambda ids: ids + 1, 3, 0),
        (lambda ids: 85 * ids, 3, 0),
        (lambda ids: 128 * ids, 2, 0),
        (alpha, 2, 0),
        (blurred, 2, 0.5),
    ],
    ids=["counted from 1", "spread", "0 and 128", "transparency", "grey edges"],
)
def test_the_word_that_the_message_gives_reads_the_labels(
    change: Any, count: int, ignored: float, tmp_path: Path
) -> None:
    tree = blobs(tmp_path, change, count)
    with pytest.raises(UserError, match="cannot be trained on") as raised:
        refuse_bad_data(resolve(tree))
    text = str(raised.value)
    word = re.findall(r"'((?:classes|source\.\w+)=[^']+)'", text)[0]
    assert "255 to ignore" not in text or count == 3
    settings = resolve(merge(tree, assignments([word])))
    refuse_bad_data(settings)
    for number, pair in enumerate(find_pairs(settings.source)):
        ids = read_labels(pair.label, code_for(settings.source, settings.classes, settings.source)).numpy()
        wanted = np.random.default_rng(number).integers(0, count, (8, 8)).repeat(8, 0).repeat(8, 1)
        assert ((ids == wanted) | (ids == 255)).all()
        assert (ids == 255).mean() <= ignored


@pytest.mark.parametrize("odd", ["other", "target", "val"])
@pytest.mark.parametrize("meant", [1, 255])
def test_few_pixels_of_255_beside_a_source_of_0_and_1_are_asked_about(odd: str, meant: int, tmp_path: Path) -> None:
    """In another source, labelled images of the target or val, which would show the background alone."""
    data: dict[str, Any] = {}
    for number, name in enumerate(("source", "other", "target", "val")):
        masks(tmp_path / name, height=48 + number)  # no image twice
        for path in (tmp_path / name / "labels").iterdir():
            ids = np.zeros((48 + number, 64), np.uint8)
            ids[:8, :8] = 255 if name == odd else 1
            Image.fromarray(ids).save(path)
        data[name] = {"root": tmp_path / name}
    data["target"]["labelled"] = {}
    tree = {**data, "classes": ["background", "crack"], "source": [data["source"], data.pop("other")]}
    tree = {**tree, "loader": {"crop": [32, 32]}, "method": {}}
    tree.pop("other")
    with pytest.raises(UserError, match=r"one problem:(?s:.*)no pixel of crack in .*, but 2\..% hold 255") as raised:
        refuse_bad_data(resolve(tree))
    ways = [yaml.safe_load(way) for way in re.findall(r"id_map[:=] ?(\{.*?\})", str(raised.value))]
    changed = tree["source"][1] if odd == "other" else tree[odd]
    changed["id_map"] = ways[meant == 255]
    settings = resolve(tree)
    refuse_bad_data(settings)
    code = code_for(DataConfig(root=tmp_path / odd, id_map=changed["id_map"]), settings.classes)
    assert set(np.unique(read(tmp_path / odd / "labels" / "00.png", code))) == {0, meant}


def test_priors_are_not_counted_in_labels_that_mean_something_else(model: Path, tmp_path: Path) -> None:
    tree = settings(tmp_path, classes=list(CLASSES))
    with pytest.raises(UserError, match=r"set target\.root to a folder of images"):
        estimate_priors(model, resolve({**tree, "target": None, "method": {}}), device="cpu")
    write_pairs(tmp_path / "game")
    for path in (tmp_path / "game" / "labels").iterdir():
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 255, ids, ids + 1)).save(path)
    with pytest.raises(UserError, match=r"the values are 1\.\.4, so if classes are counted from 1, ") as raised:
        estimate_priors(model, resolve(tree), device="cpu")
    (word,) = re.findall(r"'(classes=[^']+)'", str(raised.value))
    assert estimate_priors(model, resolve(merge(tree, assignments([word]))), device="cpu").source == (4, 4, 4, 4)


@pytest.mark.parametrize("way", ["id_map", "spec"])
def test_what_is_advised_about_train_ids_reads_them(way: str, tmp_path: Path) -> None:
    """The word that the message prints, or the layout of train ids that its remedy names."""
    write_pairs(tmp_path, 4)
    for number, path in enumerate(sorted((tmp_path / "labels").iterdir())):
        Image.fromarray(np.roll(np.arange(19, dtype=np.uint8), number).repeat(256)[:4096].reshape(64, 64)).save(path)
    globs = {"images": "images/*", "labels": "labels/*"}
    tree = {"source": {"root": str(tmp_path), "spec": "gta5", **globs}, "loader": {"crop": [32, 32]}, "method": {}}
    with pytest.raises(UserError, match="look like train ids") as raised:
        refuse_bad_data(resolve(tree))
    word = re.findall(r"'(source\.id_map=[^']+)'", str(raised.value))[0]
    assert "(`cityscapes-trainids`)" in str(raised.value)
    settings = resolve(merge(tree, assignments([word if way == "id_map" else "source.spec=cityscapes-trainids"])))
    refuse_bad_data(settings)
    for pair in find_pairs(settings.source):
        ids = read_labels(pair.label, code_for(settings.source, settings.classes, settings.source)).numpy()
        assert np.array_equal(ids, np.asarray(Image.open(pair.label)))
