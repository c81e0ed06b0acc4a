"""The examples and the code of `docs/extend.md` run as a user runs them."""

from __future__ import annotations

import importlib.util
import math
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ssrseg
from factories import CLASSES, tiny_segmenter
from ssrseg.adapt import Learner, Term, View
from ssrseg.config import Settings, dump
from test_training import records, settings_for

ROOT = Path(__file__).parents[1]
K = len(CLASSES)
ENCODER = {"regularizer": {"foundation": {"encoder": "random-patches"}}}
LOSSES = {
    "entropy": {"target/entropy"},
    "adversary": {"source/adversary", "target/adversary"},
    "fourier": {"fourier/fourier"},
    "teacher": {"mixed/segmentation"},
    "encoder": {"source/regularizer", "mixed/regularizer"},
}
"""Example -> losses that its run must have."""


def example(name: str) -> ModuleType:
    """Import an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def small(root: Path, name: str) -> Settings:
    """Two steps of DACS, with SSR for the encoder."""
    method = {"masked": None, "feature_distance": None, "regularizer": None, **(ENCODER if name == "encoder" else {})}
    intervals = dict.fromkeys(("steps", "evaluate_every", "checkpoint_every", "log_every", "pictures_every"), 2)
    return settings_for(root, method=method, train=intervals, val=None, selection=None)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_an_example_trains(name: str, tmp_path: Path) -> None:
    settings = small(tmp_path, name)
    folder = ssrseg.train(settings, tmp_path / "run", extensions=example(name).extensions(settings)).folder
    losses = records(folder, "train")[-1]["losses"]
    assert losses.keys() >= LOSSES[name]
    assert all(math.isfinite(value) for value in losses.values())


def test_an_example_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text(dump(small(tmp_path, "entropy")))
    words = [ROOT / "examples" / "entropy.py", tmp_path / "settings.yaml", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert ssrseg.load(tmp_path / "run" / "student-last.safetensors").num_classes == K


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text(dump(small(tmp_path, "entropy")))
    (tmp_path / "with-ssr.yaml").write_text(dump(small(tmp_path, "encoder")))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "docs/extend.md", "exec"), {"__name__": "extend"})
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"entropy", "grey", "sharper", "trust"}
    assert "source/regularizer" in records(tmp_path / "runs" / "sharper", "train")[-1]["losses"]
    assert 0 < records(tmp_path / "runs" / "entropy", "train")[-1]["losses"]["target/entropy"] < 0.001 * math.log(K)


def view(name: str) -> View:
    draws = torch.Generator().manual_seed(len(name))
    return View(name, torch.rand(2, 3, 64, 64, generator=draws), torch.randint(0, K, (2, 64, 64), generator=draws))


def gradients(term: Term, name: str) -> dict[str, torch.Tensor]:
    learner = Learner(tiny_segmenter(), {"term": term}).eval()
    (loss,) = learner(view(name)).values()
    loss.backward()
    return {key: weight.grad for key, weight in learner.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("entropy", [False, True])
def test_the_output_adversary_moves_the_student_on_the_target_only(entropy: bool) -> None:
    adversary = example("adversary")
    source = gradients(adversary.OutputAdversary(K, entropy=entropy), "source")
    target = gradients(adversary.OutputAdversary(K, entropy=entropy), "target")
    assert source
    assert all(name.startswith("terms.") for name in source)
    assert any(name.startswith("student.head.") for name in target)
    assert all(torch.isfinite(value).all() for value in target.values())


def test_entropy_is_one_for_a_uniform_prediction() -> None:
    student = tiny_segmenter().eval()
    torch.nn.init.zeros_(student.head.classify.weight)
    seen = view("target")
    term = example("entropy").Entropy({"target"})
    assert term(seen, student.encode(seen.images), student).item() == pytest.approx(1, abs=1e-6)


def test_exchanging_the_lowest_frequency_exchanges_the_mean() -> None:
    source = 0.4 + 0.2 * torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    exchange = example("fourier").exchange_amplitudes
    assert torch.allclose(exchange(source, source, 0.1), source, atol=1e-5)
    moved = exchange(source, torch.full_like(source, 0.7), 0.01)  # one frequency, the mean
    assert torch.allclose(moved, source - source.mean(dim=(-2, -1), keepdim=True) + 0.7, atol=1e-5)


def test_the_mirror_teacher_labels_an_image_and_its_mirror_image_alike() -> None:
    teacher = example("teacher").MirrorTeacher(tiny_segmenter())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(teacher.logits(images), teacher.logits(images.flip(-1)).flip(-1), atol=1e-5)
