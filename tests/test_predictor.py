"""One trained model, used on whatever an image comes as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ssrseg
from factories import CLASSES, COLORS, random_image, small_segmenter, tiny_segmenter
from ssrseg.config import InferenceConfig
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, predict
from ssrseg.inference.sliding_window import averaged, predict_ids, slide, whole
from ssrseg.models import Description, Segmenter, save_segmenter


@pytest.fixture
def model() -> Segmenter:
    return tiny_segmenter()


@pytest.fixture
def picture() -> Tensor:
    """RGB bytes (3, 64, 96)."""
    return torch.from_numpy(random_image(64, 96)).permute(2, 0, 1).contiguous()


@torch.no_grad()
def expected_ids(model: Segmenter, image: Tensor) -> Tensor:
    return predict_ids(model.eval(), image, whole, (image.shape[1], image.shape[2]))


def test_an_image_may_come_as_anything(model: Segmenter, picture: Tensor, tmp_path: Path) -> None:
    predictor = Predictor(model, device="cpu")
    expected = expected_ids(model, picture)
    assert len(expected.unique()) > 1
    array = picture.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "a.png")
    same = [
        picture,
        picture.permute(1, 2, 0),
        picture.double() / 255,
        array,
        array[:, ::-1][:, ::-1],
        array.transpose(2, 0, 1),
        (array / 255).astype(np.float32),
        Image.fromarray(array),
        Image.fromarray(array).convert("RGBA"),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ]
    for image in same:
        ids = predictor(image)
        assert ids.dtype == torch.int64
        assert torch.equal(ids, expected)


def test_a_batch_is_its_images_one_by_one(model: Segmenter, picture: Tensor) -> None:
    predictor = Predictor(model, device="cpu")
    batch = torch.stack([picture, picture.flip(-1), 255 - picture])
    expected = torch.stack([predictor(image) for image in batch])
    for images in (batch, batch.permute(0, 2, 3, 1).numpy(), batch.float() / 255):
        assert torch.equal(predictor(images), expected)
    assert predictor.probabilities(batch).shape == (3, 4, 64, 96)


def test_probabilities_belong_to_the_ids(model: Segmenter, picture: Tensor) -> None:
    predictor = Predictor(model, device="cpu")
    probabilities = predictor.probabilities(picture)
    assert probabilities.shape == (4, 64, 96)
    assert probabilities.dtype == torch.float32
    assert probabilities.min() >= 0
    assert torch.allclose(probabilities.sum(0), torch.ones(64, 96))
    assert torch.equal(probabilities.argmax(0), predictor(picture))
    with torch.no_grad():
        exact = model.eval()(picture[None] / 255)[0].softmax(0)
    assert torch.allclose(probabilities, exact, atol=1e-5)
    probabilities[0] += 1  # results are the caller's own


@pytest.mark.parametrize("resize", [None, (48, 32)])
def test_it_predicts_what_predict_writes(resize: tuple[int, int] | None, picture: Tensor, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_segmenter(small_segmenter(resize=resize), model)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    predict(model, tmp_path / "a.png", tmp_path / "out", kinds=["ids"], device="cpu")
    written = torch.from_numpy(np.array(Image.open(tmp_path / "out" / "a_ids.png"))).long()
    predictor = Predictor(model, device="cpu")
    assert torch.equal(predictor(tmp_path / "a.png"), written)
    assert torch.equal(predictor(picture[None])[0], written)
    assert (predictor(picture / 255) == written).float().mean() > 0.95  # bytes are rounded once more after resizing
    assert predictor.description is not None
    assert predictor.description.classes == CLASSES


def test_the_network_sees_the_size_it_was_made_for(model: Segmenter, picture: Tensor) -> None:
    model.description = Description("tiny", "daformer", CLASSES, COLORS, resize=(48, 32))
    sizes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    predictor = Predictor(model, device="cpu")
    sizes.clear()
    assert predictor(picture).shape == predictor(picture / 255).shape == (64, 96)
    assert sizes == [(32, 48), (32, 48)]


def test_modes_are_those_of_the_settings(model: Segmenter, picture: Tensor) -> None:
    settings = InferenceConfig(mode="slide", window=(32, 32), stride=(16, 16), flip=True, scales=(0.5, 1.0))

    def sliding(network: Segmenter, images: Tensor, size: tuple[int, int] | None) -> Tensor:
        return slide(network, images, (32, 32), (16, 16), size)

    with torch.no_grad():
        infer = averaged(sliding, flip=True, scales=(0.5, 1.0))
        expected = infer(model.eval(), picture[None] / 255, None)[0].softmax(0)
    probabilities = Predictor(model, "cpu", mode=settings).probabilities(picture)
    assert torch.allclose(probabilities, expected, atol=1e-5)
    assert not torch.allclose(probabilities, Predictor(model, "cpu").probabilities(picture), atol=1e-3)
    assert Predictor(model, "cpu", mode="slide").inference == InferenceConfig(mode="slide")


def test_the_model_is_left_alone_and_its_training_changes_nothing(model: Segmenter, picture: Tensor) -> None:
    model.train()
    predictor = Predictor(model, device="cpu")
    before = predictor.probabilities(picture)
    assert all(part.training for part in model.modules())
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    torch.optim.SGD(model.parameters(), 1e-5).step()
    assert torch.equal(predictor.probabilities(picture), before)
    assert not torch.equal(Predictor(model, "cpu").probabilities(picture), before)


def test_what_is_no_image_is_refused(model: Segmenter, picture: Tensor, tmp_path: Path) -> None:
    predictor = Predictor(model, device="cpu")
    wrong: list[tuple[object, str]] = [
        (picture[0], r"found the shape \(64, 96\)"),
        (torch.zeros(4, 64, 96), r"found the shape \(96, 4, 64\)|found the shape \(4, 64, 96\)"),
        (picture.int(), "found torch.int32"),
        (picture.float(), r"Floats lie in \[0, 1\]; found 0 to 25"),
        (picture / 255 * torch.nan, "found nan"),
        ([picture], "found list"),
        (tmp_path / "absent.png", "absent.png"),
    ]
    for image, words in wrong:
        with pytest.raises(UserError, match=words):
            predictor(image)  # type: ignore[arg-type]
    assert torch.equal(predictor(picture.float() / 255), predictor(picture))  # what the message about floats says


def test_what_it_is_made_of_is_checked(model: Segmenter) -> None:
    with pytest.raises(UserError, match="'gpu' cannot be used here"):
        Predictor(model, device="gpu")
    with pytest.raises(UserError, match="no engine 'tensorrt': choose one of auto, torch, compiled, openvino"):
        Predictor(model, "cpu", engine="tensorrt")
    with pytest.raises(UserError, match=r"mode.*'whole' or 'slide'.*found 'tiles'"):
        Predictor(model, "cpu", mode="tiles")
    with pytest.raises(UserError, match="no model file"):
        Predictor("absent.safetensors", "cpu")
    assert ssrseg.Predictor is Predictor
