"""Weights from files and the Hub: our own models, and backbones to start from."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from ssrseg.errors import UserError, first_line
from ssrseg.models.backbones import Architecture, architecture, build_backbone
from ssrseg.models.plain import PlainPyramid
from ssrseg.models.published import LoadReport, load_published
from ssrseg.models.segmenter import WEIGHTS, Segmenter, load_segmenter, read_description, take_bands
from ssrseg.models.weight_names import DIALECTS

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""`owner/name[@revision]`."""
LICENCES = {
    "dinov3-license": "DINOv3 licence: what is made of them keeps it; no military, nuclear or espionage use",
    "cc-by-nc-4.0": "CC BY-NC 4.0: non-commercial use only",
    "fair-noncommercial-research-license": "FAIR's licence: non-commercial research only",
    "nvidia-open-model-license": "NVIDIA Open Model License",
    "nvidia": "NVIDIA's terms: non-commercial use only",
}
"""What timm's names of licences mean for users, where the name does not say it."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".onnx", ".xml", ".ckpt", ".bin")
"""Of files: what ends so is never looked for on the Hub."""


def load(model: Segmenter | Path | str) -> Segmenter:
    """Load a model in eval mode.

    Args:
        model: a file of `save_segmenter`, a folder of `save_pretrained`, or a Hub id `owner/name[@revision]`. A path
            that exists on this disk is never looked for on the Hub. A segmenter is returned as it is.

    Raises:
        UserError: no such model, not one of ours, another folder (the models in it are named), or no such Hub id.
    """
    if isinstance(model, Segmenter):
        return model
    path = Path(model)
    if path.is_dir():
        return load_segmenter(_in_folder(path))
    if path.exists() or path.suffix in SUFFIXES or not HUB_ID.fullmatch(str(model)):
        return load_segmenter(path)
    try:
        path = _from_hub(str(model), WEIGHTS)
    except (OSError, ValueError) as error:  # the Hub's own errors are OSErrors
        raise UserError(
            f"There is neither a model file {model} nor such a model on the Hub: {first_line(error)}\n"
            "Give a path, or owner/name[@revision] of a Hub repository that holds a model of ssrseg."
        ) from error
    return load_segmenter(path)


def licence(backbone: str) -> str:
    """Name the licence of a backbone's published weights, as timm or their publisher states it."""
    record = architecture(backbone)
    if record.hub is not None:
        return LICENCES[record.hub.partition("/")[0]]
    config: Any = timm.get_pretrained_cfg(record.timm_name)
    stated = str(config.license) if config and config.license else ""
    return LICENCES.get(stated, stated) or "licence not stated"


def load_pretrained(segmenter: Segmenter, spec: str, backbone: str, part: str | None = None) -> str:
    """Load ImageNet weights into the backbone.

    Args:
        segmenter: changed in place.
        spec: `none`, `hub` (the published weights of `backbone`), `owner/name[@revision]`, a local file,
            or a folder of `save_pretrained`.
        backbone: the name under which the backbone was built.
        part: which network of a file (`load_published`).

    Returns:
        A note for the user: where the weights come from, and their licence.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    if spec == "none":
        return f"{backbone}: random weights. Published results start from ImageNet weights (model.pretrained: hub)."
    record = architecture(backbone)
    if spec != "hub" and (path := Path(spec).expanduser()).exists():
        path = _in_folder(path) if path.is_dir() else path
        return f"{backbone}: {spec}: {_load_backbone(segmenter, path, record, part)}"
    spec = record.hub or spec if spec == "hub" else spec
    if spec != "hub" and (not HUB_ID.fullmatch(spec) or Path(spec).suffix in SUFFIXES):
        raise UserError(f"model.pretrained is {spec!r}: no such file, and neither none, hub nor owner/name[@revision].")
    what = f"timm's weights of {record.timm_name}"
    try:
        if spec == "hub":
            published = build_backbone(backbone, timm_weights=True, size=segmenter.backbone.sizes.built)
            segmenter.backbone.load_state_dict(published.state_dict())
            new = " but for fc6 and fc7, which are random" if backbone.startswith("vgg") else ""
            if isinstance(segmenter.backbone.pyramid, PlainPyramid):
                new = "; the layers that make a pyramid of them are random"
            return f"{backbone}: {what} ({licence(backbone)}){new}"
        what = f"The weights {spec}"
        file = _from_hub(spec, "model.safetensors", "pytorch_model.bin")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{what} cannot be downloaded: {first_line(error)}\n"
            "Fetch the weights file by hand where there is a network, and set model.pretrained to its path; "
            "model.pretrained: none starts from random weights."
        ) from error
    terms = f" ({LICENCES['nvidia']})" if spec.startswith("nvidia/") else ""
    return f"{backbone}: {spec}{terms}: {_load_backbone(segmenter, file, record, part)}"


def _load_backbone(segmenter: Segmenter, file: Path, record: Architecture, part: str | None) -> LoadReport:
    setting = "model.pretrained_part="
    with suppress(SafetensorError, KeyError, OSError, ValidationError):  # not a model of ours
        its = read_description(file)
        take_bands(segmenter, its.in_channels, its.mean, its.std)
    report = load_published(segmenter, file, part=part, backbone_only=True, fresh=record.fresh, setting=setting)
    turned = report.dialect == "ssrseg" or "bgr" in DIALECTS[report.dialect]  # a model of ours, or above
    if record.bgr and not turned:  # published for blue, green, red
        first = next(layer for layer in segmenter.backbone.modules() if isinstance(layer, nn.Conv2d))
        first.weight.data = first.weight.data.flip(1)
    return report


def _in_folder(path: Path) -> Path:
    """Return the model file in a folder of `save_pretrained`; raises `UserError` for another one."""
    if not (path / WEIGHTS).is_file():
        inside = sorted(str(found) for found in path.glob("*.safetensors"))
        names = f": give one of {', '.join(inside)}." if inside else " without a *.safetensors file."
        raise UserError(f"Expected a model file, found the folder {path}{names}")
    return path / WEIGHTS


def _from_hub(spec: str, *names: str) -> Path:
    """Download the first of these files that a repository has; raises what the Hub raises for the first."""
    owner, _, revision = spec.partition("@")
    errors: list[Exception] = []
    for name in names:
        try:
            return Path(hf_hub_download(owner, name, revision=revision or None))
        except EntryNotFoundError as absent:  # also what being offline looks like
            errors.append(absent)
    raise errors[0]
