"""BatchNorm's running statistics of another domain: no gradient, no label."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ssrseg.config import Data, DataConfig
from ssrseg.data import find_bounded, read_image
from ssrseg.data.datasets import bounded
from ssrseg.errors import UserError
from ssrseg.inference.engines import pick_device
from ssrseg.inference.evaluate import evaluating
from ssrseg.inference.predict import prefetch
from ssrseg.inference.sliding_window import whole
from ssrseg.models.segmenter import Segmenter, save_segmenter
from ssrseg.models.weights import load
from ssrseg.runs.atomic import writing

BATCH = 8
"""Images of one size that go through the network at once."""


@dataclass(frozen=True)
class Recalibrated:
    """What `recalibrate` did."""

    path: Path
    images: int
    layers: int


def recalibrate(
    model: Path | str | Segmenter,
    target: Data | Path | str,
    out: Path,
    *,
    keep: float = 0.5,
    images: int = 200,
    device: str = "auto",
) -> Recalibrated:
    """Write the model with BatchNorm statistics of unlabelled images of the domain that it is to work in.

    Args:
        model: where it lies, as in `ssrseg.Predictor`, or a segmenter, which is left as it is.
        target: the images, of one data set or several, or their folder; they are resized as the model's description
            says, unless the data do.
        out: the new model file.
        keep: the share in [0, 1] of the statistics that the model has; see `blend_statistics`.
        images: how many are looked at, evenly spread over all; ten are nearly as good as hundreds.
        device: `auto` or a device of torch's.

    Raises:
        UserError: the model has no BatchNorm that could change, no image is there, or something cannot be read.
    """
    if not 0 <= keep <= 1:
        raise UserError(f"keep is a share between 0 (the target's statistics alone) and 1; found {keep:g}.")
    network = copy.deepcopy(load(model)).to(pick_device(device))
    data = DataConfig(root=Path(target)) if isinstance(target, Path | str) else target
    known = network.description.resize if network.description else None
    paths = find_bounded(data, at_most=images)
    looked_at = prefetch(bounded(read_image(path, network.reading), own or known) for path, own in paths)
    layers = blend_statistics(network, batches_of_one_size(looked_at, BATCH), keep)
    if not layers:
        raise UserError("This model has no BatchNorm with running statistics, so there is nothing to recalibrate.")
    with writing(out):
        save_segmenter(network, out)
    return Recalibrated(Path(out), len(paths), layers)


def blend_statistics(network: Segmenter, batches: Iterable[Tensor], keep: float) -> int:
    """Blend the running statistics of every BatchNorm with those of images, in place; return how many layers have any.

    Mean and variance become those of a mixture that holds the present domain to the share `keep`: 0 is AdaBN (Li et
    al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016, section 3.2), between 0 and 1 the blend
    of TTN (Lim et al., ICLR 2023, section 3.1), here of one weight for all layers. Batches (B, 3, H, W), bytes, count
    alike; each is normalised by its own statistics on its way through the network, and no dropout is active.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, {name: value.clone() for name, value in norm.named_buffers()}) for norm in norms]
    with evaluating(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        steps = (1, 1) if network.backbone.sizes.largest else network.backbone.sizes.multiple  # windows need no cut
        for batch in batches if norms else ():
            height, width = (
                max(side // step * step, min(side, step))  # padding would count as a colour of the domain
                for side, step in zip(batch.shape[-2:], steps, strict=True)
            )
            whole(network, batch[..., :height, :width].to(network.mean.device).float() / 255)
        for norm, (momentum, old) in zip(norms, before, strict=True):
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None  # it tracks them
            assert var is not None
            spread = keep * (1 - keep) * (mean - old["running_mean"]) ** 2
            mean.lerp_(old["running_mean"], keep)
            var.lerp_(old["running_var"], keep).add_(spread)
            norm.num_batches_tracked, norm.momentum = old["num_batches_tracked"], momentum
    return len(norms)


def batches_of_one_size(images: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Stack up to `count` images (3, H, W) that follow one another and have one size."""
    batch: list[Tensor] = []
    for image in images:
        if batch and (len(batch) == count or batch[0].shape != image.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)
