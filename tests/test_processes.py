"""Runs of several processes: the same method as one process, one voice, and an end when one of them ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from PIL import Image
from torch import Generator, Tensor

from factories import CLASSES, tiny_segmenter
from several import UNDROPPED, adapting, record
from ssrseg.adapt import BlockMask, ClassMix, StrongAugment, build_method, distributed
from ssrseg.adapt.augment import GlobalIntensity, PhotometricDistortion
from ssrseg.config import TrainConfig
from ssrseg.config.method import MethodConfig
from ssrseg.errors import UserError
from ssrseg.training.distributed import build_fabric, placement, sync_batchnorm
from test_training import records, settings_for

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


def several(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the tests' path, one thread, and no launcher's variables."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    path = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    environment = {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same_gradients(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """To 1e-6 of each parameter's largest, and the losses too, step by step."""
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine["gradients"].keys() == theirs["gradients"].keys()
        for name, gradient in mine["gradients"].items():
            assert (gradient - theirs["gradients"][name]).abs().max() <= 1e-6 * gradient.abs().max(), name
        for name, loss in mine["losses"].items():
            torch.testing.assert_close(loss, theirs["losses"][name], rtol=1e-6, atol=1e-9)


def test_two_processes_with_batch_one_are_one_process_with_batch_two_and_end_when_one_is_killed(
    tmp_path: Path, float64: None
) -> None:
    settings = adapting(tmp_path, 1)
    for number, path in enumerate(sorted((tmp_path / "game" / "labels").iterdir())):
        ids = np.asarray(Image.open(path))  # two classes an image, so that the images of a step differ in theirs
        Image.fromarray(np.where(ids == 255, ids, ids % 2 + 2 * (number % 2)).astype(np.uint8)).save(path)
    one = record(settings, tmp_path)
    done = several(HERE / "several.py", tmp_path, "adapt", "kill")
    assert_ended(done)  # by the second run, which spares a start
    two = torch.load(tmp_path / "record.pt")
    assert len(one["steps"]) == 3
    assert any("regularizer" in name for name in one["steps"][0]["gradients"])
    assert {float(trust) for trust in one["trust"]}.isdisjoint({0.0, 1.0})
    torch.testing.assert_close(one["trust"], two["trust"], rtol=1e-12, atol=0)
    assert_same_gradients(one["steps"], two["steps"])
    assert len(one["confusions"]) == 2
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one["confusions"], two["confusions"], strict=True))


def test_accumulated_batches_are_a_larger_batch(tmp_path: Path, float64: None) -> None:
    method = {"masked": None, "mixed": None, "feature_distance": None, "regularizer": None}
    train = {"steps": 3, "evaluate_every": 3}
    large = settings_for(tmp_path, loader={"batch": 2}, model=UNDROPPED, method=method, train=train)
    parts = settings_for(
        tmp_path, loader={"batch": 1}, model=UNDROPPED, method=method, train={**train, "accumulate": 2}
    )
    assert_same_gradients(record(large, tmp_path)["steps"], record(parts, tmp_path)["steps"])


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=Generator().manual_seed(1))


def labels(count: int) -> Tensor:
    return torch.randint(0, 4, (count, 32, 32), generator=Generator().manual_seed(2))


DRAWS: dict[str, tuple[Callable[[Generator], Callable[[Any], Tensor]], Tensor]] = {
    "jitter per image": (lambda g: StrongAugment(g, jitter_skipped=0, blur_skipped=0), images(4)),
    "jitter per batch": (lambda g: StrongAugment(g, jitter_skipped=0, blur_skipped=0, per_image=False), images(4)),
    "distortion": (lambda g: PhotometricDistortion(g), images(4)),
    "intensity": (lambda g: GlobalIntensity(g, probability=1), images(4)),
    "classes": (lambda g: ClassMix(g, of_batch=False), labels(4)),
    "blocks": (lambda g: lambda batch: BlockMask(g, block=8)(batch.shape), images(4)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_process_takes_its_rows_of_the_draws_for_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, whole = DRAWS[name]
    expected = build(Generator().manual_seed(5))(whole)
    assert not torch.equal(expected[:2], expected[2:])
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        rows = slice(2 * rank, 2 * rank + 2)
        torch.testing.assert_close(build(Generator().manual_seed(5))(whole[rows]), expected[rows])


def test_torchrun_starts_a_run_that_speaks_and_writes_once(tmp_path: Path) -> None:
    settings_for(tmp_path)  # writes the pictures
    out = tmp_path / "run"
    words = [
        f"classes=[{', '.join(CLASSES)}]",
        *("loader.crop=[64, 64]", "loader.workers=0", "loader.batch=1", "loader.rare_class={}"),
        *("model.backbone=timm:test_resnet", "model.head_channels=8", "model.pretrained=none"),
        *(
            "method.teacher={}",
            "method.mixed={}",
            "method.regularizer={foundation: {encoder: demo, input_size: native}}",
        ),
        *("train.steps=2", "train.log_every=1", "train.evaluate_every=2", "train.accelerator=cpu"),
    ]
    roots = ["--source", tmp_path / "game", "--target", tmp_path / "camera", "--val", tmp_path / "val"]
    done = several(*TORCHRUN, "-m", "ssrseg", "train", *words, *roots, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert done.stdout.splitlines().count(str(out)) == 1
    assert done.stdout.count("step 2/2") == 1
    assert [line["step"] for line in records(out, "train")] == [1, 2]
    assert [line["step"] for line in records(out, "eval")] == [2]
    assert json.loads((out / "scores.json").read_text())["last"]["step"] == 2
    assert (out / "student-last.safetensors").is_file()


def assert_ended(done: subprocess.CompletedProcess[str]) -> None:
    """One of the processes was killed."""
    assert done.returncode != 0
    # Fabric's launcher, which looks every five seconds, may come first, and torchrun.
    said = ("lost its connection to another process after step ", "terminated with code -9", "Signal 9 (SIGKILL)")
    assert any(text in done.stderr for text in said), done.stderr


def test_a_killed_process_of_torchrun_ends_the_run(tmp_path: Path) -> None:
    settings_for(tmp_path)
    assert_ended(several(*TORCHRUN, HERE / "several.py", tmp_path, "kill"))


def test_a_process_that_hangs_ends_the_run_and_says_where(tmp_path: Path) -> None:
    settings_for(tmp_path)
    done = several(HERE / "several.py", tmp_path, "hang")
    assert done.returncode == 1
    for process in (0, 1):
        assert f"error: Process {process} (pid " in done.stderr
    assert "has completed no step for 0.2 minutes (train.timeout_minutes) after step 2" in done.stderr
    assert 'several.py", line' in done.stderr


def test_synchronised_batchnorm_needs_cuda() -> None:
    method = build_method(MethodConfig(), tiny_segmenter(), classes=CLASSES)
    two = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    with pytest.raises(UserError, match="sync_batchnorm needs CUDA devices, but this run is on cpu"):
        sync_batchnorm(method, cast(Fabric, two))


def test_slurm_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"NTASKS": 8, "NTASKS_PER_NODE": 4, "NNODES": 2, "PROCID": 5, "LOCALID": 1, "NODEID": 1, "JOB_NAME": "night"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    fabric = build_fabric(TrainConfig(accelerator="cpu"))
    assert isinstance(fabric.strategy, DDPStrategy)
    assert isinstance(fabric.strategy.cluster_environment, SLURMEnvironment)
    assert (fabric.strategy.num_processes, fabric.strategy.num_nodes) == (4, 2)
    assert placement(TrainConfig(devices=4, nodes=2)) == (4, 2)
    with pytest.raises(UserError, match="the launcher started 4 processes on each of 2 machines"):
        placement(TrainConfig(devices=2))


def test_the_settings_say_it_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement(TrainConfig()) == (1, 1)
    for name, value in {"MASTER_ADDR": "first", "MASTER_PORT": "29500", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert placement(TrainConfig(devices=8, nodes=4)) == (8, 4)
