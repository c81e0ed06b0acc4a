"""How images become logits: whole, by sliding windows, averaged with their mirror images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.config import InferenceConfig
from ssrseg.errors import UserError
from ssrseg.models.hub import load
from ssrseg.models.segmenter import WEIGHTS, Segmenter

Size = tuple[int, int]
"""(height, width)."""
Network = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [0, 1] -> logits (B, K, H, W)."""
Infer = Callable[[Network, Tensor, Size | None], Tensor]
"""Network, images (B, 3, H, W) in [0, 1], size or `None` for (H, W) -> logits (B, K, *size)."""
Progress = Callable[[int, int], None]
"""Called with the number of finished images and the number of all."""


def whole(model: Network, images: Tensor, size: Size | None = None) -> Tensor:
    """Logits of whole images.

    Args:
        model: the segmenter.
        images: (B, 3, H, W) in [0, 1].
        size: (height, width) of the result; (H, W) when absent. The logits are resized to the images' size and from
            there to this one: two bilinear steps, as published numbers were made.
    """
    return _resized(model(images), size)


def slide(
    model: Network, images: Tensor, window: Size, stride: Size, size: Size | None = None, *, batch: int = 8
) -> Tensor:
    """Logits averaged over overlapping windows.

    The last window of an axis is shifted back to end at the border; a window larger than the image shrinks to it.

    Args:
        model: the segmenter.
        images: (B, 3, H, W) in [0, 1].
        window: (height, width) that the model sees at once.
        stride: (height, width) from one window to the next.
        size: (height, width) of the result; (H, W) when absent.
        batch: crops that go through the model at once.

    Raises:
        UserError: the stride is larger than the window, so that some pixels would be in no window.
    """
    if stride[0] > window[0] or stride[1] > window[1]:
        raise UserError(f"The stride {stride} is larger than the window {window}: pixels between windows are not seen.")
    height, width = images.shape[-2:]
    boxes = [
        (rows, columns)
        for rows in _spans(height, window[0], stride[0])
        for columns in _spans(width, window[1], stride[1])
    ]
    at_once = max(1, batch // len(images))
    visits = images.new_zeros(1, 1, height, width)
    total: Tensor | None = None
    for start in range(0, len(boxes), at_once):
        group = boxes[start : start + at_once]
        logits = model(torch.cat([images[..., rows, columns] for rows, columns in group]))
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], height, width)
        for (rows, columns), crop in zip(group, logits.chunk(len(group)), strict=True):
            total[..., rows, columns] += crop
            visits[..., rows, columns] += 1
    assert total is not None  # there is at least one window
    return _resized(total / visits, size)


def flipped(infer: Infer) -> Infer:
    """`infer`, averaged with the mirror image.

    The class probabilities are averaged, as the references' test-time augmentation does: the softmax of the result is
    the mean of the two softmaxes.
    """

    def both(model: Network, images: Tensor, size: Size | None = None) -> Tensor:
        plain = infer(model, images, size)
        mirrored = infer(model, images.flip(-1), size).flip(-1)
        return torch.logaddexp(plain.log_softmax(dim=1), mirrored.log_softmax(dim=1)) - math.log(2)

    return both


def build_inference(config: InferenceConfig) -> Infer:
    """The inference that the settings describe."""

    def sliding(model: Network, images: Tensor, size: Size | None = None) -> Tensor:
        return slide(model, images, config.window, config.stride, size)

    infer = sliding if config.mode == "slide" else whole
    return flipped(infer) if config.flip else infer


def predict_ids(model: Network, image: Tensor, infer: Infer, size: Size) -> Tensor:
    """Class ids (H, W), `size` = (H, W), of one image of RGB bytes (3, h, w) on the model's device."""
    return infer(model, image[None].float() / 255, size)[0].argmax(dim=0)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode and no autograd; afterwards every submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def open_model(model: Path | str | Segmenter) -> Segmenter:
    """The model itself, or the one that lies in a file, a folder of `save_pretrained`, or on the Hub.

    Raises:
        UserError: no such model, not one of ours, or another folder (the models in it are named).
    """
    if isinstance(model, Segmenter):
        return model
    path = Path(model)
    if path.is_dir() and not (path / WEIGHTS).is_file():
        inside = sorted(str(found) for found in path.glob("*.safetensors"))
        names = f": give one of {', '.join(inside)}." if inside else " without a *.safetensors file."
        raise UserError(f"Expected a model file, found the folder {path}{names}")
    return load(model)


def pick_device(name: str = "auto") -> torch.device:
    """`auto` (CUDA, else MPS, else the CPU) or a device of torch's.

    Raises:
        UserError: torch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The device {name!r} cannot be used here: {reason} Try `cpu` or `auto`.") from error


def _resized(logits: Tensor, size: Size | None) -> Tensor:
    if size is None or tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _spans(length: int, window: int, stride: int) -> list[slice]:
    """The windows of one axis."""
    window = min(window, length)
    count = max(length - window + stride - 1, 0) // stride + 1
    starts = [min(i * stride, length - window) for i in range(count)]
    return [slice(start, start + window) for start in starts]
