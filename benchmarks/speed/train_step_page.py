"""The training step's figures as Markdown, and how its cost grows as one plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from ssrseg.reporting.charts import HEIGHT, WIDTH, Curve, chart

VARIANTS = ("reference", "before", "ours")
SSR_PARTS = ("foundation encoder", "cross-attention")
GIB = 2**30


def write_page(folder: Path, found: Mapping[str, Any]) -> None:
    """`train-step.md`, and `train-step.svg` where the growth was measured."""
    parts = [HEADER, _times(found), _shares(found), _parts(found), _memory(found)]
    if "growth" in found:
        (folder / "train-step.svg").write_text(_plot([*found["growth"], *_inference(folder)]))
        parts.append(GROWTH)
    (folder / "train-step.md").write_text("\n".join(part for part in parts if part))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _gflop(counted: Mapping[str, Any], which: str = "flops") -> float:
    return sum(map(sum, counted[which].values())) / 1e9


def plain_of(name: str) -> str:
    """The setting without SSR."""
    return f"{name.partition(' + SSR')[0]}, {name.partition(', ')[2]}"


def _times(found: Mapping[str, Any]) -> str:
    """Every measured setting and variant: seconds, floor, and times as fast as the references' way."""
    rows = []
    for name, variants in found.get("timed", {}).items():
        counted = _gflop(found["counted"][name])
        factors = {variant: _over_floor(steps, counted) for variant, steps in variants.items()}
        for variant in (one for one in VARIANTS if one in variants):
            steps = variants[variant]
            times = [step["seconds"] for step in steps]
            faster = f"{factors['reference'] / factors[variant]:.2f}" if "reference" in factors else "-"
            rate, floor = mean(step["rate"] for step in steps), mean(counted / step["rate"] for step in steps)
            plain = mean(rates["@"] for step in steps for rates in step["rates"])
            over = f"{factors[variant]:.2f} ({mean(times) * plain / counted:.2f})"
            figures = (f"{mean(times):.1f}", str(len(times)), f"{rate:.0f} ({plain:.0f})", f"{floor:.1f}", over)
            done = f"{_gflop(found['counted'][name], 'needed') / counted:.0%}" if variant == "ours" else "-"
            rows.append((name, variant, *figures, faster, done))
    columns = ("setting", "variant", "seconds", "steps", "GFLOP/s", "floor, s", "time / floor", "times as fast", "done")
    return f"## Time\n\n{_table(columns, rows)}" if rows else ""


def _over_floor(steps: Sequence[Mapping[str, Any]], counted: float) -> float:
    return mean(step["seconds"] * step["rate"] / counted for step in steps)


def _shares(found: Mapping[str, Any]) -> str:
    """SSR's share of our step: the frozen encoder and the attention, and all that the plain method does not do."""
    rows, timed, shares = [], found.get("timed", {}), found.get("shares", {})
    for name in dict.fromkeys([*timed, *shares]):
        pairs, steps, counted = shares.get(name, []), timed.get(name, {}).get("ours", []), found["counted"]
        if "+ SSR" not in name or not (pairs or steps):
            continue
        forward = spent = arithmetic = "-"
        if steps:
            needed = counted[name]["needed"]
            whole, without = _gflop(counted[name], "needed"), _gflop(counted[plain_of(name)], "needed")
            clocked = [sum(step["parts"].get(part, 0.0) for part in SSR_PARTS) / step["seconds"] for step in steps]
            forward = f"{mean(clocked):.0%}"
            spent = f"{(sum(needed['foundation encoder']) + needed['terms'][0]) / 1e9 / whole:.0%}"
            arithmetic = f"{1 - without / whole:.0%}"
        measured = f"{1 - median(alone / both for alone, both in pairs):.0%} ({len(pairs)})" if pairs else "-"
        rows.append((name, forward, spent, measured, arithmetic))
    columns = ("setting", "encoder and attention, forward", "of the arithmetic", "all of SSR", "of the arithmetic")
    return f"## SSR's share of the step\n\n{SHARES}\n{_table(columns, rows)}" if rows else ""


def _parts(found: Mapping[str, Any]) -> str:
    """Seconds by part, a table per setting; slower variants on a slower machine look slower here."""
    tables = []
    for name, variants in found.get("timed", {}).items():
        names = dict.fromkeys(part for steps in variants.values() for part in steps[0]["parts"])
        shown = [variant for variant in VARIANTS if variant in variants]
        cells = {
            variant: {part: mean(step["parts"].get(part, 0.0) for step in variants[variant]) for part in names}
            for variant in shown
        }
        order = sorted(names, key=lambda part: -cells[shown[-1]][part])
        rows = [(part, *(f"{cells[variant][part]:.2f}" for variant in shown)) for part in order]
        tables.append(f"{name}, seconds by part:\n\n{_table(('part', *shown), rows)}")
    return "## Where the time goes\n\n" + "\n".join(tables) if tables else ""


def _memory(found: Mapping[str, Any]) -> str:
    rows = []
    for name, counted in found["counted"].items():
        ours, theirs = sum(counted["memory"].values()), counted["reference_memory"]
        before = counted.get("before_memory")
        timed = found.get("timed", {}).get(name, {})
        resident = [f"{timed[v][0]['resident'] / GIB:.2f}" if v in timed else "-" for v in ("reference", "ours")]
        sizes = [f"{theirs / GIB:.2f}", f"{before / GIB:.2f}" if before else "-", f"{ours / GIB:.2f}"]
        rows.append((name, *sizes, f"{ours / theirs:.2f}", *resident))
    columns = ("setting", "reference", "before", "ours", "ours / reference", "resident: reference", "resident: ours")
    parts = dict.fromkeys(part for counted in found["counted"].values() for part in counted["memory"])
    by_part = [
        (name, *(f"{counted['memory'].get(part, 0) / GIB:.2f}" for part in parts))
        for name, counted in found["counted"].items()
    ]
    whole, shared = _table(columns, rows), _table(("setting", *parts), by_part)
    return f"## Peak memory\n\n{MEMORY}\n{whole}\nOurs, by part:\n\n{shared}"


def _inference(folder: Path) -> list[dict[str, Any]]:
    """Whole pictures of the inference benchmark, where it lies beside: seconds over megapixels."""
    path = folder / "inference-speed.json"
    times = json.loads(path.read_text()).get("area", {}).get("seconds", {}) if path.exists() else {}
    sides = {size: size.split("x") for size in times}
    areas = {size: int(height) * int(width) / 1e6 for size, (height, width) in sides.items()}
    return [{"axis": "area", "value": areas[size], "seconds": seconds} for size, seconds in times.items()]


def _plot(growth: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each axis, in one picture; steps as if the machine had kept its mean rate."""
    panels = []
    usual = mean(row["rate"] for row in growth if "rate" in row)
    shown = [axis for axis in AXES if any(row["axis"] == axis for row in growth)]
    for place, axis in enumerate(shown):
        rows = [row for row in growth if row["axis"] == axis]
        points = tuple((row["value"], row["seconds"] * row.get("rate", usual) / usual) for row in rows)
        svg = str(chart(AXES[axis], [Curve("a step", points)]))
        left = place * WIDTH
        panels.append(svg.replace("<svg ", f'<svg x="{left}" y="20" width="{WIDTH}" height="{HEIGHT}" ', 1))
        panels.append(f'<text x="{left + WIDTH / 2}" y="14" text-anchor="middle">{AXES[axis]}</text>')
    width = len(shown) * WIDTH
    size = f'viewBox="0 0 {width} {HEIGHT + 24}" width="{width}" height="{HEIGHT + 24}"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}{background}{"".join(panels)}</svg>\n'


AXES = {
    "crop": "seconds over the side of the crops (2 + 2 images)",
    "batch": "seconds over source and target images (crops of 128)",
    "stages": "seconds over regularised stages (crops of 256)",
    "area": "inference: seconds over megapixels, whole pictures",
}
STYLE = (
    "<style>text{font:11px sans-serif;fill:#333}.rule{stroke:#ddd}"
    ".curve polyline{fill:none;stroke:#1b6ca8;stroke-width:1.5}circle{fill:#1b6ca8}</style>"
)
HEADER = """# The training step

MiT-B5 with DAFormer's head, SAM ViT-B, two source and two target images of noise, random weights, fp32 on two cores.
Made by `benchmarks/speed/train_step.py`; speed-notes.md says what was done.

`reference` is a plain restatement of the references' way (`benchmarks/speed/reference_step.py`), with SAM at 1024
always, and one image in SAM at a time (the authors' four do not fit this machine; one is, if anything, faster).
`before` is the package at commit 7280a3d. The floor is the counted arithmetic of our step's layers, as they are
written, over the rate at which the machine multiplies matrices in the faster of two ways: by `@`, and as a
convolution. In brackets: the rate by `@` alone, and time over the floor that it
gives. *Done* is how much of the arithmetic ours really computes: some
convolutions need fewer multiplications, and linear layers of zeros are left out. The rate changes where others share
the machine, so it is measured before, after and some ten times within each step (not counted to the step's time), and
averaged. One to three steps before the counted ones are not counted: ours keeps its memory, which takes two or three
steps to settle. "Times as fast" compares time over floor.
"""
SHARES = """*Encoder and attention, forward* is what the clock says of these two parts. *All of SSR* is what the plain
method does not do: these, the second decoding, and the backward passes of both; measured against the plain method's
step, the two taking turns in one process (the median of so many pairs). Beside each stands its share of the
arithmetic that is done.
"""
MEMORY = """GiB. The first columns are live tensors when most is alive, from a step on tensors without data (what
kernels allocate inside is estimated, alike for all), with four images in the reference's SAM. The resident ones are the
process's highest less what it held before the networks were built; the reference's has one image in SAM.
"""
GROWTH = """## How cost grows

MIC + SSR at native size, the faster of two steps for each point, its seconds
scaled to the mean rate of the call; at the right, whole pictures with the engine `torch`
([inference-speed.md](inference-speed.md)). How many stages are regularised does not show: the attention is cheap, and
the encoder and the second decoding are there from the first stage on.

![Seconds per step over crop, batch and stages; seconds per picture over its area](train-step.svg)
"""
