"""Exported files in the place of a segmenter, to check what is deployed: run by onnxruntime, or by openvino."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ssrseg.config import InferenceConfig
from ssrseg.errors import UserError, first_line
from ssrseg.models.description import Description
from ssrseg.models.segmenter import Segmenter
from ssrseg.models.weights import load

Run = Callable[[Tensor], Tensor]
RUNTIMES = {".onnx": ("onnxruntime", "export"), ".xml": ("openvino", "openvino")}
"""Ending -> the package that runs such files, and the extra that brings it."""


class Exported:
    """A file of `export`, run on the CPU: images (B, C, H, W) in [0, 1] -> logits (B, K, H, W).

    Where classes were chosen in the graph, the logits are 1 for the class of a pixel and 0 for others. Where the file
    takes any size it pads images to multiples of 32, which the model that it was made of does not.

    Raises:
        UserError: no such file, its runtime is missing, or another file.
    """

    size: tuple[int, int] | None = None
    """(height, width) that images must have; absent where all sizes go."""
    chooses = False
    """Whether the graph gives classes in place of logits."""

    def __init__(self, path: Path) -> None:
        package, extra = RUNTIMES[path.suffix]
        if not path.is_file():
            raise UserError(f"There is no model file {path}.")
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{path} is run by {package}: pip install 'ssrseg[{extra}]'")
        self.path = path
        try:
            facts = self._open_onnx() if path.suffix == ".onnx" else self._open_openvino()
            known = TypeAdapter(Description).validate_python(json.loads(facts).get("description"))
        except Exception as error:  # a runtime's own
            raise UserError(f"{path} is not what `ssrseg export` makes of a model file: {first_line(error)}") from error
        self.description: Description | None = known
        self.num_classes, self.in_channels = len(known.classes), known.in_channels
        self.reading = known.in_channels, known.value_range, known.percentiles

    def _open_onnx(self) -> str:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        height, width = session.get_inputs()[0].shape[2:]
        self.size = (height, width) if isinstance(height, int) else None
        self.chooses = session.get_outputs()[0].name == "labels"
        self._run: Run = lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        return str(session.get_modelmeta().custom_metadata_map.get("ssrseg", "{}"))

    def _open_openvino(self) -> str:
        program = importlib.import_module("openvino").Core().read_model(self.path)
        self._run = run_on_cpu(program)
        return str(program.get_rt_info("ssrseg").astype(str))

    def check(self, device: str | torch.device, engine: str, inference: InferenceConfig) -> None:
        """Raise `UserError` where a file cannot do what is asked of a model."""
        if engine != "auto" or str(device) not in ("auto", "cpu"):
            raise UserError(f"{self.path} runs in its own engine, on the CPU: leave engine and device out.")
        if self.chooses and (inference.mode == "slide" or inference.flip or inference.scales != (1.0,)):
            raise UserError(f"{self.path} gives classes, which cannot be averaged: export the model without --labels.")

    def __call__(self, images: Tensor) -> Tensor:
        """Compute logits, image by image."""
        if self.size is not None and self.size != (found := (images.shape[-2], images.shape[-1])):
            own, other = ("x".join(map(str, reversed(size))) for size in (self.size, found))
            raise UserError(
                f"{self.path} takes images of {own} only, and this one is seen at {other}: export the model without "
                f"--static or with --size {other}, or label larger images in windows of {own} (--mode slide)."
            )
        results = torch.cat([self._run(image[None]) for image in images])
        if not self.chooses:
            return results
        shape = len(results), self.num_classes, *results.shape[1:]
        return torch.zeros(shape).scatter_(1, results[:, None].long(), 1.0)


def open_model(model: Segmenter | Exported | Path | str) -> Segmenter | Exported:
    """Open a model or an exported file, by its ending; one that is open is returned; raises `UserError`."""
    if isinstance(model, Segmenter | Exported):
        return model
    return Exported(Path(model)) if Path(model).suffix in RUNTIMES else load(model)


def run_on_cpu(program: Any) -> Run:
    """Compile a model of OpenVINO's for the CPU, in float32 where it is not quantised."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = importlib.import_module("openvino").compile_model(program, "CPU", settings)
    return lambda images: torch.from_numpy(compiled([images.numpy()])[0])
