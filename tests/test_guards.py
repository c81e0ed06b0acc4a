"""Wrong on purpose: one fault per guard, and the message that it produces, as docs/guards.md shows it.

`pytest tests/test_guards.py --write-docs` writes the messages into that page instead of comparing them.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from factories import tiny_segmenter
from ssrseg import cli
from ssrseg.adapt import Batch, Pseudo, Term, View
from ssrseg.config import assignments
from ssrseg.data import RawBatch, train_batches
from ssrseg.errors import UserError
from ssrseg.models import Segmenter
from ssrseg.runs.folder import RunFolder
from ssrseg.runs.records import read_run
from ssrseg.training import Extensions, Observer, StepResult, train
from ssrseg.training.observers import guard
from ssrseg.training.observers.alarms import ClassCollapse, ForgettingDetector, distance_between
from ssrseg.training.observers.guard import BufferBackup, Fault, Guard
from ssrseg.training.setup import RunContext, build_context
from test_reference_behaviour import NoSync, made_and_batch
from test_training import records, settings_for, weights

DOCS = Path(__file__).parents[1] / "docs" / "guards.md"
PLAIN = {"regularizer": None, "feature_distance": None, "masked": None}
"""Of `settings_for`'s method: DACS is left."""


class Entropy(Term):
    """Entropy of the predictions, as docs/extend.md has it."""

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        p = student.decode(features, view.labels.shape[-2:]).softmax(dim=1)
        return -(p * p.clamp(min=1e-8).log()).sum(dim=1).mean()


class Spread(Term):
    """A standard deviation without an epsilon: where nothing varies it is 0, and its gradient 0 / 0."""

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        still = features[-1] - features[-1].detach()
        return still.square().mean().sqrt()


def standardised(batch: Batch, pseudo: Pseudo) -> View:
    """The target, each image by its own mean and deviation: a black picture becomes 0 / 0, a NaN image."""
    mean, deviation = (part(batch.target, dim=(1, 2, 3), keepdim=True) for part in (torch.mean, torch.std))
    return View("target", (batch.target - mean) / deviation, pseudo.labels, pseudo.trust)


def black(root: Path) -> None:
    """One target image of a camera that was off."""
    Image.new("RGB", (64, 64)).save(root / "camera" / "images" / "02.png")


def nan_image(root: Path, **over: Any) -> Path:
    """Train with a NaN image among the target's."""
    settings = settings_for(root, method=PLAIN, val=None, **over)
    black(root)
    out = io.StringIO()
    terms = {"entropy": Entropy({"target"}, weight=0.005)}
    console = Console(file=out, width=1000)
    try:
        train(settings, root / "run", console=console, extensions=Extensions(terms=terms, makers=[standardised]))
    finally:
        (root / "console.txt").write_text(out.getvalue())
    return root / "run"


def said_of_a_nan_image(root: Path) -> str:
    with pytest.raises(Fault) as raised:
        nan_image(root)
    return str(raised.value)


def said_of_skipped_steps(root: Path) -> str:
    nan_image(root, train={"guard": {"skip": 3}})
    return "\n".join(line for line in (root / "console.txt").read_text().splitlines() if line.startswith("warning"))


def said_of_a_nan_gradient(root: Path) -> str:
    with pytest.raises(Fault) as raised:
        train(
            settings_for(root, method=PLAIN, val=None),
            root / "run",
            extensions=Extensions(terms={"spread": Spread({"source"})}),
        )
    return str(raised.value)


def diverging(root: Path, name: str = "run", **over: Any) -> Fault:
    """Train with a learning rate that no network bears, and give the fault."""
    settings = settings_for(root, method=PLAIN, val=None, selection=None, optim={"lr": 1e6, "warmup": 0}, **over)
    with pytest.raises(Fault) as raised:
        train(settings, root / name)
    return raised.value


def said_of_a_divergence(root: Path) -> str:
    return str(diverging(root))


class Unlearn(Observer):
    """From a step on, no pixel is predicted as the last class: its bias is held far below the others'."""

    def __init__(self, after: int) -> None:
        self._after = after
        self.student: Segmenter | None = None

    def stepped(self, result: StepResult) -> None:
        if result.step >= self._after and self.student is not None:
            with torch.no_grad():
                self.student.head.classify.bias[-1] = -1e4


class Meet(Term):
    """Not a loss: it lets an observer meet the student."""

    def __init__(self, observer: Unlearn | Spoil) -> None:
        super().__init__({"source"})
        self._observer = [observer]

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        self._observer[0].student = student
        return features[0].sum() * 0


def collapse(root: Path) -> Path:
    unlearn = Unlearn(after=12)
    guard = {"window": 4, "learned_share": 0.02, "learned_iou": 0.02}
    settings = settings_for(
        root,
        method={**PLAIN, "teacher": {"decay": 0.5}},
        train={"steps": 20, "evaluate_every": 10, "log_every": 2, "pictures_every": 50, "guard": guard},
    )
    terms, out = {"meet": Meet(unlearn)}, io.StringIO()
    train(
        settings,
        root / "run",
        console=Console(file=out, width=1000),
        extensions=Extensions(observers=[unlearn], terms=terms),
    )
    (root / "console.txt").write_text(out.getvalue())
    return root / "run"


def said_of_a_collapse(root: Path) -> str:
    return warnings_in(collapse(root))


def said_of_a_student_on_its_own(root: Path) -> str:
    settings = settings_for(root, method=PLAIN, val=None, optim={"lr": 0.3, "warmup": 0})
    return warnings_in(train(settings, root / "run").folder)


def said_of_a_slow_batch(root: Path) -> str:
    def slow(*args: Any, **over: Any) -> Iterator[RawBatch]:
        for number, raw in enumerate(train_batches(*args, **over)):
            time.sleep(1.2 if number == 2 else 0)
            yield raw

    settings = settings_for(root, method=PLAIN, val=None, train={"guard": {"stall_seconds": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ssrseg.training.train"], "train_batches", slow)
        return warnings_in(train(settings, root / "run").folder)


class Hang(Observer):
    """After the first step the disk hangs: reading any target image never ends."""

    def __init__(self, root: Path) -> None:
        self._files = sorted((root / "camera" / "images").iterdir())

    def stepped(self, result: StepResult) -> None:
        if result.step == 1:
            for path in self._files:
                path.unlink()
                os.mkfifo(path)


def said_of_a_hanging_disk(root: Path) -> str:
    loader = {"workers": 1, "timeout": 2}
    settings = settings_for(root, method=PLAIN, loader=loader, selection=None, train={"steps": 40})
    with pytest.raises(UserError) as raised, mock.patch("ssrseg.data.storage.stat", S_ISREG=bool):  # so take the pipe
        train(settings, root / "run", extensions=Extensions(observers=[Hang(root)]))
    return str(raised.value)


FAULTS: dict[str, Callable[[Path], str]] = {
    "a NaN image": said_of_a_nan_image,
    "a NaN gradient": said_of_a_nan_gradient,
    "skipped steps": said_of_skipped_steps,
    "a divergence": said_of_a_divergence,
    "a class that collapses": said_of_a_collapse,
    "a student on its own": said_of_a_student_on_its_own,
    "a slow batch": said_of_a_slow_batch,
    "a hanging disk": said_of_a_hanging_disk,
}


def warnings_in(folder: Path) -> str:
    return "\n".join(f"warning: {line['text']}" for line in records(folder, "warning"))


def documented() -> dict[str, str]:
    """Fault -> message, as the page has it."""
    return dict(re.findall(r"<!-- fault: (.+?) -->\n```text\n(.+?)\n```", DOCS.read_text(), re.DOTALL))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_documented_message_is_the_real_one(fault: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    message = FAULTS[fault](tmp_path).replace(f"{tmp_path}/", "")
    if request.config.getoption("--write-docs"):
        DOCS.write_text(DOCS.read_text().replace(f"\n{documented()[fault]}\n", f"\n{message}\n"))
    (text, numbers), (real, measured) = map(parted, (documented()[fault], message))
    assert text == real
    assert numbers == pytest.approx(measured, rel=0.1)  # another processor rounds otherwise


def parted(message: str) -> tuple[str, list[float]]:
    """The words, and the decimals among them."""
    decimal = r"\d+\.\d+"
    return re.sub(decimal, "#", message), [float(number) for number in re.findall(decimal, message)]


def test_every_documented_message_is_tested() -> None:
    assert documented().keys() == FAULTS.keys()


class Diary(Observer):
    """Everything that a step may change, after every step."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self.pages = [self._page()]

    def stepped(self, result: StepResult) -> None:
        self.pages.append(self._page())

    def _page(self) -> dict[str, Tensor]:
        method, optimizer = self._context.method, self._context.optimizer
        modules = {"learner": method.learner, "teacher": method.teacher}
        page = {f"{kind} {n}": t.clone() for kind, m in modules.items() for n, t in m.state_dict().items()}
        state = optimizer.state_dict()["state"]
        return page | {f"optimizer {i} {n}": t.clone() for i, kept in state.items() for n, t in kept.items()}


def diary(monkeypatch: pytest.MonkeyPatch, root: Path, **over: Any) -> list[dict[str, Tensor]]:
    """What four steps change, of which the first and the last see a NaN image."""
    found: list[Diary] = []

    def build(*args: Any, **parts: Any) -> RunContext:
        context = build_context(*args, **parts)
        found.append(Diary(context))
        return context

    monkeypatch.setattr(sys.modules["ssrseg.training.train"], "build_context", build)
    monkeypatch.setattr(Guard, "stepped", also(Guard.stepped, lambda result: found[0].stepped(result)))
    nan_image(root, train={"guard": {"skip": 9}, **over})
    return found[0].pages


def also(method: Callable[..., None], other: Callable[[StepResult], None]) -> Callable[[Guard, StepResult], None]:
    def both(self: Guard, result: StepResult) -> None:
        method(self, result)
        other(result)

    return both


def test_a_skipped_step_changes_nothing_and_the_others_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start, first, second, third, fourth = diary(monkeypatch, tmp_path)
    changed = [name for name in first if not same(first[name], start.get(name))]
    assert {name.split()[0] for name in changed} == {"optimizer"}  # which has no state before its first step
    assert not any(first[name].any() for name in changed)
    assert any("running_mean" in name for name in first)
    assert {name for name in second if "teacher" not in name and not same(second[name], first[name])}
    student = [name for name in fourth if not name.startswith("teacher")]
    assert all(same(fourth[name], third[name]) for name in student)
    assert all(tensor.isfinite().all() for tensor in fourth.values())


def same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(one, other)


def test_looking_one_step_later_finds_and_leaves_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nan_image(tmp_path / "now", train={"guard": {"skip": 3}, "checkpoint_every": 9})
    monkeypatch.setitem(guard.LAG, "cpu", 1)
    nan_image(tmp_path / "later", train={"guard": {"skip": 3}, "checkpoint_every": 9})
    now, later = (
        json.dumps(records(tmp_path / name / "run", "warning")).replace(f"{name}/", "") for name in ("now", "later")
    )
    assert now == later != "[]"
    one, other = weights(tmp_path / "now" / "run"), weights(tmp_path / "later" / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_stops_one_step_later_names_the_step_and_can_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(guard.LAG, "cpu", 1)
    with pytest.raises(Fault, match="Step 1: the loss target/entropy is nan") as raised:
        nan_image(tmp_path, train={"checkpoint_every": 9})
    assert (raised.value.step, raised.value.completed) == (1, 2)


def test_going_on_after_a_stop_is_skipping_the_step(tmp_path: Path) -> None:
    nan_image(tmp_path / "skipped", train={"guard": {"skip": 9}})
    (tmp_path / "stopped").mkdir()
    with pytest.raises(Fault):
        nan_image(tmp_path / "stopped")
    extensions = Extensions(terms={"entropy": Entropy({"target"}, weight=0.005)}, makers=[standardised])
    with pytest.raises(Fault, match="Step 4: the loss target/entropy is nan") as raised:
        train(None, tmp_path / "stopped" / "run", resume=True, extensions=extensions)
    assert raised.value.completed == 4
    checkpoints = [tmp_path / name / "run" / "checkpoints" / "last.ckpt" for name in ("skipped", "stopped")]
    one, other = (torch.load(path, weights_only=True) for path in checkpoints)
    assert one["step"] == other["step"] == 4
    for part in ("learner", "teacher"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    assert one["observers"]["guard"] == other["observers"]["guard"]
    assert one["observers"]["guard"]["skipped"] == 2


def test_what_is_said_of_a_divergence_helps(tmp_path: Path) -> None:
    fault = diverging(tmp_path, train={"checkpoint_every": 1})
    assert fault.diverged
    assert fault.completed < 4
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["step"]
    assert kept == fault.completed - 1  # the regular one: nothing was saved at the fault
    assert "lower optim.lr in" not in str(fault)  # that one has the spoiled weights
    skipping = diverging(tmp_path, "skipping", train={"guard": {"skip": 10}})
    assert (skipping.step, skipping.diverged) == (fault.step, True)  # ten steps would be as bad
    advised = re.findall(r"Start anew with optim\.lr=(\S+) \(now 1e\+06\) and another --out", str(fault))
    rate = assignments([f"optim.lr={advised[0]}"])
    settings = settings_for(tmp_path, method=PLAIN, val=None, selection=None, **rate)
    assert train(settings, tmp_path / "anew").folder.joinpath("student-last.safetensors").exists()


class Spoil(Observer):
    """Multiplies the weights after a step, as a step of a far too high rate does."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.student: Segmenter | None = None

    def stepped(self, result: StepResult) -> None:
        if result.step == self._step and self.student is not None:
            with torch.no_grad():
                for weight in self.student.parameters():
                    weight.mul_(1e30)


def test_a_checkpoint_from_before_a_divergence_is_named_and_goes_on(tmp_path: Path) -> None:
    spoil = Spoil(3)
    settings = settings_for(tmp_path, method=PLAIN, val=None, selection=None, train={"steps": 6})
    with pytest.raises(Fault, match=r"The checkpoint of step 2 is from before: `.*` goes on from there") as raised:
        train(settings, tmp_path / "run", extensions=Extensions(observers=[spoil], terms={"meet": Meet(spoil)}))
    assert (raised.value.step, raised.value.completed) == (4, 4)
    said = f"`ssrseg train --resume --out {tmp_path / 'run'} optim.lr=6e-05` goes on from there"
    assert said in str(raised.value)
    resumed = Extensions(observers=[Observer()], terms={"meet": Meet(Spoil(9))})
    lower = settings.model_copy(update={"optim": settings.optim.model_copy(update={"lr": 6e-05})})
    run = train(lower, tmp_path / "run", resume=True, extensions=resumed)
    assert records(run.folder, "train")[-1]["step"] == 6


def test_a_fault_of_every_step_is_not_said_to_be_passed(tmp_path: Path) -> None:
    class Hole(Term):
        def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
            return features[0].sum() * math.nan

    extensions = Extensions(terms={"hole": Hole({"source"})})
    with pytest.raises(Fault, match=r"goes on after this step; a run with train\.guard\.skip=10"):
        train(settings_for(tmp_path, method=PLAIN, val=None), tmp_path / "run", extensions=extensions)
    with pytest.raises(Fault, match="but the 2 steps up to it were all so: this is no matter of one image"):
        train(None, tmp_path / "run", resume=True, extensions=extensions)


def test_the_batch_of_a_fault_is_kept_and_the_report_has_the_warning(tmp_path: Path) -> None:
    with pytest.raises(Fault):
        nan_image(tmp_path)
    folder = tmp_path / "run" / "faults" / "step-000001"
    batch, fault = load_file(folder / "batch.safetensors"), json.loads((folder / "fault.json").read_text())
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "source": ((2, 3, 64, 64), torch.uint8),
        "labels": ((2, 64, 64), torch.uint8),
        "target": ((2, 3, 64, 64), torch.uint8),
        "valid": ((2, 64, 64), torch.bool),
    }
    assert batch["target"][[Path(name).stem for name in fault["target"]].index("02")].max() == 0
    losses = fault["losses"][0]
    assert losses["target/entropy"] == "nan"
    assert losses["source/segmentation"] > 0
    assert fault["gradients"]["the backbone"]["not_finite"] > 0
    notes = [note for note in read_run(tmp_path / "run").notes if note.warning]
    assert any("Step 1: the loss target/entropy is nan" in note.text and note.step == 1 for note in notes)
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_an_absurd_learning_rate_stops_the_run_and_its_weights_are_not_saved(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, method=PLAIN, optim={"lr": 1e30, "warmup": 0}, train={"steps": 8})
    with pytest.raises(Fault, match=r"Step \d: (the loss|every loss)"):
        train(settings, tmp_path / "run")
    assert not RunFolder(tmp_path / "run").checkpoint.exists()  # spoiled weights are no state to go on from


def test_the_guard_changes_no_bit_of_a_run_without_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, method=PLAIN, val=None)
    one = weights(train(settings, tmp_path / "guarded").folder)
    for name in ("saw", "computed"):
        monkeypatch.setattr(Guard, name, lambda self, *args: None)
    other = weights(train(settings, tmp_path / "unguarded").folder)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_guard_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(guard.LAG, "cpu", 1)
    for name in ("saw", "labelled", "computed"):
        for watcher in (guard.Guard, ClassCollapse):
            monkeypatch.setattr(watcher, name, unwaiting(getattr(watcher, name)))
    train(settings_for(tmp_path, method=PLAIN), tmp_path / "run")


def unwaiting(method: Callable[..., None]) -> Callable[..., None]:
    def watched(*args: Any) -> None:
        with NoSync():
            method(*args)

    return watched


def test_statistics_are_put_back_only_when_asked() -> None:
    method, batch = made_and_batch()
    backup = BufferBackup([method.learner, method.teacher])
    before = [buffer.clone() for buffer in method.teacher.buffers()]
    method.teacher(batch.target, batch.valid)
    changed = [buffer.clone() for buffer in method.teacher.buffers()]
    assert not all(map(torch.equal, before, changed))
    backup.settle(torch.tensor(True))
    assert all(map(torch.equal, before, method.teacher.buffers()))
    method.teacher(batch.target, batch.valid)
    backup.settle(torch.tensor(False))
    assert all(map(torch.equal, changed, method.teacher.buffers()))


def test_the_command_line_ends_with_code_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise Fault("Step 7: the loss source/segmentation is nan.", 7, 7)

    monkeypatch.setattr(cli, "app", stop)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert capsys.readouterr().err == "error: Step 7: the loss source/segmentation is nan.\n"


def test_what_was_learned_and_lost_is_detected_once() -> None:
    detector = ForgettingDetector(learned=0.1, lost=0.01, patience=2)
    car = [0.2, 0.0, 0.2, 0.2, 0.0, 0.05, 0.0, 0.0, 0.0, 0.2, 0.2, 0.0, 0.0]
    told = [number for number, value in enumerate(car) if detector.update({"car": value, "never": 0.0, "absent": None})]
    assert told == [7, 12]  # a single high, a single low and what is between say nothing
    again = ForgettingDetector(learned=0.1, lost=0.01, patience=2)
    for number, value in enumerate(car):
        again = ForgettingDetector(**json.loads(json.dumps(asdict(again))))
        assert bool(again.update({"car": value})) == (number in told)


def test_shares_and_waiting_are_journaled(tmp_path: Path) -> None:
    folder = train(settings_for(tmp_path, method=PLAIN), tmp_path / "run").folder
    for line in records(folder, "labels"):
        assert sum(line["shares"].values()) == pytest.approx(1)
    assert [line["step"] for line in records(folder, "labels")] == [2, 4]
    assert all(0 <= line["share"] <= 1 and line["data_wait"] >= 0 for line in records(folder, "data"))
    assert 0 < records(folder, "teacher")[-1]["distance"] < 0.5


def test_the_alarms_go_on_where_a_resumed_run_does(tmp_path: Path) -> None:
    class Power(Observer):
        def stepped(self, result: StepResult) -> None:
            if result.step == 3:
                raise KeyboardInterrupt

    settings = settings_for(tmp_path, method=PLAIN, val=None, train={"checkpoint_every": 1, "log_every": 4})
    whole = train(settings, tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "cut", extensions=Extensions(observers=[Power()]))
    cut = train(None, tmp_path / "cut", resume=True).folder
    assert records(whole, "labels") == records(cut, "labels") != []
    assert records(whole, "teacher") == records(cut, "teacher") != []


def test_the_distance_is_a_share_of_the_students_length() -> None:
    student, teacher = tiny_segmenter(), tiny_segmenter()
    assert distance_between(student, teacher) == 0
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert distance_between(student, teacher) == pytest.approx(1)
