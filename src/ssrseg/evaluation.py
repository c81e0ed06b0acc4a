"""Predictions against labels: a confusion matrix, and the scores that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassConfusionMatrix

from ssrseg.config import ClassConfig, DataConfig, InferenceConfig, resolve
from ssrseg.data import SPACES, eval_samples, resolve_space
from ssrseg.data.labels import IGNORE
from ssrseg.errors import UserError
from ssrseg.files import write_json
from ssrseg.inference import Infer, Progress, build_inference, evaluating, open_model, pick_device, predict_ids
from ssrseg.models.segmenter import Segmenter


class Labelled(Protocol):
    """What a dataset for evaluation yields."""

    @property
    def image(self) -> Tensor:
        """RGB bytes (3, h, w), resized as the network wants them."""

    @property
    def labels(self) -> Tensor:
        """Class ids (H, W), bytes, at their own resolution; 255 where there is none."""

    @property
    def path(self) -> Path:
        """Of the image, for messages."""


@dataclass(frozen=True, eq=False)
class Scores:
    """How well labels were met. All scores are fractions; what was not measured is `None`, its mean NaN.

    Scores of disjoint sets of images add up: `a + b` are the scores of their union.
    """

    classes: tuple[str, ...]
    confusion: Tensor
    """Pixels (K, K), int64: a row per true class, a column per predicted one."""

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union per class; `None` for a class in neither truth nor prediction."""
        return _ratios(self._right, self.confusion.sum(0) + self.confusion.sum(1) - self._right)

    @property
    def miou(self) -> float:
        """Mean IoU of the classes that occur; NaN when none does."""
        return _mean(self.iou)

    @property
    def accuracy(self) -> list[float | None]:
        """Share of each class's pixels that was found; `None` for a class that the truth does not contain."""
        return _ratios(self._right, self.confusion.sum(1))

    @property
    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels that is right; NaN when there is none."""
        return _mean(_ratios(self._right.sum().view(1), self.confusion.sum().view(1)))

    @property
    def _right(self) -> Tensor:
        return self.confusion.diagonal()

    def miou_over(self, names: Iterable[str]) -> float:
        """Mean IoU of some classes only, as SYNTHIA's 16 and 13 of Cityscapes' 19.

        Raises:
            UserError: a name that is no class.
        """
        names = tuple(names)
        if unknown := [name for name in names if name not in self.classes]:
            raise UserError(f"There is no class {unknown[0]!r}; the classes are {', '.join(self.classes)}.")
        return _mean([value for name, value in zip(self.classes, self.iou, strict=True) if name in names])

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON takes them: `miou`, `pixel_accuracy`, and per class `iou` and `accuracy`."""
        means = {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}
        finite = {name: value if math.isfinite(value) else None for name, value in means.items()}
        return {**finite, "iou": self.iou, "accuracy": self.accuracy}

    def __add__(self, other: Scores) -> Scores:
        if self.classes != other.classes:
            raise ValueError(f"scores of different classes do not add up: {self.classes} and {other.classes}")
        return Scores(self.classes, self.confusion + other.confusion)


def _ratios(parts: Tensor, wholes: Tensor) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]


def _mean(values: Sequence[float | None]) -> float:
    measured = [value for value in values if value is not None]
    return math.fsum(measured) / len(measured) if measured else math.nan


def evaluate_model(
    model: Segmenter,
    dataset: Dataset[Any],
    infer: Infer,
    *,
    device: torch.device | str,
    classes: Sequence[str],
    workers: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Score a model on labelled images, at the resolution of the labels.

    The model is in eval mode meanwhile and in its own modes afterwards; it stays where it is, so it must be on
    `device` already. Nothing is exchanged between processes.

    Args:
        model: the segmenter.
        dataset: yields `Labelled` items; sizes may differ.
        infer: of `ssrseg.inference`.
        device: where images go and pixels are counted.
        classes: names, in the order of the class ids.
        workers: processes that read images.
        progress: told after every image.

    Raises:
        UserError: the model predicts another number of classes, or a label is none of them.
    """
    if model.num_classes != len(classes):
        raise UserError(f"The model predicts {model.num_classes} classes, but the labels have {len(classes)}.")
    # With a generator of its own: else it would draw from the global one, and scoring would change training.
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=workers, generator=torch.Generator())
    # Each process scores the images that it is given, with its own weights: no sum over processes.
    confusion = MulticlassConfusionMatrix(
        len(classes), ignore_index=IGNORE, validate_args=False, sync_on_compute=False
    ).to(device)
    with evaluating(model):
        for done, item in enumerate(loader, start=1):
            _check_ids(item, len(classes))
            labels = item.labels.to(device)
            confusion.update(
                predict_ids(model, item.image.to(device), infer, (labels.shape[0], labels.shape[1])), labels
            )
            if progress is not None:
                progress(done, len(loader))
    return Scores(tuple(classes), confusion.compute().cpu())


def _check_ids(item: Labelled, count: int) -> None:
    """Else they would be counted as other classes, or not at all."""
    if bool((wrong := (item.labels >= count) & (item.labels != IGNORE)).any()):
        raise UserError(
            f"The label of {item.path} holds the class id {int(item.labels[wrong][0])}; ids are 0..{count - 1} and "
            f"{IGNORE} for none. Map the file's values to ids with `id_map`."
        )


def evaluate(
    model: Path | str | Segmenter,
    data: DataConfig | Path | str,
    *,
    classes: str | Sequence[ClassConfig | str] | None = None,
    inference: InferenceConfig | None = None,
    out: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Score a model on a folder of labelled images.

    Args:
        model: a segmenter, which is moved to `device`, or the file of one.
        data: the labelled images; a path is a folder with `images` and `labels`. Images are resized as the model's
            description says, unless `data` does.
        classes: a label space or the classes themselves, for example to say which label values mean them; the
            model's own when absent.
        inference: how an image becomes logits; as a whole when absent.
        out: the scores as JSON.
        device: `auto` or a device of torch's.
        workers: processes that read images.
        progress: told after every image.

    Raises:
        UserError: model, data and classes do not fit together, or something cannot be read or written.
    """
    segmenter = open_model(model)
    data = data if isinstance(data, DataConfig) else DataConfig(root=Path(data))
    data = data.model_copy(update={"resize": data.resize or (segmenter.description and segmenter.description.resize)})
    settings = resolve({"source": data, "classes": classes or _classes_of(segmenter)})
    space, dataset = resolve_space(settings), eval_samples(data, settings)
    if segmenter.description is not None and segmenter.description.classes != space.names:
        raise UserError(
            f"The model's classes are {', '.join(segmenter.description.classes)}; "
            f"`classes` are {', '.join(space.names)}. They must be the same, in the same order."
        )
    chosen, where = inference or InferenceConfig(), pick_device(device)
    scores = evaluate_model(
        segmenter.to(where),
        dataset,
        build_inference(chosen),
        device=where,
        classes=space.names,
        workers=workers,
        progress=progress,
    )
    if out is not None:
        source = {"model": None if isinstance(model, Segmenter) else str(model), "data": data.model_dump(mode="json")}
        _write(Path(out), scores, {**source, "images": len(dataset), "inference": chosen.model_dump(mode="json")})
    return scores


def _classes_of(model: Segmenter) -> str | list[str] | None:
    """The model's classes as the settings spell them: a label space that we know, or names; the data's when absent."""
    if model.description is None:
        return None
    names = model.description.classes
    return next((name for name, space in SPACES.items() if space.names == names), list(names))


def _write(path: Path, scores: Scores, source: dict[str, Any]) -> None:
    content = {**source, "classes": scores.classes, **scores.to_dict(), "confusion": scores.confusion.tolist()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise UserError(f"Cannot write the scores to {path}: {error.strerror or error}.") from error


def scores_table(scores: Scores) -> Table:
    """IoU and accuracy per class and their means, in percent, for a terminal."""
    table = Table("class", box=None)
    for heading in ("IoU", "accuracy", "pixels"):
        table.add_column(heading, justify="right")
    pixels = scores.confusion.sum(1).tolist()
    for name, iou, accuracy, count in zip(scores.classes, scores.iou, scores.accuracy, pixels, strict=True):
        table.add_row(name, _percent(iou), _percent(accuracy), f"{count:,}")
    table.add_section()
    table.add_row("all", _percent(scores.miou), _percent(scores.pixel_accuracy), f"{sum(pixels):,}")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"
