"""What the data show and what is wrong with them, printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from ssrseg.data.checks.problems import Problem, grouped

SIZES = 4
"""Different sizes that are listed."""
EXAMPLES = 5
"""Files that a warning lists; an error lists all."""


def print_data(facts: dict[str, Any], problems: Iterable[Problem], console: Console) -> None:
    """Print the facts of `report.json` as tables, the domains side by side, then every
    problem with its remedy.
    """
    console.print(_domains(facts["domains"]))
    console.print()
    console.print(_classes(facts["classes"], facts["domains"]))
    console.print()
    text = (
        f"Rare-class sampling counts a file for a class with more than {facts['min_pixels']} pixels of it (min_pixels)."
    )
    console.print(text, soft_wrap=True, highlight=False)
    for headline, found in grouped(problems):
        word, style = ("error", "red") if found[0].fatal else ("warning", "yellow")
        shown = found if found[0].fatal else found[:EXAMPLES]
        lines = [f"{word}: {headline}", *(f"  {one.text}" for one in shown)]
        if len(shown) < len(found):
            lines.append(f"  ... and {len(found) - len(shown)} more, listed in report.json")
        lines.append(f"  -> {found[0].remedy}")
        text = "\n".join(lines).encode(errors="replace").decode()  # a name that is no UTF-8 cannot be printed
        console.print(text, style=style, markup=False, soft_wrap=True, highlight=False)


def _domains(domains: dict[str, Any]) -> Table:
    table = Table("", *domains, box=None)
    rows = {
        "images": [str(of["images"]) for of in domains.values()],
        "labels": [str(of.get("labels", "-")) for of in domains.values()],
        "sizes": [_sizes(of["sizes"]) for of in domains.values()],
    }
    colours = [of["colour"] for of in domains.values()]
    for text, key, digits in (
        ("mean red, green, blue", "mean", 0),
        ("std red, green, blue", "std", 0),
        ("brightness (0..255)", "brightness", 0),
        ("contrast", "contrast", 0),
        ("saturation (0..1)", "saturation", 2),
    ):
        rows[text] = ["-" if colour is None else _number(colour[key], digits) for colour in colours]
    for text, cells in rows.items():
        table.add_row(text, *cells)
    return table


def _number(value: Any, digits: int) -> str:
    values = value if isinstance(value, tuple | list) else [value]
    return ", ".join(f"{one:.{digits}f}" for one in values)


def _sizes(sizes: dict[str, int]) -> str:
    shown = [f"{size}: {count}" for size, count in list(sizes.items())[:SIZES]]
    rest = len(sizes) - SIZES
    return "\n".join([*shown, f"and {rest} more"] if rest > 0 else shown) or "-"


def _classes(names: list[str], domains: dict[str, Any]) -> Table:
    labelled = {domain: of["frequencies"] for domain, of in domains.items() if "frequencies" in of}
    heads = [f"{domain} {what}" for domain in labelled for what in ("pixels", "images")]
    table = Table("class", *heads, box=None)
    for name in names:
        counts = [of[name] for of in labelled.values()]
        cells = [cell for count in counts for cell in (f"{count['share']:.3%}", str(count["images"]))]
        table.add_row(name, *cells)
    return table
