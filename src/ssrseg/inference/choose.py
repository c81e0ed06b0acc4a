"""Which of several models is best on images without labels, and with which BatchNorm statistics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from ssrseg.config import Data, DataConfig, InferenceConfig
from ssrseg.data import find_bounded, read_image
from ssrseg.data.datasets import bounded
from ssrseg.errors import UserError
from ssrseg.inference.engines import pick_device
from ssrseg.inference.evaluate import evaluating
from ssrseg.inference.metrics import Scores, confusion_matrix
from ssrseg.inference.recalibrate import BATCH, batches_of_one_size, blend_statistics
from ssrseg.inference.sliding_window import Infer, build_inference
from ssrseg.models.classes import check_classes
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.models.weights import load
from ssrseg.runs.atomic import writing

STATISTICS = {"as-trained": 1.0, "blend": 0.5, "target": 0.0}
"""What a candidate may be deployed with: the share of its own BatchNorm statistics that it keeps, by name."""
SCALE = 1.25
START = "start"
MARGIN = 0.05
"""By which the start must be more consistent than all others: adaptation seldom leaves nothing, and on stained tissue a
start that was 0.03 more consistent was 16 points worse (benchmarks/results/real.md)."""
CHANCE = 0.02
"""By which all else must be more consistent than the average of all with half the target's statistics: less is chance,
and more was there where one of the models had failed (stained tissue again)."""


@dataclass(frozen=True)
class Candidate:
    """A model, with the statistics of `STATISTICS` that it would be deployed with."""

    name: str
    statistics: str
    consistency: tuple[float | None, ...]
    """Per class; `None` for one that it does not predict."""


@dataclass(frozen=True)
class Choice:
    """What `choose` found: the candidates, best first, of which the first was written."""

    path: Path
    candidates: tuple[Candidate, ...]
    scores: tuple[float, ...]
    """In [0, 1]: mean consistency over all classes that any candidate predicts, 0 for what one does not predict."""
    images: int


def choose(
    models: Mapping[str, Path | str | Segmenter],
    target: Data | Path | str,
    out: Path,
    *,
    start: Path | str | Segmenter | None = None,
    images: int = 32,
    device: str = "auto",
    inference: InferenceConfig | None = None,
) -> Choice:
    """Write the model, and with it the BatchNorm statistics, that is most consistent on unlabelled images.

    Candidates are all models as they are, and with the statistics of the target or half of them (`recalibrate`); one
    without BatchNorm stands once. Of equals the earlier wins.

    Where the source-only `start` of the models is known, the candidates are it and its `average` with all of them and
    with each, but not they themselves: adaptation trains for consistency, so that it would choose them where they harm.
    The average of all with half the target's statistics is taken unless another is clearly more consistent: with one of
    them, or with other statistics, by `CHANCE` each, the start by `MARGIN`.

    Args:
        models: where they lie, as in `ssrseg.Predictor`, by the name that each is to have; all have the same classes.
        target: unlabelled images of the domain that the model is to work in, or their folder; they are resized as the
            first model's description says, unless the data do.
        out: the new model file.
        start: the model that their training went on from.
        images: how many are looked at, evenly spread over all.
        device: `auto` or a device of torch's.
        inference: how an image becomes logits: whole when absent.

    Raises:
        UserError: no model, models of different classes or networks, no image, or a file cannot be read or written.
    """
    if not models:
        raise UserError("There is nothing to choose from: give one model or more.")
    trained = {name: load(model) for name, model in models.items()}
    margins: dict[str, float] = {}
    if start is not None:
        source, adapted = load(start), trained
        named = " and ".join([", ".join([START, *list(adapted)[:-1]]), list(adapted)[-1]])
        several = adapted if len(adapted) > 1 else {}
        each_alone = {f"average of {START} and {name}": average(source, model) for name, model in several.items()}
        margins = {START: MARGIN} | dict.fromkeys(each_alone, CHANCE)
        trained = {START: source, f"average of {named}": average(source, *adapted.values())} | each_alone
    first, *others = trained.values()
    for other in others:
        if first.description is not None:
            check_classes(other, first.description.classes)
    data = DataConfig(root=Path(target)) if isinstance(target, Path | str) else target
    known = first.description.resize if first.description else None
    looked_at = find_bounded(data, at_most=images)
    pixels = [bounded(read_image(path, first.reading), own or known) for path, own in looked_at]
    infer, on = build_inference(inference or InferenceConfig()), pick_device(device)
    found: list[tuple[Candidate, Segmenter]] = []
    for name, model in trained.items():
        for statistics, keep in STATISTICS.items():
            network = copy.deepcopy(model).to(on)
            if keep < 1 and not blend_statistics(network, batches_of_one_size(pixels, BATCH), keep):
                break  # no BatchNorm: the others are the same model
            found.append((Candidate(name, statistics, consistency(network, pixels, infer)), network.cpu()))
    predicted = [any(values) for values in zip(*(each.consistency for each, _ in found), strict=True)]
    scores = [sum(value or 0.0 for value in each.consistency) / max(1, sum(predicted)) for each, _ in found]
    worth = [
        score - margins.get(each.name, 0.0) - CHANCE * (start is not None and each.statistics != "blend")
        for score, (each, _) in zip(scores, found, strict=True)
    ]
    order = sorted(range(len(found)), key=lambda number: -worth[number])  # a stable sort
    with writing(out):
        save_segmenter(found[order[0]][1], out)
    return Choice(Path(out), tuple(found[n][0] for n in order), tuple(scores[n] for n in order), len(pixels))


def average(first: Segmenter, *others: Segmenter) -> Segmenter:
    """Return a segmenter between several: the mean of their weights and running statistics.

    Between a model and what fine-tunings made of it, it is often better than any on other domains, and seldom much
    worse than the best: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, section 3, for two;
    Model soups, ICML 2022, section 2 (uniform soup), for more.

    Raises:
        UserError: they are different networks.
    """
    middle, states = copy.deepcopy(others[-1]), [model.state_dict() for model in (first, *others)]
    shapes = [[(name, each.shape) for name, each in state.items()] for state in states]
    for other, found in zip(others, shapes[1:], strict=True):
        if found != shapes[0]:
            described = [model.description for model in (first, other)]
            networks = " and ".join(
                f"{each.backbone}, {each.head}" if each else "one not described" for each in described
            )
            raise UserError(
                f"Weights of different networks have no average: {networks}. "
                "Give as start the model that the training went on from, or none."
            )
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0)
        for name, each in states[-1].items()
        if each.is_floating_point()
    }
    middle.load_state_dict(states[-1] | mean)
    return middle


def consistency(network: Segmenter, images: Sequence[Tensor], infer: Infer) -> tuple[float | None, ...]:
    """Measure per class, in [0, 1], how far predictions follow their image when it is mirrored, and when enlarged.

    It is the mean over both of the IoU between the pixels of a class in an image and in its copy, brought back to the
    image's place. A model that is at home in a domain sees the same in both; one that guesses does not. `None` for a
    class that is predicted in neither.

    Args:
        network: on its device.
        images: bytes (C, H, W), on the CPU.
        infer: how an image becomes logits.
    """
    classes = network.num_classes
    counts = torch.zeros(2, classes, classes, dtype=torch.int64, device=network.mean.device)
    with evaluating(network):
        for image in images:
            plain = image[None].to(counts.device).float() / 255
            size = (plain.shape[-2], plain.shape[-1])
            ids = infer(network, plain, None).argmax(dim=1)
            mirrored = infer(network, plain.flip(-1), None).argmax(dim=1).flip(-1)
            larger = F.interpolate(plain, scale_factor=SCALE, mode="bilinear", align_corners=False)
            for number, copied in enumerate((mirrored, infer(network, larger, size).argmax(dim=1))):
                counts[number] += confusion_matrix(ids, copied, classes)
    names = tuple(map(str, range(classes)))
    both = [Scores(names, each).iou for each in counts.cpu()]
    return tuple(None if x is None and y is None else ((x or 0.0) + (y or 0.0)) / 2 for x, y in zip(*both, strict=True))


def choice_table(choice: Choice) -> Table:
    """Tabulate the candidates, best first, for a terminal."""
    table = Table("chosen without labels", "statistics", box=None)
    table.add_column(f"consistency on {choice.images} images", justify="right")
    for candidate, score in zip(choice.candidates, choice.scores, strict=True):
        table.add_row(candidate.name, candidate.statistics, f"{score:.3f}")
    return table
