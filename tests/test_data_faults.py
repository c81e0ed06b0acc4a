"""Every kind of bad data: a healthy data set, one fault, and exactly that fault is named, before training."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageOps, ImageSequence

from factories import CLASSES, COLORS, random_image, random_labels
from ssrseg.cli import main
from ssrseg.config import Settings, assignments, merge, resolve
from ssrseg.data import code_for, find_images, find_pairs, read_image, read_labels, refuse_bad_data, train_batches
from ssrseg.data.checks.problems import KINDS
from ssrseg.data.checks.survey import survey
from ssrseg.errors import UserError
from ssrseg.training.observers.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's word; the image is read

Settled = dict[str, Any] | None
Mend = Callable[["At", str], list[str] | None]
"""Follows what is printed, which it is given: changes files, or returns words for the command line."""
COUNTS = {"game": 5, "camera": 4, "street": 3}
"""Images of source, target and val."""


@dataclass(frozen=True)
class At:
    """Where a fault is put."""

    root: Path
    stem: str = "01"

    @property
    def image(self) -> Path:
        return self.root / "game" / "images" / f"{self.stem}.png"

    @property
    def label(self) -> Path:
        return self.root / "game" / "labels" / f"{self.stem}.png"

    @property
    def target(self) -> Path:
        return self.root / "camera" / "images" / f"{self.stem}.png"

    def pixels(self) -> Any:
        return np.asarray(Image.open(self.image).convert("RGB"))

    def ids(self) -> Any:
        return np.asarray(Image.open(self.label))


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    name: str
    put: Callable[[At], Settled]
    """Breaks the data, and may give settings that lie over the healthy ones."""
    kinds: tuple[str, ...] = ()
    """What must be reported, by `domain: kind`, once per file; nothing else may be."""
    says: tuple[str, ...] = ()
    """Fragments of the message; `{image}` and `{label}` are the broken files' paths."""
    together: bool = True
    """Whether other faults can stand beside it in one data set."""
    raises: bool = False
    """Whether the settings alone are wrong."""
    mend: Mend | None = None
    """Absent where nothing is advised."""
    other: bool = False
    """Whether the labels then mean something else than those of the healthy data."""
    left: tuple[str, ...] = ()
    """What is reported still."""


def faults(
    *, kinds: str = "", says: str = "", left: str = "", **more: Any
) -> Callable[[Callable[[At], Settled]], None]:
    """Adds the decorated function to the table; `kinds`, `says` and what is `left` are separated by `;`."""

    def add(put: Callable[[At], Settled]) -> None:
        first, second, last = (
            tuple(word.strip() for word in text.split(";") if word.strip()) for text in (kinds, says, left)
        )
        TABLE.append(Fault(put.__name__.replace("_", " ").strip(), put, first, second, left=last, **more))

    return add


TABLE: list[Fault] = []


def healthy(root: Path, counts: dict[str, int] = COUNTS) -> Path:
    """Source, target and val of 64x64, all of different content, every class in every label."""
    for number, (name, count) in enumerate(counts.items()):
        for kind in ("images", "labels")[: 1 if name == "camera" else 2]:
            (root / name / kind).mkdir(parents=True)
        for i in range(count):
            seed = 1000 * number + i
            Image.fromarray(random_image(seed=seed)).save(root / name / "images" / f"{i:02}.png")
            if name != "camera":
                Image.fromarray(random_labels(seed=seed)).save(root / name / "labels" / f"{i:02}.png")
    return root


def settings_tree(root: Path) -> dict[str, Any]:
    return {
        "classes": list(CLASSES),
        "source": {"root": str(root / "game")},
        "target": {"root": str(root / "camera")},
        "val": {"root": str(root / "street")},
        "loader": {"crop": [32, 32], "workers": 0, "rare_class": {}},
        "method": {"teacher": {}, "mixed": {}},
        "train": {"steps": 8},
    }


def pair(at: At, height: int, width: int) -> None:
    Image.fromarray(random_image(height, width)).save(at.image)
    Image.fromarray(random_labels(height, width)).save(at.label)


def turned(path: Path, orientation: int, width: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(random_image(64, width, seed=96)).save(path, exif=exif)


def rectangle(row: int, height: int = 16) -> list[list[int]]:
    """Across an image."""
    top, bottom = row * height, row * height + height - 1
    return [[0, top], [63, top], [63, bottom], [0, bottom]]


def in_colours(path: Path) -> None:
    ids = np.asarray(Image.open(path))
    Image.fromarray(np.array(COLORS, np.uint8)[np.where(ids == 255, 0, ids)]).save(path)


def png_header(width: int, height: int) -> bytes:
    """A PNG without pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def broken(fault: Fault, root: Path) -> tuple[dict[str, Any], Counter[str], At]:
    """The data with one fault: its settings, what must be reported, and where."""
    tree, at = settings_tree(healthy(root)), At(root)
    for key, value in (fault.put(at) or {}).items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return tree, Counter(fault.kinds), at


# --- what messages advise


def unlink(*names: str) -> Mend:
    """Remove files below the folder of the data; `{stem}` is that of the broken ones."""

    def follow(at: At, text: str) -> None:
        for name in names:
            for file in at.root.glob(name.format(stem=at.stem)):
                file.unlink()

    return follow


remove = unlink("game/images/{stem}*", "game/labels/{stem}*")
remove_target = unlink("camera/images/{stem}*")


def replace(at: At, text: str) -> None:
    unlink("game/images/{stem}*")(at, text)
    Image.fromarray(random_image(seed=int(at.stem))).save(at.image)


def add_label(at: At, text: str) -> None:
    """In the place of what is there."""
    unlink("game/labels/{stem}*")(at, text)
    Image.fromarray(random_labels(seed=int(at.stem))).save(at.label)


def draw_label(at: At, text: str) -> None:
    add_label(at, text)
    in_colours(at.label)


def add_labels(at: At, text: str) -> None:
    for number in range(COUNTS["game"]):
        add_label(At(at.root, f"{number:02}"), text)


def save_as_files(at: At, text: str) -> None:
    """The pages of an image, with labels, as the others have."""
    (file,) = at.image.parent.glob(f"{at.stem}*")
    with Image.open(file) as opened:
        pages = [page.convert("RGB") for page in ImageSequence.Iterator(opened)]
    file.unlink()
    pages[0].save(at.image)
    for number, page in enumerate(pages[1:]):
        page.save(at.image.with_name(f"page {number} of {at.stem}.png"))
        shutil.copy(at.label, at.label.with_name(f"page {number} of {at.stem}.png"))


def save_as_png(at: At, text: str) -> None:
    """Likewise."""
    for number, file in enumerate(at.image.parent.glob("*.heic")):
        file.unlink()
        Image.fromarray(random_image(seed=50 + number)).save(file.with_suffix(".png"))
        shutil.copy(at.label, at.label.with_name(f"{file.stem}.png"))


def rename(at: At, text: str) -> None:
    image, label = map(Path, re.findall(r"(\S+) has no label\. (\S+)", text)[0])
    label.rename(label.with_name(image.name))


def turn(at: At, text: str) -> None:
    Image.fromarray(np.rot90(at.ids(), -1)).save(at.label)


def save_upright(at: At, text: str) -> None:
    with Image.open(at.image) as file:
        image = ImageOps.exif_transpose(file)
    image.save(at.image, exif=b"")


def zip_again(at: At, text: str) -> None:
    replace(at, text)
    zipped(at)


def write_masks(at: At, text: str) -> None:
    (at.root / "camera" / "masks").mkdir(exist_ok=True)
    for image in (at.root / "camera" / "images").iterdir():
        Image.new("L", (64, 64)).save(at.root / "camera" / "masks" / image.name)


def write_stems(at: At, text: str) -> None:
    (at.root / "list.txt").write_text("00\n01\n")


def say(*words: str) -> Mend:
    """Set what the message describes; `{root}` is the folder of the data."""
    return lambda at, text: [word.replace("{root}", str(at.root)) for word in words]


def say_it(at: At, text: str) -> list[str]:
    """Set the first word that the message prints."""
    return ["".join(re.findall(r"'([\w.]+=[^']+)'|`([\w.]+=[^`]+)`", text)[0])]


def say_fewer(at: At, text: str) -> list[str]:
    return [f"loader.rare_class.min_pixels={min(map(int, re.findall('[a-z] ([0-9]+)[,.]', text))) - 1}"]


def say_largest(at: At, text: str) -> list[str]:
    return [f"source.resize={max(map(json.loads, re.findall(r'resize=(.*?])', text)))}"]


# --- pairs that are not


@faults(kinds="source: label without image", says="{label} has no image", mend=remove)
def an_image_is_missing(at: At) -> Settled:
    at.image.unlink()


@faults(kinds="source: image without label", says="{image} has no label", mend=add_label)
def a_label_is_missing(at: At) -> Settled:
    at.label.unlink()


@faults(
    kinds="source: image without label",
    says="images/A.png has no label.;labels/a.png differs in capital letters alone: write both",
    together=False,
    mend=rename,
)
def an_image_has_a_capital_that_its_label_has_not(at: At) -> Settled:
    at.image.rename(at.image.with_name("A.png"))
    at.label.rename(at.label.with_name("a.png"))


@faults(
    kinds="source: files that are not read",
    says="2 files (.heic 2): a01.heic, b01.heic",
    together=False,
    mend=save_as_png,
)
def images_are_of_a_kind_that_is_not_read(at: At) -> Settled:
    for name in "ab":
        at.image.with_name(f"{name}{at.stem}.heic").write_bytes(b"heic")


@faults(
    kinds="source: image without label",
    says="{image} has no label;01.xcf would fit, but .xcf is not read so",
    together=False,
    mend=add_label,
)
def a_label_is_of_a_kind_that_is_not_read(at: At) -> Settled:
    at.label.rename(at.label.with_suffix(".xcf"))


@faults(
    kinds="source: image without label;" * 5,
    says="{image} has no label.;01.json would fit, but .json is not read so: if it is of LabelMe, say",
    together=False,
    mend=say_it,
    other=True,
)
def labels_are_of_labelme(at: At) -> Settled:
    for label in at.label.parent.iterdir():
        shapes = [{"label": name, "points": rectangle(row)} for row, name in enumerate(CLASSES)]
        content = {"shapes": shapes, "imageWidth": 64, "imageHeight": 64}
        label.rename(label.with_suffix(".json")).write_text(json.dumps(content))


@faults(
    kinds="source: image without label;" * 5,
    says="{image} has no label.;01.txt would fit, but .txt is not read so: if it is of YOLO, say",
    together=False,
    mend=say_it,
    other=True,
)
def labels_are_of_yolo(at: At) -> Settled:
    (at.root / "game" / "data.yaml").write_text(json.dumps({"names": CLASSES}))
    for label in at.label.parent.iterdir():
        lines = [[row, *(x / 64 for point in rectangle(row) for x in point)] for row in range(len(CLASSES))]
        label.rename(label.with_suffix(".txt")).write_text("\n".join(" ".join(map(str, line)) for line in lines))


@faults(together=False)
def a_list_names_files(at: At) -> Settled:
    return listed(at, "00.png\nimages/01.png\nimages\\\\02.png\n")


@faults(together=False)
def the_wildcards_of_images_and_labels_differ(at: At) -> Settled:
    return {"source": {"images": "images/*.png"}}


@faults(together=False)
def an_archive_was_made_on_windows(at: At) -> Settled:
    with zipfile.ZipFile(at.root / "win.zip", "w") as archive:
        for file in sorted((at.root / "game").rglob("*.png")):
            info = zipfile.ZipInfo("x")
            info.filename = str(file.relative_to(at.root / "game")).replace("/", "\\")
            archive.writestr(info, file.read_bytes())
    return {"source": {"root": str(at.root / "win.zip")}}


@faults(together=False)
def accents_stand_apart_in_one_of_two_names(at: At) -> Settled:
    at.image.rename(at.image.with_name("Ma\u0308he.png"))
    at.label.rename(at.label.with_name("M\u00e4he.png"))


@faults(
    kinds="target: cannot be listed",
    says="4 in Images/. If the first are meant: 'target.images=Images/*'",
    together=False,
    mend=say_it,
)
def the_folder_of_images_is_in_capitals(at: At) -> Settled:
    (at.root / "camera" / "images").rename(at.root / "camera" / "Images")


@faults(
    kinds="source: one name twice",
    says="{image}; differ in their ending only",
    together=False,
    mend=unlink("game/images/{stem}.jpg"),
)
def one_stem_has_two_images(at: At) -> Settled:
    Image.fromarray(at.pixels()).save(at.image.with_suffix(".jpg"))


@faults(
    kinds="target: one name twice",
    says="01.jpg; differ in their ending only",
    together=False,
    mend=unlink("camera/images/{stem}.jpg"),
)
def one_stem_has_two_target_images(at: At) -> Settled:
    Image.fromarray(at.pixels()).save(at.target.with_suffix(".jpg"))


@faults(
    kinds="source: image without label;" * 5,
    says="game/images/04.png has no label",
    together=False,
    mend=say_it,
)
def the_label_folder_has_another_name(at: At) -> Settled:
    (at.root / "game" / "labels").rename(at.root / "game" / "annotations")


@faults(
    kinds="source: image and label are exchanged;" * 5,
    says="{image} holds values of classes only, and its label {label} none",
    together=False,
    mend=say("source.images=labels/**/*", "source.labels=images/**/*"),
)
def image_and_label_folders_are_swapped(at: At) -> Settled:
    swap(at)


@faults(
    kinds="source: image and label are exchanged;" * 5,
    says="{image} holds values of classes only",
    together=False,
    mend=say("source.images=labels/**/*", "source.labels=images/**/*"),
    other=True,
)
def photographs_in_the_folder_of_labels_are_jpegs(at: At) -> Settled:
    for image in at.image.parent.iterdir():
        Image.open(image).save(image.with_suffix(".jpg"), quality=95)
        image.unlink()
    swap(at)


def swap(at: At) -> None:
    game = at.root / "game"
    (game / "images").rename(game / "x")
    (game / "labels").rename(game / "images")
    (game / "x").rename(game / "labels")


@faults(
    kinds="source: image is its own label",
    says="both image and label",
    together=False,
    mend=say("source.labels=labels/*"),
)
def labels_are_the_images(at: At) -> Settled:
    return {"source": {"labels": "images/**/*"}}


@faults(
    kinds="source: image is its own label",
    says="both image and label",
    together=False,
    mend=say("source.images=images/*"),
)
def images_are_the_labels(at: At) -> Settled:
    return {"source": {"images": "labels/**/*"}}


REGIONS = {"target": {"masks": "masks/**/*"}, "method": {"teacher": {"regions": {"of": "masks"}}, "mixed": {}}}


@faults(kinds="target: regions cannot be used", says="no label matching 'masks/**/*'", together=False, mend=write_masks)
def a_target_has_no_masks(at: At) -> Settled:
    return REGIONS


@faults(kinds="target: regions cannot be used", says="01.png is 64x64, its regions", together=False, mend=write_masks)
def masks_have_another_size(at: At) -> Settled:
    (at.root / "camera" / "masks").mkdir()
    for image in (at.root / "camera" / "images").iterdir():
        Image.new("L", (64, 64 if image.stem == "00" else 32)).save(at.root / "camera" / "masks" / image.name)
    return REGIONS


# --- files that cannot be read


@faults(kinds="source: image cannot be read", says="{image} cannot be read", mend=replace)
def an_image_is_cut_off(at: At) -> Settled:
    at.image.write_bytes(at.image.read_bytes()[:300])


@faults(kinds="target: image cannot be read", says="{target} cannot be read", mend=remove_target)
def a_target_image_is_cut_off(at: At) -> Settled:
    at.target.write_bytes(at.target.read_bytes()[:300])


@faults(kinds="source: image cannot be read", says="{stem}.jpg cannot be read", mend=replace)
def a_jpeg_is_cut_off(at: At) -> Settled:
    pixels = at.pixels()
    at.image.unlink()
    file = at.image.with_suffix(".jpg")
    Image.fromarray(pixels).save(file)
    file.write_bytes(file.read_bytes()[:-500])


@faults(kinds="source: image cannot be read", says="{image} cannot be read", mend=replace)
def the_middle_of_an_image_is_garbage(at: At) -> Settled:
    encoded = bytearray(at.image.read_bytes())
    encoded[len(encoded) // 3 : len(encoded) // 2] = bytes(len(encoded) // 2 - len(encoded) // 3)
    at.image.write_bytes(encoded)


@faults(kinds="source: image cannot be read", says="{image} is empty (0 bytes)", mend=replace)
def an_image_is_empty(at: At) -> Settled:
    at.image.write_bytes(b"")


@faults(kinds="source: image cannot be read", says="{image} cannot be read", mend=replace)
def an_image_is_text(at: At) -> Settled:
    at.image.write_text("<html>Not found</html>")


@faults(kinds="source: image cannot be read", says="{image} cannot be read; No such file", mend=replace)
def an_image_is_a_link_to_nothing(at: At) -> Settled:
    at.image.unlink()
    at.image.symlink_to("gone.png")


@faults(kinds="source: image cannot be read", says="{image} cannot be read; symbolic links", mend=replace)
def an_image_is_a_link_to_itself(at: At) -> Settled:
    at.image.unlink()
    at.image.symlink_to(at.image)


@faults(kinds="source: image cannot be read", says="{image} cannot be read: it is no file, but a pipe", mend=replace)
def an_image_is_a_pipe(at: At) -> Settled:
    at.image.unlink()
    os.mkfifo(at.image)


@faults(kinds="source: label cannot be read", says="{label} cannot be read: it is no file, but a pipe", mend=remove)
def a_label_is_a_pipe(at: At) -> Settled:
    at.label.unlink()
    os.mkfifo(at.label)


@faults(
    kinds="source: image cannot be read", says="{image} cannot be read; Permission denied", together=False, mend=replace
)
def an_image_may_not_be_read(at: At) -> Settled:
    if os.getuid() == 0:
        pytest.skip("root may read everything")
    at.image.chmod(0)


@faults(
    kinds="source: image cannot be read",
    says="{image} cannot be read; 3600000000 pixels exceed the limit of; loader.max_pixels=3600000000",
    mend=replace,
)
def a_header_promises_more_pixels_than_memory(at: At) -> Settled:
    at.image.write_bytes(png_header(60_000, 60_000))


@faults(kinds="source: image cannot be read", says="{stem}.tif has 32 bits per pixel", mend=replace)
def an_image_holds_floats(at: At) -> Settled:
    grey = at.pixels()[..., 0].astype(np.float32)
    at.image.unlink()
    Image.fromarray(grey).save(at.image.with_suffix(".tif"))


@faults(kinds="source: label cannot be read", says="{label} cannot be read", mend=remove)
def a_label_is_cut_off(at: At) -> Settled:
    at.label.write_bytes(at.label.read_bytes()[:100])


@faults(kinds="source: label cannot be read", says="{label} is empty (0 bytes)", mend=add_label)
def a_label_is_empty(at: At) -> Settled:
    at.label.write_bytes(b"")


@faults(kinds="source: label cannot be read", says="{label} cannot be read", mend=remove)
def a_label_is_text(at: At) -> Settled:
    at.label.write_text("road")


@faults(
    kinds="val: label cannot be read",
    says="street/labels/01.png cannot be read",
    together=False,
    mend=unlink("street/labels/01.png", "street/images/01.png"),
)
def a_scored_label_is_text(at: At) -> Settled:
    (at.root / "street" / "labels" / "01.png").write_text("road")


# --- labels that mean something else


@faults(
    kinds="source: value of no class",
    says="{label} holds the value 9, but there are 4 classes",
    mend=say("source.id_map={0: 0, 1: 1, 2: 2, 3: 3, 9: 255}"),
    other=True,
)
def a_label_value_is_no_class(at: At) -> Settled:
    ids = at.ids().copy()
    ids[:4] = 9
    Image.fromarray(ids).save(at.label)


@faults(
    kinds="source: value of no class;" * 5,
    says="there are 2 classes (0..1",
    together=False,
    mend=say("source.id_map={0: 0, 1: 1, 2: 255, 3: 255}"),
    other=True,
)
def there_are_fewer_classes_than_label_values(at: At) -> Settled:
    for file in (at.root / "street" / "labels").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) % 2).save(file)
    return {"classes": ["road", "wall"]}


@faults(
    kinds="source: value of no class",
    says="{label} holds the values 45, 46, 47, 48, 300",
    mend=say("source.id_map={45: 0, 46: 1, 47: 2, 48: 3, 300: 255}"),
)
def a_label_value_has_16_bits(at: At) -> Settled:
    Image.fromarray(at.ids().astype(np.uint16) + 300 - 255).save(at.label)


@faults()
def a_label_has_16_bits(at: At) -> Settled:
    Image.fromarray(at.ids().astype(np.uint16)).save(at.label)


@faults(
    kinds="source: sizes differ", says="{image} and its label {label} differ in size: 64x64 and 48x64", mend=add_label
)
def a_label_has_another_size(at: At) -> Settled:
    Image.fromarray(random_labels(64, 48)).save(at.label)


@faults()
def a_label_has_a_palette(at: At) -> Settled:
    label = Image.fromarray(at.ids())
    label.putpalette([value for color in COLORS for value in color])
    label.save(at.label)


@faults()
def a_label_is_grey_with_alpha(at: At) -> Settled:
    Image.fromarray(at.ids()).convert("LA").save(at.label)


@faults(together=False)
def labels_are_in_the_colours_of_the_classes(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():
        in_colours(file)
    return {"classes": [{"name": n, "color": c} for n, c in zip(CLASSES, COLORS, strict=True)]}


@faults(kinds="source: label of another kind", says="{label} is coloured; not known", mend=add_label)
def a_label_is_in_colours_that_nobody_gave(at: At) -> Settled:
    in_colours(at.label)


@faults(
    kinds="source: label of another kind;" * 5,
    says="{label} is coloured; Give every class in `classes` a `color` [red, green, blue] of its own",
    together=False,
    mend=say(f"classes={json.dumps([{'name': n, 'color': c} for n, c in zip(CLASSES, COLORS, strict=True)])}"),
    other=True,
)
def labels_are_in_colours_that_nobody_gave(at: At) -> Settled:
    for file in at.label.parent.iterdir():
        in_colours(file)


@faults(
    kinds="source: label of another kind",
    says="{label} holds the colour (1, 2, 3)",
    together=False,
    mend=draw_label,
    other=True,
)
def a_label_has_a_colour_of_no_class(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():
        in_colours(file)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[3:9] = (1, 2, 3)
    Image.fromarray(pixels).save(at.label)
    return {"classes": [{"name": n, "color": c} for n, c in zip(CLASSES, COLORS, strict=True)]}


@faults(kinds="source: label is a JPEG", says="{stem}.jpg is a JPEG", mend=add_label)
def a_label_was_compressed(at: At) -> Settled:
    ids = at.ids()
    at.label.unlink()
    Image.fromarray(ids).save(at.label.with_suffix(".jpg"))


@faults(kinds="source: label of one class", says="{label} shows class 2 only")
def a_label_shows_one_class(at: At) -> Settled:
    Image.fromarray(np.full((64, 64), 2, np.uint8)).save(at.label)


@faults(kinds="source: label without any class", says="{label} shows no class", mend=remove)
def a_label_is_all_ignored(at: At) -> Settled:
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(at.label)


@faults(kinds="source: no class in any label", says="shows any class; game", together=False)
def all_labels_are_all_ignored(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(file)


@faults(
    kinds="source: one class in all labels;" + "source: label of one class;" * 5,
    says="game show road alone",
    together=False,
    mend=add_labels,
)
def all_labels_show_one_class(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(file)


@faults(
    kinds="source: images never drawn;" + "source: label of one class;" * 3,
    says="of 5 source images will never be drawn",
    together=False,
    mend=say_it,
    other=True,
    left="source: label of one class;" * 3,
)
def most_images_lack_the_rare_class(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():
        ids = np.zeros((64, 64), np.uint8)
        ids[:16, : 16 if file.stem in ("00", "01") else 0] = 1
        Image.fromarray(ids).save(file)
    for file in (at.root / "street" / "labels").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) % 2).save(file)
    return {"classes": ["ground", "crack"], "loader": {"rare_class": {"any_image": 0, "min_pixels": 8}}}


@faults(
    kinds="source: class below min_pixels", says="no image shows more than 5000 pixels", together=False, mend=say_fewer
)
def rare_classes_need_more_pixels_than_images_have(at: At) -> Settled:
    return {"loader": {"rare_class": {"min_pixels": 5000}}}


@faults(
    kinds="source: thin class; source: pixels of no class",
    says="At 24x24, the size in training;car 3.0 (4 at resize=[32, 32]);% of the pixels are ignored; value 255: ",
    together=False,
    mend=say_largest,
    other=True,
    left="source: pixels of no class",
)
def the_source_is_scaled_down_to_thin_classes(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():  # blocks of 8 pixels: few have two of a class side by side
        ids = np.array(Image.open(file))
        Image.fromarray(np.where((np.indices((64, 64)) // 8).sum(0) % 2, 255, ids).astype(np.uint8)).save(file)
    return {"source": {"resize": [24, 24]}, "loader": {"crop": [16, 16], "rare_class": None}}


@faults(
    kinds="source: class that never occurs; val: class without a pixel to score; source: no thing in any label",
    says="boat: in none of the labels",
    together=False,
    mend=say_it,
    left="source: class that never occurs; val: class without a pixel to score",
)
def no_label_shows_a_thing(at: At) -> Settled:
    distance = {"feature_distance": {"classes": ["boat"]}}
    return {"classes": [*CLASSES, "boat"], "method": {"teacher": {}, "mixed": {}, **distance}}


@faults(
    kinds="source: class that never occurs; val: class without a pixel to score",
    says="no pixel of boat",
    together=False,
)
def a_class_never_occurs(at: At) -> Settled:
    return {"classes": [*CLASSES, "boat"]}


@faults(
    kinds="source: value that no class takes; val: class without a pixel to score",
    says='but 25.0% hold 255; if that is boat, \'classes=["road"; "boat", "ids": [255]}}]\'; 4: 4, 255: 255}}\'',
    together=False,
    mend=say_it,
    other=True,
)
def a_class_has_the_value_that_is_ignored(at: At) -> Settled:
    write_255(at)
    return {"classes": [*CLASSES, "boat"]}


@faults(
    kinds="source: value that no class takes; val: class without a pixel to score",
    says="but 25.0% hold 255; if that is boat, 'source.id_map={{; if it is to be ignored, 'source.id_map={{",
    together=False,
    mend=say_it,
    other=True,
    left="val: class without a pixel to score",
)
def a_class_has_a_value_that_id_map_does_not_name(at: At) -> Settled:
    write_255(at)
    return {"classes": [*CLASSES, "boat"], "source": {"id_map": {i: i for i in range(4)}}}


def write_255(at: At) -> None:
    for file in (at.root / "game" / "labels").iterdir():
        ids = np.array(Image.open(file)) % 4
        ids[:16] = 255
        Image.fromarray(ids).save(file)


@faults(
    kinds="source: pixels of no class",
    says="of the pixels are ignored; value 0: 25.0%, value 255: ",
    together=False,
    mend=say("source.id_map={1: 0, 2: 1, 3: 2, 4: 3, 0: 255}"),
    other=True,
)
def values_are_of_no_class(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():
        ids = np.array(Image.open(file))
        ids = np.where(ids == 255, 255, ids + 1)
        ids[:16] = 0
        Image.fromarray(ids).save(file)
    for file in (at.root / "street" / "labels").iterdir():
        ids = np.array(Image.open(file))
        Image.fromarray(np.where(ids == 255, 255, ids + 1)).save(file)
    return {"classes": [{"name": name, "ids": [i + 1]} for i, name in enumerate(CLASSES)]}


TRAIN_IDS = "0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8, 9: 9, 10: 10, 11: 11, 12: 12, 13: 13, 14: 14, 15: 15"


@faults(
    kinds="source: train ids instead of raw values",
    says=f"look like train ids; source.id_map={{{{{TRAIN_IDS}, 16: 16, 17: 17, 18: 18}}}}",
    together=False,
    mend=say_it,
    left="source: class that never occurs",
    other=True,
)
def labels_were_converted_to_train_ids(at: At) -> Settled:
    game = {"spec": "gta5", "images": "images/**/*", "labels": "labels/**/*"}
    val = {"root": str(at.root / "street"), "spec": "cityscapes-trainids", "images": "images/*", "labels": "labels/*"}
    (at.root / "street" / "labels").rename(at.root / "street" / "x")
    (at.root / "street" / "labels").mkdir()
    for file in (at.root / "street" / "x").iterdir():
        Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 19).save(
            at.root / "street" / "labels" / file.name
        )
    return {"classes": None, "source": game, "val": val}


@faults(
    kinds="source: labels of several kinds",
    says="are read by; colours (00.png), values (01.png)",
    together=False,
    mend=draw_label,
    other=True,
)
def some_labels_are_in_colours(at: At) -> Settled:
    for file in (at.root / "game" / "labels").iterdir():
        if file != at.label:
            in_colours(file)
    return {"classes": [{"name": n, "color": c} for n, c in zip(CLASSES, COLORS, strict=True)]}


@faults()
def a_label_is_black_and_white(at: At) -> Settled:
    Image.fromarray(at.ids() == 1).save(at.label)


# --- images of other kinds


@faults(kinds="source: band that is not used", says="has 4 bands: the fourth is not used")
def an_image_has_an_alpha_channel(at: At) -> Settled:
    Image.fromarray(at.pixels()).convert("RGBA").save(at.image)


@faults()
def an_image_is_grey(at: At) -> Settled:
    Image.fromarray(at.pixels()).convert("L").save(at.image)


@faults()
def a_target_image_is_grey(at: At) -> Settled:
    Image.fromarray(random_image(seed=77)).convert("L").save(at.root / "camera" / "images" / f"grey{at.stem}.png")


@faults()
def an_image_is_grey_of_16_bits(at: At) -> Settled:
    Image.fromarray(at.pixels()[..., 0].astype(np.uint16) * 257).save(at.image)


@faults(
    kinds="source: dark 16 bits",
    says="5 images of 16 bits, of which the values up to 3;(4.; train with 'model.value_range=[0, 3",
    together=False,
    mend=say_it,
    other=True,
)
def images_of_16_bits_hold_12(at: At) -> Settled:
    for file in (at.root / "game" / "images").iterdir():
        grey = np.asarray(Image.open(file))[..., 0].astype(np.uint16) * 12
        Image.fromarray(grey).save(file)


@faults()
def an_image_has_a_palette(at: At) -> Settled:
    Image.fromarray(at.pixels()).quantize(16).save(at.image)


@faults()
def an_image_is_cmyk(at: At) -> Settled:
    pixels = at.pixels()
    at.image.unlink()
    Image.fromarray(pixels).convert("CMYK").save(at.image.with_suffix(".jpg"))


@faults()
def an_image_carries_bytes_after_its_end(at: At) -> Settled:
    at.image.write_bytes(at.image.read_bytes() + bytes(5000))


@faults()
def an_image_carries_broken_exif(at: At) -> Settled:
    pixels = at.pixels()
    at.image.unlink()
    Image.fromarray(pixels).save(at.image.with_suffix(".jpg"), exif=b"Exif\0\0MM\0*\0\0\0\xffgarbage")


@faults()
def a_camera_turned_an_image_and_its_label_is_as_shown(at: At) -> Settled:
    turned(at.image, 6, 48)
    Image.fromarray(random_labels(48, 64)).save(at.label)


@faults(
    kinds="source: sizes differ",
    says="{image} and its label {label}; as it is stored: turn the label",
    mend=turn,
    other=True,
)
def a_camera_turned_an_image_and_its_label_is_as_stored(at: At) -> Settled:
    turned(at.image, 6, 48)
    Image.fromarray(random_labels(64, 48)).save(at.label)


@faults(
    kinds="source: turned by its camera",
    says="{image} is shown turned (EXIF orientation 3)",
    mend=save_upright,
    other=True,
)
def a_camera_held_upside_down(at: At) -> Settled:
    turned(at.image, 3, 64)


@faults(kinds="source: several pages", says="{stem}.tif holds 3 pictures", mend=save_as_files, other=True)
def an_image_has_several_pages(at: At) -> Settled:
    first, *others = [Image.fromarray(random_image(seed=seed)) for seed in (91, 92, 93)]
    at.image.unlink()
    first.save(at.image.with_suffix(".tif"), save_all=True, append_images=others)


@faults(kinds="source: several pages", says="{label} holds 2 labels", mend=add_label)
def a_label_has_several_pages(at: At) -> Settled:
    first, second = (Image.fromarray(np.roll(at.ids(), step)) for step in (0, 1))
    first.save(at.label, save_all=True, append_images=[second])


@faults(kinds="source: label is a JPEG", says="{stem}.webp is a WebP with loss", mend=add_label)
def a_label_was_compressed_in_another_format(at: At) -> Settled:
    Image.fromarray(at.ids()).convert("RGB").save(at.label.with_suffix(".webp"), quality=80)
    at.label.unlink()


@faults(kinds="source: image cannot be read", says="{image} cannot be read; git lfs pull", mend=replace)
def an_image_is_a_pointer_of_git_lfs(at: At) -> Settled:
    at.image.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


@faults(kinds="source: several pages", says="{image} holds 2 pictures", mend=save_as_files, other=True)
def an_image_moves(at: At) -> Settled:
    first, second = (Image.fromarray(random_image(seed=seed)) for seed in (94, 95))
    first.save(at.image, "GIF", save_all=True, append_images=[second])


@faults(
    kinds="source: smaller than the crop",
    says="{image} (20x30, crop 32x32)",
    mend=say("loader.crop=[30, 20]"),
    other=True,
)
def an_image_is_smaller_than_the_crop(at: At) -> Settled:
    pair(at, 30, 20)


@faults(kinds="source: smaller than the crop; source: label of one class", says="{image} (1x1, crop 32x32)")
def an_image_is_one_pixel(at: At) -> Settled:
    Image.new("RGB", (1, 1), (9, 99, 199)).save(at.image)
    Image.fromarray(np.array([[0]], np.uint8)).save(at.label)


@faults(kinds="source: extreme shape", says="{image} (900x2)", mend=remove)
def an_image_is_a_line(at: At) -> Settled:
    pair(at, 2, 900)


@faults(kinds="target: extreme shape", says="{target} (2000x1)", together=False, mend=remove_target)
def a_target_image_is_a_line_and_is_scaled_down(at: At) -> Settled:
    Image.fromarray(random_image(1, 2000)).save(at.target)
    return {"target": {"resize": [64, 64]}}


# --- names and folders


@faults()
def a_suffix_is_in_capitals(at: At) -> Settled:
    at.image.rename(at.image.with_suffix(".PNG"))


@faults()
def a_mac_left_its_files(at: At) -> Settled:
    for name in (f"._{at.stem}.png", ".DS_Store", f".{at.stem}.png"):
        at.image.with_name(name).write_bytes(b"Mac OS X")
        at.label.with_name(name).write_bytes(b"Mac OS X")


@faults()
def a_name_has_spaces_and_other_scripts(at: At) -> Settled:
    for file in (at.image, at.label):
        file.rename(file.with_name(f"Straße {at.stem} 通り.png"))


@faults()
def a_name_is_no_utf8(at: At) -> Settled:
    for file in (at.image, at.label):
        os.rename(file, os.fsencode(file.with_suffix("")) + b"\xff.png")


@faults(kinds="source: image cannot be read", says="cannot be read")
def a_broken_image_has_a_name_that_is_no_utf8(at: At) -> Settled:
    for file in (at.image, at.label):
        os.rename(file, os.fsencode(file.with_suffix("")) + b"\xff.png")
    Path(os.fsdecode(os.fsencode(at.image.with_suffix("")) + b"\xff.png")).write_text("no image", encoding="utf-8")


@faults()
def a_link_leads_in_a_circle(at: At) -> Settled:
    (at.root / "game" / "images" / "again").symlink_to(at.root / "game", target_is_directory=True)


@faults()
def a_folder_is_called_like_an_image(at: At) -> Settled:
    (at.root / "game" / "images" / f"folder{at.stem}.png").mkdir()


@faults(
    kinds="source: cannot be listed",
    says="There is no folder; nowhere",
    together=False,
    mend=say("source.root={root}/game"),
)
def the_source_does_not_exist(at: At) -> Settled:
    return {"source": {"root": str(at.root / "nowhere")}}


@faults(
    kinds="target: cannot be listed",
    says="There is no folder; nowhere",
    together=False,
    mend=say("target.root={root}/camera"),
)
def the_target_does_not_exist(at: At) -> Settled:
    return {"target": {"root": str(at.root / "nowhere")}}


@faults(kinds="target: cannot be listed", says="No image matches 'images/**/*'; camera", together=False)
def the_target_is_empty(at: At) -> Settled:
    shutil.rmtree(at.root / "camera" / "images")


@faults(kinds="target: cannot be listed", says="00.png; file", together=False, mend=say("target.root={root}/camera"))
def the_target_is_a_file(at: At) -> Settled:
    return {"target": {"root": str(at.root / "camera" / "images" / "00.png")}}


@faults(
    kinds="source: cannot be listed",
    says="No image matches 'photos/*.jpg'; game",
    together=False,
    mend=say_it,
)
def wildcards_match_nothing(at: At) -> Settled:
    return {"source": {"images": "photos/*.jpg"}}


@faults(kinds="val: cannot be listed", says="No image matches 'test/images/*'; street", together=False, mend=say_it)
def there_is_no_such_split(at: At) -> Settled:
    return {"val": {"images": "{split}/images/*", "labels": "{split}/labels/*", "split": "test"}}


@faults(kinds="source: cannot be listed", says="game.zip; zip", together=False, mend=zip_again)
def an_archive_is_broken(at: At) -> Settled:
    archive = zipped(at)
    archive.write_bytes(archive.read_bytes()[:2000])
    return {"source": {"root": str(archive)}}


@faults(
    kinds="source: image cannot be read", says="game.zip/images/01.png cannot be read", together=False, mend=zip_again
)
def an_archive_holds_a_broken_image(at: At) -> Settled:
    at.image.write_bytes(at.image.read_bytes()[:300])
    return {"source": {"root": str(zipped(at))}}


@faults(together=False)
def the_source_is_an_archive(at: At) -> Settled:
    return {"source": {"root": str(zipped(at))}}


def zipped(at: At) -> Path:
    return Path(shutil.make_archive(str(at.root / "game"), "zip", at.root / "game"))


# --- domains that are not apart


@faults(
    kinds="target: target is the source",
    says="images are all in the source; game",
    together=False,
    mend=say("target.root={root}/camera"),
)
def the_target_is_the_source(at: At) -> Settled:
    return {"target": {"root": str(at.root / "game")}}


@faults(
    kinds="target: target is the source",
    says="images are all in the source",
    together=False,
    mend=say("target.root={root}/camera"),
)
def the_target_is_a_link_to_the_source(at: At) -> Settled:
    (at.root / "link").symlink_to(at.root / "game", target_is_directory=True)
    return {"target": {"root": str(at.root / "link")}}


@faults(
    kinds="target: target is the source's labels",
    says="are the source's labels",
    together=False,
    mend=say("target.root={root}/camera", "target.images=images/*"),
)
def the_target_is_the_source_labels(at: At) -> Settled:
    return {"target": {"root": str(at.root / "game" / "labels"), "images": "*"}}


@faults(kinds="target: looks like a label map", says="{target} holds values of classes only", mend=remove_target)
def a_target_image_is_a_label(at: At) -> Settled:
    Image.fromarray(random_labels(seed=71)).save(at.target)


@faults(
    kinds="target: also in the source",
    says="shared.png is also in the source",
    together=False,
    mend=unlink("camera/images/shared.png"),
)
def the_target_shares_an_image_with_the_source(at: At) -> Settled:
    at.target.with_name("shared.png").symlink_to(at.image)


@faults(
    kinds="val: also in the source;" * 5,
    says="game/images/04.png is also in the source",
    together=False,
    mend=say("val.root={root}/street"),
)
def val_is_the_source(at: At) -> Settled:
    return {"val": {"root": str(at.root / "game")}}


@faults(
    kinds="val: also in the target",
    says="shared.png is also in the target",
    together=False,
    mend=unlink("street/images/shared.png", "street/labels/shared.png"),
)
def val_shares_an_image_with_the_target(at: At) -> Settled:
    street = at.root / "street"
    (street / "images" / "shared.png").symlink_to(at.target)
    shutil.copy(street / "labels" / "00.png", street / "labels" / "shared.png")


@faults(
    kinds="target: same content as in the source",
    says="copy.png is; {image}; again",
    together=False,
    mend=unlink("camera/images/copy.png"),
)
def the_target_holds_a_copy_from_the_source(at: At) -> Settled:
    shutil.copy(at.image, at.target.with_name("copy.png"))


@faults(
    kinds="val: same content as in the target",
    says="copy.png is; {target}; again",
    together=False,
    mend=unlink("street/images/copy.png", "street/labels/copy.png"),
)
def val_holds_a_copy_from_the_target(at: At) -> Settled:
    street = at.root / "street"
    shutil.copy(at.target, street / "images" / "copy.png")
    shutil.copy(street / "labels" / "00.png", street / "labels" / "copy.png")


# --- lists and maps


def listed(at: At, content: str | bytes) -> Settled:
    file = at.root / "list.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return {"source": {"stems": str(file)}}


@faults(
    kinds="source: stem without image; source: stem without image",
    says="lists '77'; lists '78'",
    together=False,
    mend=write_stems,
)
def a_list_names_missing_images(at: At) -> Settled:
    return listed(at, "00\n77\n01\n78\n")


def write_stem_alike(at: At, text: str) -> None:
    (image,) = re.findall(r"(\S+) differs in capital", text)
    (at.root / "list.txt").write_text(f"00\n{Path(image).stem}\n")


@faults(
    kinds="source: stem without image",
    says="lists 'B'; images/b.png differs in capital letters alone: write both",
    together=False,
    mend=write_stem_alike,
)
def a_list_has_a_capital_that_the_image_has_not(at: At) -> Settled:
    at.image.rename(at.image.with_name("b.png"))
    at.label.rename(at.label.with_name("b.png"))
    return listed(at, "00\nB\n")


@faults(kinds="source: cannot be listed", says="list.txt is empty", together=False, mend=write_stems)
def a_list_is_empty(at: At) -> Settled:
    return listed(at, "\n\n")


@faults(
    kinds="source: cannot be listed",
    says="Cannot read the list of stems; none.txt",
    together=False,
    mend=say("source.stems=null"),
)
def a_list_does_not_exist(at: At) -> Settled:
    return {"source": {"stems": "none.txt"}}


@faults(kinds="source: cannot be listed", says="list.txt is not a text file", together=False, mend=write_stems)
def a_list_is_a_picture(at: At) -> Settled:
    return listed(at, at.image.read_bytes())


@faults(together=False)
def a_list_has_lines_twice_and_a_byte_order_mark(at: At) -> Settled:
    return listed(at, b"\xef\xbb\xbf00\r\n01\r\n01\r\n")


@faults(together=False)
def a_list_was_written_by_powershell(at: At) -> Settled:
    return listed(at, "00\r\n01\r\n".encode("utf-16"))


@faults(
    kinds="source: cannot be mapped",
    says="2 -> 7, but there are 4 classes",
    together=False,
    mend=say("source.id_map={0: 0, 1: 1, 2: 2, 3: 3}"),
)
def an_id_map_names_no_class(at: At) -> Settled:
    return {"source": {"id_map": {0: 0, 1: 1, 2: 7}}}


@faults(
    kinds="source: cannot be mapped",
    says="raw label values lie in 0..65535",
    together=False,
    mend=say("source.id_map=null"),
)
def an_id_map_has_an_impossible_value(at: At) -> Settled:
    return {"source": {"id_map": {0: 0, 90000: 1}}}


@faults(
    kinds="source: no class in any label",
    says="shows any class",
    together=False,
    mend=say("source.id_map={0: 0, 1: 1, 2: 2, 3: 3}"),
)
def an_id_map_maps_nothing_that_occurs(at: At) -> Settled:
    return {"source": {"id_map": {200: 0}}}


@faults(
    kinds="source: name of no class; source: pixels of no class",
    says="names 'lorry', which no class takes",
    together=False,
    mend=say("classes=[road, wall, tree, {name: car, of: [car, lorry]}]"),
    other=True,
    left="source: pixels of no class",
)
def a_shape_has_a_name_of_no_class(at: At) -> Settled:
    for place in at.label.parent.glob("*.png"):
        names = [*CLASSES, "lorry"] if place == at.label else CLASSES
        shapes = [{"label": name, "points": rectangle(row, 12)} for row, name in enumerate(names)]
        content = {"shapes": shapes, "imageWidth": 64, "imageHeight": 64}
        place.with_suffix(".json").write_text(json.dumps(content))
    return {"source": {"labels": "labels/*.json"}}


@faults(
    kinds="source: pixels of no class",
    says="of the pixels are ignored;: colour (0, 0, 142): ",
    together=False,
    mend=say("classes=[road, wall, tree, car]"),
    other=True,
    left="val: class without a pixel to score",
)
def a_colour_has_a_name_of_no_class(at: At) -> Settled:
    named = zip(CLASSES, COLORS, strict=True)
    (at.root / "game" / "labelmap.txt").write_text("".join(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in named))
    for file in at.label.parent.iterdir():
        in_colours(file)
    for file in (at.root / "street" / "labels").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) % 3).save(file)
    globs = {"images": "images/*", "labels": "labels/*"}
    return {"classes": CLASSES[:3], "source": {"spec": "cvat", **globs}}


@faults(
    raises=True, says="The class 'road' is listed twice", together=False, mend=say("classes=[road, car, boat, tree]")
)
def a_class_is_listed_twice(at: At) -> Settled:
    return {"classes": ["road", "car", "road", "tree"]}


@faults(
    raises=True,
    says="claimed by 'road' and 'car'",
    together=False,
    mend=say("classes=[{name: road, ids: [0]}, {name: car, ids: [1, 2, 3]}]"),
    other=True,
)
def a_value_means_two_classes(at: At) -> Settled:
    return {"classes": [{"name": "road", "ids": [0, 1]}, {"name": "car", "ids": [1, 2, 3]}]}


@faults(raises=True, says="There is no data layout 'kitty'", together=False, mend=say("source.spec=folders"))
def a_layout_does_not_exist(at: At) -> Settled:
    return {"source": {"spec": "kitty"}}


# --- the tests


def ssrseg(*words: str) -> int:
    """The exit code of the command, run in this process."""
    with mock.patch("sys.argv", ["ssrseg", *words]), pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def check(tree: dict[str, Any], root: Path) -> tuple[int, list[dict[str, Any]]]:
    """`ssrseg check-data`: its exit code, and the problems that it reports."""
    (root / "run.yaml").write_text(json.dumps(tree))
    code = ssrseg("check-data", "--config", str(root / "run.yaml"), "--out", str(root / "out"))
    return code, json.loads((root / "out" / "report.json").read_text())["problems"]


def kinds_of(problems: list[dict[str, Any]]) -> Counter[str]:
    return Counter(f"{one['domain']}: {one['kind']}" for one in problems)


def fragments(fault: Fault, at: At) -> list[str]:
    return [text.format(image=at.image, label=at.label, target=at.target, stem=at.stem) for text in fault.says]


def parametrised(rows: list[Fault]) -> Any:
    return pytest.mark.parametrize("fault", [pytest.param(row, id=row.name.replace(" ", "-")) for row in rows])


def test_the_table_is_long_and_names_every_kind():
    assert len(TABLE) >= 40
    assert len({row.name for row in TABLE}) == len(TABLE)
    reported = {kind.partition(": ")[2] for row in TABLE for kind in row.kinds}
    elsewhere = {kind for kind in KINDS if kind.endswith("labelled target")}  # test_domains
    assert reported == KINDS.keys() - elsewhere


@parametrised([row for row in TABLE if not row.raises])
def test_a_fault_is_named_and_nothing_else(fault, tmp_path, capsys):
    tree, expected, at = broken(fault, tmp_path)
    code, problems = check(tree, tmp_path)
    printed = capsys.readouterr().out
    assert kinds_of(problems) == expected
    fatal = any(one["fatal"] for one in problems)
    assert code == (2 if fatal else 0)
    assert ("Training would not work" if fatal else "Training can start") in printed
    for text in fragments(fault, at):
        assert any(text in one["text"] for one in problems), text
        assert text in printed
    assert all(one["remedy"] in printed for one in problems)
    before_training(fault, resolve(tree), fatal, at)
    if fault.mend is not None and not fault.together:
        follow(fault, tree, at, "\n".join(f"{one['text']} {one['remedy']}" for one in problems))


def follow(fault: Fault, tree: dict[str, Any], at: At, text: str) -> None:
    """What is printed, and see that nothing but what is `left` is reported, and that labels mean what they should."""
    assert fault.mend is not None
    for _ in range(2):  # a glob of images that is right shows that of the labels to be wrong
        tree = merge(tree, assignments(fault.mend(at, text) or []))
        problems = survey(resolve(tree)).problems
        if kinds_of([vars(one) for one in problems]) == Counter(fault.left):
            break
        text = "\n".join(f"{one.text} {one.remedy}" for one in problems)
    assert kinds_of([vars(one) for one in problems]) == Counter(fault.left), text
    assert fault.other or as_healthy(resolve(tree)) > 5


def as_healthy(settings: Settings, stems: Collection[str] = [f"{i:02}" for i in range(100)]) -> int:
    """How many files are named as in the healthy data; they mean the same."""
    found = 0
    for number, (role, data) in enumerate(settings.domains.items()):
        pairs = [] if role == "target" else find_pairs(data)
        for path in [path for path in find_images(data) if path.stem in stems]:
            pixels = random_image(seed=1000 * number + int(path.stem))
            assert np.array_equal(read_image(path).permute(1, 2, 0), pixels), path
            found += 1
        for path in [pair.label for pair in pairs if pair.image.stem in stems]:
            ids = read_labels(path, code_for(data, settings.classes))
            assert np.array_equal(ids, random_labels(seed=1000 * number + int(path.stem))), path
    return found


def before_training(fault: Fault, settings: Settings, fatal: bool, at: At) -> None:
    """What `train` does first: it refuses what is fatal, says the rest, and then reads all images without a crash."""
    if fatal:
        with pytest.raises(UserError) as refused:
            refuse_bad_data(settings)
        assert all(text in str(refused.value) for text in fragments(fault, at))
        return
    said = refuse_bad_data(settings)
    expected = {kind for kind in fault.kinds if "same content" not in kind}
    assert len(said) == len(expected)
    assert all(any(line.startswith(kind) for line in said) for kind in expected)
    seen = {name for raw in train_batches(settings) for name in raw.names}
    assert len(seen) > 5


@parametrised([row for row in TABLE if row.raises])
def test_wrong_settings_are_refused_at_once(fault, tmp_path, capsys):
    tree, _, at = broken(fault, tmp_path)
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    assert ssrseg("check-data", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")) == 2
    printed = capsys.readouterr().err
    assert all(text in printed for text in fragments(fault, at))
    with pytest.raises(UserError):
        refuse_bad_data(resolve(tree))
    follow(fault, tree, at, printed)


def test_all_faults_of_files_together_are_all_named_and_nothing_else(tmp_path, capsys):
    rows = [row for row in TABLE if row.together]
    assert len(rows) >= 40
    root = healthy(tmp_path, {"game": len(rows) + 3, "camera": len(rows) + 3, "street": 3})
    places = [At(root, f"{i:02}") for i in range(len(rows))]
    for row, at in zip(rows, places, strict=True):
        assert row.put(at) is None
    code, problems = check(settings_tree(root), tmp_path)
    printed = capsys.readouterr().out
    assert code == 2
    assert kinds_of(problems) == sum((Counter(row.kinds) for row in rows), Counter())
    texts = "\n".join(one["text"] for one in problems)
    for row, at in zip(rows, places, strict=True):
        for text in fragments(row, at):
            assert text in texts, f"{row.name}: {text}"
    assert printed.count("  -> ") == len({(one["domain"], one["kind"]) for one in problems})
    errors = [one["text"].encode(errors="replace").decode() for one in problems if one["fatal"]]
    assert all(text in printed for text in errors)
    words = [word for row, at in zip(rows, places, strict=True) if row.mend for word in row.mend(at, texts) or []]
    mended = resolve(merge(settings_tree(root), assignments(words)))
    left = sum((Counter(row.left if row.mend else row.kinds) for row in rows), Counter())
    assert kinds_of([vars(one) for one in survey(mended).problems]) == left
    assert (
        as_healthy(mended, [at.stem for row, at in zip(rows, places, strict=True) if row.mend and not row.other]) > 20
    )


# --- places that cannot be written to


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    tree = settings_tree(healthy(tmp_path))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert check(tree, tmp_path) == (0, [])
    assert len(list(train_batches(resolve(tree)))) == 8


def test_a_report_that_cannot_be_written_is_one_message(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(json.dumps(settings_tree(healthy(tmp_path))))
    (tmp_path / "file").write_text("no folder")
    assert ssrseg("check-data", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "file" / "out")) == 2
    assert "Cannot write " in capsys.readouterr().err


def full_disk(*words: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_message(tmp_path, capsys):
    tree = settings_tree(healthy(tmp_path))
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    with mock.patch("os.fsync", full_disk):
        assert ssrseg("check-data", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert ssrseg("train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), *TINY) == 2
        assert "Cannot write" in capsys.readouterr().err
        assert len(list(train_batches(resolve(tree)))) == 8
    assert not list(tmp_path.glob("**/*.partial"))


def test_a_disk_that_fills_while_training_is_one_message(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(json.dumps(settings_tree(healthy(tmp_path))))
    write = Journal.write

    def full_later(self: Journal, kind: str, *words: Any, **more: Any) -> None:
        return write(self, kind, *words, **more) if kind == "note" else full_disk()

    with mock.patch("ssrseg.training.observers.journal.Journal.write", full_later):
        assert ssrseg("train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), *TINY) == 2
    assert "No space left on device. Make room. Continue with: ssrseg train --resume" in capsys.readouterr().err


TINY = [
    "model={backbone: timm:test_resnet, head_channels: 8, pretrained: none}",
    "train={steps: 2, evaluate_every: 2, log_every: 1, accelerator: cpu}",
]


# --- what goes bad later, and what a look at some files must not miss


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_bad_while_training_is_named(workers, tmp_path):
    tree = settings_tree(healthy(tmp_path, {"game": 1, "camera": 1, "street": 1}))
    tree["loader"]["workers"] = workers
    batches = train_batches(resolve(tree))
    (tmp_path / "camera" / "images" / "00.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"camera/images/00\.png is empty"):
        list(batches)


def test_one_cut_off_file_among_many_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("ssrseg.data.checks.survey.DECODED", 5)
    tree = settings_tree(healthy(tmp_path, {"game": 12, "camera": 1, "street": 1}))
    for name in ("images/07.png", "labels/11.png"):  # neither is one of the five
        file = tmp_path / "game" / name
        file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(UserError, match="2 problems") as refused:
        refuse_bad_data(resolve(tree))
    assert "images/07.png" in str(refused.value)
    assert "labels/11.png" in str(refused.value)


def test_an_error_shows_ten_files_and_counts_the_rest(tmp_path):
    tree = settings_tree(healthy(tmp_path, {"game": 30, "camera": 1, "street": 1}))
    for file in sorted((tmp_path / "game" / "labels").iterdir())[:25]:
        file.unlink()
    with pytest.raises(UserError, match="25 problems") as refused:
        refuse_bad_data(resolve(tree))
    assert str(refused.value).count(" has no label") == 10
    assert "and 15 more: `ssrseg check-data` with the same settings shows all" in str(refused.value)
    assert len(check(tree, tmp_path)[1]) == 25
