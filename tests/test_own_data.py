"""docs/own-data.md: drawn images, the page's three commands as they stand, and a model that tells the classes apart."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ssrseg.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text()
SIZE = (96, 80)
ENOUGH = 0.6
"""IoU of the rarer class on unlabelled pictures; a model that says one class everywhere has 0."""


def draw(draws, background, leaf):
    """A picture of a few leaves on noisy ground, and its label."""
    picture, label = Image.new("RGB", SIZE, background), Image.new("L", SIZE, 0)
    for _ in range(3):
        left, top = (int(draws.integers(0, side - 30)) for side in SIZE)
        box = (left, top, left + int(draws.integers(20, 40)), top + int(draws.integers(20, 40)))
        ImageDraw.Draw(picture).ellipse(box, fill=leaf)
        ImageDraw.Draw(label).ellipse(box, fill=1)
    noise = draws.normal(0, 15, (SIZE[1], SIZE[0], 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)), label


def write_leaves(root):
    """Twelve labelled pictures and eight unlabelled ones in another light; gives the labels of the latter."""
    draws = np.random.default_rng(4)
    for folder in ("studio/images", "studio/labels", "garden/images"):
        (root / "leaves" / folder).mkdir(parents=True)
    for i in range(12):
        picture, label = draw(draws, (150, 130, 110), (70, 140, 60))
        picture.save(root / "leaves" / "studio" / "images" / f"{i:02}.png")
        label.save(root / "leaves" / "studio" / "labels" / f"{i:02}.png")
    truth = {}
    for i in range(8):
        picture, label = draw(draws, (110, 100, 90), (45, 95, 45))
        picture.save(root / "leaves" / "garden" / "images" / f"{i:02}.png")
        truth[f"{i:02}"] = np.asarray(label)
    return truth


def commands():
    return [shlex.split(line) for line in re.findall(r"^ssrseg .*$", PAGE, flags=re.M)]


def test_three_commands_lead_from_a_folder_to_a_model(tmp_path, monkeypatch, capsys):
    truth = write_leaves(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [words[1] for words in commands()] == ["check-data", "train", "predict"]
    for words in commands():
        with mock.patch("sys.argv", words), pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code, capsys.readouterr()
    assert "Training can start" in capsys.readouterr().out
    for ids in (0, 1):
        shown, meant = 0, 0
        for name, label in truth.items():
            predicted = np.asarray(Image.open(tmp_path / "runs" / "leaves" / "predictions" / f"{name}_ids.png"))
            shown += int(((predicted == ids) & (label == ids)).sum())
            meant += int(((predicted == ids) | (label == ids)).sum())
        assert shown / meant > ENOUGH, f"class {ids}"
        print(f"IoU of class {ids}: {shown / meant:.3f}")
