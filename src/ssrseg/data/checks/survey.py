"""Examine all data of a run: facts, and everything that is wrong with them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from ssrseg.config import DataConfig, Settings, datasets
from ssrseg.config.data import ExactSize
from ssrseg.data.checks.inspect import CELL, Expected, Inspection, inspect_files
from ssrseg.data.checks.overlap import InspectedData, shared_files
from ssrseg.data.checks.problems import EFFECTS, Problem, notes, refuse
from ssrseg.data.class_statistics import ClassStatistics, class_statistics, save_statistics
from ssrseg.data.label_mapping import code_for, resolve_space
from ssrseg.data.label_spaces import LabelSpace
from ssrseg.data.layouts import Pair, listing_of, no_image, spec_of
from ssrseg.data.loader import rare_class_samplers, shares
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

NEVER = 0.01
"""Draws of an image that are to be expected in a run, or in an epoch where that is longer: below, it is never drawn."""
DECODED = 50
"""Files of each data set that are decoded before training; of the others only header and last bytes are read. So many
labels at most are measured for how thick their classes are, by check-data too."""


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
    for data in settings.domains.values():
        spec_of(data)
    for domain, data in settings.domains.items():
        expected = _expected(domain, data, settings, space, problems)
        files = _inspect_all(_list(domain, data, problems), expected, some, console)
        sets[domain] = InspectedData(data, expected, files)
        problems += (found for one in files for found in one.problems)
        if expected.role == "val" and expected.code is not None:
            problems += _check_classes([sets[domain]], domain, space, settings)
    sources = [data for data in sets.values() if data.role == "source"]
    problems += _check_classes([data for data in sources if data.expected.code is not None], "source", space, settings)
    problems += shared_files(sets, contents=some is None)
    problems += [found for data in sources for found in _check_thickness(data, space)]
    drawn: dict[str, float] = {}
    if not any(one.fatal for one in problems) and (some is None or settings.loader.rare_class is not None):
        statistics = [_count_all(data) for data in sources]
        if settings.loader.rare_class is not None:
            drawn, found = _check_sampling(sources, statistics, settings, space)
            problems += found
    known = {(one.domain, one.kind) for one in problems}
    effects = {(domain, EFFECTS.get(kind)) for domain, kind in known}
    return Survey(space, sets, [one for one in problems if (one.domain, one.kind) not in effects], drawn)


def _expected(
    domain: str, data: DataConfig, settings: Settings, space: LabelSpace, problems: list[Problem]
) -> Expected:
    code, classes = None, settings.classes
    try:  # a target has no labels to map: its values are compared with the source's
        labelled = datasets(settings.source)[0] if domain.startswith("target") else data
        code = code_for(labelled, classes, settings.source)
    except UserError as error:
        if not domain.startswith("target"):
            problems.append(Problem("cannot be mapped", domain, data.root, str(error)))
    own_ids = isinstance(classes, tuple) and any(entry.ids is not None for entry in classes)
    strict = data.id_map is None and not own_ids and spec_of(data).space is None
    crop, bands = settings.loader.crop, settings.model.in_channels
    return Expected(domain, crop, data.resize, code, space.num_classes, bands, strict)


def _list(domain: str, data: DataConfig, problems: list[Problem]) -> list[tuple[Path, Path | None]]:
    """Return images and their labels; what is wrong with the listing itself is added to `problems`."""

    def report(kind: str, path: Path, text: str) -> None:
        problems.append(Problem(kind, domain, path, text))

    labelled = not domain.startswith("target")
    try:
        listing = listing_of(data, labelled=labelled)
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
    if not labelled:
        return [(image, None) for image in listing.images]
    return [(pair.image, pair.label) for pair in listing.pairs]


def _inspect_all(
    files: Sequence[tuple[Path, Path | None]], expected: Expected, some: int | None, console: Console | None
) -> list[Inspection]:
    sample = max(1, -(-len(files) // DECODED))
    step = 1 if some is None else max(1, -(-len(files) // some))

    def inspect(number: int) -> Inspection:
        measured = expected.role == "source" and number % sample == 0
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
    sources: Sequence[InspectedData], statistics: Sequence[ClassStatistics], settings: Settings, space: LabelSpace
) -> tuple[dict[str, float], list[Problem]]:
    """Return how often rare-class sampling draws for each class, and what it makes of the data.

    That is images that it will not draw, and classes of few pixels.
    """
    train, config = settings.train, settings.loader.rare_class
    draws = train.steps * train.accumulate * train.devices * train.nodes * settings.loader.batch
    samplers, counts = rare_class_samplers(statistics, settings), [len(data.files) for data in sources]
    probability, problems = torch.zeros(space.num_classes, dtype=torch.float64), list[Problem]()
    for data, sampler, share in zip(sources, samplers, shares(datasets(settings.source), counts).tolist(), strict=True):
        probability[sampler.classes] += share * sampler.probabilities.double()
        if never := int((share * sampler.chances < NEVER / max(draws, sum(counts))).sum()):
            how = f"rare-class sampling, temperature {config and config.temperature:g}"
            domain = data.expected.domain
            text = f"{never} of {sampler.count} {domain} images will never be drawn ({how})."
            problems.append(Problem("images never drawn", domain, data.config.root, text))
    most = torch.stack([one.pixels.amax(dim=0) for one in statistics]).amax(dim=0).tolist()
    minimum, classes = samplers[0].min_pixels, dict.fromkeys(c for one in samplers for c in one.classes.tolist())
    if few := [f"{space.names[c]} {most[c]}" for c in classes if most[c] <= minimum]:
        text = f"no image shows more than {minimum} pixels of some classes; the most are {', '.join(few)}."
        problems.append(Problem("class below min_pixels", "source", sources[0].config.root, text))
    return {space.names[c]: float(probability[c]) for c in classes}, problems


def _check_classes(sets: Sequence[InspectedData], domain: str, space: LabelSpace, settings: Settings) -> list[Problem]:
    """Report classes that no label shows, where labels were decoded; of several sources, that none of them shows."""
    source, found = domain == "source", list[Problem]()
    every = [data.pixels for data in sets]
    for data, pixels in zip(sets, every, strict=True):
        if len(pixels) and not pixels.any():
            text = f"No label of {data.config.root} shows any class."
            found.append(Problem("no class in any label", data.expected.domain, data.config.root, text))
    if found or not any(map(len, every)):
        return found
    pixels, root = torch.cat(every), sets[0].config.root
    if source and len(pixels) < sum(len(data.files) for data in sets) and (pixels.sum(0) > 0).sum() < 2:
        # before a run is refused for what some of its labels show
        pixels = torch.cat([_count_all(data).pixels for data in sets])
    absent = [name for name, count in zip(space.names, pixels.sum(0).tolist(), strict=True) if not count]
    if not absent:
        return []
    where = ", ".join(str(data.config.root) for data in sets)
    if source and len(absent) == len(space.names) - 1:
        name = next(name for name in space.names if name not in absent)
        return [Problem("one class in all labels", domain, root, f"The labels of {where} show {name} alone.")]
    distance = settings.method.feature_distance
    things = [name for name in space.names if distance and name in (distance.classes or ())]
    if source and things and set(things) <= set(absent):
        listed = ", ".join(things)
        found.append(Problem("no thing in any label", domain, root, f"{listed}: in none of the labels looked at."))
    text = f"no pixel of {', '.join(absent)} in the {len(pixels)} labels looked at in {where}."
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
