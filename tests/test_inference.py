from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factories import tiny_segmenter
from ssrseg.config import InferenceConfig, resolve, resolve_group, with_words
from ssrseg.errors import UserError
from ssrseg.inference import evaluating
from ssrseg.inference.sliding_window import averaged, build_inference, predict_ids, slide, whole
from ssrseg.models import Segmenter


@pytest.fixture
def model() -> Segmenter:
    return tiny_segmenter().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))


def pixelwise(images: Tensor) -> Tensor:
    """A network without context: windows cannot matter to it."""
    return torch.cat([images, images.flip(1) ** 2], dim=1)


def places(height: int, width: int, window: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, ...]]:
    """Rows and columns of the windows that `slide` shows to the network."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    seen = []

    def network(crops: Tensor) -> Tensor:
        seen.extend((*map(int, crop[:2, 0, 0]), *map(int, crop[:2, -1, -1])) for crop in crops)
        return crops

    slide(network, torch.stack([rows, columns, rows])[None].float(), window, stride)
    return seen


@torch.no_grad()
def test_whole_resizes_twice(model: Segmenter, images: Tensor) -> None:
    at_input = F.interpolate(model.head(model.encode(images)), images.shape[-2:], mode="bilinear", align_corners=False)
    assert torch.equal(whole(model, images), at_input)
    expected = F.interpolate(at_input, (96, 150), mode="bilinear", align_corners=False)
    assert torch.equal(whole(model, images, (96, 150)), expected)
    once = F.interpolate(model.head(model.encode(images)), (96, 150), mode="bilinear", align_corners=False)
    assert not torch.allclose(expected, once, atol=1e-4)


def test_windows_cover_the_image_and_the_last_is_shifted_back() -> None:
    corners = places(96, 150, (64, 64), (43, 43))
    assert corners == [
        (y, x, y + 63, x + 63) for y in (0, 32) for x in (0, 43, 86)
    ]  # max(150 - 64 + 42, 0) // 43 + 1 = 3 columns
    assert places(64, 64, (64, 64), (43, 43)) == [(0, 0, 63, 63)]


def test_windows_shrink_to_a_small_image() -> None:
    assert places(40, 100, (64, 64), (43, 43)) == [(0, 0, 39, 63), (0, 36, 39, 99)]


def test_slide_does_not_change_what_needs_no_context(images: Tensor) -> None:
    assert torch.allclose(slide(pixelwise, images, (32, 32), (10, 20)), pixelwise(images), atol=1e-6)
    assert torch.allclose(
        slide(pixelwise, images, (32, 32), (20, 20), (96, 100)), whole(pixelwise, images, (96, 100)), atol=1e-5
    )


@torch.no_grad()
def test_slide_with_one_window_is_whole(model: Segmenter, images: Tensor) -> None:
    assert torch.allclose(slide(model, images, (64, 96), (32, 32), (60, 90)), whole(model, images, (60, 90)))


@torch.no_grad()
def test_slide_averages_overlaps_and_batching_changes_nothing(model: Segmenter, images: Tensor) -> None:
    left, right = model(images[..., :64]), model(images[..., 16:])
    expected = torch.zeros(2, 4, 48, 80)
    expected[..., :64] += left
    expected[..., 16:] += right
    expected[..., 16:64] /= 2
    for batch in (1, 2, 64):
        assert torch.allclose(slide(model, images, (48, 64), (48, 48), batch=batch), expected, atol=1e-5)


def test_a_stride_that_leaves_gaps_is_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match="larger than the window"):
        slide(pixelwise, images, (16, 16), (16, 17))


@pytest.mark.parametrize(
    "words",
    [
        ["inference.mode=slide", "inference.window=[256, 256]"],  # the usual stride is one of windows of 512 pixels
        ["model.detail.window=[256, 256]", "model.detail.stride=[256, 257]"],
    ],
)
def test_settings_that_leave_gaps_are_refused_with_a_stride_that_leaves_none(words: list[str]) -> None:
    run = with_words(resolve({"source": {"root": "x"}}), ["train.steps=1"])
    with pytest.raises(UserError, match=r"leaves pixels between windows of \[256, 256\] unseen: set '") as refused:
        with_words(run, words)
    (stride,) = re.findall(r"set '(.*)'", str(refused.value))
    with_words(run, [*words, stride])


@torch.no_grad()
def test_mirror_images_are_averaged_as_probabilities(model: Segmenter, images: Tensor) -> None:
    mirrored = whole(model, images.flip(-1)).flip(-1)
    expected = (whole(model, images).softmax(1) + mirrored.softmax(1)) / 2
    both = averaged(whole, flip=True)
    logits = both(model, images, None)
    assert torch.allclose(logits.softmax(1), expected, atol=1e-6)
    assert torch.allclose(both(model, images.flip(-1), None).flip(-1), logits, atol=1e-5)


@torch.no_grad()
def test_scales_are_averaged_at_the_size_of_the_result(model: Segmenter, images: Tensor) -> None:
    seen: list[tuple[int, ...]] = []

    def network(scaled: Tensor) -> Tensor:
        seen.append(tuple(scaled.shape[-2:]))
        return model(scaled)

    result = averaged(whole, scales=(0.5, 1.0, 1.6))(network, images, (60, 90))
    assert seen == [(24, 40), (48, 80), (77, 128)]
    each = [whole(model, F.interpolate(images, size, mode="bilinear", align_corners=False), (60, 90)) for size in seen]
    expected = torch.stack([logits.softmax(1) for logits in each]).mean(0)
    assert torch.allclose(result.softmax(1), expected, atol=1e-6)
    assert averaged(whole, scales=(0.5,))(model, images, None).shape[-2:] == images.shape[-2:]


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_settings_choose_the_inference(model: Segmenter, images: Tensor, flip: bool) -> None:
    expected = [whole(model, images, (24, 40)), slide(model, images, (32, 48), (16, 40), (24, 40))]
    configs = [
        InferenceConfig(mode="whole", flip=flip),
        InferenceConfig(mode="slide", window=(32, 48), stride=(16, 40), flip=flip),
    ]
    results = [build_inference(config)(model, images, (24, 40)) for config in configs]
    for result, plain in zip(results, expected, strict=True):
        assert torch.equal(result, plain) is not flip
    assert not torch.allclose(*results)


def test_scales_are_a_setting(model: Segmenter, images: Tensor) -> None:
    with torch.no_grad():
        expected = averaged(whole, flip=True, scales=(0.5, 2.0))(model, images, None)
        result = build_inference(InferenceConfig(flip=True, scales=(0.5, 2.0)))(model, images, None)
    assert torch.equal(result, expected)
    for wrong in ([], [0.0]):
        with pytest.raises(UserError, match="scales"):
            resolve_group(InferenceConfig, {"scales": wrong})


def test_predict_ids_takes_bytes(model: Segmenter) -> None:
    image = torch.randint(0, 256, (3, 48, 80), dtype=torch.uint8)
    ids = predict_ids(model, image, whole, (30, 50))
    assert torch.equal(ids, whole(model, image[None] / 255, (30, 50)).argmax(1)[0])
    assert ids.shape == (30, 50)


def test_evaluating_gives_every_module_its_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(1), nn.Dropout())).train()
    model[1][0].eval()
    before = [part.training for part in model.modules()]
    with evaluating(model):
        assert not any(part.training for part in model.modules())
        assert torch.is_inference_mode_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert [part.training for part in model.modules()] == before == [True, True, True, False, True]
