"""All data of a run, looked at: what they show, and everything that is wrong with them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ssrseg.config import DataConfig, Settings
from ssrseg.data.checks.colours import Colour, mean_colour
from ssrseg.data.checks.inspect import Look, Wanted, look
from ssrseg.data.checks.problems import Problem, problem
from ssrseg.data.label_mapping import code_for, resolve_space
from ssrseg.data.label_spaces import LabelSpace
from ssrseg.data.layouts import find_images, find_pairs, listing_of, spec_of
from ssrseg.errors import UserError

File = tuple[Path, Path | None]
"""An image, and its label where labels are read."""


EFFECTS = {
    "cannot be listed": {"label without image"},
    "no class in any label": {"label without any class"},
    "value of no class": {"no class in any label"},
    "image is its own label": {"label cannot be read"},
    "target is the source's labels": {"looks like a label map"},
}
"""What follows from a problem in the same data set, and need not be said too."""


@dataclass(frozen=True)
class DataSet:
    """One data set of a run."""

    domain: str
    """`source`, `target` or `val`."""
    config: DataConfig
    files: list[File]
    looks: list[Look]
    """One per file."""

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many images there are of each (width, height)."""
        return Counter(one.size for one in self.looks if one.size is not None)

    @property
    def colour(self) -> Colour | None:
        """Mean over the images that were decoded; absent when none was."""
        colours = [one.colour for one in self.looks if one.colour is not None]
        return mean_colour(colours) if colours else None

    @property
    def pixels(self) -> Tensor:
        """Per class, of every label that was decoded (labels, K) int64; (0, 0) when none was."""
        pixels = [one.pixels for one in self.looks if one.pixels is not None]
        return torch.stack(pixels) if pixels else torch.zeros(0, 0, dtype=torch.int64)


@dataclass(frozen=True)
class Survey:
    """What was seen."""

    space: LabelSpace
    sets: dict[str, DataSet]
    """By domain."""
    problems: list[Problem]


def survey(settings: Settings, *, some: int | None = None, console: Console | None = None) -> Survey:
    """Look at all data of a run and collect every problem.

    Args:
        settings: of the run.
        some: decode at most this many files of each data set, evenly spread, and those that seem cut off; of the
            others read the headers only. All are decoded when absent.
        console: shows progress when it is a terminal.

    Raises:
        UserError: the settings do not say which classes there are, or name an unknown layout.
    """
    space = resolve_space(settings.classes, settings.source)
    problems: list[Problem] = []
    sets: dict[str, DataSet] = {}
    given = {"source": settings.source, "target": settings.target, "val": settings.val}
    domains = {domain: data for domain, data in given.items() if data is not None}
    for data in domains.values():
        spec_of(data)
    for domain, data in domains.items():
        wanted = _wanted(domain, data, settings, space, problems)
        files = _list(domain, data, problems)
        looks = _look_at_all(files, wanted, some, console)
        sets[domain] = DataSet(domain, data, files, looks)
        problems += (found for one in looks for found in one.problems)
        if domain != "target" and wanted.code is not None:
            problems += _check_classes(sets[domain], space)
    problems += _between(sets, contents=some is None)
    return Survey(space, sets, _causes(problems))


def _wanted(domain: str, data: DataConfig, settings: Settings, space: LabelSpace, problems: list[Problem]) -> Wanted:
    code = None
    try:  # a target has no labels to map: its values are compared with the source's
        code = code_for(settings.source if domain == "target" else data, settings.classes, settings.source)
    except UserError as error:
        if domain != "target":
            problems.append(problem("cannot be mapped", domain, data.root, str(error)))
    own_ids = isinstance(settings.classes, tuple) and any(entry.ids is not None for entry in settings.classes)
    strict = data.id_map is None and not own_ids and spec_of(data).space is None
    return Wanted(domain, settings.loader.crop, data.resize, code, space.num_classes, strict)


def _list(domain: str, data: DataConfig, problems: list[Problem]) -> list[File]:
    """The files to look at; what is wrong with the listing itself is added to `problems`."""

    def report(kind: str, path: Path, text: str) -> None:
        problems.append(problem(kind, domain, path, text))

    known = len(problems)
    try:
        listing = listing_of(data)
    except UserError as error:
        report("cannot be listed", data.root, str(error))
        return []
    images = {pair.image for pair in listing.pairs} | {*listing.without_label}
    for one, other in listing.twice:
        if domain != "target" or one in images:
            report("one name twice", other, f"{one} and {other} differ in their ending only.")
    for stem in listing.missing_stems:
        report("stem without image", data.root, f"{data.stems} lists {stem!r}, but {data.root} has no such image.")
    files: list[File] = [(pair.image, pair.label) for pair in listing.pairs]
    if domain == "target":
        files = [(image, None) for image in sorted(images)]
    else:
        for path in listing.without_label:
            report("image without label", path, f"{path} has no label.")
        for path in listing.without_image:
            report("label without image", path, f"{path} has no image.")
    return files if len(problems) > known and images else _found(domain, data, problems)


def _found(domain: str, data: DataConfig, problems: list[Problem]) -> list[File]:
    """What training will find: its own search has the last word where the listing has no complaint."""
    try:
        if domain == "target":
            return [(image, None) for image in find_images(data)]
        return [(pair.image, pair.label) for pair in find_pairs(data)]
    except UserError as error:
        problems.append(problem("cannot be listed", domain, data.root, str(error)))
        return []


def _look_at_all(files: Sequence[File], wanted: Wanted, some: int | None, console: Console | None) -> list[Look]:
    step = 1 if some is None else max(1, -(-len(files) // some))

    def seen(number: int) -> Look:
        return look(*files[number], wanted, whole=number % step == 0)

    quiet = console is None or not console.is_terminal
    with ThreadPoolExecutor((os.cpu_count() or 1) + 2) as pool:
        looks = pool.map(seen, range(len(files)))
        text = f"looking at {wanted.domain}"
        return list(track(looks, text, len(files), transient=True, console=console, disable=quiet))


def _check_classes(data: DataSet, space: LabelSpace) -> list[Problem]:
    """Classes that no label shows."""
    pixels, root = data.pixels, data.config.root
    seen = (pixels > 0).any(dim=0).tolist()
    absent = [name for name, known in zip(space.names, seen or [True] * len(space.names), strict=True) if not known]
    if len(absent) == len(space.names):
        return [problem("no class in any label", data.domain, root, f"No label of {root} shows any class.")]
    text = f"no pixel of {', '.join(absent)} in the {len(pixels)} labels looked at in {root}."
    return [problem("class that never occurs", data.domain, root, text)] if absent else []


def _causes(problems: list[Problem]) -> list[Problem]:
    """The problems without those that only follow from another one."""
    known = {(one.domain, one.kind) for one in problems}
    return [
        one
        for one in problems
        if not any((one.domain, cause) in known for cause, effects in EFFECTS.items() if one.kind in effects)
    ]


def _between(sets: dict[str, DataSet], *, contents: bool) -> list[Problem]:
    """What two data sets should not have in common: files and, when all were decoded, contents of files."""
    found: list[Problem] = []
    source, target, val = (sets.get(name) for name in ("source", "target", "val"))
    for data in (source, val):
        if data is not None:
            found += _own_labels(data)
    if source is not None and target is not None:
        found += _target_in_source(source, target, contents)
    if val is not None:
        for trained in (source, target):
            if trained is not None:
                found += _shared(val, trained, contents)
    return found


def _own_labels(data: DataSet) -> list[Problem]:
    same = [image for image, label in data.files if image == label]
    text = f"{len(same)} files of {data.config.root} are both image and label."
    return [problem("image is its own label", data.domain, same[0], text)] if same else []


def _target_in_source(source: DataSet, target: DataSet, contents: bool) -> list[Problem]:
    shown = {os.path.realpath(image) for image, _ in target.files}
    root = target.config.root
    if shown and shown <= {os.path.realpath(image) for image, _ in source.files}:
        return [problem("target is the source", "target", root, f"The target's images are all in the source: {root}.")]
    if shown and shown <= {os.path.realpath(label) for _, label in source.files if label is not None}:
        text = f"The images of {root} are the source's labels."
        return [problem("target is the source's labels", "target", root, text)]
    return _shared(target, source, contents)


def _shared(data: DataSet, trained: DataSet, contents: bool) -> list[Problem]:
    """One problem per image that is also among the trained ones: the same file, or the same content."""
    files = {os.path.realpath(image) for image, _ in trained.files}
    known = {one.digest: one.image for one in trained.looks if one.digest is not None and contents}
    found = []
    for one in data.looks:
        if os.path.realpath(one.image) in files:
            kind, text = f"also in the {trained.domain}", f"{one.image} is also in the {trained.domain}."
        elif one.digest in known:
            kind = f"same content as in the {trained.domain}"
            text = f"{one.image} is {known[one.digest]} again."
        else:
            continue
        found.append(problem(kind, data.domain, one.image, text))
    return found
