"""`ssrseg check-data`: all data of a run examined, printed, and left in a folder with a picture of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Column, Table

from ssrseg.config import Settings
from ssrseg.data.checks.classes import LISTED, facts_of_labels
from ssrseg.data.checks.colours import colour_facts
from ssrseg.data.checks.overlap import InspectedData
from ssrseg.data.checks.problems import Problem, grouped
from ssrseg.data.checks.survey import Survey, survey
from ssrseg.data.images import as_rgb, read_image
from ssrseg.data.label_files import read_labels
from ssrseg.data.label_spaces import LabelSpace
from ssrseg.data.samplers import scaled_min_pixels
from ssrseg.data.streams import shares
from ssrseg.runs.atomic import write_atomically, write_json, writing

SIZES = 4
"""Different sizes that are listed."""
EXAMPLES = 5
"""Files that a warning lists; an error lists all."""
CELL = (240, 180)
"""(width, height) that bounds a picture in the contact sheet."""
GAP, LINE, COLUMNS = 8, 20, 6
WIDTH = GAP + COLUMNS * (CELL[0] + GAP)
OPACITY = 0.6
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
COLOURS = (
    ("mean of each band", "mean", 0),
    ("std of each band", "std", 0),
    ("brightness (0..255)", "brightness", 0),
    ("contrast", "contrast", 0),
    ("saturation (0..1)", "saturation", 2),
)
"""Rows of the printed table: title, key of `colour_facts`, digits."""


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
    batches, loader = settings.train.batches, settings.loader
    draws = batches * loader.batch, batches * loader.of_labelled
    facts = {
        "classes": list(seen.space.names),
        "min_pixels": (rare and rare.min_pixels) or scaled_min_pixels(settings.loader.crop),
        "drawn": seen.drawn,
        "domains": {domain: _facts_of(data, seen, draws) for domain, data in seen.sets.items()},
    }
    report = DataReport(Path(out), seen.problems, facts)
    problems = [
        {**dataclasses.asdict(one), "path": str(one.path), "remedy": one.remedy, "fatal": one.fatal}
        for one in seen.problems
    ]
    with writing(place := report.folder / "report.json"):
        write_json(place, {"trainable": report.trainable, **facts, "problems": problems})
        write_atomically(report.folder / "contact-sheet.png", lambda part: contact_sheet(seen).save(part, "PNG"))
    if console is not None:
        _print(report, console)
    return report


def _facts_of(data: InspectedData, seen: Survey, draws: tuple[int, int]) -> dict[str, Any]:
    """Collect the facts of a data set; `draws` are a run's from source or target, and those of labelled images."""
    sizes = Counter(one.size for one in data.files if one.size is not None)
    found: dict[str, Any] = {
        "root": str(data.config.root),
        "images": len(data.files),
        "sizes": {f"{width}x{height}": count for (width, height), count in sizes.most_common()},
        "colour": colour_facts([one.colour for one in data.files if one.colour is not None]),
    }
    alike = [other for other in seen.sets.values() if other.role == data.role]
    if len(alike) > 1 and data.role != "val":  # what is scored is not drawn
        by_set = shares([one.config for one in alike], [len(one.files) for one in alike]).tolist()
        found["share"] = by_set[alike.index(data)]
    if data.role != "val":
        found["draws"] = draws[data.role == "labelled"] * found.get("share", 1) / max(1, len(data.files))
    if data.role != "target":
        found |= facts_of_labels(data.files, seen.space)
    return found


def _print(report: DataReport, console: Console) -> None:
    """Print the facts as tables, the domains side by side, then every problem with its remedy."""
    facts, domains = report.facts, report.facts["domains"].values()
    table = Table("", *(Column(domain, overflow="fold") for domain in facts["domains"]), box=None)
    table.add_row("images", *(str(of["images"]) for of in domains))
    table.add_row("labels", *(str(of.get("labels", "-")) for of in domains))
    table.add_row("read by", *(", ".join(of.get("encodings", ())) or "-" for of in domains))
    if any("share" in of for of in domains):
        table.add_row("share of the draws", *(f"{of['share']:.1%}" if "share" in of else "-" for of in domains))
    table.add_row("draws of an image", *(f"{of['draws']:.3g}" if "draws" in of else "-" for of in domains))
    table.add_row("sizes", *(_sizes(of["sizes"]) for of in domains))
    for title, key, digits in COLOURS:
        cells = (
            ", ".join(f"{x:.{digits}f}" for x in np.ravel(of["colour"][key])) if of["colour"] else "-" for of in domains
        )
        table.add_row(title, *cells)
    console.print(table, "")
    labelled = {domain: of["frequencies"] for domain, of in facts["domains"].items() if "frequencies" in of}
    table = Table("class", *(f"{domain} {what}" for domain in labelled for what in ("pixels", "images")), box=None)
    if facts["drawn"]:
        table.add_column("draws for it")
    for name in facts["classes"]:
        counts = [of[name] for of in labelled.values()]
        row = [cell for one in counts for cell in (f"{one['share']:.3%}", str(one["images"]))]
        table.add_row(name, *row, *([f"{facts['drawn'].get(name, 0):.3%}"] if facts["drawn"] else []))
    if any(of["ignored"]["pixels"] for of in domains if "ignored" in of):
        table.add_section()
        table.add_row("ignored, of all pixels", *(cell for of in domains if "ignored" in of for cell in _ignored(of)))
    console.print(table, "")

    def say(text: str, style: str = "") -> None:
        text = text.encode(errors="replace").decode()  # a name that is no UTF-8 cannot be printed
        console.print(text, style=style, markup=False, soft_wrap=True, highlight=False)

    say(
        f"Rare-class sampling counts a file for a class with more than {facts['min_pixels']} pixels of it (min_pixels)."
    )
    for headline, found in grouped(report.problems):
        word, style = ("error", "red") if found[0].fatal else ("warning", "yellow")
        shown = found if found[0].fatal else found[:EXAMPLES]
        lines = [f"{word}: {headline}", *(f"  {one.text}" for one in shown)]
        if len(shown) < len(found):
            lines.append(f"  ... and {len(found) - len(shown)} more, listed in report.json")
        say("\n".join([*lines, f"  -> {found[0].remedy}"]), style)
    verdict = "Training can start." if report.trainable else "Training would not work: mend the errors above."
    say(f"{verdict} The data in pictures: {report.folder}/contact-sheet.png")


def _ignored(facts: dict[str, Any]) -> tuple[str, str]:
    ignored = facts["ignored"]
    values = [f"{value}: {share:.3%}" for value, share in ignored["values"].items()]
    rest = [f"and {len(values) - LISTED} more"] if len(values) > LISTED else []
    return f"{ignored['share']:.3%}", "\n".join(values[:LISTED] + rest)


def _sizes(sizes: dict[str, int]) -> str:
    shown = [f"{size}: {count}" for size, count in sizes.items()]
    rest = [f"and {len(shown) - SIZES} more"] if len(shown) > SIZES else []
    return "\n".join(shown[:SIZES] + rest) or "-"


def contact_sheet(seen: Survey) -> Image.Image:
    """Draw each data set's images, `COLUMNS` at most, above the same with labels overlaid, and a legend below."""
    strips = [_strip(domain, data, seen.space) for domain, data in seen.sets.items()]
    counts = torch.cat([data.pixels for data in seen.sets.values() if data.role == "source"])
    totals = counts.sum(0) / counts.sum().clamp(min=1)
    strips.append(_legend(seen.space, totals.tolist() if len(counts) else None))
    return Image.fromarray(np.concatenate([np.asarray(strip) for strip in strips]))


def _strip(domain: str, data: InspectedData, space: LabelSpace) -> Image.Image:
    whole = [one for one in data.files if one.colour is not None and (one.pixels is not None or one.label is None)]
    shown, code = whole[:: max(1, -(-len(whole) // COLUMNS))], data.expected.code
    lines = 2 if any(one.label for one in shown) else 1
    strip = Image.new("RGB", (WIDTH, LINE + 2 * GAP + lines * (CELL[1] + GAP)), WHITE)
    ImageDraw.Draw(strip).text((GAP, GAP), f"{domain}: {data.config.root} ({len(data.files)} images)", BLACK)
    palette = np.zeros((256, 3), np.uint8)  # ignored pixels are black
    palette[: space.num_classes] = space.colors
    for column, one in enumerate(shown):
        left, top = GAP + column * (CELL[0] + GAP), LINE + GAP
        image = Image.fromarray(as_rgb(read_image(one.image, data.expected.reading)).permute(1, 2, 0).numpy())
        scale = min(CELL[0] / image.width, CELL[1] / image.height)
        small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
        strip.paste(small, (left, top))
        if one.label is not None and code is not None:
            marks = Image.fromarray(palette[read_labels(one.label, code, one.image).numpy()])
            marks = marks.resize(small.size, Image.Resampling.NEAREST)
            strip.paste(Image.blend(small, marks, OPACITY), (left, top + CELL[1] + GAP))
    return strip


def _legend(space: LabelSpace, shares: Sequence[float] | None) -> Image.Image:
    """Draw the classes' colours and names, with their shares of the labelled pixels (0..1) where there are any."""
    lines = -(-(space.num_classes + 1) // COLUMNS)
    strip = Image.new("RGB", (WIDTH, 2 * GAP + lines * LINE), WHITE)
    draw = ImageDraw.Draw(strip)
    for i, (name, color) in enumerate(zip([*space.names, "ignored"], [*space.colors, BLACK], strict=True)):
        left, top = GAP + i % COLUMNS * (CELL[0] + GAP), GAP + i // COLUMNS * LINE
        draw.rectangle((left, top, left + LINE, top + LINE - 6), fill=color)
        share = f"  {shares[i]:.2%}" if shares is not None and i < len(shares) else ""
        draw.text((left + LINE + GAP, top), f"{name}{share}", BLACK)
    return strip
