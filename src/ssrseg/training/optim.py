"""The references' optimisers, parameter groups and schedule."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, cast

import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ssrseg.adapt.learner import Learner
from ssrseg.config import OptimConfig, SGDConfig
from ssrseg.errors import UserError
from ssrseg.models.plain import PlainPyramid
from ssrseg.models.segmenter import Segmenter
from ssrseg.models.weight_names import timm_architecture, timm_name

DISCRIMINATOR = ".discriminator."
"""Part of the names of a term's discriminator's parameters, which have an optimiser of their own."""


NO_DECAY = re.compile("norm")
"""Of a pyramid: names of what does not decay."""
NO_DECAY_OF_VIT = re.compile(r"norm|pos_embed|cls_token|reg_token|gamma|rel_pos|relative_position")
"""Of a plain ViT: its norms, positions, class token, registers and layer scales."""
BACKBONE, NEW = "student.backbone.", "student.backbone.pyramid.up."


def parameter_groups(learner: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters of a learner, but for discriminators, by learning rate and weight decay.

    The head learns `head_lr_factor` times as fast; the backbone's norms do not decay; biases do, and so do the head's
    norms (DAFormer's configuration). Of a plain ViT, the layers that make the pyramid learn as fast as the head, and
    `NO_DECAY_OF_VIT` does not decay.

    Each group holds `params`, their `names`, `lr`, `base_lr` (what the schedule scales), `weight_decay`, and `steps`,
    how often an iteration steps it.

    Raises:
        UserError: `layer_decay` for a backbone whose layers have no known order.
    """
    student = cast(Segmenter, getattr(learner, "student", None))
    by_depth = isinstance(config, SGDConfig) and config.steps_by_depth
    plain = student is not None and isinstance(student.backbone.pyramid, PlainPyramid)
    undecayed = NO_DECAY_OF_VIT if plain else NO_DECAY
    above = blocks_above(student) if config.layer_decay not in (None, 1) else dict[str, int]()
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad or DISCRIMINATOR in name:
            continue
        lr = config.lr
        if name.startswith(("student.head.", "student.attention.")) or (plain and name.startswith(NEW)):
            lr *= config.head_lr_factor
        elif name.startswith(BACKBONE):
            lr *= config.backbone_lr_factor * (config.layer_decay or 1.0) ** above.get(name, 0)
        decay = 0.0 if name.startswith(BACKBONE) and undecayed.search(name) else config.weight_decay
        path = name.removeprefix("student.backbone.pyramid.")
        steps = path.count(".") if by_depth and path != name else 1
        new = {"params": [], "names": [], "lr": lr, "base_lr": lr, "weight_decay": decay, "steps": steps}
        group = groups.setdefault((lr, decay, steps), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def blocks_above(student: Segmenter) -> dict[str, int]:
    """Count the blocks of the backbone between each of its parameters and the end: learner's name -> 0 for the last.

    The order is timm's, which has stages for blocks in some architectures; what stands before the first block is one
    more. Raises `UserError` where timm has none.
    """
    names = {f"student.{name}": timm_name(name) for name, _ in student.named_parameters()}
    names = {name: its for name, its in names.items() if name.startswith(BACKBONE) and not name.startswith(NEW)}
    if (depth := depths(timm_architecture(student))) is None:
        raise UserError(
            "optim.layer_decay: the layers of this backbone have no known order. Set optim.layer_decay=null; "
            "optim.backbone_lr_factor slows the whole backbone down."
        )
    last = max(depth[its] for its in names.values() if not its.startswith("neck."))  # SAM's, behind the last block
    return {name: max(0, last - depth[its]) for name, its in names.items()}


@lru_cache
def depths(architecture: str) -> dict[str, int] | None:
    """Look up the order of layers in one of timm's architectures: parameter -> place of its layer, if timm has one."""
    if not timm.is_model(architecture):
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(architecture)
    if not hasattr(model, "group_matcher"):
        return None
    found: dict[str, int] = group_parameters(model, model.group_matcher(), reverse=True)
    return found


def build_optimizer(learner: Learner, config: OptimConfig, *, discriminator_lr: float = 1e-4) -> Optimizer:
    """Build AdamW (betas 0.9 and 0.999, eps 1e-8), or SGD with momentum; discriminators have an Adam beside it.

    Fused: its kernel leaves weights and state alone where the attribute `found_inf`, a tensor on the device, is 1.
    """
    groups = parameter_groups(learner, config)
    own: Optimizer
    if isinstance(config, SGDConfig):
        own = RepeatedSGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    else:
        own = AdamW(groups, lr=config.lr, fused=True)
    adversaries = {name: weight for name, weight in learner.named_parameters() if DISCRIMINATOR in name}
    if not adversaries:
        return own
    group = {"params": [*adversaries.values()], "names": [*adversaries], "base_lr": discriminator_lr}
    return CombinedOptimizer(own, Adam([group], lr=discriminator_lr, betas=(0.9, 0.99), fused=True))


class RepeatedSGD(SGD):
    """SGD that steps each group `steps` times per iteration, one after the other, with the same gradients."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step; every step but the first of an iteration uses weights and momentum of the one before."""
        groups = self.param_groups
        try:
            for turn in range(max(group["steps"] for group in groups)):
                self.param_groups = [group for group in groups if group["steps"] > turn]
                super().step(closure)
        finally:
            self.param_groups = groups


class CombinedOptimizer(Optimizer):
    """Two optimisers of different parameters that step together."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([weight for group in self._groups() for weight in group["params"]], {})
        self.param_groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parts' own groups, so that a schedule reaches both."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both, with `found_inf` handed on."""
        for part in self.parts:
            if hasattr(self, "found_inf"):
                part.found_inf = self.found_inf  # type: ignore[attr-defined]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both as `load_optimizer` does."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            load_optimizer(part, state)
        self.param_groups = self._groups()


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore what was gathered for each parameter, by its name; groups, rates and decay stay those of the optimiser.

    Raises `KeyError` or `ValueError` for the state of another optimiser or of other parameters.
    """
    if isinstance(optimizer, CombinedOptimizer):
        optimizer.load_state_dict(state)
        return
    mine = optimizer.state_dict()
    if ("betas" in optimizer.defaults) != ("betas" in state["param_groups"][0]):
        raise ValueError(f"its optimiser was another one than {type(optimizer).__name__}")
    before, now = _numbers(state), _numbers(mine)
    if unlike := sorted(before.keys() ^ now.keys()):
        raise ValueError(f"its optimiser had other parameters ({', '.join(unlike[:5])})")
    gathered = {number: state["state"].get(before[name]) for name, number in now.items()}
    mine["state"] = {number: each for number, each in gathered.items() if each is not None}
    optimizer.load_state_dict(mine)


def _numbers(state: dict[str, Any]) -> dict[str, int]:
    """Map each parameter's name to its number in the state of an optimiser."""
    return dict(pair for group in state["param_groups"] for pair in zip(group["names"], group["params"], strict=True))


def learning_rate(
    base: float,
    step: int,
    steps: int,
    *,
    warmup: int = 1500,
    power: float = 1.0,
    min_lr: float = 0.0,
    warmup_ratio: float = 1e-6,
    warmup_whole: bool = False,
) -> float:
    """Compute the rate of step 0..steps-1: polynomial decay times a linear warm-up of the *decaying* rate.

    `base` is the rate without schedule, `min_lr` where the decay ends, `warmup_ratio` the share of the rate at step 0;
    `warmup_whole`: the warm-up is one to the whole rate, at its last step (VFM-UDA).
    """
    if warmup_whole and step < warmup:
        return base * (warmup_ratio + (1 - warmup_ratio) * step / max(1, warmup - 1))
    regular: float = (base - min_lr) * (1 - step / steps) ** power + min_lr
    if step >= warmup:
        return regular
    return regular * (1 - (1 - step / warmup) * (1 - warmup_ratio))


def scheduled(base: float, config: OptimConfig, step: int, steps: int) -> float:
    """Compute the rate of `step` in a run of `steps`."""
    return learning_rate(
        base,
        step,
        config.length or steps,
        warmup=config.warmup,
        power=config.power,
        min_lr=config.min_lr,
        warmup_ratio=config.warmup_ratio,
        warmup_whole=config.warmup_whole,
    )


def set_learning_rates(optimizer: Optimizer, config: OptimConfig, step: int, steps: int) -> None:
    """Give every group the rate of `step`."""
    for group in optimizer.param_groups:
        group["lr"] = scheduled(group["base_lr"], config, step, steps)
