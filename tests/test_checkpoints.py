"""Checkpoint files: complete, checked, and never lost to the next one."""

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
from ssrseg.config import OptimConfig
from ssrseg.config.method import MethodConfig, TeacherConfig
from ssrseg.errors import UserError
from ssrseg.runs.atomic import write_atomically
from ssrseg.runs.folder import RunFolder
from ssrseg.training.checkpoint import (
    generator_states,
    load_checkpoint,
    previous,
    read_checkpoint,
    save_checkpoint,
    set_generators,
)
from ssrseg.training.optim import build_optimizer


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
def state(tmp_path: Path) -> Path:
    torch.save({"weights": torch.arange(5000), "plain": (1, 2.5, None, "x")}, tmp_path / "state")
    return tmp_path / "state"


def test_a_whole_file_is_read(state: Path) -> None:
    content = read_checkpoint(state)
    assert content is not None
    assert content["plain"] == (1, 2.5, None, "x")
    assert torch.equal(content["weights"], torch.arange(5000))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("bit", [1, 64])
def test_one_flipped_bit_is_found(share: float, bit: int, state: Path) -> None:
    content = bytearray(state.read_bytes())
    content[int(share * len(content))] ^= bit
    state.write_bytes(content)
    assert read_checkpoint(state) is None


def test_a_flipped_bit_in_the_index_is_found_or_harmless(state: Path) -> None:
    whole = state.read_bytes()
    for place in range(-150, 0):
        content = bytearray(whole)
        content[place] ^= 1
        state.write_bytes(content)
        read = read_checkpoint(state)
        assert read is None or torch.equal(read["weights"], torch.arange(5000)), place


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_a_cut_file_is_found(size: int, state: Path) -> None:
    state.write_bytes(state.read_bytes()[:size])
    assert read_checkpoint(state) is None


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"weights": Fabric}, tmp_path / "state")
    assert read_checkpoint(tmp_path / "state") is None


def test_a_checkpoint_that_fails_leaves_the_last_one_and_nothing_else(tmp_path: Path) -> None:
    fabric, method, optimizer = parts()
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, fabric, method, optimizer, step=1, observers={})
    save_checkpoint(path, fabric, method, optimizer, step=2, observers={})
    with files_no_longer_than(10_000), pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, fabric, method, optimizer, step=3, observers={})
    assert names(tmp_path) == {"last.ckpt", "last.previous.ckpt"}
    assert [torch.load(file, weights_only=True)["step"] for file in (path, previous(path))] == [2, 1]


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
    with pytest.raises(UserError, match="its content does not have its checksums"):
        load_checkpoint(path, fabric, method, optimizer)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    fabric, method, optimizer = parts()
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, fabric, method, optimizer, step=1, observers={})
    state = torch.load(path, weights_only=True)
    state["generators"] = {name: torch.cat([one, one]) for name, one in state["generators"].items()}
    torch.save(state, path)
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
        partial.write_text("outer", encoding="utf-8")
        write_atomically(path, lambda inner: (inner.write_text("inner"), seen.append(inner)))
        seen.append(partial)

    write_atomically(path, outer)
    assert path.read_text() == "outer"
    assert seen[0] != seen[1]
    (tmp_path / "below").mkdir()
    left = seen[0].with_name(seen[0].name)
    left.write_text("half")
    (tmp_path / "below" / left.name).write_text("half")
    RunFolder(tmp_path).tidy()
    assert names(tmp_path) == {"file", "below"}
    assert not names(tmp_path / "below")
