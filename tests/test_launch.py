"""Who starts the processes of a run, and what it says when they do not come, or their devices are not here."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from factories import CLASSES, write_pairs
from ssrseg.config import TrainConfig
from ssrseg.errors import UserError
from ssrseg.training import Interrupted, distributed, launch
from ssrseg.training.distributed import build_fabric, placement, signals_noted
from ssrseg.training.launch import check_devices
from test_cli import ssrseg as command
from test_training import run

JOB = {"NTASKS": 4, "NTASKS_PER_NODE": 4, "NNODES": 1, "JOB_ID": 1, "JOB_NAME": "night"}
TASK = {"PROCID": 0, "LOCALID": 0, "NODEID": 0}
ALONE = TrainConfig(accelerator="cpu")


@pytest.fixture
def port() -> str:
    return free_port()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, port: str) -> pytest.MonkeyPatch:
    """The variables of a batch script's shell: no step."""
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    for name, value in (JOB | TASK).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    return monkeypatch


def test_a_job_without_srun_says_who_has_not_come(slurm: pytest.MonkeyPatch) -> None:
    said = r"3 of 4 processes have not come \(number 1, 2, 3\)\. SLURM announced them by SLURM_NTASKS, and srun starts"
    with pytest.raises(UserError, match=said):
        build_fabric(ALONE).launch()
    slurm.delenv("SLURM_NTASKS")  # as the message says
    assert build_fabric(ALONE).world_size == 1


def test_a_shell_of_salloc_is_no_process_of_the_job(slurm: pytest.MonkeyPatch) -> None:
    for name in TASK:
        slurm.delenv(f"SLURM_{name}")
    with pytest.raises(UserError, match="3 of 4 processes have not come"):
        build_fabric(ALONE)
    slurm.setenv("SLURM_NTASKS", "1")
    assert build_fabric(ALONE).world_size == 1


def test_in_a_job_without_srun_the_settings_start_processes(slurm: pytest.MonkeyPatch) -> None:
    fabric = build_fabric(TrainConfig(accelerator="cpu", devices=2))
    assert isinstance(fabric.strategy.cluster_environment, LightningEnvironment)  # type: ignore[attr-defined]
    assert fabric.world_size == 2


def test_a_task_of_srun_says_who_has_not_come_and_goes_on_waiting(
    slurm: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.setenv("SLURM_STEP_ID", "0")
    fabric = build_fabric(ALONE)
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with signals_noted() as stop:
        stop.at_once = True
        with pytest.raises(Interrupted) as left:
            fabric.launch()
    assert (left.value.code, left.value.step) == (143, None)
    said = capfd.readouterr().err
    assert "seconds 3 of 4 processes have not come (number 1, 2, 3)." in said
    assert "Waiting for up to 70 minutes; Ctrl-C ends it." in said
    assert "SIGTERM: stopped before the first step" in said


def test_a_first_process_that_is_not_there_is_named(slurm: pytest.MonkeyPatch, port: str) -> None:
    slurm.setenv("SLURM_PROCID", "2")
    slurm.setattr(launch.DDP, "setup_environment", launch.DDP._meet)
    fabric = build_fabric(ALONE)
    fabric.strategy._seconds = 0.5  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=rf"process 2 of 4 does not reach the first one at 127.0.0.1:{port}"):
        fabric.launch()


def test_a_port_that_is_taken_is_said(slurm: pytest.MonkeyPatch, port: str) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", int(port)))
        other.listen()
        with pytest.raises(UserError, match=rf"Port {port} cannot be opened \(MASTER_PORT\).* Set MASTER_PORT to an"):
            build_fabric(ALONE).launch()
        slurm.setenv("MASTER_PORT", free_port())
        with pytest.raises(UserError, match="processes have not come"):  # and not the port
            build_fabric(ALONE).launch()


def test_variables_that_torchrun_left_behind_are_named(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    left = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "x"}
    left |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in left.items():
        monkeypatch.setenv(name, str(value))
    fabric = build_fabric(ALONE)
    fabric.strategy._seconds = 0.5  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"unset TORCHELASTIC_RUN_ID RANK WORLD_SIZE LOCAL_RANK") as raised:
        fabric.launch()
    for name in str(raised.value).rpartition("unset ")[2].rstrip(".").split():
        monkeypatch.delenv(name)
    assert build_fabric(ALONE).world_size == 1


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "WORLD_SIZE"])
def test_processes_of_other_launchers_do_not_run_side_by_side(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(variable, "4")
    with pytest.raises(UserError, match=rf"{variable}=4 .* For one process unset {variable}\."):
        placement(ALONE)
    by_hand = TrainConfig(nodes=4)
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT, NODE_RANK is not set"):
        placement(by_hand)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1"), ("NODE_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert placement(by_hand) == (1, 4)
    monkeypatch.delenv(variable)
    assert placement(ALONE) == (1, 1)


def test_tasks_that_are_not_alike_on_all_machines_are_refused(slurm: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": 5, "NNODES": 2, "PROCID": 3}.items():
        slurm.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(UserError, match="--ntasks-per-node=3 instead of --ntasks"):
        placement(ALONE)
    slurm.setenv("SLURM_NTASKS", "6")
    assert placement(ALONE) == (3, 2)
    with pytest.raises(UserError, match="Leave both settings out, or make them agree"):
        placement(TrainConfig(devices=4, nodes=2))
    assert placement(TrainConfig(devices=3, nodes=2)) == (3, 2)


def test_the_number_of_tasks_alone_is_a_message_of_fabrics(slurm: pytest.MonkeyPatch) -> None:
    slurm.delenv("SLURM_NTASKS_PER_NODE")
    slurm.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(UserError, match="Use `--ntasks-per-node=4` instead"):
        build_fabric(ALONE)
    slurm.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert build_fabric(ALONE).world_size == 4


def first_of_two(folder: Path, alive: Connection, port: str) -> None:
    """Wait in a library, before the first step, for a process that was started by this one."""
    os.environ |= {"LOCAL_RANK": "0", "MASTER_PORT": port}  # as Fabric's launcher sets them
    distributed.GRACE = 0.2
    context = multiprocessing.get_context("fork")
    other = context.Process(target=second_of_two, args=(folder, alive))
    other.start()
    alive.close()
    launch.children.append(other)  # type: ignore[arg-type]
    with signals_noted() as stop:
        stop.at_once = True
        fabric = build_fabric(TrainConfig(accelerator="cpu", devices=2))
        fabric.launch()
        (folder / "first").touch()
        fabric.barrier()


def second_of_two(folder: Path, alive: Connection) -> None:
    os.environ["LOCAL_RANK"] = "1"
    build_fabric(TrainConfig(accelerator="cpu", devices=2)).launch()
    (folder / "second").touch()
    signal.pause()


def test_a_signal_ends_all_processes_before_the_first_step(tmp_path: Path, port: str) -> None:
    context = multiprocessing.get_context("spawn")  # a fork may collect this process's stores, whose threads it lacks
    ended, alive = context.Pipe(duplex=False)
    first = context.Process(target=first_of_two, args=(tmp_path, alive, port))
    first.start()
    alive.close()
    try:
        while not all((tmp_path / name).exists() for name in ("first", "second")):
            assert first.is_alive()
            time.sleep(0.05)
        time.sleep(0.2)  # and the first is in the library
        os.kill(first.pid or 0, signal.SIGTERM)
        first.join(30)
        assert first.exitcode == 143
        assert ended.poll(30)
        with pytest.raises(EOFError):  # the second has ended too
            ended.recv()
    finally:
        ended.close()
        first.kill()


def test_a_signal_before_the_first_step_ends_one_process_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*words: Any, **over: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("goes on")

    monkeypatch.setattr(sys.modules["ssrseg.training.train"], "build_context", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted) as left:
            run(tmp_path, "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.code == 130
    monkeypatch.undo()
    assert run(tmp_path, "run").is_dir()  # nothing is in the way


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_an_accelerator_that_is_not_here_is_a_message(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    write_pairs(tmp_path / "game")
    words = ["train", "--source", "game", f"classes=[{', '.join(CLASSES)}]", f"train.accelerator={kind}"]
    words += ["model.pretrained=none", "model.backbone=timm:test_resnet", "loader.crop=[64, 64]"]
    said = command(*words, cwd=tmp_path, code=2)
    assert f"error: train.accelerator={kind}, but torch {torch.__version__} has no {kind.upper()} device" in said
    assert "Leave it out (auto) for what is here, or set it to cpu." in said
    assert [build_fabric(one).device.type for one in (TrainConfig(), TrainConfig(accelerator="cpu"))] == ["cpu", "cpu"]
    assert not (tmp_path / "runs").exists()


def test_more_processes_than_devices_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"4 processes on this machine and sees 1 CUDA device .* Set train.devices=1"):
        build_fabric(TrainConfig(accelerator="cuda", devices=4))
    check_devices("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match="sees 1 MPS device"):
        build_fabric(TrainConfig(devices=2))  # of `auto`: what a Mac has
    assert build_fabric(TrainConfig(devices=2, accelerator="cpu")).world_size == 2
