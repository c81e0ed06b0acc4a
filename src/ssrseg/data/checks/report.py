"""`check_data`, the word: all data of a run looked at, printed, and left in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ssrseg.config import Settings
from ssrseg.data.checks.contact_sheet import COLUMNS, Row, contact_sheet
from ssrseg.data.checks.problems import Problem
from ssrseg.data.checks.survey import DataSet, Survey, survey
from ssrseg.data.checks.tables import print_data
from ssrseg.data.class_statistics import ClassStatistics, save_statistics
from ssrseg.data.label_mapping import code_for
from ssrseg.data.layouts import Pair
from ssrseg.data.samplers import scaled_min_pixels
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically, write_json


@dataclass(frozen=True)
class DataReport:
    """What was found; the same stands in `report.json`."""

    folder: Path
    problems: list[Problem]
    """All of them, fatal or not."""
    facts: dict[str, Any]
    """Counts, sizes, colours and class frequencies by domain."""

    @property
    def trainable(self) -> bool:
        """Whether nothing was found that prevents training."""
        return not any(one.fatal for one in self.problems)


def report_data(settings: Settings, out: Path, *, console: Console | None = None) -> DataReport:
    """Decode every image and label of a run, and say what they show and all that is wrong with them.

    Args:
        settings: as for training.
        out: folder for `report.json`, `contact-sheet.png` and `class-statistics.json`; earlier ones are replaced.
            The statistics are also kept where a later run with rare-class sampling looks for them.
        console: shows progress and the report; silent when absent.

    Raises:
        UserError: the settings do not say which classes there are, or `out` cannot be written. Faults of the data
            are in the report.
    """
    seen = survey(settings, console=console)
    report = DataReport(Path(out), seen.problems, facts(seen, settings))
    try:
        report.folder.mkdir(parents=True, exist_ok=True)
        problems = [{**dataclasses.asdict(one), "path": str(one.path)} for one in seen.problems]
        write_json(report.folder / "report.json", {"trainable": report.trainable, **report.facts, "problems": problems})
        write_atomically(report.folder / "contact-sheet.png", lambda part: _draw(seen, settings).save(part, "PNG"))
    except OSError as error:
        raise UserError(
            f"Cannot write the report into {out}: {error.strerror or error}. Give another --out."
        ) from error
    _keep_statistics(seen, settings, report.folder / "class-statistics.json")
    if console is not None:
        print_data(report.facts, report.problems, console)
        verdict = "Training can start." if report.trainable else "Training would not work: mend the errors above."
        console.print(f"{verdict} The data in pictures: {out}/contact-sheet.png", soft_wrap=True, highlight=False)
    return report


def facts(seen: Survey, settings: Settings) -> dict[str, Any]:
    """What the data show, as plain values."""
    rare = settings.loader.rare_class
    given = rare.min_pixels if rare is not None else None
    return {
        "classes": list(seen.space.names),
        "min_pixels": given or scaled_min_pixels(settings.loader.crop),
        "domains": {name: _facts_of(data, seen.space.names) for name, data in seen.sets.items()},
    }


def _facts_of(data: DataSet, names: Sequence[str]) -> dict[str, Any]:
    pixels, colour = data.pixels, data.colour
    found: dict[str, Any] = {
        "root": str(data.config.root),
        "images": len(data.files),
        "sizes": {f"{width}x{height}": count for (width, height), count in data.sizes.most_common()},
        "colour": None if colour is None else dataclasses.asdict(colour),
    }
    if data.domain != "target":
        total = max(1, int(pixels.sum()))
        found["labels"] = len(pixels)
        found["frequencies"] = {
            name: {"pixels": count, "share": count / total, "images": images}
            for name, count, images in zip(
                names,
                pixels.sum(0).tolist() or [0] * len(names),
                (pixels > 0).sum(0).tolist() or [0] * len(names),
                strict=True,
            )
        }
    return found


def _draw(seen: Survey, settings: Settings) -> Any:
    rows: list[Row] = []
    shares = None
    for name, data in seen.sets.items():
        whole = [one for one in data.looks if one.colour is not None and (one.pixels is not None or one.label is None)]
        step = max(1, -(-len(whole) // COLUMNS))
        files = [(one.image, one.label) for one in whole[::step]]
        code = (
            None
            if name == "target" or not len(data.pixels)
            else code_for(data.config, settings.classes, settings.source)
        )
        rows.append((f"{name}: {data.config.root} ({len(data.files)} images)", files, code))
        if name == "source" and len(data.pixels):
            totals = data.pixels.sum(0)
            shares = (totals / totals.sum().clamp(min=1)).tolist()
    return contact_sheet(rows, seen.space, shares)


def _keep_statistics(seen: Survey, settings: Settings, place: Path) -> None:
    source = seen.sets["source"]
    pairs = [Pair(one.image, one.label) for one in source.looks if one.label is not None]
    if pairs and len(source.pixels) == len(pairs):  # else a label could not be read, and training is refused
        code = code_for(settings.source, settings.classes)
        save_statistics(ClassStatistics(source.pixels), pairs, code, seen.space.num_classes, place)
