"""Classes of models by their names, and the rows of the classifier that belong to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, cast

from torch import nn

from ssrseg.errors import UserError
from ssrseg.models.description import Description
from ssrseg.models.segmenter import Segmenter


def matching(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Find each of `names` in `among`: its place there, or None.

    Names are the same that differ in case, spaces, hyphens or underscores only, where that is not ambiguous.
    """
    here, there = [_folded(name) for name in names], [_folded(name) for name in among]

    def place(name: str) -> int | None:
        if name in among:
            return among.index(name) if among.count(name) == 1 else None
        folded = _folded(name)
        if here.count(folded) != 1 or there.count(folded) != 1:
            return None
        return there.index(folded)

    return [place(name) for name in names]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def classifier_weights(segmenter: Segmenter) -> list[str]:
    """Name the weights of a segmenter whose first axis is the classes."""
    layers: Sequence[nn.Module] = cast(Any, segmenter.head).classifiers
    names = [name for name, module in segmenter.named_modules() if any(module is layer for layer in layers)]
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def copy_weights(segmenter: Segmenter, start: Segmenter, rows: Sequence[int | None]) -> None:
    """Give a segmenter the weights of another one of its kind; class i gets row `rows[i]` there, or stays as it is."""
    own, theirs = segmenter.state_dict(), dict(start.state_dict())
    kept = [i for i, row in enumerate(rows) if row is not None]
    for name in classifier_weights(segmenter):
        mixed = own[name].clone()
        mixed[kept] = theirs[name][[row for row in rows if row is not None]].to(mixed)
        theirs[name] = mixed
    segmenter.load_state_dict(theirs)


class Classifier(Protocol):
    """A segmenter, or an exported one."""

    description: Description | None
    num_classes: int


def check_classes(segmenter: Classifier, classes: Sequence[str]) -> None:
    """Raise `UserError` unless a segmenter predicts these classes in this order; without a description, so many."""
    known = segmenter.description
    if known is None:
        if segmenter.num_classes != len(classes):
            raise UserError(f"The model predicts {segmenter.num_classes} classes; `classes` are {', '.join(classes)}.")
    elif matching(classes, known.classes) != list(range(len(known.classes))):
        raise UserError(
            f"{differing(known.classes, classes)}\n"
            "They must be the same, in the same order: list `classes` in the model's order, and where that is not the "
            "order of the label values, each with its own, as in {name: road, ids: [7]}."
        )


def differing(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Say what distinguishes the classes of a model from those of a run or of data."""
    parts = {"shared": [ours[i] for i, row in enumerate(matching(ours, theirs)) if row is not None]}
    parts["only in the model"] = [theirs[i] for i, row in enumerate(matching(theirs, ours)) if row is None]
    parts["only in `classes`"] = [ours[i] for i, row in enumerate(matching(ours, theirs)) if row is None]
    listed = "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in parts.items())
    return f"The model's classes are {', '.join(theirs)}; `classes` are {', '.join(ours)} ({listed})."
