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
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from ssrseg.errors import UserError
from ssrseg.inference.predictor import open_model
from ssrseg.inference.sliding_window import Size
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_atomically, write_json, writing

STRIDE = 32
"""Dynamic heights and widths are multiples of the backbones' coarsest stride."""
EQUAL_LABELS = 0.9999
"""Least share of pixels for which the exported model must predict torch's class."""


@dataclass(frozen=True)
class Check:
    """The exported model beside torch on random images of one shape."""

    shape: tuple[int, ...]
    """(B, 3, H, W)."""
    max_difference: float
    """Largest absolute difference of the logits."""
    equal_labels: float
    """Share of pixels with the same most likely class."""


@dataclass(frozen=True)
class ExportReport:
    """The files of an export, and how the model in them compares with torch."""

    onnx: Path
    sidecar: Path
    """JSON: classes, colours, input and output, the checks."""
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        checks = [
            f"{check.shape}: logits differ by at most {check.max_difference:.1e}, "
            f"{100 * check.equal_labels:.3f}% equal labels"
            for check in self.checks
        ]
        return "\n".join([str(self.onnx), *checks])


def export(
    model: Path | str | Segmenter, out: Path, *, size: Size = (512, 1024), dynamic: bool = True, check: bool = True
) -> ExportReport:
    """Write a model as ONNX: RGB in [0, 1] `images` (B, 3, H, W) -> `logits` (B, K, H, W).

    The normalisation is inside the graph. Classes and colours lie in the file's metadata, under `ssrseg`, and in a
    JSON file beside it. Nothing is left in the place of `out` when the check fails.

    Args:
        model: a segmenter, or where one lies, as in `Predictor`.
        out: the `.onnx` file.
        size: (height, width) of the images to trace and check with.
        dynamic: batch, height and width are free, height and width as multiples of 32; else one image of `size`.
        check: compare with torch in onnxruntime.

    Raises:
        UserError: packages are missing, torch cannot export the model, or its predictions differ from torch's.
    """
    packages = ("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"Exporting needs {', '.join(missing)}: pip install 'ssrseg[export]'")
    if dynamic and any(length % STRIDE for length in size):
        raise UserError(f"The size {size} should be multiples of {STRIDE}; or export with dynamic=False.")
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"Expected the name of an .onnx file, found {out}.")
    segmenter = _deployed(open_model(model))
    if dynamic:
        pad_statically(segmenter)
    program = _trace(segmenter, size, dynamic)
    facts = _facts(segmenter, size, dynamic)
    program.model.metadata_props["ssrseg"] = json.dumps(facts)
    checks: list[Check] = []

    def write(partial: Path) -> None:
        program.save(partial)
        if check:
            checks.extend(_check(segmenter, partial, size, dynamic))

    with writing(out):
        write_atomically(out, write)
    sidecar = out.with_suffix(".json")
    write_json(sidecar, {**facts, "checks": [dataclasses.asdict(made) for made in checks]})
    return ExportReport(out, sidecar, tuple(checks))


def _deployed(model: Segmenter) -> Segmenter:
    """Copy a model to the CPU, in eval mode; the caller's stays as it is."""
    return copy.deepcopy(model).cpu().float().eval()


def pad_statically(module: nn.Module) -> None:
    """Replace TensorFlow's `SAME` convolutions, whose padding depends on the input's size, by ones that do not need it.

    Sizes are multiples of `STRIDE`, so every strided layer sees a multiple of its stride and the padding is constant;
    with symbolic sizes the exporter would reason about it for minutes. Changed in place.
    """
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, _padded_convolution(child))
        else:
            pad_statically(child)


def _padded_convolution(same: Conv2dSame) -> nn.Sequential:
    pads: list[int] = []  # left, right, top, bottom: the innermost dimension first
    for kernel, dilation, stride in zip(same.kernel_size, same.dilation, same.stride, strict=True):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        pads = [total // 2, total - total // 2, *pads]
    plain = nn.Conv2d(
        same.in_channels,
        same.out_channels,
        (same.kernel_size[0], same.kernel_size[1]),
        stride=(same.stride[0], same.stride[1]),
        dilation=(same.dilation[0], same.dilation[1]),
        groups=same.groups,
        bias=same.bias is not None,
    )
    plain.load_state_dict(same.state_dict())
    return nn.Sequential(nn.ZeroPad2d((pads[0], pads[1], pads[2], pads[3])), plain)


def _trace(segmenter: Segmenter, size: Size, dynamic: bool) -> Any:
    shapes = None
    if dynamic:
        shapes = ({0: Dim("batch"), 2: STRIDE * Dim("h"), 3: STRIDE * Dim("w")},)
    # Traced with one image, the batch would be frozen at 1.
    example = torch.rand(2 if dynamic else 1, 3, *size)
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
        hint = " Some backbones take one size only: try dynamic=False." if dynamic else ""
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(f"torch cannot export this model to ONNX: {reason}{hint}") from error


def _facts(segmenter: Segmenter, size: Size, dynamic: bool) -> dict[str, Any]:
    shape = ["B", "H", "W"] if dynamic else [1, *size]
    description = segmenter.description
    return {
        "input": {
            "name": "images",
            "shape": [shape[0], 3, *shape[1:]],
            "range": "RGB in [0, 1], not normalised",
            "multiple_of": STRIDE if dynamic else None,
        },
        "output": {"name": "logits", "shape": [shape[0], segmenter.num_classes, *shape[1:]]},
        "description": dataclasses.asdict(description) if description else None,
    }


def _check(segmenter: Segmenter, path: Path, size: Size, dynamic: bool) -> Iterator[Check]:
    """Compare with torch on images of the traced size and, when dynamic, on a batch of another one."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = size[0] // 2 // STRIDE * STRIDE + STRIDE, size[1] // 2 // STRIDE * STRIDE + 2 * STRIDE
    for seed, shape in enumerate([(1, 3, *size), (3, 3, *other)] if dynamic else [(1, 3, *size)]):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            expected = segmenter(images)
        check = _compare(shape, torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), expected)
        if check.equal_labels < EQUAL_LABELS:
            raise UserError(
                f"The exported model is not the model: on random images {shape} only {100 * check.equal_labels:.2f}% "
                f"of the labels are equal (logits differ by up to {check.max_difference:.2g}); nothing was written."
            )
        yield check


def _compare(shape: tuple[int, ...], logits: Tensor, expected: Tensor) -> Check:
    equal = logits.argmax(1) == expected.argmax(1)
    return Check(shape, float((logits - expected).abs().max()), float(equal.double().mean()))


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
    segmenter, images = _deployed(model), torch.rand(1, 3, *size)
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
