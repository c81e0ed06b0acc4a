"""`plan`: settings in; out comes what the run will need, what to change so that it fits, and tables of it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ssrseg.config import Settings, with_words
from ssrseg.data import RawBatch
from ssrseg.planning.fake_step import fake_step, noise
from ssrseg.runs.folder import RunFolder
from ssrseg.training.distributed import device_type
from ssrseg.training.loop import fit
from ssrseg.training.rehearsal import without_weights
from ssrseg.training.setup import build_context

GIB = 2**30
ROOM = 0.9
"""The share of the memory that the estimated peak may fill: allocators and libraries need the rest."""
TIMED = 2
"""Steps that are timed, after a first in which memory is laid out and networks are compiled."""


@dataclass(frozen=True)
class Change:
    """A change of the settings, on top of those before it."""

    words: tuple[str, ...]
    """`key.path=value`, as on the command line."""
    effect: str
    """What else it does."""
    peak: int
    """Bytes, estimated, with this change and all before it."""


@dataclass(frozen=True)
class Plan:
    """The needs of a run. Memory is in bytes."""

    device: str
    """`cpu`, `cuda`, `mps`; with the card's name where it is here."""
    steps: int
    parameters: dict[str, int]
    """By part."""
    flops: dict[str, tuple[int, int]]
    """Of one step, by part: forward, backward."""
    memory: dict[str, int]
    """Estimated, by part, at the peak of a step."""
    available: int | None
    """Memory of the device; unknown when absent."""
    steps_per_second: float | None
    """Of one process on this machine; not measured when absent."""
    changes: tuple[Change, ...]
    """What to change so that it fits, or needs less; empty when it fits."""
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Estimated peak of the device's memory."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the estimated peak leaves room in the available memory; true where that is unknown."""
        return self.available is None or self.peak <= ROOM * self.available

    @property
    def seconds(self) -> float | None:
        """All steps, without loading data and evaluating."""
        return None if self.steps_per_second is None else self.steps / self.steps_per_second

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as JSON takes it."""
        return dataclasses.asdict(self) | {"peak": self.peak, "fits": self.fits, "seconds": self.seconds}


def plan(settings: Settings, *, probe: bool = True, memory: float | None = None) -> Plan:
    """Estimate what a run of `settings` will need on this machine. No data and no weights are read.

    Args:
        settings: of the run.
        probe: time three real steps on noise, unless they would not fit.
        memory: GiB of the device; what is free on the card, or the machine's memory, when absent.

    Raises:
        UserError: the settings name what does not exist, or parts that do not fit together.
    """
    device = device_type(settings.train)
    here = device != "cuda" or torch.cuda.is_available()
    available = memory_of(device) if memory is None else int(memory * GIB)
    needs = fake_step(settings, device)
    limit = float("inf") if available is None else ROOM * available
    changes = advise(settings, device, needs.peak, limit)
    speed, notes = None, []
    if min([needs.peak, *(change.peak for change in changes)]) > limit:
        notes.append("no change that is known here makes it fit: choose a smaller model.backbone")
    if probe and not here:
        notes.append("no CUDA device is here: nothing was timed")
    elif probe and needs.peak > limit:
        notes.append("it does not fit: nothing was timed")
    elif probe:
        speed = steps_per_second(settings)
    if settings.train.compile != "off":
        notes.append("memory is estimated without compilation, which usually needs less")
    name = f"{device} ({torch.cuda.get_device_name()})" if device == "cuda" and here else device
    return Plan(
        name, settings.train.steps, needs.parameters, needs.flops, needs.memory, available, speed, changes, tuple(notes)
    )


def memory_of(device: str) -> int | None:
    """Ask what is free on the card, or for the machine's memory, in bytes; nothing where that is not known."""
    if device == "cuda":
        held = torch.cuda.memory_reserved  # by this process: of a step that failed, too
        return torch.cuda.mem_get_info()[0] + held() if torch.cuda.is_available() else None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None


def what_to_change(settings: Settings) -> str:
    """Say in a sentence what a run needs that did not fit, and by which changes it needs less."""
    device = device_type(settings.train)
    peak = fake_step(settings, device, flops=False).peak
    changes = advise(settings, device, peak, ROOM * min(peak, memory_of(device) or peak))
    steps = "; then ".join(f"{' '.join(change.words)}: {_gib(change.peak)} GiB" for change in changes)
    return f"`ssrseg plan` estimates {_gib(peak)} GiB for a step" + (f"; with {steps}." if steps else ".")


def steps_per_second(settings: Settings) -> float:
    """Time some real steps on noise in one process on this machine, without loading data or evaluating."""
    alone = settings.model_copy(update={"train": settings.train.model_copy(update={"devices": 1, "steps": 1 + TIMED})})
    context = build_context(without_weights(alone), RunFolder(Path("plan")))  # which stays unwritten
    device, batch, times = context.fabric.device, noise(settings), []

    def look() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    def batches() -> Iterator[RawBatch]:
        while True:
            look()
            yield batch

    fit(context.fabric, context.method, context.optimizer, batches(), alone)
    look()
    return TIMED / (times[-1] - times[settings.train.accumulate])


def advise(settings: Settings, device: str, peak: int, limit: float) -> tuple[Change, ...]:
    """Find changes until the estimated peak is below `limit` bytes, the cheapest for the result first.

    Those that do not lower the peak are left out. Where even the last does not reach the limit, all that help are here.
    """
    changes: list[Change] = []
    for words, effect in _candidates(settings, device):
        if peak <= limit:
            break
        changed = with_words(settings, words)
        lower = fake_step(changed, device, flops=False).peak
        if lower < peak:
            changes.append(Change(words, effect, lower))
            settings, peak = changed, lower
    return tuple(changes)


def _candidates(settings: Settings, device: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield words and what else they do, in the order in which to try them."""
    train, loader, foundations = settings.train, settings.loader, settings.method.foundations
    halves = ("half", "auto") if device == "cuda" else ("half",)
    if not train.activation_checkpointing:
        yield ("train.activation_checkpointing=true",), "the same gradients, a third more time in the backbone"
    if train.precision != "bf16":
        yield ("train.precision=bf16",), "activations of 16 bits: nearly the same gradients"
    if sized := [path for path, each in foundations.items() if each.input_size != "native"]:
        words = tuple(f"{path}.input_size=native" for path in sized)
        yield words, "the encoder sees the crop as it is: fewer, coarser features"
    if wide := [path for path, each in foundations.items() if each.precision not in halves]:
        yield tuple(f"{path}.precision=half" for path in wide), "nearly the same features of the frozen encoder"
    if loader.batch > 1:
        words = ("loader.batch=1", f"train.accumulate={loader.batch}")
        yield words, "each step sees fewer images; norms have fewer to normalise by"
    for share in (3 / 4, 1 / 2):
        height, width = (max(64, int(side * share) // 64 * 64) for side in loader.crop)
        yield (f"loader.crop=[{height}, {width}]",), "less context in a crop: another result"


def plan_tables(plan: Plan) -> Group:
    """Lay out a plan for a terminal: parts and their cost, the memory, and what follows from it."""
    forward, backward = (sum(flops[i] for flops in plan.flops.values()) for i in (0, 1))
    rows = [(part, count, *plan.flops.get(part, (0, 0))) for part, count in plan.parameters.items()]
    parts = _table("part", "parameters", "GFLOPs forward", "GFLOPs backward")
    for part, count, *flops in [*rows, ("one step", sum(plan.parameters.values()), forward, backward)]:
        billions = (f"{each / 1e9:,.0f}" if each else "-" for each in flops)
        parts.add_row(part, f"{count / 1e6:.1f}M" if count else "-", *billions)
    memory = _table("memory at the peak of a step", "GiB")
    for part, size in [*plan.memory.items(), ("all, estimated", plan.peak)]:
        memory.add_row(part, _gib(size))
    if plan.available is None:
        said = [f"{plan.device}: how much memory there is, is not known here: say it with --memory GIB"]
    else:
        verdict = "fits" if plan.fits else f"does not fit, with {1 - ROOM:.0%} left for allocator and libraries"
        said = [f"{plan.device}: {_gib(plan.peak)} of {_gib(plan.available)} GiB: {verdict}"]
    if (speed := plan.steps_per_second) is not None:
        total = timedelta(seconds=round(plan.steps / speed))
        pace = f"{speed:.2f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s per step"
        said.append(f"{pace} on this machine: {plan.steps:,} steps in {total}, without loading data and evaluating")
    changes = _table("to need less, each on top of those before", "GiB")
    changes.add_column("what else it does")
    for change in plan.changes:
        changes.add_row(Text(" ".join(change.words)), _gib(change.peak), change.effect)
    return Group(parts, "", memory, "", *map(Text, [*said, *plan.notes]), *([changes] if plan.changes else []))


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=None)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
