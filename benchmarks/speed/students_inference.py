"""Inference of yesterday's student beside today's: arithmetic and CPU seconds of a picture, as `predict` runs them.

The networks take turns; figures are medians over the rounds of the process's own CPU time, on one thread, so that other
work on the machine counts for little. Random weights.

    python benchmarks/speed/students_inference.py [--rounds 5] [--side 512]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ssrseg.inference.engines import open_engine
from ssrseg.models import build_segmenter

RESULTS = Path(__file__).parents[1] / "results" / "students-inference.json"
STUDENTS: dict[str, tuple[str, str, int | None]] = {
    "MiT-B5, DAFormer head": ("mit_b5", "daformer", None),
    "DINOv3-S/16, SegFormer head of 256": ("dinov3-s", "segformer", 256),
    "DINOv2-S/14, SegFormer head of 256": ("dinov2-s", "segformer", 256),
}


def gigaflops(name: str, side: int) -> float:
    """Multiplications and additions, counted singly, of one picture."""
    backbone, head, channels = STUDENTS[name]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_segmenter(backbone, head, 19, head_channels=channels).eval()(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops()) / 1e9


@torch.no_grad()
def main() -> None:
    """Count, measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image, networks = torch.rand(1, 3, options.side, options.side), {}
    for name, (backbone, head, channels) in STUDENTS.items():
        networks[name] = open_engine(build_segmenter(backbone, head, 19, head_channels=channels).eval(), "torch")
    times: dict[str, list[float]] = {name: [] for name in STUDENTS}
    for network in networks.values():
        network(image)
    for _ in range(options.rounds):
        for name, network in networks.items():
            start = time.process_time()
            network(image)
            times[name].append(time.process_time() - start)
    rows = {
        name: {"gigaflops": round(gigaflops(name, options.side), 1), "seconds": statistics.median(spent)}
        for name, spent in times.items()
    }
    found = {"side": options.side, "rounds": options.rounds, "rows": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(found))
    print(page(found))


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    text = f"""# Inference of students

Made by `benchmarks/speed/students_inference.py`: one picture of {found["side"]}x{found["side"]}, 19 classes, fp32,
random weights, the engine `torch` on one thread of a CPU that other programs shared. CPU seconds of the process,
medians of {found["rounds"]} rounds in which the networks took turns.

| student | GFLOP | CPU seconds |
|---|---:|---:|
"""
    rows = found["rows"].items()
    return text + "".join(f"| {name} | {row['gigaflops']:.0f} | {row['seconds']:.2f} |\n" for name, row in rows)


if __name__ == "__main__":
    main()
