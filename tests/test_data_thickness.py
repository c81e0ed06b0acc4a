"""Classes that are too thin for the network at the size of training: what check-data measures, says and advises."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from ssrseg.config import resolve
from ssrseg.data import refuse_bad_data
from ssrseg.data.checks import inspect, survey
from ssrseg.data.checks.problems import Problem
from ssrseg.data.checks.thickness import CELL, run_lengths, thickness_counts

CLASSES = ["ground", "pole", "box"]


def drawn(width: int = 96, height: int = 64) -> np.ndarray:
    """Ground, an upright pole of 3 pixels and a box of 24."""
    ids = np.zeros((height, width), np.uint8)
    ids[4:60, 10:13] = 1
    ids[30:54, 50:74] = 2
    return ids


def settings(root, ids, *, resize=None, number=1):
    for domain in ("game", "camera"):
        for kind in ("images", "labels"):
            (root / domain / kind).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            noise = np.random.default_rng([i, len(domain)]).integers(0, 255, (*ids.shape, 3), np.uint8)
            Image.fromarray(noise).save(root / domain / "images" / f"{i}.png")
            Image.fromarray(ids).save(root / domain / "labels" / f"{i}.png")
    source = {"root": root / "game"} | ({"resize": resize} if resize else {})
    tree = {"classes": CLASSES, "source": source, "target": {"root": root / "camera"}, "loader": {"crop": [16, 16]}}
    return resolve(tree)


def found(root, ids, **more) -> list[Problem]:
    problems = survey.survey(settings(root, ids, **more)).problems
    return [one for one in problems if one.kind == "thin class"]


def medians(ids: np.ndarray, size: tuple[int, int]) -> list[float]:
    counts = thickness_counts(ids, size, len(CLASSES))
    return ((2 * counts.cumsum(1) < counts.sum(1, keepdim=True)).sum(1) / 100).tolist()


def test_runs_are_counted_from_border_to_border():
    assert run_lengths(np.array([[1, 1, 0, 1], [1, 0, 0, 0]], np.uint8)).tolist() == [[2, 2, 1, 1], [1, 3, 3, 3]]


def test_the_thickness_is_the_shorter_of_the_runs_in_training_pixels():
    ids = drawn()
    assert medians(ids, (96, 64)) == [CELL, 3.0, CELL]
    assert medians(ids.T.copy(), (64, 96)) == [CELL, 3.0, CELL]  # lying, as upright
    assert medians(ids, (48, 32)) == [CELL, 1.5, CELL]
    assert medians(ids, (32, 64)) == [CELL, 1.0, CELL]  # squeezed across
    assert medians(ids, (96, 32)) == [CELL, 3.0, CELL]  # and down
    assert medians(ids, (8, 5))[1:] == pytest.approx([0.25, 1.87])  # 24 * 5 / 64, cut off
    counts = thickness_counts(ids, (96, 64), len(CLASSES))
    assert counts.sum(1).tolist() == [(ids == c).sum() for c in range(3)]
    assert counts[1, 300] == 3 * 56


def test_half_of_the_pixels_decide_and_ignored_ones_do_not():
    ids = drawn()
    ids[4:60, 20:28] = 1  # as tall and 8 wide: two thirds of the poles' pixels
    assert medians(ids, (96, 64))[1] == CELL
    ids = drawn()
    ids[:, 11] = 255  # splits the pole in two
    assert medians(ids, (96, 64))[1] == 1.0


@pytest.mark.parametrize(
    ("resize", "size", "advice", "beyond"),
    [
        (None, "96x64", "[128, 86]", True),
        ([48, 32], "48x32", "[128, 86]", True),
        ([192, 128], None, None, False),
        ({"exact": [32, 64]}, "32x64", "{exact: [128, 256]}", True),
    ],
)
def test_a_thin_class_is_named_with_a_size_that_mends_it(tmp_path, resize, size, advice, beyond):
    problems = found(tmp_path, drawn(), resize=resize)
    if advice is None:
        assert problems == []
        return
    (one,) = problems
    assert not one.fatal
    assert one.text.startswith(
        f"At {size}, the size in training, the median thickness of some classes is less than 4 px:"
    )
    assert f" (4 at resize={advice}" in one.text
    assert ("larger than the images" in one.text) is beyond
    assert "box" not in one.text
    width, height = map(int, re.findall(r"\d+", advice))
    mended = {"exact": [width, height]} if "exact" in advice else [width, height]
    assert found(tmp_path, drawn(), resize=mended) == []


def test_a_size_within_the_images_is_not_called_larger(tmp_path):
    ids = np.kron(drawn(), np.ones((4, 4), np.uint8))
    (one,) = found(tmp_path, ids, resize=[96, 64])
    assert one.text.endswith("pole 3.0 (4 at resize=[128, 86]).")


def test_training_says_so_too_and_thick_classes_are_silent(tmp_path):
    (note,) = refuse_bad_data(settings(tmp_path, drawn()))
    assert "thin class" in note
    assert "larger `resize`" in note
    thick = np.kron(drawn(), np.ones((2, 2), np.uint8))
    assert refuse_bad_data(settings(tmp_path / "thick", thick)) == []


def test_a_sample_of_the_source_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "DECODED", 2)
    sizes = []
    measure = inspect.thickness_counts

    def counted(ids, size, classes):
        sizes.append(size)
        return measure(ids, size, classes)

    monkeypatch.setattr(inspect, "thickness_counts", counted)
    assert len(found(tmp_path, drawn(), number=5)) == 1
    assert sizes == [(96, 64)] * 2
