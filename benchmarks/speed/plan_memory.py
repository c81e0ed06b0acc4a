"""The estimated peak memory of `ssrseg plan` beside the measured one.

    python benchmarks/speed/plan_memory.py

Each setting trains two real steps on noise in a process of its own. On the CPU its highest resident memory is measured,
less what it held before the networks were built; on CUDA the most that was allocated. Results go to
`benchmarks/results/plan-memory.*`. `--only NAME` measures one setting and keeps the others' results; `mic-ssr` itself,
the published one, needs 13 GiB and several minutes and is measured only when named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
TOLERANCE = 0.2
NO_HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""With it glibc gives back what is freed; the difference is the heap, which `plan` estimates."""

SETTINGS: dict[str, tuple[str, list[str]]] = {
    "MiT-B0, source-only, 384x384": ("source-only", ["model.backbone=mit_b0", "loader.crop=[384, 384]"]),
    "ResNet-101, DACS, 256x256": ("dacs", ["loader.crop=[256, 256]"]),
    "MiT-B1, MIC + SSR (SAM ViT-B), 256x256": (
        "mic-ssr",
        [
            "model.backbone=mit_b1",
            "loader={crop: [256, 256], batch: 1}",
            "method.regularizer.foundation.input_size=native",
        ],
    ),
    "the same, activation checkpointing": (
        "mic-ssr",
        [
            "model.backbone=mit_b1",
            "loader={crop: [256, 256], batch: 1}",
            "method.regularizer.foundation.input_size=native",
            "train.activation_checkpointing=true",
        ],
    ),
}
LARGE: dict[str, tuple[str, list[str]]] = {"mic-ssr": ("mic-ssr", [])}


def settings_of(name: str) -> Any:
    """The settings, without weights."""
    from ssrseg.config import compose, resolve
    from ssrseg.planning.fake_step import without_weights

    preset, words = (SETTINGS | LARGE)[name]
    return without_weights(resolve(compose(preset, None, {}, words)))


def measure(name: str) -> dict[str, Any]:
    """In this process: two steps, and the most memory that they held."""
    import torch

    from ssrseg import cpu
    from ssrseg.planning.fake_step import noise
    from ssrseg.runs.folder import RunFolder
    from ssrseg.training import setup as building
    from ssrseg.training.distributed import device_type
    from ssrseg.training.loop import fit

    torch.set_num_threads(1)
    if NO_HEAP.items() <= os.environ.items():
        cpu.keep_memory = lambda: None  # it overrules the environment
    settings = settings_of(name)
    before = resident("VmRSS")
    context = building.build_context(settings, RunFolder(Path("plan")))
    two = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": 2})})
    fit(context.fabric, context.method, context.optimizer, [noise(settings, seed) for seed in (0, 1)], two)
    device = device_type(settings.train)
    if device == "cuda":
        return {"measured": torch.cuda.max_memory_allocated(), "device": torch.cuda.get_device_name()}
    return {"measured": resident("VmHWM") - before, "device": "cpu"}


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest (getrusage would count the parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def estimate(name: str) -> dict[str, Any]:
    """What `ssrseg plan` says."""
    from ssrseg.planning import plan

    planned = plan(settings_of(name), probe=False)
    return {"estimated": planned.peak, "parts": planned.memory}


def compared(name: str, before: dict[str, Any]) -> dict[str, Any]:
    """One row of the results; what `before` has measured is kept."""
    row = {**before, **run("estimate", name)}
    for key, environment in {"measured": {}, "measured_without_heap": NO_HEAP}.items():
        if key not in before:
            figures = run("measure", name, environment)
            row |= {key: figures["measured"], "device": figures["device"]}
    return row


def run(kind: str, name: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """`measure` or `estimate` in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, "--only", name]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def write_results(found: dict[str, Any]) -> None:
    """All figures as JSON, and the table as Markdown."""
    (RESULTS / "plan-memory.json").write_text(json.dumps(found, indent=1) + "\n")
    page = HEADER
    for name, row in found.items():
        tensors = row["estimated"] - row["parts"].get("kept by malloc", 0)
        sizes = (row["estimated"], row["measured"], tensors, row["measured_without_heap"])
        planned, measured, bare, without_heap = (f"{size / 2**30:.2f}" for size in sizes)
        page += f"| {name} | {row['device']} | {planned} | {measured} | {row['estimated'] / row['measured']:.2f} "
        page += f"| {bare} | {without_heap} | {tensors / row['measured_without_heap']:.2f} |\n"
    (RESULTS / "plan-memory.md").write_text(page)


HEADER = """# Memory: planned and measured

What `ssrseg plan` estimates, from one step on tensors without data, beside the highest memory of two real steps.
Made by `benchmarks/speed/plan_memory.py`; noise, random weights, fp32. The small MIC + SSR settings have one source and
one target image per step, the others two.

On the CPU the C library's heap keeps memory that tensors have left, more or less of it as sizes happen to fall. `plan`
adds half of what a step makes and frees, chosen after looking at these very figures and at those of `students.md`: the
first ratio is in part a fit. The second ratio
has no fitted number: tensors and the scratch of convolutions alone (counted since the first setting was found too low
without it), against a process that gives freed memory back (`MALLOC_MMAP_THRESHOLD_=65536`, and no `keep_memory`).
Settings were run once; the first ratio moves by up to a tenth from run to run.

| setting | device | planned, GiB | measured, GiB | ratio | planned without heap | measured without heap | ratio |
|---|---|---:|---:|---:|---:|---:|---:|
"""


def main() -> None:
    """Measure what is asked, and write the table; exit code 1 where an estimate is off by more than a fifth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*SETTINGS, *LARGE])
    parser.add_argument("--one", choices=["measure", "estimate"], help="print one figure as JSON, in this process")
    parser.add_argument("--keep-measured", action="store_true", help="estimate again, and measure only what is missing")
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"measure": measure, "estimate": estimate}[options.one](options.only)))
        return
    path = RESULTS / "plan-memory.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in [options.only] if options.only else SETTINGS:
        found[name] = compared(name, found.get(name, {}) if options.keep_measured else {})
        print(name, {key: value for key, value in found[name].items() if key != "parts"}, flush=True)
    write_results(found)
    off = [name for name, row in found.items() if abs(row["estimated"] / row["measured"] - 1) > TOLERANCE]
    sys.exit(f"off by more than {TOLERANCE:.0%}: {', '.join(off)}" if off else 0)


if __name__ == "__main__":
    main()
