"""Pictures per second of one core's time, with labels, of both domains of the embedded data set.

The domains take turns picture by picture in one process. Time is the processor's (of all threads), so that others on
the machine count little; through the caches that they share with us they do: hence the best round beside the median.

    python benchmarks/speed/render_speed.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from ssrseg.demo.dataset import STREETS

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from streets.dataset import CAMERA_DOMAIN, GAME_DOMAIN, Domain

RESULTS = Path(__file__).parents[1] / "results"
DOMAINS = {"game": GAME_DOMAIN, "camera": CAMERA_DOMAIN}


def timed(domains: dict[str, Domain], size: tuple[int, int], rounds: int, pictures: int) -> dict[str, list[float]]:
    """Milliseconds per picture in each round; every round draws other pictures."""
    spent: dict[str, list[float]] = {name: [0.0] * rounds for name in domains}
    for number in range(rounds * pictures):
        for name, domain in domains.items():
            began = time.process_time()
            domain.sample(size, np.random.default_rng(number))
            spent[name][number // pictures] += 1000 * (time.process_time() - began) / pictures
    return spent


def summary(spent: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Pictures per second: the median and the best round; `both`: as many of the one as of the other."""
    spent = {**spent, "both": [statistics.mean(one) for one in zip(*spent.values(), strict=True)]}
    return {
        name: {
            "cpu_ms": round(statistics.median(milliseconds), 2),
            "pictures_per_second_and_core": round(1000 / statistics.median(milliseconds)),
            "best_round": round(1000 / min(milliseconds)),
        }
        for name, milliseconds in spent.items()
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=60, help="of each domain in a round")
    words = parser.parse_args()
    cv2.setNumThreads(1)
    sizes = ((128, 256), (256, 512))
    for size in sizes:
        timed(DOMAINS, size, 1, 20)  # tables, textures and caches
    result = {
        "setting": f"one process, one thread; {words.pictures} pictures of each domain in a round",
        "machine": {
            "cpu": _cpu(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "rounds": words.rounds,
        "version": STREETS.version,
        "sizes": {
            f"{height}x{width}": summary(timed(DOMAINS, (height, width), words.rounds, words.pictures * 128 // height))
            for height, width in sizes
        },
    }
    (RESULTS / "render-speed.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "render-speed.md").write_text(page(result))
    print(page(result))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def page(result: dict) -> str:
    """The result as Markdown."""
    lines = [
        "# Drawing the embedded data set: pictures per second and core",
        "",
        f"{result['setting']} (fewer of the larger);",
        f"processor time, {result['rounds']} rounds, the domains in turns; labels included, without writing files;",
        f"pictures of version {result['version']}.",
        f"{', '.join(f'{name} {value}' for name, value in result['machine'].items())}.",
        "",
        "| size | domain | ms per picture, median round | pictures/s, median round | best round |",
        "|---|---|---|---|---|",
    ]
    for size, domains in result["sizes"].items():
        for name, one in domains.items():
            lines.append(
                f"| {size} | {name} | {one['cpu_ms']} | {one['pictures_per_second_and_core']} | {one['best_round']} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
