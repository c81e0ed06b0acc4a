"""Tensor files that end with their own checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from ssrseg.runs.atomic import sync

CHUNK = 1 << 20
MARK = b"\nsha256 "
SIZE = len(MARK) + hashlib.sha256().digest_size * 2 + 1
"""Bytes of the seal: the mark, the checksum of all that comes before it in hexadecimal, a line feed."""


def write_sealed(path: Path, state: Mapping[str, Any]) -> None:
    """`state` as `torch.save` writes it, and the seal; on the disk, and verified, when this returns.

    Raises:
        OSError: it could not be written, or it reads back as something else.
    """
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.save(dict(state), cast(BinaryIO, sink))
        if sink.error is not None:
            raise sink.error
        file.write(_seal(sink.digest.hexdigest()))
    sync(path)
    if not intact(path):
        raise OSError(f"{path} reads back as something else than was written")


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, on the CPU; `None` when the file is cut, changed, or not one of ours."""
    if not intact(path):
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def intact(path: Path) -> bool:
    """Whether the seal is that of the content."""
    try:
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):  # read what the disk holds, not what memory remembers of it
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            left, digest = os.fstat(file.fileno()).st_size - SIZE, hashlib.sha256()
            while left > 0 and (chunk := file.read(min(left, CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
            return left == 0 and file.read() == _seal(digest.hexdigest())
    except OSError:
        return False


def _seal(digest: str) -> bytes:
    return MARK + digest.encode() + b"\n"


class _Sink:
    """Writes and adds up. It keeps an error for later: `torch.save` would put one of its own in its place."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write, unless that has failed before."""
        if self.error is None:
            try:
                self._file.write(data)
                self.digest.update(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""
