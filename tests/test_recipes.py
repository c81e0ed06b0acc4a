"""The recipes of DACS and Undoing: what their released code does, which is easily read otherwise."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Generator, nn

from factories import tiny_segmenter
from ssrseg.adapt import Batch, FeatureDistance, Learner, Source, Term, View, adapt, pseudo_label
from ssrseg.adapt.alignment import Alignment
from ssrseg.config import LoaderConfig, compose, resolve
from ssrseg.config.data import ExactSize, JitterConfig
from ssrseg.data.cache import ScaledFiles
from ssrseg.data.datasets import SourceImages, TargetImages
from ssrseg.data.label_mapping import LabelCode
from ssrseg.data.layouts import Pair
from ssrseg.data.loader import collate
from ssrseg.data.samplers import Draw
from ssrseg.data.transforms import jitter, rescale_size
from ssrseg.models import BACKBONES, build_segmenter
from ssrseg.models.weights import load_pretrained
from ssrseg.training.loop import to_batch
from ssrseg.training.stages import corrected, planned

RESNETS = ("resnet50v1c", "resnet50-caffe", "resnet50-dilated", "resnet50-frozen")
OWN = {"classes": ["road", "car"], "source": {"root": "game"}, "target": {"root": "camera"}}


def stages(preset: str, *words: str) -> dict:
    """The resolved settings of a recipe's stages that train, by name."""
    settings = resolve(compose(preset, None, {}, [*words, "train.guard.skip=0"]))
    return {stage.name: resolved for stage, resolved, _ in planned(settings, Path("out")) if stage.does == "train"}


def test_every_stage_of_undoing_vgg_trains_a_vgg() -> None:
    assert {stage.model.backbone for stage in stages("undoing-vgg").values()} == {"vgg16-dilated"}
    assert stages("undoing")["distilled"].model.backbone == "resnet101-dilated"
    assert stages("undoing-vgg").keys() == stages("undoing").keys()


def test_jitter_is_that_of_the_release() -> None:
    with_jitter = {name for name, stage in stages("undoing").items() if stage.loader.jitter}
    assert with_jitter == {"align", "refined", "distilled"}
    assert {name for name, stage in stages("undoing-vgg").items() if stage.loader.jitter} == {"align", "refined"}


def test_what_the_user_sets_holds_in_every_stage() -> None:
    quick = stages("undoing", "train.steps=7", "model.backbone=mit_b0", "loader.batch=1")
    assert {(s.train.steps, s.model.backbone, s.loader.batch) for s in quick.values()} == {(7, "mit_b0", 1)}
    assert quick["distilled"].target is None  # a part that the stage has not is not said by those words


def test_source_images_are_stretched_and_never_padded() -> None:
    settings = resolve(compose("undoing", None, {}, []))
    size = rescale_size(1914, 1052, settings.source.resize)
    assert size == (1280, 720) == settings.loader.crop[::-1]
    assert rescale_size(2048, 1024, settings.target.resize) == settings.loader.target_crop[::-1]
    assert resolve({**OWN, "source": {"root": "game", "resize": {"exact": [64, 48]}}}).source.resize == ExactSize(
        exact=(64, 48)
    )


def test_refinement_has_nothing_of_the_recipe_before_it() -> None:
    before = resolve(
        {**OWN, "method": {"segmentation": {"temperature": 1.8, "over_labelled": ["source"]}, "alignment": {}}}
    )
    refined = {s.name: r for s, r, _ in planned(corrected(before, "cr"), Path("out"))}["refined"].method
    assert refined.segmentation.temperature == 1
    assert refined.segmentation.over_labelled == ()
    assert refined.alignment is None
    assert not refined.looks_at_target


def test_jitter_is_applied_to_the_source_alone_at_the_files_own_size(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "image.png")
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "label.png")
    pair = Pair(tmp_path / "image.png", tmp_path / "label.png")
    files, config = ScaledFiles((30, 20)), LoaderConfig(crop=(20, 30), flip=0, max_class_share=1, jitter=JitterConfig())
    source = SourceImages(
        [pair], LabelCode(torch.arange(256, dtype=torch.uint8)), files, config, lambda number, generator: Draw(0)
    )
    target = TargetImages([pair.image], files, (0, 0), config, lambda number, generator: Draw(0))
    plain = files.image(pair.image).whole()
    assert torch.equal(target.draw(0, Generator().manual_seed(1))[0], plain)
    images = [source.draw(0, Generator().manual_seed(seed))[0] for seed in range(3)]
    assert not any(torch.equal(image, plain) for image in images)
    first = jitter(drawn, JitterConfig(), Generator().manual_seed(0))
    Image.fromarray(first).save(tmp_path / "first.png")
    assert torch.equal(images[0], files.image(tmp_path / "first.png").whole())
    with pytest.raises(ValueError, match="jitter comes before resize"):
        LoaderConfig(jitter=JitterConfig(), cache=tmp_path)


def padded(source: float, target: float) -> Batch:
    """A batch whose images end at half the crop's height; what lies beyond has these grey values."""
    generator = Generator().manual_seed(0)
    images = torch.rand(2, 2, 3, 64, 64, generator=generator)
    images[0, :, :, 32:], images[1, :, :, 32:] = source, target
    labels = torch.randint(0, 4, (2, 64, 64), generator=generator)
    inside = torch.zeros(2, 64, 64, dtype=torch.bool)
    inside[:, :32] = True
    labels[~inside] = 255
    return Batch(images[0], labels, images[1], inside, inside, inside)


@pytest.mark.parametrize("name", ["source", "target"])
def test_padding_reaches_no_alignment_loss(name: str) -> None:
    term = Alignment(8, 4)
    term.discriminator = nn.Conv2d(8, 8, 1)  # type: ignore[assignment]
    features = torch.rand(2, 8, 64, 64, generator=Generator().manual_seed(1))
    student = tiny_segmenter()
    student.head = nn.Module()
    student.head.forward = lambda levels: levels[-1][:, :4]  # type: ignore[method-assign]
    batch, losses = padded(0, 0), []
    for beyond in (0.0, 5.0):
        features[:, :, 32:] = beyond
        view = View(name, batch.source, batch.labels, inside=batch.source_inside)
        losses.append(float(term(view, [features], student).detach()))
    assert losses[0] == losses[1]


def test_padding_reaches_neither_trust_nor_feature_distance() -> None:
    inside = padded(0, 0).target_inside
    logits = torch.randn(2, 4, 64, 64, generator=Generator().manual_seed(0))
    trusts, distances = [], []
    for beyond in (0.0, 9.0):
        logits[:, 0, 32:] = beyond
        trusts.append(pseudo_label(logits, inside, 0.5, inside).trust)
        view = View("source", torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64).long(), inside=inside)
        term = FeatureDistance(lambda images: torch.zeros(2, 4, 64, 64), 4)
        distances.append(float(term(view, [logits], tiny_segmenter())))
    assert torch.equal(*trusts)
    assert distances[0] == distances[1]


def test_the_loader_marks_padding_and_only_padding() -> None:
    crop = (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8), "a")
    whole, cut = (*crop, (4, 4)), (*crop, (2, 3))
    raw = collate([(whole, cut), (whole, whole)])
    batch = to_batch(raw, torch.device("cpu"))
    assert batch.source_inside is None
    assert batch.target_inside.sum(dim=(1, 2)).tolist() == [6, 16]
    assert batch.target_inside[0, :2, :3].all()


@pytest.mark.parametrize("name", [*RESNETS, "vgg16-dilated"])
def test_the_weights_that_the_note_names_are_those_that_are_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of the hub: timm's own networks with numbered weights."""
    published: dict[str, nn.Module] = {}
    create = timm.create_model

    def stubbed(architecture: str, *, pretrained: bool = False, **options: object) -> nn.Module:
        torch.manual_seed(7)
        model = create(architecture, pretrained=False, **options)
        if pretrained:
            published["model"] = deepcopy(model)
        return model

    monkeypatch.setattr(timm, "create_model", stubbed)
    segmenter = build_segmenter(name, "deeplabv2", 4, drop_path=0.0)
    torch.manual_seed(8)
    for weight in segmenter.parameters():
        nn.init.normal_(weight)
    record = BACKBONES[name]
    note = load_pretrained(segmenter, "hub", name)
    assert record.timm_name in note
    theirs = published["model"].eval()
    images = torch.rand(1, 3, 96, 96)
    config = theirs.default_cfg
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    own = dict(segmenter.backbone.pyramid.named_parameters())
    first = next(iter(own))
    same = [
        key for key, value in theirs.named_parameters() if key in own and key != first and torch.equal(own[key], value)
    ]
    trained = [key for key, value in theirs.named_parameters() if key in own and key != first]
    assert len(trained) > 10
    # The first layer's bias takes up other statistics.
    assert set(trained) - set(same) <= {"features.0.bias"}
    with torch.no_grad():
        conv = next(layer for layer in segmenter.backbone.modules() if isinstance(layer, nn.Conv2d))
        reference = next(layer for layer in theirs.modules() if isinstance(layer, nn.Conv2d))
        ours = conv((images - segmenter.mean) / segmenter.std)
        expected = reference((images - mean) / std)
        difference = (ours - expected)[:, :, 8:-8, 8:-8]
    # Without a bias, what remains is a constant per channel that the norm behind takes up.
    assert float((difference - difference.mean(dim=(2, 3), keepdim=True)).abs().max()) < 1e-3


def test_fresh_layers_are_named_in_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained=False, **options: create(name, **options))
    note = load_pretrained(build_segmenter("vgg16-dilated", "deeplabv2", 2), "hub", "vgg16-dilated")
    assert "fc6 and fc7, which are random" in note


def test_initial_biases() -> None:
    heads = {
        name: build_segmenter("mit_b0", name, 4).head for name in ("deeplabv2", "deeplabv2-whole", "aspp-attentive")
    }
    assert not any(branch.bias.any() for branch in heads["deeplabv2"].branches)
    assert all(branch.bias.abs().max() > 0 for branch in heads["deeplabv2-whole"].branches)
    assert not heads["aspp-attentive"].fuse[0].bias.any()


def test_a_view_carries_the_mask_to_terms_of_ones_own() -> None:
    seen = []

    class Seeing(Term):
        def forward(self, view: View, features: list[torch.Tensor], student: nn.Module) -> torch.Tensor:
            seen.append(view.inside)
            return features[-1].mean()

    batch = padded(0, 0)
    learner = Learner(tiny_segmenter(), {"seeing": Seeing(["source"])})
    pseudo = pseudo_label(torch.zeros(2, 4, 64, 64), batch.valid, None)
    adapt(learner, lambda *_: pseudo, [Source()], batch, torch.Tensor.backward)
    assert seen[0] is batch.source_inside
