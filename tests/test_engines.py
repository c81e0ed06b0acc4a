from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factories import random_image, small_segmenter, tiny_segmenter
from ssrseg.errors import UserError
from ssrseg.inference import engines, predict
from ssrseg.inference.engines import ENGINES, WORTH, open_engine, pick_device
from ssrseg.models import Segmenter

HERE = [name for name in ("torch", "openvino") if name == "torch" or importlib.util.find_spec(name)]


@torch.no_grad()
@pytest.mark.parametrize("name", HERE)  # a compiler need not be at hand
def test_every_engine_computes_the_model(name: str) -> None:
    model = small_segmenter().eval()
    network = open_engine(model, name)
    assert network is not model
    for shape in ((1, 3, 64, 96), (2, 3, 96, 64), (1, 3, 64, 96), (1, 3, 72, 100)):
        images = torch.rand(shape)
        torch.testing.assert_close(network(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("installed", "images", "chosen"),
    [(True, WORTH, "openvino"), (True, WORTH - 1, "torch"), (False, WORTH, "torch")],
)
def test_auto_is_openvino_where_it_is_and_pays(
    installed: bool, images: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def builder(name: str) -> object:
        def build(segmenter: Segmenter) -> Segmenter:
            built.append(name)
            return segmenter

        return build

    monkeypatch.setattr(engines, "ENGINES", {name: builder(name) for name in ENGINES})
    spec = importlib.machinery.ModuleSpec("openvino", None) if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    open_engine(tiny_segmenter().eval(), images=images)
    assert built == [chosen]


@torch.no_grad()
def test_an_engine_that_is_not_the_model_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_segmenter().eval()

    def fails(segmenter: object) -> object:
        raise RuntimeError("no such device\nand much more")

    def wrong(segmenter: Segmenter) -> object:
        return lambda images: segmenter(images) * 1.01

    def nan(segmenter: Segmenter) -> object:
        return lambda images: segmenter(images) * torch.nan

    for broken, words in (
        (wrong, "differ from the model's by"),
        (nan, "differ from the model's by nan"),
        (fails, "left out: no such device$"),
    ):
        monkeypatch.setattr(engines, "ENGINES", {"compiled": broken, "torch": ENGINES["torch"]})
        with pytest.warns(UserWarning, match=words):
            network = open_engine(model, "compiled")
        images = torch.rand(1, 3, 64, 64)
        assert network is not model
        torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(engines, "ENGINES", {"torch": wrong})
    with pytest.warns(UserWarning, match="torch is left out"):
        assert open_engine(model) is model


def test_unknown_and_absent_engines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no engine 'tensorrt': choose one of auto, torch, compiled, openvino"):
        open_engine(tiny_segmenter(), "tensorrt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs openvino: pip install 'ssrseg\[openvino\]'"):
        open_engine(tiny_segmenter(), "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    with pytest.raises(UserError, match="runs on the CPU; the model is on meta"):
        open_engine(tiny_segmenter().to("meta"), "openvino")


def test_predictions_do_not_depend_on_the_engine(tmp_path: Path) -> None:
    model = tiny_segmenter()
    Image.fromarray(random_image(64, 96)).save(tmp_path / "a.png")
    for name in ("torch", "auto"):
        predict(model, tmp_path / "a.png", tmp_path / name, kinds=["ids"], device="cpu", engine=name)
    first, second = (np.array(Image.open(tmp_path / name / "a_ids.png")) for name in ("torch", "auto"))
    assert np.array_equal(first, second)


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=f"{wrong}.*cannot be used"):
            pick_device(wrong)


@pytest.mark.parametrize(("variable", "rank", "chosen"), [("LOCAL_RANK", "1", 1), ("SLURM_LOCALID", "5", 1)])
def test_every_process_of_a_machine_has_a_gpu_of_its_own(
    variable: str, rank: str, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(variable, rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, device: asked.append(str(device)) or torch.zeros(0))
    for name in ("auto", "cuda", "cuda:0", "cpu"):
        pick_device(name)
    assert asked == [f"cuda:{chosen}"] * 2 + ["cuda:0", "cpu"]
