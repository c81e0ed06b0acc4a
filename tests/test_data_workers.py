"""Draws over processes and workers: none twice, none lost, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from factories import write_pairs
from ssrseg.data import loader as module
from ssrseg.data import train_batches
from ssrseg.errors import UserError
from test_data_loaders import same, settings


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_no_image_is_seen_twice_in_an_epoch_over_all_processes(tmp_path, world, workers):
    for domain in ("game", "camera"):
        write_pairs(tmp_path / domain, 12, height=16, width=16)
    run = settings(tmp_path, steps=12 // world, crop=[16, 16], batch=2, workers=workers)  # two epochs
    ranks = [list(train_batches(run, rank=rank, world=world)) for rank in range(world)]
    for domain, first in (("game", 0), ("camera", 2)):
        seen = [name for step in zip(*ranks, strict=True) for raw in step for name in raw.names[first : first + 2]]
        assert len(seen) == 24
        assert all(domain in name for name in seen)
        assert len(set(seen[:12])) == len(set(seen[12:])) == 12
        assert seen[:12] != seen[12:]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_share_nothing_draw_the_same(tmp_path, method):
    run = settings(tmp_path, rare_class={}, steps=3, cache=tmp_path / "cache")
    whole = list(train_batches(run))
    spawned = settings(tmp_path, rare_class={}, steps=3, workers=1, cache=tmp_path / "cache")
    others = list(train_batches(spawned, start_method=method))
    assert [same(a, b) for a, b in zip(whole, others, strict=True)] == [True] * 3


def killed_after(run, steps):
    """All batches, a worker being killed after some of them."""
    others = set(multiprocessing.active_children())
    stream, seen = train_batches(run), []
    for raw in stream:
        seen.append(raw)
        if len(seen) in steps:
            (victim, *_) = sorted(set(multiprocessing.active_children()) - others, key=lambda process: process.pid)
            os.kill(victim.pid, signal.SIGKILL)
            time.sleep(0.5)  # a step: torch hears of the death in its midst, and would raise there
    return seen


def test_a_killed_worker_ends_nothing(tmp_path):
    run = settings(tmp_path, steps=24, workers=2)
    seen = killed_after(run, {2})
    whole = list(train_batches(settings(tmp_path, steps=24)))
    assert [same(a, b) for a, b in zip(whole, seen, strict=True)] == [True] * 24
    notes = [note for raw in seen for note in raw.notes]
    assert notes == ["a data loader worker died (signal 9): all were started again at the batch that was due"]
    assert not any(raw.notes for raw in whole)


def test_workers_that_keep_dying_end_the_run_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESTARTS", 1)
    with pytest.raises(UserError, match=r"died 2 times, the last before batch \d+ \(signal 9\).*loader.workers lower"):
        killed_after(settings(tmp_path, steps=60, workers=1), {2, 10})


def test_a_users_mistake_comes_from_a_worker_as_it_is(tmp_path):
    run = settings(tmp_path, workers=1)
    for path in (tmp_path / "game" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"\A\S+\d\d\.png cannot be read as an image: "):
        list(train_batches(run))
