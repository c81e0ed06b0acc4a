"""What differs on Windows and macOS, put under the code: files and folders, signals, the start of workers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from ssrseg.data import train_batches
from ssrseg.errors import UserError
from ssrseg.runs.atomic import sync, write_text
from ssrseg.training import train
from test_guards import PLAIN
from test_training import records, settings_for


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor of a folder, no `fsync` of what is open for reading, and fewer signals."""
    opened, synced, reading = os.open, os.fsync, set[int]()

    def open_(path: Any, flags: int, *words: Any, **over: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = opened(path, flags, *words, **over)
        (reading.add if flags & (os.O_WRONLY | os.O_RDWR) == 0 else reading.discard)(descriptor)
        return descriptor

    def fsync(descriptor: int) -> None:
        if descriptor in reading:
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced(descriptor)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("SIGCHLD", "SIGUSR1"):
        monkeypatch.delattr(signal, name)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(signal_handling, "IS_WINDOWS", True)


def test_a_run_is_trained_and_resumed(windows: None, tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, method=PLAIN, loader={"workers": 1}, selection=None, train={"steps": 2, "checkpoint_every": 1}
    )
    folder = train(settings, tmp_path / "run").folder
    (folder / "student-last.safetensors").unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    train(None, folder, resume=True)
    assert [line["step"] for line in records(folder, "train")] == [2]
    assert (folder / "student-last.safetensors").exists()


def test_files_are_waited_for_and_folders_left_alone(windows: None, tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "whole")
    assert (tmp_path / "file.txt").read_text() == "whole"
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "absent")


def test_a_dead_worker_is_seen_at_the_next_batch_whoever_loaded_before(tmp_path: Path) -> None:
    """The handler of torch of SIGCHLD is set by the first loader of the process, which may be anybody's."""
    before, was_set = signal.getsignal(signal.SIGCHLD), signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = False
    try:
        list(DataLoader(torch.arange(2), num_workers=1))  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGCHLD) != before
        batches = train_batches(settings_for(tmp_path, loader={"workers": 1}, train={"steps": 400}))
        next(batches)
        handler = signal.getsignal(signal.SIGCHLD)
        assert getattr(handler, "__module__", None) != signal_handling.__name__
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()  # no error in the midst of this
        with pytest.raises(UserError, match=r"A worker .* died \(signal 9\).* Set loader.workers lower \(now 1; 0 "):
            list(batches)
        settings = settings_for(tmp_path, loader={"workers": 0}, train={"steps": 400})
        assert len(next(train_batches(settings, start=1)).source)
    finally:
        signal.signal(signal.SIGCHLD, before)
        signal_handling._SIGCHLD_handler_set = was_set
