"""Data sets packed into litdata's chunks, for clusters and object storage: files of a folder that is not unpacked.

Every file is an item, which litdata reads by its number alone out of a chunk, fetching the chunk first where the data
set lies elsewhere. So a draw number still decides the sample, and rare-class sampling goes as it does over files. The
last item lists the names, and what the labels hold.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_json

MARK = "packed.json"
"""The file that makes a folder a packed data set, and says where its chunks are fetched from."""
FORMAT = "ssrseg-packed-1"
CHUNK_BYTES = 64_000_000


@dataclass(frozen=True)
class Member:
    """A packed file."""

    number: int
    stamp: str
    """Its size and checksum."""
    values: Mapping[str, int] | None
    """Of a label: how many pixels have each raw value; absent for colours and images."""


@dataclass(frozen=True)
class Shards:
    """An open packed data set."""

    root: Path
    members: Mapping[str, Member]
    """By their paths in the data set."""
    items: Any
    """litdata's: number -> bytes."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, name: str) -> bytes:
        """The content of a file; raises `UserError` when there is none, or its chunk cannot be had."""
        member = self._member(name)
        with self.lock:  # litdata keeps one chunk open
            content = _item(self.root, self.items, member.number)
        if member.stamp != stamp_of(content):
            raise UserError(f"{self.root}: {name} is damaged in its chunk. Fetch or pack the data set again.")
        return content

    def stamp(self, name: str) -> str:
        """What changes when the file does; raises `UserError` when there is none."""
        return self._member(name).stamp

    def values(self, name: str) -> Tensor | None:
        """Pixels per raw value (256,) of a label; absent for colours and images."""
        values = self._member(name).values
        if values is None:
            return None
        counts = torch.zeros(256, dtype=torch.int64)
        counts[[int(value) for value in values]] = torch.tensor(list(values.values()))
        return counts

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise UserError(f"{self.root} holds no file {name}.")
        return self.members[name]


def stamp_of(content: bytes) -> str:
    """A file's size and checksum."""
    return f"{len(content)} {zlib.crc32(content):08x}"


def is_packed(root: Path) -> bool:
    """Whether a folder is a packed data set."""
    return (root / MARK).is_file()


def connect(root: Path, url: str) -> None:
    """Make `root` the place where the chunks of a data set elsewhere are kept, which may be empty or not there yet.

    Raises:
        UserError: the folder keeps another data set, or cannot be written.
    """
    try:
        if is_packed(root):
            known = _mark(root).get("url")
            if known != url:
                raise UserError(f"{root} keeps the chunks of {known or 'its own'}, not of {url}: set another `root`.")
            return
        root.mkdir(parents=True, exist_ok=True)
        if any(path.name != f".{MARK}.partial" for path in root.iterdir()):
            raise UserError(f"{root} holds other files: with `url`, `root` is a folder of its own for fetched chunks.")
        write_json(root / MARK, {"format": FORMAT, "url": url})
    except OSError as error:
        raise UserError(f"{root} cannot keep what is fetched from {url}: {error.strerror}.") from error


def open_shards(root: Path) -> Shards:
    """A packed data set, opened once per process; raises `UserError` when it cannot be."""
    try:
        return _open_once(root, os.getpid(), (root / MARK).stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"{root} cannot be read as a packed data set: {error.strerror}.") from error


def write_shards(root: Path, files: Iterable[tuple[str, bytes, Mapping[str, int] | None]]) -> int:
    """Pack files, given by name, content and a label's values, into a folder that is empty or not there yet.

    Returns:
        How many there were.
    """
    root.mkdir(parents=True, exist_ok=True)
    writer = _litdata("litdata.streaming.cache").Cache(str(root), chunk_bytes=CHUNK_BYTES)
    listed: dict[str, list[Any]] = {}
    for number, (name, content, values) in enumerate(files):
        writer[number] = content
        listed[name] = [stamp_of(content), values]
    writer[len(listed)] = json.dumps(listed).encode()
    writer.done()
    writer.merge()
    write_json(root / MARK, {"format": FORMAT, "url": None})  # last: what is marked is whole
    return len(listed)


@functools.lru_cache(maxsize=16)
def _open_once(root: Path, process: int, changed: int) -> Shards:
    mark = _mark(root)
    place = _litdata("litdata.streaming.resolver").Dir(path=str(root), url=mark["url"])
    try:
        items = _litdata("litdata").StreamingDataset(place, shuffle=False)
        count = len(items)
    except Exception as error:  # whatever the storage's client raises
        raise UserError(f"{mark['url'] or root} cannot be opened as a packed data set: {error}") from error
    _refuse_foreign(root)
    listed = json.loads(_item(root, items, count - 1))
    members = {name: Member(number, stamp, values) for number, (name, (stamp, values)) in enumerate(listed.items())}
    return Shards(root, members, items)


def _item(root: Path, items: Any, number: int) -> bytes:
    try:
        return bytes(items[number])
    except Exception as error:  # whatever the storage's client raises
        raise UserError(f"{root}: item {number} of the packed data set cannot be read: {error}") from error


def _refuse_foreign(root: Path) -> None:
    """The index says how items are decoded, and one of litdata's ways is pickle: only bytes are read."""
    format = json.loads((root / "index.json").read_text())["config"]["data_format"]
    if format != ["bytes"]:
        raise UserError(f"{root} holds items of {format}, which `ssrseg pack` does not write: pack the data set again.")


def _mark(root: Path) -> dict[str, Any]:
    try:
        mark: dict[str, Any] = json.loads((root / MARK).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{root / MARK} cannot be read: {error}") from error
    if mark.get("format") != FORMAT:
        raise UserError(f"{root / MARK} names the format {mark.get('format')!r}, expected {FORMAT!r}.")
    return mark


def _litdata(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError("Packed data sets need litdata: pip install 'ssrseg[litdata]'.") from error
