"""Ways to run a segmenter: torch, or a faster runtime of this machine; each is checked against the plain model."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssrseg.errors import UserError, first_line
from ssrseg.inference.sliding_window import Network
from ssrseg.models.fused import fuse
from ssrseg.models.plain import PlainPyramid
from ssrseg.models.pyramids import ImageSizes
from ssrseg.models.segmenter import Segmenter

PICTURE = (128, 192)
"""(height, width) of the image of noise that an engine is checked with."""
TOLERANCE = 1e-3
"""Largest difference of a logit from the plain model's, as a share of the largest logit (or of 1)."""
SHAPES = 6
"""Image sizes for which OpenVINO gets a program of their own; the others run with free sizes, more slowly."""
WORTH = 32
"""Images from which OpenVINO pays: it takes ten seconds and more to load."""


def open_engine(segmenter: Segmenter, name: str = "auto", *, images: int = 1) -> Network:
    """Build what computes a segmenter's logits.

    `auto` is `openvino` on a CPU that has it when at least `WORTH` images are expected, else `torch`. An engine that
    cannot be built, or whose logits on an image of noise are not the plain model's within `TOLERANCE`, is left out
    with a warning: `torch` takes its place, and the plain model that of `torch`. The segmenter is in eval mode.

    Raises:
        UserError: there is no such engine, or not here.
    """
    device = segmenter.mean.device.type
    installed = importlib.util.find_spec("openvino") is not None
    if name == "auto":
        name = "openvino" if installed and device == "cpu" and images >= WORTH else "torch"
    if name not in ENGINES:
        raise UserError(f"There is no engine {name!r}: choose one of auto, {', '.join(ENGINES)}.")
    if name == "openvino" and not installed:
        raise UserError("The engine openvino needs openvino: pip install 'ssrseg[openvino]'")
    if name == "openvino" and device != "cpu":
        raise UserError(f"The engine openvino runs on the CPU; the model is on {device}.")
    for candidate in dict.fromkeys((name, "torch")):
        network = _checked(candidate, segmenter)
        if network is not None:
            return network
    return segmenter


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Choose a device: `auto` (CUDA, else MPS, else the CPU) or one of torch's; raises `UserError` if absent.

    Of several processes of a machine, each gets a GPU of its own for `auto` and `cuda`.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if str(name) == "cuda" and rank.isdigit() and (count := torch.cuda.device_count()):
        name = f"cuda:{int(rank) % count}"  # one of several processes: its own
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"The device {str(name)!r} cannot be used here: {first_line(error)} Try `cpu` or `auto`."
        ) from error


@torch.no_grad()
def _checked(name: str, segmenter: Segmenter) -> Network | None:
    """Build an engine; nothing when that fails or when it does not compute the model."""
    size = segmenter.backbone.sizes.largest or PICTURE
    picture = torch.rand(1, segmenter.in_channels, *size, generator=torch.Generator().manual_seed(0))
    picture = picture.to(segmenter.mean)
    try:
        network = ENGINES[name](segmenter)
        expected = segmenter(picture)
        difference = float((network(picture) - expected).abs().max() / expected.abs().max().clamp(min=1))
    except Exception as error:  # a runtime's own; the plain model remains
        reason = first_line(error)
    else:
        if difference <= TOLERANCE:
            return network
        reason = f"its logits differ from the model's by {difference:.1e} of the largest; {TOLERANCE:g} is allowed."
    warnings.warn(f"The engine {name} is left out: {reason}", stacklevel=5)
    return None


def run_in_torch(segmenter: Segmenter) -> Segmenter:
    """Arrange a copy of the segmenter for inference on its device."""
    fused = fuse(segmenter)
    if segmenter.mean.device.type != "cpu":
        return fused.to(memory_format=torch.channels_last)
    from ssrseg.cpu import optimize  # other devices do without it

    return optimize(fused)


def run_compiled(segmenter: Segmenter) -> Segmenter:
    """Compile the backbone; the head is arranged by hand, as in `run_in_torch`."""
    network = run_in_torch(segmenter)
    network.backbone.pyramid.compile()
    return network


def run_in_openvino(segmenter: Segmenter) -> Segmenter:
    """Run the backbone in OpenVINO; the head is faster as `run_in_torch` arranges it."""
    network = run_in_torch(segmenter)
    backbone = fuse(segmenter).backbone
    keeps = segmenter.detail is not None  # the context's features, while the windows are seen
    network.backbone.pyramid = OpenVINOPyramid(backbone.pyramid, backbone.sizes, segmenter.in_channels, keeps=keeps)
    return network


class OpenVINOPyramid(nn.Module):
    """A backbone's pyramid that OpenVINO computes in float32 on the CPU, with torch's number of threads.

    A plain ViT, whose positions follow the image's size, is converted for each of the last `SHAPES` sizes.
    """

    def __init__(self, pyramid: nn.Module, sizes: ImageSizes, bands: int = 3, *, keeps: bool = False) -> None:
        super().__init__()
        self.keeps = keeps
        self.plain = pyramid if isinstance(pyramid, PlainPyramid) and sizes.scale is not None else None
        if self.plain is None:
            padded = (-(-side // step) * step for side, step in zip(PICTURE, sizes.multiple, strict=True))
            self.program = _converted(pyramid, torch.rand(2, bands, *(sizes.largest or padded)))
        self.core: Any = importlib.import_module("openvino").Core()
        self.requests: dict[tuple[int, ...] | None, Any] = {}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute features of normalised images; the next call overwrites them, unless it `keeps` them."""
        shape: tuple[int, ...] | None = tuple(images.shape)
        if shape not in self.requests and len(self.requests) >= SHAPES:
            if self.plain is None:
                shape = None
            else:
                self.requests.pop(next(iter(self.requests)))
        if shape not in self.requests:
            if self.plain is None:
                program = self.program.clone()
            else:
                height, width = images.shape[-2:]
                program = _converted(self.plain.at((height, width)), images)
            if shape is not None:
                program.reshape(list(shape))
            settings = {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
            }
            self.requests[shape] = self.core.compile_model(program, "CPU", settings).create_infer_request()
        results = self.requests[shape].infer(
            [images.contiguous().numpy()], share_inputs=True, share_outputs=not self.keeps
        )
        return [torch.from_numpy(results[i]) for i in range(len(results))]


def _converted(pyramid: nn.Module, example: Tensor) -> Any:
    with warnings.catch_warnings():  # tracing warns of every Python number that it makes constant
        warnings.simplefilter("ignore")
        return importlib.import_module("openvino").convert_model(_Tuple(pyramid), example_input=example)


class _Tuple(nn.Module):
    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.pyramid(images))


ENGINES: dict[str, Callable[[Segmenter], Network]] = {
    "torch": run_in_torch,
    "compiled": run_compiled,
    "openvino": run_in_openvino,
}
"""Name -> a segmenter in eval mode -> what computes the same."""
