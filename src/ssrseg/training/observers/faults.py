"""What is said and kept of a step whose losses or gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ssrseg.data.loader import Raw
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically, write_json


class Fault(UserError):
    """A run that stopped because its numbers went wrong. The command line exits with code 3.

    Args:
        message: what went wrong, where, and what to do.
        step: where it went wrong.
        completed: steps that the run had completed when it stopped. Its state is good: the step changed nothing.
    """

    exit_code = 3

    def __init__(self, message: str, step: int, completed: int) -> None:
        super().__init__(message)
        self.step, self.completed = step, completed


@dataclass(frozen=True)
class Finding:
    """A step that is not finite, of this process."""

    step: int
    """Its number, from 1, as in the journal."""
    losses: tuple[Mapping[str, float], ...]
    """Of each batch of the step, named `view/term`."""
    gradients: Mapping[str, float]
    """Sum of absolute values by parameter."""
    raws: tuple[Raw, ...]
    """The batches of the step."""
    origin: tuple[int, str] | None = None
    """Batch and view whose backward made the gradients so, where it was one of this process."""
    process: str = ""
    """Which one, where there are several."""

    @property
    def bad_losses(self) -> dict[str, float]:
        """Those that are not finite."""
        return {name: value for part in self.losses for name, value in part.items() if not math.isfinite(value)}

    @property
    def bad_parts(self) -> dict[str, tuple[int, int, str]]:
        """Part of the learner -> parameters with a gradient that is not finite, of how many, the first one's name."""
        parts: dict[str, list[str]] = {}
        for name in self.gradients:
            parts.setdefault(part_of(name), []).append(name)
        bad = {part: [n for n in names if not math.isfinite(self.gradients[n])] for part, names in parts.items()}
        return {part: (len(names), len(parts[part]), names[0]) for part, names in bad.items() if names}

    @property
    def suspects(self) -> list[Raw]:
        """The batches with a loss that is not finite, else the one of the gradient, else all of the step."""
        bad = [not all(map(math.isfinite, part.values())) for part in self.losses]
        if not any(bad) and self.origin is not None:
            return [self.raws[self.origin[0]]]
        return [raw for raw, is_bad in zip(self.raws, bad, strict=True) if is_bad or not any(bad)]

    @property
    def files(self) -> tuple[list[str], list[str]]:
        """Source and target images of the suspected batches."""
        source = [name for raw in self.suspects for name in raw.names[: len(raw.source)]]
        target = [name for raw in self.suspects for name in raw.names[len(raw.source) :]]
        return source, target

    def text(self) -> str:
        """What is not finite, and in which images."""
        losses = [f"{name} is {value} ({_of(name)})" for name, value in self.bad_losses.items()]
        what = f"the loss {', the loss '.join(losses)}" if losses else f"every loss is finite, {self._gradients()}"
        kinds = [
            f"{kind} {', '.join(names)}" for kind, names in zip(("source", "target"), self.files, strict=True) if names
        ]
        where = f" in {self.process}" if self.process else ""
        return f"Step {self.step}{where}: {what}. Images: {'; '.join(kinds)}."

    def _gradients(self) -> str:
        parts = [f"{bad} of {of} in {part} (first {name})" for part, (bad, of, name) in self.bad_parts.items()]
        where = ""
        if self.origin is not None:
            batch, view = self.origin
            terms = [name.partition("/")[2] for name in self.losses[batch] if name.startswith(f"{view}/")]
            where = f" after the backward of view {view} (terms {', '.join(terms)})"
        return f"but{where} these gradients are not: {', '.join(parts)}"

    def write(self, folder: Path) -> None:
        """The suspected batches as `batch.safetensors`, and everything else as `fault.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = ("source", "labels", "target", "valid")
        tensors = {name: torch.cat([getattr(raw, name) for raw in self.suspects]) for name in kept}
        write_atomically(folder / "batch.safetensors", lambda partial: save_file(tensors, partial))
        source, target = self.files
        content: dict[str, Any] = {
            "step": self.step,
            "losses": [{name: _json(value) for name, value in part.items()} for part in self.losses],
            "gradients": {
                part: {"not_finite": bad, "parameters": of, "first": name}
                for part, (bad, of, name) in self.bad_parts.items()
            },
            "view": self.origin and self.origin[1],
            "source": source,
            "target": target,
        }
        write_json(folder / "fault.json", content)


def part_of(parameter: str) -> str:
    """`student.backbone.x` -> `the backbone`; `terms.regularizer.x` -> `the term regularizer`."""
    owner, name = parameter.split(".")[:2]
    return f"the term {name}" if owner == "terms" else f"the {name}"


def _of(loss: str) -> str:
    view, _, term = loss.partition("/")
    return f"view {view}, term {term}"


def _json(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)
