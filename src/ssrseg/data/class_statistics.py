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

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ssrseg.data.label_files import read_labels
from ssrseg.data.label_mapping import LabelCode, map_ids
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


def class_statistics(pairs: Sequence[Pair], code: LabelCode, num_classes: int) -> ClassStatistics:
    """Count every label file once and keep the counts in the user's cache folder.

    Later calls read them there while files and mapping are the same. Of several processes that ask at once, one
    counts and the others wait for it. A cache folder that cannot be written is no error.
    """
    with _entry(pairs, code, num_classes) as place:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return ClassStatistics(torch.tensor(json.loads(place.read_text(encoding="utf-8"))["pixels"]))
        statistics = ClassStatistics(_count(pairs, code, num_classes))
        _write(statistics, place)
        return statistics


def save_statistics(statistics: ClassStatistics, pairs: Sequence[Pair], code: LabelCode, num_classes: int) -> None:
    """Keep statistics that were counted elsewhere where `class_statistics` looks for them."""
    with _entry(pairs, code, num_classes) as place:
        _write(statistics, place)


@contextlib.contextmanager
def _entry(pairs: Sequence[Pair], code: LabelCode, num_classes: int) -> Iterator[Path]:
    """Hold the file that keeps these statistics (XDG base directories) against other processes, if it can be."""
    digest = hashlib.sha256(f"{code.digest()} {num_classes}".encode())
    for pair in pairs:
        text = f"{pair.label.absolute()}\0{stamp(pair.label)}\0"
        digest.update(text.encode(errors="surrogateescape"))  # names that are no UTF-8
    home = os.path.expanduser("~")  # stays "~" for a user without home, as in some containers
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home if home != "~" else tempfile.gettempdir(), ".cache")
    place = Path(cache) / "ssrseg" / "class-statistics" / f"{digest.hexdigest()}.json"
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, NotImplementedError):
            place.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(place.with_suffix(".lock")))
        yield place


def _write(statistics: ClassStatistics, place: Path) -> None:
    with contextlib.suppress(OSError):  # a read-only folder: counted again next time
        write_json(place, {"pixels": statistics.pixels.tolist()})


def _count(pairs: Sequence[Pair], code: LabelCode, num_classes: int) -> Tensor:
    def count(pair: Pair) -> Tensor:
        if (values := values_of(pair.label)) is not None:
            ids = map_ids(np.array([*values], np.int64), code.table).long()
            return torch.zeros(256, dtype=torch.int64).index_add(0, ids, torch.tensor([*values.values()]))[:num_classes]
        return torch.bincount(read_labels(pair.label, code, pair.image).flatten(), minlength=256)[:num_classes]

    with ThreadPoolExecutor(4) as pool:
        counted, console, quiet = pool.map(count, pairs), Console(stderr=True), not sys.stderr.isatty()
        text = "counting classes"
        return torch.stack(list(track(counted, text, len(pairs), transient=True, console=console, disable=quiet)))
