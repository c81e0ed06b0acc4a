"""Scaled images kept on the disk, so that the next epoch decodes and scales nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Planes = npt.NDArray[np.uint8]
"""(C, H, W): red, green, blue, and the class ids where there are labels."""


@dataclass
class ImageCache:
    """A folder of uncompressed `.npy` files, mapped into memory and read where a crop lies.

    An entry is written whole or not at all, so any number of workers and runs may share the folder. What cannot be
    written is not kept, which is noted; nothing else is lost.
    """

    folder: Path
    problem: str | None = None
    """Why an entry could not be written; no other is tried in this process then."""
    notes: list[str] = field(default_factory=list)
    """One for every entry that is not kept; whoever reads them takes them away."""

    def planes(self, key: str, make: Callable[[], Planes]) -> Planes:
        """The entry of a key, read-only; made, and kept if possible, when it is not there or broken."""
        path = self.folder / key[:2] / f"{key}.npy"
        try:
            kept: Planes = np.load(path, mmap_mode="r", allow_pickle=False)
            if kept.ndim == 3 and kept.dtype == np.uint8:
                return kept
        except (OSError, ValueError, EOFError):
            pass
        planes = make()
        if self.problem is None:
            try:
                _write(path, planes)
            except OSError as error:
                self.problem = error.strerror or str(error)
        if self.problem is not None:
            self.notes.append(f"the image cache {self.folder} cannot be written ({self.problem}): an image is not kept")
        return planes


def key_of(*facts: object) -> str:
    """The key of an entry: the same facts, the same key."""
    return hashlib.sha256("\0".join(map(str, facts)).encode("utf-8", "surrogateescape")).hexdigest()[:40]


def _write(path: Path, planes: Planes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: another worker may be writing the same entry.
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:8]}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, planes, allow_pickle=False)
        Path(partial).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
