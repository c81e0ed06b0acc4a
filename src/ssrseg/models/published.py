"""Published checkpoints into a segmenter: all of it, or its backbone; strictly, and every entry accounted for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from ssrseg.errors import UserError
from ssrseg.models.segmenter import Segmenter
from ssrseg.models.weight_files import ENOUGH, Network, WeightFile, find_network, read_weights
from ssrseg.models.weight_names import backbone_in, drop_reasons, official_name, recognise, to_official


@dataclass(frozen=True)
class LoadReport:
    """Account for every entry of a checkpoint: loaded, or left out with a reason."""

    dialect: str
    loaded: int
    """Tensors of the segmenter that were set."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Official name -> why it was left out."""
    place: str = ""
    """Where in the file the network lies, and which others are there."""
    fresh: tuple[str, ...] = ()
    """Official names of a backbone's weights that the checkpoint lacks: they stay as they were."""

    def __str__(self) -> str:
        """Give one line, and one per reason for leaving something out."""
        lines = [f"{self.loaded} tensors loaded ({self.dialect} names{self.place}), {len(self.dropped)} left out"]
        lines += [f"  {n} x {reason}" for reason, n in Counter(self.dropped.values()).items()]
        if self.fresh:
            lines.append(f"  {len(self.fresh)} of {self.loaded + len(self.fresh)} are not in it and stay random: ")
            lines[-1] += _listed(self.fresh)
        return "\n".join(lines)


def load_published(
    segmenter: Segmenter,
    checkpoint: WeightFile | Mapping[str, Any] | Path | str,
    *,
    part: str | None = None,
    backbone_only: bool = False,
    fresh: str | None = None,
    setting: str = "part=",
    backbone: str = "model.backbone=",
) -> LoadReport:
    """Load a published checkpoint. Every entry is loaded, or is in the report with the reason why it is not.

    Args:
        segmenter: changed in place, and only if everything fits.
        checkpoint: a file (`.safetensors`, or a torch file that is read without executing anything), or its content:
            names and tensors, under whatever keys and prefixes.
        part: which network in the checkpoint: its key or prefix, such as `ema_model` (`docs/weights.md`).
        backbone_only: leave the checkpoint's head out; a tenth of the backbone may be missing or unknown. Without it,
            a checkpoint that has no head at all (ImageNet weights) still loads; one that has a head must fit wholly.
        fresh: pattern of official names that the checkpoint may lack; these layers stay as they are.
        setting: how the user chooses `part`, for messages.
        backbone: how the user chooses the segmenter's backbone.

    Raises:
        UserError: an entry is unknown, missing or of another shape; or the file cannot be read safely.
    """
    own = segmenter.state_dict()
    official = {key: official_name(key, segmenter) for key in own}
    keys = {name: key for key, name in official.items()}
    backbone_size = sum(key.startswith("backbone.") for key in own)

    def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return to_official(weights, recognise(weights), official)

    def fit(weights: Mapping[str, Tensor]) -> float:
        found = renamed({name: value.to("meta") for name, value in weights.items()})
        right = sum(1 + (value.shape == own[keys[name]].shape) for name, value in found.items() if name in keys)
        return float(right) / (2 * backbone_size)

    file = read_weights(checkpoint)
    network = find_network(file, fit, part=part, setting=setting)
    dialect, state = recognise(network.tensors), renamed(network.tensors)
    backbone_only = backbone_only or not any(key.startswith("decode_head.") for key in state)
    wanted = {name: key for name, key in keys.items() if name.startswith("backbone.") or not backbone_only}
    left = [name for name in state if name not in wanted]
    reasons = drop_reasons(left, backbone_only, segmenter if dialect == "timm" else None)
    if dialect == "dacs":
        reasons |= {name: "a branch that the released code never reaches" for name in left if ".aspp_modules." in name}
    unknown = [name for name in left if name not in reasons]
    may_lack = re.compile(rf"_tracked$|{fresh}" if fresh else "_tracked$")
    missing = [name for name in wanted if name not in state and not may_lack.search(name)]
    chosen = {key: state[name] for name, key in wanted.items() if name in state}
    other = [key for key, value in chosen.items() if value.shape != own[key].shape]
    shapes = [f"{official[key]} is {tuple(chosen[key].shape)}, expected {tuple(own[key].shape)}" for key in other]
    nearly = backbone_only and not shapes and max(len(missing), len(unknown)) <= (1 - ENOUGH) * len(wanted)
    if not nearly and (unknown or missing or shapes):
        whole = f"{len(wanted)} tensors of the {'backbone' if backbone_only else 'model'}"
        problems = {"unknown to the model": unknown, "missing": missing, "of another shape": shapes}
        listed = [f"  {len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names]
        likely = {backbone_in(state, dialect)} - {backbone_in(renamed(own), dialect), None}
        ways = [f"  {backbone}{name}: the network whose weights these look like" for name in likely]
        ways += [f"  {setting}{name}: another network in the file" for name in network.others.values() if name]
        if not backbone_only and all("decode_head." in name for name in (*unknown, *missing, *shapes)):
            ways.append(f"  {quote(f'model.pretrained={file.where}')}: its backbone alone, under any head")
        ways = ways or [f"  {backbone}NAME: the network whose weights these are"]
        raise UserError(
            f"The checkpoint does not fit the model: {len(chosen) - len(shapes)} of {whole} are in {file.where} "
            f"(official names{_place(file, network)}):\n" + "\n".join([*listed, *ways])
        )
    segmenter.load_state_dict({**own, **chosen})
    dropped = _beside(file, network) | reasons | dict.fromkeys(unknown, "unknown to this backbone")
    return LoadReport(dialect, len(chosen), dropped, _place(file, network, setting), tuple(missing))


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _place(file: WeightFile, network: Network, setting: str | None = None) -> str:
    """Say where a network lies in its file, and how others in it are chosen, where there is something to say."""
    parts = [f"under `{network.path[:-1]}`"] if network.path else []
    parts += [f"`{word}` taken out" for word in file.wrappers]
    if setting is not None and (others := [f"{setting}{name}" for name in network.others.values() if name]):
        parts.append(f"also in the file: {', '.join(others)}")
    return "".join(f"; {part}" for part in parts)


def _beside(file: WeightFile, network: Network) -> dict[str, str]:
    """Explain why what lies beside a network in its file is left out: name -> reason."""
    taken = {network.path + name for name in network.tensors}
    reasons: dict[str, str] = {}
    for name in (name for name in file.tensors if name not in taken):
        owner = next((other for path, other in network.others.items() if name.startswith(path)), None)
        endings = [name, *(name[dot.end() :] for dot in re.finditer(r"\.", name))]
        known = [*drop_reasons(endings, False, None).values(), f"beside `{network.path[:-1]}`"]
        reasons[name] = known[0] if owner is None else f"another network: {owner}"
    return reasons
