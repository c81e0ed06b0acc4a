"""Class statistics: pixels per file and class, for rare-class sampling, counted once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode
from ssrseg.data.layouts import Pair
from ssrseg.data.storage import stamp, values_of
from ssrseg.runs.atomic import write_json


@dataclass(frozen=True)
class ClassStatistics:
    """Pixels per file and class."""

    pixels: Tensor  # (files, K) int64

    @property
    def totals(self) -> Tensor:
        """Pixels per class (K,)."""
        return self.pixels.sum(dim=0)


def class_statistics(
    pairs: Sequence[Pair], code: LabelCode, num_classes: int, *, cache: Path | None = None, workers: int = 4
) -> ClassStatistics:
    """Count every label file once, in parallel; later calls read the cache while files and mapping are the same.

    Of several processes that ask at once, one counts and the others wait for it.

    Args:
        pairs: the source.
        code: how label files are read.
        num_classes: K.
        cache: a JSON file beside the user's cache folder, which all runs share. What cannot be written is no error.
        workers: threads.
    """
    key = _fingerprint(pairs, code, num_classes)
    if cache is not None and (known := _read_cache(cache, key)) is not None:
        return ClassStatistics(known)
    with _one_at_a_time(_remembered(key)):
        if (known := _read_cache(_remembered(key), key)) is not None:
            return _saved(ClassStatistics(known), pairs, key, [cache])
        counted = ClassStatistics(_count(pairs, code, num_classes, workers))
        return _saved(counted, pairs, key, [cache, _remembered(key)])


@contextlib.contextmanager
def _one_at_a_time(place: Path) -> Iterator[None]:
    """Lock a file in the user's cache folder against other processes; no lock where it cannot be written."""
    lock = FileLock(place.with_suffix(".lock"))
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, NotImplementedError):
            place.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock)
        yield


def _count(pairs: Sequence[Pair], code: LabelCode, num_classes: int, workers: int) -> Tensor:
    def count(pair: Pair) -> Tensor:
        if (values := values_of(pair.label)) is not None:
            return torch.zeros(256, dtype=torch.int64).index_add(0, code.table.long(), values)[:num_classes]
        return torch.bincount(read_labels(pair.label, code).flatten(), minlength=256)[:num_classes]

    with ThreadPoolExecutor(workers) as pool:
        counted = track(
            pool.map(count, pairs),
            "counting classes",
            total=len(pairs),
            transient=True,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        return torch.stack(list(counted))


def save_statistics(
    statistics: ClassStatistics, pairs: Sequence[Pair], code: LabelCode, num_classes: int, place: Path
) -> None:
    """Write statistics that were counted elsewhere to `place` and to where `class_statistics` looks for them."""
    key = _fingerprint(pairs, code, num_classes)
    with _one_at_a_time(_remembered(key)):
        _saved(statistics, pairs, key, [place, _remembered(key)])


def _saved(
    statistics: ClassStatistics, pairs: Sequence[Pair], key: str, places: Sequence[Path | None]
) -> ClassStatistics:
    content = {"key": key, "files": [str(pair.label) for pair in pairs], "pixels": statistics.pixels.tolist()}
    for place in places:
        if place is not None:
            with contextlib.suppress(OSError):  # a read-only folder: counted again next time
                place.parent.mkdir(parents=True, exist_ok=True)
                write_json(place, content)
    return statistics


def _remembered(key: str) -> Path:
    """Return the file that holds these statistics for all runs of a user (XDG base directories)."""
    home = os.path.expanduser("~")  # stays "~" for a user without home, as in some containers
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home if home != "~" else tempfile.gettempdir(), ".cache")
    return Path(cache) / "ssrseg" / "class-statistics" / f"{key}.json"


def _fingerprint(pairs: Sequence[Pair], code: LabelCode, num_classes: int) -> str:
    digest = hashlib.sha256(f"{code.digest()} {num_classes}".encode())
    for pair in pairs:
        text = f"{pair.label.absolute()}\0{stamp(pair.label)}\0"
        digest.update(text.encode(errors="surrogateescape"))  # names that are no UTF-8
    return digest.hexdigest()


def _read_cache(path: Path, key: str) -> Tensor | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return torch.tensor(content["pixels"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
