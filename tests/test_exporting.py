from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame

from factories import CLASSES, COLORS, tiny_segmenter
from ssrseg.errors import UserError
from ssrseg.inference import export, graph_signature
from ssrseg.inference.export import _trace, pad_statically
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
    for shape in ((1, 3, 64, 96), (3, 3, 32, 160), (2, 3, 96, 32)):
        images = torch.rand(shape)
        with torch.no_grad():
            expected = model.eval()(images)
        logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        assert logits.shape == expected.shape
        assert torch.allclose(logits, expected, atol=1e-4)


def test_metadata(written: Path) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(written).metadata_props}
    facts = json.loads(metadata["ssrseg"])
    assert facts["description"]["classes"] == list(CLASSES)
    assert facts["description"]["colors"] == [list(color) for color in COLORS]
    assert facts["multiple_of"] == 32
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


def test_a_file_that_is_not_the_model_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_segmenter()
    module = sys.modules["ssrseg.inference.export"]  # the package's `export` is the function
    monkeypatch.setattr(module, "_trace", lambda _, size, dynamic: _trace(tiny_segmenter(seed=1).eval(), size, dynamic))
    with pytest.raises(UserError, match=r"not the model.*nothing was written"):
        export(model, tmp_path / "model.onnx", size=(32, 32), dynamic=False)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxscript, onnxruntime.*pip install 'ssrseg\[export\]'"):
        export(tiny_segmenter(), tmp_path / "model.onnx")


def test_sizes_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiples of 32"):
        export(tiny_segmenter(), tmp_path / "model.onnx", size=(64, 100))
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
