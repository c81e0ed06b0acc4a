"""Predictions against labels: a confusion matrix, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassConfusionMatrix

from ssrseg.config import ClassConfig, DataConfig, InferenceConfig, resolve
from ssrseg.data import SPACES, eval_samples, resolve_space
from ssrseg.data.label_spaces import IGNORE
from ssrseg.errors import UserError
from ssrseg.inference.engines import open_engine
from ssrseg.inference.metrics import Scores, check_names, scores_table
from ssrseg.inference.prefetch import ahead
from ssrseg.inference.sliding_window import (
    Infer,
    Network,
    Progress,
    build_inference,
    evaluating,
    open_model,
    pick_device,
    predict_ids,
)
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_json

__all__ = ["Labelled", "Scores", "evaluate", "evaluate_model", "scores_table"]


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


def evaluate_model(
    model: Segmenter,
    dataset: Dataset[Any],
    infer: Infer,
    *,
    device: torch.device | str,
    classes: Sequence[str],
    workers: int = 0,
    network: Network | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score a model on labelled images, at the resolution of the labels.

    The model is in eval mode meanwhile and in its own modes afterwards; it stays where it is, so it must be on
    `device` already. Nothing is exchanged between processes.

    Args:
        model: the segmenter.
        dataset: yields `Labelled` items; sizes may differ.
        infer: of `ssrseg.inference.sliding_window`.
        device: where images go and pixels are counted.
        classes: names, in the order of the class ids.
        workers: processes that read images.
        network: what computes the model's logits; the model itself when absent.
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
        for done, item in enumerate(ahead(loader), start=1):
            _check_ids(item, len(classes))
            labels = item.labels.to(device)
            size = (labels.shape[0], labels.shape[1])
            confusion.update(predict_ids(network or model, item.image.to(device), infer, size), labels)
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
    subset: Sequence[str] = (),
    out: Path | None = None,
    device: str = "auto",
    engine: str = "auto",
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
        subset: names of classes whose mean IoU is wanted beside that of all.
        out: the scores as JSON.
        device: `auto` or a device of torch's.
        engine: what runs the network, see `ssrseg.inference.engines.open_engine`.
        workers: processes that read images.
        progress: told after every image.

    Raises:
        UserError: model, data and classes do not fit together, or something cannot be read or written.
    """
    segmenter = open_model(model)
    data = data if isinstance(data, DataConfig) else DataConfig(root=Path(data))
    data = data.model_copy(update={"resize": data.resize or (segmenter.description and segmenter.description.resize)})
    settings = resolve({"source": data, "classes": classes or _classes_of(segmenter)})
    space, dataset = resolve_space(settings.classes, settings.source), eval_samples(data, settings.classes)
    if segmenter.description is not None and segmenter.description.classes != space.names:
        raise UserError(
            f"The model's classes are {', '.join(segmenter.description.classes)}; "
            f"`classes` are {', '.join(space.names)}. They must be the same, in the same order."
        )
    check_names(subset, space.names)
    chosen, where = inference or InferenceConfig(), pick_device(device)
    segmenter = segmenter.to(where)
    scores = evaluate_model(
        segmenter,
        dataset,
        build_inference(chosen),
        device=where,
        classes=space.names,
        workers=workers,
        network=open_engine(segmenter, engine, images=len(dataset)),
        progress=progress,
    )
    scores = replace(scores, subset=tuple(subset))
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
