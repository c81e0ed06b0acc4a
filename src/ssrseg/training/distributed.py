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
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.utilities.exceptions import MisconfigurationException
from timm.layers.norm_act import convert_sync_batchnorm

from ssrseg.adapt.methods import Method
from ssrseg.config import TrainConfig
from ssrseg.errors import UserError
from ssrseg.training.launch import DDP, HINTS, check_devices, kill_children, launcher, placement, started_by_srun
from ssrseg.training.loop import Observer, StepResult

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, `kill`, and SLURM's warning ahead of a time limit (`#SBATCH --signal=USR1@120`)."""

ECHO = 1.0
"""Seconds in which a second signal counts as the first: launchers pass on what the terminal has sent already."""

GRACE = 3.0
"""Seconds that a run has to end in order after a signal before its first step."""


def build_fabric(config: TrainConfig) -> Fabric:
    """Build the Fabric of one process or many; raises `UserError` where launcher, settings and devices disagree."""
    devices, nodes = placement(config)
    check_devices(device_type(config), devices)
    plugins: list[Any] = [Autocast("bf16-mixed", device_type(config))] if config.precision == "bf16" else []
    if "SLURM_NTASKS" in os.environ and launcher(config) in ("hand", "settings"):
        plugins.append(LightningEnvironment())  # Fabric would take the variables of the job for those of a task
    strategy: DDP | Literal["auto"] = "auto"
    if devices * nodes > 1:
        # `StepTimeout` comes first, with a better message; processes may start minutes apart.
        minutes, started = 10 + 2 * config.timeout_minutes, launcher(config) != "slurm" or started_by_srun()
        strategy = DDP(hint=HINTS[launcher(config)], minutes=minutes, started=started)
    try:
        return Fabric(
            accelerator=config.accelerator, devices=devices, num_nodes=nodes, plugins=plugins, strategy=strategy
        )
    except (RuntimeError, ValueError, LookupError, MisconfigurationException) as error:
        raise UserError(
            f"The processes of this run cannot be set up: {error}\n"
            f"The settings: train.devices={config.devices}, train.nodes={config.nodes}, "
            f"train.accelerator={config.accelerator}. {HINTS[launcher(config)]}"
        ) from error


class Autocast(MixedPrecision):
    """Fabric's bfloat16 autocast without its cast of the inputs: images keep their 32 bits until the first layer."""

    def convert_input(self, data: Any) -> Any:
        """Return the view unchanged; Fabric's own method cannot change a frozen dataclass."""
        return data


def device_type(config: TrainConfig) -> str:
    """Resolve `train.accelerator` on this machine: `cuda`, `mps` or `cpu`."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return found if config.accelerator == "auto" else config.accelerator


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

    def __init__(self, fabric: Fabric, minutes: float, stop: Stop) -> None:
        self._fabric, self._minutes, self._stop, self._step = fabric, minutes, stop, 0
        self._progress, self._over = threading.Event(), False
        self._name = f"Process {fabric.global_rank} (pid {os.getpid()} on {socket.gethostname()})"

    def stepped(self, result: StepResult) -> None:
        self._step, self._stop.at_once = result.step, False
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
        kill_children()
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise UserError(
                f"{self._name} lost its connection to another process after step {self._step}: that process failed, "
                "was killed (by hand or for its memory), or its machine is lost. Its own message, or the launcher's, "
                f"may stand above; torch reports: {error}"
            ) from error

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
        kill_children()
        os._exit(1)  # an exception could not reach the main thread, which may wait in a collective operation


class Interrupted(SystemExit):
    """A signal has ended the run after a step, and its state was kept; or before its first, which `step` None says.

    The exit code is 128 + the signal's number.
    """

    def __init__(self, signum: int, step: int | None) -> None:
        super().__init__(128 + signum)
        self.signal, self.step = signal.Signals(signum), step


class Stop:
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        self.signum = 0
        """0: none."""
        self.at_once = False
        """Nothing can be lost: a signal ends the run where it stands, and not after a step."""

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

    The first one raises `Interrupted` while `Stop.at_once`, and ends the process soon where a library keeps the main
    thread. Only Python's main thread can do so; in another one nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    noted_at, process = 0.0, os.getpid()

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal noted_at
        if not stop.signum:
            stop.signum, noted_at = signum, time.monotonic()
            if stop.at_once and os.getpid() == process:  # not in a worker, which has inherited this
                kill_children()
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    os.write(2, f"{signal.Signals(signum).name}: stopped before the first step\n".encode())
                raise Interrupted(signum, None)
        elif time.monotonic() - noted_at > ECHO:
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)

    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        with _ended_soon(stop):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ended_soon(stop: Stop) -> Iterator[None]:
    """End the process where the main thread, waiting in a library, cannot see a signal while `stop.at_once`."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    before, left = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False), threading.Event()

    def watch() -> None:
        with woken:
            while (number := woken.recv(1)) and number[0]:
                if number[0] in SIGNALS and stop.at_once and not left.wait(GRACE):
                    kill_children()
                    os._exit(128 + number[0])

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        wakes.send(b"\0")  # forked workers may hold the socket open
        wakes.close()
