"""The processes of a run: how many there are, and what they hold together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from ssrseg.adapt import distributed
from ssrseg.adapt.methods import Method
from ssrseg.config import TrainConfig
from ssrseg.errors import UserError


def build_fabric(config: TrainConfig) -> Fabric:
    """One process or many, as the launcher or the settings say.

    Raises:
        UserError: launcher and settings disagree.
    """
    devices, nodes = placement(config)
    plugins: list[Any] = [Autocast("bf16-mixed", device_type(config))] if config.precision == "bf16" else []
    strategy: DDPStrategy | Literal["auto"] = "auto"
    if devices * nodes > 1:
        strategy = DDPStrategy(
            # A view need not use every term, so a step may leave parameters without gradient.
            find_unused_parameters=True,
            # The watchdog comes first and says more; processes may start minutes apart.
            timeout=timedelta(minutes=10 + 2 * config.timeout_minutes),
        )
    return Fabric(accelerator=config.accelerator, devices=devices, num_nodes=nodes, plugins=plugins, strategy=strategy)


class Autocast(MixedPrecision):
    """Fabric's bfloat16 autocast, which takes a view as it is: images keep their 32 bits until the first layer."""

    def convert_input(self, data: Any) -> Any:
        """The same view; Fabric's own cannot change a frozen dataclass."""
        return data


def device_type(config: TrainConfig) -> str:
    """`cuda`, `mps` or `cpu`: what `train.accelerator` means on this machine."""
    if config.accelerator != "auto":
        return config.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def placement(config: TrainConfig) -> tuple[int, int]:
    """Processes per machine, and machines: as torchrun or SLURM started them, else as the settings say.

    Raises:
        UserError: the settings ask for more than one process, but not for what the launcher started.
    """
    asked, found = (config.devices, config.nodes), launched()
    if found is None or found == asked:
        return asked
    if asked != (1, 1):
        raise UserError(
            f"The settings ask for train.devices={asked[0]} on train.nodes={asked[1]}, but the launcher started "
            f"{found[0]} processes on each of {found[1]} machines. Leave both settings out, or make them agree."
        )
    return found


def launched() -> tuple[int, int] | None:
    """Processes per machine and machines that torchrun or SLURM started; `None` when neither did."""
    if TorchElasticEnvironment.detect():
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return each, int(os.environ["WORLD_SIZE"]) // each
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None


def synchronise_batchnorm(method: Method, fabric: Fabric) -> None:
    """Let BatchNorm of learner and teacher use the statistics of the whole batch, over all processes.

    Args:
        method: not yet in the optimiser; changed in place.
        fabric: launched.

    Raises:
        UserError: there are several processes, and they do not run on CUDA.
    """
    if fabric.world_size == 1:
        return
    if fabric.device.type != "cuda":
        raise UserError(
            f"train.sync_batchnorm needs CUDA devices, but this run is on {fabric.device.type}: torch has no "
            "synchronised BatchNorm there. Leave it out."
        )
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    convert(method.learner)
    convert(method.teacher)


def same_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers: the running statistics that evaluation uses."""
    if distributed.world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
