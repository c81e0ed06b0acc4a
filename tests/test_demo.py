"""The demonstration, in small: shipped pictures and students, a table, a page; a second call keeps all."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ssrseg.demo.dataset import MARKER, NUCLEI, STREETS, STUDENT, DemoSet, write_dataset
from ssrseg.demo.demo import ROWS, demo
from ssrseg.errors import UserError
from ssrseg.inference import evaluate
from ssrseg.models import load
from streets.dataset import write_dataset as draw_dataset

SETS = {each.name: each for each in (NUCLEI, STREETS)}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("pictures", SETS.values(), ids=SETS)
def test_the_demo_ends_in_a_report_and_keeps_finished_runs(tmp_path: Path, pictures: DemoSet) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    page = demo(tmp_path, pictures, steps=2, counts=(4, 4, 2), console=console)
    text, rows = page.read_text(), ROWS[pictures.name]
    titles = {"dacs": "DACS", "daformer": "DAFormer", "daformer-ssr": "DAFormer + SSR", "oracle": "oracle"}
    for name in ("source-only", "source-only + target statistics", *(titles[row] for row in rows)):
        assert name in text
        assert name in printed.getvalue()
    assert "not evidence" in printed.getvalue()
    last = tmp_path / rows[-1] / "student-last.safetensors"
    last.unlink()  # as if interrupted
    demo(tmp_path, pictures, steps=2, counts=(4, 4, 2), console=console)
    assert last.exists()
    assert printed.getvalue().count("finished earlier") == len(rows) - 1


def test_the_first_row_is_the_student_as_shipped(tmp_path: Path) -> None:
    demo(tmp_path, steps=1, counts=(2, 2, 1))
    shipped, plain, adapted = (
        load(tmp_path / place).state_dict()
        for place in (
            f"data/{STUDENT}",
            "source-only/trained/student-last.safetensors",
            "source-only/recalibrated/student-last.safetensors",
        )
    )
    assert all(torch.equal(value, plain[name]) for name, value in shipped.items())
    assert not all(torch.equal(value, adapted[name]) for name, value in shipped.items())


@pytest.mark.parametrize(("pictures", "least"), [(NUCLEI, 0.88), (STREETS, 0.38)], ids=SETS)
def test_the_shipped_student_finds_every_class(tmp_path: Path, pictures: DemoSet, least: float) -> None:
    write_dataset(tmp_path / "d", pictures)
    *_, val = pictures.counts
    student = load(tmp_path / "d" / STUDENT)
    assert student.description is not None
    assert student.description.classes == tuple(name for name, _ in pictures.classes)
    scores = evaluate(student, tmp_path / "d" / val, device="cpu", engine="torch")
    assert scores.miou > least  # what ORIGIN.md says, with a margin for other machines
    assert all(iou is not None and iou > 0 for iou in scores.iou)


@pytest.mark.parametrize("pictures", SETS.values(), ids=SETS)
def test_the_archive_holds_what_the_counts_say(tmp_path: Path, pictures: DemoSet) -> None:
    write_dataset(tmp_path / "d", pictures)
    unlabelled = {"camera/train"}
    for folder, count in pictures.counts.items():
        found = {kind: sorted((tmp_path / "d" / folder / kind).glob("*")) for kind in ("images", "labels")}
        assert len(found["images"]) == count
        assert len(found["labels"]) == (0 if folder in unlabelled else count)
        for kind, paths in found.items():
            for path in paths:
                with Image.open(path) as picture:
                    assert picture.size == ((256, 128) if pictures is STREETS else (256, 256))
                    grey = kind == "labels" or pictures is NUCLEI
                    assert picture.mode == ("L" if grey else "RGB")
                    assert kind == "images" or np.asarray(picture).max() < len(pictures.classes)
    assert {path.name for path in (tmp_path / "d").glob("*.*")} == {MARKER, STUDENT}


def test_the_pictures_are_those_that_the_painter_draws(tmp_path: Path) -> None:
    counts = {"source": 3, "target": 3, "val": 2}
    write_dataset(tmp_path / "shipped", STREETS, [*counts.values()])
    draw_dataset(tmp_path / "drawn", **counts)
    drawn = sorted((tmp_path / "drawn").rglob("*.png"))
    assert len(drawn) == 13
    for path in drawn:
        beside = tmp_path / "shipped" / path.parent.relative_to(tmp_path / "drawn")
        (shipped,) = beside.glob(f"{path.stem}.*")
        apart = np.abs(np.asarray(Image.open(shipped), np.int16) - np.asarray(Image.open(path)))
        assert apart.mean() < 0.1  # equal on the machine that drew the archive; others may round differently
    with pytest.raises(UserError, match=r"201 pictures of game .* has 200"):
        write_dataset(tmp_path / "more", STREETS, (201, 1, 1))


def test_a_dataset_is_written_once_and_the_same_everywhere(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "deep" / "b"
    for root in (first, second):
        write_dataset(root, NUCLEI, (2, 1, 1))
    assert files(first) == files(second)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    write_dataset(first, NUCLEI, (2, 1, 1))
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", NUCLEI, (1, 1, 1))
    before = files(tmp_path / "d")
    with pytest.raises(UserError, match=r"'bright': 1.*'bright': 2"):
        write_dataset(tmp_path / "d", NUCLEI, (2, 1, 1))
    assert files(tmp_path / "d") == before
    write_dataset(tmp_path / "other", NUCLEI, (2, 1, 1))  # as it says: another folder, or this one deleted
    shutil.rmtree(tmp_path / "d")
    write_dataset(tmp_path / "d", NUCLEI, (2, 1, 1))
    assert files(tmp_path / "d") == files(tmp_path / "other")
    with pytest.raises(UserError, match=r"13 pictures of dim/val .* the package has 12: ask for fewer"):
        write_dataset(tmp_path / "fewer", NUCLEI, (1, 1, 13))
    write_dataset(tmp_path / "fewer", NUCLEI, (1, 1, 12))
    assert len(list((tmp_path / "fewer").glob("**/val/images/*"))) == 12


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not a demo data set"):
        write_dataset(tmp_path, NUCLEI, (1, 1, 1))
    assert (tmp_path / "precious.txt").read_text() == "mine"
    (tmp_path / "precious.txt").unlink()  # empty it, as it says
    write_dataset(tmp_path, NUCLEI, (1, 1, 1))
