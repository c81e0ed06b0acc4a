"""The processes of a run: who starts them, how they find each other, and which of them do not come."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ssrseg.config import TrainConfig
from ssrseg.errors import UserError

PATIENCE = 15.0
"""Seconds after which a run says which processes have not come."""
POLL = 0.2

HINTS = {
    "torchrun": "Look at the other processes and at torchrun on every machine. If torchrun did not start this process, "
    "its variables were left behind: unset TORCHELASTIC_RUN_ID RANK WORLD_SIZE LOCAL_RANK.",
    "slurm": "SLURM announced them by SLURM_NTASKS, and srun starts them: srun ssrseg train ... To run one process "
    "without srun, leave train.devices at 1 and unset SLURM_NTASKS.",
    "settings": "train.devices starts them, and they may still be loading. If LOCAL_RANK is set in this shell, unset "
    "it: it says that something else starts them.",
    "hand": "With train.nodes=N start the same command on each machine, with the same MASTER_ADDR and MASTER_PORT and "
    "its own NODE_RANK from 0 to N-1.",
}
"""What to do when processes do not come, by launcher."""

FOREIGN = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "WORLD_SIZE": "with RANK, as a cluster sets it",
}
"""Variables of launchers that are not used: their processes would each be a run of their own."""

children: list[subprocess.Popen[bytes]] = []
"""Those that Fabric's launcher started, its own list: they serve the later runs of this process, too."""


def started_by_srun() -> bool:
    """Whether this process is a task of a job step: a batch script's shell is number 0 and in none, as is salloc's."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return os.environ.get("SLURM_PROCID", "0") != "0" or (step.isdigit() and int(step) < 0xFFFF_FFF0)


def launcher(config: TrainConfig) -> Literal["torchrun", "slurm", "hand", "settings"]:
    """Say who starts the processes: `settings` is Fabric, on this machine; `hand` the user, on each of several.

    Outside of a job step, SLURM's variables describe a job whose processes the settings may start.
    """
    if TorchElasticEnvironment.detect():
        return "torchrun"
    announced = SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
    if SLURMEnvironment.detect() and (started_by_srun() or (announced and config.devices * config.nodes == 1)):
        return "slurm"
    return "hand" if config.nodes > 1 else "settings"


def placement(config: TrainConfig) -> tuple[int, int]:
    """Count processes per machine, and machines: as torchrun or SLURM started them, else as the settings say.

    Raises `UserError` where the settings ask for more than one process, but not for what the launcher started; and
    where processes could not find each other.
    """
    asked = found = config.devices, config.nodes
    by = launcher(config)
    if by == "torchrun":
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        found = each, int(os.environ["WORLD_SIZE"]) // each
    elif by == "slurm":
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
        found = tasks // nodes, nodes
        if "SLURM_PROCID" not in os.environ:  # a shell of salloc's
            raise UserError(f"{tasks - 1} of {tasks} processes have not come. {HINTS[by]}")
        if tasks % nodes:
            raise UserError(
                f"SLURM started {tasks} tasks on {nodes} machines, not the same number on each: start with "
                f"--ntasks-per-node={-(-tasks // nodes)} instead of --ntasks."
            )
    else:
        _check_by_hand(config)
    if found == asked:
        return asked
    if asked != (1, 1):
        raise UserError(
            f"The settings ask for train.devices={asked[0]} on train.nodes={asked[1]}, but the launcher started "
            f"{found[0]} processes on each of {found[1]} machines. Leave both settings out, or make them agree."
        )
    return found


def _check_by_hand(config: TrainConfig) -> None:
    if config.nodes > 1:
        needed = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
        if absent := [name for name in needed if name not in os.environ]:
            raise UserError(f"train.nodes={config.nodes}, but {', '.join(absent)} is not set here. {HINTS['hand']}")
    if config.devices * config.nodes > 1 or started_by_srun():
        return
    for variable, name in FOREIGN.items():
        count = os.environ.get(variable, "1")
        if count not in ("0", "1") and (variable != "WORLD_SIZE" or "RANK" in os.environ):
            raise UserError(
                f"{variable}={count} ({name}) says that this is one of {count} processes, but the settings ask for one "
                f"(train.devices=1), and it knows nothing of them. For one process unset {variable}. For several start "
                "them by torchrun or srun; or by hand, one per machine: MASTER_ADDR, MASTER_PORT, NODE_RANK from 0 "
                f"(the number of this one) and train.nodes={count}."
            )


def check_devices(kind: str, devices: int) -> None:
    """Raise `UserError` where `train.accelerator` is not here, or has fewer devices than the run has processes here.

    `kind` is `cuda`, `mps` or `cpu`; `devices` counts the processes on this machine.
    """
    if kind == "cpu":
        return
    cuda = kind == "cuda"
    backend = torch.cuda if cuda else torch.backends.mps
    built = torch.version.cuda is not None if cuda else torch.backends.mps.is_built()
    if not backend.is_available():
        why = "it sees none: no GPU, no driver (nvidia-smi shows them), or CUDA_VISIBLE_DEVICES hides them"
        why = why if cuda else "this machine, or its system, has none"
        raise UserError(
            f"train.accelerator={kind}, but torch {torch.__version__} has no {kind.upper()} device: "
            f"{why if built else 'it is built without'}. Leave it out (auto) for what is here, or set it to cpu."
        )
    count = torch.cuda.device_count() if cuda else 1
    if devices > count:
        hidden = f" (CUDA_VISIBLE_DEVICES: {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})" if cuda else ""
        raise UserError(
            f"This run has {devices} processes on this machine and sees {count} {kind.upper()} device"
            f"{'s' if count > 1 else ''}{hidden}: each needs its own. Set train.devices={count}, or start as many; "
            "train.accelerator=cpu needs no device. SLURM must show every task all GPUs of its machine: "
            "--gpus-per-node, not --gpus-per-task."
        )


def kill_children() -> None:
    """Kill the processes that this one has started; an emptied list is none to Fabric's watch over them."""
    while children:
        children.pop().kill()


class DDP(DDPStrategy):
    """Data parallelism that does not wait for other processes without a word.

    `hint` says what to do when they do not come. They are waited for `minutes`; `PATIENCE` where `started` is false:
    then nothing is known to have started them.
    """

    def __init__(self, *, hint: str, minutes: float, started: bool) -> None:
        # A view need not use every term, so a step may leave parameters without gradient.
        super().__init__(find_unused_parameters=True, timeout=timedelta(minutes=minutes))
        self._hint, self._seconds = hint, 60 * minutes if started else PATIENCE

    def setup_environment(self) -> None:
        """Meet the other processes, then connect to them; raises `UserError` where one of these fails."""
        global children
        children = getattr(self.launcher, "procs", None) or children
        try:
            if not dist.is_initialized():  # a later run of the same processes
                self._meet()
            super().setup_environment()
        except dist.DistError as error:
            kill_children()
            raise UserError(
                f"The processes of this run cannot be connected: {error}\nOn several machines, GLOO_SOCKET_IFNAME or "
                f"NCCL_SOCKET_IFNAME name the network to use, and NCCL_DEBUG=INFO says more. {self._hint}"
            ) from error
        except BaseException:
            kill_children()
            raise

    def _meet(self) -> None:
        cluster: Any = self.cluster_environment
        # Kept: the first one's store must last until the others have seen that all are here.
        self._lacking = meeting(self.global_rank, cluster.world_size(), cluster.main_address, cluster.main_port)
        began, said = time.monotonic(), False
        while found := self._lacking():
            waited = time.monotonic() - began
            if waited >= self._seconds:
                raise UserError(f"After {waited:.0f} seconds {found}. {self._hint}")
            if waited >= PATIENCE and not said:
                said = True
                left = f"Waiting for up to {self._seconds / 60:.0f} minutes; Ctrl-C ends it."
                sys.stderr.write(f"warning: after {waited:.0f} seconds {found}. {self._hint} {left}\n")
            time.sleep(POLL)  # in Python, where a signal ends it


def meeting(rank: int, world: int, address: str, port: int) -> Callable[[], str]:
    """Announce this process at the store of the first; returns a function that says what is lacking, "" for nothing.

    The first one names those that have not come. Under torchrun its agent has the store. Raises `UserError` where the
    port is taken.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: TCPStore | None = None

    def here(process: int | str) -> str:
        return f"ssrseg/{attempt}/{process}"

    if rank == 0 and not agent:
        try:
            hosted = TCPStore("localhost", port, None, True, wait_for_workers=False, multi_tenant=True)
        except dist.DistError as error:
            raise UserError(
                f"Port {port} cannot be opened (MASTER_PORT): another run has it, or another process of this run has "
                f"number 0 too. Set MASTER_PORT to another number in all processes. torch reports: {error}"
            ) from error

    def lacking() -> str:
        nonlocal store
        if store is None:
            try:
                socket.create_connection((address, port), timeout=1).close()
            except OSError as error:
                return f"process {rank} of {world} does not reach the first one at {address}:{port} ({error})"
            store = hosted if rank == 0 and not agent else TCPStore(address, port, wait_for_workers=False)
            store.set(here(rank), "")
        if rank:
            return "" if store.check([here("all")]) else f"process 0 still waits for others than number {rank}"
        missing = [str(other) for other in range(world) if not store.check([here(other)])]
        if not missing:
            store.set(here("all"), "")
            return ""
        return f"{len(missing)} of {world} processes have not come (number {', '.join(missing)})"

    return lacking
