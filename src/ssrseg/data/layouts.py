"""Layouts of published data sets, and how an image finds its label."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import yaml

from ssrseg.config import Data, DataConfig, datasets
from ssrseg.config.base import as_path
from ssrseg.config.data import Bound, Channel
from ssrseg.data.annotation_sets import members_of
from ssrseg.data.frames import VIDEO_SUFFIXES, list_frames
from ssrseg.data.names import IMAGE_SUFFIXES, Key, last_part, listed_images, normal, read_stems, without_suffix
from ssrseg.data.storage import list_files, list_members, stamp
from ssrseg.data.unmatched import common_affix, what_is_there
from ssrseg.errors import UserError

Item = TypeVar("Item")
CLASS = "{class}"
"""In a glob of labels: the class that a mask is of."""


@dataclass(frozen=True)
class Spec:
    """A data set as it is unpacked."""

    images: str
    """Glob below the root; `{split}` is filled in. A final `.*` stands for any ending."""
    labels: str
    """Glob of the labels: an image's label is the file for which the wildcards match the same text. `{class}` stands
    for the class that a mask is of."""
    ids: Mapping[int, int] | None = None
    """Raw label value -> class id; identity when absent."""
    space: str | None = None
    """Name of its label space; the user's own when absent."""
    split: str = "train"
    """When none is asked for."""
    colored: bool = True
    """Whether label files of three channels hold the colours of classes; three times the value otherwise."""
    channel: Channel | None = None
    """Of coloured label files, the one that holds the values."""
    many: bool = False
    """Whether a label file holds the labels of many images."""
    frames: bool = False
    """Whether the images are frames of videos."""
    names: tuple[str, ...] = ()
    """Files, any of which says the names of classes: with their colours (CVAT), or in the order of numbers (YOLO)."""


_TABLES = yaml.safe_load((resources.files("ssrseg.data") / "layouts.yaml").read_text(encoding="utf-8"))
SPECS: dict[str, Spec] = {name: Spec(**entry) for name, entry in _TABLES["layouts"].items()}
"""Layouts by the name that `source.spec` takes; their table is `layouts.yaml`."""


@dataclass(frozen=True)
class Pair:
    """An image and its label."""

    image: Path
    label: Path


@dataclass(frozen=True)
class Listing:
    """All files that the globs of a data set match, faults included."""

    images: list[Path]
    """Sorted; those that `stems` names, or all."""
    pairs: list[Pair]
    """Sorted by image."""
    without_label: list[Path]
    without_image: list[Path]
    """Labels; images that `stems` leaves out count as images."""
    twice: list[tuple[Path, Path]]
    """Files that the wildcards cannot tell apart; the first is used."""
    missing_stems: list[str]
    other_case: dict[Path, Path]
    """Image without label -> the label that would be its own if capitals were small letters; stem without image -> the
    image that would."""

    def hint(self, lonely: Path) -> str:
        """Say what an image or a stem may belong to; starts with a space, empty where that is not known."""
        other = self.other_case.get(lonely)
        return f" {other} differs in capital letters alone: write both names alike." if other else ""


def spec_of(data: DataConfig) -> Spec:
    """Return the layout that the settings name; raises `UserError` when there is no such layout."""
    if data.spec not in SPECS:
        raise UserError(f"There is no data layout {data.spec!r}: use {', '.join(SPECS)}.")
    return SPECS[data.spec]


def listing_of(data: DataConfig, *, labelled: bool = True) -> Listing:
    """List the files of a data set, faults included; raises `UserError` without such a folder or list of stems."""
    twice: list[tuple[Path, Path]] = []
    images = _match(data.root, glob_of(data, "images"), twice, endings=VIDEO_SUFFIXES if spec_of(data).frames else None)
    if spec_of(data).frames:
        clips = {key: list_frames(clip, data.frame_interval) for key, clip in images.items()}
        images = {(*key, frame.stem): frame for key, frames in clips.items() for frame in frames}
    labels = _match(data.labels_root or data.root, glob_of(data, "labels"), twice, images) if labelled else {}
    if spec_of(data).many:
        labels = members_of(list(labels.values()), images, twice)
    if not images.keys() & labels.keys():  # where names agree, wildcards may differ: `images/*` and `labels/**/*`
        images, labels = _bylast_part(images, labels)
    stems = None if data.stems is None else read_stems(data.stems, data.root)
    used = images if stems is None else listed_images(images, stems)
    pairs = [Pair(used[key], labels[key]) for key in used.keys() & labels.keys()]
    missing = {last_part(stem) for stem in stems or ()} - {normal(path.stem) for path in images.values()}
    folded = {_folded(key): path for key, path in labels.items() if key not in images}
    alike = {used[key]: folded[_folded(key)] for key in used.keys() - labels.keys() if _folded(key) in folded}
    by_stem = {normal(path.stem).casefold(): path for path in images.values()}
    return Listing(
        images=sorted(used.values()),
        pairs=sorted(pairs, key=lambda pair: pair.image),
        without_label=sorted(path for key, path in used.items() if labelled and key not in labels),
        without_image=sorted(path for key, path in labels.items() if key not in images),
        twice=twice,
        missing_stems=sorted(missing),
        other_case=alike | {Path(stem): by_stem[stem.casefold()] for stem in missing if stem.casefold() in by_stem},
    )


def _folded(key: Key) -> Key:
    return tuple(text.casefold() for text in key)


def _bylast_part(images: dict[Key, Path], labels: dict[Key, Path]) -> tuple[dict[Key, Path], dict[Key, Path]]:
    """Key files by the text of the last wildcard alone, if images and labels then agree and none is there twice."""
    short = [{key[-1:]: path for key, path in found.items()} for found in (images, labels)]
    agree = short[0].keys() & short[1].keys() and [*map(len, short)] == [len(images), len(labels)]
    return (short[0], short[1]) if agree else (images, labels)


def no_image(data: DataConfig, domain: str = "") -> str:
    """Return the message for a data set without images, which says what is there; `domain` is what words call it."""
    seen = what_is_there(data.root, IMAGE_SUFFIXES, domain=domain)
    return f"No image matches {glob_of(data, 'images')!r} in {data.root}. Set `images` to a glob below the root. {seen}"


def labels_there(domain: str, data: DataConfig, listing: Listing) -> str:
    """Say which files may be labels where no image has one, and the glob that would find them."""
    root, glob = data.labels_root or data.root, glob_of(data, "labels")
    if not listing.without_image:
        return f" No file matches {glob!r} in {root}. {what_is_there(root, IMAGE_SUFFIXES, 'labels', domain)}"
    affix = common_affix(listing.without_label, listing.without_image)
    if affix is None or " " in domain or "*" not in glob:
        return ""
    folders = "" if "/" not in glob else glob.rpartition("/")[0] + "/"
    return f" Names of labels differ from those of images: '{domain}.labels={folders}{affix[0]}*{affix[1]}.*'."


def find_images(data: DataConfig, at_most: int | None = None) -> list[Path]:
    """Find all images of a data set, sorted, or `at_most` so many, evenly spread over all; labels need not exist.

    Raises `UserError` without such a folder or any image, or for two files that the wildcards cannot tell apart.
    """
    listing = listing_of(data, labelled=False)
    _refuse(listing, data)
    return spread(listing.images, at_most)


def find_bounded(data: Data, at_most: int | None = None) -> list[tuple[Path, Bound | None]]:
    """Find the images of one data set or several, each with its `resize`; else as `find_images`."""
    return spread([(image, one.resize) for one in datasets(data) for image in find_images(one)], at_most)


def spread(items: list[Item], at_most: int | None) -> list[Item]:
    """Take `at_most` so many, evenly spread over all."""
    count = len(items)
    wanted = count if at_most is None else min(at_most, count)
    return [items[number * count // wanted] for number in range(wanted)]


def find_masks(data: DataConfig) -> list[Path]:
    """Find the map of regions of every image, in their order: as labels are found, and raises as `find_pairs`."""
    try:
        return [pair.label for pair in find_pairs(data.model_copy(update={"labels": data.masks, "labels_root": None}))]
    except UserError as error:
        raise UserError(f"target.masks are matched as labels are: {error}") from error


def find_pairs(data: DataConfig) -> list[Pair]:
    """Find all images with their labels, sorted by image; raises as `find_images`, and for an image without label."""
    listing = listing_of(data)
    _refuse(listing, data)
    if lonely := listing.without_label:
        shown = "\n".join(f"  {path}{(hint := listing.hint(path)) and ':'}{hint}" for path in lonely[:3])
        unused = len(listing.without_image)
        raise UserError(
            f"{len(lonely)} of {len(listing.images)} images matching {glob_of(data, 'images')!r} in {data.root} "
            f"have no label matching {glob_of(data, 'labels')!r} "
            f"({len(listing.pairs) + unused} labels found, {unused} of them without image):\n{shown}\n"
            "A label is the file for which the wildcards of `labels` match the same text as those of `images`."
        )
    return listing.pairs


def is_named(data: DataConfig) -> bool:
    """Return whether the labels are shapes or masks with names, not pixels with values or colours."""
    glob = glob_of(data, "labels")
    return CLASS in glob or (glob.endswith((".json", ".txt")) and spec_of(data).space is None)


def find_names(data: DataConfig) -> Path | None:
    """Find the file that says the names of classes, beside the labels or one folder above; nothing without."""
    root, names = data.labels_root or data.root, spec_of(data).names
    for path in [folder / name for folder in (root, root.parent) for name in names]:
        with contextlib.suppress(UserError):
            stamp(path)
            return path
    members = dict(list_members(root)) if names else {}
    return next((members[name] for name in names if name in members), None)


def _refuse(listing: Listing, data: DataConfig) -> None:
    if listing.twice:
        one, other = listing.twice[0]
        raise UserError(f"{one} and {other} are the same to the wildcards: only the ending differs. Remove one.")
    if missing := listing.missing_stems:
        raise UserError(
            f"{len(missing)} stems of {data.stems} have no image matching {glob_of(data, 'images')!r} in {data.root}, "
            f"for example {missing[0]!r}.{listing.hint(Path(missing[0]))}"
        )
    if not listing.images:
        raise UserError(no_image(data))


def glob_of(data: DataConfig, kind: str) -> str:
    """Return the glob of `images` or of `labels`, its split filled in."""
    spec = spec_of(data)
    glob: str = getattr(data, kind) or getattr(spec, kind)
    return glob.replace("{split}", data.split or spec.split)


def _match(
    root: Path,
    glob: str,
    twice: list[tuple[Path, Path]],
    images: Mapping[Key, Path] | None = None,
    endings: Collection[str] | None = None,
) -> dict[Key, Path]:
    """Find image files below `root`, keyed by the text that each wildcard matches; second ones are added to `twice`.

    `*` matches within a folder, `**/` any folders, `{class}` the name of a class: files that differ in it are one
    label, of one of the `images`. Unpacked files win: archives are searched for a glob that no unpacked file matches.
    """
    pattern, lazy = _pattern(normal(glob)), _pattern(normal(glob), within="([^/]*?)")
    own = pattern.groupindex.get("class_")
    any_ending, ending = glob.endswith(".*"), Path(glob).suffix
    endings = endings or ({ending} if ending in (".json", ".txt") else IMAGE_SUFFIXES)
    # Nothing but the folders before the first wildcard needs to be walked.
    below = "/".join(itertools.takewhile(lambda folder: "*" not in folder and folder != CLASS, glob.split("/")[:-1]))
    found: dict[Key, Path] = {}
    masks: dict[Key, dict[str, list[str]]] = {}

    def key_of(match: re.Match[str]) -> Key:
        *folders, last = [text for number, text in enumerate(match.groups(), 1) if number != own] or [""]
        return (*folders, last if any_ending else without_suffix(last))

    for listed in (list_files, list_members):
        for name, path in listed(root, below):
            if path.suffix.lower() not in endings or path.name.startswith("."):  # macOS leaves `._name.png`
                continue
            shown = without_suffix(name) if any_ending else name
            shown = shown if own else normal(shown)
            matches = [match for match in (pattern.fullmatch(shown), own and lazy.fullmatch(shown)) if match]
            if not matches:
                continue
            match = next((one for one in matches if key_of(one) in (images or {})), matches[0])
            if own:
                text, (start, end) = str(path), (len(str(path)) - len(name) + place for place in match.span("class_"))
                masks.setdefault(key_of(match), {}).setdefault(f"{text[:start]}{CLASS}{text[end:]}", []).append(
                    match["class_"]
                )
            elif found.setdefault(key_of(match), path) is not path:
                twice.append((found[key_of(match)], path))
        if found or masks:
            break
    for key, places in masks.items():
        labels = [as_path(place.replace(CLASS, f"{{class={'|'.join(names)}}}")) for place, names in places.items()]
        found[key] = labels[0]
        twice += [(labels[0], other) for other in labels[1:]]
    return found


def _pattern(glob: str, within: str = "([^/]*)") -> re.Pattern[str]:
    wildcards = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": within, CLASS: "(?P<class_>[^/]+)"}
    parts = re.split(r"(\*\*/|\*\*|\*|\{class\})", glob.removesuffix(".*"))
    return re.compile("".join(wildcards.get(part) or re.escape(part) for part in parts))
