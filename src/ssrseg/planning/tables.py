"""A plan for a terminal."""

from __future__ import annotations

from datetime import timedelta

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ssrseg.planning.plan import GIB, ROOM, Plan


def plan_tables(plan: Plan) -> Group:
    """Parts and their cost, the memory, and what follows from it."""
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
    """Bytes as GiB."""
    return f"{size / GIB:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count else "-"


def _billions(count: int) -> str:
    return f"{count / 1e9:,.0f}" if count else "-"
