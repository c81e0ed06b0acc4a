"""Terms: the losses on a view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import IGNORE, View
from ssrseg.models.segmenter import Segmenter


class Term(nn.Module):
    """Compute a loss on the views that it names; a subclass writes `forward`, which returns a scalar.

    A term is a module: parameters of its own are trained, and those in a submodule called `discriminator` have an
    optimiser of their own (Adam).

    - The gradients of several processes are averaged: a mean over the local batch becomes the mean over the whole one.
      A loss that divides by something counted in the batch counts with `distributed.all_sum` (see `feature_distance`).
    - Early backward: a term is back-propagated as soon as its loss is computed, and its graph is freed
      (`Learner.forward`). Detach what it keeps for another term; let no hook of a weight change its gradient, as hooks
      run twice.

    Args:
        views: names of the views that it applies to.
        weight: factor of the loss.
    """

    def __init__(self, views: Iterable[str], weight: float = 1.0) -> None:
        super().__init__()
        self.views, self.weight = frozenset(views), weight

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        """Return the loss of a view, a scalar.

        The student has encoded its images to `features` (B, C_i, h_i, w_i), finest first; `student.decode(features,
        size, view.window)` gives logits.
        """
        raise NotImplementedError


def segmentation_loss(
    logits: Tensor, labels: Tensor, trust: Tensor | None = None, *, over_labelled: bool = False
) -> Tensor:
    """Average the cross entropy over *all* pixels: ignored and untrusted ones count in the divisor (the references).

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64.
        trust: (B, H, W), factor of each pixel's loss.
        over_labelled: average over the labelled pixels only, as DACS and Undoing do with the source.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    losses = losses if trust is None else losses * trust
    if not over_labelled:
        return losses.mean()
    return losses.sum() / (labels != IGNORE).sum().clamp(min=1)


class Segmentation(Term):
    """Train the shadow branch: decode the features as they are, as at inference.

    Args:
        temperature: divides the logits (Undoing trains with 1.8).
        shift: (K,) added to the logits: `-b` of `ssrseg.label_shift.log_ratio` makes this classifier refinement.
        over_labelled: views whose loss is averaged over their labelled pixels only.
        detail_weight: share of the loss that is the detail's own, of a student that looks twice (HRDA, eq. 13).
        context_weight: share of the loss that is the context's, by what the detail leaves to it; for windows as large
            as the images, outside of which nothing else would train it.
        factors: view -> factor of these two shares alone.
    """

    def __init__(
        self,
        views: Iterable[str],
        weight: float = 1.0,
        *,
        temperature: float = 1.0,
        shift: Tensor | None = None,
        over_labelled: Iterable[str] = (),
        detail_weight: float | None = None,
        context_weight: float | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(views, weight)
        self.temperature, self.over_labelled = temperature, frozenset(over_labelled)
        self.detail_weight, self.context_weight = detail_weight, context_weight
        self.factors = factors or {}
        self.shift: Tensor | None
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        return torch.stack([*self.losses(view, features, student).values()]).sum()

    def losses(self, view: View, features: list[Tensor], student: Segmenter) -> dict[str, Tensor]:
        """Return what `forward` sums: the loss of the prediction, and those of the scales that have a weight."""
        fused, context, detail = student.scales(features, view.labels.shape[-2:], view.window)
        shares = {"detail": (self.detail_weight, detail, view.cut()), "context": (self.context_weight, context, view)}
        factor, left, losses = self.factors.get(view.name, 1.0), 1.0, dict[str, Tensor]()
        for name, (share, logits, seen) in shares.items():
            if share is not None and logits is not None:
                losses[name] = share * factor * self._loss(logits, seen, student)
                left -= share
        return {"fused": left * self._loss(fused, view, student), **losses}

    def _loss(self, logits: Tensor, view: View, student: Segmenter) -> Tensor:
        logits = student.resize(logits, view.labels.shape[-2:])
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.shift is not None:
            logits = logits + self.shift.view(1, -1, 1, 1)
        over_labelled = view.name in self.over_labelled
        return segmentation_loss(logits, view.labels, view.trust, over_labelled=over_labelled)


class FeatureDistance(Term):
    """Keep the deepest features near the frozen ImageNet model's on thing classes (DAFormer, section 3.3).

    Args:
        frozen: images in [0, 1] -> the ImageNet model's deepest features (B, C, h, w).
        num_classes: K.
        classes: ids of the thing classes; all locations count when absent.
        min_share: a location belongs to a class that covers at least this share of its pixels.
        of_detail: add the distance of the detail's features, of a student that looks twice (HRDA's code, where the
            window is the whole image).
    """

    def __init__(
        self,
        frozen: Callable[[Tensor], Tensor],
        num_classes: int,
        *,
        classes: Sequence[int] | None = None,
        min_share: float = 0.75,
        of_detail: bool = False,
        weight: float = 0.005,
        views: Iterable[str] = ("source",),
    ) -> None:
        super().__init__(views, weight)
        self.frozen, self.num_classes, self.min_share, self.of_detail = frozen, num_classes, min_share, of_detail
        self.things: Tensor | None
        ids = None if classes is None else torch.tensor(classes)
        things = None if ids is None else torch.zeros(256, dtype=torch.bool).index_fill(0, ids, True)
        self.register_buffer("things", things, persistent=False)

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        distance = self._distance(student.context(view.images), features[-1], view, student, -1)
        if self.of_detail:
            seen, level = view.cut(), len(student.backbone.channels) - 1
            distance = distance + self._distance(seen.images, features[level], seen, student, level)
        return distance

    def _distance(self, images: Tensor, deepest: Tensor, view: View, student: Segmenter, level: int) -> Tensor:
        mask = None
        if self.things is not None:
            stride, labels, sizes = int(student.strides[level]), view.labels, student.backbone.sizes
            if sizes.scale is not None:  # the features are those of a resized image
                labels = F.interpolate(labels[:, None].float(), sizes.seen(labels.shape[-2:]), mode="nearest")[
                    :, 0
                ].long()
            beyond = [stride * cells - side for cells, side in zip(deepest.shape[-2:], labels.shape[-2:], strict=True)]
            labels = F.pad(labels, (0, beyond[1], 0, beyond[0]), value=IGNORE)  # cut, where features are rounded down
            mask = self.things[downscale_labels(labels, stride, self.num_classes, self.min_share)]
        else:
            mask = places_inside(view, deepest.shape[-2:])
        return feature_distance(deepest, self.frozen(images), mask)


def feature_distance(features: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the L2 distance of (B, C, h, w) over a mask (B, h, w) bool; 0, with zero gradient, if that is empty.

    Of several processes, each returns its share times their number: averaged, they are the mean over the whole batch.
    """
    return masked_mean(torch.linalg.vector_norm(features - reference, dim=1), mask)


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average values over a mask of their shape; over the whole batch, as `feature_distance` says."""
    if mask is None:
        return values.mean()
    count = distributed.all_sum(mask.sum()).clamp(min=1)
    return torch.where(mask, values, 0).sum() * distributed.world() / count


def places_inside(view: View, size: Sequence[int]) -> Tensor | None:
    """Return which places of a map of `size` are no padding, bool (B,) + `size`; `None` where a view has none."""
    if view.inside is None:
        return None
    return F.interpolate(view.inside[:, None].float(), tuple(size), mode="nearest")[:, 0].bool()


def downscale_labels(labels: Tensor, factor: int, num_classes: int, min_share: float) -> Tensor:
    """Label each `factor` x `factor` cell by what covers at least `min_share` of it, else `IGNORE`; remainders are cut.

    Maps (B, H, W) int64 to (B, H // factor, W // factor); exactly `min_share` is enough.
    """
    classes = torch.where(labels == IGNORE, num_classes, labels)
    ids = torch.arange(num_classes + 1, device=labels.device).view(-1, 1, 1)
    # Not F.one_hot: it looks at the labels, and the device has to be waited for.
    shares = F.avg_pool2d((classes[:, None] == ids).float(), factor)
    share, winner = shares.max(dim=1)
    return torch.where((share < min_share) | (winner == num_classes), IGNORE, winner)
