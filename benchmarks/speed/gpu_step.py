"""bf16 and compilation against 32 bits and eager, for the published MIC + SSR step, on a CUDA device.

    python benchmarks/speed/gpu_step.py --data CAMVID --backbone-weights MIT_B5 --encoder-weights sam_vit_b_01ec64.pth

Each variant runs in a process of its own: first the published step (crops of 512x512, batch 2 + 2, noise) for steps per
second, memory and MFU (the counted arithmetic over what the card could do, in bf16: what its maker states, and what a
product of two large matrices reaches in the same process), and without SSR for SSR's share of the step; then 200 steps
on CamVid, day to dusk, for the curve of the loss. Without weight files the networks start from random weights, and the
table says so. Results go to `benchmarks/results/gpu-step.*`. Without a CUDA device nothing is measured; `--dry-run`
goes the same way on the CPU with tiny networks and noise, in one process, and writes to `--out`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ssrseg.config import Settings, assignments, compose, merge, resolve
from ssrseg.data import RawBatch, train_batches
from ssrseg.planning.fake_step import fake_step, noise
from ssrseg.reporting.charts import Curve, chart
from ssrseg.runs.folder import RunFolder
from ssrseg.training.loop import Observer, StepResult, fit
from ssrseg.training.setup import build_context

VARIANTS = {
    "fp32, eager": [],
    "bf16, compiled": ["train.precision=bf16", "train.compile=auto", "method.regularizer.foundation.precision=auto"],
}
"""`auto` means on and half with CUDA, and neither in a dry run."""
STATED = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "RTX 3090": 71}
"""TFLOP/s in bf16 without sparsity, with sums in 32 bits, by a part of the card's name (its maker's data sheet)."""
WARM, TIMED, CURVE = 5, 20, 200
TINY = [
    "model={backbone: timm:test_resnet, head_channels: 8}",
    "loader={crop: [64, 64], batch: 1}",
    "method.regularizer.foundation={encoder: demo, input_size: native}",
    "train.accelerator=cpu",
]


class Curves(Observer):
    """The sum of the losses of every step, and when the step was over."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.times: list[float] = []

    def stepped(self, result: StepResult) -> None:
        """Keep the losses on the device; wait for it only to look at the clock."""
        self.losses.append(torch.stack(list(result.losses.values())).sum())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def settings_of(variant: str, options: argparse.Namespace, *, camvid: bool) -> Settings:
    """The published step in this variant; on CamVid with crops that fit its frames."""
    weights = {
        "model": {"pretrained": options.backbone_weights},
        "method": {"regularizer": {"foundation": {"weights": options.encoder_weights}}},
    }
    tree = merge(compose("mic-ssr", None, {}, []), weights)
    if camvid:
        frames = {"root": str(options.data), "spec": "camvid", "split": "train"}
        stems = options.data / "splits"
        tree = {key: value for key, value in tree.items() if key not in ("classes", "source", "target", "val")}
        tree["source"] = {**frames, "stems": str(stems / "day_source.txt")}
        tree["target"] = {**frames, "stems": str(stems / "dusk_target_train.txt")}
        tree = merge(tree, {"loader": {"crop": [352, 480]}, "optim": {"warmup": CURVE // 10}})
        tree["method"]["feature_distance"]["classes"] = ["SignSymbol", "Car", "Pedestrian", "Bicyclist"]
    return resolve(merge(tree, assignments([*VARIANTS[variant], *(TINY if options.dry_run else [])])))


def steps(settings: Settings, count: int, batches: Iterable[RawBatch]) -> Curves:
    """Train `count` steps."""
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": count})})
    context, curves = build_context(settings, RunFolder(Path("gpu-step"))), Curves()
    fit(context.fabric, context.method, context.optimizer, batches, settings, observers=[curves])
    return curves


def seconds(settings: Settings, warm: int, timed: int) -> float:
    """Of a step on noise."""
    times = steps(settings, warm + timed, (noise(settings, seed) for seed in range(warm + timed))).times
    return (times[-1] - times[warm - 1]) / timed


def matmul_rate() -> float:
    """TFLOP/s of a product of two large matrices in bf16; the best of some."""
    cuda = torch.cuda.is_available()
    side = 8192 if cuda else 512
    matrix, best = torch.randn(side, side, device="cuda" if cuda else "cpu", dtype=torch.bfloat16), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        matrix @ matrix
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e12


def measure(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """In this process: seconds and memory of the published step, the same without SSR, and the curve."""
    cuda = torch.cuda.is_available()
    warm, timed, length = (1, 1, 4) if options.dry_run else (WARM, TIMED, CURVE)
    published = settings_of(variant, options, camvid=False)
    found: dict[str, Any] = {
        "seconds": seconds(published, warm, timed),
        "peak": torch.cuda.max_memory_allocated() if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "flops": sum(map(sum, fake_step(published, "cuda" if cuda else "cpu").flops.values())),
        "rate": matmul_rate(),
    }
    plain = published.method.model_copy(update={"regularizer": None})
    found["seconds_without_ssr"] = seconds(published.model_copy(update={"method": plain}), warm, timed)
    on_data = settings_of(variant, options, camvid=options.data is not None)
    on_data = on_data.model_copy(update={"train": on_data.train.model_copy(update={"steps": length})})
    batches = (noise(on_data, seed) for seed in range(length)) if options.data is None else train_batches(on_data)
    losses = torch.stack(steps(on_data, length, batches).losses).tolist()
    return {**found, "losses": losses, "torch": torch.__version__}


def write_results(folder: Path, found: dict[str, Any], options: argparse.Namespace) -> None:
    """Figures as JSON, the table as Markdown, the curves as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-step.json").write_text(json.dumps(found, indent=1) + "\n")
    base = next(iter(found.values()))
    weights = f"Backbone weights: {options.backbone_weights}; encoder weights: {options.encoder_weights}."
    lines = [
        "# The published MIC + SSR step: bf16 and compiled against fp32 and eager",
        "",
        f"{base['device']}, torch {base['torch']}. {weights} Made by `benchmarks/speed/gpu_step.py`.",
        "",
        "MFU: the counted arithmetic over what the card's maker states for bf16; beside it, over the same process's",
        "matrix products. SSR's share is what the step takes longer than the same step without it.",
        "",
        "| variant | steps/s | times as fast | MFU | of products | SSR's share | peak, GiB | loss, last quarter |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        last = row["losses"][-max(1, len(row["losses"]) // 4) :]
        peak = "-" if row["peak"] is None else f"{row['peak'] / 2**30:.2f}"
        speed = base["seconds"] / row["seconds"]
        share = 1 - row["seconds_without_ssr"] / row["seconds"]
        cells = (f"{1 / row['seconds']:.2f}", f"{speed:.2f}", *_utilisation(row), f"{share:.0%}", peak)
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(last) / len(last):.3f} |")
    (folder / "gpu-step.md").write_text("\n".join(lines) + "\n")
    curves = [
        Curve(name, tuple(enumerate(row["losses"], 1)), colour, dashed=bool(colour))
        for colour, (name, row) in enumerate(found.items())
    ]
    (folder / "gpu-step.html").write_text(PAGE + chart("loss over steps", curves) + "\n")


def _utilisation(row: dict[str, Any]) -> tuple[str, str]:
    """Of what is stated for the card, if it is known here, and of its matrix products."""
    done = row["flops"] / row["seconds"] / 1e12
    stated = next((rate for card, rate in STATED.items() if card in row["device"]), None)
    return "-" if stated is None else f"{done / stated:.0%}", f"{done / row['rate']:.0%}"


PAGE = """<!doctype html><meta charset="utf-8"><title>Loss over steps</title>
<style>svg{max-width:60rem}.curve polyline{fill:none;stroke:#1b6ca8}.c1 polyline{stroke:#c8501e}.dashed polyline{
stroke-dasharray:4 3}.rule{stroke:#ddd}text{font:11px sans-serif}</style>
<p>Sum of all losses per step: fp32, eager (blue); bf16, compiled (orange, dashed).</p>
"""


def main() -> None:
    """Every variant in a process of its own, then the table; nothing without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CamVid with its splits; noise when absent")
    parser.add_argument("--backbone-weights", default="none", help="MiT-B5: a file or `hub`")
    parser.add_argument("--encoder-weights", default="none", help="SAM ViT-B: a file or `hub`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--dry-run", action="store_true", help="the same way on the CPU, with tiny networks")
    parser.add_argument("--variant", choices=list(VARIANTS), help="measure one, and print it as JSON")
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options)))
        return
    if not torch.cuda.is_available() and not options.dry_run:
        print("There is no CUDA device here: nothing was measured, and no results were written.")
        return
    if options.dry_run and options.out == Path(__file__).parents[1] / "results":
        parser.error("--dry-run measures nothing worth keeping: give another --out")
    found = {}
    for variant in VARIANTS:
        if options.dry_run:  # measures no memory, so a process of its own would only cost its start
            found[variant] = measure(variant, options)
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    write_results(options.out, found, options)
    print((options.out / "gpu-step.md").read_text())


if __name__ == "__main__":
    main()
