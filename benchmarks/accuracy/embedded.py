"""The methods on the embedded set, each with and without SSR: ablation, open questions, controls, oracle.

    python benchmarks/accuracy/embedded.py --seeds 0 1 2 3 4
    python benchmarks/accuracy/embedded.py --seeds 5 6 7 8 9 --rows daformer daformer-ssr CANDIDATE
    python benchmarks/accuracy/embedded.py --seeds 10 11 12 13 14 --rows daformer daformer-ssr distillation affinity ...
    python benchmarks/accuracy/embedded.py --restore --rows YOUR-ROW
    python benchmarks/accuracy/embedded.py --page

Of each seed, one student is trained on the game's labels alone (`source-S`), and every row goes on from it for as many
steps. The oracle alone starts from nothing, with the camera's labels, and is as long as both together. Restartable:
finished runs are kept, an interrupted one is resumed. Several processes share the work when each has other seeds.
`--restore` takes the committed scores for runs that are not in the folder: a row of your own needs no other training.
`--page` writes `benchmarks/results/embedded.*` from what is finished.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from drawn import write_dataset
from embedded_page import RESULTS, write_results
from rows import restore, run_rows, start_of

from ssrseg.config import Settings, merge, resolve
from ssrseg.demo.demo import METHODS, continued_settings, demo_settings

SOURCE_STEPS, STEPS = 1200, 240
SIZES = {"source": 400, "target": 400, "val": 100}

Tree = dict[str, Any]
DAFORMER: Tree = METHODS["daformer"]
DACS: Tree = {"method": {name: DAFORMER["method"][name] for name in ("teacher", "mixed")}}
MIC: Tree = merge(DAFORMER, {"method": {"masked": {"block": 16}}})
"""Blocks that suit crops of 96x128."""


def ssr(base: Tree, *, foundation: Tree | None = None, **options: Any) -> Tree:
    """A method with SSR; the demo's encoder sees the crops at their own size."""
    encoder = {"encoder": "demo", "input_size": "native", **(foundation or {})}
    return merge(base, {"method": {"regularizer": {"foundation": encoder, **options}}})


def added(part: str, base: Tree = DAFORMER, **foundation: Any) -> Tree:
    """A method with another part that has the demo's encoder: `distillation`, `affinity` or `regions`."""
    group = {"foundation": {"encoder": "demo", "input_size": "native", **foundation}}
    return merge(base, {"method": {"teacher": {part: group}} if part == "regions" else {part: group}})


PARTS = ("distillation", "affinity", "regions")
SHUFFLED = "demo, locations shuffled"
"""A control of these, which unlike SSR look at features place by place."""

ROWS: dict[str, Tree] = {
    "source-only": METHODS["source-only"],
    "dacs": DACS,
    "dacs-ssr": ssr(DACS),
    "daformer": DAFORMER,
    "daformer-ssr": ssr(DAFORMER),
    "mic": MIC,
    "mic-ssr": ssr(MIC),
    "oracle": {},
    # Table I: the stages, deepest first
    "stages-3": ssr(DAFORMER, stages=[3]),
    "stages-23": ssr(DAFORMER, stages=[2, 3]),
    "stages-123": ssr(DAFORMER, stages=[1, 2, 3]),
    # the questions that the paper leaves open
    "shadow-statistics": ssr(DAFORMER, bn_stats="shadow"),
    "masked-view": ssr(MIC, views=["source", "mixed", "masked"]),
    "upscaled": ssr(DAFORMER, foundation={"input_size": 192}),
    # controls: what of a gain is owed to what the encoder knows
    "random-encoder": ssr(DAFORMER, foundation={"weights": "none"}),
    "shuffled-channels": ssr(DAFORMER, foundation={"encoder": "demo, channels shuffled"}),
    "other-images": ssr(DAFORMER, foundation={"encoder": "demo, of another image"}),
    "mic-random-encoder": ssr(MIC, foundation={"weights": "none"}),
    "mic-other-images": ssr(MIC, foundation={"encoder": "demo, of another image"}),
    # SSR asks source and mixed twice, so the masked view counts for less beside them: without SSR, by its weight
    "mic-half-masked": merge(MIC, {"method": {"masked": {"weight": 0.5}}}),
    # other uses of the encoder, and their controls
    **{part: added(part) for part in PARTS},
    **{f"{part}-random-encoder": added(part, weights="none") for part in PARTS},
    **{f"{part}-shuffled": added(part, encoder=SHUFFLED) for part in PARTS},
}


def row(name: str, seed: int, out: Path) -> Settings:
    """One row of one seed, or the `source` of the seed's rows."""
    if name in ("source", "oracle"):
        return _from_nothing(name, seed, out)
    settings = continued_settings(out / "data", ROWS[name], start_of(seed, out), STEPS, seed)
    return resolve(merge(settings.model_dump(mode="json"), {"train": _watched(STEPS)}))


def _from_nothing(name: str, seed: int, out: Path) -> Settings:
    oracle = name == "oracle"
    steps = SOURCE_STEPS + STEPS if oracle else SOURCE_STEPS
    tree: Tree = {"target": None, "train": _watched(steps)}
    tree |= {"source": {"root": str(out / "data" / "camera" / "train")}} if oracle else {}
    settings = demo_settings(out / "data", ROWS["source-only"], steps, seed)
    return resolve(merge(settings.model_dump(mode="json"), tree))


def _watched(steps: int) -> Tree:
    """Scores and pictures of the last step alone."""
    return {"evaluate_every": steps, "checkpoint_every": steps, "log_every": steps // 8, "pictures_every": steps}


def main() -> None:
    """Run what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--page", action="store_true", help="write the results and train nothing")
    parser.add_argument("--restore", action="store_true", help="committed scores stand for runs that are not here")
    options = parser.parse_args()

    def make(name: str, seed: int) -> Settings:
        return row(name, seed, options.out)

    write_dataset(options.out / "data", **SIZES, oracle=True)
    if options.restore:
        restore(RESULTS / "embedded.json", make, options.out)
    if options.page:
        write_results(options.out, set(options.seeds))
        return
    run_rows(make, options.rows, options.seeds, options.out)


if __name__ == "__main__":
    main()
