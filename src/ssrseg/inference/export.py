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
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.models.hiera import MaskUnitAttention
from timm.models.vision_transformer_sam import Attention as SAMAttention
from torch import nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from ssrseg.errors import UserError, first_line, out_of_memory
from ssrseg.inference.onnx_graph import STRIDE, finish
from ssrseg.inference.sliding_window import Size
from ssrseg.models.segmenter import Segmenter
from ssrseg.models.weights import load
from ssrseg.runs.atomic import write_atomically, writing

EQUAL_LABELS, EQUAL_IN_HALF = 0.9999, 0.99
"""Least share of pixels for which the exported model must predict torch's class; of one in float16."""
OPSET = 18
"""The earliest that torch writes."""


@dataclass(frozen=True)
class ExportReport:
    """The file of an export, and how the model in it compares with torch on random images."""

    onnx: Path
    max_difference: float | None
    """Largest absolute difference of the logits; absent where the file gives classes."""
    equal_labels: float
    """Share of pixels with the same most likely class."""
    size: Size | None = None
    """(height, width) of the one image that it takes; absent where all sizes go."""

    def __str__(self) -> str:
        equal = f"{100 * self.equal_labels:.3f}% equal labels"
        logits = "" if self.max_difference is None else f"logits differ by at most {self.max_difference:.1e}, "
        takes = (
            "images of any size, which it pads" if self.size is None else "one image of {}x{}".format(*self.size[::-1])
        )
        return f"{self.onnx}: takes {takes}; on random images {logits}{equal}"

    @property
    def example(self) -> str:
        """A script that labels a picture with the file, without this package."""
        fit = "" if self.size is None else f".resize({self.size[::-1]})"
        classes = "labels" if self.max_difference is None else "logits.argmax(1)"
        return EXAMPLE.format(
            package="onnxruntime",
            load=ONNX_LOAD.format(path=str(self.onnx)),
            fit=fit,
            run=f'({classes.partition(".")[0]},) = session.run(None, {{"images": images}})',
            classes=classes,
        )


EXAMPLE = """\
import json

import numpy as np
import {package}
from PIL import Image

{load}

picture = Image.open("picture.png").convert("RGB"){fit}
images = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255  # (1, 3, height, width), in [0, 1]
{run}
ids = {classes}[0].astype(np.uint8)  # (height, width): a class's number per pixel

labels = Image.fromarray(ids)
if about.get("colors"):
    labels.putpalette(np.array(about["colors"], np.uint8).tobytes())
labels.save("labels.png")
for number in np.unique(ids):
    print(about["classes"][number] if about else number, f"{{(ids == number).mean():.1%}}")
"""
"""A script that labels a picture with an exported file, without this package."""
ONNX_LOAD = """\
session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["ssrseg"])["description"] or {{}}"""


def export(
    model: Path | str | Segmenter,
    out: Path,
    *,
    size: Size = (512, 1024),
    dynamic: bool = True,
    labels: bool = False,
    half: bool = False,
    opset: int | None = None,
) -> ExportReport:
    """Write a model as ONNX: RGB in [0, 1] `images` (B, 3, H, W) -> `logits` (B, K, H, W).

    The normalisation is inside the graph; classes and colours lie in the file's metadata, under `ssrseg`. The file is
    compared with torch in onnxruntime; nothing is left in the place of `out` when they differ.

    Args:
        model: a segmenter, or where one lies, as in `Predictor`.
        out: the `.onnx` file.
        size: (height, width) of the images to trace and check with.
        dynamic: batch, height and width are free: images are padded to multiples of 32 by the mean colour inside the
            graph, and the logits cut back; else one image of `size`. A model that takes other sizes is exported for one
            image of the largest, or of `size` rounded up; a plain ViT, whose positions follow the image's size, and one
            that looks at details, for one image of `size`.
        labels: give `labels` (B, H, W), uint8, the most likely classes, in place of logits.
        half: weights and arithmetic in float16; images and logits stay float32.
        opset: of ONNX, 18 or later; torch's own choice when absent.

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
    if dynamic:
        size = (-(-size[0] // STRIDE) * STRIDE, -(-size[1] // STRIDE) * STRIDE)
    if opset is not None and opset < OPSET:
        raise UserError(f"torch writes ONNX of opset {OPSET} or later, not {opset}.")
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"Expected the name of an .onnx file, found {out}.")
    if dynamic:
        pad_statically(segmenter)
    program = _trace(segmenter, size, dynamic, opset)
    program.model.metadata_props["ssrseg"] = facts_of(segmenter)
    checks: list[tuple[float, float]] = []

    def write(partial: Path) -> None:
        program.save(partial)
        finish(partial, segmenter.mean.flatten().tolist() if dynamic else None, labels=labels, half=half)
        checks.extend(_check(segmenter, partial, size, dynamic, EQUAL_IN_HALF if half else EQUAL_LABELS))

    with writing(out):
        write_atomically(out, write)
    difference = None if labels else max(difference for difference, _ in checks)
    return ExportReport(out, difference, min(equal for _, equal in checks), None if dynamic else size)


def facts_of(segmenter: Segmenter) -> str:
    """Return what an exported file says of itself, as JSON."""
    facts = {
        "images": f"{'RGB' if (bands := segmenter.in_channels) == 3 else f'{bands} bands'} in [0, 1], not normalised",
        "multiple_of": 1,
        "description": segmenter.description and dataclasses.asdict(segmenter.description),
    }
    return json.dumps(facts)


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


def _trace(segmenter: Segmenter, size: Size, dynamic: bool, opset: int | None = None) -> Any:
    shapes = ({0: Dim("batch"), 2: STRIDE * Dim("h"), 3: STRIDE * Dim("w")},) if dynamic else None
    batch = 2 if dynamic else 1  # traced with one image, the batch would be frozen at 1
    example = torch.rand(batch, segmenter.in_channels, *size)
    for layer in segmenter.modules():
        if isinstance(layer, MaskUnitAttention | SAMAttention):  # in five and three dimensions: ONNX's fused has four
            setattr(layer, "fused_attn", False)  # noqa: B010 -- final, for TorchScript's sake
    try:
        with torch.no_grad():
            return torch.onnx.export(
                segmenter,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=shapes,
                opset_version=opset,
                verbose=False,
            )
    except RuntimeError as error:  # of torch, or of a pass of onnxscript
        cause = error.__cause__ or error
        if out_of_memory(cause):
            raise cause from None
        hint = " Some backbones take one size only: try --static (dynamic=False)." if dynamic else ""
        raise UserError(
            f"torch {torch.__version__} cannot export this model to ONNX: {first_line(cause)}{hint} "
            "Of older versions than `pip install -U 'ssrseg[export]'` takes, few export any model."
        ) from error


def _check(segmenter: Segmenter, path: Path, size: Size, dynamic: bool, least: float) -> Iterator[tuple[float, float]]:
    """Compare with torch on images of the traced size and, when dynamic, on a batch that needs padding."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = size[0] // 2 + 5, size[1] // 2 + STRIDE + 7
    bands = segmenter.in_channels
    for seed, shape in enumerate([(1, bands, *size), (3, bands, *other)] if dynamic else [(1, bands, *size)]):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        missing = (0, -shape[3] % STRIDE, 0, -shape[2] % STRIDE) if dynamic else (0, 0, 0, 0)
        with torch.inference_mode():
            padded = F.pad(images - segmenter.mean, missing) + segmenter.mean
            expected = segmenter(padded)[..., : shape[2], : shape[3]]
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        difference = float((found - expected).abs().max()) if found.ndim == 4 else 0.0
        classes = found.argmax(1) if found.ndim == 4 else found
        equal = float((classes == expected.argmax(1)).double().mean())
        if equal < least:
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
