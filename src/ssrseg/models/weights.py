"""Weights from files and the Hub: our own models, published checkpoints; strictly, and without executing a pickle."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.backbones import Architecture, architecture, build_backbone
from ssrseg.models.segmenter import WEIGHTS, Segmenter, load_segmenter
from ssrseg.models.weight_names import DIALECTS, drop_reasons, official_name, recognise, select, to_official

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""`owner/name[@revision]`."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".onnx", ".ckpt", ".bin")
"""Of files: what ends so is never looked for on the Hub."""
NETWORKS = ("model", "ema_model", "feature_extractor", "classifier", "model_D")
"""Names under which DACS (the first two), FADA and Undoing save networks side by side."""


@dataclass(frozen=True)
class LoadReport:
    """Account for every entry of a checkpoint: loaded, or left out with a reason."""

    dialect: str
    loaded: int
    """Tensors of the segmenter that were set."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Official name -> why it was left out."""

    def __str__(self) -> str:
        """Give one line, and one per reason for leaving something out."""
        lines = [f"{self.loaded} tensors loaded ({self.dialect} names), {len(self.dropped)} left out"]
        return "\n".join([*lines, *(f"  {n} x {reason}" for reason, n in Counter(self.dropped.values()).items())])


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
        if not (path / WEIGHTS).is_file():
            inside = sorted(str(found) for found in path.glob("*.safetensors"))
            names = f": give one of {', '.join(inside)}." if inside else " without a *.safetensors file."
            raise UserError(f"Expected a model file, found the folder {path}{names}")
        return load_segmenter(path / WEIGHTS)
    if path.exists() or path.suffix in SUFFIXES or not HUB_ID.fullmatch(str(model)):
        return load_segmenter(path)
    try:
        path = _from_hub(str(model), WEIGHTS)
    except (OSError, ValueError) as error:  # the Hub's own errors are OSErrors
        raise UserError(
            f"There is neither a model file {model} nor such a model on the Hub: {str(error).splitlines()[0]}\n"
            "Give a path, or owner/name[@revision] of a Hub repository that holds a model of ssrseg."
        ) from error
    return load_segmenter(path)


def read_checkpoint(source: Mapping[str, Any] | Path | str) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Read the weights in a file, or in the content of one, and its authors' metadata. Nothing in it is executed.

    Raises:
        UserError: no such file, not a weights file, or one that holds more than tensors and plain values.
    """
    found = source if isinstance(source, Mapping) else _read(Path(source))
    networks = {part: found[part] for part in NETWORKS if isinstance(found.get(part), Mapping)}
    state = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    if networks.keys() - {"model"} and "state_dict" not in found:
        state = {
            f"{part}.{name.removeprefix('module.')}": value
            for part, network in networks.items()
            for name, value in network.items()
        }
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        where = "The checkpoint" if isinstance(source, Mapping) else str(source)
        raise UserError(
            f"{where} should hold names and tensors, bare or under `state_dict` or `model`; "
            f"found {', '.join(map(repr, strange[:5])) or 'nothing'}."
        )
    return state, found["meta"] if isinstance(found.get("meta"), Mapping) else {}


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {named[1]}" if named else "something other than tensors and plain values"
        raise UserError(
            f"{path} is a pickle that holds {what}; loading it could run any code, so it is not loaded.\n"
            "If you trust it, keep only its weights, in the environment that made it:\n"
            f"  python -c \"import torch; c = torch.load('{path}', map_location='cpu', weights_only=False); "
            "torch.save(c.get('state_dict', c), 'weights.pth')\""
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a weights file: {error}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} should hold names and tensors, found {type(found).__name__}.")
    return found


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
        part: which network of an adaptation checkpoint, a key of `ssrseg.models.weight_names.PARTS`.
        backbone_only: leave the checkpoint's head out. Without it, a checkpoint that has no head at all
            (ImageNet weights) still loads; one that has a head must fit wholly.
        fresh: pattern of official names that the checkpoint may lack; these layers stay as they are.

    Raises:
        UserError: an entry is unknown, missing or of another shape; or the file cannot be read safely.
    """
    state, dropped = select(read_checkpoint(checkpoint)[0], part)
    dialect = recognise(state) if source == "auto" else source
    if dialect not in DIALECTS:
        raise UserError(f"There is no source {source!r}: choose auto, {', '.join(DIALECTS)}.")
    state = to_official(state, dialect, segmenter)
    backbone_only = backbone_only or not any(key.startswith("decode_head.") for key in state)
    own = segmenter.state_dict()
    wanted = {official_name(key, segmenter): key for key in own if key.startswith("backbone.") or not backbone_only}
    chosen = {wanted[name]: value for name, value in state.items() if name in wanted}
    left = [name for name in state if name not in wanted]
    reasons = drop_reasons(left, backbone_only, segmenter if dialect == "timm" else None)
    if dialect == "dacs":
        reasons |= {name: "a branch that the released code never reaches" for name in left if ".aspp_modules." in name}
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
    unknown = [name for name in left if name not in reasons]
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
    segmenter.load_state_dict({**own, **chosen})
    return LoadReport(dialect, len(chosen), dropped | reasons)


def load_pretrained(segmenter: Segmenter, spec: str, backbone: str) -> str:
    """Load ImageNet weights into the backbone.

    Args:
        segmenter: changed in place.
        spec: `none`, `hub` (the published weights of `backbone`), `owner/name[@revision]`, or a local file.
        backbone: the name under which the backbone was built.

    Returns:
        A note for the user: where the weights come from, and their licence.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    if spec == "none":
        return f"{backbone}: random weights. Published results start from ImageNet weights (model.pretrained: hub)."
    record = architecture(backbone)
    if Path(spec).is_file():
        return f"{backbone}: {spec}: {_load_backbone(segmenter, spec, record)}"
    spec = record.hub or spec if spec == "hub" else spec
    if spec != "hub" and (not HUB_ID.fullmatch(spec) or Path(spec).suffix in SUFFIXES):
        raise UserError(f"model.pretrained is {spec!r}: no such file, and neither none, hub nor owner/name[@revision].")
    what = f"timm's weights of {record.timm_name}"
    try:
        if spec == "hub":
            segmenter.backbone.load_state_dict(build_backbone(backbone, timm_weights=True).state_dict())
            return f"{backbone}: {what}" + (" but for fc6 and fc7, which are random" if record.fresh else "")
        what = f"The weights {spec}"
        file = _from_hub(spec, "model.safetensors", "pytorch_model.bin")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{what} cannot be downloaded: {str(error).splitlines()[0]}\n"
            "Fetch the weights file by hand where there is a network, and set model.pretrained to its path; "
            "model.pretrained: none starts from random weights."
        ) from error
    terms = " (NVIDIA's terms: non-commercial use only)" if spec.startswith("nvidia/") else ""
    return f"{backbone}: {spec}{terms}: {_load_backbone(segmenter, file, record)}"


def _load_backbone(segmenter: Segmenter, file: Path | str, record: Architecture) -> LoadReport:
    report = load_published(segmenter, file, backbone_only=True, fresh=record.fresh)
    turned = report.dialect == "ssrseg" or "bgr" in DIALECTS[report.dialect]  # a model of ours, or above
    if record.bgr and not turned:  # published for blue, green, red
        first = next(layer for layer in segmenter.backbone.modules() if isinstance(layer, nn.Conv2d))
        first.weight.data = first.weight.data.flip(1)
    return report


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
