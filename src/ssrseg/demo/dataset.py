"""The demo's two domains of drawn streets: a game with labels and a camera without, shipped as one archive."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path, PurePosixPath

from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_json

CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
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
)
"""Name and colour of each class, by id. Fences include walls, signs lights, trucks buses, and riders their bicycles."""

ARCHIVE = "pictures.zip"
"""Beside this file: `tools/streets/archive.py` draws it."""

COUNTS = {"game": 200, "camera/train": 256, "camera/val": 40}
"""Pictures of each part in the archive, all of 128x256 pixels."""

MARKER = "demo.json"
"""Lies in a complete data set and holds what it was made from."""

VERSION = 2
"""Counts changes of the pictures."""


def write_dataset(root: Path, *, source: int = 200, target: int = 256, val: int = 40) -> None:
    """Write `game/{images,labels}`, `camera/train/images` and `camera/val/{images,labels}` below `root`.

    All of it appears at once; a complete set of the same counts is left as it is.

    Args:
        root: the folder to make; its parent may be missing.
        source: labelled game pictures, at most 200.
        target: camera pictures without labels, at most 256.
        val: labelled camera pictures to score with, at most 40.

    Raises:
        UserError: more pictures are asked for than there are, or `root` exists and is something else.
    """
    counts = dict(zip(COUNTS, (source, target, val), strict=True))
    for part, count in counts.items():
        if count > COUNTS[part]:
            raise UserError(
                f"{count} pictures of {part} are asked for and the package has {COUNTS[part]}: ask for fewer, "
                "or draw more with tools/streets of the source repository."
            )

    def extract(folder: Path) -> None:
        with resources.as_file(resources.files("ssrseg.demo") / ARCHIVE) as path, zipfile.ZipFile(path) as archive:
            for name in map(PurePosixPath, archive.namelist()):
                if int(name.stem) < counts[str(name.parent.parent)]:
                    archive.extract(str(name), folder)

    make_once(root, {"version": VERSION, **counts}, extract)


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
