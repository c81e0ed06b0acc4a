"""The names under which weights are published, translated.

The middle ground is the *official* spelling, that of the DAFormer and MIC checkpoints (`backbone.block1.0.norm1.bias`,
`decode_head.conv_seg.bias`): every dialect is translated to it, and so are our own names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.heads import DAFormerHead, DeepLabV2Head, SegFormerHead
from ssrseg.models.segmenter import Segmenter

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Regular expressions and replacements, applied in order."""


def _numbered(template: str) -> Callable[[re.Match[str]], str]:
    """Build a replacement that counts the stage, the first group, from 1."""
    return lambda match: template.format(int(match[1]) + 1, *match.groups()[1:])


TIMM_MIT: Rules = (
    (r"^patch_embed\.", "patch_embed1."),
    (r"^stages\.(\d)\.downsample\.", _numbered("patch_embed{}.")),
    (r"^stages\.(\d)\.blocks\.", _numbered("block{}.")),
    (r"^stages\.(\d)\.norm\.", _numbered("norm{}.")),
    (r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
)
TIMM_RESNET: Rules = ((r"^conv1\.(\d)\.", r"stem.\1."), (r"^bn1\.", "stem.7."))
TIMM_RULES: dict[str, Rules] = {r"pvt": TIMM_MIT, r"resnet\d+c$": TIMM_RESNET}
"""Pattern of a timm architecture -> its names' official spelling; others, as ResNets with a plain stem, keep timm's."""

HEAD_RULES: dict[type[nn.Module], Rules] = {
    DAFormerHead: (
        (r"^embed\.(\d)\.", r"embed_layers.\1.proj."),
        (r"^branches\.(\d)\.depthwise\.", r"fuse_layer.aspp_modules.\1.depthwise_conv."),
        (r"^branches\.(\d)\.pointwise\.", r"fuse_layer.aspp_modules.\1.pointwise_conv."),
        (r"^branches\.(\d)\.", r"fuse_layer.aspp_modules.\1."),
        (r"^bottleneck\.", "fuse_layer.bottleneck."),
        (r"^classify\.", "conv_seg."),
    ),
    SegFormerHead: (
        (r"^embed\.(\d)\.", r"linear_c.\1.proj."),
        (r"^fuse\.", "linear_fuse."),
        (r"^classify\.", "linear_pred."),
    ),
    DeepLabV2Head: ((r"^branches\.(\d)\.", r"aspp_modules.\1.conv."),),
}


def official_name(key: str, segmenter: Segmenter) -> str:
    """Spell one of our names officially."""
    if key.startswith("head."):
        return "decode_head." + _rename(key.removeprefix("head."), HEAD_RULES.get(type(segmenter.head), ()))
    architecture = timm_architecture(segmenter)
    rules = next((rules for pattern, rules in TIMM_RULES.items() if re.match(pattern, architecture)), ())
    return "backbone." + _rename(timm_name(key), rules)


def timm_name(key: str) -> str:
    """Spell the name of a backbone's weight as timm's classification model does."""
    key = key.removeprefix("backbone.pyramid.").removeprefix("model.")
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)  # timm's pyramids flatten their outer sequence


def timm_architecture(segmenter: Segmenter) -> str:
    """Give the timm name of the backbone, without its weights' tag."""
    config: Any = getattr(segmenter.backbone.pyramid, "default_cfg", None) or {}
    return str(config.get("architecture", ""))


def _rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


@dataclass(frozen=True)
class Dialect:
    """One way to spell a segmentor or a backbone."""

    marker: str
    """A checkpoint speaks this dialect if one of its names matches."""
    rules: Rules = ()
    deepest_first: bool = False
    """Its SegFormer head fuses the levels deepest first; the official one, finest first."""
    bgr: str | None = None
    """Official name of a first layer that takes blue, green, red."""


HUGGING_FACE: Rules = (
    (r"^segformer\.", ""),
    (r"^encoder\.patch_embeddings\.(\d)\.layer_norm\.", _numbered("backbone.patch_embed{}.norm.")),
    (r"^encoder\.patch_embeddings\.(\d)\.", _numbered("backbone.patch_embed{}.")),
    (r"^encoder\.block\.(\d)\.", _numbered("backbone.block{}.")),
    (r"^encoder\.layer_norm\.(\d)\.", _numbered("backbone.norm{}.")),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.", ".attn."),  # key, value, sr
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"^decode_head\.linear_fuse\.weight$", "decode_head.linear_fuse.conv.weight"),
    (r"^decode_head\.batch_norm\.", "decode_head.linear_fuse.bn."),
    (r"^decode_head\.classifier\.", "decode_head.linear_pred."),
    (r"^classifier\.", "backbone.head."),
)
SMP: Rules = (
    (r"^encoder\.", "backbone."),
    (r"^decoder\.mlp_stage\.(\d)\.linear\.", lambda match: f"decode_head.linear_c.{3 - int(match[1])}.proj."),
    (r"^decoder\.fuse_stage\.0\.", "decode_head.linear_fuse.conv."),
    (r"^decoder\.fuse_stage\.1\.", "decode_head.linear_fuse.bn."),
    (r"^segmentation_head\.0\.", "decode_head.linear_pred."),
)
DACS: Rules = (
    (r"^layer5\.conv2d_list\.(\d)\.", r"decode_head.aspp_modules.\1.conv."),
    (r"^(?!decode_head)", "backbone."),
)


def _vgg_layer(match: re.Match[str]) -> str:
    """A layer of a sequence without the fourth and fifth pooling, which ends with fc6 and fc7."""
    place = int(match[1])
    return {29: "backbone.fc6.", 31: "backbone.fc7."}.get(place, f"backbone.features.{place + (place > 22)}.")


UNDOING: Rules = (
    (r"^(feature_extractor|classifier|model_D)\.module\.", r"\1."),
    (r"^feature_extractor\.", ""),
    (r"^backbone\.(\d+)\.", _vgg_layer),
    (r"^classifier\.conv2d_list\.(\d)\.(\d)\.", r"decode_head.branches.\1.\2."),
    (r"^classifier\.conv2d_list\.(\d)\.", r"decode_head.aspp_modules.\1.conv."),
    (r"^classifier\.bottleneck\.0\.se\.0\.", "decode_head.squeeze.1."),
    (r"^classifier\.bottleneck\.0\.se\.2\.", "decode_head.squeeze.3."),
    (r"^classifier\.bottleneck\.([12])\.", lambda match: f"decode_head.fuse.{int(match[1]) - 1}."),
    (r"^classifier\.head\.1\.", "decode_head.classify."),
)
NVLABS: Rules = ((r"^decode_head\.linear_c(\d)\.", lambda match: f"decode_head.linear_c.{int(match[1]) - 1}."),)

DIALECTS: dict[str, Dialect] = {
    "ssrseg": Dialect(r"^backbone\.pyramid\."),
    "huggingface": Dialect(r"^(segformer\.)?encoder\.patch_embeddings\.", HUGGING_FACE, deepest_first=True),
    "smp": Dialect(r"^encoder\.patch_embed1\.", SMP, deepest_first=True),
    "segformer": Dialect(r"^decode_head\.linear_c1\.", NVLABS, deepest_first=True),
    "undoing": Dialect(r"^feature_extractor\.", UNDOING, bgr="backbone.features.0.weight"),
    "dacs": Dialect(r"^layer5\.conv2d_list\.", DACS, bgr="backbone.conv1.weight"),
    "official": Dialect(r"^(backbone|decode_head)\."),
    "bare": Dialect(r"^(patch_embed1|stem\.7)\.", ((r"^", "backbone."),)),
    "timm": Dialect(r"^"),
}
"""In the order in which they are tried. `bare`: `mit_b*.pth` or mmcv's ResNet v1c; `timm`: a classification model."""


PARTS = {
    "model": r"^model\.(?=backbone|decode_head|conv1|bn1|layer\d)",
    "ema_model": r"^ema_model\.",
    "imnet_model": r"^imnet_model\.",
    "mic_teacher": r"^mic\.teacher\.ema_model\.",
}
"""The networks of an adaptation checkpoint: student, teacher, ImageNet model, MIC's own teacher."""


def select(state: Mapping[str, Tensor], part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Pick one network of an adaptation checkpoint, without its prefix; the rest is returned with the reason."""
    if part not in PARTS:
        raise UserError(f"There is no part {part!r}: choose {', '.join(PARTS)}.")
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    present = [name for name, pattern in PARTS.items() if any(re.search(pattern, key) for key in plain)]
    if not present and part == "model":
        return plain, {}
    if part not in present:
        raise UserError(f"The checkpoint has no {part!r}; it holds {', '.join(present) or 'a single network'}.")
    chosen, dropped = dict[str, Tensor](), dict[str, str]()
    for key, value in plain.items():
        other = next((name for name in present if name != part and re.search(PARTS[name], key)), None)
        if other:
            dropped[key] = f"another network: {other}"
        else:
            chosen[re.sub(PARTS[part], "", key)] = value
    return chosen, dropped


def recognise(keys: Iterable[str]) -> str:
    """Recognise the dialect of a checkpoint's names."""
    names = list(keys)
    return next(name for name, dialect in DIALECTS.items() if any(re.search(dialect.marker, key) for key in names))


def to_official(state: Mapping[str, Tensor], dialect: str, segmenter: Segmenter | None) -> dict[str, Tensor]:
    """Rename a network's weights to their official names.

    Args:
        state: names and weights in one dialect, without prefixes.
        dialect: a key of `DIALECTS`.
        segmenter: whose names `ssrseg` and `timm` are; the others do not need it.
    """
    own = {} if segmenter is None else {key: official_name(key, segmenter) for key in segmenter.state_dict()}
    if dialect == "ssrseg":
        return {own.get(key, key): value for key, value in state.items()}
    if dialect == "timm":
        names = {timm_name(key): official for key, official in own.items() if key.startswith("backbone.")}
        return {names.get(key, f"backbone.{key}"): value for key, value in state.items()}
    record = DIALECTS[dialect]
    renamed = _joined({_rename(key, record.rules): value for key, value in state.items()})
    fusion = "decode_head.linear_fuse.conv.weight"
    if record.deepest_first and fusion in renamed:
        renamed[fusion] = torch.cat(renamed[fusion].chunk(4, dim=1)[::-1], dim=1)
    if record.bgr in renamed:
        renamed[record.bgr] = renamed[record.bgr].flip(1)
    if dialect == "undoing":
        _as_convolutions(renamed)
    return renamed


def _as_convolutions(state: dict[str, Tensor]) -> None:
    """Linear layers of Undoing's modified ASPP as the 1x1 convolutions that ours has; its classifier has no bias."""
    for key, value in state.items():
        if key.startswith("decode_head.squeeze.") and value.ndim == 2:
            state[key] = value[:, :, None, None]
    if (classify := state.get("decode_head.classify.weight")) is not None:
        state["decode_head.classify.bias"] = classify.new_zeros(len(classify))


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
