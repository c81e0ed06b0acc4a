"""What the shipped recipes need: licences of their weights, memory and operations on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssrseg.adapt.foundation import ENCODERS
from ssrseg.config import merge, read_preset, resolve
from ssrseg.models.weights import licence
from ssrseg.planning.fake_step import fake_step
from ssrseg.planning.scaling import scaled

NOMINAL = 1e14
"""Operations per second for which a time is given."""


def licences(tree: Mapping[str, Any]) -> dict[str, str]:
    """Name the licence of the weights of each network that a tree of settings loads: backbone and frozen encoders."""
    method = tree.get("method", {})
    parts = [method.get(name) or {} for name in ("regularizer", "distillation", "affinity")]
    encoders = [part["foundation"].get("encoder", "sam-vit-b") for part in parts if "foundation" in part]
    found = {backbone: licence(backbone)} if (backbone := tree.get("model", {}).get("backbone")) else {}
    known = {name: f"timm:{ENCODERS[name]}" if name in ENCODERS else name for name in encoders if name != "demo"}
    return found | {name: licence(timm_name) for name, timm_name in known.items()}


def needs_of_preset(name: str) -> str:
    """Say what a shipped recipe needs on one GPU, as `plan` estimates it; of stages, the last training.

    Raises:
        UserError: there is no such preset.
    """
    tree = read_preset(name)
    trainings = [stage["settings"] for stage in tree.pop("stages", []) if "settings" in stage]
    tree = merge(tree, trainings[-1] if trainings else {})
    if tree["loader"]["crop"] == "auto":
        tree = merge(tree, {"loader": {"crop": [512, 512]}})
    data = {"classes": "cityscapes19", "source": {"root": "source"}, "target": {"root": "target"}}
    settings = resolve(scaled(merge({**data, **tree}, {"model": {"start": None}})))
    cost = fake_step(settings, "cuda")
    operations, steps = sum(map(sum, cost.flops.values())) * settings.train.accumulate, settings.train.steps
    height, width = settings.loader.crop
    hours = operations * steps / NOMINAL / 3600
    return (
        f"On one GPU, batches of {settings.loader.batch} crops of {height}x{width}: {cost.peak / 2**30:.1f} GiB and "
        f"{operations / 1e12:.1f} TFLOP a step, as `ssrseg plan` estimates them.\n"
        f"{steps:,} steps are {hours:.1f} hours for a GPU that does {NOMINAL / 1e12:.0f} TFLOP/s of them, which is "
        "arithmetic: `ssrseg plan` times steps where there is a GPU."
    )
