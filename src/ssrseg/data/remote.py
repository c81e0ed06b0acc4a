"""Files below URLs, on any file system that fsspec knows."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
from fsspec.spec import AbstractBufferedFile

from ssrseg.config.base import Url
from ssrseg.errors import UserError

PAUSES = (0.5, 2.0)
"""Seconds before a failed request is repeated: networks fail for moments."""
VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "blob_id", "mtime", "LastModified", "Last-Modified", "created")
"""Keys that change with a file's content, of which every file system gives one at least; the safest first."""
BUFFER = 1 << 16
"""Bytes of a request for a part of a file."""

Result = TypeVar("Result")
_stamps: dict[str, str] = {}
"""By URL, kept from the last listing: one request per folder instead of one per file."""


def find_files(root: Url, below: str) -> list[tuple[str, Url]]:
    """List the files in the folder `root/below` and its sub-folders: names below `root`, and where they lie."""

    def find(files: Any, place: str) -> tuple[str, dict[str, Any]]:
        files.invalidate_cache()
        found = files.find(f"{place.rstrip('/')}/{below}".rstrip("/"), detail=True)
        if not found:
            files.ls(place)  # says why, where `find` says nothing
        return place.rstrip("/"), found

    place, found = _ask(root, find)
    listed = []
    for name, info in found.items():
        if name.startswith("http"):  # a page's links are quoted
            name, place = unquote(name), unquote(place)
        url = root / name[len(place) + 1 :]
        forget(url)
        if info.get("size") is not None and _version(info) is not None:
            _stamps[str(url)] = f"{info['size']} {_version(info)}"
        listed.append((url.relative_to(root).as_posix(), url))
    return listed


def list_folder(root: Url) -> list[Url]:
    """List what lies in a folder itself."""
    names = _ask(root, lambda files, place: files.ls(place, detail=False))
    return [root / unquote(name.rstrip("/").rpartition("/")[2]) for name in names]


def read_url(url: Url, start: int | None = None, end: int | None = None) -> bytes:
    """Read a file, or a part of one; raises `UserError` when it is missing or cannot be reached."""
    content = _ask(url, lambda files, place: bytes(files.cat_file(place, start=start, end=end)))
    if start is not None and end is not None and len(content) > end - start:
        raise UserError(f"{url} cannot be read in place: its server sends no parts of files. Download it first.")
    return content


class UrlPart(AbstractBufferedFile):
    """A part of a file, from byte `start` to `end`; seekable, and only what is read of it is fetched."""

    def __init__(self, url: Url, start: int, end: int) -> None:
        super().__init__(None, url, block_size=BUFFER, size=end - start)  # type: ignore[no-untyped-call]
        self._first = start

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_url(self.path, self._first + start, self._first + end)


def stamp_of_url(url: Url) -> str:
    """Return a file's size and version; raises `UserError` when it is missing or cannot be reached."""
    if str(url) not in _stamps:
        info = _ask(url, lambda files, place: files.info(place))
        _stamps[str(url)] = f"{info.get('size') or 0} {_version(info)}"
    return _stamps[str(url)]


def forget(url: Url) -> None:
    """Ask again for the size and version of a file that may have changed."""
    _stamps.pop(str(url), None)


def _version(info: Mapping[str, Any]) -> Any:
    return next((info[key] for key in VERSIONS if info.get(key) is not None), None)


def _ask(url: Url, question: Callable[[Any, str], Result], pauses: tuple[float, ...] = PAUSES) -> Result:
    """Call `question` with the URL's file system and the name there; raises `UserError` when that fails."""
    try:
        files = _file_system("/".join(str(url).split("/")[:3]), os.getpid())
        return question(files, files._strip_protocol(str(url)))
    except ImportError as error:
        raise UserError(f"{url} needs a package that is not installed: {error}.") from error
    except Exception as error:  # whatever the storage's client raises
        cause = error.__cause__ or error
        lasting = isinstance(cause, FileNotFoundError | PermissionError | ValueError)
        if lasting or 400 <= getattr(cause, "status", 0) < 500 or not pauses:
            missing = isinstance(cause, FileNotFoundError)  # whose message is the name alone
            said = "there is no such file" if missing else str(cause).rstrip(".") or type(cause).__name__
            raise UserError(f"{url} cannot be read: {said}.") from error
    time.sleep(pauses[0])
    return _ask(url, question, pauses[1:])


@functools.cache
def _file_system(place: str, process: int) -> Any:
    """Open once per process: connections and their threads do not survive a fork."""
    return fsspec.core.url_to_fs(place)[0]
