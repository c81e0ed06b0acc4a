"""Write docs/parity.md: every parity fixture, its tolerance, and the worst difference that is measured now.

    python benchmarks/parity_table.py [--fixtures DIR] [--out docs/parity.md]

The checks are those of tests/test_parity.py. About five minutes on two cores.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from parity import KINDS, Case, Unsupported, measure, read_cases  # noqa: E402

HEADER = """# Parity with the original implementations

The same weights and the same batch go in; are the numbers that come out those of the published code? The fixtures were
made by running the original DAFormer, MIC and SSR code; nothing of that code is needed to check them.

`pytest tests/test_parity.py --fixtures DIR` asserts every row, on this set of fixtures or on another one of the same
format. This page is made by `python benchmarks/parity_table.py`{where}.

- *Allowed* is the fixture's own tolerance, relative + absolute, element by element.
- *Ours* is the bound that the test demands beyond it: 1e-5 for functions, 1e-4 for whole networks and training steps,
  0 for what is exact.
- *Worst* is the largest relative difference measured: |ours - stored|, relative to the largest value of its array.

Functions and networks run in float32, as users run them; training steps in float64, so that rounding does not drown a
real difference in three optimiser steps, and so do HRDA's heads and its teacher's forward pass: they have gradients or
batch statistics. Steps compare every loss, pixel accuracies, the trust of the mixed pixels, the
gradient norm of every parameter, and weights and BatchNorm statistics of student and teacher at the end. (Their 6e-8 is
the stored accuracies' float32.)

| piece | fixture | allowed | ours | worst |
|---|---|---|---|---|
"""

FOOTER = """
What is compared otherwise, or not at all, and why, is in [differences.md](differences.md).
"""


def row(case: Case) -> str:
    """One line of the table."""
    tolerance = case.record["tolerance"]
    allowed = f"{tolerance['rtol']:g} + {tolerance['atol']:g}"
    start = f"| {case.kind.replace('_', ' ')} | `{case.id}` | {allowed} |"
    if case.kind not in KINDS:
        return f"{start} | no check: a later stage |"
    kind = KINDS[case.kind]
    aim = "" if kind.aim is None else f"{kind.aim:g}"
    try:
        worst = measure(case)
    except Unsupported as reason:
        return f"{start} {aim} | not built: {reason} |"
    except AssertionError as failure:
        return f"{start} {aim} | **differs**: {str(failure).splitlines()[0]} |"
    return f"{start} {aim} | {'equal' if worst == 0 else f'{worst:.1e}'} |"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=ROOT.parent / "shared" / "reference" / "fixtures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "parity.md")
    options = parser.parse_args()
    torch.set_num_threads(1)  # two threads that share busy cores wait for each other
    rows = []
    for case in read_cases(options.fixtures):
        rows.append(row(case))
        print(rows[-1], flush=True)
    where = f" (torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()} CPU)"
    options.out.write_text(HEADER.format(where=where) + "\n".join(rows) + "\n" + FOOTER)


if __name__ == "__main__":
    main()
