"""Published checkpoints onto our names: strictly, and without ever executing a pickle."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssrseg.errors import UserError
from ssrseg.models.backbones import BACKBONES, architecture, build_backbone
from ssrseg.models.names import DIALECTS, official_name, recognise, timm_architecture, to_official
from ssrseg.models.segmenter import Description, Segmenter, build_segmenter, save_segmenter

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
    """The checkpoint's name -> why it was left out."""

    def __str__(self) -> str:
        """One line, and one per reason for leaving something out."""
        lines = [f"{self.loaded} tensors loaded ({self.dialect} names), {len(self.dropped)} left out"]
        return "\n".join([*lines, *(f"  {n} x {reason}" for reason, n in Counter(self.dropped.values()).items())])


@dataclass(frozen=True)
class Checkpoint:
    """A file's weights, and what its authors wrote beside them."""

    state: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)


def load_published(
    segmenter: Segmenter,
    checkpoint: Mapping[str, Any] | Path | str,
    source: str = "auto",
    *,
    part: str = "model",
    backbone_only: bool = False,
) -> LoadReport:
    """Load a published checkpoint. Every entry is loaded, or is in the report with the reason why it is not.

    Args:
        segmenter: changed in place, and only if everything fits.
        checkpoint: a file (`.safetensors`, or a torch file that is read without executing anything), or names and
            tensors, bare or under `state_dict` or `model`.
        source: whose spelling it is, a key of `ssrseg.models.names.DIALECTS`; recognised by its names when `auto`.
        part: which network of an adaptation checkpoint, a key of `PARTS`.
        backbone_only: leave the checkpoint's head out. Without it, a checkpoint that has no head at all
            (ImageNet weights) still loads; one that has a head must fit wholly.

    Raises:
        UserError: an entry is unknown, missing or of another shape; or the file cannot be read safely.
    """
    found = read_checkpoint(checkpoint)
    state, dropped = _select(found.state, part)
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
    missing = [official for official, key in wanted.items() if key not in chosen and not key.endswith("_tracked")]
    shapes = [
        f"{official_name(key, segmenter)} is {tuple(value.shape)}, expected {tuple(own[key].shape)}"
        for key, value in chosen.items()
        if value.shape != own[key].shape
    ]
    _refuse(unknown=[name for name in left if name not in reasons], missing=missing, shapes=shapes)
    segmenter.load_state_dict({**own, **chosen})
    return LoadReport(dialect, len(chosen), dropped | reasons)


def _select(state: Mapping[str, Tensor], part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def read_checkpoint(source: Mapping[str, Any] | Path | str) -> Checkpoint:
    """The weights in a file, or in what such a file holds. Nothing in it is executed.

    Raises:
        UserError: no such file, not a weights file, or one that holds more than tensors and plain values.
    """
    found = source if isinstance(source, Mapping) else _read(Path(source))
    state = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        where = "The checkpoint" if isinstance(source, Mapping) else str(source)
        raise UserError(
            f"{where} should hold names and tensors, bare or under `state_dict` or `model`; "
            f"found {', '.join(map(repr, strange[:5])) or 'nothing'}."
        )
    meta = found.get("meta")
    return Checkpoint(state, meta if isinstance(meta, Mapping) else {})


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a weights file: {error}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} should hold names and tensors, found {type(found).__name__}.")
    return found


def _refusal(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    what = f"the Python object {named[1]}" if named else "something other than tensors and plain values"
    return (
        f"{path} is a pickle that holds {what}; loading it could run any code, so it is not loaded.\n"
        "If you trust it, keep only its weights, in the environment that made it:\n"
        f"  python -c \"import torch; c = torch.load('{path}', map_location='cpu', weights_only=False); "
        "torch.save(c.get('state_dict', c), 'weights.pth')\""
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
        classes: their names; those in the checkpoint's `meta` when absent, else numbers.
        resize: (width, height) that bounds the images at inference.
        part: which network of an adaptation checkpoint, a key of `PARTS`.

    Raises:
        UserError: the checkpoint cannot be read, recognised, or does not fit.
    """
    found = read_checkpoint(source)
    state, _ = _select(found.state, part)
    official = to_official(state, recognise(state), None)
    count = _classes_in(official, source)
    names = tuple(classes or _strings(found.meta.get("CLASSES"), count) or (f"class-{i}" for i in range(count)))
    if len(names) != count:
        raise UserError(f"{source} has {count} classes, but {len(names)} names were given.")
    description = Description(
        backbone=backbone or _backbone_in(official, source),
        head=head or _head_in(official, source),
        classes=names,
        colors=_colors(found.meta.get("PALETTE"), count),
        resize=resize,
    )
    segmenter = build_segmenter(description.backbone, description.head, count)
    report = load_published(segmenter, {"state_dict": found.state}, part=part)
    segmenter.description = description
    save_segmenter(segmenter, out)
    return report


MIT_SIZES = {(2, 2, 2, 2): (0, 1), (3, 4, 6, 3): (2,), (3, 4, 18, 3): (3,), (3, 8, 27, 3): (4,), (3, 6, 40, 3): (5,)}
"""Blocks per stage -> sizes of the Mix Transformer; B0 and B1 differ by their width."""


def _backbone_in(state: Mapping[str, Tensor], source: Path) -> str:
    depths = tuple(_count(state, rf"^backbone\.block{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    if depths in MIT_SIZES:
        sizes = MIT_SIZES[depths]
        return f"mit_b{sizes[-1] if len(state['backbone.norm1.weight']) == 64 else sizes[0]}"
    if "backbone.stem.0.weight" in state and _count(state, r"^backbone\.layer3\.(\d+)\.") == 23:
        return "resnet101v1c"
    raise UserError(f"The backbone in {source} is not recognised: name it, one of {', '.join(BACKBONES)}.")


def _head_in(state: Mapping[str, Tensor], source: Path) -> str:
    marks = {"fuse_layer.": "daformer", "linear_fuse.": "segformer", "aspp_modules.": "deeplabv2"}
    for mark, head in marks.items():
        if any(key.startswith(f"decode_head.{mark}") for key in state):
            return head
    raise UserError(f"The head in {source} is not recognised: it should be one of {', '.join(marks.values())}.")


def _classes_in(state: Mapping[str, Tensor], source: Path) -> int:
    for name in ("linear_pred", "aspp_modules.0.conv", "conv_seg"):  # SegFormer's conv_seg is a dead layer
        if f"decode_head.{name}.weight" in state:
            return len(state[f"decode_head.{name}.weight"])
    raise UserError(f"{source} has no classifier: it is a backbone. Use it as model.pretrained instead.")


def _count(keys: Iterable[str], pattern: str) -> int:
    return len({match[1] for key in keys if (match := re.search(pattern, key))})


def _strings(value: Any, count: int) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list | tuple) and len(value) == count else None


def _colors(palette: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(palette, list | tuple) or len(palette) != count:
        return ()
    return tuple((int(r), int(g), int(b)) for r, g, b in palette)


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
    if Path(spec).is_file():
        report = load_published(segmenter, spec, backbone_only=True)
        return f"{backbone}: {spec}: {report}"
    spec = architecture(backbone).hub or spec if spec == "hub" else spec
    if spec == "hub":
        return _from_timm(segmenter, backbone)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec) or Path(spec).suffix in (".pth", ".pt", ".safetensors"):
        raise UserError(f"model.pretrained is {spec!r}: no such file, and neither none, hub nor owner/name[@revision].")
    report = load_published(segmenter, _download(spec), backbone_only=True)
    terms = " (NVIDIA's terms: non-commercial use only)" if spec.startswith("nvidia/") else ""
    return f"{backbone}: {spec}{terms}: {report}"


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
