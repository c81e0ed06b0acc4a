"""Labels as annotation tools export them: drawn here as the tools write them, read and trained on from one file."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

from factories import random_image
from ssrseg.cli import main
from ssrseg.config import resolve
from ssrseg.data import code_for, find_pairs, read_labels
from ssrseg.data.annotation_sets import unpack_runs
from ssrseg.data.label_mapping import LabelCode, lookup_table
from ssrseg.errors import UserError

WIDTH, HEIGHT = 128, 64  # of which shares with seven digits are exact
SHAPES = [("car", [(10, 20), (50, 20), (50, 44), (10, 44)]), ("person", [(60, 8), (84, 8), (84, 56), (60, 56)])]
CLASSES = ["background", "car", "person"]
COUNT = 3


def truth(i, *, shapes=SHAPES, classes=CLASSES):
    """Class ids of image `i`; shapes move with it."""
    ids = Image.new("L", (WIDTH, HEIGHT), 0)
    for name, points in shapes:
        ImageDraw.Draw(ids).polygon(moved(points, i), fill=classes.index(name))
    return np.array(ids)


def moved(points, i):
    return [(x + 2 * i, y + i) for x, y in points]


def write_images(folder, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names or [f"{i:02}.jpg" for i in range(COUNT)]):
        Image.fromarray(random_image(HEIGHT, WIDTH, seed=i)).save(folder / name)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root):
    """As CVAT and pycocotools write it: polygons, compressed run lengths, and those of a crowd."""
    write_images(root / "images" / "default")
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "version": "", "year": ""},
        "categories": [
            {"id": 7, "name": "car", "supercategory": ""},
            {"id": 90, "name": "Person", "supercategory": ""},
        ],
        "images": [
            {"id": i + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{i:02}.jpg", "license": 0}
            for i in range(COUNT)
        ],
        "annotations": [],
    }
    for i in range(COUNT):
        points = moved(SHAPES[0][1], i)
        box = {"image_id": i + 1, "area": 1.0, "bbox": [0, 0, 1, 1], "iscrowd": 0}
        # COCO counts from the corners of pixels: the area of pixels 10 to 50 ends at 51.
        x, y = points[0]
        ring = [x, y, x + 41, y, x + 41, y + 25, x, y + 25]
        content["annotations"].append({"id": 2 * i + 1, "category_id": 7, "segmentation": [ring], **box})
        person = np.asfortranarray(truth(i) == 2, dtype=np.uint8)
        packed = coco_masks.encode(person)
        runs = {"size": packed["size"], "counts": packed["counts"].decode()}
        if i:
            flat = person.ravel(order="F")
            ends = np.flatnonzero(np.diff(flat, prepend=0))
            runs = {"size": [HEIGHT, WIDTH], "counts": np.diff(ends, prepend=0, append=flat.size).tolist()}
        content["annotations"].append({"id": 2 * i + 2, "category_id": 90, "segmentation": runs, **box})
    write_json(root / "annotations" / "instances_default.json", content)


def write_labelme(root):
    """Beside the pictures: polygons, a rectangle, and a mask as its AI tools save one."""
    write_images(root)
    for i in range(COUNT):
        shapes = []
        for (name, points), kind in zip(SHAPES, ("polygon", "mask" if i else "rectangle"), strict=True):
            corners = moved(points, i) if kind == "polygon" else [moved(points, i)[0], moved(points, i)[2]]
            shape = {"label": name, "points": corners, "group_id": None, "shape_type": kind, "flags": {}, "mask": None}
            if kind == "mask":
                (left, top), (right, bottom) = corners
                file = io.BytesIO()
                Image.new("1", (right - left + 1, bottom - top + 1), 1).save(file, "PNG")
                shape["mask"] = base64.b64encode(file.getvalue()).decode()
            shapes.append(shape)
        size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        head = {"version": "5.5.0", "flags": {}, "imagePath": f"{i:02}.jpg", "imageData": None}
        write_json(root / f"{i:02}.json", {**head, "shapes": shapes, **size})


def write_yolo(root):
    """As Ultralytics and CVAT have it; the names say which number is which."""
    write_images(root / "images" / "train")
    (root / "labels" / "train").mkdir(parents=True)
    (root / "data.yaml").write_text("path: ./\ntrain: train.txt\nnames:\n  0: person\n  1: car\n")
    for i in range(COUNT):
        lines = []
        for name, points in SHAPES:
            shares = [f"{x / WIDTH:.7f} {y / HEIGHT:.7f}" for x, y in moved(points, i)]
            lines.append(f"{['person', 'car'].index(name)} {' '.join(shares)}\n")
        (root / "labels" / "train" / f"{i:02}.txt").write_text("".join(lines))


def pack_runs(values):
    """Run lengths as Label Studio's editor writes them: bytes of RGBA, words of 8 bits."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    starts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, end in itertools.pairwise(starts):
        while start < end:
            count = min(end - start, 1 << 16)
            choice, size = next((c, s) for c, s in enumerate((3, 4, 8, 16)) if count <= 1 << s)
            bits += f"1{choice:02b}{count - 1:0{size}b}{values[start]:08b}"
            start += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def write_label_studio(root, *, small=False):
    """Its JSON: strokes as run lengths of RGBA, a polygon in percent, an upload's name with eight letters before."""
    write_images(root / "images")
    tasks = []
    for i in range(COUNT):
        layer = np.repeat((255 * (truth(i) == 1)).astype(np.uint8).ravel(), 4)
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        brush = {"format": "rle", "rle": pack_runs(layer), "brushlabels": ["car"]}
        percent = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in moved(SHAPES[1][1], i)]
        polygon = {"points": percent, "closed": True, "polygonlabels": ["person"]}
        kinds = (("brushlabels", brush), ("polygonlabels", polygon))
        results = [
            {**size, "value": value, "id": f"r{i}", "from_name": "tag", "to_name": "image", "type": kind}
            for kind, value in kinds
        ]
        name = f"/data/upload/1/3f2a1b2c-{i:02}.jpg"
        annotation = {"id": i, "completed_by": 1, "result": results, "was_cancelled": False, "ground_truth": False}
        task = {"id": i, "annotations": [annotation], "drafts": [], "predictions": [], "data": {"image": name}}
        if small:
            task = {"image": name, "id": i, "tag": [{**size, **value} for _, value in kinds], "annotator": 1}
        tasks.append(task)
    write_json(root / "project-1-at-2026-01-01.json", tasks)


def write_cvat(root):
    """Segmentation mask 1.1: colours, and a file that says whose they are."""
    write_images(root / "JPEGImages")
    colours = {"background": (0, 0, 0), "car": (10, 10, 128), "person": (108, 0, 100)}
    lines = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in colours.items()]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    (root / "SegmentationClass").mkdir()
    palette = np.array(list(colours.values()), np.uint8)
    for i in range(COUNT):
        Image.fromarray(palette[truth(i)]).save(root / "SegmentationClass" / f"{i:02}.png")


def write_masks(root):
    write_images(root / "images")
    for name in ("car", "person"):
        (root / "masks" / name).mkdir(parents=True)
        for i in range(COUNT):
            mask = (truth(i) == CLASSES.index(name)).astype(np.uint8)
            Image.fromarray(mask * (255 if i else 1)).save(root / "masks" / name / f"{i:02}.png")


EXPORTS = {
    "coco": write_coco,
    "labelme": write_labelme,
    "yolo-seg": write_yolo,
    "label-studio": write_label_studio,
    "cvat": write_cvat,
    "masks": write_masks,
}


def read_all(root, spec, classes=CLASSES, **more):
    run = resolve({"source": {"root": str(root), "spec": spec, **more}, "classes": classes})
    code = code_for(run.source, run.classes)
    return [read_labels(pair.label, code, pair.image).numpy() for pair in find_pairs(run.source)]


def run(words, capsys):
    with mock.patch("sys.argv", ["ssrseg", *words]), pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0, "".join(capsys.readouterr())


@pytest.mark.parametrize("spec", EXPORTS)
def test_an_export_is_read_as_its_tool_means_it(tmp_path, spec):
    EXPORTS[spec](tmp_path)
    for i, ids in enumerate(read_all(tmp_path, spec)):
        assert np.array_equal(ids, truth(i)), (spec, i)


@pytest.mark.parametrize("spec", EXPORTS)
def test_an_export_is_trained_on_from_one_file(tmp_path, spec, capsys):
    EXPORTS[spec](tmp_path / "export")
    write_images(tmp_path / "target" / "images")
    settings = {
        "classes": CLASSES,
        "source": {"root": str(tmp_path / "export"), "spec": spec},
        "val": {"root": str(tmp_path / "export"), "spec": spec},
        "loader": {"crop": [32, 32], "batch": 2, "workers": 0},
        "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"},
        "train": {"steps": 1, "accelerator": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    code, said = run(["train", *words], capsys)
    assert code == 0, said
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["last"]["student"]
    labelled = [sum(row) for row in scores["confusion"]]
    assert labelled == np.bincount(np.concatenate([truth(i).ravel() for i in range(COUNT)])).tolist()


def test_json_min_is_label_studio_too(tmp_path):
    write_label_studio(tmp_path, small=True)
    for i, ids in enumerate(read_all(tmp_path, "label-studio")):
        assert np.array_equal(ids, truth(i)), i


def test_run_lengths_are_unpacked_where_words_do_not_repeat():
    values = np.array([5, 6, 7, 7, 7, 7, 0], np.uint8)
    bits = f"{7:032b}{7:05b}" + "0010" * 4  # counts of three bits
    bits += "0" + "00" + "001" + f"{5:08b}{6:08b}" + "1" + "00" + "011" + f"{7:08b}" + "1" + "00" + "000" + f"{0:08b}"
    bits += "0" * (-len(bits) % 8)
    packed = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    assert np.array_equal(unpack_runs(packed), values)
    with pytest.raises(ValueError, match="too early"):
        unpack_runs(packed[:-3])


def test_carlas_red_channel_holds_its_tags(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    for i in range(COUNT):
        pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        pixels[..., 0], pixels[..., 3] = np.where(truth(i) == 1, 14, 24), 255  # car, and a road line
        Image.fromarray(pixels).save(tmp_path / "labels" / f"{i:02}.png")
    ids = read_all(tmp_path, "carla", classes="cityscapes19")[0]
    assert {13, 0} == set(np.unique(ids))
    assert np.array_equal(ids == 13, truth(0) == 1)
    own = read_all(tmp_path, "folders", [{"name": "rest", "ids": [24]}, {"name": "car", "ids": [14]}], channel="red")
    assert np.array_equal(own[0], truth(0) == 1)
    with pytest.raises(UserError, match="coloured"):
        read_all(tmp_path, "folders", ["rest", "car"])


def test_what_no_shape_covers_is_background_or_ignored(tmp_path):
    write_labelme(tmp_path)
    assert set(np.unique(read_all(tmp_path, "labelme", ["car", "person"])[0])) == {0, 1, 255}
    own = [{"name": "thing", "of": ["*"]}, {"name": "other", "of": ["background"]}]
    assert np.array_equal(read_all(tmp_path, "labelme", own)[0], truth(0) == 0)
    assert np.array_equal(read_all(tmp_path, "labelme", "binary")[0], truth(0) > 0)
    with pytest.raises(UserError, match="'Car' of labels is taken by 'one' and by 'two'"):
        read_all(tmp_path, "labelme", [{"name": "one", "of": ["car"]}, {"name": "two", "of": ["Car"]}])


def test_a_name_of_no_class_is_said_and_its_remedy_works(tmp_path, capsys):
    write_coco(tmp_path / "export")
    words = ["check-data", "--source", str(tmp_path / "export"), "source.spec=coco", "--out", str(tmp_path / "out")]
    code, said = run([*words, "classes=[background, car, cyclist]"], capsys)
    assert code == 0
    assert "names 'Person', which no class takes" in " ".join(said.split())
    assert "of: [car, van]" in " ".join(said.split())
    code, said = run([*words, "classes=[background, car, {name: cyclist, of: [person]}]"], capsys)
    assert code == 0
    assert "no class takes" not in said


def test_numbers_need_names(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UserError, match="give every class its number") as error:
        read_all(tmp_path, "yolo-seg")
    advice = yaml.safe_load(str(error.value).partition("'classes=")[2].partition("'")[0])
    assert set(np.unique(read_all(tmp_path, "yolo-seg", advice)[0])) == {0, 1, 255}


def test_an_empty_file_of_yolo_is_background(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "00.txt").write_text("")
    assert (read_all(tmp_path, "yolo-seg")[0] == 0).all()
    (tmp_path / "labels" / "train" / "00.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(UserError, match=r"00\.txt, line 1 has 5 numbers.*a box of a detection"):
        read_all(tmp_path, "yolo-seg")
    (tmp_path / "labels" / "train" / "00.txt").write_text("0 0 0 1 0 1 1\n")  # a class and 3 points
    assert set(np.unique(read_all(tmp_path, "yolo-seg")[0])) == {0, CLASSES.index("person")}


def test_coco_pairs_images_by_the_longest_common_end(tmp_path):
    for folder in "ab":
        write_images(tmp_path / "images" / folder, ["00.jpg"])
    images = [{"id": i, "file_name": f"{f}\\00.jpg", "width": WIDTH, "height": HEIGHT} for i, f in enumerate("ab")]
    categories = [{"id": 1, "name": "car"}]
    ring = [0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]
    drawn = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [ring]}]
    write_json(tmp_path / "result.json", {"images": images, "annotations": drawn, "categories": categories})
    assert [int(ids.max()) for ids in read_all(tmp_path, "coco", ["background", "car"])] == [0, 1]


def test_masks_may_name_their_class_in_the_file(tmp_path):
    write_masks(tmp_path)
    (tmp_path / "flat").mkdir()
    for mask in (tmp_path / "masks").glob("*/*.png"):
        mask.rename(tmp_path / "flat" / f"{mask.stem}_mask_{mask.parent.name}.png")
    for i, ids in enumerate(read_all(tmp_path, "masks", images="images/*", labels="flat/*_mask_{class}.png")):
        assert np.array_equal(ids, truth(i))
    Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint32).reshape(HEIGHT, WIDTH).astype(np.uint8)).save(
        tmp_path / "flat" / "00_mask_car.png"
    )
    with pytest.raises(UserError, match=r"00_mask_car\.png is no mask of one class"):
        read_all(tmp_path, "masks", images="images/*", labels="flat/*_mask_{class}.png")
    mask = tmp_path / "flat" / "00_mask_car.png"
    Image.fromarray((7 * (truth(0) == CLASSES.index("car"))).astype(np.uint8)).save(mask)  # 0 and one other
    found = read_all(tmp_path, "masks", images="images/*", labels="flat/*_mask_{class}.png")
    assert np.array_equal(found[0], truth(0))


@pytest.mark.parametrize("spec", EXPORTS)
def test_an_export_may_lie_in_its_archive(tmp_path, spec):
    EXPORTS[spec](tmp_path / "export")
    shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "export")
    assert np.array_equal(read_all(tmp_path / "export.zip", spec)[1], truth(1))


def test_a_file_of_another_kind_says_so(tmp_path):
    write_images(tmp_path / "images")
    write_json(tmp_path / "notes.json", {"version": 1})
    with pytest.raises(UserError, match=r"notes\.json is neither COCO .* nor Label Studio .*: set `labels`"):
        read_all(tmp_path, "coco")
    write_json(tmp_path / "images" / "00.json", {"shapes": [{"label": "car"}], "imageWidth": 4, "imageHeight": 4})
    with pytest.raises(UserError, match=r"00\.json is not as annotation tools write it \(KeyError: 'points'\)"):
        read_all(tmp_path, "labelme", images="images/00.jpg", labels="images/00.json")
    write_coco(tmp_path / "export")  # and what the first message advises
    (name,) = {path.name for path in (tmp_path / "export").rglob("*.json")}
    write_json(tmp_path / "export" / "notes.json", {"version": 1})
    assert np.array_equal(read_all(tmp_path / "export", "coco", labels=f"**/{name}")[1], truth(1))


def test_of_two_annotations_of_label_studio_the_true_one_is_marked_or_left(tmp_path):
    write_label_studio(tmp_path)
    (file,) = tmp_path.glob("*.json")
    tasks = json.loads(file.read_text())
    other = {**tasks[1]["annotations"][0], "id": 9, "result": []}
    for change in ({"ground_truth": True}, {"was_cancelled": True}, None):
        tasks[1]["annotations"] = [tasks[1]["annotations"][0] | {"ground_truth": False}, other]
        write_json(file, tasks)
        with pytest.raises(
            UserError, match=r"task 1 .* has 2 annotations: mark one as ground truth, or delete the oth"
        ):
            read_all(tmp_path, "label-studio")
        if change is None:
            del tasks[1]["annotations"][1]
        else:
            number = int("was_cancelled" in change)
            tasks[1]["annotations"][number] = tasks[1]["annotations"][number] | change
        write_json(file, tasks)
        assert np.array_equal(read_all(tmp_path, "label-studio")[1], truth(1))


@pytest.mark.parametrize("names", [["person", "car"], {0: "person", 1: "car"}])
def test_names_of_yolo_are_a_list_or_numbered(names, tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": {"car": 0}}))
    with pytest.raises(UserError, match="expected `names:`, a list, or a number each from 0"):
        read_all(tmp_path, "yolo-seg")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": names}))
    assert np.array_equal(read_all(tmp_path, "yolo-seg")[1], truth(1))


def test_a_line_of_cvats_labelmap_is_as_the_message_has_it(tmp_path):
    write_cvat(tmp_path)
    right = (tmp_path / "labelmap.txt").read_text()
    (tmp_path / "labelmap.txt").write_text(right.replace("::", ""))
    assert np.array_equal(read_all(tmp_path, "cvat")[1], truth(1))
    (tmp_path / "labelmap.txt").write_text(right.replace(",", " "))
    with pytest.raises(UserError, match="expected `name:red,green,blue:parts:actions`"):
        read_all(tmp_path, "cvat")
    (tmp_path / "labelmap.txt").write_text(right.replace("::", ":parts:actions"))
    assert np.array_equal(read_all(tmp_path, "cvat")[1], truth(1))


def test_without_what_draws_coco_its_extra_is_named_once(tmp_path, monkeypatch):
    write_coco(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    source = resolve({"source": {"root": str(tmp_path), "spec": "coco"}, "classes": CLASSES}).source
    with pytest.raises(UserError, match=r"^Labels of COCO need pycocotools: pip install 'ssrseg\[coco\]'$"):
        find_pairs(source)


def test_images_are_packed_and_labels_stay_where_they_are(tmp_path, capsys):
    write_labelme(tmp_path / "export")
    packed = ["pack", str(tmp_path / "export"), str(tmp_path / "images.zip"), "spec=labelme"]
    code, said = run(packed, capsys)
    assert code == 2
    assert "--images-only" in said
    assert "`labels_root`" in said
    assert run([*packed, "--images-only"], capsys)[0] == 0
    found = read_all(tmp_path / "images.zip", "labelme", labels_root=str(tmp_path / "export"))
    assert np.array_equal(found[2], truth(2))


@pytest.mark.parametrize("side", [10**9, 0, -1, 10**30, float("inf")])
def test_a_size_that_no_image_has_is_refused(side: float, tmp_path: Path) -> None:
    """Before memory is taken for it."""
    points = [[2, 2], [40, 2], [40, 40]]
    labelme = {"shapes": [{"label": "car", "points": points}], "imageWidth": side, "imageHeight": 64}
    idd = {"objects": [{"label": "car", "polygon": points}], "imgWidth": 64, "imgHeight": side}
    for number, content in enumerate((labelme, idd)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content))
        code = LabelCode(lookup_table({0: 0}), names={"car": 1}) if content is labelme else LabelCode(lookup_table({}))
        with pytest.raises(UserError, match=str(path)):
            read_labels(path, code)


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    shape = {"label": "car", "points": [[0, 0], [9, 9]], "shape_type": "mask", "mask": "AAAA"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"shapes": [shape], "imageWidth": 64, "imageHeight": 64}))
    with pytest.raises(UserError, match="not as annotation tools write it"):
        read_labels(path, LabelCode(lookup_table({0: 0}), names={"car": 1}))


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([[2, 2, 1e9, 2, 40, 40]], "far outside"),
        ([[2, 2, 40]], "outline of 3 numbers"),
        ({"size": [64, 64], "counts": [100, 200]}, "300 pixels, expected 4096"),
        ({"size": [10**6, 64], "counts": [64 * 10**6]}, "the size"),
    ],
)
def test_outlines_of_coco_that_cannot_be_are_refused(segmentation: object, says: str, tmp_path: Path) -> None:
    """The library would crash on them, or fill the memory."""
    image = {"id": 1, "file_name": "00.png", "width": 64, "height": 64}
    one = {"image_id": 1, "category_id": 1, "segmentation": segmentation}
    content = {"images": [image], "categories": [{"id": 1, "name": "car"}], "annotations": [one]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        read_labels(tmp_path / "a.json" / "00.png", LabelCode(lookup_table({0: 0}), names={"car": 1}))
