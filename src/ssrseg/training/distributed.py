"""The processes of a run: how many there are, and what ends them: a fault of one, too long a step, a signal."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm

from ssrseg.adapt.methods import Method
from ssrseg.config import TrainConfig
from ssrseg.errors import UserError
from ssrseg.training.loop import Observer, StepResult

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, `kill`, and SLURM's warning ahead of a time limit (`#SBATCH --signal=USR1@120`)."""

ECHO = 1.0
"""Seconds in which a second signal counts as the first: launchers pass on what the terminal has sent already."""


def build_fabric(config: TrainConfig) -> Fabric:
    """Build the Fabric of one process or many; raises `UserError` where launcher and settings disagree."""
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
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return found if config.accelerator == "auto" else config.accelerator


def placement(config: TrainConfig) -> tuple[int, int]:
    """Count processes per machine, and machines: as torchrun or SLURM started them, else as the settings say.

    Raises `UserError` where the settings ask for more than one process, but not for what the launcher started.
    """
    asked = found = config.devices, config.nodes
    if TorchElasticEnvironment.detect():
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        found = each, int(os.environ["WORLD_SIZE"]) // each
    elif SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        found = int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    if found == asked:
        return asked
    if asked != (1, 1):
        raise UserError(
            f"The settings ask for train.devices={asked[0]} on train.nodes={asked[1]}, but the launcher started "
            f"{found[0]} processes on each of {found[1]} machines. Leave both settings out, or make them agree."
        )
    return found


def sync_batchnorm(method: Method, fabric: Fabric) -> None:
    """Let BatchNorm of learner and teacher use the statistics of the whole batch of all processes, in place.

    Call it before the optimiser is built; raises `UserError` where the device is no CUDA device.
    """
    if fabric.world_size == 1:
        return
    if fabric.device.type != "cuda":
        raise UserError(
            f"train.sync_batchnorm needs CUDA devices, but this run is on {fabric.device.type}: torch has no "
            "synchronised BatchNorm there. Leave it out."
        )
    for network in (method.learner, method.teacher):
        # timm's: torch's would drop the activations inside its norms.
        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


class StepTimeout(Observer):
    """End this process when it completes no step for `minutes`, and print where each thread stands.

    Inside its `with` block an error that ends the process also ends those that Fabric started, and a lost connection
    becomes a message for the user. Nothing is done in a run of one process.
    """

    everywhere = True

    def __init__(self, fabric: Fabric, minutes: float) -> None:
        self._fabric, self._minutes, self._step = fabric, minutes, 0
        self._progress, self._over = threading.Event(), False
        self._name = f"Process {fabric.global_rank} (pid {os.getpid()} on {socket.gethostname()})"

    def stepped(self, result: StepResult) -> None:
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
                f"{self._name} lost its connection to another process after step {self._step}: that process failed, "
                "was killed (by hand or for its memory), or its machine is lost. Its own message, or the launcher's, "
                f"may stand above; torch reports: {error}"
            ) from error

    def _kill_children(self) -> None:
        for child in getattr(self._fabric.strategy.launcher, "procs", ()):  # those that Fabric's launcher started
            child.kill()

    def _watch(self) -> None:
        while self._progress.wait(60 * self._minutes):
            self._progress.clear()
            if self._over:
                return
        sys.stderr.write(
            f"error: {self._name} has completed no step for {self._minutes:g} minutes (train.timeout_minutes) "
            f"after step {self._step}, and ends. Where it stands:\n"
        )
        faulthandler.dump_traceback()
        time.sleep(2)  # the other processes of this machine, which stand still too, print where
        self._kill_children()
        os._exit(1)  # an exception could not reach the main thread, which may wait in a collective operation


class Interrupted(SystemExit):
    """A signal has ended the run after a step, and its state was kept. The exit code is 128 + the signal's number."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signal, self.step = signal.Signals(signum), step


class Stop:
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        self.signum = 0
        """0: none."""

    def agreed(self, fabric: Fabric, *, due: bool) -> int:
        """Return the signal that any process has received; 0 when there is none, or several processes are not `due`."""
        if fabric.world_size == 1:
            return self.signum
        if not due:
            return 0
        return int(fabric.all_reduce(torch.tensor(self.signum, device=fabric.device), reduce_op="max"))  # type: ignore[arg-type]


@contextmanager
def signals_noted() -> Iterator[Stop]:
    """Note the first of `SIGNALS`; the second does what it did before. Signals that were ignored stay ignored.

    Only Python's main thread can do so; in another one nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    noted_at = 0.0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal noted_at
        if not stop.signum:
            stop.signum, noted_at = signum, time.monotonic()
        elif time.monotonic() - noted_at > ECHO:
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)

    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
