"""Examine all data of a run: facts, and everything that is wrong with them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from ssrseg.config import DataConfig, Settings, datasets
from ssrseg.config.data import ExactSize
from ssrseg.data.checks.classes import absent_from, check_classes, check_depth, count_all
from ssrseg.data.checks.inspect import Expected, Inspection, inspect_files
from ssrseg.data.checks.overlap import InspectedData, shared_files
from ssrseg.data.checks.problems import EFFECTS, Problem, notes, refuse, word_of
from ssrseg.data.checks.thickness import CELL
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.data.frames import VIDEO_SUFFIXES
from ssrseg.data.images import Reading, set_max_pixels
from ssrseg.data.label_mapping import Classes, code_for, resolve_space
from ssrseg.data.label_spaces import LabelSpace
from ssrseg.data.layouts import find_images, find_masks, glob_of, is_named, labels_there, listing_of, no_image, spec_of
from ssrseg.data.masks import read_masks
from ssrseg.data.names import IMAGE_SUFFIXES
from ssrseg.data.streams import find_labelled, rare_class_samplers, shares
from ssrseg.data.transforms import rescale_size
from ssrseg.data.unmatched import fitting, name_files, unread_files
from ssrseg.errors import UserError

TOOLS = {".json": ("LabelMe", "labelme"), ".txt": ("YOLO", "yolo-seg")}
"""Whose labels have such endings, and the layout in which they are read (docs/data.md)."""
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
    seen = survey(settings, some=DECODED)
    refuse(seen.problems)
    labelled = {name: len(data.files) for name, data in seen.sets.items() if data.role == "labelled"}
    each = settings.train.batches * settings.loader.of_labelled / max(1, sum(labelled.values()))
    often = f"target images have labels, each of which is drawn about {each:.3g} times in the run"
    return [*notes(seen.problems), *(f"{name}: {count} {often}" for name, count in labelled.items())]


def refuse_bad_labels(sets: Mapping[str, DataConfig], classes: Classes | None, reading: Reading) -> list[str]:
    """Examine labelled images before a model is scored on them: headers of the images, some pixels, and every label.

    A label may be larger or smaller than its image, if its shape is the same. Returns notes as `refuse_bad_data`;
    raises one `UserError` of all that makes scores meaningless, files that are missing or broken among it.
    """
    problems, every = list[Problem](), tuple(sets.values())
    space = resolve_space(classes, every)
    for domain, data in sets.items():
        code, strict = code_for(data, classes, every), is_strict(data, classes)
        expected = Expected(domain, (1, 1), data.resize, code, space.num_classes, reading, strict)
        seen = InspectedData(data, expected, _inspect_all(_list(domain, data, problems), expected, 0, None))
        problems += (found for one in seen.files for found in one.problems)
        problems += [*check_classes([seen], domain, space, classes), *check_depth(seen)]
        problems += shared_files({domain: seen}, contents=False)
    problems = [replace(one, text=one.text.replace("'val.", "'")) for one in without_effects(problems)]  # as its words
    refuse(problems, "scored")
    return notes(problems)


def without_effects(problems: Sequence[Problem]) -> list[Problem]:
    """Leave out problems that only follow from others."""
    known = {(one.domain, one.kind) for one in problems}
    effects = {(domain, effect) for domain, kind in known for effect in EFFECTS.get(kind, ())}
    return [one for one in problems if (one.domain, one.kind) not in effects]


def is_strict(data: DataConfig, classes: Classes | None) -> bool:
    """Whether a raw value of no class is a fault: nothing maps the values."""
    own_ids = classes is not None and not isinstance(classes, str) and any(entry.ids is not None for entry in classes)
    return data.id_map is None and not own_ids and spec_of(data).space is None


def survey(settings: Settings, *, some: int | None = None, console: Console | None = None) -> Survey:
    """Examine all data of a run and collect every problem; shows progress on a console that is a terminal.

    With `some`, at most that many files of each data set are decoded, evenly spread, and those that seem cut off; of
    the others only headers are read.

    Raises:
        UserError: the settings do not say which classes there are, or name an unknown layout.
    """
    if settings.loader.max_pixels is not None:
        set_max_pixels(settings.loader.max_pixels)
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
        problems += _check_masks(domain, data, some)
        problems += check_depth(sets[domain])
        if expected.role in ("val", "labelled") and expected.code is not None:
            held = check_classes([sets[domain]], domain, space, settings.classes)
            few = expected.role == "labelled"  # which need not show every class
            problems += [found for found in held if not (few and found.kind == "class without a pixel to score")]
    sources = [data for data in sets.values() if data.role == "source"]
    if coded := [data for data in sources if data.expected.code is not None]:
        problems += check_classes(coded, "source", space, settings.classes)
        problems += _check_things(coded, space, settings)
    problems += shared_files(sets, contents=some is None)
    problems += [found for data in sources for found in _check_thickness(data, space)]
    drawn: dict[str, float] = {}
    if not any(one.fatal for one in problems) and (some is None or settings.loader.rare_class is not None):
        statistics = [count_all(data) for data in sources]
        if settings.loader.rare_class is not None:
            drawn, found = _check_sampling(sources, statistics, settings, space)
            problems += found
    return Survey(space, sets, without_effects(problems), drawn)


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
    crop, reading = settings.loader.crop, settings.model.reading
    return Expected(domain, crop, data.resize, code, space.num_classes, reading, is_strict(data, classes))


def _check_masks(domain: str, data: DataConfig, some: int | None) -> Iterator[Problem]:
    """Read the maps of regions of a target, `some` of them or all."""
    if data.masks is None or domain.startswith("labelled"):  # whose target's they are
        return
    try:
        masks, images = find_masks(data), find_images(data)
        step = 1 if some is None else max(1, len(masks) // max(1, some))
        for path, image in list(zip(masks, images, strict=True))[::step]:
            read_masks(path, image)
    except UserError as error:
        yield Problem("regions cannot be used", domain, data.root, str(error))


def _list(domain: str, data: DataConfig, problems: list[Problem]) -> list[tuple[Path, Path | None]]:
    """Return images and their labels; what is wrong with the listing itself is added to `problems`."""

    def report(kind: str, path: Path, text: str) -> None:
        problems.append(Problem(kind, domain, path, text))

    labelled = not domain.startswith("target")
    try:
        if domain.startswith("labelled"):
            return [(pair.image, pair.label) for pair in find_labelled(data)]
        listing = listing_of(data, labelled=labelled)
    except UserError as error:
        report("cannot be listed", data.root, str(error))
        return []
    for one, other in listing.twice:
        report("one name twice", other, f"{one} and {other} differ in their ending only.")
    for stem in listing.missing_stems:
        text = f"{data.stems} lists {stem!r}, but {data.root} has no such image.{listing.hint(Path(stem))}"
        report("stem without image", data.root, text)
    if listing.without_label and not is_named(data):
        beside = fitting(data.labels_root or data.root, glob_of(data, "labels"), listing.without_label, IMAGE_SUFFIXES)
    else:
        beside = {}
    known = listing.pairs or beside or listing.other_case
    seen = labels_there(domain, data, listing) if listing.without_label and not known else ""
    for path in listing.without_label:
        found, hint = beside.get(path), listing.hint(path)
        if found:
            tool, spec = TOOLS.get(found.suffix, ("", ""))
            way = f"if it is of {tool}, say {word_of(domain, 'spec', spec)}" if tool else "save it as PNG"
            hint = f" {found} would fit, but {found.suffix} is not read so: {way}."
        report("image without label", path, f"{path} has no label.{hint}{seen}")
        seen = ""  # said once
    if unread := unread_files(data.root, glob_of(data, "images"), {*IMAGE_SUFFIXES, *VIDEO_SUFFIXES}):
        report("files that are not read", unread[0], f"{name_files(unread)} in {data.root}.")
    for path in sorted({*listing.without_image} - {*listing.other_case.values()}):
        report("label without image", path, f"{path} has no image.")
    if not listing.images:
        report("cannot be listed", data.root, no_image(data, domain))
    if not labelled:
        return [(image, None) for image in listing.images]
    return [(pair.image, pair.label) for pair in listing.pairs]


def _inspect_all(
    files: Sequence[tuple[Path, Path | None]], expected: Expected, some: int | None, console: Console | None
) -> list[Inspection]:
    sample = max(1, -(-len(files) // DECODED))
    step = 1 if some is None else max(1, -(-len(files) // (some or DECODED)))

    def inspect(number: int) -> Inspection:
        measured = expected.role == "source" and number % sample == 0
        whole = number % step == 0
        return inspect_files(*files[number], expected, whole=whole, labelled=whole or not some, measured=measured)

    quiet = console is None or not console.is_terminal
    with ThreadPoolExecutor((os.cpu_count() or 1) + 2) as pool:
        seen = pool.map(inspect, range(len(files)))
        text = f"looking at {expected.domain}"
        return list(track(seen, text, len(files), transient=True, console=console, disable=quiet))


def _check_sampling(
    sources: Sequence[InspectedData], statistics: Sequence[ClassStatistics], settings: Settings, space: LabelSpace
) -> tuple[dict[str, float], list[Problem]]:
    """Return how often rare-class sampling draws for each class, and what it makes of the data.

    That is images that it will not draw, and classes of few pixels.
    """
    config, draws = settings.loader.rare_class, settings.train.batches * settings.loader.batch
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


def _check_things(sources: Sequence[InspectedData], space: LabelSpace, settings: Settings) -> Iterator[Problem]:
    """Report that the feature distance has nothing to do."""
    distance, absent = settings.method.feature_distance, absent_from(sources, space)
    things = [name for name in space.names if distance and name in (distance.classes or ())]
    if things and set(things) <= set(absent) and len(absent) < len(space.names) - 1:
        text = f"{', '.join(things)}: in none of the labels looked at."
        yield Problem("no thing in any label", "source", sources[0].config.root, text)


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
        yield Problem("thin class", data.expected.domain, data.config.root, f"{where} {what}")
