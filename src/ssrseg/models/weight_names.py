"""The names under which weights are published, translated.

The middle ground is the *official* spelling, that of the DAFormer and MIC checkpoints (`backbone.block1.0.norm1.bias`,
`decode_head.conv_seg.bias`): every dialect is translated to it, and so are our own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import timm
import torch
import yaml
from torch import Tensor

from ssrseg.models.segmenter import Segmenter

_TABLES = yaml.safe_load((resources.files("ssrseg") / "models" / "weight_names.yaml").read_text(encoding="utf-8"))
DIALECTS: dict[str, dict[str, Any]] = _TABLES["dialects"]
"""Ways to spell a segmentor or a backbone, in the order in which they are tried."""

MIT_SIZES = {(2, 2, 2, 2): (0, 1), (3, 4, 6, 3): (2,), (3, 4, 18, 3): (3,), (3, 8, 27, 3): (4,), (3, 6, 40, 3): (5,)}
"""Blocks per stage -> sizes of the Mix Transformer; B0 and B1 differ by their width."""


def official_name(key: str, segmenter: Segmenter) -> str:
    """Spell one of our names officially."""
    part, _, rest = key.partition(".")
    if part in ("head", "attention"):
        rules = _TABLES["heads"].get(type(getattr(segmenter, part)).__name__, {})
        outer = {"attention": "scale_attention."}.get(part, "head." if segmenter.detail else "")
        return f"decode_head.{outer}{_rename(rest, rules)}"
    architecture = timm_architecture(segmenter)
    rules = next((rules for pattern, rules in _TABLES["timm"].items() if re.match(pattern, architecture)), {})
    return "backbone." + _rename(timm_name(key), rules)


def timm_name(key: str) -> str:
    """Spell the name of a backbone's weight as timm's classification model does."""
    key = key.removeprefix("backbone.pyramid.").removeprefix("model.")
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)  # timm's pyramids flatten their outer sequence


def timm_architecture(segmenter: Segmenter) -> str:
    """Give the timm name of the backbone, without its weights' tag."""
    config: Any = getattr(segmenter.backbone.pyramid, "default_cfg", None) or {}
    return str(config.get("architecture", ""))


def _rename(key: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        if match := re.search(pattern, key):
            counted = re.sub(r"<(\d)([+-]\d)>", lambda sum: str(int(match[int(sum[1])]) + int(sum[2])), replacement)
            key = re.sub(pattern, counted, key)
    return key


def recognise(keys: Iterable[str]) -> str:
    """Recognise the dialect of a checkpoint's names."""
    names = list(keys)
    spoken = (name for name, dialect in DIALECTS.items() if any(re.search(dialect["marker"], key) for key in names))
    return next(spoken, "timm")


def to_official(state: Mapping[str, Tensor], dialect: str, own: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename a network's weights to their official names.

    Args:
        state: names and weights in one dialect, without prefixes.
        dialect: a key of `DIALECTS`.
        own: official name of each weight of a segmenter, whose names `ssrseg` and `timm` are; others do not need it.
    """
    if dialect == "ssrseg":
        return {own.get(key, key): value for key, value in state.items()}
    if dialect == "timm":
        names = {timm_name(key): official for key, official in own.items() if key.startswith("backbone.")}
        return {names.get(key, f"backbone.{key}"): value for key, value in state.items()}
    record = DIALECTS[dialect]
    renamed = _joined({_rename(key, record.get("rules", {})): value for key, value in state.items()})
    fusion = "decode_head.linear_fuse.conv.weight"
    if record.get("deepest_first") and fusion in renamed:
        renamed[fusion] = torch.cat(renamed[fusion].chunk(4, dim=1)[::-1], dim=1)
    if (first := record.get("bgr")) in renamed:
        renamed[first] = renamed[first].flip(1)
    if dialect == "undoing":
        for key, value in renamed.items():
            if key.startswith("decode_head.squeeze.") and value.ndim == 2:  # linear layers, ours 1x1 convolutions
                renamed[key] = value[:, :, None, None]
        if (classify := renamed.get("decode_head.classify.weight")) is not None:  # it has no bias
            renamed["decode_head.classify.bias"] = classify.new_zeros(len(classify))
    return renamed


def drop_reasons(names: Sequence[str], backbone_only: bool, timm_segmenter: Segmenter | None) -> dict[str, str]:
    """Explain which official names that a network of ours lacks may be left out: name -> reason."""
    table = {**_TABLES["dropped"], **({r"^(?!backbone\.)": "only the backbone is wanted"} if backbone_only else {})}
    found = {name: next((why for pattern, why in table.items() if re.search(pattern, name)), "") for name in names}
    reasons = {name: why for name, why in found.items() if why}
    if len(reasons) < len(names) and timm_segmenter is not None:
        with torch.device("meta"):
            whole = timm.create_model(timm_architecture(timm_segmenter))
        known = {f"backbone.{key}" for key in whole.state_dict()} - reasons.keys()
        reasons |= {name: "behind the last feature level" for name in names if name in known}
    return reasons


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate keys and values into the one projection that we have."""
    joined: dict[str, Tensor] = {}
    for key, value in state.items():
        partner = key.replace(".attn.key.", ".attn.value.")
        if partner != key and partner in state:
            joined[key.replace(".attn.key.", ".attn.kv.")] = torch.cat([value, state[partner]])
        elif ".attn.value." not in key or key.replace(".attn.value.", ".attn.key.") not in state:
            joined[key] = value
    return joined


def backbone_in(state: Mapping[str, Tensor], dialect: str) -> str | None:
    """Recognise the backbone by the depths and widths of official weights, where it is one of those that we name."""

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
    return "vgg16-dilated" if "backbone.fc6.weight" in state else None
