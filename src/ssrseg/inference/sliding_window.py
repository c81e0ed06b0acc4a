"""How images become logits: whole or by sliding windows, averaged over mirror images and scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ssrseg.config import InferenceConfig
from ssrseg.errors import UserError, first_line, out_of_memory
from ssrseg.inference.exported import Exported
from ssrseg.models.backbones import fits
from ssrseg.models.description import Window
from ssrseg.models.multi_resolution import MultiResolution, spans
from ssrseg.models.segmenter import Segmenter

Size = tuple[int, int]
"""(height, width)."""
Network = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [0, 1] -> logits (B, K, H, W)."""
Infer = Callable[[Network, Tensor, Size | None], Tensor]
"""Network, images (B, C, H, W) in [0, 1], size or `None` for (H, W) -> logits (B, K, *size)."""

SMALLEST = 32
"""Pixels of a side from which every network runs: the stride of its coarsest level."""


def whole(model: Network, images: Tensor, size: Size | None = None) -> Tensor:
    """Compute the logits of whole images.

    They are resized to the images' size and from there to `size`: two bilinear steps, as DAFormer's and MIC's numbers
    were made. Those of networks that align corners (DACS, Undoing) go there in one step. Images that are larger than
    the network takes are seen in windows (`slide`).
    """
    if (largest := largest_image(model)) is not None and not fits(images.shape[-2:], largest):
        return slide(model, images, largest, largest, size)
    try:
        return _at_once(model, images, size)
    except (RuntimeError, ValueError) as error:
        if min(images.shape[-2:]) >= SMALLEST or out_of_memory(error):
            raise
    return _resized(_padded(model)(images), size)


def _at_once(model: Network, images: Tensor, size: Size | None) -> Tensor:
    if size is not None and isinstance(model, Segmenter) and model.resize.align_corners:
        return model.decode(model.encode(images), size)
    return _resized(model(images), size)


def _padded(model: Network) -> Network:
    """Let a network see images as large as it needs: the border is repeated, and the logits are cut back."""

    def run(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        more = (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height))
        return model(F.pad(images, more, mode="replicate"))[..., :height, :width]

    return run


def slide(
    model: Network, images: Tensor, window: Size, stride: Size, size: Size | None = None, *, batch: int = 8
) -> Tensor:
    """Average logits over overlapping windows.

    The last window of an axis is shifted back to end at the border; a window larger than the image shrinks to it, and
    one larger than the network takes to that, with strides of two thirds of it. `batch` crops go through the model at
    once, or so many windows of their details. Raises `UserError` for a stride that is larger than the window.
    """
    window, stride = windows_for(model, window, stride)
    height, width = images.shape[-2:]
    boxes = [
        (rows, columns)
        for rows in spans(height, window[0], stride[0])
        for columns in spans(width, window[1], stride[1])
    ]
    looks_twice = isinstance(model, MultiResolution) and not model.training
    crops = cast(MultiResolution, model).crops if looks_twice else partial(_crops, model)
    visits = images.new_zeros(1, 1, height, width)
    total: Tensor | None = None
    for (rows, columns), crop in zip(boxes, crops(images, boxes, max(1, batch // len(images))), strict=True):
        if total is None:
            total = crop.new_zeros(len(images), crop.shape[1], height, width)
        total[..., rows, columns] += crop
        visits[..., rows, columns] += 1
    assert total is not None  # there is at least one window
    return _resized(total / visits, size)


def _crops(model: Network, images: Tensor, boxes: Sequence[Window], at_once: int) -> Iterator[Tensor]:
    """Logits of crops of images, box by box, `at_once` through the model together."""
    for group in (boxes[start : start + at_once] for start in range(0, len(boxes), at_once)):
        logits = whole(model, torch.cat([images[..., rows, columns] for rows, columns in group]))
        yield from logits.chunk(len(group))


def windows_for(model: Network, window: Size, stride: Size) -> tuple[Size, Size]:
    """Bound windows by what a network takes, and strides by two thirds of that; `UserError` for gaps between them.

    A network of one size gets windows of that.
    """
    if stride[0] > window[0] or stride[1] > window[1]:
        raise UserError(f"The stride {stride} is larger than the window {window}: pixels between windows are not seen.")
    fixed = model.size if isinstance(model, Exported) else None
    if (largest := fixed or largest_image(model)) is not None:
        window = fixed or (min(window[0], largest[0]), min(window[1], largest[1]))
        stride = min(stride[0], -(-2 * window[0] // 3)), min(stride[1], -(-2 * window[1] // 3))
    return window, stride


def largest_image(model: Network) -> Size | None:
    """Return the (height, width) up to which a network takes images; absent without a bound."""
    return model.backbone.sizes.largest if isinstance(model, Segmenter) else None


def averaged(infer: Infer, *, flip: bool = False, scales: tuple[float, ...] = (1.0,)) -> Infer:
    """Average `infer` over scaled and mirrored copies of the images.

    Class probabilities are averaged, as the references' test-time augmentation does: the softmax of the result is the
    mean of the softmaxes. `scales` are factors of height and width (bilinear); `flip` adds the mirror image of each.
    """

    def average(model: Network, images: Tensor, size: Size | None = None) -> Tensor:
        height, width = images.shape[-2:]
        total: Tensor | None = None
        for scale in scales:
            scaled = _resized(images, (max(1, round(scale * height)), max(1, round(scale * width))))
            for mirrored in (False, True) if flip else (False,):
                logits = infer(model, scaled.flip(-1) if mirrored else scaled, size or (height, width))
                scores = (logits.flip(-1) if mirrored else logits).log_softmax(dim=1)
                total = scores if total is None else torch.logaddexp(total, scores)
        assert total is not None  # there is at least one scale
        return total - math.log(len(scales) * (1 + flip))

    return average


def within_memory(infer: Infer, window: Size, report: Callable[[str], None]) -> Infer:
    """Let images that do not fit into the memory be seen in windows; `report` hears of the first."""
    said: list[Size] = []

    def fitting(model: Network, images: Tensor, size: Size | None = None) -> Tensor:
        try:
            return infer(model, images, size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or fits(images.shape[-2:], window):
                raise
            why = first_line(error)
        stride = -(-2 * window[0] // 3), -(-2 * window[1] // 3)
        if not said:
            said.append((images.shape[-2], images.shape[-1]))
            words = f"inference.mode=slide 'inference.window={[*window]}' 'inference.stride={[*stride]}'"
            report(
                f"An image of {said[0][0]}x{said[0][1]} does not fit into the memory whole. What does not fit is "
                f"labelled in windows of {window[0]}x{window[1]} ({words} does so with all): {why}"
            )
        return slide(model, images, window, stride, size, batch=1)

    return fitting


def build_inference(config: InferenceConfig) -> Infer:
    """Compose the inference that the settings describe."""

    def sliding(model: Network, images: Tensor, size: Size | None = None) -> Tensor:
        return slide(model, images, config.window, config.stride, size)

    infer = sliding if config.mode == "slide" else whole
    if not config.flip and config.scales == (1.0,):
        return infer
    return averaged(infer, flip=config.flip, scales=config.scales)


def predict_ids(model: Network, image: Tensor, infer: Infer, size: Size) -> Tensor:
    """Predict class ids (H, W), `size` = (H, W), of one image of bytes (C, h, w) on the model's device."""
    return infer(model, image[None].float() / 255, size)[0].argmax(dim=0)


def _resized(maps: Tensor, size: Size | None) -> Tensor:
    if size is None or tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
