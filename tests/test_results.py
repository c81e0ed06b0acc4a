"""Predictions as they are needed: certainty, raw values, polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from factories import CLASSES, random_image, small_segmenter, write_pairs
from ssrseg.cli import app, use
from ssrseg.config import resolve
from ssrseg.data import code_for, find_pairs, read_labels
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, predict
from ssrseg.inference.results import Kind, polygons, values_of_classes
from ssrseg.models import save_segmenter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_segmenter(small_segmenter().eval(), place)
    return place


def test_the_words_of_the_command_line_are_the_kinds() -> None:
    assert tuple(use.RESULTS.split(", ")) == get_args(Kind)


def test_certainty_is_written_as_it_is(model: Path, tmp_path: Path) -> None:
    image = random_image(48, 64)
    Image.fromarray(image).save(tmp_path / "a.png")
    words = ["predict", str(model), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--write", "ids, confidence,probabilities"])
    assert done.exit_code == 0, done.output
    expected = Predictor(model, "cpu").probabilities(image)
    written = np.load(tmp_path / "out" / "a_probabilities.npy")
    assert written.shape == (len(CLASSES), 48, 64)
    assert np.abs(written - expected.numpy()).max() < 1e-3
    grey = np.asarray(Image.open(tmp_path / "out" / "a_confidence.png"))
    assert np.abs(grey / 255 - expected.amax(0).numpy()).max() < 0.01
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a_ids.png")), expected.argmax(0).numpy())
    done = CliRunner().invoke(app, [*words, "--write", "ids,polygon"])
    assert isinstance(done.exception, UserError)
    assert "no result 'polygon': choose some of ids, color" in str(done.exception)


def test_ids_are_written_in_the_values_of_a_data_set(model: Path, tmp_path: Path) -> None:
    assert values_of_classes("cityscapes", ["road", "Car", "bicycle"]) == [7, 26, 33]
    assert values_of_classes("cityscapes-trainids", ["road", "car"]) == [0, 13]
    Image.fromarray(random_image()).save(tmp_path / "a.png")
    ids = Predictor(model, "cpu")(tmp_path / "a.png").numpy()
    predict(model, tmp_path / "a.png", tmp_path, kinds=["ids"], values="road=7,wall=12,tree=200,car=26", device="cpu")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_ids.png")), np.array([7, 12, 200, 26])[ids])
    with pytest.raises(UserError, match="class 'tree' has no value in cityscapes: say name=value"):
        predict(model, tmp_path / "a.png", tmp_path, values="cityscapes", device="cpu")
    with pytest.raises(UserError, match=r"'folders' is no layout with values: use one of .*cityscapes"):
        values_of_classes("folders", CLASSES)
    with pytest.raises(UserError, match="'300' is no value"):
        values_of_classes("road=300", ["road"])


def test_polygons_hold_their_pixels_and_no_others() -> None:
    ids = np.zeros((40, 50), np.uint8)
    ids[5:30, 5:40] = 1
    ids[10:20, 12:25] = 2  # in a hole
    ids[12:14, 14:16] = 1  # an island in it
    ids[39, 49] = 3
    found = polygons(ids)
    assert [number for number, _ in found] == [0, 1, 1, 2, 3]
    scale = 8
    for number in range(4):
        canvas = Image.new("1", (50 * scale, 40 * scale), 0)
        for _, rings in (one for one in found if one[0] == number):
            part = Image.new("1", canvas.size, 0)
            for i, ring in enumerate(rings):
                ImageDraw.Draw(part).polygon([(x * scale, y * scale) for x, y in ring], fill=i == 0)
            canvas.paste(1, mask=part)
        assert np.array_equal(np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale], ids == number)


def test_polygons_name_their_classes_and_coco_is_read_back(model: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 2, height=48)
    predictor = Predictor(model, "cpu")
    predict(model, tmp_path / "data" / "images", tmp_path / "out", kinds=["geojson", "coco"], device="cpu")
    content = json.loads((tmp_path / "out" / "00.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    shown = {one["properties"]["class"] for one in content["features"]}
    ids = predictor(tmp_path / "data" / "images" / "00.png")
    assert shown == {CLASSES[i] for i in torch.unique(ids).tolist()}
    data = {"root": str(tmp_path / "data"), "spec": "coco", "images": "images/*", "labels": "coco.json"}
    run = resolve({"source": {**data, "labels_root": str(tmp_path / "out")}, "classes": CLASSES})
    for pair in find_pairs(run.source):
        again = read_labels(pair.label, code_for(run.source, run.classes), pair.image)
        assert torch.equal(again.long(), predictor(pair.image))
