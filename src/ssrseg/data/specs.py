"""Layouts of published data sets, and how an image finds its label."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssrseg.config import DataConfig
from ssrseg.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class Spec:
    """A data set as it is unpacked."""

    images: str
    """Glob below the root; `{split}` is filled in."""
    labels: str
    """Glob of the labels: an image's label is the file for which the wildcards match the same text."""
    ids: Mapping[int, int] | None = None
    """Raw label value -> class id; identity when absent."""
    space: str | None = None
    """Name of its label space; the user's own when absent."""
    split: str = "train"
    """When none is asked for."""


CITYSCAPES_IDS = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)
)
SYNTHIA_IDS = {
    3: 0,
    4: 1,
    2: 2,
    21: 3,
    5: 4,
    7: 5,
    15: 6,
    9: 7,
    6: 8,
    16: 9,
    1: 10,
    10: 11,
    17: 12,
    8: 13,
    18: 14,
    19: 15,
    20: 16,
    12: 17,
    11: 18,
}
CARLASCAPES_IDS = {i + 1: i for i in range(19)} | {24: 0}

SPECS: dict[str, Spec] = {
    "folders": Spec("images/**/*", "labels/**/*"),
    "cityscapes": Spec(
        "leftImg8bit/{split}/*/*_leftImg8bit.png",
        "gtFine/{split}/*/*_gtFine_labelIds.png",
        CITYSCAPES_IDS,
        "cityscapes19",
    ),
    "cityscapes-trainids": Spec(
        "leftImg8bit/{split}/*/*_leftImg8bit.png",
        "gtFine/{split}/*/*_gtFine_labelTrainIds.png",
        {i: i for i in range(19)},
        "cityscapes19",
    ),
    "gta5": Spec("images/*.png", "labels/*.png", CITYSCAPES_IDS, "cityscapes19"),
    "synthia": Spec("RGB/*.png", "GT/LABELS/*.png", SYNTHIA_IDS, "cityscapes19"),
    "camvid": Spec("{split}/images/*.jpg", "{split}/labels/*.png", {i: i for i in range(11)}, "camvid11"),
    "carlascapes": Spec("*_img.png", "*_labelIds.png", CARLASCAPES_IDS, "cityscapes19"),
}
"""Layouts by the name that `source.spec` takes."""


@dataclass(frozen=True)
class Pair:
    """An image and its label."""

    image: Path
    label: Path


def spec_of(data: DataConfig) -> Spec:
    """The layout that the settings name; raises `UserError` when there is no such layout."""
    if data.spec not in SPECS:
        raise UserError(f"There is no data layout {data.spec!r}: use {', '.join(SPECS)}.")
    return SPECS[data.spec]


def find_images(data: DataConfig) -> list[Path]:
    """All images of a data set, sorted; labels need not exist.

    Raises:
        UserError: no such folder, or no image in it.
    """
    return list(_images(data).values())


def find_pairs(data: DataConfig) -> list[Pair]:
    """All images with their labels, sorted by image.

    Raises:
        UserError: no image, an image without label, or two files that the wildcards cannot tell apart.
    """
    images, glob = _images(data), _glob(data, "labels")
    labels = _match(data.root, glob)
    lonely = [path for key, path in images.items() if key not in labels]
    if lonely:
        shown = "\n".join(f"  {path}" for path in lonely[:3])
        unused = len(labels.keys() - images.keys())
        raise UserError(
            f"{len(lonely)} of {len(images)} images matching {_glob(data, 'images')!r} in {data.root} "
            f"have no label matching {glob!r} "
            f"({len(labels)} labels found, {unused} of them without image):\n{shown}\n"
            "A label is the file for which the wildcards of `labels` match the same text as those of `images`."
        )
    return [Pair(path, labels[key]) for key, path in images.items()]


def _images(data: DataConfig) -> dict[tuple[str, ...], Path]:
    glob = _glob(data, "images")
    images = _match(data.root, glob)
    if data.stems is not None:
        wanted = _stems(data.stems if data.stems.exists() else data.root / data.stems)
        missing = wanted - {path.stem for path in images.values()}
        if missing:
            raise UserError(
                f"{len(missing)} stems of {data.stems} have no image matching {glob!r} in {data.root}, "
                f"for example {min(missing)!r}."
            )
        images = {key: path for key, path in images.items() if path.stem in wanted}
    if not images:
        raise UserError(f"No image matches {glob!r} in {data.root}. Set `images` to a glob below the root.")
    return dict(sorted(images.items(), key=lambda item: item[1]))


def _stems(path: Path) -> set[str]:
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except OSError as error:
        raise UserError(f"Cannot read the list of stems {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The list of stems {path} is not a text file in UTF-8: one image stem per line.") from error


def _glob(data: DataConfig, kind: str) -> str:
    spec = spec_of(data)
    glob: str = getattr(data, kind) or getattr(spec, kind)
    return glob.replace("{split}", data.split or spec.split)


def _match(root: Path, glob: str) -> dict[tuple[str, ...], Path]:
    """Image files below `root`, by the text that each wildcard matches."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    pattern = _pattern(glob)
    found: dict[tuple[str, ...], Path] = {}
    for path in _walk(root, _fixed_part(glob)):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):  # macOS leaves `._name.png`
            continue
        match = pattern.fullmatch(path.relative_to(root).as_posix())
        if match is None:
            continue
        *folders, name = (*match.groups(),) or ("",)
        key = (*folders, _without_suffix(name))
        if key in found:
            raise UserError(f"{found[key]} and {path} are the same to {glob!r}: only the ending differs. Remove one.")
        found[key] = path
    return found


def _fixed_part(glob: str) -> str:
    """The folders before the first wildcard: nothing else needs to be walked."""
    folders = glob.split("/")[:-1]
    return "/".join(itertools.takewhile(lambda folder: "*" not in folder, folders))


def _walk(root: Path, below: str) -> list[Path]:
    """Files, sorted; links to folders are followed, but not into a folder that they lie in."""
    files: list[Path] = []
    for folder, folders, names in os.walk(root / below, followlinks=True):
        here = os.path.join(os.path.realpath(folder), "")
        folders[:] = [name for name in folders if not _is_above(os.path.join(folder, name), here)]
        files += [Path(folder, name) for name in names]
    return sorted(files)


def _is_above(folder: str, here: str) -> bool:
    return os.path.islink(folder) and here.startswith(os.path.join(os.path.realpath(folder), ""))


def _pattern(glob: str) -> re.Pattern[str]:
    """A glob with a group for every wildcard: `*` within a folder, `**/` any folders."""
    text = ""
    for part in re.split(r"(\*\*/|\*\*|\*)", glob):
        text += {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)"}.get(part) or re.escape(part)
    return re.compile(text)


def _without_suffix(name: str) -> str:
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name
