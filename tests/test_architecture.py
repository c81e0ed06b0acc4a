"""The import law, and the three facts by which inference provably has no foundation model."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import ssrseg
from factories import CLASSES, small_segmenter, tiny_segmenter, write_pairs
from ssrseg.adapt import Batch, adapt, build_method
from ssrseg.adapt.foundation import Frozen
from ssrseg.adapt.methods import Method
from ssrseg.config.method import MethodConfig, MixedConfig, RegularizerConfig, TeacherConfig
from ssrseg.inference import graph_signature
from ssrseg.models import Segmenter, save_segmenter

ROOT = Path(ssrseg.__file__).parent
TRAINING = {"adapt", "training"}
DEPLOYED = ("models", "inference")
LAW: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "runs": {"config", "errors"},  # what a run leaves on disk; needs no torch
    "models": {"runs", "errors"},
    "cpu": {"models"},  # layers in place of those in models; imported where the device is a CPU, not at module level
    "inference": {"cpu", "models", "data", "runs", "config", "errors"},
    "data": {"runs", "config", "errors", "demo"},
    "label_shift": {"inference", "models", "data", "runs", "config", "errors"},
    "adapt": {"label_shift", "models", "config", "errors", "demo"},
    "training": {"adapt", "label_shift", "inference", "models", "cpu", "data", "runs", "config", "errors"},
    "planning": {"training", "adapt", "data", "models", "runs", "config", "errors"},
    "reporting": {"runs", "config", "errors"},
    "demo": {"runs", "config", "errors"},
}
"""A room and what it may import; `cli` and `demo.demo` may import all."""
EVERYTHING = {"cli", "demo.demo", "__init__", "__main__"}


def part_of(module: str) -> str:
    """`ssrseg.adapt.terms` -> `adapt`."""
    words = module.split(".")[1:]
    return "demo.demo" if words[:2] == ["demo", "demo"] else words[0] if words else "__init__"


def parts() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in ROOT.rglob("*.py"):
        words = path.relative_to(ROOT.parent).with_suffix("").parts
        found.setdefault(part_of(".".join(words)), []).append(path)
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module in ("ssrseg", "ssrseg.demo"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    return {part_of(name) for name in imports(path) if name.startswith("ssrseg.")}


def reachable(part: str) -> set[str]:
    found, waiting = set(), [part]
    while waiting:
        if (here := waiting.pop()) not in found:
            found.add(here)
            waiting += LAW[here]
    return found


@pytest.mark.parametrize("part", sorted(parts().keys() - EVERYTHING))
def test_import_law(part: str) -> None:
    for path in parts()[part]:
        assert own(path) - {part} <= LAW[part], f"{path.relative_to(ROOT)} imports what {part} must not"


def test_the_law_keeps_training_away_from_what_is_deployed() -> None:
    for part in DEPLOYED:
        assert not reachable(part) & TRAINING
    assert not reachable("data") & TRAINING
    assert all(part in reachable(part) and reachable(part) <= LAW.keys() for part in LAW)


def test_only_a_cpu_run_changes_layers_that_exist() -> None:
    """Elsewhere functions return new modules: no assignment to `__class__`, or to `forward` of anything."""
    for path in ROOT.rglob("*.py"):
        if path.is_relative_to(ROOT / "cpu"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Assign(targets=targets):
                    pass
                case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
                    targets = [target]
                case _:
                    continue
            stored = {part.attr for one in targets for part in ast.walk(one) if isinstance(part, ast.Attribute)}
            assert not stored & {"__class__", "forward"}, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_reports_need_no_torch() -> None:
    for part in reachable("reporting"):
        for path in parts().get(part, []):
            heavy = {name.partition(".")[0] for name in imports(path)} & {"torch", "torchvision", "timm"}
            assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"
    fresh("import sys, ssrseg.reporting; assert 'torch' not in sys.modules")


def test_importing_the_package_is_light() -> None:
    fresh("import sys, ssrseg; assert not {'torch', 'timm', 'rich', 'matplotlib'} & sys.modules.keys()")
    fresh(
        "import sys; from typer.testing import CliRunner; from ssrseg.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "assert not {'torch', 'pydantic', 'yaml', 'rich.markdown'} & sys.modules.keys()"
    )


def fresh(program: str, *words: str) -> str:
    """What a program prints in a process of its own."""
    finished = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_process_that_deploys_has_loaded_no_training_code(tmp_path: Path) -> None:
    save_segmenter(small_segmenter(), tmp_path / "model.safetensors")
    write_pairs(tmp_path / "data", 1)
    program = """
import sys
from pathlib import Path
import ssrseg.inference
folder = Path(sys.argv[1])
model, images = folder / "model.safetensors", folder / "data" / "images"
assert len(ssrseg.inference.predict(model, images, folder / "out", device="cpu")) == 1
assert ssrseg.inference.Predictor(model, "cpu")(images / "00.png").shape == (64, 64)
assert ssrseg.inference.evaluate(model, folder / "data", device="cpu").miou >= 0
assert ssrseg.inference.graph_signature(ssrseg.load(model)).flops > 0
print(*(name for name in sys.modules if name.startswith("ssrseg.")))
"""
    loaded = fresh(program, str(tmp_path)).split()
    assert {"ssrseg.inference.predict", "ssrseg.inference.export", "ssrseg.inference.evaluate", "ssrseg.models"} <= set(
        loaded
    )
    assert not {part_of(name) for name in loaded} & TRAINING
    assert (tmp_path / "out" / "00_ids.png").exists()


@pytest.fixture(scope="module")
def trained() -> tuple[Segmenter, Method]:
    """A student after one step of DACS + SSR."""
    student = tiny_segmenter()
    encoder = nn.Conv2d(3, 12, 16, 16)
    config = MethodConfig(teacher=TeacherConfig(), mixed=MixedConfig(), regularizer=RegularizerConfig())
    method = build_method(
        config,
        student,
        classes=CLASSES,
        foundation=Frozen(encoder, encoder, channels=12, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, len(CLASSES), (2, 64, 64))
    optimizer = torch.optim.SGD(method.learner.parameters(), 0.1)
    batch = Batch(images, labels, images.flip(0), torch.ones(2, 64, 64, dtype=torch.bool))
    losses = adapt(method.learner, method.teacher, method.makers, batch, torch.Tensor.backward)
    optimizer.step()
    assert "mixed/regularizer" in losses
    return student, method


def test_no_module_owns_the_foundation_encoder(trained: tuple[Segmenter, Method]) -> None:
    student, method = trained
    encoder = {id(weight) for frozen in method.frozen for weight in frozen.module.parameters()}
    assert encoder
    for module in (student, method.learner, method.teacher):
        assert not encoder & {id(weight) for weight in module.parameters()}
        assert not any(part is frozen.module for part in module.modules() for frozen in method.frozen)
    assert student.state_dict().keys() == tiny_segmenter().state_dict().keys()


def test_a_regularised_model_has_the_graph_of_a_plain_one(trained: tuple[Segmenter, Method]) -> None:
    student, _ = trained
    plain = tiny_segmenter()
    assert not torch.equal(student.head.classify.weight, plain.head.classify.weight)
    assert graph_signature(student) == graph_signature(plain)


def test_the_graph_test_would_see_a_leak(trained: tuple[Segmenter, Method]) -> None:
    _, method = trained
    leaky = tiny_segmenter()
    leaky.regularizer = method.learner.terms["regularizer"]
    assert graph_signature(leaky) != graph_signature(tiny_segmenter())


def test_every_word_is_a_function_even_after_all_modules_are_imported() -> None:
    for name in ("training", "inference", "label_shift", "reporting", "models.weights", "planning"):
        importlib.import_module(f"ssrseg.{name}")
    words = {"check_data", "compare", "train", "plan", "evaluate", "predict", "export", "report", "convert"}
    words |= {"presets", "resolve", "load"}
    assert all(callable(getattr(ssrseg, word)) for word in words)
    assert words <= set(dir(ssrseg))
