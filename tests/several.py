"""Runs of several processes, as a program: `python several.py FOLDER WHAT ...`. Fabric starts the second one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from factories import tiny_frozen
from ssrseg.adapt import View
from ssrseg.config import Settings
from ssrseg.data import eval_samples, train_batches
from ssrseg.inference import Scores
from ssrseg.inference.sliding_window import build_inference
from ssrseg.models.heads import DAFormerHead
from ssrseg.runs.folder import RunFolder
from ssrseg.training import Extensions, train
from ssrseg.training.loop import Observer, StepResult, fit
from ssrseg.training.observers.evaluation import Evaluation
from ssrseg.training.observers.journal import Journal, Screen
from ssrseg.training.setup import build_context
from test_training import settings_for

UNDROPPED = {"dropout": 0.0, "drop_path": 0.0}


class Recorder(Observer):
    """Keeps every step's trust, losses and gradients."""

    def __init__(self, learner: nn.Module) -> None:
        self.learner, self.steps = learner, list[dict[str, Any]]()
        self.trust: list[Tensor] = []

    def saw(self, step: int, view: View) -> None:
        if view.name == "masked" and view.trust is not None:
            self.trust.append(view.trust.amax())

    def stepped(self, result: StepResult) -> None:
        gradients = {name: p.grad.clone() for name, p in self.learner.named_parameters() if p.grad is not None}
        self.steps.append({"losses": result.losses, "gradients": gradients})


class Confusions(Evaluation):
    """Scores as in a run; the matrices are kept instead of written."""

    found: tuple[Tensor, ...] = ()
    """Of the first process alone."""

    def _write(self, step: int, student: Scores, teacher: Scores | None) -> None:
        assert teacher is not None
        self.found = (*self.found, student.confusion, teacher.confusion)


def record(settings: Settings, root: Path) -> dict[str, Any]:
    """Train; give what `Recorder` and `Confusions` kept. BatchNorm is held, and a share of the pixels is trusted."""
    context = build_context(settings, RunFolder(root), extensions=Extensions(foundation=tiny_frozen()))
    fabric, method = context.fabric, context.method
    for module in (*method.learner.modules(), *method.teacher.modules()):
        if isinstance(module, nn.BatchNorm2d):
            hold(module)
    classify = cast(DAFormerHead, method.learner.student.head).classify
    nn.init.normal_(classify.weight, std=10, generator=torch.Generator().manual_seed(3))
    recorder = Recorder(method.learner)
    assert settings.val is not None
    samples, infer = eval_samples(settings.val, settings.classes, settings.source), build_inference(settings.inference)
    evaluation = Confusions(context, samples, infer, Journal(None, Screen(None)))
    batches = train_batches(settings, rank=fabric.global_rank, world=fabric.world_size)
    fit(fabric, method, context.optimizer, batches, settings, observers=[recorder, evaluation])
    return {"steps": recorder.steps, "trust": recorder.trust, "confusions": evaluation.found}


def adapting(root: Path, devices: int) -> Settings:
    """Three steps of MIC + SSR, distillation and affinity on two images a step; nothing is dropped."""
    return settings_for(
        root,
        loader={"batch": 2 // devices, "rare_class": None},  # which would draw one class again and again
        model=UNDROPPED,
        method={"teacher": {"threshold": 0.7}, "distillation": {}, "affinity": {}},
        train={"devices": devices, "steps": 3, "evaluate_every": 3},
    )


def adapted(root: Path) -> None:
    """Record in double precision, into a file."""
    torch.set_default_dtype(torch.float64)
    kept = record(adapting(root, 2), root)
    torch.set_default_dtype(torch.float32)
    if os.environ["LOCAL_RANK"] == "0":
        torch.save(kept, root / "record.pt")


def hold(norm: nn.Module) -> None:
    """Keep a module in eval mode."""
    norm.eval()
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]


class Fault(Observer):
    """What the second process does after two steps."""

    everywhere = True

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def stepped(self, result: StepResult) -> None:
        if result.step != 2 or os.environ["LOCAL_RANK"] != "1":
            return
        if self._kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._kind == "hang":
            threading.Event().wait()
        raise ValueError("a fault on purpose")


def faulty(root: Path, kind: str) -> None:
    """A run in which the second process fails."""
    settings = settings_for(root, train={"devices": 2, "timeout_minutes": 0.2, "steps": 400})
    train(settings, root / f"run-{kind}", extensions=Extensions(foundation=tiny_frozen(), observers=[Fault(kind)]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for what in sys.argv[2:]:
        if what == "adapt":
            adapted(Path(sys.argv[1]))
        else:
            faulty(Path(sys.argv[1]), what)
