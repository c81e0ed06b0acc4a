"""What runs a segmenter: torch, or a faster runtime of this machine; each is checked against the plain model."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.inference.export import STRIDE, export
from ssrseg.inference.sliding_window import Network, evaluating
from ssrseg.models.fused import fuse
from ssrseg.models.segmenter import Segmenter

PICTURE = (1, 3, 128, 192)
"""Shape of the picture of noise that an engine is checked with."""
TIMED = (1, 3, 512, 512)
"""Shape of the picture of noise with which several engines are timed."""
SHAPES = 6
"""Image sizes for which OpenVINO gets a program of their own; the others run with free sizes, more slowly."""


@dataclass(frozen=True)
class Engine:
    """One way to run a segmenter."""

    build: Callable[[Segmenter], Network]
    """A segmenter in eval mode -> what computes the same."""
    packages: tuple[str, ...] = ()
    extra: str = ""
    """The extra of ours that brings the packages."""
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")
    worth: int | None = None
    """Images from which `auto` considers it on a CPU, since it takes long to build; never when absent."""
    tolerance: float = 1e-3
    """Largest difference of a logit from the plain model's, as a share of the largest logit (or of 1)."""

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def open_engine(segmenter: Segmenter, name: str = "auto", *, images: int = 1) -> Network:
    """What computes a segmenter's logits, the fastest way that this machine has.

    An engine that cannot be built, or whose logits on a picture of noise are not the plain model's within the engine's
    tolerance, is left out with a warning.

    Args:
        segmenter: on its device.
        name: a key of `ENGINES`; `auto` times those whose building pays for so many images and takes the fastest.
        images: how many are waiting.

    Raises:
        UserError: there is no such engine, or not here.
    """
    device = segmenter.mean.device.type
    networks: list[Network] = []
    with evaluating(segmenter):
        for candidate in _candidates(name, device, images):
            network = _checked(candidate, segmenter)
            if network is not None and name != "auto":
                return network
            networks += [] if network is None else [network]
        if len(networks) < 2:
            return networks[0] if networks else segmenter
        picture = torch.rand(TIMED, generator=torch.Generator().manual_seed(0)).to(segmenter.mean)
        return min(networks, key=lambda network: _seconds(network, picture))


def _seconds(network: Network, picture: Tensor) -> float:
    """Of one picture, after another one for which programs are built."""
    network(picture)
    began = time.perf_counter()
    network(picture)
    return time.perf_counter() - began


def _candidates(name: str, device: str, images: int) -> list[str]:
    if name != "auto":
        if name not in ENGINES:
            raise UserError(f"There is no engine {name!r}: choose one of auto, {', '.join(ENGINES)}.")
        engine = ENGINES[name]
        if engine.missing:
            raise UserError(
                f"The engine {name} needs {', '.join(engine.missing)}: pip install 'ssrseg[{engine.extra}]'"
            )
        if device not in engine.devices:
            raise UserError(f"The engine {name} runs on {', '.join(engine.devices)}; the model is on {device}.")
        return list(dict.fromkeys((name, "torch")))
    paying = [
        key
        for key, engine in ENGINES.items()
        if engine.worth is not None and images >= engine.worth and device == "cpu" and not engine.missing
    ]
    return list(dict.fromkeys((*paying, "torch")))


def _checked(name: str, segmenter: Segmenter) -> Network | None:
    """The engine's network; nothing when it cannot be built or is not the model."""
    engine, picture = ENGINES[name], torch.rand(PICTURE, generator=torch.Generator().manual_seed(0))
    picture = picture.to(segmenter.mean)
    try:
        network = engine.build(segmenter)
        expected = segmenter(picture)
        difference = float((network(picture) - expected).abs().max() / expected.abs().max().clamp(min=1))
    except Exception as error:  # a runtime's own; the plain model remains
        reason = str(error).partition("\n")[0]
        warnings.warn(f"The engine {name} cannot run this model and is left out: {reason}", stacklevel=4)
        return None
    if not difference <= engine.tolerance:
        warnings.warn(
            f"The engine {name} is left out: its logits differ from the model's by {difference:.1e} of the largest; "
            f"{engine.tolerance:g} is allowed.",
            stacklevel=4,
        )
        return None
    return network


def _torch(segmenter: Segmenter) -> Network:
    fused = fuse(segmenter)
    if segmenter.mean.device.type != "cpu":
        return fused.to(memory_format=torch.channels_last)
    from ssrseg.cpu import optimize  # other devices do without it

    return optimize(fused)


def _compiled(segmenter: Segmenter) -> Network:
    """The head is arranged by hand, so the backbone alone is compiled."""
    network = _torch(segmenter)
    assert isinstance(network, Segmenter)
    network.backbone.pyramid.compile()
    return network


def _cuda_graphs(segmenter: Segmenter) -> Network:
    """Bfloat16 and CUDA graphs. No test of ours has run it: none had a GPU."""
    compiled = torch.compile(fuse(segmenter).to(memory_format=torch.channels_last), mode="reduce-overhead")

    def run(images: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits: Tensor = compiled(images)
        return logits.float().clone()  # the next call overwrites what a graph gave

    return run


def _onnxruntime(segmenter: Segmenter) -> Network:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = export(segmenter, Path(folder, "model.onnx"), size=PICTURE[2:], check=False).onnx
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    other = _torch(segmenter)

    def run(images: Tensor) -> Tensor:
        if images.shape[-2] % STRIDE or images.shape[-1] % STRIDE:
            rest: Tensor = other(images)  # the file takes multiples only
            return rest
        logits: Tensor = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        return logits

    return run


class OpenVINOBackbone(nn.Module):
    """A backbone that OpenVINO computes in float32 on the CPU, with torch's number of threads."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        runtime: Any = importlib.import_module("openvino")
        with warnings.catch_warnings():  # tracing warns of every Python number that it makes constant
            warnings.simplefilter("ignore")
            example = torch.rand(2, *PICTURE[1:])
            self.program = runtime.convert_model(_Tuple(backbone), example_input=example)
        self.core = runtime.Core()
        self.requests: dict[tuple[int, ...] | None, Any] = {}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images -> features, which the next call overwrites."""
        shape: tuple[int, ...] | None = tuple(images.shape)
        if shape not in self.requests:
            shape = shape if len(self.requests) < SHAPES else None
        if shape not in self.requests:
            self.requests[shape] = self._request(shape)
        results = self.requests[shape].infer([images.contiguous().numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(results[i]) for i in range(len(results))]

    def _request(self, shape: tuple[int, ...] | None) -> Any:
        program = self.program.clone()
        if shape is not None:
            program.reshape(list(shape))
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return self.core.compile_model(program, "CPU", settings).create_infer_request()


class _Tuple(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images))


def _openvino(segmenter: Segmenter) -> Network:
    """Its backbone is the faster one; the head is faster as it is arranged here."""
    network = _torch(segmenter)
    assert isinstance(network, Segmenter)
    network.backbone = OpenVINOBackbone(fuse(segmenter).backbone)  # type: ignore[assignment]
    return network


ENGINES: dict[str, Engine] = {
    "openvino": Engine(_openvino, ("openvino",), "openvino", ("cpu",), worth=32),
    "onnxruntime": Engine(_onnxruntime, ("onnx", "onnxscript", "onnxruntime"), "export", ("cpu",)),
    "compiled": Engine(_compiled),
    "cuda-graphs": Engine(_cuda_graphs, devices=("cuda",), tolerance=0.05),
    "torch": Engine(_torch),
}
"""Name -> engine."""
