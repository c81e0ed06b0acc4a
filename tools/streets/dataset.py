"""The two domains, and data sets of any number of their pictures as folders of PNG files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ssrseg.demo.dataset import STREETS, make_once
from streets.lens import Bytes
from streets.looks import CAMERA_LOOK, GAME_LOOK, Look, render
from streets.scenes import CAMERA, GAME, Layout, draw_scene


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
    number: int
    count: int
    labelled: bool

    def rng(self, seed: int, index: int) -> np.random.Generator:
        """The randomness of one picture: it depends on seed, part and index alone."""
        return np.random.default_rng((seed, self.number, index))


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
    parts = (
        Part("game", GAME_DOMAIN, 0, source, labelled=True),
        Part("camera/train", CAMERA_DOMAIN, 1, target, labelled=oracle),
        Part("camera/val", CAMERA_DOMAIN, 2, val, labelled=True),
    )

    def draw(folder: Path) -> None:
        done = 0
        for part in parts:
            images, labels = folder / part.folder / "images", folder / part.folder / "labels"
            for made in (images, labels) if part.labelled else (images,):
                made.mkdir(parents=True)
            for index in range(part.count):
                image, classes = part.domain.sample(size, part.rng(seed, index))
                Image.fromarray(image).save(images / f"{index:05d}.png", compress_level=1)
                if part.labelled:
                    Image.fromarray(classes).save(labels / f"{index:05d}.png", compress_level=1)
                done += 1
                if progress:
                    progress(done, source + target + val)

    made_from = {
        "version": STREETS.version,
        "source": source,
        "target": target,
        "val": val,
        "size": list(size),
        "seed": seed,
    }
    make_once(root, made_from | ({"oracle": True} if oracle else {}), draw)
