"""Predictions as they are needed: certainty, raw values, polygons."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from factories import CLASSES, COLORS, random_image, small_segmenter, write_pairs
from ssrseg.cli import app, use
from ssrseg.config import InferenceConfig, resolve
from ssrseg.data import code_for, find_pairs, read_labels
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, georeference, predict, rasters
from ssrseg.inference.georeference import is_georeferenced
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


def write_geotiff(path: Path) -> np.ndarray:
    """Half a metre a pixel in UTM 32 N; the first rows have no data."""
    image = random_image(48, 64)
    image[:8] = 0
    where = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_500_000)
    layout = {"driver": "GTiff", "height": 48, "width": 64, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", crs="EPSG:32632", transform=where, **layout) as file:
        file.write(np.maximum(image, (np.arange(48) >= 8)[:, None, None]).transpose(2, 0, 1))
    return image


def test_a_geotiffs_results_lie_where_it_does(model: Path, tmp_path: Path) -> None:
    write_geotiff(tmp_path / "field.tif")
    done = predict(model, tmp_path / "field.tif", tmp_path / "out", kinds=["geotiff", "geojson"], device="cpu")
    assert [path.name for path in done.files] == ["field_ids.tif", "field.geojson"]
    with rasterio.open(tmp_path / "field.tif") as source, rasterio.open(done.files[0]) as result:
        assert (result.crs, result.transform, result.nodata) == (source.crs, source.transform, 255)
        ids, known = result.read(1), source.dataset_mask() > 0
        assert result.colormap(1)[0][:3] == COLORS[0]
    assert not known[:8].any()
    assert (ids[~known] == 255).all()
    assert np.array_equal(ids[known], Predictor(model, "cpu")(tmp_path / "field.tif").numpy()[known])
    corners = np.concatenate(
        [
            np.array(ring)
            for one in json.loads(done.files[1].read_text())["features"]
            for ring in one["geometry"]["coordinates"]
        ]
    )
    assert np.allclose(corners[:, 0], 9, atol=1e-3)  # the middle of UTM's zone 32
    assert np.allclose(corners[:, 1], 49.6538, atol=1e-3)


def test_a_large_geotiff_is_written_by_bands(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_geotiff(tmp_path / "field.tif")
    slide = InferenceConfig(mode="slide", window=(32, 32), stride=(24, 24))
    values = ",".join(f"{name}={20 * i + 3}" for i, name in enumerate(CLASSES))
    written = []
    for name, large in (("whole", 2**25), ("bands", 1)):
        monkeypatch.setattr(rasters, "LARGE", large)
        monkeypatch.setattr(georeference, "ROWS", 20)
        options = {"inference": slide, "values": values, "device": "cpu"}
        predict(model, tmp_path / "field.tif", tmp_path / name, kinds=["ids", "geotiff"], **options)
        with rasterio.open(tmp_path / name / "field_ids.tif") as file:
            written.append((file.read(1), file.crs, file.transform, file.colormap(1)))
        with Image.open(tmp_path / name / "field_ids.png") as picture:
            written[-1] += (np.asarray(picture).tolist(),)
    (whole, *more), (bands, *others) = written
    assert np.array_equal(whole, bands)
    assert more == others


def test_what_lies_on_the_earth_needs_rasterio(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_geotiff(tmp_path / "field.tif")
    assert is_georeferenced(tmp_path / "field.tif")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "rasterio" else real(name, *more)
    )
    with pytest.raises(UserError, match=r"needs rasterio: pip install 'ssrseg\[geo\]'"):
        predict(model, tmp_path / "field.tif", tmp_path / "out", kinds=["geojson"], device="cpu")
    Image.fromarray(random_image()).save(tmp_path / "plain.tif")
    assert not is_georeferenced(tmp_path / "plain.tif")
