"""How well students are chosen without labels, on the demo's drawn streets: `docs/selection.md` shows it.

Trains DAFormer with several seeds and many evaluations, then prints each criterion's choice against the true mIoU.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from drawn import write_dataset
from rich.console import Console

from ssrseg.config import merge, resolve
from ssrseg.demo.demo import METHODS, demo_settings
from ssrseg.reporting import members, read_run, report
from ssrseg.reporting.page import choices
from ssrseg.runs.folder import GroupFolder
from ssrseg.training import train_seeds


def main() -> None:
    """Draw, train, print one Markdown row per criterion: means over seeds."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("out", type=Path)
    words.add_argument("--method", default="daformer", choices=METHODS)
    words.add_argument("--steps", type=int, default=260)
    words.add_argument("--evaluations", type=int, default=13)
    words.add_argument("--seeds", type=int, default=3)
    given = words.parse_args()
    torch.set_num_threads(1)
    data, group = given.out / "data", given.out / given.method
    write_dataset(data, source=300, target=300, val=60, size=(128, 256))
    tree = demo_settings(data, METHODS[given.method], given.steps).model_dump()
    settings = resolve(merge(tree, {"train": {"evaluate_every": given.steps // given.evaluations}}))
    begun = GroupFolder(group).exists
    train_seeds(None if begun else settings, group, range(given.seeds), resume=begun, console=Console())
    found = [choices(read_run(run)) for run in members(group)]
    print("| chosen by | steps | rank correlation | mIoU | regret |\n|---|---|---:|---:|---:|")
    for row in zip(*found, strict=True):
        correlations = [choice.correlation for choice in row if choice.correlation is not None]
        correlation = f"{statistics.fmean(correlations):+.2f}" if correlations else "–"
        miou, regret = (100 * statistics.fmean(getattr(choice, part) for choice in row) for part in ("miou", "regret"))
        steps = ", ".join(str(choice.step) for choice in row)
        print(f"| {row[0].name} | {steps} | {correlation} | {miou:.1f} | {regret:.1f} |")
    print(report([group]))


if __name__ == "__main__":
    main()
