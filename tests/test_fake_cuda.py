"""The code that runs on CUDA, run without a GPU: its step never waits for the device, and mixes no devices."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factories import random_image, write_pairs
from fake_cuda import Event, fake_cuda
from ssrseg.adapt import Batch, Pseudo, Source, Term, View
from ssrseg.config import Settings, merge, preset_names, read_preset, resolve
from ssrseg.inference import Predictor
from ssrseg.models import BACKBONES, Segmenter
from ssrseg.planning import scaled
from ssrseg.runs.folder import RunFolder
from ssrseg.training import Extensions, train
from ssrseg.training.loop import Observer, StepResult
from without_driver import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SMALL: dict[str, Any] = {
    "classes": ["road", "wall", "person", "car"],
    "loader": {"crop": [64, 64], "target_crop": None, "batch": 2, "workers": 0},
    "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none", "start": None},
    "train": {
        **dict.fromkeys(("steps", "evaluate_every", "checkpoint_every", "log_every", "pictures_every"), 3),
        "accelerator": "cuda",
    },
    "selection": None,
}
SSR: dict[str, Any] = {
    "method": {
        "regularizer": {"foundation": {"encoder": "demo", "weights": "none", "input_size": 64}, "stages": [1, 3]}
    }
}
SAME = SSR["method"]["regularizer"]["foundation"]
FOUNDATIONS: dict[str, Any] = {
    "method": {
        "teacher": {"regions": {"foundation": SAME}},
        "distillation": {"foundation": SAME, "views": ["source", "target"]},
        "affinity": {"foundation": SAME},
        "global_intensity": {},
        "fourier": {},
        "statistics_of": ["mixed"],
    }
}
MAY_WAIT = re.compile(
    r"training/(observers/(journal|alarms|guard|evaluation|pictures)\.py:\d+ (stepped|saw|finished)"
    r"|checkpoint\.py:\d+ (save|finished))$"
)
"""Log steps, evaluations, pictures and checkpoints."""


def small(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A run of a preset on small networks and any folders; a target that `over` leaves out stays out."""
    run = merge(merge(tree, over), SMALL)
    run = {key: value for key, value in run.items() if key not in ("source", "target", "val", "deploy")}
    if "feature_distance" in tree["method"]:
        run["model"]["backbone"] = "mit_b0"
    if "detail" in tree["model"]:  # a window that is drawn, and a teacher that slides
        run["model"]["detail"]["window"] = [32, 32]
    if "regularizer" in run["method"]:
        run = merge(run, SSR)
    if "priors" in run["method"].get("segmentation", {}):
        run = merge(run, {"method": {"segmentation": {"priors": "gta5-cityscapes"}}})
    if run["model"].get("image_scale"):
        run["model"]["backbone"] = "timm:test_vit"
    if run["train"].get("accumulate", 1) > 1:
        run["train"]["accumulate"] = 2
    run = merge(run, {"optim": {"length": None}})
    return {**run, "target": None} if "target" in over else run


def runs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every run that a preset trains."""
    for name in preset_names():
        tree = scaled(merge(read_preset(name), {"loader": {"crop": [32, 32]}}))
        stages = tree.pop("stages", [{"name": "", "settings": {}}])
        for stage in stages:
            if "settings" in stage:
                yield f"{name} {stage['name']}".strip(), small(tree, stage["settings"])
    for name in ("source-only", "dacs"):
        yield f"{name} + SSR", small(read_preset(name), SSR)
    yield "dacs + distillation + affinity + regions", small(read_preset("dacs"), FOUNDATIONS)


@functools.cache
def distinct() -> dict[str, dict[str, Any]]:
    """Those that differ in more than their data, under all of their names."""
    groups: dict[str, list[str]] = {}
    for name, run in runs():
        groups.setdefault(json.dumps(run, sort_keys=True), []).append(name)
    return {", ".join(names): json.loads(run) for run, names in groups.items()}


@pytest.fixture(scope="module", autouse=True)
def _one_block_per_stage() -> Iterator[None]:
    """Of the Mix Transformer, in place of two: the second runs what the first does."""
    with pytest.MonkeyPatch.context() as patch:
        options = {**BACKBONES["mit_b0"].options, "depths": (1, 1, 1, 1)}
        patch.setitem(BACKBONES, "mit_b0", replace(BACKBONES["mit_b0"], options=options))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("source", "target", "val"):
        write_pairs(root / name, 2)
    return root


def settings_for(run: dict[str, Any], data: Path, **over: Any) -> Settings:
    folders = {name: {"root": str(data / name)} for name in ("source", "target") if run.get(name, "") is not None}
    return resolve(merge({**run, **folders}, over))


def on_gpu(settings: Settings | None, out: Path, **options: Any) -> list[Event]:
    """Train; what waits for the device in the second step of `fit` and later, where it must not."""
    with fake_cuda() as gpu:
        train(settings, out, **options)
    assert any(event.kind == "send" and event.step > 1 for event in gpu.events)  # the batches
    steps = sorted({event.step for event in gpu.events if event.step})
    last = max(steps)

    def may_wait(event: Event) -> bool:
        return event.step == last and any(map(MAY_WAIT.match, event.where))

    return [event for event in gpu.events if event.waits and event.step > steps[0] and not may_wait(event)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", distinct())
def test_no_step_of_a_preset_waits_for_the_device(name: str, precision: str, data: Path, tmp_path: Path) -> None:
    settings = settings_for(distinct()[name], data, train={"precision": precision})
    assert on_gpu(settings, tmp_path / "run") == []


class Planted(Term):
    """Do something to the logits."""

    def __init__(self, does: Callable[[Tensor], Any]) -> None:
        super().__init__({"source"})
        self.does = does

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        logits = student.decode(features, view.labels.shape[-2:])
        self.does(logits)
        return logits.mean()


WAITS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "item": ("read", lambda x: x.mean().item()),
    "truth": ("read", lambda x: bool(x.mean() > 0)),
    "equal": ("read", lambda x: torch.equal(x, x)),
    "tolist": ("blocking fetch", lambda x: x[0, 0, 0].tolist()),
    "cpu": ("blocking fetch", lambda x: x.detach().cpu()),
    "to": ("blocking send", lambda x: x * torch.ones(1).to(x.device)),
    "like": ("blocking send", lambda x: x * torch.ones(1).to(x)),
    "tensor": ("blocking send", lambda x: x * torch.tensor([1.0], device=x.device)),
    "pageable": ("pageable send", lambda x: x * torch.ones(1).to(x.device, non_blocking=True)),
    "copy": ("blocking send", lambda x: x.detach().copy_(torch.ones(1))),
    "indices": ("blocking send", lambda x: x[torch.tensor([0])]),
    "mask": ("shape", lambda x: x[x > 0]),
    "nonzero": ("shape", lambda x: x.nonzero()),
    "synchronize": ("synchronize", lambda x: torch.cuda.synchronize()),
}


@pytest.fixture
def plain(data: Path) -> Settings:
    """Source-only."""
    return settings_for({**SMALL, "target": None}, data)


def test_planted_waits_are_found_at_their_lines(plain: Settings, tmp_path: Path) -> None:
    terms = {f"planted_{name}": Planted(does) for name, (_, does) in WAITS.items()}
    found = on_gpu(plain, tmp_path / "run", extensions=Extensions(terms=terms))
    lines = {kind: set[str]() for kind, _ in WAITS.values()}
    for kind, does in WAITS.values():
        lines[kind].add(f"test_fake_cuda.py:{does.__code__.co_firstlineno} <lambda>")
    expected = {(step, kind, line) for step in (2, 3) for kind in lines for line in lines[kind]}
    assert {(event.step, event.kind, event.where[0]) for event in found} == expected


def test_a_planted_tensor_on_the_cpu_ends_the_run_at_its_line(plain: Settings, tmp_path: Path) -> None:
    def add(logits: Tensor) -> Tensor:
        return logits + torch.zeros(4, 1, 1)

    with pytest.raises(RuntimeError, match=r"add.Tensor: a tensor \(4, 1, 1\) on the CPU .* on cuda:0") as caught:
        on_gpu(plain, tmp_path / "run", extensions=Extensions(terms={"planted": Planted(add)}))
    assert add.__code__.co_firstlineno in [entry.lineno for entry in caught.traceback if entry.name == "add"]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: torch.cat([x, torch.zeros(2)]),
        lambda x: x.add_(torch.zeros(2)),
        lambda x: x @ torch.zeros(2, 2),
        lambda x: torch.where(x > 0, x, torch.zeros(2)),
        lambda x: torch.rand(2, device=x.device, generator=torch.Generator()),
    ],
)
def test_devices_are_not_mixed(mixed: Callable[[Tensor], Tensor]) -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match=r"on the CPU.* on cuda:0"):
        mixed(torch.zeros(2, device="cuda"))


def test_a_planted_wait_in_a_view_is_found(plain: Settings, tmp_path: Path) -> None:
    def extra(batch: Batch, pseudo: Pseudo) -> View:
        weight = torch.rand(1).to(batch.source.device)
        return replace(Source()(batch, pseudo), name="extra", trust=weight.expand(batch.labels.shape))

    terms = {"planted": Planted(lambda logits: None)}
    terms["planted"].views = frozenset({"extra"})
    found = on_gpu(plain, tmp_path / "run", extensions=Extensions(terms=terms, makers=[extra]))
    assert {event.step for event in found} == {2, 3}
    assert all(re.match(r"test_fake_cuda\.py:\d+ extra", event.where[0]) for event in found)


def test_a_wait_in_the_backward_pass_is_found(plain: Settings, tmp_path: Path) -> None:
    found = on_gpu(
        plain,
        tmp_path / "run",
        extensions=Extensions(
            terms={"planted": Planted(lambda x: x.register_hook(lambda grad: grad * grad.sum().item()))}
        ),
    )
    assert {(event.step, event.kind) for event in found} == {(2, "read"), (3, "read")}


def test_evaluation_selection_pictures_and_a_resumed_run(data: Path, tmp_path: Path) -> None:
    """They may wait; devices are not mixed in them, and the steps after a resumed one's first do not wait."""

    class Power(Observer):
        def stepped(self, result: StepResult) -> None:
            if result.step == 3:
                raise KeyboardInterrupt

    run = next(run for name, run in distinct().items() if name.startswith("mic,"))
    over = {"val": {"root": str(data / "val")}, "selection": {}, "model": {"backbone": "timm:test_resnet"}}
    over["train"] = {"steps": 4, "checkpoint_every": 2}
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        on_gpu(settings_for(run, data, **over), out, extensions=Extensions(observers=[Power()]))
    assert on_gpu(None, out, resume=True) == []
    assert RunFolder(out).finished

    image = torch.from_numpy(random_image(50, 70)).permute(2, 0, 1)
    with fake_cuda() as gpu:
        predictor = Predictor(RunFolder(out).student_last, "cuda")
        before = len(gpu.events)
        ids = predictor(image)
    assert ids.device.type == "cpu"
    assert ids.shape == (50, 70)
    assert [event.kind for event in gpu.events[before:]] == ["blocking send", "blocking fetch"]


def test_nothing_of_it_stays(plain: Settings, tmp_path: Path) -> None:
    def state() -> list[Any]:
        names = ("is_available", "device_count", "Event", "synchronize", "_lazy_init", "get_rng_state")
        flags = torch.__future__.get_swap_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
        return [
            *(getattr(torch.cuda, name) for name in names),
            Tensor.pin_memory,
            torch.accelerator.is_available,
            *flags,
        ]

    before = state()
    with fake_cuda():
        assert torch.ones(2, device="cuda").sum().item() == 0
    with pytest.raises(RuntimeError, match="on the CPU"), fake_cuda():
        torch.ones(2, device="cuda").add(torch.ones(2))
    assert state() == before
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(2, device="cuda")
