"""`plan`: settings in; out comes what the run will need, what to change so that it fits, and tables of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ssrseg.config import Settings, assignments, merge, resolve
from ssrseg.planning.fake_step import fake_step
from ssrseg.planning.probe import probe as probed
from ssrseg.training.distributed import device_type

GIB = 2**30
ROOM = 0.9
"""The share of the memory that the estimated peak may fill: allocators and libraries need the rest."""


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
    """What to change so that it fits; empty when it does."""
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
    available = available_memory(device) if memory is None else int(memory * GIB)
    needs = fake_step(settings, device)
    limit = float("inf") if available is None else ROOM * available
    changes = advise(settings, device, needs.peak, limit)
    speed, notes = None, []
    if probe and not here:
        notes.append("no CUDA device is here: nothing was timed")
    elif probe and needs.peak > limit:
        notes.append("it does not fit: nothing was timed")
    elif probe:
        speed = probed(settings)
    if settings.train.compile != "off":
        notes.append("memory is estimated without compilation, which usually needs less")
    name = f"{device} ({torch.cuda.get_device_name()})" if device == "cuda" and here else device
    return Plan(
        name, settings.train.steps, needs.parameters, needs.flops, needs.memory, available, speed, changes, tuple(notes)
    )


def available_memory(device: str) -> int | None:
    """Find the bytes free on the CUDA device, or the machine's memory; `None` where unknown."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this operating system
        return None


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


def with_words(settings: Settings, words: tuple[str, ...]) -> Settings:
    """Change some `key.path=value` of the settings."""
    return resolve(merge(settings.model_dump(mode="json"), assignments(words)))


def _candidates(settings: Settings, device: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield words and what else they do, in the order in which to try them."""
    train, loader, regularizer = settings.train, settings.loader, settings.method.regularizer
    if not train.activation_checkpointing:
        yield ("train.activation_checkpointing=true",), "the same gradients, a third more time in the backbone"
    if train.precision != "bf16":
        yield ("train.precision=bf16",), "activations of 16 bits: nearly the same gradients"
    if regularizer is not None:
        encoder = "method.regularizer.foundation"
        if regularizer.foundation.input_size != "native":
            yield (
                (f"{encoder}.input_size=native",),
                "the encoder sees the crop as it is: fewer, coarser features",
            )
        half = regularizer.foundation.precision
        if half == "fp32" or (half == "auto" and device != "cuda"):
            yield (f"{encoder}.precision=half",), "nearly the same features of the frozen encoder"
    if loader.batch > 1:
        accumulate = (f"train.accumulate={loader.batch}",) if "accumulate" in type(train).model_fields else ()
        yield ("loader.batch=1", *accumulate), "each step sees fewer images; norms have fewer to normalise by"
    for share in (3 / 4, 1 / 2):
        height, width = (max(64, int(side * share) // 64 * 64) for side in loader.crop)
        yield (f"loader.crop=[{height}, {width}]",), "less context in a crop: another result"


def plan_tables(plan: Plan) -> Group:
    """Lay out a plan for a terminal: parts and their cost, the memory, and what follows from it."""
    lines = [_memory_line(plan), *_time_lines(plan), *plan.notes]
    said = [Text(line) for line in lines]
    return Group(_parts(plan), "", _memory(plan), "", *said, *([_changes(plan)] if plan.changes else []))


def _parts(plan: Plan) -> Table:
    table = _table("part", "parameters", "GFLOPs forward", "GFLOPs backward")
    for part, count in plan.parameters.items():
        forward, backward = plan.flops.get(part, (0, 0))
        table.add_row(part, _millions(count), _billions(forward), _billions(backward))
    table.add_section()
    forward, backward = (sum(flops[i] for flops in plan.flops.values()) for i in (0, 1))
    table.add_row("one step", _millions(sum(plan.parameters.values())), _billions(forward), _billions(backward))
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory at the peak of a step", "GiB")
    for part, size in plan.memory.items():
        table.add_row(part, gib(size))
    table.add_section()
    table.add_row("all, estimated", gib(plan.peak))
    return table


def _memory_line(plan: Plan) -> str:
    if plan.available is None:
        return f"{plan.device}: how much memory there is, is not known here: say it with --memory GIB"
    verdict = "fits" if plan.fits else f"does not fit, with {1 - ROOM:.0%} left for allocator and libraries"
    return f"{plan.device}: {gib(plan.peak)} of {gib(plan.available)} GiB: {verdict}"


def _time_lines(plan: Plan) -> list[str]:
    if plan.steps_per_second is None or plan.seconds is None:
        return []
    total = timedelta(seconds=round(plan.seconds))
    speed = plan.steps_per_second
    pace = f"{speed:.2f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s per step"
    return [f"{pace} on this machine: {plan.steps:,} steps in {total}, without loading data and evaluating"]


def _changes(plan: Plan) -> Table:
    table = _table("to make it fit, each on top of those before", "GiB")
    table.add_column("what else it does")
    for change in plan.changes:
        table.add_row(Text(" ".join(change.words)), gib(change.peak), change.effect)
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=None)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def gib(size: int) -> str:
    """Format bytes as GiB."""
    return f"{size / GIB:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count else "-"


def _billions(count: int) -> str:
    return f"{count / 1e9:,.0f}" if count else "-"
