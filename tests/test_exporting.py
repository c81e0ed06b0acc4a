from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers.conv2d_same import Conv2dSame
from timm.models.vision_transformer_sam import Attention

from factories import CLASSES, COLORS, random_image, tiny_segmenter
from ssrseg.errors import UserError
from ssrseg.inference import export, graph_signature
from ssrseg.inference.export import OPSET, ExportReport, _trace, pad_statically
from ssrseg.models import Description, Segmenter, build_segmenter

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> Segmenter:
    model = tiny_segmenter()
    model.description = Description("tiny", "daformer", CLASSES, COLORS, (128, 64))
    return model


@pytest.fixture(scope="module")
def written(model: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("export") / "model.onnx", size=(64, 96)).onnx


def test_dynamic_file_meets_torch_at_any_size(model: Segmenter, written: Path) -> None:
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 96), (3, 3, 32, 160), (2, 3, 96, 32), (1, 3, 51, 77), (2, 3, 20, 33)):
        images = torch.rand(shape)
        mean, rest = model.mean, (0, -shape[3] % 32, 0, -shape[2] % 32)
        with torch.no_grad():
            expected = model.eval()(F.pad(images - mean, rest) + mean)[..., : shape[2], : shape[3]]
        logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        assert logits.shape == expected.shape
        assert torch.allclose(logits, expected, atol=1e-4)


def test_half_precision_goes_with_any_size(model: Segmenter, tmp_path: Path) -> None:
    report = export(model, tmp_path / "half.onnx", size=(64, 96), half=True)
    assert report.size is None
    loaded = onnx.load(report.onnx)
    assert onnx.TensorProto.FLOAT16 in {weights.data_type for weights in loaded.graph.initializer}
    session = onnxruntime.InferenceSession(report.onnx, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 51, 77), (2, 3, 64, 32)):
        images = torch.rand(shape)
        mean, rest = model.mean, (0, -shape[3] % 32, 0, -shape[2] % 32)
        with torch.no_grad():
            expected = model.eval()(F.pad(images - mean, rest) + mean)[..., : shape[2], : shape[3]].argmax(1)
        (found,) = session.run(None, {"images": images.numpy()})
        assert found.argmax(1).shape == expected.shape
        assert (found.argmax(1) == expected.numpy()).mean() > 0.99


def test_metadata(written: Path) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(written).metadata_props}
    facts = json.loads(metadata["ssrseg"])
    assert facts["description"]["classes"] == list(CLASSES)
    assert facts["description"]["colors"] == [list(color) for color in COLORS]
    assert facts["multiple_of"] == 1
    assert [path.name for path in written.parent.iterdir()] == ["model.onnx"]


def test_fixed_size(tmp_path: Path) -> None:
    model = tiny_segmenter().train()
    report = export(model, tmp_path / "deep" / "model.onnx", size=(50, 70), dynamic=False)
    assert all(part.training for part in model.modules())
    assert report.equal_labels >= 0.9999
    assert report.max_difference < 1e-4
    assert f"{report.max_difference:.1e}" in str(report)
    shape = onnx.load(report.onnx).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 50, 70]


def test_the_printed_script_labels_a_picture(model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in the graph, in half precision, of a set opset, and an image that has to be padded."""
    report = export(model, tmp_path / "half.onnx", size=(50, 70), dynamic=False, labels=True, half=True, opset=OPSET)
    loaded = onnx.load(report.onnx)
    assert loaded.opset_import[0].version == OPSET
    assert {onnx.TensorProto.FLOAT16} <= {weights.data_type for weights in loaded.graph.initializer}
    (output,) = loaded.graph.output
    assert (output.name, output.type.tensor_type.elem_type) == ("labels", onnx.TensorProto.UINT8)
    assert "takes one image of 70x50; on random images" in str(report)
    picture = random_image(50, 70)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    assert len(report.example.splitlines()) <= 22
    exec(report.example, {})
    with Image.open(tmp_path / "labels.png") as labels:
        ids = np.asarray(labels)
    with torch.no_grad():
        images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        expected = model.eval()(images).argmax(1)[0].numpy()
    assert (ids == expected).mean() > 0.99


def test_the_script_of_a_file_that_gives_logits_works_too(
    model: Segmenter, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(random_image(45, 83)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(ExportReport(written, 0.0, 1.0).example, {})
    with Image.open(tmp_path / "labels.png") as labels:
        assert labels.size == (83, 45)


def test_a_file_that_is_not_the_model_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_segmenter()
    module = sys.modules["ssrseg.inference.export"]  # the package's `export` is the function
    monkeypatch.setattr(module, "_trace", lambda _, *more: _trace(tiny_segmenter(seed=1).eval(), *more))
    with pytest.raises(UserError, match=r"not the model.*nothing was written"):
        export(model, tmp_path / "model.onnx", size=(32, 32), dynamic=False)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxscript, onnxruntime.*pip install 'ssrseg\[export\]'"):
        export(tiny_segmenter(), tmp_path / "model.onnx")


def test_sizes_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"opset {OPSET} or later, not 11"):
        export(tiny_segmenter(), tmp_path / "model.onnx", opset=11)
    with pytest.raises(UserError, match=r"\.onnx"):
        export(tiny_segmenter(), tmp_path / "model.pt")


def test_a_model_that_torch_cannot_export_is_said_so(tmp_path: Path) -> None:
    class Stubborn(type(tiny_segmenter())):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.sum() > 0:
                return super().forward(images)
            return images

    model = tiny_segmenter()
    model.__class__ = Stubborn
    with pytest.raises(UserError, match="cannot export this model"):
        export(model, tmp_path / "model.onnx", size=(32, 32), dynamic=False)
    assert not list(tmp_path.iterdir())


def test_signature_tells_graphs_not_weights(model: Segmenter) -> None:
    signature = graph_signature(model)
    assert signature == graph_signature(tiny_segmenter(seed=1))
    assert signature != graph_signature(tiny_segmenter(5))
    assert signature.flops > 0
    assert signature.buffers["mean"] == (1, 3, 1, 1)
    assert signature.parameters.keys() == dict(model.named_parameters()).keys()

    deeper = tiny_segmenter()
    deeper.head.classify = torch.nn.Sequential(deeper.head.classify, torch.nn.ReLU())
    assert graph_signature(deeper).operators != signature.operators


def test_tensorflows_padding_is_made_constant() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_segmenter("timm:tf_efficientnet_lite0", "daformer", 4, head_channels=8).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        before = model(images)
        pad_statically(model)
        torch.testing.assert_close(model(images), before)
    assert not any(isinstance(module, Conv2dSame) for module in model.modules())


def test_attention_of_sam_is_exported(tmp_path: Path) -> None:
    model = tiny_segmenter().eval()
    pyramid, channels = model.backbone.pyramid, model.backbone.channels[-1]
    attention = Attention(channels, num_heads=2, use_rel_pos=True, input_size=(2, 2)).eval()

    class Attending(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pyramid, self.attention = pyramid, attention

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            *rest, last = self.pyramid(images)
            return [*rest, self.attention(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]

    model.backbone.pyramid = Attending()
    report = export(model, tmp_path / "model.onnx", size=(64, 64), dynamic=False)
    assert report.max_difference is not None
    assert report.max_difference < 1e-4
