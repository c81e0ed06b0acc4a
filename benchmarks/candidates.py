"""Candidates for an improvement on SSR that are no settings of the package: terms of one's own, on the embedded set.

    python benchmarks/candidates.py --seeds 0 1 2 3 4
    python benchmarks/candidates.py --seeds 5 6 7 8 9 --rows daformer daformer-ssr CANDIDATE
    python benchmarks/candidates.py --page

Starts, steps and data are those of `embedded.py`; DAFormer with and without SSR are trained beside the candidates, so
that all rows of a seed come from one machine. Restartable. `--page` writes `benchmarks/results/candidates.*`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import embedded
import torch
import torch.nn.functional as F
from rich.console import Console
from rows import finished, start_of
from torch import Tensor, nn

from ssrseg.adapt import Regularizer, Term, View, segmentation_loss
from ssrseg.config import FoundationConfig
from ssrseg.demo.dataset import write_dataset
from ssrseg.foundation import Frozen, build_encoder
from ssrseg.models.recompute import still_statistics
from ssrseg.models.segmenter import Segmenter, load_segmenter
from ssrseg.pipeline import finish
from ssrseg.reporting.noise import difference, spread
from ssrseg.training.folder import RunFolder

RESULTS = Path(__file__).parent / "results"
VIEWS = ("source", "mixed")
CROP = (96, 128)


class Decaying(Regularizer):
    """SSR whose weight falls from 1 to 0 in equal steps: it may help early and be in the way late."""

    calls: Tensor

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """The regularizer's loss, by what is left of its weight."""
        left = 1 - self.calls / (len(VIEWS) * embedded.STEPS)
        self.calls += 1
        return left * super().forward(view, features, student)


class Confident(Regularizer):
    """SSR that asks less where the shadow branch doubts the label: labels of the teacher are wrong there more often."""

    def looking(self, head: nn.Module) -> AbstractContextManager[None]:
        """What the head does while the shadow branch is asked: nothing that stays."""
        return still_statistics(head)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """Segmentation loss of the regularised features, weighted by the label's probability without them."""
        size = view.labels.shape[-2:]
        with torch.no_grad(), self.looking(student.head):
            probabilities = student.decode(features, size).softmax(dim=1)
            sure = probabilities.gather(1, view.labels.clamp(max=probabilities.shape[1] - 1).unsqueeze(1)).squeeze(1)
        weights = sure if view.weights is None else sure * view.weights
        logits = student.decode(self.enhance(features, self.encoder(view.images)), size)
        return segmentation_loss(logits, view.labels, weights)


class ConfidentMoving(Confident):
    """The same, but the statistics of the head's norms count the shadow branch once more: found by mistake."""

    def looking(self, head: nn.Module) -> AbstractContextManager[None]:
        """The head is asked as in training."""
        return nullcontext()


class Counted(Regularizer):
    """SSR as it is, but the statistics of the head's norms count the shadow branch once more."""

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """The regularizer's loss."""
        with torch.no_grad():
            student.decode(features, view.labels.shape[-2:])
        return super().forward(view, features, student)


class Similar(Term):
    """One minus the cosine of the foundation encoder's features and what a linear layer makes of the deepest ones."""

    def __init__(self, encoder: Frozen, channels: int) -> None:
        super().__init__(VIEWS, weight=0.5)
        self.encoder, self.project = encoder, nn.Conv2d(channels, encoder.channels, 1)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """Mean over all places of the foundation map."""
        wanted = self.encoder(view.images)
        given = F.interpolate(self.project(features[-1]), wanted.shape[-2:], mode="bilinear", align_corners=False)
        return (1 - F.cosine_similarity(given, wanted)).mean()


def regularizer(of: type[Regularizer], encoder: Frozen, channels: Sequence[int]) -> dict[str, Term]:
    """A regularizer in the place of SSR's."""
    return {"regularizer": of(encoder, encoder.channels, channels, views=VIEWS)}


ROWS: dict[str, tuple[str, Callable[[Frozen, Sequence[int]], dict[str, Term]]]] = {
    "daformer": ("daformer", lambda encoder, channels: {}),
    "daformer-ssr": ("daformer-ssr", lambda encoder, channels: {}),
    "decaying": ("daformer", lambda encoder, channels: regularizer(Decaying, encoder, channels)),
    "confident": ("daformer", lambda encoder, channels: regularizer(Confident, encoder, channels)),
    "confident-moving": ("daformer", lambda encoder, channels: regularizer(ConfidentMoving, encoder, channels)),
    "counted": ("daformer", lambda encoder, channels: regularizer(Counted, encoder, channels)),
    "similar": ("daformer-ssr", lambda encoder, channels: {"similar": Similar(encoder, channels[-1])}),
    "similar-alone": ("daformer", lambda encoder, channels: {"similar": Similar(encoder, channels[-1])}),
}
"""Name -> the row of `embedded.py` that it changes, and the terms that it adds."""


def run(rows: list[str], seeds: list[int], out: Path) -> None:
    """Train what is missing."""
    torch.set_num_threads(1)
    write_dataset(out / "data", **embedded.SIZES, oracle=True)
    encoder = build_encoder(FoundationConfig(encoder="demo", input_size="native"), CROP)
    for seed in seeds:
        finish(embedded.row("source", seed, out), out / f"source-{seed}", console=Console(force_terminal=False))
        channels = load_segmenter(start_of(seed, out)).backbone.channels
        for name, (base, terms) in ((name, ROWS[name]) for name in rows):
            folder = out / f"{name}-{seed}"
            print(f"== {folder.name}", flush=True)
            torch.manual_seed(seed)  # the weights of the terms
            finish(embedded.row(base, seed, out), folder, extra_terms=terms(encoder, channels))


def write_results(out: Path) -> None:
    """Every seed's mIoU, and each row against SSR and against DAFormer."""
    scores: dict[str, dict[int, float]] = {}
    for folder in finished(out, ROWS):
        name, _, seed = folder.name.rpartition("-")
        last = json.loads(RunFolder(folder).scores.read_text())["last"]["student"]
        scores.setdefault(name, {})[int(seed)] = 100 * last["miou"]
    (RESULTS / "candidates.json").write_text(json.dumps(scores, indent=1) + "\n")
    (RESULTS / "candidates.md").write_text(page(scores))


def page(scores: dict[str, dict[int, float]]) -> str:
    """The Markdown of the results."""
    rows = []
    for name, by_seed in scores.items():
        found = spread([*by_seed.values()])
        assert found is not None
        against = [_against(scores, name, base) for base in ("daformer", "daformer-ssr")]
        each = ", ".join(f"{value:.1f}" for value in by_seed.values())
        rows.append(f"| {name} | {found.n} | {found.mean:.1f} ± {found.sd or 0:.1f} | {' | '.join(against)} | {each} |")
    return HEADER + "\n".join(rows) + "\n"


def _against(scores: dict[str, dict[int, float]], name: str, base: str) -> str:
    if name == base:
        return "-"
    gap = difference([*scores[base].items()], [*scores[name].items()])
    low, high = gap.interval or (float("nan"), float("nan"))
    return f"{gap.mean:+.2f} [{low:+.2f}, {high:+.2f}], {gap.verdict}"


HEADER = """# Candidates for an improvement on SSR

Made by `benchmarks/candidates.py`, on the embedded set, from `embedded.py`'s starts and for as many steps. mIoU of the
student at the last step, in per cent; differences are paired by seed, with a 95% interval from Student's t, not
corrected for their number.

- `decaying`: SSR whose weight falls from 1 to 0 over the run.
- `confident`: SSR's loss weighted, pixel by pixel, by the probability that the shadow branch gives the label.
- `similar`: SSR, and beside it one minus the cosine of the encoder's features and a linear map of the deepest ones, on
  source and mixed views, at half weight. `similar-alone`: the same without SSR.

| row | n | mIoU | against DAFormer | against DAFormer + SSR | by seed |
|---|---:|---:|---|---|---|
"""


def main() -> None:
    """Run what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/candidates"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--page", action="store_true", help="write the results and train nothing")
    options = parser.parse_args()
    if options.page:
        write_results(options.out)
    else:
        run(options.rows, options.seeds, options.out)


if __name__ == "__main__":
    main()
