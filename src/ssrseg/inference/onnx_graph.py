"""An exported graph, finished: any image size by padding, classes instead of logits, half precision."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

STRIDE = 32
"""Heights and widths that a dynamic graph takes before it is finished are multiples of it."""


def finish(path: Path, mean: Sequence[float] | None, *, labels: bool, half: bool) -> None:
    """Change an exported file in place: padding inside, by the `mean` of each band, where that is given; its output."""
    onnx: Any = importlib.import_module("onnx")
    if mean is None and not labels and not half:
        return
    model = onnx.load(path)
    if mean is not None:
        pad_to_multiples(model.graph, STRIDE, mean)
    if labels:
        choose_classes(model.graph)
    onnx.save(halve_precision(model) if half else model, path)


def pad_to_multiples(graph: Any, multiple: int, mean: Sequence[float]) -> None:
    """Let a graph of `images` -> `logits` take any height and width: padded by the mean colour, the logits cut back.

    The graph is an `onnx.GraphProto` for multiples of `multiple`; it is changed in place.
    """
    onnx: Any = importlib.import_module("onnx")
    _rename(graph, "images", "padded_images")
    _rename(graph, "logits", "padded_logits")
    constants = {
        "pad_mean": np.array(mean, np.float32).reshape(1, -1, 1, 1),
        "pad_zero": np.array(0, np.float32),
        "pad_before": np.zeros(6, np.int64),
        "pad_axes": np.array([2, 3], np.int64),
        "pad_start": np.zeros(2, np.int64),
        "pad_step": np.array(multiple, np.int64),
        "pad_round": np.array(multiple - 1, np.int64),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    node = onnx.helper.make_node
    before = [
        node("Shape", ["images"], ["pad_size"], start=2, end=4),
        node("Add", ["pad_size", "pad_round"], ["pad_up"]),
        node("Div", ["pad_up", "pad_step"], ["pad_count"]),
        node("Mul", ["pad_count", "pad_step"], ["pad_target"]),
        node("Sub", ["pad_target", "pad_size"], ["pad_after"]),
        node("Concat", ["pad_before", "pad_after"], ["pad_amounts"], axis=0),
        node("Sub", ["images", "pad_mean"], ["pad_centred"]),
        node("Pad", ["pad_centred", "pad_amounts", "pad_zero"], ["pad_wide"], mode="constant"),
        node("Add", ["pad_wide", "pad_mean"], ["padded_images"]),
    ]
    inner = list(graph.node)
    del graph.node[:]
    after = node("Slice", ["padded_logits", "pad_start", "pad_size", "pad_axes"], ["logits"])
    graph.node.extend([*before, *inner, after])
    for value, name in ((graph.input[0], "images"), (graph.output[0], "logits")):
        value.name = name
        for axis, letter in ((2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = letter


def choose_classes(graph: Any) -> None:
    """Replace the output `logits` (B, K, H, W) by `labels` (B, H, W), uint8: the most likely class; in place."""
    onnx: Any = importlib.import_module("onnx")
    node, shape = onnx.helper.make_node, graph.output[0].type.tensor_type.shape.dim
    graph.node.append(node("ArgMax", ["logits"], ["labels_wide"], axis=1, keepdims=0))
    graph.node.append(node("Cast", ["labels_wide"], ["labels"], to=onnx.TensorProto.UINT8))
    sides = [shape[axis].dim_param or shape[axis].dim_value for axis in (0, 2, 3)]
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.UINT8, sides))


def halve_precision(model: Any) -> Any:
    """Return an `onnx.ModelProto` whose weights and arithmetic are float16; what goes in and comes out is not."""
    tools: Any = importlib.import_module("onnxruntime.transformers.float16")
    return tools.convert_float_to_float16(model, keep_io_types=True)


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
