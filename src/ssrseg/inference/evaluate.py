"""Predictions against labels: a confusion matrix, and its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssrseg.config import ClassConfig, Data, DataConfig, InferenceConfig, Strict, datasets, domains, resolve_group
from ssrseg.config.data import Classes
from ssrseg.data import SPACES, LabelledImage, eval_samples, resolve_space
from ssrseg.data.checks.survey import refuse_bad_labels
from ssrseg.data.datasets import LabelledImages
from ssrseg.data.images import set_max_pixels
from ssrseg.data.label_spaces import IGNORE, LabelSpace
from ssrseg.errors import UserError
from ssrseg.inference.exported import Exported, open_model
from ssrseg.inference.image_scores import ImageScores
from ssrseg.inference.metrics import Scores, check_names, confusion_matrix
from ssrseg.inference.predict import prefetch
from ssrseg.inference.predictor import Predictor
from ssrseg.inference.sliding_window import Infer, Network, predict_ids
from ssrseg.models.classes import check_classes
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_json, writing


def evaluate(
    model: Path | str | Segmenter,
    data: Data | Path | str,
    *,
    classes: str | Sequence[ClassConfig | str] | None = None,
    inference: InferenceConfig | None = None,
    subset: Sequence[str] = (),
    out: Path | None = None,
    per_image: Path | None = None,
    boundary: bool = False,
    device: str = "auto",
    engine: str = "auto",
    console: Console | None = None,
) -> Scores:
    """Score a model on labelled images, after a look at all of them as before a training.

    `model`, `device`, `engine`, `inference` (its `mode`) are those of `Predictor`; a path for `data` is a folder with
    `images` and `labels`; of several data sets there are scores of each beside those of all images together. Images are
    resized as the model's description says, unless `data` does. `classes` are a label space or the classes themselves,
    for example to say which label values mean them; the model's own when absent.
    `subset` names classes whose mean IoU is wanted beside that of all; `out` gets the scores as JSON, `per_image` those
    of each image as CSV, the worst first. Boundary IoU is computed where `boundary` asks for it. What the labels hold
    that no class takes, and other things that scores do not show, is printed on the console.

    Raises:
        UserError: model, data and classes do not fit together, or something cannot be read or written.
    """
    segmenter = open_model(model)
    if inference is not None and inference.max_pixels is not None:
        set_max_pixels(inference.max_pixels)
    dataset, space, sets = labelled_for(segmenter, data, classes, console)
    check_names(subset, space.names)
    own = datasets(sets)
    predictor = Predictor(segmenter, device, engine, inference or InferenceConfig(), images=len(dataset))
    single = ImageScores(space.names, bounded=boundary) if boundary or per_image is not None else None
    scores = evaluate_model(
        predictor.network,
        dataset,
        predictor.infer,
        device=predictor.device,
        classes=space.names,
        domains=names_of(sets),
        on_image=single,
    )
    scores = replace(scores, subset=tuple(subset), boundary=None if single is None else single.boundary)
    if single is not None and per_image is not None:
        single.write(Path(per_image))
    if out is not None:
        content = {
            "model": None if isinstance(model, Segmenter) else str(model),
            "data": [one.model_dump(mode="json") for one in own] if len(own) > 1 else own[0].model_dump(mode="json"),
            "images": len(dataset),
            "inference": predictor.inference.model_dump(mode="json"),
            "classes": scores.classes,
            **scores.to_dict(),
            "confusion": scores.confusion.tolist(),
        }
        with writing(Path(out)):
            write_json(Path(out), content)
    return scores


def labelled_for(
    segmenter: Segmenter | Exported,
    data: Data | Path | str,
    classes: str | Sequence[ClassConfig | str] | None = None,
    console: Console | None = None,
) -> tuple[LabelledImages, LabelSpace, Data]:
    """Return labelled images that a model is to be scored on, its classes, and the data as they are read.

    They are looked at before, as in `evaluate`, whose arguments these are. Raises `UserError` as it does.
    """
    known = segmenter.description
    sets: Data = DataConfig(root=Path(data)) if isinstance(data, Path | str) else data
    own = tuple(one.model_copy(update={"resize": one.resize or (known and known.resize)}) for one in datasets(sets))
    sets = own if isinstance(sets, tuple) else own[0]
    if classes is None and known is not None:  # a known label space says which raw values mean its classes
        classes = next((name for name, space in SPACES.items() if space.names == known.classes), known.classes)
    chosen = resolve_group(_Classes, {"classes": classes}, "classes").classes
    space = resolve_space(chosen, sets)
    check_classes(segmenter, space.names)
    for note in refuse_bad_labels(domains("val", sets), chosen, segmenter.reading):
        if console is not None:
            console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return eval_samples(sets, chosen, bands=segmenter.reading), space, sets


def names_of(val: Data) -> tuple[str, ...]:
    """Name the data sets that are scored; one alone has no name."""
    return tuple(name.removeprefix("val ") for name in domains("val", val)) if isinstance(val, tuple) else ()


class _Classes(Strict):
    """Classes in any spelling that a run's settings know."""

    classes: Classes | None


def evaluate_model(
    network: Network,
    dataset: Dataset[Any],
    infer: Infer,
    *,
    device: torch.device | str,
    classes: Sequence[str],
    domains: Sequence[str] = (),
    on_image: Callable[[Path, Tensor, Tensor], None] | None = None,
) -> Scores:
    """Score a network in memory, for example in the middle of its training, at the resolution of the labels.

    The network of these `classes` lies on `device`, where pixels are counted; a module is in eval mode meanwhile and in
    its own modes afterwards. The dataset has `LabelledImage` items; sizes may differ. `domains` name several
    data sets that they are of; `on_image` gets the path, the labels and the predicted ids (H, W) of each. Nothing is
    exchanged between processes. Raises `UserError` where a label is none of the classes.
    """
    count = len(classes)
    confusions = torch.zeros(max(1, len(domains)), count, count, dtype=torch.int64, device=device)
    item: LabelledImage
    with evaluating(network) if isinstance(network, nn.Module) else torch.inference_mode():
        for item in prefetch(dataset[index] for index in range(len(cast(Sized, dataset)))):
            if bool((wrong := (item.labels >= count) & (item.labels != IGNORE)).any()):  # counted as other classes else
                raise UserError(
                    f"The label of {item.path} holds the class id {int(item.labels[wrong][0])}; ids are 0..{count - 1} "
                    f"and {IGNORE} for none. Map the file's values to ids with `id_map`."
                )
            height, width = item.labels.shape
            ids = predict_ids(network, item.image.to(device), infer, (height, width))
            confusions[item.domain if domains else 0] += confusion_matrix(item.labels.to(device), ids, count)
            if on_image is not None:
                on_image(item.path, item.labels, ids)
    return Scores.of_domains(classes, confusions.cpu(), domains)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` in eval mode, without autograd; afterwards every submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def scores_table(scores: Scores) -> Table:
    """Tabulate the scores per class and their means, in percent, for a terminal."""
    bounded = scores.boundary is not None
    table = Table("class", box=None)
    for heading in ("IoU", "Dice", "precision", "accuracy", *(["boundary IoU"] if bounded else []), "pixels"):
        table.add_column(heading, justify="right")

    def add(name: str, pixels: int, *values: float | None) -> None:
        table.add_row(name, *map(_percent, values if bounded else values[:4]), f"{pixels:,}")

    def add_means(name: str, of: Scores) -> None:
        add(name, int(of.confusion.sum()), of.miou, of.mean_dice, math.nan, of.pixel_accuracy, of.boundary_miou)

    columns = scores.iou, scores.dice, scores.precision, scores.accuracy, scores.boundary_iou
    for name, count, *values in zip(scores.classes, scores.confusion.sum(1).tolist(), *columns, strict=True):
        add(name, count, *values)
    table.add_section()
    for name, own in scores.domains.items():
        add_means(f"all of {name}", own)
    add_means("all", scores)
    for name, miou in scores.subsets.items():
        table.add_row(f"of these, {', '.join(scores.subset) if name == 'subset' else name}", _percent(miou))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"
