"""Candidates for an improvement on SSR that are no settings of the package: terms of one's own, on the embedded set.

    python benchmarks/accuracy/candidates.py --seeds 0 1 2 3 4
    python benchmarks/accuracy/candidates.py --seeds 5 6 7 8 9 --rows daformer daformer-ssr CANDIDATE
    python benchmarks/accuracy/candidates.py --page

Starts, steps and data are those of `embedded.py`; DAFormer with and without SSR are trained beside the candidates, so
that all rows of a seed come from one machine. Restartable. `--page` writes `benchmarks/results/candidates.*`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import embedded
import torch
import torch.nn.functional as F
from drawn import write_dataset
from rich.console import Console
from rows import finished, start_of
from torch import Tensor, nn

from ssrseg.adapt import Regularizer, Term, View, segmentation_loss
from ssrseg.adapt.foundation import Frozen, build_encoder
from ssrseg.adapt.norms import still_statistics
from ssrseg.config.method import FoundationConfig
from ssrseg.models.segmenter import Segmenter, load_segmenter
from ssrseg.reporting.statistics import difference, spread
from ssrseg.runs.folder import RunFolder
from ssrseg.training import Extensions, finish

RESULTS = Path(__file__).parents[1] / "results"
VIEWS = ("source", "mixed")
CROP = (96, 128)
FOUND_ON = range(5)
"""Seeds on which candidates are compared; others are for confirming one."""

Scores = dict[str, dict[str, float]]
"""mIoU in per cent by row and seed."""


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
            sure = probability(student.decode(features, size), view.labels)
        weights = sure if view.trust is None else sure * view.trust
        logits = student.decode(self.enhance(features, self.encoder(view.images)), size)
        return segmentation_loss(logits, view.labels, weights)


def probability(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, H, W) of the labels; anything where there is no label."""
    probabilities = logits.softmax(dim=1)
    return probabilities.gather(1, labels.clamp(max=logits.shape[1] - 1).unsqueeze(1)).squeeze(1)


class ConfidentMoving(Confident):
    """The same, but the statistics of the head's norms count the shadow branch once more: found by mistake."""

    def looking(self, head: nn.Module) -> AbstractContextManager[None]:
        """The head is asked as in training."""
        return nullcontext()


class ConfidentAlone(Confident):
    """The same weights on a second decoding of the features as they are: what is owed to the weights alone."""

    def enhance(self, features: Sequence[Tensor], foundation: Tensor) -> list[Tensor]:
        """Nothing is asked of the encoder."""
        return list(features)


class ConfidentOwn(Regularizer):
    """Weighted by the probability that the regularised branch itself gives the label, which costs no decoding."""

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """Segmentation loss of the regularised features, weighted by the label's probability with them."""
        logits = student.decode(self.enhance(features, self.encoder(view.images)), view.labels.shape[-2:])
        sure = probability(logits.detach(), view.labels)
        return segmentation_loss(logits, view.labels, sure if view.trust is None else sure * view.trust)


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
    "confident-alone": ("daformer", lambda encoder, channels: regularizer(ConfidentAlone, encoder, channels)),
    "confident-own": ("daformer", lambda encoder, channels: regularizer(ConfidentOwn, encoder, channels)),
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
            finish(embedded.row(base, seed, out), folder, extensions=Extensions(terms=terms(encoder, channels)))


def write_results(out: Path) -> None:
    """Every seed's mIoU, and each row against DAFormer without and with SSR."""
    scores: Scores = {}
    for folder in finished(out, ROWS):
        name, _, seed = folder.name.rpartition("-")
        last = json.loads(RunFolder(folder).scores.read_text())["last"]["student"]
        scores.setdefault(name, {})[seed] = 100 * last["miou"]
    (RESULTS / "candidates.json").write_text(json.dumps(scores, indent=1) + "\n")
    (RESULTS / "candidates.md").write_text(page(scores))


def page(scores: Scores) -> str:
    """The Markdown of the results."""
    fresh = {seed for by_seed in scores.values() for seed in by_seed if int(seed) not in FOUND_ON}
    parts = [HEADER, "## Seeds 0 to 4\n", _table(scores, {str(seed) for seed in FOUND_ON})]
    parts += ["\n## Fresh seeds, which played no part in choosing the row\n", _table(scores, fresh)] if fresh else []
    return "\n".join(parts) + "\n"


def _table(scores: Scores, seeds: set[str]) -> str:
    lines = ["| row | n | mIoU | against DAFormer | against DAFormer + SSR | by seed |", "|---|---:|---:|---|---|---|"]
    chosen = {name: {seed: value for seed, value in found.items() if seed in seeds} for name, found in scores.items()}
    for name, by_seed in chosen.items():
        found = spread([*by_seed.values()])
        if found is None:
            continue
        against = [_against(chosen[base], by_seed) if base != name else "-" for base in ("daformer", "daformer-ssr")]
        each = ", ".join(f"{seed}: {value:.1f}" for seed, value in by_seed.items())
        lines.append(
            f"| {name} | {found.n} | {found.mean:.1f} ± {found.sd or 0:.1f} | {' | '.join(against)} | {each} |"
        )
    return "\n".join(lines)


def _against(base: Mapping[str, float], other: Mapping[str, float]) -> str:
    gap = difference(*([(int(seed), value) for seed, value in found.items()] for found in (base, other)))
    low, high = gap.interval or (float("nan"), float("nan"))
    return f"{gap.mean:+.1f} [{low:+.1f}, {high:+.1f}], {gap.verdict}"


HEADER = """# Candidates for an improvement on SSR

Made by `benchmarks/accuracy/candidates.py`, on the embedded set, from starts and for as many steps as in `embedded.py`.
mIoU of the student at the last step, in per cent; differences are paired by seed, with a 95% interval from Student's t,
not corrected for their number. All rows of a seed come from one machine, another than those of
[embedded.md](embedded.md): the same seeds have other scores there.

- `decaying`: SSR whose weight falls from 1 to 0 over the run.
- `similar`: SSR, and beside it one minus the cosine of the encoder's features and a linear map of the deepest ones, on
  source and mixed views, at half weight. `similar-alone`: the same without SSR.
- `confident`: SSR's loss weighted, pixel by pixel, by the probability that the shadow branch gives the label.
  `confident-own`: by the probability that the regularised branch itself gives it, which costs no further decoding.
- Controls of these: `confident-alone` has the weights of `confident` on a second decoding of the features as they are,
  without the encoder. `counted` is SSR as it is, but the running statistics of the head's norms count the shadow branch
  once more; `confident-moving` is `confident` with that, as it was first written by mistake.

What to read from it: `confident` was ahead of SSR in each of the seeds it was found on, by 0.9 points on average, and
keeps 0.3 [-0.6, +1.1] of it on fresh ones: **within noise, so it is no improvement and no setting of the package**. Of
the rest none is more than 0.5 points above SSR, all within noise. The same weights without the encoder cost 0.7 points.
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
