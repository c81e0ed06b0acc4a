"""Kinds of faults in data, with their remedies, and messages about those that were found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ssrseg.errors import UserError

SHOWN = 10
"""Problems that an error lists in full."""


@dataclass(frozen=True)
class Kind:
    """Severity and remedy of one kind of problem."""

    fatal: bool
    """Whether training could not work."""
    remedy: str


KINDS: dict[str, Kind] = {
    # of a whole data set
    "cannot be listed": Kind(True, "Check `root`, `spec`, `split`, `images`, `labels` and `stems` of this data set."),
    "cannot be mapped": Kind(True, "Check `classes`, their `ids`, and the `id_map` of this data set."),
    "no class in any label": Kind(True, "Check `classes` and the raw values (`ids`, `id_map`)."),
    "class that never occurs": Kind(False, "It is left out of rare-class sampling; the model cannot learn it."),
    "target is the source": Kind(True, "Point `target` at the unlabelled domain."),
    "target is the source's labels": Kind(True, "Point `target` at images: check `target.root` and `target.images`."),
    # of a file without its other half
    "one name twice": Kind(True, "Remove one of the two."),
    "stem without image": Kind(True, "Remove it from the list, or add the image."),
    "image without label": Kind(
        True,
        "Add the label, or remove the image. A label is the file for which the wildcards of `labels` match the same "
        "text as those of `images`.",
    ),
    "label without image": Kind(False, "It is not used: add the image, or remove the label."),
    "image is its own label": Kind(True, "Give `images` and `labels` two different globs."),
    # of a pair or an image
    "image cannot be read": Kind(True, "Replace the file, or remove it (with its label)."),
    "label cannot be read": Kind(True, "Replace the file, or remove it with its image."),
    "sizes differ": Kind(True, "Make image and label one size, or remove both."),
    "value of no class": Kind(
        True, "Give every class its raw values (`ids` in `classes`) or the data set an `id_map`; 255 is ignored."
    ),
    "label is a JPEG": Kind(True, "Its compression has changed values: write labels as PNG from their original."),
    "label of one class": Kind(False, "Its crops cannot be varied: they are drawn ten times in vain."),
    "label without any class": Kind(False, "All of it is ignored: nothing is learnt from the image; remove it."),
    "turned by its camera": Kind(False, "The label must show the image as it is displayed, not as it is stored."),
    "several pages": Kind(False, "The first is used: save the others as files of their own."),
    "smaller than the crop": Kind(False, "It will be padded: a smaller `loader.crop` wastes less."),
    "extreme shape": Kind(False, "Most of its crops will be padding: cut it into pieces or remove it."),
    "looks like a label map": Kind(False, "Point `target` at photographs, not at labels."),
    # of images in two data sets
    "also in the source": Kind(False, "Check `root`, `split` and `stems`: the data sets of a run should be apart."),
    "also in the target": Kind(False, "Its score says little about new images: check `val.split` and `val.stems`."),
    "same content as in the source": Kind(False, "The files are equal byte for byte: remove one of them."),
    "same content as in the target": Kind(False, "The files are equal byte for byte: remove one of them."),
}
"""Every kind of fault that is detected."""


@dataclass(frozen=True)
class Problem:
    """One fault of one file or data set."""

    kind: str
    """A key of `KINDS`."""
    domain: str
    """`source`, `target` or `val`."""
    path: Path
    text: str
    """The finding and, where it is not plain, the expectation; names the path."""

    @property
    def remedy(self) -> str:
        """Instruction for the user."""
        return KINDS[self.kind].remedy

    @property
    def fatal(self) -> bool:
        """Whether training could not work."""
        return KINDS[self.kind].fatal


def grouped(problems: Iterable[Problem]) -> list[tuple[str, list[Problem]]]:
    """Group problems by domain and kind, fatal ones first, each group with its headline."""
    groups: dict[tuple[bool, str, str], list[Problem]] = {}
    for one in problems:
        groups.setdefault((one.fatal, one.domain, one.kind), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: not item[0][0])
    return [
        (f"{domain}: {kind}" + (f" ({len(found)} files)" if len(found) > 1 else ""), found)
        for (_, domain, kind), found in ordered
    ]


def refuse(problems: Iterable[Problem]) -> None:
    """Raise one `UserError` that names the fatal problems, the first `SHOWN` in full."""
    fatal = [one for one in problems if one.fatal]
    if not fatal:
        return
    lines, left = [], SHOWN
    for headline, found in grouped(fatal):
        if left <= 0:
            break
        lines += [headline, *(f"  {one.text}" for one in found[:left]), f"  -> {found[0].remedy}"]
        left -= len(found)
    if left < 0 or len(fatal) > SHOWN:
        lines.append(f"... and {len(fatal) - SHOWN} more: `ssrseg check-data` with the same settings shows all.")
    count = "one problem" if len(fatal) == 1 else f"{len(fatal)} problems"
    raise UserError("\n".join([f"These data cannot be trained on, {count}:", *lines]))


def notes(problems: Iterable[Problem]) -> list[str]:
    """Describe what does not prevent training: one line per domain and kind, counted, with an example."""
    groups = grouped(one for one in problems if not one.fatal)
    return [f"{head}{', for example' if f[1:] else ':'} {f[0].text} {f[0].remedy}" for head, f in groups]
