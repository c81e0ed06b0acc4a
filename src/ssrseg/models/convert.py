"""`convert`: a published checkpoint to a model file; the network is recognised by names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ssrseg.errors import UserError
from ssrseg.models.backbones import BACKBONES
from ssrseg.models.segmenter import Description, build_described, save_segmenter
from ssrseg.models.weight_names import recognise, select, to_official
from ssrseg.models.weights import LoadReport, load_published, read_checkpoint

MIT_SIZES = {(2, 2, 2, 2): (0, 1), (3, 4, 6, 3): (2,), (3, 4, 18, 3): (3,), (3, 8, 27, 3): (4,), (3, 6, 40, 3): (5,)}
"""Blocks per stage -> sizes of the Mix Transformer; B0 and B1 differ by their width."""

HEAD_MARKS = {
    "embed_layers.0.proj.weight": ("daformer", 256),
    "linear_c.0.proj.weight": ("segformer", 768),
    "aspp_modules.3.conv.weight": ("deeplabv2-whole", None),
    "aspp_modules.0.conv.weight": ("deeplabv2", None),
    "squeeze.1.weight": ("aspp-attentive", None),
}
"""Official name of a layer -> the head that has it, and its published width."""

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
    part: str = "model",
) -> LoadReport:
    """Write a published checkpoint as a model file of ours.

    Args:
        source: the checkpoint.
        out: safetensors file to write.
        backbone: recognised by its depths and widths when absent.
        head: recognised by its names when absent.
        classes: their names; when absent those in the checkpoint's `meta`, else Cityscapes' for 19, else numbers.
        resize: (width, height) that bounds the images at inference.
        part: which network of an adaptation checkpoint, a key of `ssrseg.models.weight_names.PARTS`.

    Raises:
        UserError: the checkpoint cannot be read, something is neither given nor recognised, or it does not fit.
    """
    weights, meta = read_checkpoint(source)
    names, _ = select(weights, part)
    dialect = recognise(names)
    state = to_official(names, dialect, None)
    count = _count_classes(state, source)
    known = CITYSCAPES if count == len(CITYSCAPES) else tuple(f"class-{i}" for i in range(count))
    classes = tuple(classes or _listed(meta.get("CLASSES"), count) or known)
    if len(classes) != count:
        raise UserError(f"{source} has {count} classes, but {len(classes)} names were given.")
    recognised, channels = _head_in(state)
    if dialect == "dacs":  # its head owns four branches and returns after the second
        recognised = "deeplabv2"
    if not (head or recognised):
        heads = ", ".join(name for name, _ in HEAD_MARKS.values())
        raise UserError(f"The head in {source} is not recognised; ours are {heads}.")
    palette = _listed(meta.get("PALETTE"), count) or ()
    description = Description(
        backbone=backbone or _backbone_in(state, source, dialect),
        head=head or recognised,
        classes=tuple(map(str, classes)),
        colors=tuple((int(red), int(green), int(blue)) for red, green, blue in palette),
        resize=resize,
        head_channels=channels,
        align_corners=dialect in ("dacs", "undoing"),
    )
    segmenter = build_described(description)
    report = load_published(segmenter, {"state_dict": weights}, part=part)
    save_segmenter(segmenter, out)
    return report


def _backbone_in(state: Mapping[str, Tensor], source: Path, dialect: str) -> str:
    def depth_of(stage: str) -> int:
        return len({match[1] for key in state if (match := re.search(rf"^backbone\.{stage}\.(\d+)\.", key))})

    depths = tuple(depth_of(f"block{stage}") for stage in (1, 2, 3, 4))
    if depths in MIT_SIZES and "backbone.norm1.weight" in state:
        wide = len(state["backbone.norm1.weight"]) == 64
        return f"mit_b{MIT_SIZES[depths][-1 if wide else 0]}"
    if (depth := {6: 50, 23: 101}.get(depth_of("layer3"))) is not None:
        if "backbone.stem.0.weight" in state:
            return f"resnet{depth}v1c"
        if dialect == "dacs":
            return f"resnet{depth}-caffe"
        # Norms that FADA and Undoing have frozen count no batches.
        return f"resnet{depth}-{'dilated' if 'backbone.bn1.num_batches_tracked' in state else 'frozen'}"
    if "backbone.fc6.weight" in state:
        return "vgg16-dilated"
    raise UserError(f"The backbone in {source} is not recognised: name it, one of {', '.join(BACKBONES)}.")


def _head_in(state: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """Name, and the width where it is not the published one; no name when unknown."""
    for layer, (head, published) in HEAD_MARKS.items():
        if (weight := state.get(f"decode_head.{layer}")) is not None:
            return head, None if published in (None, len(weight)) else len(weight)
    return "", None


def _count_classes(state: Mapping[str, Tensor], source: Path) -> int:
    for name in ("linear_pred", "aspp_modules.0.conv", "classify", "conv_seg"):  # SegFormer's conv_seg is a dead layer
        if f"decode_head.{name}.weight" in state:
            return len(state[f"decode_head.{name}.weight"])
    raise UserError(f"{source} has no classifier: it is a backbone. Use it as model.pretrained instead.")


def _listed(value: Any, count: int) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, list | tuple) and len(value) == count else None
