"""The demo's two domains as folders of PNG files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssrseg.demo.looks import CAMERA_LOOK, GAME_LOOK, Look, render
from ssrseg.demo.scenes import CAMERA, GAME, Layout, draw_scene
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_json

MARKER = "demo.json"
"""Lies in a complete data set and holds what it was made from."""

VERSION = 2
"""Counts changes of the pictures that the same seed gives."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Domain:
    """Where streets lie and how they look."""

    layout: Layout
    look: Look

    def sample(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[Bytes, Bytes]:
        """A picture (H, W, 3) and its class ids (H, W)."""
        scene = draw_scene(self.layout, size, rng)
        return render(scene, self.look, rng), scene.classes


GAME_DOMAIN = Domain(GAME, GAME_LOOK)
CAMERA_DOMAIN = Domain(CAMERA, CAMERA_LOOK)


@dataclass(frozen=True)
class Part:
    """One folder of the data set."""

    folder: str
    domain: Domain
    count: int
    labelled: bool


def write_dataset(
    root: Path,
    *,
    source: int = 400,
    target: int = 400,
    val: int = 100,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
    oracle: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `game/{images,labels}`, `camera/train/images` and `camera/val/{images,labels}` below `root`.

    All of it appears at once; a complete set of the same parameters is left as it is.

    Args:
        root: the folder to make; its parent may be missing.
        source: labelled game pictures.
        target: camera pictures without labels.
        val: labelled camera pictures, to score with.
        size: (height, width) in pixels.
        seed: picture i of a part depends on this, the part and i alone.
        oracle: write `camera/train/labels` too, for the model that is trained with what nobody has.
        progress: called with (pictures written, pictures in all) after each.

    Raises:
        UserError: `root` exists and is something else.
    """
    made_from: dict[str, object] = {
        "version": VERSION,
        "source": source,
        "target": target,
        "val": val,
        "size": list(size),
        "seed": seed,
    }
    made_from |= {"oracle": True} if oracle else {}
    if _is_made_from(root, made_from):
        return
    parts = (
        Part("game", GAME_DOMAIN, source, labelled=True),
        Part("camera/train", CAMERA_DOMAIN, target, labelled=oracle),
        Part("camera/val", CAMERA_DOMAIN, val, labelled=True),
    )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent, ignore_cleanup_errors=True) as folder:
        partial = Path(folder) / root.name
        _write_parts(partial, parts, size, seed, progress)
        write_json(partial / MARKER, made_from)
        if root.exists():
            root.rmdir()
        partial.rename(root)


def _is_made_from(root: Path, made_from: dict[str, object]) -> bool:
    """Whether `root` is this very data set; False when it is missing or empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / MARKER
    if not marker.is_file():
        raise UserError(f"{root} exists and is not a demo data set: choose another folder, or empty this one.")
    found = json.loads(marker.read_text())
    if found != made_from:
        raise UserError(
            f"{root} holds a demo data set made from {found}, and {made_from} is asked for: "
            "choose another folder, or delete this one."
        )
    return True


def _write_parts(
    root: Path, parts: tuple[Part, ...], size: tuple[int, int], seed: int, progress: Callable[[int, int], None] | None
) -> None:
    done, total = 0, sum(part.count for part in parts)
    for number, part in enumerate(parts):
        images, labels = root / part.folder / "images", root / part.folder / "labels"
        for folder in (images, labels) if part.labelled else (images,):
            folder.mkdir(parents=True)
        for index in range(part.count):
            image, classes = part.domain.sample(size, np.random.default_rng((seed, number, index)))
            _save(images / f"{index:05d}.png", image)
            if part.labelled:
                _save(labels / f"{index:05d}.png", classes)
            done += 1
            if progress:
                progress(done, total)


def _save(path: Path, pixels: Bytes) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)
