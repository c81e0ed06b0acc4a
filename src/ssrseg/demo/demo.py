"""`make demo`: two drawn domains, one source-trained student, three ways on from it, a report; minutes on two cores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ssrseg.config import Settings, merge, resolve
from ssrseg.demo.dataset import CLASSES, write_dataset
from ssrseg.reporting import compare_records, overview, print_table, read_run, report
from ssrseg.runs.folder import RunFolder
from ssrseg.training.train import finish

THINGS = ["traffic sign", "person", "rider", "car", "truck"]

TEACHER = {"decay": 0.98}
"""The published 0.999 averages over more steps than the demo has."""

METHODS: dict[str, dict[str, Any]] = {
    "source-only": {"method": {"distort": True}},
    "daformer": {
        "method": {"teacher": TEACHER, "mixed": {}, "feature_distance": {"classes": THINGS}},
        "loader": {"rare_class": {"any_image": 0}},
    },
    "daformer-ssr": {
        "method": {
            "teacher": TEACHER,
            "mixed": {},
            "feature_distance": {"classes": THINGS},
            "regularizer": {"foundation": {"encoder": "demo", "input_size": "native"}},
        },
        "loader": {"rare_class": {"any_image": 0}},
    },
}


def demo_settings(data: Path, method: Mapping[str, Any], steps: int, seed: int = 0) -> Settings:
    """Return the settings of one run on the embedded set; all methods share everything but the method."""
    quarter = max(1, steps // 4)
    bounded = {"resize": [192, 96]}
    tree = {
        "classes": [{"name": name, "color": color} for name, color in CLASSES],
        "source": {"root": data / "game", **bounded},
        "target": {"root": data / "camera" / "train", **bounded},
        "val": {"root": data / "camera" / "val", **bounded},
        "loader": {"crop": [96, 128], "batch": 4, "workers": 0},
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
    return resolve(merge(tree, dict(method)))


def continued_settings(data: Path, method: Mapping[str, Any], start: Path, steps: int, seed: int = 0) -> Settings:
    """Return the settings of a run that goes on from a source-trained student: half the batch, a third of the rate."""
    tree = {
        "loader": {"batch": 2},
        "model": {"start": str(start)},
        "optim": {"lr": 1e-3, "warmup": max(1, steps // 12)},
        "selection": {"images": 16},
        "train": dict.fromkeys(("evaluate_every", "pictures_every"), max(1, steps // 2)),
    }
    return resolve(merge(demo_settings(data, method, steps, seed).model_dump(mode="json"), tree))


def demo(
    out: Path,
    *,
    source_steps: int = 380,
    steps: int = 100,
    pictures: tuple[int, int, int] = (200, 256, 40),
    console: Console | None = None,
) -> Path:
    """Write the data, train a student on the game, go on from it with every method, write the report.

    Args:
        out: where everything goes; finished runs of an earlier call are kept, an interrupted one is resumed.
        source_steps: length of the training on the game's labels.
        steps: length of each training after it.
        pictures: how many to use: source, target, held-out target with labels.
        console: shows progress and the table.

    Returns:
        The path of the HTML report.
    """
    console = console or Console(quiet=True)
    began = time.perf_counter()
    data = out / "data"
    console.print("two domains of drawn streets: a game with labels, a camera without")
    source, target, val = pictures
    write_dataset(data, source=source, target=target, val=val)
    first = RunFolder(out / "source")
    _run(_evaluated_at_end(demo_settings(data, METHODS["source-only"], source_steps)), first, console)
    folders = []
    for name, method in METHODS.items():
        folders.append(out / name)
        _run(continued_settings(data, method, first.student_last, steps), RunFolder(folders[-1]), console)
    print_table(overview(compare_records([read_run(folder) for folder in folders])), console)
    page = report(folders, out / "report.html")
    console.print(f"all three went on from one student, for {steps} steps. One seed of a short training: not evidence,")
    console.print(f"which lies in benchmarks/results. {time.perf_counter() - began:.0f} s in all")
    console.print(f"report: {page}", soft_wrap=True)
    return page


def _evaluated_at_end(settings: Settings) -> Settings:
    """Evaluate only at the end: the report is about the runs that go on from it."""
    last = dict.fromkeys(("evaluate_every", "pictures_every"), settings.train.steps)
    return settings.model_copy(update={"train": settings.train.model_copy(update=last)})


def _run(settings: Settings, folder: RunFolder, console: Console) -> None:
    if folder.student_last.exists():
        console.print(f"{folder.path.name}: finished earlier, kept in {folder.path}")
        return
    console.print(f"\n[bold]{folder.path.name}")
    finish(settings, folder.path, console=console)
