from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factories import random_image, small_segmenter, tiny_segmenter
from ssrseg.errors import UserError
from ssrseg.inference import engines
from ssrseg.inference.engines import ENGINES, Engine, open_engine
from ssrseg.inference.predict import predict
from ssrseg.inference.prefetch import Behind, ahead
from ssrseg.inference.sliding_window import evaluating
from ssrseg.models.fused import fuse

HERE = [name for name, engine in ENGINES.items() if not engine.missing and "cpu" in engine.devices]


@pytest.mark.parametrize("name", sorted(set(HERE) - {"compiled"}))  # a compiler need not be at hand
def test_every_engine_computes_the_model(name: str) -> None:
    model = tiny_segmenter() if name == "onnxruntime" else small_segmenter()  # its exporter takes minutes else
    network = open_engine(model, name)
    assert network is not model
    assert model.training
    for shape in ((1, 3, 64, 96), (2, 3, 96, 64), (1, 3, 64, 96), (1, 3, 72, 100)):
        images = torch.rand(shape)
        with evaluating(model):
            torch.testing.assert_close(network(images), model(images), rtol=1e-3, atol=1e-4)


def test_auto_takes_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, built = tiny_segmenter(), []

    def build(segmenter: torch.nn.Module) -> torch.nn.Module:
        built.append("slow to open")
        return fuse(segmenter)

    monkeypatch.setattr(engines, "ENGINES", {"other": Engine(build, worth=10), "torch": ENGINES["torch"]})
    open_engine(model, images=9)
    assert built == []
    open_engine(model, images=10)
    assert built == ["slow to open"]


@pytest.mark.parametrize("slow", ["other", "torch"])
def test_auto_takes_the_faster_of_two(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def named(name: str) -> Engine:
        def build(segmenter: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
            def run(images: torch.Tensor) -> torch.Tensor:
                ran.append(name)
                time.sleep(0.5 if name == slow else 0)
                return segmenter(images)

            return run

        return Engine(build, worth=1)

    monkeypatch.setattr(engines, "ENGINES", {"other": named("other"), "torch": named("torch")})
    network = open_engine(tiny_segmenter().eval(), images=1)
    ran.clear()
    network(torch.rand(1, 3, 32, 32))
    assert ran == [{"other": "torch", "torch": "other"}[slow]]


def test_an_engine_that_is_not_the_model_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_segmenter()

    def fails(segmenter: object) -> object:
        raise RuntimeError("no such device\nand much more")

    wrong = Engine(lambda segmenter: lambda images: segmenter(images) * 1.01, worth=1)
    nan = Engine(lambda segmenter: lambda images: segmenter(images) * torch.nan, worth=1)
    for broken, words in (
        (wrong, "differ from the model's by"),
        (nan, "differ from the model's by nan"),
        (Engine(fails, worth=1), "left out: no such device$"),
    ):
        monkeypatch.setattr(engines, "ENGINES", {"other": broken, "torch": ENGINES["torch"]})
        with pytest.warns(UserWarning, match=words):
            network = open_engine(model, "auto")
        with evaluating(model):
            images = torch.rand(1, 3, 64, 64)
            torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(engines, "ENGINES", {"torch": wrong})
    with pytest.warns(UserWarning, match="torch is left out"):
        assert open_engine(model) is model


def test_unknown_and_absent_engines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no engine 'tensorrt': choose one of auto, openvino.*torch"):
        open_engine(tiny_segmenter(), "tensorrt")
    with pytest.raises(UserError, match="runs on cuda; the model is on cpu"):
        open_engine(tiny_segmenter(), "cuda-graphs")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs openvino: pip install 'ssrseg\[openvino\]'"):
        open_engine(tiny_segmenter(), "openvino")


def test_predictions_do_not_depend_on_the_engine(tmp_path: Path) -> None:
    model = tiny_segmenter()
    Image.fromarray(random_image(64, 96)).save(tmp_path / "a.png")
    for name in ("torch", "auto"):
        predict(model, tmp_path / "a.png", tmp_path / name, kinds=["ids"], device="cpu", engine=name)
    first, second = (np.array(Image.open(tmp_path / name / "a_ids.png")) for name in ("torch", "auto"))
    assert np.array_equal(first, second)


def test_items_made_ahead_come_in_order_and_errors_in_their_turn() -> None:
    assert list(ahead(range(7))) == list(range(7))
    assert list(ahead([])) == []
    made = []

    def source() -> object:
        for i in range(5):
            made.append(i)
            yield i
        raise ValueError("five")

    items = ahead(source(), 2)
    assert next(items) == 0
    assert [next(items) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(items)
    assert made == list(range(5))


def test_jobs_behind_are_done_in_order_and_errors_are_raised() -> None:
    done: list[int] = []
    with Behind() as writing:
        for i in range(7):
            writing.do(lambda i=i: done.append(i))
    assert done == list(range(7))

    def fails() -> None:
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"), Behind() as writing:
        writing.do(fails)
