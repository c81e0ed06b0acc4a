"""Training batches: what a sample shows, and that nothing but seed and number decides it, whoever makes it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from factories import CLASSES, random_image, random_labels, write_pairs
from ssrseg.config import resolve
from ssrseg.data import loader, read_image, train_batches
from ssrseg.errors import UserError


def settings(root, *, steps=6, seed=0, method=None, target=True, **loader):
    for domain in ("game", "camera"):
        if not (root / domain).exists():
            write_pairs(root / domain)
    tree = {
        "classes": CLASSES,
        "source": {"root": root / "game"},
        "loader": {"crop": [32, 48], "workers": 0, **loader},
        "method": {"teacher": {}, "mixed": {}} if method is None else method,
        "train": {"steps": steps, "seed": seed},
    }
    return resolve({**tree, "target": {"root": root / "camera"}} if target else tree)


def same(one, other):
    tensors = ("source", "labels", "target", "valid")
    return one.names == other.names and all(torch.equal(getattr(one, t), getattr(other, t)) for t in tensors)


@pytest.mark.parametrize("rare_class", [None, {}])
def test_a_batch_depends_on_seed_and_step_alone(tmp_path, rare_class):
    whole = list(train_batches(settings(tmp_path, rare_class=rare_class)))
    state = torch.get_rng_state()
    later = list(train_batches(settings(tmp_path, rare_class=rare_class, workers=2), start=3))
    assert [same(a, b) for a, b in zip(whole[3:], later, strict=True)] == [True] * 3
    assert torch.equal(torch.get_rng_state(), state)
    other = list(train_batches(settings(tmp_path, rare_class=rare_class, seed=1)))
    assert not any(same(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize("target", [True, False])
def test_a_method_without_teacher_reads_no_target(tmp_path, target):
    (raw, *_) = train_batches(settings(tmp_path, method={}, target=target))
    assert raw.target.shape == (0, 3, 32, 48)
    assert raw.valid.shape == (0, 32, 48)
    assert len(raw.names) == 2


def test_source_and_target_meet_in_changing_pairs(tmp_path):
    batches = train_batches(settings(tmp_path, steps=40, batch=1))
    meetings = {tuple(name[-6:] for name in raw.names) for raw in batches}
    assert len(meetings) > 8  # of 16


def test_image_and_label_are_cut_and_mirrored_together(tmp_path):
    write_pairs(tmp_path / "game")
    for i in range(4):
        labels = random_labels(seed=i)
        grey = np.repeat(labels[..., None], 3, axis=2)
        Image.fromarray(grey).save(tmp_path / "game" / "images" / f"{i:02}.png")
    for raw in train_batches(settings(tmp_path, steps=8)):
        assert torch.equal(raw.source[:, 0], raw.labels)


def test_a_crop_shows_enough_of_the_class_it_was_drawn_for(tmp_path):
    labels = np.zeros((200, 200), np.uint8)
    labels[:, 100:] = 1
    labels[150:, :40] = 3
    write_pairs(tmp_path / "game", 1)
    Image.fromarray(random_image(200, 200)).save(tmp_path / "game" / "images" / "00.png")
    Image.fromarray(labels).save(tmp_path / "game" / "labels" / "00.png")

    def share(rare_class):
        loader = {"crop": [64, 64], "rare_class": rare_class, "max_class_share": 1}
        shown = [(raw.labels == 3).sum((1, 2)) > 250 for raw in train_batches(settings(tmp_path, steps=30, **loader))]
        return float(torch.cat(shown).float().mean())

    assert share({"temperature": 0.01, "min_pixels": 500}) > share(None) + 0.2


def test_crops_of_one_class_are_drawn_again(tmp_path):
    labels = np.zeros((64, 200), np.uint8)
    labels[:, 160:] = 1
    write_pairs(tmp_path / "game", 1)
    Image.fromarray(random_image(64, 200)).save(tmp_path / "game" / "images" / "00.png")
    Image.fromarray(labels).save(tmp_path / "game" / "labels" / "00.png")

    def varied(share):
        batches = train_batches(settings(tmp_path, steps=20, crop=[64, 64], max_class_share=share))
        return sum(int((one == 0).float().mean() < 0.75) for raw in batches for one in raw.labels)

    assert varied(0.75) > varied(1.0)


def test_flips_happen_as_often_as_asked(tmp_path):
    whole = {"crop": [64, 64], "max_class_share": 1, "batch": 1}
    for chance, expected in ((0.0, True), (1.0, False)):
        (raw, *_) = train_batches(settings(tmp_path, flip=chance, **whole))
        assert torch.equal(raw.source[0], read_image(tmp_path / raw.names[0])) is expected
        assert torch.equal(raw.source[0].flip(-1), read_image(tmp_path / raw.names[0])) is not expected


def test_a_label_of_another_size_is_named(tmp_path):
    run = settings(tmp_path)
    for file in (tmp_path / "game" / "labels").iterdir():
        Image.fromarray(random_labels(64, 32)).save(file)
    with pytest.raises(UserError, match=r"is 64x64, its label .* is 32x64"):
        next(iter(train_batches(run)))


def test_target_crops_differ_from_draw_to_draw(tmp_path):
    write_pairs(tmp_path / "camera", 1)
    target = torch.cat([raw.target for raw in train_batches(settings(tmp_path, flip=0))])
    assert len({bytes(image.flatten().tolist()) for image in target}) > 8  # of 12


def test_batches_are_bytes_of_the_crop_with_margins(tmp_path):
    run = settings(tmp_path)
    target = run.target.model_copy(update={"margins": (4, 6)})
    (raw, *_) = train_batches(run.model_copy(update={"target": target}))
    assert raw.source.shape == raw.target.shape == (2, 3, 32, 48)
    assert raw.labels.shape == raw.valid.shape == (2, 32, 48)
    assert raw.source.dtype == raw.labels.dtype == torch.uint8
    rows = raw.valid.all(dim=2)
    assert not rows[:, :4].any()
    assert rows[:, 4:26].all()
    assert not rows[:, 26:].any()


def test_a_small_image_is_padded_with_ignored_pixels(tmp_path):
    (raw, *_) = train_batches(settings(tmp_path, crop=[80, 72], max_class_share=1))
    assert (raw.labels[:, 64:] == 255).all()
    assert not raw.valid[:, 64:].any()


# --- processes and workers


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
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        others = list(train_batches(spawned))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert [same(a, b) for a, b in zip(whole, others, strict=True)] == [True] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_ends_the_run_with_a_reason(tmp_path, workers):
    others = set(multiprocessing.active_children())
    batches = train_batches(settings(tmp_path, steps=60, workers=workers))
    next(batches)
    (victim, *_) = set(multiprocessing.active_children()) - others
    time.sleep(0.5)  # it waits for work then: killed while it holds a lock of torch's, torch waits for that for ever
    os.kill(victim.pid, signal.SIGKILL)
    time.sleep(0.5)  # a step, which must not be interrupted where it stands
    with pytest.raises(UserError, match=r"died \(signal 9\).*loader.workers lower.*--resume"):
        list(batches)
    assert not set(multiprocessing.active_children()) - others


def test_a_worker_whose_parent_was_killed_before_it_began_ends(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=4711))
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="1"):
        loader._prepare_worker(0)
    monkeypatch.setattr(os, "getppid", lambda: 4711)
    loader._prepare_worker(0)


def test_a_users_mistake_comes_from_a_worker_as_it_is(tmp_path):
    run = settings(tmp_path, workers=1)
    for path in (tmp_path / "game" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"\A\S+\d\d\.png cannot be read as an image: "):
        list(train_batches(run))
