"""Published checkpoints onto our names: strictly, and without ever executing a pickle."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.backbones import Architecture, architecture, build_backbone
from ssrseg.models.convert import describe
from ssrseg.models.reading import read_checkpoint
from ssrseg.models.segmenter import Segmenter, build_segmenter, save_segmenter
from ssrseg.models.weight_names import DIALECTS, official_name, recognise, timm_architecture, to_official

PARTS = {
    "model": r"^model\.(?=backbone|decode_head)",
    "ema_model": r"^ema_model\.",
    "imnet_model": r"^imnet_model\.",
    "mic_teacher": r"^mic\.teacher\.ema_model\.",
}
"""The networks of an adaptation checkpoint: student, teacher, ImageNet model, MIC's own teacher."""

DROPPED = {
    r"^(embedding_layer|fusion_layer|sam)\.": "SSR's regularisation branch, training only",
    r"^auxiliary_head\.": "auxiliary head, training only",
    r"^backbone\.(head|fc|classifier)\.": "ImageNet classifier",
    r"^backbone\.layer5\.": "DeepLabV2's head",
    r"^decode_head\.conv_seg\.": "unused layer of the SegFormer head",
    r"\.num_batches_tracked$": "a counter that nothing reads",
}
"""Official names that no network of ours has -> why they may be left out."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every entry of a checkpoint."""

    dialect: str
    loaded: int
    """Tensors of the segmenter that were set."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Official name -> why it was left out."""

    def __str__(self) -> str:
        """One line, and one per reason for leaving something out."""
        lines = [f"{self.loaded} tensors loaded ({self.dialect} names), {len(self.dropped)} left out"]
        return "\n".join([*lines, *(f"  {n} x {reason}" for reason, n in Counter(self.dropped.values()).items())])


def load_published(
    segmenter: Segmenter,
    checkpoint: Mapping[str, Any] | Path | str,
    source: str = "auto",
    *,
    part: str = "model",
    backbone_only: bool = False,
    fresh: str | None = None,
) -> LoadReport:
    """Load a published checkpoint. Every entry is loaded, or is in the report with the reason why it is not.

    Args:
        segmenter: changed in place, and only if everything fits.
        checkpoint: a file (`.safetensors`, or a torch file that is read without executing anything), or names and
            tensors, bare or under `state_dict` or `model`.
        source: whose spelling it is, a key of `ssrseg.models.weight_names.DIALECTS`; recognised when `auto`.
        part: which network of an adaptation checkpoint, a key of `PARTS`.
        backbone_only: leave the checkpoint's head out. Without it, a checkpoint that has no head at all
            (ImageNet weights) still loads; one that has a head must fit wholly.
        fresh: pattern of official names that the checkpoint may lack; these layers stay as they are.

    Raises:
        UserError: an entry is unknown, missing or of another shape; or the file cannot be read safely.
    """
    found = read_checkpoint(checkpoint)
    state, dropped = select(found.state, part)
    dialect = recognise(state) if source == "auto" else source
    if dialect not in DIALECTS:
        raise UserError(f"There is no source {source!r}: choose auto, {', '.join(DIALECTS)}.")
    state = to_official(state, dialect, segmenter)
    backbone_only = backbone_only or not any(key.startswith("decode_head.") for key in state)
    own = segmenter.state_dict()
    wanted = {official_name(key, segmenter): key for key in own}
    if backbone_only:
        wanted = {official: key for official, key in wanted.items() if key.startswith("backbone.")}
    chosen = {wanted[name]: value for name, value in state.items() if name in wanted}
    left = [name for name in state if name not in wanted]
    reasons = _reasons(left, backbone_only, segmenter if dialect == "timm" else None)
    missing = [
        official
        for official, key in wanted.items()
        if key not in chosen and not key.endswith("_tracked") and not (fresh and re.search(fresh, official))
    ]
    shapes = [
        f"{official_name(key, segmenter)} is {tuple(value.shape)}, expected {tuple(own[key].shape)}"
        for key, value in chosen.items()
        if value.shape != own[key].shape
    ]
    _refuse(unknown=[name for name in left if name not in reasons], missing=missing, shapes=shapes)
    segmenter.load_state_dict({**own, **chosen})
    return LoadReport(dialect, len(chosen), dropped | reasons)


def select(state: Mapping[str, Tensor], part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """One network of an adaptation checkpoint, without its prefix, and what else is there."""
    if part not in PARTS:
        raise UserError(f"There is no part {part!r}: choose {', '.join(PARTS)}.")
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    present = [name for name, pattern in PARTS.items() if any(re.search(pattern, key) for key in plain)]
    if not present and part == "model":
        return plain, {}
    if part not in present:
        raise UserError(f"The checkpoint has no {part!r}; it holds {', '.join(present) or 'a single network'}.")
    chosen, dropped = {}, {}
    for key, value in plain.items():
        other = next((name for name in present if name != part and re.search(PARTS[name], key)), None)
        if other:
            dropped[key] = f"another network: {other}"
        else:
            chosen[re.sub(PARTS[part], "", key)] = value
    return chosen, dropped


def _reasons(names: Sequence[str], backbone_only: bool, timm_segmenter: Segmenter | None) -> dict[str, str]:
    table = {**DROPPED, **({r"^decode_head\.": "only the backbone is wanted"} if backbone_only else {})}
    reasons = {}
    for name in names:
        reason = next((why for pattern, why in table.items() if re.search(pattern, name)), None)
        if reason:
            reasons[name] = reason
    rest = [name for name in names if name not in reasons]
    if rest and timm_segmenter is not None:
        with torch.device("meta"):
            whole = timm.create_model(timm_architecture(timm_segmenter))
        known = {f"backbone.{key}" for key in whole.state_dict()}
        reasons |= {name: "behind the last feature level" for name in rest if name in known}
    return reasons


def _refuse(*, unknown: Sequence[str], missing: Sequence[str], shapes: Sequence[str]) -> None:
    problems = [
        f"  {len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (("unknown to the model", unknown), ("missing", missing), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise UserError(
            "The checkpoint does not fit the model (official names):\n" + "\n".join(problems) + "\n"
            "Build the segmenter with the checkpoint's backbone, head and number of classes "
            "(`ssrseg convert` recognises them), or pass backbone_only=True to leave its head out."
        )


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
    """A published checkpoint as a model file of ours.

    Args:
        source: the checkpoint.
        out: safetensors file to write.
        backbone: recognised by its depths and widths when absent.
        head: recognised by its names when absent.
        classes: their names; when absent those in the checkpoint's `meta`, else Cityscapes' for 19, else numbers.
        resize: (width, height) that bounds the images at inference.
        part: which network of an adaptation checkpoint, a key of `PARTS`.

    Raises:
        UserError: the checkpoint cannot be read, recognised, or does not fit.
    """
    found = read_checkpoint(source)
    state, _ = select(found.state, part)
    official = to_official(state, recognise(state), None)
    description = describe(official, found.meta, source, backbone=backbone, head=head, classes=classes, resize=resize)
    segmenter = build_segmenter(
        description.backbone, description.head, len(description.classes), head_channels=description.head_channels
    )
    report = load_published(segmenter, {"state_dict": found.state}, part=part)
    segmenter.description = description
    save_segmenter(segmenter, out)
    return report


def load_pretrained(segmenter: Segmenter, spec: str, backbone: str) -> str:
    """ImageNet weights into the backbone.

    Args:
        segmenter: changed in place.
        spec: `none`, `hub` (the published weights of `backbone`), `owner/name[@revision]`, or a local file.
        backbone: the name under which the backbone was built.

    Returns:
        What the user should know: where the weights come from, and their licence.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    if spec == "none":
        return f"{backbone}: random weights. Published results start from ImageNet weights (model.pretrained: hub)."
    record = architecture(backbone)
    if Path(spec).is_file():
        report = load_published(segmenter, spec, backbone_only=True, fresh=record.fresh)
        _turn_first_layer(segmenter, record)
        return f"{backbone}: {spec}: {report}"
    spec = record.hub or spec if spec == "hub" else spec
    if spec == "hub":
        return _from_timm(segmenter, backbone)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec) or Path(spec).suffix in (".pth", ".pt", ".safetensors"):
        raise UserError(f"model.pretrained is {spec!r}: no such file, and neither none, hub nor owner/name[@revision].")
    report = load_published(segmenter, _download(spec), backbone_only=True, fresh=record.fresh)
    _turn_first_layer(segmenter, record)
    terms = " (NVIDIA's terms: non-commercial use only)" if spec.startswith("nvidia/") else ""
    return f"{backbone}: {spec}{terms}: {report}"


def _turn_first_layer(segmenter: Segmenter, record: Architecture) -> None:
    """Blue, green, red as red, green, blue."""
    if record.bgr:
        first = next(layer for layer in segmenter.backbone.modules() if isinstance(layer, nn.Conv2d))
        first.weight.data = first.weight.data.flip(1)


def _from_timm(segmenter: Segmenter, backbone: str) -> str:
    name = architecture(backbone).timm_name
    try:
        pretrained = build_backbone(backbone, timm_weights=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(_by_hand(f"timm's weights of {name}", error)) from error
    segmenter.backbone.load_state_dict(pretrained.state_dict())
    return f"{backbone}: timm's weights of {name}"


def _download(spec: str) -> Path:
    owner, _, revision = spec.partition("@")
    error: Exception | None = None
    for name in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(owner, name, revision=revision or None))
        except EntryNotFoundError as absent:  # also what being offline looks like
            error = error or absent
        except (OSError, ValueError) as failure:
            error = failure
            break
    raise UserError(_by_hand(f"The weights {spec}", error)) from error


def _by_hand(what: str, error: object) -> str:
    return (
        f"{what} cannot be downloaded: {str(error).splitlines()[0]}\n"
        "Fetch the weights file by hand where there is a network, and set model.pretrained to its path; "
        "model.pretrained: none starts from random weights."
    )
