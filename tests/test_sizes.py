"""Sizes that do not fit: what can be padded is padded, what cannot run is refused before the first step."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from factories import CLASSES, random_image, random_labels, tiny_segmenter, write_pairs
from ssrseg import Predictor, load, resolve, train
from ssrseg.adapt import FeatureDistance, View, build_encoder
from ssrseg.adapt.terms import downscale_labels
from ssrseg.config import Settings, merge, with_words
from ssrseg.config.method import FoundationConfig
from ssrseg.data import resolve_space
from ssrseg.errors import UserError
from ssrseg.inference.sliding_window import slide, whole
from ssrseg.models import Description, Segmenter, build_backbone, build_segmenter, load_segmenter, save_segmenter
from ssrseg.models.segmenter import take_bands
from ssrseg.training import rehearsal, setup
from ssrseg.training.deterministic import refuse_nondeterministic
from ssrseg.training.rehearsal import find_misfit, rehearse

ODD = 97, 131
SWIN, COAT, DLA = (f"timm:{name}" for name in ("swin_tiny_patch4_window7_224", "coat_lite_tiny", "dla46_c"))


def settings(root: Path, **over: Any) -> Settings:
    """DACS with feature distance on 64x64 crops of 80x110; the image with labels is 97x131."""
    if not root.joinpath("val").exists():
        write_pairs(root / "game", 2, height=80, width=110)
        write_pairs(root / "camera", 2, height=80, width=110)
        write_pairs(root / "val", 1, height=ODD[0], width=ODD[1])
    tree = {
        "classes": CLASSES,
        **{
            domain: {"root": root / name} for domain, name in (("source", "game"), ("target", "camera"), ("val", "val"))
        },
        "loader": {"crop": [64, 64], "workers": 0},
        "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"},
        "method": {"teacher": {}, "mixed": {}, "feature_distance": {"classes": ["car"]}},
        "selection": None,
        "train": {"steps": 1, "evaluate_every": 1, "accelerator": "cpu"},
    }
    return resolve(merge(tree, over))


@pytest.fixture(scope="module")
def coat() -> Segmenter:
    """A network that takes one size, built for 64x64."""
    torch.manual_seed(0)
    segmenter = build_segmenter(COAT, "daformer", 4, head_channels=8, size=(64, 64)).eval()
    torch.nn.init.normal_(segmenter.head.classify.weight)
    segmenter.description = Description(COAT, "daformer", CLASSES, head_channels=8, image_size=(64, 64))
    return segmenter


@pytest.mark.parametrize("name", [SWIN, DLA])
def test_backbones_of_some_sizes_take_every_image(name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(name, size=(70, 100)).eval()
        for height, width in ((70, 100), ODD):
            levels = backbone(torch.empty(1, 3, height, width))
            assert [level.shape[2:] for level in levels] == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]


def test_a_padded_image_is_the_image_and_the_mean_colour() -> None:
    torch.manual_seed(0)
    backbone, image = build_backbone(DLA).eval(), torch.rand(1, 3, 70, 100)
    with torch.no_grad():
        levels, padded = backbone(image), backbone(F.pad(image, (0, 28, 0, 26)))
    for level, other in zip(levels, padded, strict=True):
        torch.testing.assert_close(level, other[..., : level.shape[2], : level.shape[3]])


def test_a_network_of_one_size_sees_larger_images_in_windows(coat: Segmenter) -> None:
    assert coat.backbone.sizes.largest == (64, 64)
    image = torch.rand(1, 3, *ODD)
    with pytest.raises(UserError, match=r"up to 64x64 pixels, found 97x131: give it windows .*inference.mode=slide"):
        coat(image)
    with torch.no_grad():
        seen = whole(coat, image)
        assert torch.equal(seen, slide(coat, image, (64, 64), (43, 43)))
        assert torch.equal(seen, slide(coat, image, (512, 512), (341, 341)))  # what the message advises, by default
        assert coat(image[..., :40, :50]).shape == (1, 4, 40, 50)


@pytest.mark.parametrize("name", ["efficientformer_l1", "mvitv2_tiny"])
def test_a_network_of_a_fixed_size_names_the_crop_that_it_takes(name: str) -> None:
    backbone = build_backbone(f"timm:{name}", size=(256, 256))
    with pytest.raises(UserError, match=r"loader\.crop=\[224, 224\] or smaller"):
        backbone(torch.rand(1, 3, 256, 256))
    with torch.no_grad():
        assert len(backbone.eval()(torch.rand(1, 3, 224, 224))) == 4


def test_a_saved_network_of_one_size_is_built_as_it_was(coat: Segmenter, tmp_path: Path) -> None:
    save_segmenter(coat, tmp_path / "coat.safetensors")
    again = load_segmenter(tmp_path / "coat.safetensors")
    assert again.backbone.sizes == coat.backbone.sizes
    image = random_image(*ODD)
    assert torch.equal(Predictor(again, "cpu")(image), Predictor(coat, "cpu")(image))


def test_what_has_one_stride_and_is_no_plain_vit_is_said_to_be_no_pyramid() -> None:
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"no pyramid of four levels: .* all of stride 16") as said,
    ):
        build_backbone("timm:mixer_s16_224")
    for word in ("mit_b2", "timm:convnext_tiny", SWIN, "timm:hiera_tiny_224", "dinov2-s"):
        assert word in str(said.value)


@pytest.mark.parametrize("name", ["timm:vit", "resnet", "mixer"])
def test_an_unknown_backbone_is_refused_with_one_that_works(name: str) -> None:
    with pytest.raises(UserError, match=rf"There is no backbone '{name}'\. Names are mit_b0, ") as said:
        build_backbone(name)
    with torch.device("meta"):
        for near in re.findall(r"for example (\S+)\.$", str(said.value)):
            assert len(build_backbone(near, size=(64, 64)).channels) == 4
    assert ("for example" in str(said.value)) == (name in ("timm:vit", "resnet"))


def test_what_the_message_about_pyramids_advises_works() -> None:
    with torch.device("meta"):
        for word in ("mit_b2", "timm:convnext_tiny", "timm:hiera_tiny_224", "dinov2-s"):  # Swin is built above
            assert len(build_backbone(word, size=(64, 64)).channels) == 4
        config = FoundationConfig(encoder="timm:vit_tiny_patch16_224", weights="none", input_size="native")
        encoder = build_encoder(config, (70, 100)).to("meta")
        assert encoder(torch.empty(1, 3, 70, 100)).shape == (1, 192, 5, 7)


@pytest.mark.parametrize("size", [(64, 96), (70, 100), (72, 104), (130, 200), (33, 33)])
def test_feature_distance_reduces_labels_to_the_features(size: tuple[int, int]) -> None:
    student = tiny_segmenter()
    images, labels = torch.rand(1, 3, *size), torch.from_numpy(random_labels(*size)).long()[None]
    labels[:, :64, :64] = 3
    features = student.encode(images)
    cells = features[-1].shape[-2:]
    term = FeatureDistance(lambda images: features[-1].detach() + 1, len(CLASSES), classes=[3])
    loss = term(View("source", images, labels), features, student)
    padded = torch.full((1, 32 * cells[0], 32 * cells[1]), 255)
    padded[:, : size[0], : size[1]] = labels
    things = downscale_labels(padded, 32, len(CLASSES), 0.75) == 3
    assert things.any() or size == (33, 33)
    torch.testing.assert_close(loss, torch.tensor(10.0).sqrt() * things.any())  # ten channels that are off by one


@pytest.mark.parametrize(
    "over",
    [
        {"loader": {"crop": [70, 100]}, "method": {"masked": {}}},
        {"loader": {"crop": [64, 64]}, "model": {"backbone": COAT}},
    ],
    ids=["crop", "backbone"],
)
def test_odd_sizes_are_trained_on_evaluated_and_predicted(tmp_path: Path, over: dict[str, Any]) -> None:
    run = train(settings(tmp_path, **over), tmp_path / "run")
    image = tmp_path / "val" / "images" / "00.png"
    predicted = Predictor(load(run.folder / "student-last.safetensors"), "cpu")(image)
    assert predicted.shape == ODD
    assert torch.equal(predicted, Predictor(run.student, "cpu")(image))


def test_a_batch_of_one_is_refused_with_sizes_that_work(tmp_path: Path) -> None:
    small = settings(tmp_path, loader={"crop": [32, 32], "batch": 1})
    with pytest.raises(UserError, match=r"crops, 1 of 32x32 pixels \(source\): Expected more than 1 value") as said:
        train(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    words = str(said.value).splitlines()[1].removeprefix("This works: ").rstrip(".").split(" or ")
    assert words == ["loader.batch=2", "'loader.crop=[64, 64]'"]
    for word in words:
        rehearse(with_words(small, shlex.split(word)))
    train(with_words(small, words[:1]), tmp_path / "run")


def test_a_block_larger_than_the_crop_is_refused_with_one_that_works(tmp_path: Path) -> None:
    hidden = settings(tmp_path, method={"masked": {"block": 200}})
    with pytest.raises(UserError, match=r"blocks of 200 pixels: .*\nThis works: method.masked.block=32\."):
        rehearse(hidden)
    rehearse(with_words(hidden, ["method.masked.block=32"]))


def test_words_that_break_another_rule_are_not_advised(tmp_path: Path) -> None:
    method = {"masked": {"images_of": "both"}}
    small = settings(tmp_path, loader={"crop": [32, 32], "target_crop": [32, 32], "batch": 1}, method=method)
    with pytest.raises(UserError, match=r"crops, 1 of 32x32 .*\nThis works: loader.batch=2\."):
        rehearse(small)


def test_advice_is_tried_with_data_where_an_operation_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Segmenter.encode

    def on_data(self: Segmenter, images: torch.Tensor, window: Any = None) -> list[torch.Tensor]:
        if images.is_meta:
            raise NotImplementedError("not without data")
        return encode(self, images)

    monkeypatch.setattr(Segmenter, "encode", on_data)
    monkeypatch.setattr(rehearsal, "SMALL", 0)
    with pytest.raises(UserError, match=r"Expected more than 1 value.*\nThis works: loader.batch=2 or "):
        rehearse(settings(tmp_path, loader={"crop": [32, 32], "batch": 1}, model={"head_channels": 9}))


def test_too_little_memory_says_nothing_about_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Segmenter, images: torch.Tensor, window: Any = None) -> list[torch.Tensor]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(Segmenter, "encode", full)
    assert find_misfit(settings(tmp_path), [ODD], "cpu") is None


def test_the_teacher_is_run_at_the_size_of_the_target(tmp_path: Path) -> None:
    loader = {"crop": [64, 64], "target_crop": [32, 32], "batch": 1}
    labelled = settings(tmp_path, loader=loader, method={"mixed": None, "alignment": {}})
    found = find_misfit(labelled, [])
    assert found is not None
    assert found.setting == "loader.target_crop"


def test_a_network_to_start_from_is_run_as_it_was_built(
    coat: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_segmenter(coat, tmp_path / "coat.safetensors")
    sizes, loads = list[Any](), list[Any]()
    monkeypatch.setattr(setup, "build_segmenter", lambda *a, **k: sizes.append(k["size"]) or build_segmenter(*a, **k))
    monkeypatch.setattr(setup, "load", lambda name: loads.append(name) or load(name))
    again = settings(
        tmp_path, loader={"crop": [32, 32]}, model={"backbone": COAT, "start": str(tmp_path / "coat.safetensors")}
    )
    setup.build_student(again, resolve_space(again.classes, again.source))
    assert len(loads) == 1
    assert find_misfit(again, [], "cpu") is None
    assert sizes == [(64, 64), (64, 64)]


def test_whether_four_bands_can_be_deterministic_is_asked_of_four_bands() -> None:
    network = tiny_segmenter()
    take_bands(network, 4)
    refuse_nondeterministic(network, torch.device("cpu"), (64, 64))


def test_whole_images_that_cannot_pass_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def infer(model: Segmenter, images: torch.Tensor, size: Any) -> torch.Tensor:
        raise RuntimeError("too narrow")

    asked = settings(tmp_path, model={"backbone": "timm:vgg11"})
    assert find_misfit(asked, [(20, 131)]) is None  # small ones are padded
    monkeypatch.setattr(rehearsal, "build_inference", lambda config: infer)
    found = find_misfit(asked, [(20, 131)])
    assert found is not None
    assert found.text == "The student cannot label whole images of 20x131 pixels: too narrow"


def test_the_foundation_encoder_and_alignment_run_at_odd_sizes(tmp_path: Path) -> None:
    foundation = {"encoder": "demo", "input_size": "native"}
    method = {"mixed": None, "alignment": {}, "regularizer": {"foundation": foundation, "views": ["source"]}}
    assert (
        find_misfit(settings(tmp_path, loader={"crop": [70, 100], "target_crop": [61, 93]}, method=method), []) is None
    )


def test_both_images_of_a_masked_view_have_one_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target_crop differs from loader\.crop: the masked view"):
        settings(tmp_path, loader={"target_crop": [32, 64]}, method={"mixed": None, "masked": {"images_of": "both"}})
