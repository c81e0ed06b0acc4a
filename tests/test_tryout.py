"""`ssrseg try`: what the page shows of an image, whose models it opens, and the page itself in a browser."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import ssrseg
from browser import CHROMIUM, browsing
from factories import CLASSES, random_image, small_segmenter
from ssrseg.cli import main
from ssrseg.config import dump
from ssrseg.errors import UserError
from ssrseg.inference.tryout import look, models_of, moment, open_models
from ssrseg.models import Segmenter, save_segmenter
from ssrseg.runs.folder import RecipeFolder, RunFolder


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Files of a model and of another of the same classes."""
    files = tmp_path / "adapted.safetensors", tmp_path / "start.safetensors"
    for seed, file in enumerate(files):
        save_segmenter(small_segmenter(seed=seed), file)
    return files


def test_a_look_shows_what_both_models_predict(models: tuple[Path, Path]) -> None:
    pixels = random_image()
    seen = look(open_models(*models, device="cpu"), Image.fromarray(pixels))
    adapted = ssrseg.Predictor(models[0], "cpu")
    ids = adapted(pixels)
    assert np.array_equal(np.asarray(seen.ids), ids.numpy())
    sure = adapted.probabilities(pixels).amax(0)
    assert np.abs(np.asarray(seen.confidence) / 255 - sure.numpy()).max() <= 0.5 / 255 + 1e-6
    shares = [re.findall(r"<td>([\d.]+%)</td>", row) for row in seen.legend.split("<tr>")[2:]]
    both = ssrseg.Predictor(models[1], "cpu")(pixels), ids
    expected = [[f"{float((each == number).float().mean()):.1%}" for each in both] for number in range(len(CLASSES))]
    assert shares == expected
    assert all(name in seen.legend for name in ("source-only", "this model", *CLASSES))
    assert np.any(np.asarray(seen.before) != np.asarray(seen.after))


def test_without_a_start_the_image_itself_is_beside(models: tuple[Path, Path]) -> None:
    pixels = random_image()
    seen = look(open_models(models[0], device="cpu"), pixels)
    assert np.array_equal(np.asarray(seen.before), pixels)
    assert "source-only" not in seen.legend


def test_names_of_classes_are_no_html(models: tuple[Path, Path]) -> None:
    opened = open_models(models[0], device="cpu")
    assert opened[0].description is not None
    names = ("<b>road</b>", *CLASSES[1:])
    opened[0].description = replace(opened[0].description, classes=names)
    legend = look(opened, random_image()).legend
    assert "<b>" not in legend
    assert "<b>road</b>" in html.unescape(legend)


def test_a_folder_is_its_last_student_beside_where_it_began(tmp_path: Path) -> None:
    tree = {"classes": ["a", "b"], "source": {"root": "s"}, "target": {"root": "t"}}
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(dump(ssrseg.resolve({**tree, "model": {"start": "first.safetensors"}})))
    assert models_of(run.path) == (run.student_last, Path("first.safetensors"))
    stages = [{"name": name} for name in ("source", "adapted")]
    recipe = RecipeFolder(tmp_path / "recipe")
    recipe.path.mkdir()
    recipe.config.write_text(dump(ssrseg.resolve({**tree, "stages": stages})))
    with pytest.raises(UserError, match=r"No stage .* has finished: go on with `ssrseg train --resume"):
        models_of(recipe.path)
    students = [recipe.stage(stage["name"]).student_last for stage in stages]
    for number, student in enumerate(students):
        student.parent.mkdir()
        student.touch()
        assert models_of(recipe.path) == (student, students[0] if number else None)


def test_a_video_is_seen_from_its_first_frame_to_its_last(tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 32))
    for grey in (10, 120, 240):
        video.write(np.full((32, 32, 3), grey, np.uint8))
    video.release()
    seen = [float(np.asarray(moment(tmp_path / "clip.avi", at)).mean()) for at in (0, 0.5, 1)]
    assert seen == pytest.approx([10, 120, 240], abs=3)
    (tmp_path / "none.avi").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        moment(tmp_path / "none.avi", 0)


def test_mistakes_are_said_before_the_page_is_there(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = small_segmenter()
    assert other.description is not None
    other.description = replace(other.description, classes=("cat", "dog", "cow", "hen"))
    save_segmenter(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"The start's classes are cat, dog, cow, hen; .* or the model file alone"):
        open_models(models[0], tmp_path / "other.safetensors", device="cpu")
    open_models(models[0], device="cpu")
    with pytest.raises(UserError, match="takes 4 bands: use `ssrseg predict`"), of_four_bands():
        open_models(models[0], device="cpu")
    words = ["ssrseg", "try", str(models[0]), "--device", "cpu"]
    with mock.patch.dict(sys.modules, gradio=None), mock.patch("sys.argv", words), pytest.raises(SystemExit):
        main()
    assert "pip install 'ssrseg[try]'" in capsys.readouterr().err


def of_four_bands() -> mock._patch[int]:
    return mock.patch.object(Segmenter, "in_channels", 4)


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed: ssrseg[try]")
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_dropped_picture_is_labelled_and_its_ids_are_kept(models: tuple[Path, Path], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(random_image()).save(picture)
    words = [sys.executable, "-m", "ssrseg", "try", models[0], "--start", models[1], "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            assert address.startswith("http://127.0.0.1:")
            with browsing(tmp_path / "profile") as page:
                page.call("Page.navigate", url=address)
                page.wait_for("document.querySelector('input[type=file]') !== null")
                page.drop("input[type=file]", picture)
                legend = page.wait_for("document.querySelector('table')?.innerText")
                page.wait_for("document.querySelectorAll('.slider-wrap img, [class*=slider] img').length >= 2")
                page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "down"))
                press = "[...document.querySelectorAll('button, a')].find((one) => one.innerText.includes('class ids'))"
                page.wait_for(f"{press}.click() || true")
                kept = wait_for_file(tmp_path / "down" / "ids.png")
                elsewhere = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
            with urllib.request.urlopen(f"{address.rstrip('/')}/config") as answer:
                assert b'"analytics_enabled":false' in answer.read().replace(b" ", b"")
        finally:
            server.terminate()
    assert all(name in legend for name in ("source-only", *CLASSES))
    assert np.array_equal(kept, ssrseg.Predictor(models[0], "cpu")(picture).numpy())
    assert not elsewhere


def wait_for_file(path: Path, seconds: int = 60) -> npt.NDArray[np.uint8]:
    until = time.monotonic() + seconds
    while not path.is_file():
        assert time.monotonic() < until, f"{path.parent} holds {list(path.parent.glob('*'))}"
        time.sleep(0.2)
    with Image.open(path) as image:
        return np.asarray(image)
