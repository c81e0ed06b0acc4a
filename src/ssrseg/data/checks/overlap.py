"""A data set that was inspected, and what two of them should not have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ssrseg.config import DataConfig
from ssrseg.data.checks.inspect import Expected, Inspection
from ssrseg.data.checks.problems import Problem


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

    @property
    def role(self) -> str:
        """`source`, `target` or `val`."""
        return self.expected.role

    @cached_property
    def images(self) -> set[str]:
        """Where the images really lie, links followed."""
        return {os.path.realpath(one.image) for one in self.files}


def shared_files(sets: Mapping[str, InspectedData], *, contents: bool) -> list[Problem]:
    """Report files, and when all were decoded contents of files, that two data sets should not have in common."""
    found: list[Problem] = []
    for domain, data in sets.items():
        if same := [one.image for one in data.files if one.image == one.label]:
            text = f"{len(same)} files of {data.config.root} are both image and label."
            found.append(Problem("image is its own label", domain, same[0], text))
    sources, targets, vals = ([d for d in sets.values() if d.role == role] for role in ("source", "target", "val"))
    images = {image for data in sources for image in data.images}
    labels = {os.path.realpath(one.label) for data in sources for one in data.files if one.label is not None}
    for target in targets:
        root, domain = target.config.root, target.expected.domain
        if target.images and target.images <= images:
            text = f"The target's images are all in the source: {root}."
            found.append(Problem("target is the source", domain, root, text))
        elif target.images and target.images <= labels:
            text = f"The images of {root} are the source's labels."
            found.append(Problem("target is the source's labels", domain, root, text))
        else:
            found += [same for source in sources for same in _shared(target, source, contents)]
    for number, source in enumerate(sources):
        found += [same for other in sources[:number] for same in _shared(source, other, contents)]
    labelled = [data for data in sets.values() if data.role == "labelled"]
    for val in vals:
        found += [same for trained in (*sources, *targets) for same in _shared(val, trained, contents)]
        found += [same for trained in labelled for same in _shared(val, trained, contents=True)]
    return found


def _shared(data: InspectedData, trained: InspectedData, contents: bool) -> Iterator[Problem]:
    """Yield a problem for each image that is also among the trained ones: the same file, or the same content."""
    domain, role = data.expected.domain, "labelled target" if trained.role == "labelled" else trained.role
    other = trained.expected.domain.replace(trained.role, role, 1)
    known = {one.digest: one.image for one in trained.files if one.digest is not None and contents}
    for one in data.files:
        if os.path.realpath(one.image) in trained.images:
            yield Problem(f"also in the {role}", domain, one.image, f"{one.image} is also in the {other}.")
        elif one.digest in known:
            text = f"{one.image} is {known[one.digest]} again."
            yield Problem(f"same content as in the {role}", domain, one.image, text)
