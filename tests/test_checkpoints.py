"""Checkpoint files: complete, sealed, and never lost to the next one."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Generator
from torch.optim import Optimizer

from factories import CLASSES, tiny_segmenter
from ssrseg.adapt import build_method
from ssrseg.adapt.methods import Method
from ssrseg.config import MethodConfig, OptimConfig, TeacherConfig
from ssrseg.errors import UserError
from ssrseg.runs.atomic import remove_partials, write_atomically
from ssrseg.training.checkpoint import load_checkpoint, previous, save_checkpoint
from ssrseg.training.optim import build_optimizer
from ssrseg.training.randomness import generator_states, set_generators
from ssrseg.training.sealed import intact, read_sealed, write_sealed


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def parts(seed: int = 0) -> tuple[Fabric, Method, Optimizer]:
    """A tiny method with a teacher."""
    method = build_method(MethodConfig(teacher=TeacherConfig()), tiny_segmenter(seed=seed), classes=CLASSES, seed=seed)
    return Fabric(accelerator="cpu", devices=1), method, build_optimizer(method.learner, OptimConfig())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "state", {"weights": torch.arange(5000), "plain": (1, 2.5, None, "x")})
    return tmp_path / "state"


def test_a_sealed_file_reads_back_also_by_torch_alone(sealed: Path) -> None:
    state = read_sealed(sealed)
    assert state is not None
    assert state["plain"] == (1, 2.5, None, "x")
    assert torch.equal(state["weights"], torch.arange(5000))
    assert torch.equal(torch.load(sealed, weights_only=True)["weights"], state["weights"])


@pytest.mark.parametrize("place", [0, 100, 20_000, -70, -1])
def test_one_flipped_bit_is_seen(sealed: Path, place: int) -> None:
    content = bytearray(sealed.read_bytes())
    content[place] ^= 1
    sealed.write_bytes(content)
    assert not intact(sealed)
    assert read_sealed(sealed) is None


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_a_cut_file_is_seen(sealed: Path, size: int) -> None:
    sealed.write_bytes(sealed.read_bytes()[:size])
    assert not intact(sealed)


def test_a_full_disk_is_an_oserror_and_not_torchs_own(tmp_path: Path) -> None:
    with files_no_longer_than(10_000), pytest.raises(OSError, match="File too large"):
        write_sealed(tmp_path / "state", {"weights": torch.arange(5000)})


def test_a_checkpoint_that_fails_leaves_the_last_one_and_nothing_else(tmp_path: Path) -> None:
    fabric, method, optimizer = parts()
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, fabric, method, optimizer, step=1, observers={})
    save_checkpoint(path, fabric, method, optimizer, step=2, observers={})
    with files_no_longer_than(10_000), pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, fabric, method, optimizer, step=3, observers={})
    assert names(tmp_path) == {"last.ckpt", "last.previous.ckpt"}
    assert [torch.load(file, weights_only=True)["step"] for file in (path, previous(path))] == [2, 1]


def test_a_file_that_reads_back_wrong_never_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric, method, optimizer = parts()
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, fabric, method, optimizer, step=1, observers={})

    def rot(partial: Path) -> None:
        content = bytearray(partial.read_bytes())
        content[500] ^= 4
        partial.write_bytes(content)

    monkeypatch.setattr("ssrseg.training.sealed.sync", rot)
    with pytest.raises(OSError, match="reads back as something else"):
        save_checkpoint(path, fabric, method, optimizer, step=2, observers={})
    assert torch.load(path, weights_only=True)["step"] == 1
    assert names(tmp_path) == {"last.ckpt"}


def test_without_links_the_last_one_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric, method, optimizer = parts()
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, fabric, method, optimizer, step=1, observers={})

    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    save_checkpoint(path, fabric, method, optimizer, step=2, observers={})
    assert [torch.load(file, weights_only=True)["step"] for file in (path, previous(path))] == [2, 1]


def test_damage_falls_back_and_says_so(tmp_path: Path) -> None:
    fabric, method, optimizer = parts()
    path = tmp_path / "last.ckpt"
    assert load_checkpoint(path, fabric, method, optimizer).step == 0
    for step in (1, 2):
        save_checkpoint(path, fabric, method, optimizer, step=step, observers={"one": {"best": step}})
    whole = load_checkpoint(path, fabric, method, optimizer)
    assert (whole.step, whole.observers, whole.warnings) == (2, {"one": {"best": 2}}, ())
    path.write_bytes(path.read_bytes()[:-200])
    point = load_checkpoint(path, fabric, method, optimizer)
    assert (point.step, point.observers) == (1, {"one": {"best": 1}})
    assert "damaged: resumed from last.previous.ckpt, step 1" in point.warnings[0]
    previous(path).write_bytes(b"")
    with pytest.raises(UserError, match="the checksum is not that of the content"):
        load_checkpoint(path, fabric, method, optimizer)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    fabric, method, optimizer = parts()
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, fabric, method, optimizer, step=1, observers={})
    state = read_sealed(path)
    assert state is not None
    write_sealed(
        path, {**state, "generators": {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in state["generators"].items()}}
    )
    with pytest.raises(UserError, match="written by 2 processes, this run has 1"):
        load_checkpoint(path, fabric, method, optimizer)


def test_weights_of_another_method_are_refused(tmp_path: Path) -> None:
    fabric, method, optimizer = parts()
    save_checkpoint(tmp_path / "last.ckpt", fabric, method, optimizer, step=1, observers={})
    other = build_method(MethodConfig(), tiny_segmenter(5), classes=("a", "b", "c", "d", "e"))
    with pytest.raises(UserError, match="belongs to another method"):
        load_checkpoint(tmp_path / "last.ckpt", fabric, other, build_optimizer(other.learner, OptimConfig()))


def test_every_generator_goes_on_where_it_was() -> None:
    views, cpu = Generator().manual_seed(1), torch.device("cpu")
    random.gauss(0, 1)  # leaves one in store
    np.random.standard_normal()

    def draws() -> list[float]:
        numbers = [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.random()]
        return [*numbers, float(torch.rand(())), float(torch.rand((), generator=views))]

    state = generator_states(views, cpu)
    first = draws()
    assert draws() != first
    set_generators(state, views, cpu)
    assert draws() == first


def test_two_writers_of_a_file_do_not_meet_and_leftovers_go(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []

    def outer(partial: Path) -> None:
        partial.write_text("outer")
        write_atomically(path, lambda inner: (inner.write_text("inner"), seen.append(inner)))
        seen.append(partial)

    write_atomically(path, outer)
    assert path.read_text() == "outer"
    assert seen[0] != seen[1]
    (tmp_path / "below").mkdir()
    left = seen[0].with_name(seen[0].name)
    left.write_text("half")
    (tmp_path / "below" / left.name).write_text("half")
    remove_partials(tmp_path)
    assert names(tmp_path) == {"file", "below"}
    assert not names(tmp_path / "below")
