"""Every layout, as its download unpacks: a tiny folder of each."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssrseg.config import DataConfig, resolve
from ssrseg.data import SPACES, SPECS, eval_samples, find_images, find_pairs
from ssrseg.data.checks.inspect import read_header
from ssrseg.data.label_files import read_raw_labels
from ssrseg.data.polygons import LEVEL3
from ssrseg.errors import UserError
from test_annotations import EXPORTS
from test_data_reading import write_deep_png

SHARED = Path(__file__).parents[2] / "shared" / "data"
Pixels = np.ndarray


def grey(path: Path, values: Pixels) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


def palette(path: Path, values: Pixels) -> None:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    image.save(path)


def three_equal(path: Path, values: Pixels) -> None:
    Image.fromarray(values.astype(np.uint8)).convert("RGB").save(path)


def deep(path: Path, values: Pixels) -> None:
    """SYNTHIA's: the class in red, the instance in green."""
    write_deep_png(path, np.stack([values, values * 0 + 300, values * 0], axis=-1).astype(">u2"))


def idd_polygons(path: Path, values: Pixels) -> None:
    """A rectangle per value, over one of road that shows nowhere; names as IDD has them."""
    names = {0: "road", 8: "autorickshaw", 25: "sky"}
    height, width = values.shape
    objects = [{"label": "road", "polygon": [[0, 0], [width, 0], [width, height], [0, height]], "deleted": 1}]
    for value in np.unique(values[values < 255]):
        columns = np.flatnonzero(values[0] == value)
        left, right = float(columns[0]), float(columns[-1])
        objects.append(
            {"label": names[int(value)], "polygon": [[left, 0], [right, 0], [right, height - 1], [left, height - 1]]}
        )
    path.write_text(json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects}), encoding="utf-8")


def camvid_colors(path: Path, values: Pixels) -> None:
    colors = np.array([*SPACES["camvid31"].colors, (0, 0, 0)], dtype=np.uint8)
    Image.fromarray(colors[values]).save(path)


# spec: settings, image, label, files that are neither, how labels are written, raw values, the classes they are
LAYOUTS = {
    "gta5": ({}, "images/00001.png", "labels/00001.png", [], palette, [7, 26, 34, 0], ["road", "car", None, None]),
    "synthia": (
        {},
        "RGB/0000000.png",
        "GT/LABELS/0000000.png",
        ["GT/COLOR/0000000.png", "Depth/Depth/0000000.png"],
        deep,
        [3, 1, 12, 22],
        ["road", "sky", "motorcycle", None],
    ),
    "urbansyn": (
        {},
        "rgb/rgb_0001.png",
        "ss/ss_0001.png",
        ["ss_colour/ss_colour_0001.png", "depth/depth_0001.png"],
        three_equal,
        [0, 10, 18, 19],
        ["road", "sky", "bicycle", None],
    ),
    "carlascapes": (
        {},
        "Town10HD_000063_5025000_img.png",
        "Town10HD_000063_5025000_labelIds.png",
        ["Town10HD_000063_5025000_color.png", "Town10HD_000063_5025000_instance.png"],
        grey,
        [1, 24, 19, 0],
        ["road", "road", "bicycle", None],
    ),
    "cityscapes": (
        {"split": "val"},
        "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png",
        "gtFine/val/bonn/bonn_000000_000019_gtFine_labelIds.png",
        [
            "gtFine/val/bonn/bonn_000000_000019_gtFine_color.png",
            "gtFine/val/bonn/bonn_000000_000019_gtFine_instanceIds.png",
            "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        ],
        grey,
        [7, 33, 29, 3],
        ["road", "bicycle", None, None],
    ),
    "cityscapes-trainids": (
        {},
        "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png",
        ["gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"],
        grey,
        [0, 18, 255, 19],
        ["road", "bicycle", None, None],
    ),
    "acdc": (
        {"split": "val"},
        "rgb_anon/night/val/GOPR0356/GOPR0356_frame_000321_rgb_anon.png",
        "gt/night/val/GOPR0356/GOPR0356_frame_000321_gt_labelIds.png",
        [
            "rgb_anon/night/val_ref/GOPR0356_ref/GOPR0356_frame_000321_rgb_ref_anon.png",
            "gt/night/val/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png",
            "gt/night/val/GOPR0356/GOPR0356_frame_000321_gt_invIds.png",
        ],
        grey,
        [7, 26, 0, 34],
        ["road", "car", None, None],
    ),
    "dark-zurich": (
        {"split": "val"},
        "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png",
        "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelIds.png",
        [
            "rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000321_ref_rgb_anon.png",
            "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelColor.png",
        ],
        grey,
        [7, 26, 0, 34],
        ["road", "car", None, None],
    ),
    "bdd100k": (
        {"split": "val"},
        "images/10k/val/7d06fefd-f7be05a6.jpg",
        "labels/sem_seg/masks/val/7d06fefd-f7be05a6.png",
        ["labels/sem_seg/colormaps/val/7d06fefd-f7be05a6.png", "images/10k/test/ac6d4f42-00000000.jpg"],
        grey,
        [0, 18, 255, 254],
        ["road", "bicycle", None, None],
    ),
    "mapillary-vistas": (
        {"split": "validation"},
        "validation/images/_1Gn_xkw7sa_i9GU4mkxxQ.jpg",
        "validation/labels/_1Gn_xkw7sa_i9GU4mkxxQ.png",
        ["validation/instances/_1Gn_xkw7sa_i9GU4mkxxQ.png", "testing/images/a.jpg"],
        palette,
        [13, 38, 64, 65],
        ["Road", "Fire Hydrant", "Ego Vehicle", None],
    ),
    "idd": (
        {},
        "leftImg8bit/train/201/frame0029_leftImg8bit.jpg",
        "gtFine/train/201/frame0029_gtFine_polygons.json",
        [],
        idd_polygons,
        [0, 8, 25, 255],
        ["road", "autorickshaw", "sky", None],
    ),
    "idd-level3": (
        {},
        "leftImg8bit/train/201/frame0029_leftImg8bit.jpg",
        "gtFine/train/201/frame0029_gtFine_labellevel3Ids.png",
        ["gtFine/train/201/frame0029_gtFine_instancelevel3Ids.png"],
        grey,
        [0, 8, 25, 255],
        ["road", "autorickshaw", "sky", None],
    ),
    "camvid": (
        {"split": "val"},
        "val/images/0016E5_07959.jpg",
        "val/labels/0016E5_07959.png",
        ["train/images/0001TP_006690.jpg"],
        grey,
        [0, 3, 10, 11],
        ["Sky", "Road", "Bicyclist", None],
    ),
    "camvid-segnet": (
        {"split": "test"},
        "test/0001TP_008550.png",
        "testannot/0001TP_008550.png",
        ["train/0001TP_006690.png"],
        grey,
        [0, 3, 10, 11],
        ["Sky", "Road", "Bicyclist", None],
    ),
    "camvid-full": (
        {},
        "701_StillsRaw_full/0001TP_006690.png",
        "LabeledApproved_full/0001TP_006690_L.png",
        [],
        camvid_colors,
        [0, 17, 30, 31],
        ["Animal", "Road", "Wall", None],
    ),
    "folders": (
        {},
        "images/day/a.jpg",
        "labels/day/a.png",
        [],
        grey,
        [0, 1, 2, 255],
        ["street", "other", None, None],
    ),
}


def test_every_layout_has_a_test() -> None:
    assert LAYOUTS.keys() | EXPORTS.keys() | {"carla", "video"} == SPECS.keys()


@pytest.mark.parametrize("spec", LAYOUTS)
def test_a_download_works_as_unpacked(tmp_path: Path, spec: str) -> None:
    given, image, label, others, write, values, wanted = LAYOUTS[spec]
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    for name in (image, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (10, 20, 30)).save(tmp_path / name)
    write(tmp_path / label, np.repeat([values], 6, axis=0).repeat(2, axis=1))
    tree = {"source": {"root": tmp_path, "spec": spec, **given}}
    run = resolve(tree | ({"classes": ["street", "other"]} if spec == "folders" else {}))
    (pair,) = find_pairs(run.source)
    assert (pair.image, pair.label) == (tmp_path / image, tmp_path / label)
    labels = eval_samples(run.source, run.classes)[0].labels
    names = ("street", "other") if spec == "folders" else SPACES[SPECS[spec].space].names
    assert labels.shape == (6, 8)
    assert [None if i == 255 else names[i] for i in labels[0, ::2].tolist()] == wanted
    assert read_header(pair.label).stored == read_header(pair.image).shown == (8, 6)


def test_later_polygons_cover_earlier_ones(tmp_path: Path) -> None:
    whole, corner = [[0, 0], [9, 0], [9, 9], [0, 9]], [[0, 0], [4, 0], [4, 4], [0, 4]]
    objects = [("sky", whole), ("cargroup", corner), ("polegroup", [[9, 9], [9, 9]]), ("bus", [])]
    content = {"imgWidth": 10, "imgHeight": 10}
    content["objects"] = [{"label": label, "polygon": polygon} for label, polygon in objects]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    values = read_raw_labels(path)
    assert np.unique(values[:5, :5]).tolist() == [9]
    assert values[9, 9] == 20
    assert np.unique(values).tolist() == [9, 20, 25]
    content["objects"][0]["label"] = "heaven"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="polygon named 'heaven'; IDD's names are ") as raised:
        read_raw_labels(path)
    assert "sky" in str(raised.value).partition("names are ")[2].rstrip(".").split(", ")
    content["objects"][0]["label"] = "sky"
    path.write_text(json.dumps(content))
    assert np.array_equal(read_raw_labels(path), values)


@pytest.mark.parametrize(
    "text", ['{"imgWidth": 3', '{"objects": []}', '{"imgWidth": 3, "imgHeight": 2, "objects": [1]}']
)
def test_damaged_polygons_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    said = r"a\.json cannot be read as polygons .*Expected JSON with imgWidth, imgHeight and objects, each with a label"
    with pytest.raises(UserError, match=said):
        read_raw_labels(tmp_path / "a.json")
    objects = [{"label": "road", "polygon": [[0, 0], [3, 0], [3, 2], [0, 2]]}]
    (tmp_path / "a.json").write_text(json.dumps({"imgWidth": 3, "imgHeight": 2, "objects": objects}))
    assert (read_raw_labels(tmp_path / "a.json") == LEVEL3["road"]).all()


def test_one_condition_of_acdc_is_a_glob(tmp_path: Path) -> None:
    for condition in ("fog", "night", "rain", "snow"):
        for name in (
            f"rgb_anon/{condition}/train/GP01/GP01_frame_000001_rgb_anon.png",
            f"gt/{condition}/train/GP01/GP01_frame_000001_gt_labelIds.png",
        ):
            (tmp_path / name).parent.mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / name)
    assert len(find_pairs(DataConfig(root=tmp_path, spec="acdc"))) == 4
    night = {"images": "rgb_anon/night/{split}/*/*_rgb_anon.png", "labels": "gt/night/{split}/*/*_gt_labelIds.png"}
    (pair,) = find_pairs(DataConfig(root=tmp_path, spec="acdc", **night))
    assert "gt/night/train" in pair.label.as_posix()
    assert len(find_images(DataConfig(root=tmp_path, spec="acdc", images=night["images"]))) == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets")
def test_cityscapes_works_as_two_zip_archives(tmp_path: Path) -> None:
    layout = SHARED / "format-samples" / "cityscapes-layout"
    for part in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(tmp_path / f"{part}_trainvaltest.zip", "w") as archive:
            archive.writestr("README", "as in the published archives")
            for path in sorted((layout / part).rglob("*.png")):
                archive.write(path, path.relative_to(layout).as_posix())
    for split in ("train", "val"):
        runs = [resolve({"source": {"root": r, "spec": "cityscapes", "split": split}}) for r in (layout, tmp_path)]
        (unpacked,), (zipped,) = (eval_samples(run.source, run.classes) for run in runs)
        assert torch.equal(unpacked.image, zipped.image)
        assert torch.equal(unpacked.labels, zipped.labels)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets")
def test_one_class_made_of_gta5s_and_of_camvids_classes() -> None:
    """The share of pixels of cars and the like equals that of the classes by themselves."""
    for root, spec, known, parts in (
        (SHARED / "format-samples" / "gta5", "gta5", "cityscapes19", ["car", "truck", "bus"]),
        (SHARED / "camvid", "camvid", "camvid11", ["Car"]),
    ):
        of = [{"name": "vehicle", "of": ["car", "truck", "bus", "Car"]}, {"name": "other", "of": ["*"]}]
        own, whole = (resolve({"source": {"root": root, "spec": spec}, "classes": c}) for c in (of, known))
        one, all_of_them = (eval_samples(run.source, run.classes)[0].labels for run in (own, whole))
        wanted = torch.isin(all_of_them, torch.tensor([SPACES[known].index(name) for name in parts]))
        assert torch.equal(one == 0, wanted)
        assert torch.equal(one == 255, all_of_them == 255)


def test_dark_zurichs_train_images_have_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "rgb_anon/train/night/GOPR0351/GOPR0351_frame_000001_rgb_anon.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(path)
    assert find_images(DataConfig(root=tmp_path, spec="dark-zurich")) == [path]


def test_idd_polygons_have_every_class() -> None:
    names = SPACES["idd26"].names
    assert set(LEVEL3.values()) == {*range(26), 255}
    assert {name: LEVEL3[name] for name in names if name in LEVEL3} == {
        name: i for i, name in enumerate(names) if name in LEVEL3
    }
