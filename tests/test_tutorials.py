"""The site builds without a warning; every command and program of docs/tutorials runs, on small drawn folders."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from factories import write_pairs
from ssrseg.cli import main

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
SMALL = [
    *("model.backbone=timm:test_resnet", "model.pretrained=none", "model.head=segformer", "model.head_channels=16"),
    *("loader={crop: [32, 32], batch: 2, workers: 0}", "train={steps: 2, accelerator: cpu}", "optim.warmup=0"),
]
FOUNDATION = ["method.regularizer.foundation={encoder: demo, input_size: native}"]
"""What makes a training one of seconds; the rest of each command is the page's."""


def steps(page: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("game", "camera", "day", "night", "night-scored"):
        write_pairs(tmp_path / name, 4)
    monkeypatch.chdir(tmp_path)
    text = (PAGES / page).read_text(encoding="utf-8")
    if "runs/mine/" in text:  # a page that begins with a trained model
        run("ssrseg train --preset source-only --source game --out runs/mine 'classes=[road, tree, car, other]'")
    blocks = steps(text)
    assert blocks
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page, "exec"), {"__name__": page})
        for line in block.splitlines() if not language else []:
            run(line)
            if " suggest " in line:  # the reader has painted what was suggested
                for label in (tmp_path / "picked" / "labels").iterdir():
                    shutil.copy(tmp_path / "camera" / "labels" / label.name, label)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", tmp_path / "trees"]
    built = subprocess.run([*words, PAGES.parent, tmp_path / "site"], capture_output=True, text=True)
    assert not built.returncode, built.stderr
    assert "train.steps" in (tmp_path / "site" / "settings.html").read_text(encoding="utf-8")


def run(line: str) -> None:
    """Run a line as a shell would; what trains gets the words that make it small."""
    words = shlex.split(line)
    assert words[0] == "ssrseg", line
    if words[1] in ("train", "check-data", "plan"):
        words += [*SMALL, *(FOUNDATION if "-ssr" in line else [])]
    words += ["--size", "96x64"] if words[1] == "export" else []  # that it is checked with: the file takes any
    with mock.patch("sys.argv", words), pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code, line
