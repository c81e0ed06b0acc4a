"""`make demo`: a shipped student of one domain, adapted to another without its labels, and a report; about a minute."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ssrseg.config import Settings, merge, resolve
from ssrseg.demo.dataset import NUCLEI, STREETS, STUDENT, DemoSet, write_dataset
from ssrseg.reporting import compare_records, members, overview, print_table, read_run, report
from ssrseg.runs.folder import RECALIBRATED, TRAINED, RunFolder
from ssrseg.training.train import finish

Tree = dict[str, Any]

THINGS = ["traffic sign", "person", "rider", "car", "truck"]

TEACHER = {"decay": 0.98}
"""The published 0.999 averages over more steps than the demo has."""

DACS: Tree = {"teacher": TEACHER, "mixed": {}}
DAFORMER: Tree = {**DACS, "feature_distance": {"classes": THINGS}}
RARE: Tree = {"rare_class": {"any_image": 0}}
SSR: Tree = {"regularizer": {"foundation": {"encoder": "demo", "input_size": "native"}}}

METHODS: dict[str, Tree] = {
    "source-only": {"method": {"distort": True}},
    "dacs": {"method": DACS},
    "daformer": {"method": DAFORMER, "loader": RARE},
    "daformer-ssr": {"method": DAFORMER | SSR, "loader": RARE},
}

PARTS = ("source", "target", "val")

SEEN: dict[str, Tree] = {
    NUCLEI.name: {"loader": {"crop": [128, 128]}},
    STREETS.name: {"loader": {"crop": [96, 128]}, **{part: {"resize": [192, 96]} for part in PARTS}},
}
"""At which size a set's pictures are seen."""

ROWS: dict[str, tuple[str, ...]] = {NUCLEI.name: ("dacs", "oracle"), STREETS.name: ("daformer", "daformer-ssr")}
"""What goes on from a set's student. The oracle is trained with the target's labels."""


def demo_settings(
    data: Path, method: Mapping[str, Any], steps: int, seed: int = 0, pictures: DemoSet = STREETS
) -> Settings:
    """Return the settings of one run on an embedded set; all methods share everything but the method."""
    quarter = max(1, steps // 4)
    tree = {
        "classes": [{"name": name, "color": color} for name, color in pictures.classes],
        **{part: {"root": data / name} for part, name in zip(PARTS, pictures.counts, strict=True)},
        "loader": {"batch": 4, "workers": 0},
        # timm's smallest residual network: 0.4 M parameters, from scratch
        "model": {"backbone": "timm:test_resnet", "head_channels": 32, "pretrained": "none"},
        "optim": {"lr": 3e-3, "head_lr_factor": 1, "warmup": steps // 10},
        "train": {
            "steps": steps,
            "seed": seed,
            "evaluate_every": quarter,
            "checkpoint_every": steps,
            "log_every": max(1, steps // 8),
            "pictures_every": quarter,
        },
    }
    return resolve(merge(merge(tree, SEEN[pictures.name]), dict(method)))


def continued_settings(
    data: Path, method: Mapping[str, Any], start: Path, steps: int, seed: int = 0, pictures: DemoSet = STREETS
) -> Settings:
    """Return the settings of a run that goes on from a source-trained student: half the batch, a third of the rate."""
    tree = {
        "loader": {"batch": 2},
        "model": {"start": str(start)},
        "optim": {"lr": 1e-3, "warmup": max(1, steps // 12)},
        "selection": {"images": 16},
        "train": dict.fromkeys(("evaluate_every", "pictures_every"), max(1, steps // 2)),
    }
    return resolve(merge(demo_settings(data, method, steps, seed, pictures).model_dump(mode="json"), tree))


def row_settings(data: Path, row: str, steps: int, seed: int = 0, pictures: DemoSet = NUCLEI) -> Settings:
    """Return the settings of one row of the demo's table: the student as shipped, or what goes on from it."""
    start = data / STUDENT
    if row == "oracle":
        settings = continued_settings(data, {}, start, steps, seed, pictures)
        return settings.model_copy(update={"source": settings.target, "target": None})
    settings = continued_settings(data, METHODS[row], start, steps, seed, pictures)
    if row != "source-only":
        return settings
    shares = {TRAINED: 1.0, RECALIBRATED: 0.5}  # all of its own BatchNorm statistics: scored as it is
    stages = [{"name": name, "does": "recalibrate", "model": str(start), "keep": keep} for name, keep in shares.items()]
    return resolve({**settings.model_dump(mode="json"), "stages": stages})


def demo(
    out: Path,
    pictures: DemoSet = NUCLEI,
    *,
    steps: int = 100,
    counts: Sequence[int] | None = None,
    console: Console | None = None,
) -> Path:
    """Write the data, score the shipped student, go on from it with every method, write the report.

    Args:
        out: where everything goes; finished runs of an earlier call are kept, an interrupted one is resumed.
        pictures: which set.
        steps: length of each training.
        counts: how many pictures to use: source, target, held-out target with labels.
        console: shows progress and the table.

    Returns:
        The path of the HTML report.
    """
    console = console or Console(quiet=True)
    began = time.perf_counter()
    data, folders = out / "data", list[Path]()
    console.print(f"two domains: {pictures.about}. A student trained on the first is shipped")
    write_dataset(data, pictures, counts)
    for row in ("source-only", *ROWS[pictures.name]):
        folders.append(out / row)
        if RunFolder(out / row).finished:
            console.print(f"{row}: finished earlier, kept in {out / row}")
            continue
        console.print(f"\n[bold]{row}")
        finish(row_settings(data, row, steps, pictures=pictures), out / row, console=console)
    runs = [read_run(run) for folder in folders for run in members(folder)]
    print_table(overview(compare_records(runs)), console)
    page = report(folders, out / "report.html")
    console.print(
        f"source-only is the student as shipped; the others went on from it, {steps} steps each. One seed of a"
    )
    console.print("short training, scored on few pictures: not evidence, which lies in benchmarks/results.")
    console.print(f"{time.perf_counter() - began:.0f} s in all")
    console.print(f"report: {page}", soft_wrap=True)
    return page
