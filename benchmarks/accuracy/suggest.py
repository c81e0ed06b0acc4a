"""Ten target labels: those that `ssrseg suggest` asks for, against as many drawn at random.

    python benchmarks/accuracy/suggest.py --data DATA --start runs/real/camvid/source-2/student-last.safetensors
    python benchmarks/accuracy/suggest.py        # the page again, from the committed JSON

CamVid's day to dusk as in `real.py`, which trains the source-only student that suggests and that every run goes on
from. A suggestion follows from the student alone, so its seeds differ in the training; random draws differ in the
images too.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from real import settings_of, tasks
from real_page import RESULTS, occurring, words
from rich.console import Console

from ssrseg.config import DataConfig, Settings, dump, merge, resolve, resolve_group
from ssrseg.data import find_images
from ssrseg.inference import evaluate, suggest
from ssrseg.training import finish

COUNT, STEPS, SEEDS = 10, 200, (0, 1, 2)
ROWS = {"none": "none, trained on", "random": "drawn at random", "suggested": "suggested"}
RECORD = RESULTS.with_name("suggest.json")


def run_of(row: str, seed: int, stems: Path, options: argparse.Namespace) -> Settings:
    """Settings of a run: `real.py`'s source-only, in a third of its steps, with the labels of some target images."""
    task = tasks(options.data.resolve(), options.out.resolve())["camvid"]
    tree: dict[str, Any] = yaml.safe_load(
        dump(settings_of(task, "source-only", seed, options.out.resolve(), options.weights))
    )
    train = dict.fromkeys(("evaluate_every", "checkpoint_every", "pictures_every", "steps"), STEPS)
    over = {
        "model": {"start": str(options.start.resolve())},
        "optim": {"warmup": STEPS // 25},
        "train": {**train, "log_every": STEPS // 6},
        **({} if row == "none" else {"target": {"labelled": {"stems": str(stems)}}, "method": {"labelled": {}}}),
    }
    return resolve(merge(tree, over))


def measured(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Train and score what is missing, writing the record after each run."""
    task = tasks(options.data.resolve(), options.out.resolve())["camvid"]
    target, val = (resolve_group(DataConfig, dict(data), "data") for data in (task.target, task.val))
    suggested = [each.image.stem for each in suggest(options.start, target, options.out / "picked", count=COUNT)]
    every = sorted(path.stem for path in find_images(target))

    def score(model: Any) -> dict[str, Any]:
        scores = evaluate(model, val, device="cpu")
        return {"miou": occurring(scores), "iou": [iou and round(100 * iou, 1) for iou in scores.iou]}

    found.setdefault("start", score(options.start))
    for row, seed in sorted(product(ROWS, SEEDS), key=lambda pair: (pair[0] == "none", pair[1])):
        if str(seed) in found.setdefault(row, {}):
            continue
        drawn = random.Random(seed).sample(every, len(suggested))
        stems = {"suggested": suggested, "random": drawn, "none": list[str]()}[row]
        listed = options.out / f"{row}-{seed}.txt"
        listed.write_text("\n".join(stems), encoding="utf-8")
        settings = run_of(row, seed, listed.resolve(), options)
        run = finish(settings, options.out / f"{row}-{seed}", console=Console(force_terminal=False))
        found[row][str(seed)] = {"stems": stems, **score(run.student)}
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def page(found: dict[str, Any]) -> str:
    """The Markdown of what was measured."""
    arms = {
        row: [(int(seed), each["miou"]) for seed, each in sorted(found[row].items())] for row in ROWS if found.get(row)
    }
    lines = ["| labels | n | mIoU | by seed | against random |", "|---|---:|---:|---|---|"]
    lines.append(f"| none, where all begin | 1 | {found['start']['miou']:.1f} | | |")
    for row, values in arms.items():
        means = [value for _, value in values]
        deviation = f" ± {stdev(means):.1f}" if len(means) > 1 else ""
        each, against = ", ".join(f"{mean:.1f}" for mean in means), words(arms["random"], values)
        lines.append(
            f"| {ROWS[row]} | {len(means)} | {fmean(means):.1f}{deviation} | {each} | "
            f"{'' if row == 'random' else against} |"
        )
    return f"{HEADER}\n" + "\n".join(lines) + "\n"


HEADER = f"""# Which labels to ask for: suggested, and drawn at random

Made by `benchmarks/accuracy/suggest.py`: CamVid, day to dusk at 320x240, {COUNT} of the 44 dusk frames with labels,
{STEPS} steps of 2 source and 2 labelled images from one source-only student (seed 2 of `real.md`), which chose the
suggested ones. mIoU in per cent over the classes that occur in the 18 dusk frames kept for scoring, of the last step;
deviation over seeds, differences paired by seed with a 95 % interval (Student's t). One student, one data set: seeds
are of the training, and of the random draw, not of the start or of what it suggests.
"""


def main() -> None:
    """Measure what is missing, if data are given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--start", type=Path, default=Path("runs/real/camvid/source-2/student-last.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("runs/suggest"))
    parser.add_argument("--weights", type=Path, default=Path("runs/weights"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if options.data is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        measured(options, found)
    if not found:
        sys.exit(f"{RECORD} is not there: give --data.")
    RECORD.with_suffix(".md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
