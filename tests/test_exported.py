"""Exported files where a model is asked for: predict, evaluate and Predictor run them, what needs weights does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssrseg
from factories import CLASSES, COLORS, random_image, tiny_segmenter, write_pairs
from ssrseg.config import InferenceConfig
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, choose, export, recalibrate
from ssrseg.inference.export import facts_of
from ssrseg.inference.exported import Exported
from ssrseg.inference.onnx_graph import finish
from ssrseg.models import Description, Segmenter

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE = (64, 96)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    model = tiny_segmenter()
    model.description = Description("tiny", "daformer", CLASSES, COLORS)
    return model


@pytest.fixture(scope="module")
def files(model: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind; tracing is slow, so the last steps of `export` make some of the traced ones."""
    folder = tmp_path_factory.mktemp("exported")
    files = {
        "free": export(model, folder / "free.onnx", size=SIZE).onnx,
        "static": export(model, folder / "static.onnx", size=SIZE, dynamic=False).onnx,
    }
    for name, labels, half in (("labels", True, False), ("fp16", False, True)):
        files[name] = shutil.copy(files["free"], folder / f"{name}.onnx")
        finish(files[name], None, labels=labels, half=half)
    return files


def ids_in(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*_ids.png"))])


@pytest.mark.parametrize("kind", ["free", "static", "labels", "fp16"])
def test_a_file_has_the_pictures_and_scores_of_its_model(
    kind: str, files: dict[str, Path], model: Segmenter, tmp_path: Path
) -> None:
    data = write_pairs(tmp_path / "data", 3, height=SIZE[0], width=SIZE[1])
    for name, opened in (("file", files[kind]), ("model", model)):
        assert len(ssrseg.predict(opened, data / "images", tmp_path / name, device="cpu", engine="auto")) == 3
    assert (ids_in(tmp_path / "file") == ids_in(tmp_path / "model")).mean() >= 0.999
    pictures = [(tmp_path / name / "00_color.png") for name in ("file", "model")]
    assert Image.open(pictures[0]).getpalette() == Image.open(pictures[1]).getpalette()
    scores = [ssrseg.evaluate(opened, data, device="cpu") for opened in (files[kind], model)]
    assert scores[0].miou == pytest.approx(scores[1].miou, abs=1e-3)
    assert scores[0].classes == CLASSES


def test_windows_flips_and_probabilities_are_those_of_the_model(files: dict[str, Path], model: Segmenter) -> None:
    picture = random_image(128, 192)
    averaged = InferenceConfig(flip=True, scales=(0.5, 1))
    assert torch.allclose(
        *(Predictor(one, "cpu", mode=averaged).probabilities(picture) for one in (files["free"], model)), atol=1e-4
    )
    windows = InferenceConfig(mode="slide", window=SIZE, stride=(43, 64))
    found = Predictor(files["static"], "cpu", mode="slide").probabilities(picture)
    assert torch.allclose(found, Predictor(model, "cpu", mode=windows).probabilities(picture), atol=1e-4)


def test_images_are_resized_and_stretched_as_the_description_says(files: dict[str, Path], tmp_path: Path) -> None:
    model, loaded, path = tiny_segmenter(), onnx.load(files["static"]), tmp_path / "model.onnx"
    model.description = Description("tiny", "daformer", CLASSES, COLORS, (96, 64), value_range=(0, 1000))
    loaded.metadata_props[0].value = facts_of(model)
    onnx.save(loaded, path)
    Image.fromarray(random_image(128, 192)[..., 0].astype(np.uint16) * 4).save(tmp_path / "deep.png")
    predictors = [Predictor(one, "cpu") for one in (path, model)]
    assert predictors[0].bound == (96, 64)
    ids = [predictor(tmp_path / "deep.png") for predictor in predictors]
    assert ids[0].shape == (128, 192)
    assert (ids[0] == ids[1]).float().mean() >= 0.999


def test_what_a_file_cannot_do_is_said(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"takes images of 96x64 only.* seen at 80x64: .*--size 80x64.*--mode slide"):
        Predictor(files["static"], "cpu")(random_image(64, 80))
    for how in ({"mode": "slide"}, {"flip": True}, {"scales": (0.5, 1)}):
        with pytest.raises(UserError, match="cannot be averaged: export the model without --labels"):
            Predictor(files["labels"], mode=InferenceConfig(**how))
    with pytest.raises(UserError, match="no probabilities: export the model without --labels"):
        Predictor(files["labels"]).probabilities(random_image(*SIZE))
    for how in ({"engine": "torch"}, {"device": "cuda"}):
        with pytest.raises(UserError, match="its own engine, on the CPU: leave engine and device out"):
            Predictor(files["free"], **how)


def test_pictures_that_do_not_fit_into_the_memory_are_named(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Exported.__call__

    def starved(self: Exported, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] > SIZE[1]:
            raise Exception("[ONNXRuntimeError] : 6 : std::bad_alloc")  # the base class of its own
        return run(self, images)

    monkeypatch.setattr(Exported, "__call__", starved)
    for width in (96, 160):
        Image.fromarray(random_image(64, width)).save(tmp_path / f"{width}.png")
    found = ssrseg.predict(files["free"], tmp_path, tmp_path / "out")
    assert [path.name for path in found.images] == ["96.png"]
    assert "--mode slide" in found.unreadable[tmp_path / "160.png"]


def test_other_files_are_refused(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("text")
    foreign = onnx.load(files["free"])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for name in ("text", "foreign"):
        with pytest.raises(UserError, match=f"{name}.onnx is not what `ssrseg export` makes of a model file"):
            Predictor(tmp_path / f"{name}.onnx")
    for name in ("none.onnx", "none.xml"):
        with pytest.raises(UserError, match="There is no model file"):
            Predictor(tmp_path / name)
    (tmp_path / "model.xml").write_text("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is run by onnxruntime: pip install 'ssrseg\[export\]'"):
        Predictor(files["free"])
    with pytest.raises(UserError, match=r"is run by openvino: pip install 'ssrseg\[openvino\]'"):
        Predictor(tmp_path / "model.xml")


def test_what_needs_weights_refuses_exported_files(files: dict[str, Path], tmp_path: Path) -> None:
    file, refusal = files["free"], "Only predict, evaluate and Predictor take exported files: here give the model"
    write_pairs(tmp_path, 1)
    for needs_weights in (
        lambda: export(file, tmp_path / "again.onnx"),
        lambda: recalibrate(file, tmp_path, tmp_path / "new.safetensors"),
        lambda: choose({"a": file, "b": file}, tmp_path, tmp_path / "new.safetensors"),
        lambda: ssrseg.load(file),
    ):
        with pytest.raises(UserError, match=refusal):
            needs_weights()


def test_a_file_of_openvino_is_run(files: dict[str, Path], model: Segmenter, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: ssrseg[openvino]")
    program = openvino.Core().read_model(files["free"])
    program.set_rt_info(facts_of(model), "ssrseg")
    openvino.save_model(program, tmp_path / "model.xml")
    data = write_pairs(tmp_path / "data", 2, height=SIZE[0], width=SIZE[1])
    for name, opened in (("file", tmp_path / "model.xml"), ("model", model)):
        ssrseg.predict(opened, data / "images", tmp_path / name, device="cpu")
    assert (ids_in(tmp_path / "file") == ids_in(tmp_path / "model")).mean() >= 0.999
    (tmp_path / "model.bin").unlink()
    with pytest.raises(UserError, match=r"model.xml is not what `ssrseg export` makes"):
        Predictor(tmp_path / "model.xml")
