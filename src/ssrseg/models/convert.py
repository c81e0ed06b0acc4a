"""`convert`: a published checkpoint to a model file; the network is recognised by names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ssrseg.errors import UserError
from ssrseg.models.backbones import BACKBONES
from ssrseg.models.description import Description, Detail
from ssrseg.models.heads import HEADS
from ssrseg.models.published import LoadReport, load_published
from ssrseg.models.segmenter import build_described, save_segmenter
from ssrseg.models.weight_files import find_network, read_weights
from ssrseg.models.weight_names import backbone_in, recognise, to_official

PART = "--part "

HEAD_MARKS = {
    "embed_layers.0.proj.weight": ("daformer", 256),
    "linear_c.0.proj.weight": ("segformer", 768),
    "aspp_modules.3.conv.weight": ("deeplabv2-whole", None),
    "aspp_modules.0.conv.weight": ("deeplabv2", None),
    "squeeze.1.weight": ("aspp-attentive", None),
}
"""Official name of a layer -> the head that has it, and its published width."""

_OUTPUTS = ("linear_pred", "aspp_modules.0.conv", "classify", "branches.0", "conv_seg")
"""Layers that give the classes, in official names and in ours; SegFormer's conv_seg is a dead layer."""

CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
"""The classes of a published checkpoint with 19 that does not say which: all of them follow Cityscapes."""


def convert(
    source: Path,
    out: Path,
    *,
    backbone: str | None = None,
    head: str | None = None,
    classes: Sequence[str] | None = None,
    resize: tuple[int, int] | None = None,
    part: str | None = None,
) -> LoadReport:
    """Write a published checkpoint as a model file of ours.

    Args:
        source: the checkpoint.
        out: safetensors file to write.
        backbone: recognised by its depths and widths when absent, but for our own names.
        head: recognised by its names when absent, but for our own names.
        classes: their names; when absent those in the checkpoint's `meta`, else Cityscapes' for 19, else numbers.
        resize: (width, height) that bounds the images at inference.
        part: which network of the checkpoint: its key or prefix, such as `ema_model` (`docs/weights.md`).

    Raises:
        UserError: the checkpoint cannot be read, something is neither given nor recognised, or it does not fit.
    """
    file = read_weights(source)
    network = find_network(file, _fit, part=part, setting=PART)
    dialect = recognise(network.tensors)
    state = to_official(network.tensors, dialect, {})
    if (classifier := _classifier(state)) is None:
        raise UserError(f"{source} has no classifier: it is a backbone. Use it as model.pretrained instead.")
    if dialect == "ssrseg" and not (backbone and head):
        raise UserError(
            f"{source} holds weights under our own names. What `ssrseg train` wrote is a model as it is; of another "
            "file say what network it is of: --backbone NAME --head NAME --classes CLASS,CLASS,..."
        )
    count = len(classifier)
    known = CITYSCAPES if count == len(CITYSCAPES) else tuple(f"class-{i}" for i in range(count))
    classes = tuple(classes or _listed(file.meta.get("CLASSES"), count) or known)
    if len(classes) != count:
        raise UserError(f"{source} has {count} classes, but {len(classes)} names were given.")
    detail = _detail_in(state, file.meta)
    recognised, channels = _head_in(state, "decode_head.head." if detail else "decode_head.")
    if dialect == "dacs":  # its head owns four branches and returns after the second
        recognised = "deeplabv2"
    if dialect == "ssrseg" and classifier.shape[-1] == 1:  # a layer of 1x1, behind the head's own width
        channels = classifier.shape[1]
    if not (head := head or recognised):
        raise UserError(f"The head in {source} is not recognised: name it with --head, one of {', '.join(HEADS)}.")
    if not (backbone := backbone or backbone_in(state, dialect)):
        names = f"{', '.join(BACKBONES)} or timm:<name>"
        raise UserError(f"The backbone in {source} is not recognised: name it with --backbone, one of {names}.")
    palette = _listed(file.meta.get("PALETTE"), count) or ()
    description = Description(
        backbone=backbone,
        head=head,
        classes=tuple(map(str, classes)),
        colors=tuple((int(red), int(green), int(blue)) for red, green, blue in palette),
        resize=resize,
        head_channels=channels,
        align_corners=dialect in ("dacs", "undoing"),
        detail=detail,
    )
    segmenter = build_described(description)
    report = load_published(segmenter, file, part=network.path[:-1] or None, setting=PART, backbone="--backbone ")
    save_segmenter(segmenter, out)
    return report


def _head_in(state: Mapping[str, Tensor], prefix: str) -> tuple[str, int | None]:
    """Name, and the width where it is not the published one; no name when unknown."""
    for layer, (head, published) in HEAD_MARKS.items():
        if (weight := state.get(f"{prefix}{layer}")) is not None:
            return head, None if published in (None, len(weight)) else len(weight)
    return "", None


def _detail_in(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Detail | None:
    """How a network looks twice, if it does; the numbers stand in the text of its configuration, else are HRDA's."""
    if not any(name.startswith("decode_head.head.") for name in state):
        return None
    text, usual = str(meta.get("config", "")), Detail()

    def numbers(option: str, pattern: str = r"[^\])]*") -> list[float]:
        found = re.search(rf"\b{option}\s*=\s*[\[(]?({pattern})", text)
        return [float(number) for number in re.findall(r"[\d.]+", found[1])] if found else []

    rows, columns = numbers("hr_crop_size") or usual.window
    window = int(rows), int(columns)
    attention: Any = numbers("fixed_attention", r"[\d.]+") or [0.5]
    if (weight := _first(state, "decode_head.scale_attention.", _OUTPUTS)) is not None:
        attention = ["shared" if len(weight) == 1 else "classes"]
    return Detail(
        window,
        stride=window if re.search(r"hr_slide_overlapping\s*=\s*False", text) else None,
        scale=min(numbers("scales") or [usual.scale]),
        attention=attention[0],
        divisor=int((numbers("crop_coord_divisible", r"\d+") or [usual.divisor])[0]),
        blurred=bool(re.search(r"blur_hr_crop\s*=\s*True", text)),
    )


def _classifier(state: Mapping[str, Tensor]) -> Tensor | None:
    found = (_first(state, prefix, _OUTPUTS) for prefix in ("decode_head.", "decode_head.head.", "head."))
    return next((weight for weight in found if weight is not None), None)


def _first(state: Mapping[str, Tensor], prefix: str, layers: Sequence[str]) -> Tensor | None:
    return next((state[name] for layer in layers if (name := f"{prefix}{layer}.weight") in state), None)


def _fit(weights: Mapping[str, Tensor]) -> float:
    """Tell whether weights are a network with a head whose names we know."""
    renamed = to_official({name: value.to("meta") for name, value in weights.items()}, recognise(weights), {})
    return float(_classifier(renamed) is not None)


def _listed(value: Any, count: int) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, list | tuple) and len(value) == count else None
