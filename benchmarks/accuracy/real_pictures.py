"""Pictures for the page of `real.py`: source-only, what `quick` deploys, and the oracle, on validation frames.

    python benchmarks/accuracy/real_pictures.py --data DATA --out runs/real --seed 6

Wrong pixels are hatched in black. The nuclei are CC0 and shown beside them; photos of the other tasks, whose terms are
for research alone, are not. Needs the runs `source`, `fda`, `dacs`, `oracle` of the seed, measured by `real_page.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import real
import torch
from PIL import Image
from real_page import AVERAGE, QUICK, RESULTS, deployed, images_of, resolve_task

from ssrseg.inference import Predictor
from ssrseg.inference.choose import START, STATISTICS, average
from ssrseg.inference.evaluate import labelled_for
from ssrseg.inference.recalibrate import BATCH, batches_of_one_size, blend_statistics
from ssrseg.models.segmenter import Segmenter, load_segmenter
from ssrseg.runs.folder import RunFolder

PUBLIC = ("nuclei", "stained")
"""Tasks whose images may be shown."""
SHOWN, WIDTH, GAP = 2, 200, 4
Picture = npt.NDArray[np.uint8]


def chosen_model(task: real.Task, out: Path, seed: str, name: str) -> Segmenter:
    """Build the candidate of the seed's `quick` that was chosen without labels."""
    who, statistics = name.rsplit(", ", 1)
    model = load_segmenter(RunFolder(out / f"source-{seed}").student_last)
    adapted = {
        "styled": RunFolder(out / f"fda-{seed}").student_last,
        "teacher": RunFolder(out / f"dacs-{seed}").teacher_last,
    }
    if who != START:
        model = average(
            model, *(load_segmenter(file) for each, file in adapted.items() if each in who or who == AVERAGE)
        )
    if STATISTICS[statistics] < 1:
        blend_statistics(model, batches_of_one_size(images_of(task), BATCH), STATISTICS[statistics])
    return model


def rows(task: real.Task, models: list[Segmenter], *, public: bool) -> Iterator[Picture]:
    """Draw validation frames, a row each: image and labels where they may be shown, then each model's classes."""
    _, val = resolve_task(task)
    samples = labelled_for(models[0], val, None if task.classes is None else [*task.classes])[0]
    predictors = [Predictor(model, "cpu") for model in models]
    colors = predictors[0].colors
    for number in range(0, len(samples), len(samples) // SHOWN)[:SHOWN]:
        sample = samples[number]
        truth = sample.labels.numpy()
        known = truth < len(colors)
        drawn = [colors[np.where(known, truth, 0)] * known[..., None]] if public else []
        drawn = [sample.image.permute(1, 2, 0).numpy(), *drawn] if public else drawn
        hatched = np.add.outer(np.arange(truth.shape[0]), np.arange(truth.shape[1])) % 4 < 2
        for predictor in predictors:
            ids = predictor.logits(sample.image[None], truth.shape).argmax(dim=1)[0].numpy()
            drawn.append(colors[ids] * ~((ids != truth) & known & hatched)[..., None])
        yield np.concatenate([framed(picture) for picture in drawn], axis=1)


def framed(picture: Any) -> Picture:
    """Resize to the page's width, with a white edge."""
    height = round(WIDTH * picture.shape[0] / picture.shape[1])
    small = Image.fromarray(picture.astype(np.uint8)).resize((WIDTH, height), Image.Resampling.NEAREST)
    return np.pad(np.asarray(small), ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def main() -> None:
    """Draw every task whose runs are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--seed", default="6")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.with_suffix(".json").read_text(encoding="utf-8"))
    for name, task in real.tasks(options.data.resolve(), options.out.resolve()).items():
        measured = found.get(name, {}).get(QUICK, {}).get(options.seed)
        oracle = RunFolder(options.out / name / f"oracle-{options.seed}").student_last
        if measured is None or not oracle.exists():
            continue
        out = options.out / name
        models = [load_segmenter(RunFolder(out / f"source-{options.seed}").student_last)]
        models += [chosen_model(task, out, options.seed, deployed(measured)), load_segmenter(oracle)]
        picture = np.concatenate([*rows(task, models, public=name in PUBLIC)])
        Image.fromarray(picture).quantize(64).save(RESULTS.parent / f"real-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
