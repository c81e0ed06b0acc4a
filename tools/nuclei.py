"""Pack the nuclei that the package ships, from a folder of `bright` and `dim` images; ORIGIN.md beside it says of what.

    python tools/nuclei.py nuclei-bright-to-dim src/ssrseg/demo/nuclei.zip

Read are `source` and `target` with `images` and `labels` in each, the names of a part in `splits/PART.txt`, and in
`origin.csv` what each was called where it comes from; `nuclei.csv` keeps that.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 256
"""Images are cut to their middle of this size: most source images have it, the target's have 360."""
SOURCE_COUNT = 40
PARTS = {"bright": ("source", "source"), "dim/train": ("target", "target_train"), "dim/val": ("target", "target_val")}
"""Folder in the archive -> folder and split."""


def write_archive(origin: Path, path: Path) -> None:
    """Pack `SOURCE_COUNT` source images, evenly spread, and every target image; list their first names beside it."""
    with (origin / "origin.csv").open(encoding="utf-8", newline="") as table:
        called = {stem: first for _, stem, first in csv.reader(table)}
    lines = ["file,file in the source repository"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for part, (domain, split) in PARTS.items():
            names = (origin / "splits" / f"{split}.txt").read_text(encoding="utf-8").split()
            files = [origin / domain / "images" / f"{name}.png" for name in names]
            if part == "bright":
                files = [files[len(files) * index // SOURCE_COUNT] for index in range(SOURCE_COUNT)]
            for index, file in enumerate(files):
                lines.append(f"{part}/images/{index:05d}.png,{called[file.stem]}")
                for kind in ("images", "labels"):
                    picture = np.asarray(Image.open(origin / domain / kind / file.name))
                    assert picture.ndim == 2
                    top, left = ((side - SIDE) // 2 for side in picture.shape)
                    content = _png(Image.fromarray(picture[top : top + SIDE, left : left + SIDE]))
                    archive.writestr(zipfile.ZipInfo(f"{part}/{kind}/{index:05d}.png"), content)
    path.with_suffix(".csv").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]), Path(sys.argv[2]))
