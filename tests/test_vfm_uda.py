"""VFM-UDA: its decoder, losses, teacher and schedule, against numbers worked out by hand from its code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from factories import CLASSES, tiny_segmenter
from ssrseg.adapt import Batch, Learner, Pseudo, Segmentation, Teacher
from ssrseg.adapt.methods import build_method
from ssrseg.config import Settings, read_preset, resolve
from ssrseg.errors import UserError
from ssrseg.models import Segmenter, build_segmenter
from ssrseg.models.heads import HEADS
from ssrseg.planning import licences, needs_of_preset, scaled
from ssrseg.planning.fake_step import fake_step
from ssrseg.training.optim import parameter_groups, scheduled

DECODER = 5e-5 * math.sqrt(8)  # VFM-UDA: the rate grows with the root of the batch


def preset(name: str = "vfm-uda") -> Settings:
    return resolve(read_preset(name))


@pytest.mark.parametrize(("width", "parameters"), [(384, 454_176), (768, 1_811_520), (1024, 3_218_176)])
def test_the_decoder_has_its_parameters(width: int, parameters: int) -> None:
    with torch.device("meta"):
        head = HEADS["upscale"]((width,) * 4, 19)
        assert head([torch.empty(1, width, 80, 80)]).shape == (1, 19, 320, 320)  # 1120 pixels at stride 3.5
    assert sum(weight.numel() for weight in head.parameters() if weight.requires_grad) == parameters


def test_the_decoder_computes_what_its_code_does() -> None:
    torch.manual_seed(0)
    head, tokens = HEADS["upscale"]((8, 8), 3), torch.rand(1, 8, 2, 3)

    def double(maps: Tensor, weight: Tensor) -> Tensor:
        blocks = torch.einsum("bchw,cdij->bdhiwj", maps, weight)  # each place becomes two by two
        return blocks.flatten(4).flatten(2, 3)

    def norm(maps: Tensor) -> Tensor:
        variance, mean = torch.var_mean(maps, dim=1, keepdim=True, correction=0)
        return (maps - mean) / (variance + 1e-6).sqrt()

    layers: Any = head.upscale
    first, second, last = (layers[i].weight for i in (0, 3, 5))
    maps = F.gelu(norm(double(tokens, first)))
    maps = norm(F.conv2d(norm(double(maps, second)), last, padding=1))
    expected = torch.einsum("bchw,kc->bkhw", maps, head.classify.weight[:, :, 0, 0])
    torch.testing.assert_close(head([tokens, tokens]), expected)
    assert not head.classify.bias.any()
    assert HEADS["upscale"]((1024,) * 4, 500).classify.weight.std().item() == pytest.approx(0.1, rel=0.02)


def test_a_vit_gives_the_decoder_the_last_blocks_tokens() -> None:
    segmenter = build_segmenter("timm:test_vit", "upscale", 4, image_scale=1.1).eval()
    assert not segmenter.backbone.pyramid.up
    assert segmenter.backbone.strides == (16, 16, 16, 16)
    image = torch.rand(1, 3, 128, 160)  # of 140.8x176, whole patches are 128x176
    assert segmenter.encode(image)[-1].shape == (1, 64, 8, 11)
    assert segmenter(image).shape == (1, 4, 128, 160)
    with pytest.raises(UserError, match=r"found model\.taps=last: set model\.taps=null"):
        build_segmenter("timm:test_vit", "upscale", 4, taps="last")


def undecided() -> Segmenter:
    """A student that gives four classes the same logit: the cross entropy is ln 4 everywhere."""
    student = tiny_segmenter(dropout=0.0)
    torch.nn.init.zeros_(student.head.classify.weight)
    return student


def test_losses_count_valid_pixels_of_the_source_and_all_of_the_mixture() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, :16] = 255  # a quarter of the source is ignored
    batch = Batch(torch.rand(1, 3, 64, 64), labels, torch.rand(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool))
    pseudo = Pseudo(torch.ones(1, 64, 64, dtype=torch.int64), torch.full((1, 64, 64), 0.5))
    config, values = preset().method, dict[bool, float]()
    for seed in range(8):
        method = build_method(config, undecided(), classes=CLASSES, crop=(64, 64), seed=seed)
        source, mixed = (make(batch, pseudo) for make in method.makers[:2])
        assert method.learner(source)["source/segmentation"].item() == pytest.approx(math.log(4))
        # Of two "classes" one is pasted: the ignored quarter, which weighs nothing, or three quarters that weigh one.
        values[bool((mixed.labels == 255).any())] = method.learner(mixed)["mixed/segmentation"].item()
    assert values[True] == pytest.approx(math.log(4) * 3 / 4 * 0.5)
    assert values[False] == pytest.approx(math.log(4) * (3 / 4 + 1 / 4 * 0.5))


class OfPlaces(Teacher):
    """Gives the first class 0.99 in the first column and 0.95 in the second, whatever the image."""

    def logits(self, images: Tensor) -> Tensor:
        share = torch.tensor([0.99, 0.95]).expand(len(images), 1, 1, 2)
        return torch.cat([share, 1 - share], dim=1).log()


@pytest.mark.parametrize(("flip", "trust"), [(False, 0.5), (True, 1.0)])
def test_the_mirror_image_is_labelled_too(flip: bool, trust: float) -> None:
    teacher = OfPlaces(tiny_segmenter(), flip=flip)  # both means are 0.97, above the threshold of 0.968
    pseudo = teacher(torch.rand(1, 3, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool))
    assert pseudo.trust.flatten().tolist() == pytest.approx([trust, trust])
    assert pseudo.labels.flatten().tolist() == [0, 0]


def test_the_mean_decides_between_an_image_and_its_mirror_image() -> None:
    class Torn(Teacher):
        def logits(self, images: Tensor) -> Tensor:
            share = torch.tensor([0.8, 0.1]).expand(len(images), 1, 1, 2)
            return torch.cat([share, 1 - share], dim=1).log()

    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    assert Torn(tiny_segmenter())(torch.rand(1, 3, 1, 2), valid).labels.flatten().tolist() == [0, 1]
    assert Torn(tiny_segmenter(), flip=True)(torch.rand(1, 3, 1, 2), valid).labels.flatten().tolist() == [1, 1]


def test_the_average_after_a_step_is_the_mean_of_all_so_far() -> None:
    config = preset().method.teacher
    assert config is not None
    student = tiny_segmenter()
    teacher = Teacher(student, **config.model_dump(exclude={"regions"}))
    seen = list[float]()
    for step in range(4):  # before step 1, and with 1, 2 and 3 done: 1/2, 2/3 and 3/4 of the average stay
        with torch.no_grad():
            student.head.classify.bias.fill_(float(step * step))
        teacher.update(student, step)
        seen.append(teacher.segmenter.head.classify.bias[0].item())
    assert seen == pytest.approx([0, 1 / 2, 5 / 3, 14 / 4])
    assert config.decay == 0.999
    assert config.threshold == 0.968


@pytest.mark.parametrize(
    ("step", "share"), [(0, 1e-3), (1499, 1.0), (1500, 0.9625), (20_000, 0.5), (39_999, 1 / 40_000)]
)
def test_the_rate_warms_up_whole_and_drops_onto_the_line(step: int, share: float) -> None:
    settings = preset()
    optim, steps = settings.optim, settings.train.steps
    rates = {group["base_lr"] for group in parameter_groups(learner(), optim)}
    assert sorted(rates) == pytest.approx([DECODER / 10, DECODER], rel=0.005)
    for base in rates:
        assert scheduled(base, optim, step, steps) == pytest.approx(share * base)


def learner() -> Learner:
    return Learner(build_segmenter("timm:test_vit", "upscale", 4), {"segmentation": Segmentation(("source",))})


def test_the_presets_differ_by_their_parts_alone() -> None:
    source, uda, ssr = (read_preset(name) for name in ("source-only-vfm", "vfm-uda", "vfm-ssr"))
    for part in ("teacher", "mixed", "masked"):
        assert part not in source["method"]
        assert uda["method"].pop(part) == ssr["method"].pop(part)
    assert uda["loader"].pop("rare_class") == ssr["loader"].pop("rare_class")
    assert uda == source
    assert ssr["method"].pop("regularizer")["stages"] == [0, 1, 2, 3]
    assert ssr["optim"].pop("layer_decay") == 0.9
    assert {**ssr, "model": source["model"]} == source


@pytest.mark.parametrize(("backbone", "factor", "decay"), [("dinov2-s", 0.05, 0.9), ("mit_b0", 1.0, None)])
def test_quick_slows_a_plain_vit_down(backbone: str, factor: float, decay: float | None) -> None:
    tree = read_preset("quick") | {"source": {"root": "game"}, "target": {"root": "camera"}}
    tree["model"]["backbone"], tree["loader"]["crop"] = backbone, [64, 64]
    optim = resolve(scaled(tree)).optim
    assert (optim.backbone_lr_factor, optim.layer_decay) == (factor, decay)


def test_the_licences_of_a_presets_weights_are_named() -> None:
    assert licences(read_preset("vfm-ssr")) == {"dinov2-b": "apache-2.0", "sam-vit-b": "apache-2.0"}
    assert "non-commercial" in licences(read_preset("mic"))["mit_b5"]


def test_what_a_preset_needs_is_what_plan_says() -> None:
    said = needs_of_preset("quick")
    settings = resolve(
        scaled(
            {
                "classes": "cityscapes19",
                **{role: {"root": role} for role in ("source", "target")},
                "loader": {"crop": [512, 512], "batch": 2},
                "model": {"backbone": "timm:tf_efficientnet_lite0", "head": "segformer", "head_channels": 64},
                "method": {"teacher": {}, "mixed": {}},
            }
        )
    )
    assert f"{fake_step(settings, 'cuda', flops=False).peak / 2**30:.1f} GiB" in said
    assert "batches of 2 crops of 512x512" in said
    assert "600 steps are" in said
