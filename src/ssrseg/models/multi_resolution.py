"""A segmenter that looks twice: context from a smaller image, detail from windows of the image as it is (HRDA).

HRDA (ECCV 2022, section 3): one backbone and one head see both; a second head, the scale attention, tells from the
context where the detail counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.backbones import Backbone
from ssrseg.models.description import Detail, Window
from ssrseg.models.segmenter import Scales, Segmenter


class MultiResolution(Segmenter):
    """Images in [0, 1] (B, C, H, W) -> logits (B, K, H, W), from eight feature maps: four of detail, four of context.

    In training a `window` of the images is seen in detail, the same of all. Without one, overlapping windows are, and
    their logits averaged. In training mode BatchNorm normalises all windows of a batch by their common statistics.

    Args:
        backbone: sees both scales.
        head: decodes both.
        attention: context features -> (B, K or 1, h, w), before the sigmoid; absent for a constant.
        num_classes: K.
        detail: windows and scale.
        stride: pixels of the image per cell of the head's logits.
    """

    detail: Detail

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        attention: nn.Module | None,
        num_classes: int,
        detail: Detail,
        stride: int,
    ) -> None:
        super().__init__(backbone, head, num_classes)
        self.attention, self.detail, self.stride = attention, detail, stride

    @property
    def strides(self) -> tuple[float, ...]:
        """Pixels of the image per cell of each of the eight feature maps."""
        return *self.backbone.strides, *(stride / self.detail.scale for stride in self.backbone.strides)

    def context(self, images: Tensor) -> Tensor:
        """Images as the last four feature maps see them: smaller, without antialiasing."""
        return images if self.detail.scale == 1 else _scaled(images, self.detail.scale)

    def encode(self, images: Tensor, window: Window | None = None) -> list[Tensor]:
        """Images in [0, 1] -> detail and context, four feature maps each, finest first.

        Without a window, the detail maps are of n windows (n * B, C_i, h_i, w_i), the images innermost.
        """
        images = self.normalised(images)
        context: list[Tensor] = self._run("backbone", self.context(images))
        windows = [window] if window else self._windows(images.shape[-2:])
        return [*self._encode_detail(images, windows), *context]

    def crops(self, images: Tensor, boxes: Sequence[Window], at_once: int) -> Iterator[Tensor]:
        """Logits (B, K, h, w) of crops of images, box by box, with the windows that they share computed once.

        For eval mode, where it makes no difference which windows are seen together; `at_once` are.
        """
        images, known = self.normalised(images), dict[tuple[int, ...], Tensor]()
        for rows, columns in boxes:
            crop = images[..., rows, columns]
            size, context = crop.shape[-2:], self._run("backbone", self.context(crop))
            if any(side % self.stride for side in size):  # windows reach into the padding
                known.clear()
            places = {(rows.start + r.start, columns.start + c.start): (r, c) for r, c in self._windows(size)}
            known = {place: logits for place, logits in known.items() if place[0] >= rows.start}
            new = [place for place in places if place not in known]
            for group in (new[start : start + at_once] for start in range(0, len(new), at_once)):
                detail = self._run("head", self._encode_detail(crop, [places[place] for place in group]))
                known |= dict(zip(group, detail.chunk(len(group)), strict=True))
            detail = torch.cat([known[place] for place in places])
            yield self.resize(self._fuse(self._run("head", context), detail, context, size).fused, size)

    def scales(self, features: Sequence[Tensor], size: Sequence[int], window: Window | None = None) -> Scales:
        """Features of images of `size` -> logits at the head's resolution.

        The context's share is taken before its logits are doubled, and the detail's after that of its attention.
        """
        levels = len(self.backbone.channels)
        context: Tensor = self._run("head", features[levels:])
        detail: Tensor = self._run("head", features[:levels])
        return self._fuse(context, detail, features[levels:], size, window)

    def _fuse(
        self,
        context: Tensor,
        detail: Tensor,
        features: Sequence[Tensor],
        size: Sequence[int],
        window: Window | None = None,
    ) -> Scales:
        attention = self._attend(features, context)
        cells = tuple(-(-side // self.stride) for side in size)
        if window is None:
            if len(detail) != len(context) * len(self._windows(size)):
                raise UserError("These features are of one window: decode(features, size, view.window) takes it.")
            placed = self._average(detail, size)
        else:
            mask = attention.new_zeros(1, 1, *attention.shape[-2:])
            rows, columns = self._cells(window, self.stride / self.detail.scale)
            mask[..., rows, columns] = 1
            attention = attention * mask
            (top, left), (height, width) = (span.start // self.stride for span in window), detail.shape[-2:]
            placed = F.pad(detail, (left, cells[1] - left - width, top, cells[0] - top - height))
        rest = (1 - attention) * context
        fused = self.resize(attention, cells) * placed + self.resize(rest, cells)
        return Scales(fused, rest, detail)

    def _attend(self, features: Sequence[Tensor], context: Tensor) -> Tensor:
        """Share of the detail, in [0, 1]: (B, K or 1, h, w)."""
        if self.attention is None:
            return context.new_full((1, 1, *context.shape[-2:]), float(self.detail.attention))
        attention: Tensor = torch.sigmoid(self.attention(features))
        return attention

    def _encode_detail(self, images: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """Normalised images -> features of their windows, the images innermost; images are padded for whole cells."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        seen = torch.cat([padded[..., rows, columns] for rows, columns in windows])
        if self.detail.blurred:
            seen = _scaled(_scaled(seen, 0.5), 2)
        features: list[Tensor] = self._run("backbone", seen)
        return features

    def _windows(self, size: Sequence[int]) -> list[Window]:
        """Overlapping windows of images of `size`, rows outermost."""
        strides = self.detail.stride or tuple(max(1, side // 2) for side in self.detail.window)
        rows, columns = (
            spans(side + -side % self.stride, window, stride)
            for side, window, stride in zip(size, self.detail.window, strides, strict=True)
        )
        return [*product(rows, columns)]

    def _average(self, detail: Tensor, size: Sequence[int]) -> Tensor:
        """Logits of windows (n * B, K, h, w) -> of the image, averaged where windows overlap."""
        windows = self._windows(size)
        cells = [-(-side // self.stride) for side in size]
        total = detail.new_zeros(len(detail) // len(windows), detail.shape[1], *cells)
        visits = detail.new_zeros(1, 1, *cells)
        for window, logits in zip(windows, detail.chunk(len(windows)), strict=True):
            rows, columns = self._cells(window, self.stride)
            total[..., rows, columns] += logits
            visits[..., rows, columns] += 1
        return total / visits

    def _cells(self, window: Window, stride: float) -> Window:
        rows, columns = (slice(int(span.start / stride), int(span.stop / stride)) for span in window)
        return rows, columns


def spans(length: int, window: int, stride: int) -> list[slice]:
    """Cut an axis into windows; the last one is shifted back to end with it, and one that is longer shrinks to it."""
    window = min(window, length)
    count = max(length - window + stride - 1, 0) // stride + 1
    starts = [min(i * stride, length - window) for i in range(count)]
    return [slice(start, start + window) for start in starts]


def _scaled(images: Tensor, factor: float) -> Tensor:
    return F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
