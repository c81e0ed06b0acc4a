"""`ssrseg check-data`: all data of a run examined, printed, and left in a folder."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssrseg.config import Settings
from ssrseg.data.checks.contact_sheet import COLUMNS, Row, contact_sheet
from ssrseg.data.checks.problems import Problem, grouped
from ssrseg.data.checks.survey import InspectedData, Survey, survey
from ssrseg.data.class_statistics import ClassStatistics, save_statistics
from ssrseg.data.layouts import Pair
from ssrseg.data.samplers import scaled_min_pixels
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically, write_json

SIZES = 4
"""Different sizes that are listed."""
EXAMPLES = 5
"""Files that a warning lists; an error lists all."""


@dataclass(frozen=True)
class DataReport:
    """Findings, as they are written to `report.json`."""

    folder: Path
    problems: list[Problem]
    """All of them, fatal or not."""
    facts: dict[str, Any]
    """Counts, sizes, colours and class frequencies by domain."""

    @property
    def trainable(self) -> bool:
        """Whether nothing was found that prevents training."""
        return not any(one.fatal for one in self.problems)


def check_data(settings: Settings, out: Path, *, console: Console | None = None) -> DataReport:
    """Decode every image and label of a run, and report what they show and all that is wrong with them.

    Args:
        settings: as for training.
        out: folder for `report.json` and `contact-sheet.png`; earlier ones are replaced. Class statistics are kept
            where a run with rare-class sampling looks for them.
        console: shows progress and the report; silent when absent.

    Raises:
        UserError: the settings do not say which classes there are, or `out` cannot be written. Faults of the data
            are in the report.
    """
    seen = survey(settings, console=console)
    rare = settings.loader.rare_class
    facts = {
        "classes": list(seen.space.names),
        "min_pixels": (rare and rare.min_pixels) or scaled_min_pixels(settings.loader.crop),
        "domains": {domain: _facts_of(domain, data, seen.space.names) for domain, data in seen.sets.items()},
    }
    report = DataReport(Path(out), seen.problems, facts)
    try:
        report.folder.mkdir(parents=True, exist_ok=True)
        problems = [
            {**dataclasses.asdict(one), "path": str(one.path), "remedy": one.remedy, "fatal": one.fatal}
            for one in seen.problems
        ]
        write_json(report.folder / "report.json", {"trainable": report.trainable, **report.facts, "problems": problems})
        write_atomically(report.folder / "contact-sheet.png", lambda part: _draw(seen).save(part, "PNG"))
    except OSError as error:
        raise UserError(
            f"Cannot write the report into {out}: {error.strerror or error}. Give another --out."
        ) from error
    source = seen.sets["source"]
    pairs = [Pair(one.image, one.label) for one in source.files if one.label is not None]
    code = source.expected.code
    if code and pairs and len(source.pixels) == len(pairs):  # else training is refused for unreadable labels
        save_statistics(ClassStatistics(source.pixels), pairs, code, seen.space.num_classes)
    if console is not None:
        _print(report.facts, report.problems, console)
        verdict = "Training can start." if report.trainable else "Training would not work: mend the errors above."
        console.print(f"{verdict} The data in pictures: {out}/contact-sheet.png", soft_wrap=True, highlight=False)
    return report


def _facts_of(domain: str, data: InspectedData, names: Sequence[str]) -> dict[str, Any]:
    pixels, colour = data.pixels, data.colour
    sizes = Counter(one.size for one in data.files if one.size is not None)
    found: dict[str, Any] = {
        "root": str(data.config.root),
        "images": len(data.files),
        "sizes": {f"{width}x{height}": count for (width, height), count in sizes.most_common()},
        "colour": None if colour is None else dataclasses.asdict(colour),
    }
    if domain != "target":
        total = max(1, int(pixels.sum()))
        counts = zip(names, pixels.sum(0).tolist(), (pixels > 0).sum(0).tolist(), strict=True)
        found["labels"] = len(pixels)
        found["frequencies"] = {
            name: {"pixels": count, "share": count / total, "images": images} for name, count, images in counts
        }
    return found


def _draw(seen: Survey) -> Any:
    rows: list[Row] = []
    shares = None
    for name, data in seen.sets.items():
        whole = [one for one in data.files if one.colour is not None and (one.pixels is not None or one.label is None)]
        step = max(1, -(-len(whole) // COLUMNS))
        files = [(one.image, one.label) for one in whole[::step]]
        rows.append((f"{name}: {data.config.root} ({len(data.files)} images)", files, data.expected.code))
        if name == "source" and len(data.pixels):
            totals = data.pixels.sum(0)
            shares = (totals / totals.sum().clamp(min=1)).tolist()
    return contact_sheet(rows, seen.space, shares)


def _print(facts: dict[str, Any], problems: Iterable[Problem], console: Console) -> None:
    """Print the facts as tables, the domains side by side, then every problem with its remedy."""
    console.print(_domains(facts["domains"]))
    console.print()
    console.print(_classes(facts["classes"], facts["domains"]))
    console.print()
    text = f"Rare-class sampling counts a file for a class with more than {facts['min_pixels']} pixels of it"
    console.print(f"{text} (min_pixels).", soft_wrap=True, highlight=False)
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
    table.add_row("images", *(str(of["images"]) for of in domains.values()))
    table.add_row("labels", *(str(of.get("labels", "-")) for of in domains.values()))
    table.add_row("sizes", *(_sizes(of["sizes"]) for of in domains.values()))
    for text, key, digits in (
        ("mean red, green, blue", "mean", 0),
        ("std red, green, blue", "std", 0),
        ("brightness (0..255)", "brightness", 0),
        ("contrast", "contrast", 0),
        ("saturation (0..1)", "saturation", 2),
    ):
        colours = [of["colour"] for of in domains.values()]
        table.add_row(text, *("-" if colour is None else _number(colour[key], digits) for colour in colours))
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
    table = Table("class", *(f"{domain} {what}" for domain in labelled for what in ("pixels", "images")), box=None)
    for name in names:
        counts = [of[name] for of in labelled.values()]
        table.add_row(name, *(cell for one in counts for cell in (f"{one['share']:.3%}", str(one["images"]))))
    return table
