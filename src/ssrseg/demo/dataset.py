"""The demo's pictures: two sets of two domains each, a source with labels and a target without, one archive per set."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_json


@dataclass(frozen=True)
class DemoSet:
    """Two domains: `NAME.zip` beside this file holds the pictures, `NAME.safetensors` a student of the source."""

    name: str
    about: str
    """What is seen, and which domain has labels."""
    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    """Name and colour of each class, by id."""
    counts: Mapping[str, int]
    """Pictures of source, target and held-out target, by folder."""
    version: int
    """Counts changes of the pictures and of the student."""


NUCLEI = DemoSet(
    name="nuclei",
    about="cell nuclei under the microscope: bright images with labels, dim ones without",
    classes=(("background", (40, 44, 60)), ("nucleus", (255, 176, 59))),
    counts={"bright": 40, "dim/train": 46, "dim/val": 12},
    version=1,
)
"""Real images of 256x256 pixels; `ORIGIN.md` says whose. The labels of `dim/train` are for the oracle alone."""

STREETS = DemoSet(
    name="streets",
    about="drawn streets: a game with labels, a camera without",
    # Fences include walls, signs lights, trucks buses, and riders their bicycles.
    classes=(
        ("road", (128, 64, 128)),
        ("sidewalk", (244, 35, 232)),
        ("building", (70, 70, 70)),
        ("fence", (190, 153, 153)),
        ("pole", (153, 153, 153)),
        ("traffic sign", (220, 220, 0)),
        ("vegetation", (107, 142, 35)),
        ("sky", (70, 130, 180)),
        ("person", (220, 20, 60)),
        ("rider", (255, 0, 0)),
        ("car", (0, 0, 142)),
        ("truck", (0, 0, 70)),
    ),
    counts={"game": 200, "camera/train": 256, "camera/val": 40},
    version=2,
)
"""Pictures of 128x256 pixels that `tools/streets/archive.py` draws; the target has no labels at all."""

STUDENT = "student.safetensors"
"""Lies in a complete data set: a model trained on the labels of the source."""

MARKER = "demo.json"
"""Lies in a complete data set and holds what it was made from."""


def write_dataset(root: Path, pictures: DemoSet, counts: Sequence[int] | None = None) -> None:
    """Write a set's pictures and its student below `root`: `{images,labels}` in a folder of each domain.

    All of it appears at once; a complete set of the same counts is left as it is.

    Args:
        root: the folder to make; its parent may be missing.
        pictures: which set.
        counts: pictures of source, target and held-out target; all when absent.

    Raises:
        UserError: more pictures are asked for than there are, or `root` exists and is something else.
    """
    wanted = dict(zip(pictures.counts, counts or pictures.counts.values(), strict=True))
    for part, count in wanted.items():
        if count > pictures.counts[part]:
            raise UserError(
                f"{count} pictures of {part} are asked for and the package has {pictures.counts[part]}: ask for fewer."
            )

    def extract(folder: Path) -> None:
        shipped = resources.files("ssrseg.demo")
        with resources.as_file(shipped / f"{pictures.name}.zip") as path, zipfile.ZipFile(path) as archive:
            for name in map(PurePosixPath, archive.namelist()):
                if int(name.stem) < wanted[str(name.parent.parent)]:
                    archive.extract(str(name), folder)
        with resources.as_file(shipped / f"{pictures.name}.safetensors") as path:
            shutil.copyfile(path, folder / STUDENT)

    make_once(root, {"version": pictures.version, **wanted}, extract)


def make_once(root: Path, made_from: Mapping[str, object], write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, which becomes `root` when it is complete; do nothing where that has been done.

    Args:
        root: the folder to make.
        made_from: the parameters of its content, kept in it.
        write: fills the folder that it is given.

    Raises:
        UserError: `root` exists and was made from something else.
    """
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        _check_made_from(root, made_from)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent, ignore_cleanup_errors=True) as folder:
        partial = Path(folder) / root.name
        partial.mkdir()
        write(partial)
        write_json(partial / MARKER, made_from)
        if root.exists():
            root.rmdir()
        partial.rename(root)


def _check_made_from(root: Path, made_from: Mapping[str, object]) -> None:
    """Raise `UserError` unless `root` is a data set of these parameters."""
    marker = root / MARKER
    if not marker.is_file():
        raise UserError(f"{root} exists and is not a demo data set: choose another folder, or empty this one.")
    found = json.loads(marker.read_text(encoding="utf-8"))
    if found != made_from:
        raise UserError(
            f"{root} holds a demo data set made from {found}, and {dict(made_from)} is asked for: "
            "choose another folder, or delete this one."
        )
