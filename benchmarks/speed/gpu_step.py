"""A published step on a CUDA device, MIC + SSR or VFM-UDA: bf16, compiled, 32 bits, eager, in about ten minutes.

    python benchmarks/speed/gpu_step.py
    python benchmarks/speed/gpu_step.py --preset vfm-uda    # DINOv2-B at crops of 1024x1024, bf16

It needs no data and no weights: networks are random, images are noise, and they cost what real ones cost. Please send
`gpu-step-PRESET.json` and `.md` back, which it writes to `benchmarks/results` (or `--out`). **No GPU was at hand when
this was written**: no figure of the project was made by it yet, and only `--dry-run`, which goes the same way on the
CPU with tiny networks, has been run.

Each variant runs in a process of its own: batch 2 + 2 (of MIC + SSR crops of 512x512, SAM ViT-B at 1024), all of
`train` but loading data and what watches a run.

- **Steps per second** are those of `TIMED` steps between two synchronisations: nothing waits for the device in between.
- **Host**: the share of that time after which the host had submitted all of them. Well below 100% it runs ahead; close
  to 100% it is slower than the device, or waits for it (or the queue of launches is full: some thousand of them).
- **Synchronised**: how much longer a step takes when the host waits for the device after each one.
- **Waits**: places that wait for the device in a step, as torch's `set_sync_debug_mode` reports them; none are meant.
- **MFU**: the counted arithmetic over what the card's maker states for the type; beside it, over what a product of two
  large matrices reaches in the same process, in 32 bits or (bf16) in the faster type of the two. In 32 bits cuDNN's
  convolutions use TF32, torch's default, and the products do not.
- **SSR's share** is what the step takes longer than the same step without it.
- **Losses**: the largest difference of a step's summed loss from the first variant's, as a share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssrseg.config import Settings, assignments, compose, merge, resolve
from ssrseg.planning.fake_step import fake_step, noise
from ssrseg.runs.folder import RunFolder
from ssrseg.training.distributed import device_type
from ssrseg.training.loop import Observer, StepResult, fit
from ssrseg.training.setup import build_context

BF16 = ["train.precision=bf16", "method.regularizer.foundation.precision=auto"]
"""`auto` is half with CUDA, and 32 bits in a dry run; so is compilation."""
VARIANTS: dict[str, dict[str, list[str]]] = {
    "mic-ssr": {
        "fp32, eager": [],
        "fp32, compiled": ["train.compile=auto"],
        "bf16, eager": BF16,
        "bf16, compiled": [*BF16, "train.compile=auto"],
    },
    "vfm-uda": {"bf16, eager": [], "bf16, compiled": ["train.compile=auto"]},
}
"""By preset; the first is what the others are compared with."""
RANDOM = {
    "mic-ssr": ["model.pretrained=none", "method.regularizer.foundation.weights=none"],
    "vfm-uda": ["model.pretrained=none", "train.accumulate=1"],
}
STATED = {
    "bf16": {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "RTX 3090": 71},
    "fp32": {"H200": 67, "H100": 67, "A100": 19.5, "L40S": 91.6, "RTX 4090": 82.6, "RTX 3090": 35.6},
}
"""TFLOP/s without sparsity, with sums in 32 bits, by a part of the card's name (its maker's data sheet)."""
WARM, TIMED, SYNCED, WATCHED = 5, 20, 10, 3
"""Steps: not timed, between two synchronisations, with one after each, with torch's reports of waits."""
RESULTS = Path(__file__).parents[1] / "results"
TINY = {
    "mic-ssr": [
        "model={backbone: timm:test_resnet, head_channels: 8}",
        "loader={crop: [64, 64], batch: 1}",
        "method.regularizer.foundation={encoder: demo, input_size: native}",
        "train.accelerator=cpu",
    ],
    "vfm-uda": ["model.backbone=timm:test_vit", "loader={crop: [64, 64], batch: 1}", "train.accelerator=cpu"],
}


class Clock(Observer):
    """Take the times of a run's phases; it waits for the device only where one of them begins or ends."""

    def __init__(self, device: str, phases: tuple[int, int, int, int]) -> None:
        warm, timed, synced, watched = phases
        self._began, self._ended = warm, warm + timed
        self._watch, self._last = self._ended + synced, self._ended + synced + watched
        self._device, self._reports = device, warnings.catch_warnings(record=True)
        self.losses: list[torch.Tensor] = []
        self.times: dict[str, float] = {}
        self.peak: int | None = None
        self.waits: Counter[str] = Counter()

    def stepped(self, result: StepResult) -> None:
        """Keep the losses on the device; look at the clock between two phases."""
        self.losses.append(torch.stack(list(result.losses.values())).sum())
        if result.step == self._ended:
            self.times["submitted"] = time.perf_counter()
        if result.step == self._began or self._ended <= result.step <= self._watch:
            if self._device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            names = {self._began: ("began",), self._ended: ("ended", "synced began")}
            self.times |= dict.fromkeys(names.get(result.step, ("synced ended",)), now)
        if self._device == "cuda" and result.step == self._ended:
            self.peak = torch.cuda.max_memory_allocated()
        if self._device == "cuda" and result.step == self._watch < self._last:
            self._found = self._reports.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if self._device == "cuda" and result.step == self._last > self._watch:
            torch.cuda.set_sync_debug_mode("default")
            self._reports.__exit__(None, None, None)
            reported = [each for each in self._found if "synchronizing" in str(each.message)]
            self.waits.update(f"{Path(each.filename).name}:{each.lineno}" for each in reported)


def settings_of(preset: str, variant: str, *, tiny: bool) -> Settings:
    """The published step in this variant, with random weights."""
    tree = merge(compose(preset, None, {}, []), assignments(RANDOM[preset]))
    words = [*(TINY[preset] if tiny else []), *RANDOM[preset], *VARIANTS[preset][variant]]
    return resolve(merge(tree, assignments(words)))


def run(settings: Settings, phases: tuple[int, int, int, int]) -> tuple[Clock, tuple[str, ...]]:
    """Train on noise for as many steps as the phases have; the notes say what is not compiled."""
    count = sum(phases)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": count})})
    context = build_context(settings, RunFolder(Path("gpu-step")))  # which stays unwritten
    batches = [noise(settings, seed) for seed in range(min(count, 4))] * count  # made before the clock runs
    if context.fabric.device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches[:4]] * count
    clock = Clock(context.fabric.device.type, phases)
    fit(context.fabric, context.method, context.optimizer, batches[:count], settings, observers=[clock])
    return clock, context.notes


def product_rate(device: str, dtypes: tuple[torch.dtype, ...]) -> float:
    """TFLOP/s of a product of two large matrices on this device, in the faster of the types; the best of some."""
    side = 8192 if device == "cuda" else 512
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for dtype in dtypes:
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        for _ in range(10):
            wait()
            began = time.perf_counter()
            matrix @ matrix
            wait()
            best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e12


def measure(preset: str, variant: str, *, tiny: bool) -> dict[str, Any]:
    """In this process: the published step, and the same without SSR."""
    phases = (1, 1, 1, 1) if tiny else (WARM, TIMED, SYNCED, WATCHED)
    settings = settings_of(preset, variant, tiny=tiny)
    device, precision = device_type(settings.train), settings.train.precision
    clock, notes = run(settings, phases)
    without = settings.method.model_copy(update={"regularizer": None})
    plain, _ = run(settings.model_copy(update={"method": without}), (*phases[:2], 0, 0))
    times, (_, timed, synced, watched) = clock.times, phases
    dtypes = (torch.float32, torch.bfloat16) if precision == "bf16" else (torch.float32,)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "precision": precision,
        "seconds": (times["ended"] - times["began"]) / timed,
        "seconds_submitted": (times["submitted"] - times["began"]) / timed,
        "seconds_synchronised": (times["synced ended"] - times["synced began"]) / synced,
        "seconds_without_ssr": (plain.times["ended"] - plain.times["began"]) / timed,
        "waits_per_step": {place: count / watched for place, count in clock.waits.items()}
        if device == "cuda"
        else None,
        "peak_bytes": clock.peak,
        "product_tflops": product_rate(device, dtypes),
        "losses": torch.stack(clock.losses).tolist(),
        "notes": [note for note in notes if "compile" in note],
    }


def counted(preset: str, *, tiny: bool) -> int:
    """Operations of a step: the same in each variant."""
    return sum(map(sum, fake_step(settings_of(preset, next(iter(VARIANTS[preset])), tiny=tiny), "cpu").flops.values()))


def row(name: str, found: dict[str, Any], base: dict[str, Any]) -> str:
    """One line of the table; a dash where this device cannot tell."""
    seconds, rate = found["seconds"], found["flops"] / found["seconds"] / 1e12
    stated = next((tflops for card, tflops in STATED[found["precision"]].items() if card in found["device"]), None)
    waits, peak = found["waits_per_step"], found["peak_bytes"]
    apart = max(abs(a - b) / abs(b) for a, b in zip(found["losses"], base["losses"], strict=True))
    cells = (
        f"{1 / seconds:.2f}",
        f"{base['seconds'] / seconds:.2f}",
        "-" if stated is None else f"{rate / stated:.0%}",
        f"{rate / found['product_tflops']:.0%}",
        f"{1 - found['seconds_without_ssr'] / seconds:.0%}",
        "-" if peak is None else f"{peak / 2**30:.2f}",
        f"{found['seconds_submitted'] / seconds:.0%}",
        f"{found['seconds_synchronised'] / seconds - 1:+.0%}",
        "-" if waits is None else f"{sum(waits.values()):.1f}",
        f"{apart:.1e}",
    )
    return f"| {name} | {' | '.join(cells)} |"


def write_results(folder: Path, found: dict[str, Any], preset: str = "mic-ssr") -> None:
    """Figures as JSON, the table as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"gpu-step-{preset}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    base = next(iter(found.values()))
    heads = (
        "steps/s | times as fast | MFU | of products | SSR's share | peak, GiB | host | synchronised | waits | losses"
    )
    waits = Counter[str]()
    for each in found.values():
        waits |= Counter(each["waits_per_step"] or {})
    lines = [
        f"# The step of `{preset}` on a GPU: {', '.join(found)}",
        "",
        f"{base['device']}, torch {base['torch']}. Made by `benchmarks/speed/gpu_step.py`, which explains each column.",
        *(["", "**A dry run on the CPU: these are no measurements.**"] if base["device"] == "cpu" else []),
        "",
        f"| variant | {heads} |",
        f"|---|{'---:|' * 10}",
        *(row(name, each, base) for name, each in found.items()),
        *(f"\nWaits at {place}: {count:.1f} per step." for place, count in waits.items()),
        *(f"\n{name}: {note}." for name, each in found.items() for note in each["notes"]),
    ]
    (folder / f"gpu-step-{preset}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Every variant in a process of its own, then the table; nothing without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dry-run", action="store_true", help="the same way on the CPU, with tiny networks")
    parser.add_argument("--preset", choices=list(VARIANTS), default="mic-ssr")
    parser.add_argument("--variant", help="measure one, and print it as JSON")
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.preset, options.variant, tiny=options.dry_run)))
        return
    if not torch.cuda.is_available() and not options.dry_run:
        print("There is no CUDA device here: nothing was measured, and no results were written.")
        return
    if options.dry_run and options.out == RESULTS:
        parser.error("--dry-run measures nothing worth keeping: give another --out")
    preset, found = options.preset, {}
    flops = counted(preset, tiny=options.dry_run)
    for variant in VARIANTS[preset]:
        if options.dry_run:  # measures no memory, so a process of its own would only cost its start
            found[variant] = {**measure(preset, variant, tiny=True), "flops": flops}
            continue
        print(f"{variant} ...", flush=True)
        command = [sys.executable, __file__, "--preset", preset, "--variant", variant]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[variant] = {**json.loads(done.stdout.splitlines()[-1]), "flops": flops}
        write_results(options.out, found, preset)  # so that what was measured stays if a later variant fails
    write_results(options.out, found, preset)
    print((options.out / f"gpu-step-{preset}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
