"""Where files lie: on the disk, below a URL, or in zip archives at either place, which are read without unpacking."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ssrseg.config.base import Url, as_path
from ssrseg.data.frames import clip_of, read_frame
from ssrseg.data.remote import UrlPart, find_files, forget, list_folder, read_url, stamp_of_url
from ssrseg.errors import UserError

INDEX = "ssrseg-pack.json"
"""Member of a packed data set: label -> [its CRC-32, {raw value: pixels}]."""
MASKS = re.compile(r"\{class=([^{}]*)\}")
"""In a label's path: the classes for which there is a mask in a file of its own."""
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, RuntimeError)
"""Raised for a file that cannot be read, a broken archive, and a damaged member."""
Member = tuple[zipfile.ZipInfo, int]
"""An archive's file, and where the next one begins."""


def list_files(root: Path, below: str = "") -> list[tuple[str, Path]]:
    """List the files in the folder `root/below`: names below `root`, with `/`, and where they lie; sorted.

    Links to folders are followed, but not into a folder that they lie in.

    Raises:
        UserError: `root` is neither a folder nor a zip archive, or cannot be reached.
    """
    if _is_archive(root):
        return []
    if isinstance(root, Url):
        return sorted(find_files(root, below))
    if not root.is_dir():
        seen = "" if root.is_absolute() else f", seen from {Path.cwd()}"
        found = "a file that is no zip archive" if root.exists() else f"not there{seen}"
        raise UserError(f"There is no folder {root} (it is {found}): give the folder of the data, or a .zip file.")
    files: list[Path] = []
    for folder, folders, names in os.walk(root / below, followlinks=True):
        here = os.path.join(os.path.realpath(folder), "")
        reals = {name: os.path.join(os.path.realpath(os.path.join(folder, name)), "") for name in folders}
        folders[:] = [name for name, real in reals.items() if not here.startswith(real)]
        files += [Path(folder, name) for name in names]
    return [(path.relative_to(root).as_posix(), path) for path in sorted(files)]


def list_members(root: Path, below: str = "") -> list[tuple[str, Path]]:
    """List the files in the archive `root`, or in the archives in that folder, as if they were unpacked there.

    They lie at the archive's path, `/`, the member's. Raises `UserError` for an archive that is broken or out of reach.
    """
    if _is_archive(root):
        archives = [root]
    else:
        beside = list_folder(root) if isinstance(root, Url) else root.iterdir()
        archives = sorted(path for path in beside if _is_archive(path))
    for archive in archives:
        if isinstance(archive, Url):
            forget(archive)
    found = [(name, archive / name) for archive in archives for name in sorted(_members(archive))]
    return [(name, path) for name, path in found if not below or name.startswith(f"{below}/")]


def read_bytes(path: Path, *, empty: bool = False) -> bytes:
    """Read a whole file, wherever it lies; raises `UserError` when it is missing, unreadable or not to be `empty`."""
    if clip_of(path) is not None:
        return read_frame(path)
    if where := _in_archive(path):
        encoded = _read_member(*where)
    elif isinstance(path, Url):
        encoded = read_url(path)
    else:
        with _named(path), _open(path) as file:
            encoded = file.read()
    if not (encoded or empty):
        raise UserError(f"{path} is empty (0 bytes).")
    return encoded


def open_file(path: Path) -> IO[bytes]:
    """Open a file, seekable, to read parts of it; raises `UserError` when it is missing or cannot be opened."""
    if clip_of(path) is not None:
        return io.BytesIO(read_frame(path))
    if where := _in_archive(path):
        archive, name = where
        info, _ = _member(archive, name)
        if not isinstance(archive, Url) or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return io.BytesIO(_read_member(archive, name))
        start = info.header_offset + _header_length(_read_range(archive, info.header_offset, info.header_offset + 30))
        return cast(IO[bytes], UrlPart(archive, start, start + info.file_size))
    if isinstance(path, Url):
        return cast(IO[bytes], UrlPart(path, 0, size_of(path)))
    with _named(path):
        return _open(path)


def stamp(path: Path) -> str:
    """Return size and time, checksum or version: they change when the file does; raises `UserError` without one."""
    if holder := holder_of(path) or clip_of(path):
        return stamp(holder)
    if masks := masks_of(path):
        return " ".join(stamp(mask) for _, mask in masks)
    if where := _in_archive(path):
        info, _ = _member(*where)
        return f"{info.file_size} {info.CRC:08x}"
    if isinstance(path, Url):
        return stamp_of_url(path)
    with _named(path):
        seen = path.stat()
        return f"{seen.st_size} {seen.st_mtime_ns}"


def size_of(path: Path) -> int:
    """Return the bytes of a file, unpacked if in an archive; raises `UserError` when it is missing."""
    return int(stamp(path).split()[0])


def holder_of(path: Path) -> Path | None:
    """Return the file that holds the labels of many images, for the label `FILE.json/IMAGE` in it."""
    return next((above for above in path.parents if above.suffix.lower() == ".json" and not above.is_dir()), None)


def masks_of(path: Path) -> list[tuple[str, Path]]:
    """Return class and file of each mask that a label with `{class=car|road}` in its path is made of; else nothing."""
    if not (match := MASKS.search(text := str(path))):
        return []
    start, end = match.span()
    return [(name, as_path(text[:start] + name + text[end:])) for name in match[1].split("|")]


def name_below(path: Path, root: Path) -> str:
    """Return the name of a file below `root`, with `/`, as it would be if archives were unpacked."""
    return where[1] if (where := _in_archive(path)) else path.relative_to(root).as_posix()


def values_of(path: Path) -> Mapping[int, int] | None:
    """Return the pixels per raw value of a label, where they were counted when it was packed."""
    if (where := _in_archive(path)) is None:
        return None
    archive, name = where
    checksum, counted = _index(archive, stamp(archive)).get(name, (None, None))
    if counted is None or checksum != _member(archive, name)[0].CRC:
        return None
    return {int(value): int(count) for value, count in counted.items()}


# --- archives: every read opens, reads one range and closes, so threads and forked processes share nothing


def _is_archive(path: Path) -> bool:
    suffix = path.suffix.lower().partition("?")[0]  # a URL may have a query, as `set.zip?download=1`
    return suffix == ".zip" and (isinstance(path, Url) or path.is_file())


def _in_archive(path: Path) -> tuple[Path, str] | None:
    """Return the archive that a path leads into, and the member; absent for other paths."""
    for above in path.parents:
        if _is_archive(above):
            return above, path.relative_to(above).as_posix()
    return None


def _members(archive: Path) -> Mapping[str, Member]:
    return _open_archive(archive, stamp(archive))


@functools.lru_cache(maxsize=64)
def _open_archive(archive: Path, stamp: str) -> Mapping[str, Member]:
    """Read the table of contents; again when the archive has changed."""
    with _named(archive, " as a zip archive"), open_file(archive) as file, zipfile.ZipFile(file) as opened:
        infos, end = opened.infolist(), opened.start_dir
    starts = sorted({info.header_offset for info in infos})
    ends = dict(zip(starts, [*starts[1:], end], strict=True))
    return {
        PurePosixPath(info.filename.replace("\\", "/").lstrip("/")).as_posix(): (info, ends[info.header_offset])
        for info in infos
        if not info.filename.endswith(("/", "\\")) and not info.filename.startswith("__MACOSX/")
    }


@functools.lru_cache(maxsize=64)
def _index(archive: Path, stamp: str) -> Mapping[str, Any]:
    if INDEX not in _members(archive):
        return {}
    try:
        return dict(json.loads(_read_member(archive, INDEX)))
    except ValueError as error:
        raise UserError(f"{archive}/{INDEX} is damaged: {error}. Pack the data set again.") from error


def _member(archive: Path, name: str) -> Member:
    members = _members(archive)
    if name not in members:
        raise UserError(f"{archive} holds no file {name}.")
    return members[name]


def _read_member(archive: Path, name: str) -> bytes:
    info, end = _member(archive, name)
    with _named(archive / name):
        if info.flag_bits & 1:
            raise NotImplementedError("it is encrypted with a password")
        packed = io.BytesIO(_read_range(archive, info.header_offset, end))
        packed.seek(_header_length(packed.read(30)))
        return zipfile.ZipExtFile(packed, "r", info).read()  # and compare the checksum


def _header_length(fixed: bytes) -> int:
    """Return where a member's content begins, from its first 30 bytes."""
    name, extra = struct.unpack_from("<HH", fixed, 26)
    return 30 + int(name) + int(extra)


def _open(path: Path) -> IO[bytes]:
    """Open a file of the disk; raises `OSError` for what is none, as a pipe, which would be waited for."""
    if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
        raise OSError("it is no file, but a pipe, a socket or a device")
    return path.open("rb")


def _read_range(path: Path, start: int, end: int) -> bytes:
    if isinstance(path, Url):
        return read_url(path, start, end)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


@contextlib.contextmanager
def _named(path: Path, kind: str = "") -> Iterator[None]:
    """Turn what a broken file raises into a `UserError` that names it."""
    try:
        yield
    except BROKEN as error:
        said = (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
        raise UserError(f"{path} cannot be read{kind}: {said}.") from error
