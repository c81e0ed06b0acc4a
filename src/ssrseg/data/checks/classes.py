"""What the labels of a data set hold beside what its classes say: pixels of no class, classes of no pixel."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ssrseg.config import ClassConfig
from ssrseg.data.checks.inspect import Inspection
from ssrseg.data.checks.overlap import InspectedData
from ssrseg.data.checks.problems import Problem, id_map_word, word_of
from ssrseg.data.class_statistics import ClassStatistics, class_statistics, save_statistics
from ssrseg.data.label_files import UNNAMED
from ssrseg.data.label_mapping import Classes
from ssrseg.data.label_spaces import IGNORE, SPACES, LabelSpace
from ssrseg.data.layouts import Pair, spec_of

COLOURED = ("colours", "palette by colour")
"""Encodings of labels in which colours count, not values."""
DEPTH = 0.13
"""Share of the values of 16 bits below which images are too dark: those of 12 bits use 6%, of 13 bits 12.5%."""
LISTED = 5
"""Ignored values that a message lists."""
SHARE = {"other": 0.05, "void": 0.2, "published": 0.5}
"""Of all pixels, above which ignored ones are a warning: those of a value that nothing says is to be ignored; those of
255, negative, transparent or black; those of a published data set (Cityscapes ignores about 12% of its own)."""


@dataclass(frozen=True)
class Ignored:
    """Pixels that belong to no class, of all that were looked at."""

    total: int
    """All pixels, of classes or not."""
    values: dict[str, int]
    """Value or colour -> its pixels, most first."""

    @property
    def share(self) -> float:
        """Of all pixels, 0..1."""
        return sum(self.values.values()) / max(1, self.total)

    def share_of(self, value: str) -> float:
        """Of all pixels, 0..1, those of one value."""
        return self.values.get(value, 0) / max(1, self.total)

    def __str__(self) -> str:
        listed = [f"{value}: {self.share_of(value):.1%}" for value in self.values]
        rest = [f"and {len(listed) - LISTED} more"] if len(listed) > LISTED else []
        return ", ".join(listed[:LISTED] + rest)


def ignored_in(files: Sequence[Inspection]) -> Ignored:
    """Sum up what is ignored in the labels that were decoded."""
    labels = [one.labels for one in files if one.labels is not None]
    values = Counter[str]()
    for one in labels:
        values.update(one.ignored)
    return Ignored(sum(one.ids.numel() for one in labels), dict(values.most_common()))


def _is_void(value: str) -> bool:
    return value in (f"value {IGNORE}", "transparent", "colour (0, 0, 0)", UNNAMED) or value.startswith(
        ("value -", "value nan", "value inf")
    )


def count_all(data: InspectedData) -> ClassStatistics:
    """Return the pixels of all labels, kept where rare-class sampling looks for them; counts those not looked at."""
    pairs = [Pair(one.image, one.label) for one in data.files if one.label is not None]
    code, classes = data.expected.code, data.expected.num_classes
    assert code is not None  # else no label was decoded, and its problem is fatal
    if len(data.pixels) < len(pairs):
        return class_statistics(pairs, code, classes)
    save_statistics(statistics := ClassStatistics(data.pixels), pairs, code, classes)
    return statistics


def absent_from(sets: Sequence[InspectedData], space: LabelSpace, *, thorough: bool = False) -> list[str]:
    """Name the classes that no label shows, of those that were decoded, or of all if `thorough`."""
    pixels = torch.cat([count_all(data).pixels if thorough else data.pixels for data in sets])
    return [name for name, count in zip(space.names, pixels.sum(0).tolist(), strict=True) if not count]


def check_classes(
    sets: Sequence[InspectedData], domain: str, space: LabelSpace, classes: Classes | None
) -> list[Problem]:
    """Report classes that no label shows, where labels were decoded, and pixels that no class takes.

    Of several sources, that none of them shows.
    """
    if found := [one for data in sets for one in _check_train_ids(data)]:
        return found
    for data in sets:
        if len(data.pixels) and not data.pixels.any():
            text = f"No label of {data.config.root} shows any class.{_also(data)}"
            found.append(Problem("no class in any label", data.expected.domain, data.config.root, text))
    if found or not any(len(data.pixels) for data in sets):
        return found

    def check_values(absent: Sequence[str], *, thorough: bool) -> Iterator[Problem]:
        for data in sets:
            own = absent_from([data], space, thorough=thorough)
            # The one source that shows one class is an error of its own.
            alone = len(own) == len(space.names) - 1 and data.expected.domain != "source"
            yield from _check_values(data, classes, own if alone else absent, alone=alone)

    found = [*check_values(absent := absent_from(sets, space), thorough=False)]
    refused = len(absent) >= len(space.names) - 1 or any(one.fatal for one in found)
    if refused and not any(one.fatal for data in sets for file in data.files for one in file.problems):
        absent = absent_from(sets, space, thorough=True)  # not for what some labels show
        found = [*check_values(absent, thorough=True)]
    if any(one.fatal for one in found) or not absent:
        return found
    root, where = sets[0].config.root, ", ".join(str(data.config.root) for data in sets)
    also = "".join(map(_also, sets[:1]))
    if domain == "source" and len(absent) == len(space.names) - 1:
        name = next(name for name in space.names if name not in absent)
        return [Problem("one class in all labels", domain, root, f"The labels of {where} show {name} alone.{also}")]
    looked = sum(len(data.pixels) for data in sets)
    text = f"no pixel of {', '.join(absent)} in the {looked} labels looked at in {where}.{also}"
    kind = "class that never occurs" if domain == "source" else "class without a pixel to score"
    return [Problem(kind, domain, root, text), *found]


def check_depth(data: InspectedData) -> Iterator[Problem]:
    """Report images of 16 bits that use a few per cent of them: they are all but black."""
    found = [one.deep for one in data.files if one.deep is not None]
    high, full = max(found, default=(1.0, 1.0))
    if high / full < DEPTH:
        digits = 10 ** max(0, len(str(int(high))) - 2)
        word = f"'model.value_range=[0, {-(-int(high) // digits) * digits}]'"
        text = f"{data.config.root} holds {len(found)} images of 16 bits, of which the values up to {high:.0f} are used"
        yield Problem(
            "dark 16 bits", data.expected.domain, data.config.root, f"{text} ({high / full:.1%}): train with {word}."
        )


def _also(data: InspectedData) -> str:
    ignored = ignored_in(data.files)
    text = f" Ignored, of all pixels: {ignored}." if ignored.values else ""
    if "transparent" in ignored.values:
        text += f" If transparency is the label: {word_of(data.expected.domain, 'channel', 'alpha')}."
    return text


def _check_values(
    inspected: InspectedData, classes: Classes | None, absent: Sequence[str], *, alone: bool
) -> Iterator[Problem]:
    """Report what the labels hold that no class takes, and labels that were not understood alike.

    Where they show one class `alone`, whatever else they hold is likely another.
    """
    files, data, domain, code = inspected.files, inspected.config, inspected.expected.domain, inspected.expected.code
    assert code is not None  # else no label was decoded

    def report(kind: str, text: str) -> Problem:
        return Problem(kind, domain, data.root, text)

    shown = [one for one in files if one.pixels is not None and one.pixels.any()]  # the others have a warning each
    ignored, spec = ignored_in(shown), spec_of(data)
    meant = {f"value {raw}" for raw, new in (data.id_map or {}).items() if new == IGNORE}
    other = sum(ignored.share_of(value) for value in ignored.values if not _is_void(value) and value not in meant)
    void = sum(ignored.share_of(value) for value in ignored.values if _is_void(value) and value not in meant)
    values = [value for value in ignored.values if value.startswith("value ") and value not in meant]
    plentiful = [value for value in values if alone or _plentiful(ignored, value)]
    if absent and plentiful and spec.space is None:
        hold = ", ".join(f"{ignored.share_of(value):.1%} hold {value.removeprefix('value ')}" for value in plentiful)
        ways = _ways(plentiful, absent, shown, inspected, classes)
        text = f"no pixel of {', '.join(absent)} in {data.root}, but {hold}, which is ignored: {'; '.join(ways)}."
        yield report("value that no class takes", text)
    elif other + void > SHARE["published"] or (spec.space is None and (other > SHARE["other"] or void > SHARE["void"])):
        yield report("pixels of no class", f"{ignored.share:.1%} of the pixels are ignored in {data.root}: {ignored}.")
    how = {one.labels.encoding: one for one in reversed(shown) if one.labels is not None}
    if len({encoding in COLOURED for encoding in how}) > 1:
        listed = ", ".join(f"{encoding} ({one.label and one.label.name})" for encoding, one in sorted(how.items()))
        yield report("labels of several kinds", f"the labels of {data.root} are read by {listed}.")


def _check_train_ids(inspected: InspectedData) -> Iterator[Problem]:
    """Report labels whose values are class ids already where the layout has raw values."""
    files, data, expected = inspected.files, inspected.config, inspected.expected
    ids, code, ignored = spec_of(data).ids, expected.code, ignored_in(files)
    values = {value for one in files if one.labels is not None for value in one.labels.values or ()} - {IGNORE}
    if ids is None or data.id_map is not None or code is None or not values:
        return
    count, other = (
        len(set(ids.values())),
        sum(ignored.share_of(value) for value in ignored.values if not _is_void(value)),
    )
    if max(values) < count and other > SHARE["void"]:
        id_map = {i: int(code.table[raw]) for raw, i in sorted(ids.items(), key=lambda item: item[1])}
        text = f"These look like train ids: all values are 0..{count - 1} or {IGNORE}. As raw values of {data.spec!r}"
        text += f" most mean other classes, and of all pixels are ignored: {ignored}. Say"
        word = id_map_word(expected.domain, id_map)
        yield Problem("train ids instead of raw values", expected.domain, data.root, f"{text} {word}.")


def _plentiful(ignored: Ignored, value: str) -> bool:
    return ignored.share_of(value) > SHARE["void" if _is_void(value) else "other"]


def _ways(
    plentiful: Sequence[str],
    absent: Sequence[str],
    files: Sequence[Inspection],
    inspected: InspectedData,
    classes: Classes | None,
) -> list[str]:
    """Say what to set where values that no class takes are plentiful and classes are absent."""
    code, domain, names = inspected.expected.code, inspected.expected.domain, _names(classes)
    assert code is not None  # else no label was decoded
    raw = sorted(int(value.removeprefix("value ")) for value in plentiful if value[6:].isdecimal())
    if not raw:
        return ["values below 0 and infinite ones are always ignored: write others in the files"]
    known = {value: i for value, i in enumerate(code.table.tolist()) if i != IGNORE}
    held = {value for one in files if one.labels is not None for value in one.labels.values or () if value >= 0}
    count = inspected.expected.num_classes
    if held - {IGNORE} == {*range(1, count + 1)} and known == {i: i for i in range(count)}:
        word = _meaning_word({name: i + 1 for i, name in enumerate(names)}, {}, inspected, classes)
        return [f"the values are 1..{count}, so if classes are counted from 1, {word}"]
    if len(raw) != len(absent):  # which is which, the user must say
        raw, absent = raw[:1], absent[:1]
    word = _meaning_word(dict(zip(absent, raw, strict=True)), known, inspected, classes)
    left_out = id_map_word(domain, known | dict.fromkeys(raw, IGNORE))
    return [f"if that is {' and '.join(absent)}, {word}", f"if it is to be ignored, {left_out}"]


def _names(classes: Classes | None) -> Sequence[str]:
    return SPACES[classes].names if isinstance(classes, str) else [one.name for one in classes or ()]


def _meaning_word(
    raw: Mapping[str, int], known: Mapping[int, int], inspected: InspectedData, classes: Classes | None
) -> str:
    """Write the word by which classes have raw values: `classes`, or beside what is `known` an `id_map`.

    That is for a data set that has one, and for others than the one source: their raw values need not be the source's.
    """
    domain, mapped = inspected.expected.domain, inspected.config.id_map is not None
    if classes is None or isinstance(classes, str) or domain != "source" or mapped:
        return id_map_word(domain, {**known, **{value: _names(classes).index(name) for name, value in raw.items()}})

    def entry(one: ClassConfig) -> Any:
        fields = one.model_dump(mode="json", exclude_none=True)
        fields |= {"ids": [raw[one.name]]} if one.name in raw else {}
        return one.name if list(fields) == ["name"] else fields

    text = json.dumps([entry(one) for one in classes], ensure_ascii=False)
    return f"'classes={text}'"


def facts_of_labels(files: Sequence[Inspection], space: LabelSpace) -> dict[str, Any]:
    """Return what the labels hold, as in `report.json`: shares of classes are of the pixels that belong to one."""
    pixels = [one.pixels for one in files if one.pixels is not None]
    total = max(1, sum(int(one.sum()) for one in pixels))
    ignored = ignored_in(files)
    return {
        "labels": len(pixels),
        "encodings": dict(Counter(one.labels.encoding for one in files if one.labels is not None).most_common()),
        "ignored": {
            "pixels": sum(ignored.values.values()),
            "share": ignored.share,
            "values": {value: ignored.share_of(value) for value in ignored.values},
        },
        "frequencies": {
            name: {
                "pixels": (own := sum(int(one[i]) for one in pixels)),
                "share": own / total,
                "images": sum(int(one[i]) > 0 for one in pixels),
            }
            for i, name in enumerate(space.names)
        },
    }
