"""Where files lie: on the disk, or in zip archives and packed data sets that are read in place."""

from __future__ import annotations

import functools
import io
import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from torch import Tensor

from ssrseg.data import shards
from ssrseg.errors import UserError

BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)
"""What zipfile raises: a broken archive, a damaged, an encrypted or a strangely packed member."""


def list_files(root: Path, below: str = "") -> list[tuple[str, Path]]:
    """Files in the folder `root/below`: their paths below `root`, with `/`, and where they lie; sorted.

    Links to folders are followed, but not into a folder that they lie in.

    Raises:
        UserError: `root` is neither a folder nor a zip archive.
    """
    if _is_archive(root) or shards.is_packed(root):
        return []
    if not root.is_dir():
        found = "a file that is no zip archive" if root.exists() else "not there"
        raise UserError(f"There is no folder {root} (it is {found}): give the folder of the data, or a .zip file.")
    files: list[Path] = []
    for folder, folders, names in os.walk(root / below, followlinks=True):
        here = os.path.join(os.path.realpath(folder), "")
        folders[:] = [name for name in folders if not _is_above(os.path.join(folder, name), here)]
        files += [Path(folder, name) for name in names]
    return [(path.relative_to(root).as_posix(), path) for path in sorted(files)]


def list_members(root: Path, below: str = "") -> list[tuple[str, Path]]:
    """Files in the archive or packed data set `root`, or in the archives in it, as if they were unpacked there.

    Returns:
        Paths below `root`, with `/`, and where the files lie: the archive's path, `/`, the member's. Sorted.

    Raises:
        UserError: an archive is broken.
    """
    if shards.is_packed(root):
        return [(name, root / name) for name in sorted(shards.open_shards(root).members) if name.startswith(below)]
    archives = [root] if _is_archive(root) else [path for path in sorted(root.iterdir()) if _is_archive(path)]
    start = f"{below}/" if below else ""
    return [
        (name, archive / name) for archive in archives for name in sorted(_opened(archive)[1]) if name.startswith(start)
    ]


def read_bytes(path: Path) -> bytes:
    """All of a file, on the disk or in an archive; raises `UserError` when it is missing, unreadable or empty."""
    with open_file(path) as file:
        try:
            encoded = file.read()
        except BROKEN as error:
            raise UserError(f"{path} cannot be read: {_said(error)}.") from error
    if not encoded:
        raise UserError(f"{path} is empty (0 bytes).")
    return encoded


def open_file(path: Path) -> IO[bytes]:
    """A file to read from, seekable; to be closed. Threads may read from one archive at a time.

    Raises:
        UserError: it is missing or cannot be opened.
    """
    packed = _in_shards(path)
    if packed is not None:
        return io.BytesIO(packed[0].read(packed[1]))
    where = _in_archive(path)
    try:
        if where is None:
            return path.open("rb")
        archive, member = where
        return _opened(archive)[0].open(_member(archive, member))
    except BROKEN as error:
        raise UserError(f"{path} cannot be read: {_said(error)}.") from error


def stamp(path: Path) -> str:
    """What changes when the file does: its size and time, or, in an archive, its size and checksum.

    Raises:
        UserError: it is missing.
    """
    packed = _in_shards(path)
    if packed is not None:
        return packed[0].stamp(packed[1])
    where = _in_archive(path)
    if where is not None:
        info = _member(*where)
        return f"{info.file_size} {info.CRC:08x}"
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {_said(error)}.") from error
    return f"{stat.st_size} {stat.st_mtime_ns}"


def size_of(path: Path) -> int:
    """Bytes of a file, on the disk or, unpacked, in an archive; raises `UserError` when it is missing."""
    return int(stamp(path).split()[0])


def name_below(path: Path, root: Path) -> str:
    """The path of a file below `root`, with `/`, as it would be if archives were unpacked."""
    packed, where = _in_shards(path), _in_archive(path)
    return packed[1] if packed else where[1] if where else path.relative_to(root).as_posix()


def values_of(path: Path) -> Tensor | None:
    """Pixels per raw value (256,) of a label, where they were counted when it was packed."""
    packed = _in_shards(path)
    return None if packed is None else packed[0].values(packed[1])


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def _is_above(folder: str, here: str) -> bool:
    return os.path.islink(folder) and here.startswith(os.path.join(os.path.realpath(folder), ""))


def _in_archive(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the member; absent for a path on the disk."""
    for above in path.parents:
        if _is_archive(above):
            return above, path.relative_to(above).as_posix()
    return None


def _in_shards(path: Path) -> tuple[shards.Shards, str] | None:
    """The packed data set that a path leads into, and the name there; absent for a path on the disk."""
    for above in path.parents:
        if shards.is_packed(above):
            return shards.open_shards(above), path.relative_to(above).as_posix()
    return None


Opened = tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]
"""An archive, and its members by name."""


def _member(archive: Path, name: str) -> zipfile.ZipInfo:
    _, members = _opened(archive)
    if name not in members:
        raise UserError(f"{archive} holds no file {name}.")
    return members[name]


def _opened(archive: Path) -> Opened:
    try:
        stat = archive.stat()
        return _open_once(archive, os.getpid(), stat.st_mtime_ns, stat.st_size)
    except BROKEN as error:
        raise UserError(f"{archive} cannot be read as a zip archive: {_said(error)}.") from error


@functools.lru_cache(maxsize=64)
def _open_once(archive: Path, process: int, changed: int, size: int) -> Opened:
    """Once per process: a forked one would share the position in the file with its parent. Again when it changes."""
    file = zipfile.ZipFile(archive)
    members = {
        PurePosixPath(info.filename.lstrip("/")).as_posix(): info
        for info in file.infolist()
        if not info.is_dir() and not info.filename.startswith("__MACOSX/")
    }
    return file, members


def _said(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
