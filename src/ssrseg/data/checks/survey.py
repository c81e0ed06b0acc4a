"""Examine all data of a run: facts, and everything that is wrong with them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ssrseg.config import DataConfig, Settings
from ssrseg.config.data import ExactSize
from ssrseg.data.checks.inspect import CELL, Expected, Inspection, inspect_files
from ssrseg.data.checks.problems import EFFECTS, Problem, notes, refuse
from ssrseg.data.class_statistics import ClassStatistics, class_statistics, save_statistics
from ssrseg.data.label_mapping import code_for, resolve_space
from ssrseg.data.label_spaces import LabelSpace
from ssrseg.data.layouts import Pair, listing_of, no_image, spec_of
from ssrseg.data.loader import rare_class_sampler
from ssrseg.data.samplers import RareClassSampler
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

NEVER = 0.01
"""Draws of an image that are to be expected in a run, or in an epoch where that is longer: below, it is never drawn."""
DECODED = 50
"""Files of each data set that are decoded before training; of the others only header and last bytes are read. So many
labels at most are measured for how thick their classes are, by check-data too."""


@dataclass(frozen=True)
class InspectedData:
    """One data set of a run."""

    config: DataConfig
    expected: Expected
    files: list[Inspection]

    @property
    def pixels(self) -> Tensor:
        """Per class, of every label that was decoded (labels, K) int64."""
        pixels = [one.pixels for one in self.files if one.pixels is not None]
        return torch.stack(pixels) if pixels else torch.zeros(0, self.expected.num_classes, dtype=torch.int64)

    @cached_property
    def images(self) -> set[str]:
        """Where the images really lie, links followed."""
        return {os.path.realpath(one.image) for one in self.files}


@dataclass(frozen=True)
class Survey:
    """All data sets of a run and their problems."""

    space: LabelSpace
    sets: dict[str, InspectedData]
    """By domain."""
    problems: list[Problem]
    drawn: dict[str, float] = field(default_factory=dict)
    """Class -> probability that rare-class sampling draws a source image for it; empty without."""


def refuse_bad_data(settings: Settings) -> list[str]:
    """Examine all headers and some files of a run before it trains; `ssrseg check-data` decodes every one.

    Returns notes for the user about what does not prevent training; raises one `UserError` of all that does.
    """
    problems = survey(settings, some=DECODED).problems
    refuse(problems)
    return notes(problems)


def survey(settings: Settings, *, some: int | None = None, console: Console | None = None) -> Survey:
    """Examine all data of a run and collect every problem; shows progress on a console that is a terminal.

    With `some`, at most that many files of each data set are decoded, evenly spread, and those that seem cut off; of
    the others only headers are read.

    Raises:
        UserError: the settings do not say which classes there are, or name an unknown layout.
    """
    space = resolve_space(settings.classes, settings.source)
    problems: list[Problem] = []
    sets: dict[str, InspectedData] = {}
    given = {"source": settings.source, "target": settings.target, "val": settings.val}
    domains = {domain: data for domain, data in given.items() if data is not None}
    for data in domains.values():
        spec_of(data)
    for domain, data in domains.items():
        expected = _expected(domain, data, settings, space, problems)
        files = _inspect_all(_list(domain, data, problems), expected, some, console)
        sets[domain] = InspectedData(data, expected, files)
        problems += (found for one in files for found in one.problems)
        if domain != "target" and expected.code is not None:
            problems += _check_classes(sets[domain], domain, space, settings)
    problems += [*_between(sets, contents=some is None), *_check_thickness(sets["source"], space)]
    drawn: dict[str, float] = {}
    if not any(one.fatal for one in problems) and (some is None or settings.loader.rare_class is not None):
        statistics = _count_all(sets["source"])
        if settings.loader.rare_class is not None:
            sampler = rare_class_sampler(statistics, settings.loader.rare_class, settings)
            drawn = {space.names[c]: float(p) for c, p in zip(sampler.classes, sampler.probabilities, strict=True)}
            problems += _check_sampling(sampler, statistics, settings, space)
    known = {(one.domain, one.kind) for one in problems}
    effects = {(domain, EFFECTS.get(kind)) for domain, kind in known}
    return Survey(space, sets, [one for one in problems if (one.domain, one.kind) not in effects], drawn)


def _expected(
    domain: str, data: DataConfig, settings: Settings, space: LabelSpace, problems: list[Problem]
) -> Expected:
    code, classes = None, settings.classes
    try:  # a target has no labels to map: its values are compared with the source's
        code = code_for(settings.source if domain == "target" else data, classes, settings.source)
    except UserError as error:
        if domain != "target":
            problems.append(Problem("cannot be mapped", domain, data.root, str(error)))
    own_ids = isinstance(classes, tuple) and any(entry.ids is not None for entry in classes)
    strict = data.id_map is None and not own_ids and spec_of(data).space is None
    crop, bands = settings.loader.crop, settings.model.in_channels
    return Expected(domain, crop, data.resize, code, space.num_classes, bands, strict)


def _list(domain: str, data: DataConfig, problems: list[Problem]) -> list[tuple[Path, Path | None]]:
    """Return images and their labels; what is wrong with the listing itself is added to `problems`."""

    def report(kind: str, path: Path, text: str) -> None:
        problems.append(Problem(kind, domain, path, text))

    try:
        listing = listing_of(data, labelled=domain != "target")
    except UserError as error:
        report("cannot be listed", data.root, str(error))
        return []
    for one, other in listing.twice:
        report("one name twice", other, f"{one} and {other} differ in their ending only.")
    for stem in listing.missing_stems:
        report("stem without image", data.root, f"{data.stems} lists {stem!r}, but {data.root} has no such image.")
    for path in listing.without_label:
        report("image without label", path, f"{path} has no label.")
    for path in listing.without_image:
        report("label without image", path, f"{path} has no image.")
    if not listing.images:
        report("cannot be listed", data.root, no_image(data))
    if domain == "target":
        return [(image, None) for image in listing.images]
    return [(pair.image, pair.label) for pair in listing.pairs]


def _inspect_all(
    files: Sequence[tuple[Path, Path | None]], expected: Expected, some: int | None, console: Console | None
) -> list[Inspection]:
    sample = max(1, -(-len(files) // DECODED))
    step = 1 if some is None else max(1, -(-len(files) // some))

    def inspect(number: int) -> Inspection:
        measured = expected.domain == "source" and number % sample == 0
        return inspect_files(*files[number], expected, whole=number % step == 0, measured=measured)

    quiet = console is None or not console.is_terminal
    with ThreadPoolExecutor((os.cpu_count() or 1) + 2) as pool:
        seen = pool.map(inspect, range(len(files)))
        text = f"looking at {expected.domain}"
        return list(track(seen, text, len(files), transient=True, console=console, disable=quiet))


def _count_all(data: InspectedData) -> ClassStatistics:
    """Return the pixels of all labels, kept where rare-class sampling looks for them; counts those not looked at."""
    pairs = [Pair(one.image, one.label) for one in data.files if one.label is not None]
    code, classes = data.expected.code, data.expected.num_classes
    assert code is not None  # else no label was decoded, and its problem is fatal
    if len(data.pixels) < len(pairs):
        return class_statistics(pairs, code, classes)
    save_statistics(statistics := ClassStatistics(data.pixels), pairs, code, classes)
    return statistics


def _check_sampling(
    sampler: RareClassSampler, statistics: ClassStatistics, settings: Settings, space: LabelSpace
) -> Iterator[Problem]:
    """Report what rare-class sampling makes of the classes: images that it will not draw, and classes of few pixels."""
    train, config, root = settings.train, settings.loader.rare_class, settings.source.root
    draws = train.steps * train.accumulate * train.devices * train.nodes * settings.loader.batch
    if never := int((sampler.chances < NEVER / max(draws, sampler.count)).sum()):
        how = f"rare-class sampling, temperature {config and config.temperature:g}"
        text = f"{never} of {sampler.count} source images will never be drawn ({how})."
        yield Problem("images never drawn", "source", root, text)
    most = statistics.pixels.max(dim=0).values.tolist()
    if few := [f"{space.names[c]} {most[c]}" for c in sampler.classes.tolist() if most[c] <= sampler.min_pixels]:
        text = f"no image shows more than {sampler.min_pixels} pixels of some classes; the most are {', '.join(few)}."
        yield Problem("class below min_pixels", "source", root, text)


def _check_classes(data: InspectedData, domain: str, space: LabelSpace, settings: Settings) -> list[Problem]:
    """Report classes that no label shows, where labels were decoded."""
    pixels, root, source = data.pixels, data.config.root, domain == "source"
    if source and 0 < len(pixels) < len(data.files) and (pixels.sum(0) > 0).sum() < 2:
        pixels = _count_all(data).pixels  # before a run is refused for what some of its labels show
    absent = [name for name, count in zip(space.names, pixels.sum(0).tolist(), strict=True) if not count]
    if not len(pixels) or not absent:
        return []
    if len(absent) == len(space.names):
        return [Problem("no class in any label", domain, root, f"No label of {root} shows any class.")]
    if source and len(absent) == len(space.names) - 1:
        name = next(name for name in space.names if name not in absent)
        return [Problem("one class in all labels", domain, root, f"The labels of {root} show {name} alone.")]
    found, distance = list[Problem](), settings.method.feature_distance
    things = [name for name in space.names if distance and name in (distance.classes or ())]
    if source and things and set(things) <= set(absent):
        listed = ", ".join(things)
        found.append(Problem("no thing in any label", domain, root, f"{listed}: in none of the labels looked at."))
    text = f"no pixel of {', '.join(absent)} in the {len(pixels)} labels looked at in {root}."
    return [Problem("class that never occurs", domain, root, text), *found]


def _check_thickness(data: InspectedData, space: LabelSpace) -> Iterator[Problem]:
    """Report classes of which half of the pixels lie where they are thinner than `CELL`, and a size that mends it."""
    counts = [one.thickness for one in data.files if one.thickness is not None]
    sizes = Counter(one.size for one in data.files if one.size is not None)
    if not (counts and sizes):
        return
    total, (size, _), resize = torch.stack(counts).sum(0), sizes.most_common(1)[0], data.config.resize
    medians = (2 * total.cumsum(1) < total.sum(1, keepdim=True)).sum(1) / 100
    trained = rescale_size(*size, resize) if resize else size

    def described(name: str, thickness: float) -> str:
        width, height = (math.ceil(side * CELL / max(thickness, 0.01)) for side in trained)
        bound = f"{{exact: [{width}, {height}]}}" if isinstance(resize, ExactSize) else f"[{width}, {height}]"
        beyond = ", larger than the images" if width > size[0] or height > size[1] else ""
        return f"{name} {thickness:.1f} ({CELL} at resize={bound}{beyond})"

    found = [(m, name) for m, name, own in zip(medians.tolist(), space.names, total, strict=True) if own.any()]
    if thin := [described(name, median) for median, name in sorted(found) if round(median, 1) < CELL]:
        what = f"median thickness of some classes is less than {CELL} px: {', '.join(thin)}."
        where = f"At {trained[0]}x{trained[1]}, the size in training, the"
        yield Problem("thin class", "source", data.config.root, f"{where} {what}")


def _between(sets: dict[str, InspectedData], *, contents: bool) -> list[Problem]:
    """Report files, and when all were decoded contents of files, that two data sets should not have in common."""
    found: list[Problem] = []
    for domain, data in sets.items():
        if same := [one.image for one in data.files if one.image == one.label]:
            text = f"{len(same)} files of {data.config.root} are both image and label."
            found.append(Problem("image is its own label", domain, same[0], text))
    source, target, val = (sets.get(name) for name in ("source", "target", "val"))
    if source is not None and target is not None:
        root = target.config.root
        labels = {os.path.realpath(one.label) for one in source.files if one.label is not None}
        if target.images and target.images <= source.images:
            text = f"The target's images are all in the source: {root}."
            found.append(Problem("target is the source", "target", root, text))
        elif target.images and target.images <= labels:
            text = f"The images of {root} are the source's labels."
            found.append(Problem("target is the source's labels", "target", root, text))
        else:
            found += _shared("target", target, "source", source, contents)
    for domain in ("source", "target"):
        if val is not None and domain in sets:
            found += _shared("val", val, domain, sets[domain], contents)
    return found


def _shared(domain: str, data: InspectedData, other: str, trained: InspectedData, contents: bool) -> Iterator[Problem]:
    """Yield a problem for each image that is also among the trained ones: the same file, or the same content."""
    known = {one.digest: one.image for one in trained.files if one.digest is not None and contents}
    for one in data.files:
        if os.path.realpath(one.image) in trained.images:
            yield Problem(f"also in the {other}", domain, one.image, f"{one.image} is also in the {other}.")
        elif one.digest in known:
            text = f"{one.image} is {known[one.digest]} again."
            yield Problem(f"same content as in the {other}", domain, one.image, text)
