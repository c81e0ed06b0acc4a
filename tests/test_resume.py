"""Interrupted runs: by signals, full disks, or before they had saved anything."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from factories import tiny_frozen
from ssrseg.config import dump, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.runs.folder import Folder, GroupFolder, RecipeFolder, RunFolder
from ssrseg.training import Extensions, Interrupted, train
from ssrseg.training.distributed import signals_noted
from ssrseg.training.env import changes, data_fingerprint, environment
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.observers.journal import Journal, Screen
from test_checkpoints import files_no_longer_than
from test_training import records, settings_for, weights

ODD = {"train": {"steps": 5, "log_every": 2, "checkpoint_every": 3, "evaluate_every": 2, "pictures_every": 2}}
"""The checkpoint falls between two records of losses."""


class At(Observer):
    """Does something after a step, and remembers which steps it has seen."""

    def __init__(self, step: int, act: Any) -> None:
        self._step, self._act = step, act
        self.seen: list[int] = []

    def stepped(self, result: StepResult) -> None:
        self.seen.append(result.step)
        if result.step == self._step:
            self._act()

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Heed SIGINT: in the background of a shell the tests have inherited that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def die() -> None:
    raise KeyboardInterrupt


def screen() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run; its data lie beside it."""
    root = tmp_path_factory.mktemp("resume")
    return train(settings_for(root, **ODD), root / "whole", extensions=Extensions(foundation=tiny_frozen())).folder


def cut(whole: Path, out: Path, *observers: Observer, console: Console | None = None) -> Path:
    """The same run anew, in another folder."""
    train(
        settings_for(whole.parent, **ODD),
        out,
        console=console,
        extensions=Extensions(foundation=tiny_frozen(), observers=observers),
    )
    return out


def resume(out: Path, *observers: Observer, console: Console | None = None) -> Path:
    return train(
        None, out, resume=True, console=console, extensions=Extensions(foundation=tiny_frozen(), observers=observers)
    ).folder


def pictures_of(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder and below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(whole: Path, other: Path) -> None:
    """Bit for bit, but for the speed."""
    mine, theirs = weights(whole), weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    for name in ("scores.json", "student-last.safetensors", "student-best.safetensors"):
        assert (whole / name).read_bytes() == (other / name).read_bytes(), name
    for kind in ("note", "warning", "train", "eval"):
        assert records(whole, kind) == records(other, kind)
    pictures = [pictures_of(folder / "pictures") for folder in (whole, other)]
    assert pictures[0] == pictures[1]
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, other)]
    assert all(torch.equal(states[0]["teacher"][name], states[1]["teacher"][name]) for name in states[0]["teacher"])


def test_a_checkpoint_between_two_records_and_another_number_of_workers(whole: Path, tmp_path: Path) -> None:
    watcher = At(4, die)
    with pytest.raises(KeyboardInterrupt):
        cut(whole, tmp_path / "run", watcher)
    assert len(records(tmp_path / "run", "train")) == 2
    config = tmp_path / "run" / "config.yaml"
    tree = read_yaml(config)
    tree["loader"]["workers"] = 2
    config.write_text(dump(resolve(tree)))
    again = At(0, die)
    assert_same(whole, resume(tmp_path / "run", again))
    assert again.seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_the_step_and_keeps_it(number: int, whole: Path, tmp_path: Path) -> None:
    console, before = screen(), signal.getsignal(number)
    with pytest.raises(Interrupted) as left:
        cut(whole, tmp_path / "run", At(2, lambda: os.kill(os.getpid(), number)), console=console)
    assert left.value.code == 128 + number
    assert left.value.step == 2
    name = signal.Signals(number).name
    assert f"{name}: stopped after step 2. Continue with: ssrseg train --resume --out {tmp_path}" in said(console)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["step"] == 2
    assert signal.getsignal(number) is before
    if number == signal.SIGTERM:
        assert_same(whole, resume(tmp_path / "run", At(0, die)))


def test_the_second_signal_does_what_it_always_did(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("ssrseg.training.distributed.time.monotonic", lambda: clock[0])
    with signals_noted() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # an echo of the first, as launchers send it
        assert stop.signum == signal.SIGINT
        clock[0] = 5.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_ignores_a_signal_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for a background job
    try:
        with signals_noted() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signum == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cut(whole, tmp_path / "run", At(2, die))
    assert records(tmp_path / "run", "train")
    (tmp_path / "run" / "checkpoints" / ".last.ckpt.0123456789ab.partial").write_bytes(b"half")
    assert_same(whole, resume(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.parametrize("name", ["environment.json", "config.yaml"])
def test_a_run_killed_before_its_settings_were_written_begins_anew(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.0123456789ab.partial").write_bytes(b"half")
    RunFolder(tmp_path).create(resolve({"source": {"root": "."}}), {})
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("kind", [RecipeFolder, GroupFolder])
def test_so_does_a_folder_of_several_runs(tmp_path: Path, kind: type[Folder]) -> None:
    left, written_now = (tmp_path / f".{kind.NAME}.{name}.partial" for name in ("0123456789ab", "0123456789ac"))
    for path in (left, written_now):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    kind(tmp_path).write("train: {}")
    assert list(tmp_path.glob(".*")) == [written_now]  # another process' of the same recipe or group
    assert kind(tmp_path).exists


def test_a_finished_run_says_so_and_does_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    console = screen()
    run = train(None, whole, resume=True, console=console)
    assert "is finished: nothing to resume" in said(console)
    written = weights(whole)
    assert all(torch.equal(tensor, written[name]) for name, tensor in run.student.state_dict().items())
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_finished_run_with_a_damaged_student_says_how_to_have_it_again(
    checkpoints: bool, whole: Path, tmp_path: Path
) -> None:
    out, console = tmp_path / "run", screen()
    shutil.copytree(whole, out)
    (out / "student-last.safetensors").write_bytes(b"half")
    if not checkpoints:
        shutil.rmtree(out / "checkpoints")
    with pytest.raises(UserError, match=r"student-last\.safetensors is damaged \(.*header.*\)\. It") as error:
        resume(out, console=console)
    assert not said(console)
    assert ("it is trained anew, from its first step" in str(error.value)) is not checkpoints
    advice = re.escape(f"by: rm {out / 'student-last.safetensors'} && ssrseg train --resume --out {out}")
    assert re.search(f"{advice}$", str(error.value))
    (out / "student-last.safetensors").unlink()
    assert_same(whole, resume(out))


def test_a_run_killed_after_its_last_checkpoint_is_completed(whole: Path, tmp_path: Path) -> None:
    cut(whole, tmp_path / "run")
    for file in (tmp_path / "run" / "student-last.safetensors", *(tmp_path / "run" / "pictures" / "val").iterdir()):
        file.unlink()
    assert_same(whole, resume(tmp_path / "run"))


def test_a_checkpoint_that_does_not_fit_is_warned_of_and_training_goes_on(whole: Path, tmp_path: Path) -> None:
    out, console = tmp_path / "run", screen()
    half = (whole / "checkpoints" / "last.ckpt").stat().st_size // 2
    with pytest.raises(KeyboardInterrupt), files_no_longer_than(half):
        cut(whole, out, At(4, die), console=console)
    (warning,) = [line for line in records(out, "warning") if "could not be saved" in line["text"]]
    assert warning["step"] == 3
    assert "could not be saved at step 3: [Errno 27] File too large" in warning["text"]
    assert warning["text"] in said(console)
    assert not list((out / "checkpoints").iterdir())
    assert_same(whole, resume(out))


def test_a_full_disk_stops_the_run_with_what_to_do(whole: Path, tmp_path: Path) -> None:
    out, full = tmp_path / "run", ExitStack()

    def fill_up() -> None:
        full.enter_context(files_no_longer_than((out / "metrics.jsonl").stat().st_size + 20))

    with full, pytest.raises(UserError, match=r"cannot be written any more.* Make room\. Continue with: ssrseg train"):
        cut(whole, out, At(4, fill_up))
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["step"] == 3
    assert_same(whole, resume(out))


def test_the_part_of_a_record_that_a_full_disk_took_is_cut_off_at_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with closing(Journal(RunFolder(tmp_path), Screen(None))) as journal:
        journal.write("note", 0, text="whole")
        state = journal.state()
        with files_no_longer_than(state["bytes"] + 20), pytest.raises(OSError, match="File too large"):
            journal.write("note", 1, text="half of this")
    assert path.stat().st_size == state["bytes"] + 20
    with closing(Journal(RunFolder(tmp_path), Screen(None), start=1)) as journal:
        journal.restore(state)
        journal.write("note", 1, text="again")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["whole", "again"]


def test_lost_records_are_said(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        cut(whole, out, At(4, die))
    (out / "metrics.jsonl").write_text("")
    resume(out)
    assert "records were lost" in records(out, "warning")[0]["text"]


def test_changed_data_and_libraries_are_said_at_resume(tmp_path: Path) -> None:
    settings, out = settings_for(tmp_path), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings, out, extensions=Extensions(foundation=tiny_frozen(), observers=[At(3, die)]))
    known = json.loads((out / "environment.json").read_text())
    assert known["data"]["source"]["files"] == 8
    assert known["data"]["target"]["files"] == 4
    (out / "environment.json").write_text(json.dumps(known | {"torch": "0.1"}))
    picture = tmp_path / "camera" / "images" / "00.png"
    picture.write_bytes(picture.read_bytes() + b" ")
    console = screen()
    resume(out, console=console)
    texts = [record["text"] for record in records(out, "warning")]
    assert texts[0].startswith(f"torch was 0.1 when the run began and is {metadata.version('torch')}")
    assert texts[1] == "the files of target have changed since the run began: 4 then, 4 now"
    assert f"warning: {texts[1]}" in said(console)


def test_the_same_environment_has_not_changed(whole: Path) -> None:
    now = environment(settings_for(whole.parent, **ODD))
    assert changes(json.loads((whole / "environment.json").read_text()), now) == ()
    assert set(now["git"]) in (set(), {"commit", "diff"})


def test_packed_data_have_the_fingerprint_of_the_folder(whole: Path, tmp_path: Path) -> None:
    settings = settings_for(whole.parent, **ODD)
    shutil.make_archive(str(tmp_path / "game"), "zip", settings.source.root)
    packed = settings.model_copy(update={"source": settings.source.model_copy(update={"root": tmp_path / "game.zip"})})
    assert data_fingerprint(packed) == data_fingerprint(settings)


def test_deterministic_mode_lasts_as_long_as_the_run(whole: Path, tmp_path: Path) -> None:
    modes: list[bool] = []
    watcher = At(1, lambda: modes.append(torch.are_deterministic_algorithms_enabled()))
    settings = settings_for(whole.parent, train=ODD["train"] | {"deterministic": True})
    train(settings, tmp_path / "run", extensions=Extensions(foundation=tiny_frozen(), observers=[watcher]))
    assert modes == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_folder_without_settings_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        RunFolder(tmp_path).settings()
