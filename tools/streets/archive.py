"""Draw the archive of pictures that the package ships.

The game's pictures are WebP without loss; the camera's are the JPEG files that its lens ends with, so that decoding one
gives what `CAMERA_DOMAIN.sample` returns.

    PYTHONPATH=tools python -m streets.archive src/ssrseg/demo/streets.zip
"""

from __future__ import annotations

import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ssrseg.demo.dataset import STREETS
from streets import lens
from streets.dataset import CAMERA_DOMAIN, GAME_DOMAIN, Domain, Part
from streets.lens import Bytes
from streets.looks import CAMERA_LOOK

SIZE = (128, 256)


def write_archive(path: Path) -> None:
    """The same pictures as `write_dataset` of the same counts and seed 0 draws, in one uncompressed zip file."""
    camera = Domain(CAMERA_DOMAIN.layout, replace(CAMERA_LOOK, lens=lens.real_jpeg))
    game, train, val = STREETS.counts.items()
    parts = (
        (Part(game[0], GAME_DOMAIN, 0, game[1], labelled=True), ".webp"),
        (Part(train[0], camera, 1, train[1], labelled=False), ".jpg"),
        (Part(val[0], camera, 2, val[1], labelled=True), ".jpg"),
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for part, suffix in parts:
            for index in range(part.count):
                image, classes = part.domain.sample(SIZE, part.rng(0, index))
                encoded = image if isinstance(image, bytes) else _webp(image)
                _add(archive, f"{part.folder}/images/{index:05d}{suffix}", encoded)
                if part.labelled:
                    _add(archive, f"{part.folder}/labels/{index:05d}.png", _png(classes))


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), content)  # without the time of day: the same archive from the same pictures


def _webp(image: Bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="WEBP", lossless=True, quality=80, method=4)
    return file.getvalue()


def _png(classes: Bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(classes).save(file, format="PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
