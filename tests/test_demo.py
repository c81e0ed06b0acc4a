"""The demonstration, in small: shipped pictures, four trainings, a table and a page; a second call keeps all of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ssrseg.demo import demo
from ssrseg.demo.dataset import CLASSES, COUNTS, MARKER, write_dataset
from ssrseg.errors import UserError
from streets.dataset import write_dataset as draw_dataset


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_demo_ends_in_a_report_and_keeps_finished_runs(tmp_path: Path) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    page = demo.demo(tmp_path, source_steps=4, steps=4, pictures=(4, 4, 2), console=console)
    text = page.read_text()
    for name in ("source-only", "DAFormer", "DAFormer + SSR"):
        assert name in text
        assert name in printed.getvalue()
    assert "not evidence" in printed.getvalue()
    (tmp_path / "daformer" / "student-last.safetensors").unlink()  # as if interrupted
    demo.demo(tmp_path, source_steps=4, steps=4, pictures=(4, 4, 2), console=console)
    assert printed.getvalue().count("finished earlier") == 3


def test_the_archive_holds_all_parts_and_no_target_labels(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d")
    source, target, val = COUNTS.values()
    folders = {
        "game/images": source,
        "game/labels": source,
        "camera/train/images": target,
        "camera/train/labels": 0,
        "camera/val/images": val,
        "camera/val/labels": val,
    }
    assert {folder: len(list((tmp_path / "d" / folder).glob("*"))) for folder in folders} == folders
    for path in (tmp_path / "d").rglob("*/*.*"):
        if path.name != MARKER:
            with Image.open(path) as picture:
                assert picture.size == (256, 128)
                assert picture.mode == ("L" if path.parent.name == "labels" else "RGB")
                assert picture.mode == "RGB" or np.asarray(picture).max() < len(CLASSES)


def test_the_pictures_are_those_that_the_painter_draws(tmp_path: Path) -> None:
    counts = {"source": 3, "target": 3, "val": 2}
    write_dataset(tmp_path / "shipped", **counts)
    draw_dataset(tmp_path / "drawn", **counts)
    drawn = sorted((tmp_path / "drawn").rglob("*.png"))
    assert len(drawn) == 13
    for path in drawn:
        beside = tmp_path / "shipped" / path.parent.relative_to(tmp_path / "drawn")
        (shipped,) = beside.glob(f"{path.stem}.*")
        apart = np.abs(np.asarray(Image.open(shipped), np.int16) - np.asarray(Image.open(path)))
        assert apart.mean() < 0.1  # equal on the machine that drew the archive; others may round differently
    with pytest.raises(UserError, match=r"201 pictures of game .* has 200"):
        write_dataset(tmp_path / "more", source=201)


def test_a_dataset_is_written_once_and_the_same_everywhere(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "deep" / "b"
    for root in (first, second):
        write_dataset(root, source=2, target=1, val=1)
    assert files(first) == files(second)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    write_dataset(first, source=2, target=1, val=1)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", source=1, target=1, val=1)
    before = files(tmp_path / "d")
    with pytest.raises(UserError, match=r"'game': 1.*'game': 2"):
        write_dataset(tmp_path / "d", source=2, target=1, val=1)
    assert files(tmp_path / "d") == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not a demo data set"):
        write_dataset(tmp_path, source=1, target=1, val=1)
    assert (tmp_path / "precious.txt").read_text() == "mine"
