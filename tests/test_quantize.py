"""8-bit integers for OpenVINO: where its packages are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factories import CLASSES, COLORS, random_image, tiny_segmenter, write_pairs
from ssrseg.cli.use import export as command
from ssrseg.config import DataConfig
from ssrseg.errors import UserError
from ssrseg.inference import Scores
from ssrseg.inference.quantize import Quantized, quantize
from ssrseg.models import Description, Segmenter


@pytest.fixture
def model() -> Segmenter:
    model = tiny_segmenter().eval()
    model.description = Description("tiny", "daformer", CLASSES, COLORS)
    return model


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxscript, onnxruntime, openvino, nncf: pip install 'ssrseg\[int8\]'"):
        quantize(tiny_segmenter(), tmp_path, tmp_path / "model.xml")


def test_options_that_int8_would_drop_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --static, --labels, --fp16, --opset out"):
        command(tmp_path / "model", tmp_path / "model.xml", int8=tmp_path, fp16=True)
    with pytest.raises(UserError, match="with --int8 only; found spec=camvid"):
        command(tmp_path / "model", tmp_path / "model.onnx", ["spec=camvid"])


def test_the_loss_is_said_in_points_of_miou() -> None:
    right, wrong = torch.tensor([[9, 0], [0, 9]]), torch.tensor([[8, 1], [0, 9]])
    scores = [Scores(("a", "b"), counts) for counts in (wrong, right, wrong)]
    text = str(Quantized(Path("model.xml"), 5, 4, True, *scores))
    assert "ranges of 5 images; on 4 others 94.44% of the pixels have the model's class" in text
    assert text.endswith("mIoU 89.44, the model's is 100.00 (-10.56).")
    assert "without labels" in str(Quantized(Path("model.xml"), 5, 5, False, scores[0], None, None))


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_says_what_it_costs(
    model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: ssrseg[int8]")
    pytest.importorskip("nncf", reason="nncf is not installed: ssrseg[int8]")
    target = write_pairs(tmp_path / "target", 4, height=70, width=100)
    found = quantize(model, target, tmp_path / "out" / "model.xml", size=(64, 96))
    assert (found.calibrated, found.measured, found.apart) == (4, 4, False)
    assert 0.9 < found.agreement.pixel_accuracy < 1
    assert found.before is not None
    assert found.after is not None
    assert (
        found.after.confusion.sum()
        == found.before.confusion.sum()
        == sum(int((np.asarray(Image.open(label)) < len(CLASSES)).sum()) for label in (target / "labels").iterdir())
    )
    loaded = openvino.Core().read_model(found.path)
    assert any(node.get_type_name() == "FakeQuantize" for node in loaded.get_ops())

    Image.fromarray(random_image(45, 83)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(found.example, {})
    with torch.no_grad(), Image.open(tmp_path / "labels.png") as labels:
        assert labels.size == (83, 45)
        images = torch.from_numpy(random_image(45, 83)).permute(2, 0, 1)[None] / 255
        assert (model(images).argmax(1)[0].numpy() == np.asarray(labels)).mean() > 0.8

    unlabelled = DataConfig(root=tmp_path / "target", images="images/*", labels="none/*")
    apart = quantize(model, unlabelled, tmp_path / "other.xml", val=DataConfig(root=target), images=2, size=(64, 96))
    assert (apart.calibrated, apart.measured, apart.apart) == (2, 4, True)
    assert apart.before is not None
    assert quantize(model, unlabelled, tmp_path / "last.xml", size=(64, 96)).before is None
