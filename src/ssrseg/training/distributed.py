"""The processes of a run: how many there are, and what ends them together."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
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
from ssrseg.training.loop import Observer, StepResult

GRACE = 2.0
"""Seconds in which the other processes of this machine, which stand still too, can print where."""


def build_fabric(config: TrainConfig) -> Fabric:
    """Build the Fabric of one process or many, as the launcher or the settings say.

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
            # `StepTimeout` comes first, with a better message; processes may start minutes apart.
            timeout=timedelta(minutes=10 + 2 * config.timeout_minutes),
        )
    return Fabric(accelerator=config.accelerator, devices=devices, num_nodes=nodes, plugins=plugins, strategy=strategy)


class Autocast(MixedPrecision):
    """Fabric's bfloat16 autocast without its cast of the inputs: images keep their 32 bits until the first layer."""

    def convert_input(self, data: Any) -> Any:
        """Return the view unchanged; Fabric's own method cannot change a frozen dataclass."""
        return data


def device_type(config: TrainConfig) -> str:
    """Resolve `train.accelerator` on this machine: `cuda`, `mps` or `cpu`."""
    if config.accelerator != "auto":
        return config.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def placement(config: TrainConfig) -> tuple[int, int]:
    """Count processes per machine, and machines: as torchrun or SLURM started them, else as the settings say.

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
    """Count processes per machine, and machines, that torchrun or SLURM started; `None` when neither did."""
    if TorchElasticEnvironment.detect():
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return each, int(os.environ["WORLD_SIZE"]) // each
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None


def sync_batchnorm(method: Method, fabric: Fabric) -> None:
    """Let BatchNorm of learner and teacher use the statistics of the whole batch of all processes.

    Args:
        method: not yet in the optimiser; changed in place, unless there is only one process.
        fabric: launched.

    Raises:
        UserError: the device is no CUDA device.
    """
    if fabric.world_size == 1:
        return
    if fabric.device.type != "cuda":
        raise UserError(
            f"train.sync_batchnorm needs CUDA devices, but this run is on {fabric.device.type}: torch has no "
            "synchronised BatchNorm there. Leave it out."
        )
    for network in (method.learner, method.teacher):
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


def same_buffers(module: nn.Module) -> None:
    """Copy the first process's buffers to all others: the running statistics that evaluation uses."""
    if distributed.world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


class StepTimeout(Observer):
    """End this process when it completes no step for `train.timeout_minutes`, and print where each thread stands.

    Inside its `with` block an error that ends the process also ends those that Fabric started, and a lost connection
    becomes a message for the user. Nothing is done in a run of one process.

    Args:
        fabric: launched.
        minutes: longest time that a step, with the evaluation after it, may take.
    """

    everywhere = True

    def __init__(self, fabric: Fabric, minutes: float) -> None:
        self._fabric, self._minutes, self._step = fabric, minutes, 0
        self._progress, self._over = threading.Event(), False

    def stepped(self, result: StepResult) -> None:
        """Start the time of the next step."""
        self._step = result.step
        self._progress.set()

    def __enter__(self) -> StepTimeout:
        if self._fabric.world_size > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._over = True
        self._progress.set()
        if self._fabric.world_size == 1 or not isinstance(error, Exception):
            return
        self._kill_children()
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise UserError(
                f"{self} lost its connection to another process after step {self._step}: that process failed, was "
                "killed (by hand or for its memory), or its machine is lost. Its own message, or the launcher's, may "
                f"stand above; torch reports: {error}"
            ) from error

    def __str__(self) -> str:
        return f"Process {self._fabric.global_rank} (pid {os.getpid()} on {socket.gethostname()})"

    def _kill_children(self) -> None:
        for child in getattr(self._fabric.strategy.launcher, "procs", ()):  # those that Fabric's launcher started
            child.kill()

    def _watch(self) -> None:
        while self._progress.wait(60 * self._minutes):
            self._progress.clear()
            if self._over:
                return
        sys.stderr.write(
            f"error: {self} has completed no step for {self._minutes:g} minutes (train.timeout_minutes) after step "
            f"{self._step}, and ends. Where it stands:\n"
        )
        faulthandler.dump_traceback()
        time.sleep(GRACE)
        self._kill_children()
        os._exit(1)  # an exception could not reach the main thread, which may wait in a collective operation
