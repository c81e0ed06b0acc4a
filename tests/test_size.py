"""The size ratchet: lines and files of the package, which only a commit that says why may raise."""

from __future__ import annotations

from pathlib import Path

import ssrseg

ROOT = Path(ssrseg.__file__).parent
LINES, FILES = 23_741, 160
CORE_LINES = 5_247
CORE = (
    "config/method.py",
    "adapt/*.py",
    "models/backbones.py",
    "models/heads.py",
    "models/segmenter.py",
    "training/loop.py",
    "training/setup.py",
    "training/optim.py",
    "data/samplers.py",
    "data/loader.py",
    "data/streams.py",
    "data/transforms.py",
    "data/datasets.py",
    "inference/predictor.py",
    "inference/sliding_window.py",
    "inference/metrics.py",
)
"""The path of the algorithm: what a reader of the paper reads."""


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_package_grows_by_decision_only() -> None:
    files = list(ROOT.rglob("*.py"))
    assert sum(map(lines, files)) <= LINES
    assert len(files) <= FILES


def test_so_does_the_core_path() -> None:
    assert sum(lines(path) for pattern in CORE for path in ROOT.glob(pattern)) <= CORE_LINES
