"""A segmenter as one ONNX file, checked against torch, and proof of what is in its graph."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from ssrseg.errors import UserError, first_line, out_of_memory
from ssrseg.inference.sliding_window import Size
from ssrseg.models.segmenter import Segmenter
from ssrseg.models.weights import load
from ssrseg.runs.atomic import write_atomically, writing

STRIDE = 32
"""Dynamic heights and widths are multiples of the backbones' coarsest stride."""
EQUAL_LABELS = 0.9999
"""Least share of pixels for which the exported model must predict torch's class."""


@dataclass(frozen=True)
class ExportReport:
    """The file of an export, and how the model in it compares with torch on random images."""

    onnx: Path
    max_difference: float
    """Largest absolute difference of the logits."""
    equal_labels: float
    """Share of pixels with the same most likely class."""

    def __str__(self) -> str:
        equal = f"{100 * self.equal_labels:.3f}% equal labels"
        return f"{self.onnx}: on random images logits differ by at most {self.max_difference:.1e}, {equal}"


def export(model: Path | str | Segmenter, out: Path, *, size: Size = (512, 1024), dynamic: bool = True) -> ExportReport:
    """Write a model as ONNX: RGB in [0, 1] `images` (B, 3, H, W) -> `logits` (B, K, H, W).

    The normalisation is inside the graph; classes and colours lie in the file's metadata, under `ssrseg`. The file is
    compared with torch in onnxruntime; nothing is left in the place of `out` when they differ.

    Args:
        model: a segmenter, or where one lies, as in `Predictor`.
        out: the `.onnx` file.
        size: (height, width) of the images to trace and check with.
        dynamic: batch, height and width are free, height and width as multiples of 32; else one image of `size`. A
            model that takes other sizes is exported for one image of the largest, or of `size` rounded up; a plain ViT,
            whose positions follow the image's size, and one that looks at details, for one image of `size`.

    Raises:
        UserError: packages are missing, torch cannot export the model, or its predictions differ from torch's.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(f"Exporting needs {', '.join(missing)}: pip install 'ssrseg[export]'")
    segmenter = copy.deepcopy(load(model)).cpu().float().eval()
    sizes = segmenter.backbone.sizes
    if sizes.scale is not None:
        dynamic = False
    elif max(sizes.multiple) > STRIDE:
        rows, columns = (-(-side // step) * step for side, step in zip(size, sizes.multiple, strict=True))
        size, dynamic = sizes.largest or (rows, columns), False
    if segmenter.detail is not None:  # the number of its windows follows from the size
        dynamic = False
    if dynamic and any(length % STRIDE for length in size):
        raise UserError(f"The size {size} should be multiples of {STRIDE}; or export with dynamic=False.")
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"Expected the name of an .onnx file, found {out}.")
    if dynamic:
        pad_statically(segmenter)
    program = _trace(segmenter, size, dynamic)
    facts = {
        "images": f"{'RGB' if (bands := segmenter.in_channels) == 3 else f'{bands} bands'} in [0, 1], not normalised",
        "multiple_of": STRIDE if dynamic else 1,
        "description": segmenter.description and dataclasses.asdict(segmenter.description),
    }
    program.model.metadata_props["ssrseg"] = json.dumps(facts)
    checks: list[tuple[float, float]] = []

    def write(partial: Path) -> None:
        program.save(partial)
        checks.extend(_check(segmenter, partial, size, dynamic))

    with writing(out):
        write_atomically(out, write)
    return ExportReport(out, max(difference for difference, _ in checks), min(equal for _, equal in checks))


def pad_statically(module: nn.Module) -> None:
    """Replace TensorFlow's `SAME` convolutions, whose padding depends on the input's size, by ones that do not need it.

    Sizes are multiples of `STRIDE`, so every strided layer sees a multiple of its stride and the padding is constant;
    with symbolic sizes the exporter would reason about it for minutes. Changed in place.
    """
    for name, child in module.named_children():
        if not isinstance(child, Conv2dSame):
            pad_statically(child)
            continue
        same: Any = child
        pads: list[int] = []  # left, right, top, bottom: the innermost dimension first
        for kernel, dilation, stride in zip(same.kernel_size, same.dilation, same.stride, strict=True):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            pads = [total // 2, total - total // 2, *pads]
        sizes = same.in_channels, same.out_channels, same.kernel_size
        plain = nn.Conv2d(*sizes, stride=same.stride, dilation=same.dilation, groups=same.groups)
        plain.weight, plain.bias = same.weight, same.bias
        setattr(module, name, nn.Sequential(nn.ZeroPad2d((pads[0], pads[1], pads[2], pads[3])), plain))


def _trace(segmenter: Segmenter, size: Size, dynamic: bool) -> Any:
    shapes = ({0: Dim("batch"), 2: STRIDE * Dim("h"), 3: STRIDE * Dim("w")},) if dynamic else None
    batch = 2 if dynamic else 1  # traced with one image, the batch would be frozen at 1
    example = torch.rand(batch, segmenter.in_channels, *size)
    try:
        with torch.no_grad():
            return torch.onnx.export(
                segmenter,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        if error.__cause__ is not None and out_of_memory(error.__cause__):
            raise error.__cause__ from None
        hint = " Some backbones take one size only: try dynamic=False." if dynamic else ""
        reason = first_line(error.__cause__ or error)
        raise UserError(f"torch cannot export this model to ONNX: {reason}{hint}") from error


def _check(segmenter: Segmenter, path: Path, size: Size, dynamic: bool) -> Iterator[tuple[float, float]]:
    """Compare with torch on images of the traced size and, when dynamic, on a batch of another one."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = size[0] // 2 // STRIDE * STRIDE + STRIDE, size[1] // 2 // STRIDE * STRIDE + 2 * STRIDE
    bands = segmenter.in_channels
    for seed, shape in enumerate([(1, bands, *size), (3, bands, *other)] if dynamic else [(1, bands, *size)]):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            expected = segmenter(images)
        logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        difference = float((logits - expected).abs().max())
        equal = float((logits.argmax(1) == expected.argmax(1)).double().mean())
        if equal < EQUAL_LABELS:
            raise UserError(
                f"The exported model is not the model: on random images {shape} only {100 * equal:.2f}% "
                f"of the labels are equal (logits differ by up to {difference:.2g}); nothing was written."
            )
        yield difference, equal


@dataclass(frozen=True)
class GraphSignature:
    """A model's graph without the values of its weights."""

    operators: tuple[str, ...]
    """In the order of execution."""
    parameters: dict[str, tuple[int, ...]]
    """Name -> shape."""
    buffers: dict[str, tuple[int, ...]]
    flops: int
    """Of one image, multiplications and additions counted singly."""


def graph_signature(model: Segmenter, size: Size = (64, 64)) -> GraphSignature:
    """Trace the graph of a model in eval mode, for one image of a size.

    It proves that training left nothing behind: a model that was regularised has the signature of one that was not.
    """
    segmenter, images = copy.deepcopy(model).cpu().float().eval(), torch.rand(1, model.in_channels, *size)
    with torch.no_grad():
        program = torch.export.export(segmenter, (images,), strict=False)
        with FlopCounterMode(display=False) as counter:
            segmenter(images)
    return GraphSignature(
        operators=tuple(str(node.target) for node in program.graph.nodes if node.op == "call_function"),
        parameters={name: tuple(value.shape) for name, value in program.named_parameters()},
        buffers={name: tuple(value.shape) for name, value in program.named_buffers()},
        flops=counter.get_total_flops(),
    )
