"""Names of files: endings, accents, and the lists that choose some of them."""

from __future__ import annotations

import codecs
import itertools
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path

from ssrseg.config.base import Url
from ssrseg.data.storage import read_bytes
from ssrseg.errors import UserError

IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".gif", ".avif", ".jp2", ".j2k", ".tga", ".npy"),
}
Key = tuple[str, ...]
"""The text that each wildcard matches."""


def read_stems(given: Path, root: Path) -> set[str]:
    """Read a list of stems, with the folders that stand before them; raises `UserError` for what is none."""
    path = given if isinstance(given, Url) or given.exists() else root / given
    try:
        text = read_bytes(path)
        encoding = "utf-16" if text[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"  # of PowerShell
        lines = [line.strip() for line in text.decode(encoding).splitlines() if line.strip()]
        stems = {without_suffix(normal(line).replace("\\", "/")) for line in lines}
    except UserError as error:
        raise UserError(f"Cannot read the list of stems: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The list of stems {path} is not a text file in UTF-8: one image stem per line.") from error
    if not stems:
        raise UserError(f"The list of stems {path} is empty: expected one image stem per line.")
    return stems


def last_part(stem: str) -> str:
    """Return a stem without its folders."""
    return stem.rpartition("/")[2]


def listed_images(images: Mapping[Key, Path], stems: Collection[str]) -> dict[Key, Path]:
    """Choose the images that a list names; of several with one stem, those whose folders agree best with the line's."""
    by_stem: dict[str, list[Key]] = {}
    for key, path in images.items():
        by_stem.setdefault(normal(path.stem), []).append(key)

    def agreement(key: Key, line: str) -> int:
        folders = zip(normal(images[key].parent.as_posix()).split("/")[::-1], line.split("/")[-2::-1], strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], folders))

    chosen: dict[Key, Path] = {}
    for line in stems:
        keys = by_stem.get(last_part(line), [])
        best = max((agreement(key, line) for key in keys), default=0)
        chosen |= {key: images[key] for key in keys if agreement(key, line) == best}
    return {key: path for key, path in images.items() if key in chosen}


def normal(name: str) -> str:
    """Join letters and their accents."""
    return unicodedata.normalize("NFC", name)  # macOS keeps letters and their accents apart


def without_suffix(name: str) -> str:
    """Remove the ending of an image."""
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name
