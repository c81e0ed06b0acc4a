"""A trained model ready to use: opened, on its device, in its engine; images in, classes out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssrseg.config import ClassConfig, InferenceConfig, resolve_group
from ssrseg.config.data import Bound
from ssrseg.data.datasets import bounded
from ssrseg.data.images import Reading, parts_of, read_image
from ssrseg.data.label_mapping import space_of
from ssrseg.data.label_spaces import LabelSpace
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError
from ssrseg.inference.engines import open_engine, pick_device
from ssrseg.inference.exported import Exported, open_model
from ssrseg.inference.sliding_window import Network, Size, build_inference
from ssrseg.models.segmenter import Segmenter

Images = Tensor | npt.NDArray[Any] | Image.Image | Path | str
"""One image or a batch: RGB, (3, H, W), (H, W, 3), (B, 3, H, W) or (B, H, W, 3); bytes, or floats in [0, 1]."""


class Predictor:
    """Predict the classes of images: `Predictor("model.safetensors")("street.png")` -> class ids (H, W).

    It holds a copy of the model's weights: a model that is handed over is neither moved nor changed, and its later
    training does not change the predictor. The network sees an image as it saw those of its domain, resized to the
    bound that the model's description names; results have the image's own size.

    Args:
        model: a segmenter, a file of one, a folder of `save_pretrained`, or `owner/name[@revision]` on the Hub; or a
            file of `export` (`.onnx`, `.xml`), which its own runtime computes on the CPU.
        device: `auto` (CUDA, else MPS, else the CPU) or a device of torch's.
        engine: what runs the network: `auto` or a key of `ssrseg.inference.engines.ENGINES`.
        mode: `whole` or `slide`, or the whole of the settings, with windows, flips and scales.
        images: how many are expected, for the engine `auto`.

    Raises:
        UserError: no such model, device, engine or mode, or not here.
    """

    def __init__(
        self,
        model: Segmenter | Exported | Path | str,
        device: str | torch.device = "auto",
        engine: str = "auto",
        mode: str | InferenceConfig = "whole",
        *,
        images: int = 1,
    ) -> None:
        self.inference = (
            resolve_group(InferenceConfig, {"mode": mode}, "inference settings") if isinstance(mode, str) else mode
        )
        segmenter = open_model(model)
        self.description, self.num_classes = segmenter.description, segmenter.num_classes
        self.bands, self.reading = segmenter.in_channels, segmenter.reading
        self.infer = build_inference(self.inference)
        self.network: Network = segmenter
        if isinstance(segmenter, Exported):
            segmenter.check(device, engine, self.inference)
            self.device = torch.device("cpu")
        else:
            self.device = pick_device(device)
            self.network = open_engine(copy.deepcopy(segmenter).to(self.device).eval(), engine, images=images)

    @property
    def bound(self) -> Bound | None:
        """What images are resized to fit for the network; absent where it sees them at their own size."""
        return self.description.resize if self.description else None

    @property
    def colors(self) -> npt.NDArray[np.uint8]:
        """RGB of the classes (K, 3): the model's own, else evenly spread hues."""
        return np.array(self.space.colors, dtype=np.uint8)

    @property
    def space(self) -> LabelSpace:
        """Names and colours of the classes: the model's own, else their numbers and evenly spread hues."""
        chosen = space_of([ClassConfig(name=str(i)) for i in range(self.num_classes)])[0]
        known = self.description
        return chosen if known is None else LabelSpace(known.classes, known.colors or chosen.colors)

    def __call__(self, images: Images) -> Tensor:
        """Predict class ids: int64, (H, W) of one image, (B, H, W) of a batch of one size, on the images' device.

        A path is an image file. The axis of the colours is the first that can be: (3, H, 3) has its colours first.

        Raises:
            UserError: a file cannot be read, or these are no RGB images.
        """
        logits, device = self._logits_of(images)
        return logits.argmax(dim=-3).to(device)

    def probabilities(self, images: Images) -> Tensor:
        """Predict class probabilities: float32, (K, H, W) of one image, (B, K, H, W) of a batch; as `__call__`."""
        if isinstance(self.network, Exported) and self.network.chooses:
            raise UserError(f"{self.network.path} gives no probabilities: export the model without --labels.")
        logits, device = self._logits_of(images)
        return logits.softmax(dim=-3).to(device)

    def _logits_of(self, images: Images) -> tuple[Tensor, torch.device]:
        """Compute logits at the images' own size; also returns the images' device."""
        pixels = as_pixels(images, self.reading)
        batch = pixels if pixels.ndim == 4 else pixels[None]
        height, width = batch.shape[-2:]
        bound = self.bound
        if bound and batch.dtype == torch.uint8:  # as the loader does it, to the last bit
            batch = torch.stack([bounded(image, bound) for image in batch.cpu()])
        elif bound:
            wide, tall = rescale_size(width, height, bound)
            batch = F.interpolate(batch, (tall, wide), mode="bilinear", align_corners=False)
        logits = self.logits(batch, (height, width))
        return logits if pixels.ndim == 4 else logits[0], pixels.device

    @torch.no_grad()  # not inference_mode: its tensors could not be changed by the caller
    def logits(self, images: Tensor, size: Size | None = None) -> Tensor:
        """Compute logits (B, K) + `size`, on the predictor's device, of images that have the network's size already.

        They are (B, C, h, w) of the network's C bands, bytes or floats in [0, 1]; `size` is (h, w) when absent.
        """
        images = images.to(self.device)
        return self.infer(self.network, images.float() / 255 if images.dtype == torch.uint8 else images, size)


def as_pixels(images: Images, reading: Reading = 3) -> Tensor:
    """Convert images to a tensor (3, H, W) or (B, 3, H, W), bytes or float32 in [0, 1], or raise `UserError`.

    A model of other bands than RGB's has as many in the place of the three.
    """
    if isinstance(images, Path | str):
        return read_image(Path(images), reading)
    bands = parts_of(reading)[0]
    if isinstance(images, Image.Image):
        images = np.array(images.convert("RGB") if bands == 3 else images)
        images = images[..., None] if images.ndim == 2 else images
    if not isinstance(images, Tensor | np.ndarray):
        raise UserError(f"Expected an image (a tensor, an array, a PIL image, a path), found {type(images).__name__}.")
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(images.copy())
    if pixels.ndim in (3, 4) and pixels.shape[-3] != bands:
        pixels = pixels.movedim(-1, -3)
    if pixels.ndim not in (3, 4) or pixels.shape[-3] != bands:
        what = "RGB" if bands == 3 else f"{bands} bands"
        raise UserError(
            f"Expected {what}, ({bands}, H, W) or (H, W, {bands}), or a batch of it; "
            f"found the shape {(*images.shape,)}."
        )
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise UserError(f"Expected bytes or floats in [0, 1], found {images.dtype}.")
    if not 0 <= float(pixels.min()) <= float(pixels.max()) <= 1:
        raise UserError(
            f"Floats lie in [0, 1]; found {float(pixels.min()):g} to {float(pixels.max()):g}. Divide first."
        )
    return pixels.float()
