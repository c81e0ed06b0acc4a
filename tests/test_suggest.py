"""Which images to label first: unlike each other, hard, no picture twice; files to label them in."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import ssrseg
from factories import random_labels, small_segmenter, write_pairs
from ssrseg.config import DataConfig
from ssrseg.data import find_pairs, read_image
from ssrseg.errors import UserError
from ssrseg.inference.suggest import farthest, labels_glob
from ssrseg.models import save_segmenter
from test_cli import ssrseg as command


def test_rows_far_from_each_other_are_taken_and_duplicates_are_not() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.001], [-1.0, 0.0], [0.6, 0.8]])
    order, distances = farthest(rows, torch.tensor([1.0, 0.5, 0.9, 0.5, 0.5]), 5)
    assert order == [0, 3, 1, 4]  # the most uncertain; opposite to it; then the others; never the twin of the first
    assert distances == pytest.approx([2.0, 2.0, 1.0, 0.2])
    certain = farthest(rows, torch.tensor([1.0, 0.9, 0.9, 0.1, 0.5]), 2)[0]
    assert certain == [0, 1]  # less far, but more to learn from


def test_files_to_label_are_laid_out_and_labels_are_kept(tmp_path: Path) -> None:
    images = write_pairs(tmp_path / "target", 4) / "images"
    shutil.copy(images / "00.png", images / "again.png")  # the camera stood still
    out = tmp_path / "out"
    (out / "labels").mkdir(parents=True)
    for path in images.iterdir():  # painted already
        Image.new("L", (64, 64), 1).save(out / "labels" / path.name)
    (out / "labels" / "02.png").unlink()
    found = ssrseg.suggest(small_segmenter(), tmp_path / "target", out, count=5)
    stems = (out / "stems.txt").read_text().split()
    assert stems == [each.image.stem for each in found]
    assert not {"00", "again"} <= set(stems)
    assert "02" in stems
    assert (read_image(out / "labels" / "02.png") == 255).all()
    assert (read_image(out / "labels" / "01.png") == 1).all()
    assert all(0 <= each.uncertainty <= 1 for each in found)
    assert (out / "suggested.csv").read_text().count("\n") == 1 + len(found)
    assert read_image(out / "contact-sheet.png").shape[0] == 3


@pytest.mark.parametrize(
    ("images", "labels"), [(None, "labels/**/*"), ("*.jpg", "labels/*.png"), ("day/*/x_*.png", "labels/*/x_*.png")]
)
def test_the_labels_are_found_by_the_wildcards_of_the_images(images: str | None, labels: str, tmp_path: Path) -> None:
    data = DataConfig(root=tmp_path, images=images)
    assert labels_glob(data) == labels
    image = tmp_path / {None: "images/a/1.png", "*.jpg": "1.jpg"}.get(images, "day/a/x_1.png")
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(image)
    ssrseg.suggest(small_segmenter(), data, tmp_path / "out", count=1)
    (pair,) = find_pairs(data.model_copy(update={"labels": labels, "labels_root": tmp_path / "out"}))
    assert pair.image == image


def test_the_printed_words_train_with_the_labels(tmp_path: Path) -> None:
    save_segmenter(small_segmenter(), tmp_path / "model.safetensors")
    for name, side in (("game", 64), ("camera", 72)):
        write_pairs(tmp_path / name, 2, height=side, width=side)
    options = ["--target", "camera", "--count", "1", "--out", "my labels"]
    said = command("suggest", "model.safetensors", *options, cwd=tmp_path)
    words = ["target.root=camera", *shlex.split(said.partition("train with ")[2])]
    (painted,) = (tmp_path / "my labels" / "labels").iterdir()
    Image.fromarray(random_labels(72, 72)).save(painted)
    printed = command("check-data", "--source", "game", *words, "classes=[a, b, c, d]", cwd=tmp_path)
    assert re.search(r"source +target +labelled *\n images +2 +2 +1 ", printed)


def test_what_cannot_be_suggested_is_said(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    with pytest.raises(UserError, match="count of 1 or more"):
        ssrseg.suggest(small_segmenter(), tmp_path, tmp_path / "out", count=0)
