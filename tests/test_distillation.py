"""Distillation, affinity and regions: what they ask of the student, what they leave, and what they share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from factories import CLASSES, tiny_frozen, tiny_segmenter
from ssrseg.adapt import Affinity, Batch, Distillation, Method, Pseudo, Regions, Source, View, adapt, build_method
from ssrseg.adapt.distillation import Standardize
from ssrseg.adapt.regions import cluster, refine
from ssrseg.config import with_words
from ssrseg.config.method import (
    AffinityConfig,
    DistillationConfig,
    MethodConfig,
    MixedConfig,
    RegionsConfig,
    RegularizerConfig,
    TeacherConfig,
)
from ssrseg.data import train_batches
from ssrseg.data.masks import read_masks
from ssrseg.errors import UserError
from ssrseg.models import load_segmenter
from ssrseg.runs.folder import RunFolder
from ssrseg.runs.records import method_name
from ssrseg.training import Extensions, train
from ssrseg.training.loop import Observer, StepResult
from test_training import settings_for

ALL = MethodConfig(
    teacher=TeacherConfig(regions=RegionsConfig()),
    mixed=MixedConfig(),
    regularizer=RegularizerConfig(stages=(3,)),
    distillation=DistillationConfig(views=("source", "target"), clean=False),
    affinity=AffinityConfig(),
)


def batch(height: int = 64, width: int = 96) -> Batch:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, len(CLASSES), (2, height // 8, width // 8), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    source, target = torch.rand(2, 2, 3, height, width, generator=generator)
    valid = torch.ones(2, height, width, dtype=torch.bool)
    valid[:, :6] = False
    return Batch(source, labels, target, valid)


def build(config: MethodConfig) -> Method:
    torch.manual_seed(1)
    return build_method(config, tiny_segmenter(), classes=CLASSES, crop=(64, 96), foundation=tiny_frozen())


def step(made: Method) -> dict[str, Tensor]:
    made.teacher.update(made.learner.student, 0)
    return adapt(made.learner, made.teacher, made.makers, batch(), lambda loss: loss.backward())


@pytest.mark.parametrize("name", ["distillation", "affinity"])
def test_the_gradient_reaches_the_backbone_and_what_is_learned(name: str) -> None:
    made = build(MethodConfig().model_copy(update={name: getattr(ALL, name)}))
    view = made.makers[0](batch(), Pseudo(batch().labels, torch.ones(2, 64, 96)))
    loss = made.learner(view)[f"source/{name}"]
    assert loss > 0
    loss.backward()
    gradients = {key: weight.grad for key, weight in made.learner.named_parameters() if weight.grad is not None}
    backbone = [key for key, _ in made.learner.named_parameters() if key.startswith("student.backbone.")]
    assert all(gradients[key].any() for key in backbone if key.endswith("0.weight"))
    assert {key for key in gradients if "terms." in key} == {
        key for key, _ in made.learner.named_parameters() if "terms." in key
    }
    assert not any(key.startswith("student.head.") for key in gradients)


def test_a_step_has_all_losses_and_encodes_the_same_images_once() -> None:
    made, seen = build(ALL), list[Tensor]()
    (encoder,) = made.frozen
    features = encoder.features
    encoder.features = lambda images: (seen.append(images), features(images))[1]
    losses = step(made)
    assert losses.keys() == {
        *(f"{view}/segmentation" for view in ("source", "mixed")),
        *(f"{view}/regularizer" for view in ("source", "mixed")),
        *(f"{view}/affinity" for view in ("source", "mixed")),
        *(f"{view}/distillation" for view in ("source", "target")),
    }
    assert len(seen) == 3  # the target for its labels and its view, source and mixed
    assert all(loss.isfinite() for loss in losses.values())


def test_the_loss_is_nothing_where_the_student_is_the_encoder() -> None:
    student, images = tiny_segmenter().eval(), batch().source
    features = student.encode(images)
    view, same = View("source", images, batch().labels), lambda images: features[3].detach()
    assert Affinity(same, stage=3)(view, features, student) == 0
    term = Distillation(same, 10, 10, standardize=False)
    term.project = nn.Identity()
    assert term(view, features, student).abs() < 1e-6
    opposite = Distillation(lambda images: -features[3].detach(), 10, 10, standardize=False)
    opposite.project = nn.Identity()
    apart = nn.functional.smooth_l1_loss(features[3], -features[3])
    torch.testing.assert_close(opposite(view, features, student), 0.9 * 2 + 0.1 * apart)


def test_pairs_that_the_encoder_is_not_sure_of_do_not_count() -> None:
    theirs = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]).T.view(1, 2, 1, 3)  # cosines 0.6, -1, -0.6
    ours = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).T.view(1, 2, 1, 3)
    view = View("source", torch.zeros(1, 3, 32, 96), torch.zeros(1, 32, 96))
    term = Affinity(lambda images: theirs, stage=0, unclear=(-0.7, 0.7))
    clear = term(view, [ours], tiny_segmenter())  # the diagonal, and the first and last: cosine 0 against -1
    torch.testing.assert_close(clear, torch.tensor(2 / 5))
    inside = torch.ones(1, 32, 96, dtype=torch.bool)
    inside[:, :, 64:] = False
    alone = View("source", view.images, view.labels, inside=inside)
    assert term(alone, [ours], tiny_segmenter()) == 0


def test_channels_are_standardised_by_the_first_batches_alone() -> None:
    generator, standardize = torch.Generator().manual_seed(0), Standardize(2, calls=3)
    scale, shift = torch.tensor([300.0, 0.1]).view(1, 2, 1, 1), torch.tensor([-50.0, 7.0]).view(1, 2, 1, 1)
    batches = [torch.randn(2, 2, 32, 32, generator=generator) * scale + shift for _ in range(4)]
    first = [standardize(each) for each in batches[:3]]
    after = standardize(batches[0])
    assert torch.equal(after, standardize(batches[0]))
    for maps in (first[0], after):
        assert maps.mean(dim=(0, 2, 3)).abs().max() < 0.1
        assert (maps.std(dim=(0, 2, 3)) - 1).abs().max() < 0.1


def test_the_encoder_sees_clean_images_where_the_student_sees_others() -> None:
    view = Source(lambda images: 1 - images)(batch(), Pseudo(batch().labels, batch().valid.float()))
    assert view.clean is not None
    assert torch.equal(view.clean, batch().source)
    assert Source()(batch(), Pseudo(batch().labels, batch().valid.float())).clean is None
    seen, student = list[Tensor](), tiny_segmenter()
    for clean in (True, False):
        term = Distillation(lambda images: (seen.append(images), tiny_frozen()(images))[1], 8, 10, clean=clean)
        term(view, student.encode(view.images), student)
    assert torch.equal(seen[0], batch().source)
    assert torch.equal(seen[1], 1 - batch().source)


def test_clusters_are_what_looks_alike_and_draw_nothing() -> None:
    features = torch.zeros(2, 3, 8, 12)
    features[:, 0] = 1
    features[0, :, :, 5:] = torch.tensor([0.0, 2.0, 0.0]).view(3, 1, 1)
    features[1, :, 3:] = torch.tensor([0.0, 0.0, 0.5]).view(3, 1, 1)
    before = torch.get_rng_state()
    found = cluster(features, 2)
    assert torch.equal(before, torch.get_rng_state())
    for ids, alike in zip(found, features.argmax(dim=1), strict=True):
        pairs = ids.flatten()[:, None] == ids.flatten()
        assert torch.equal(pairs, alike.flatten()[:, None] == alike.flatten())
    noise = torch.rand(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    assert len(cluster(noise, 24).unique()) > 12


def test_a_region_takes_the_label_that_most_of_it_has() -> None:
    regions = torch.tensor([[[1, 1, 2, 2, 0, 1]]])
    first = torch.tensor([0.9, 0.4, 0.9, 0.2, 0.1, 0.8])
    probabilities = torch.stack([first, 1 - first]).view(1, 2, 1, 6)
    pseudo = Pseudo(probabilities.argmax(dim=1), torch.full((1, 1, 6), 0.5))
    valid = torch.tensor([[[True, True, True, True, True, False]]])
    refined = refine(pseudo, probabilities, regions, valid, 0.6, 3)
    assert refined.labels.tolist() == [[[0, 0, 0, 1, 1, 0]]]  # the second is mended; region 2 has no majority
    torch.testing.assert_close(refined.trust, torch.tensor([[[0.7, 0.7, 0.55, 0.45, 0.5, 0.0]]]))


def test_a_teacher_with_regions_trusts_by_pixel_and_not_in_margins_or_padding() -> None:
    made = build(ALL)
    made.teacher.update(made.learner.student, 0)
    inside = torch.ones(2, 64, 96, dtype=torch.bool)
    inside[:, :, 80:] = False
    pseudo = made.teacher(batch().target, batch().valid & inside, inside)
    assert not pseudo.trust[:, :6].any()
    assert not pseudo.trust[:, :, 80:].any()
    assert len(pseudo.trust[:, 6:, :80].unique()) > 4
    assert pseudo.trust.max() <= 1
    regions = made.teacher.regions
    assert isinstance(regions, Regions)
    assert regions.encoder is made.frozen[0]


def test_a_view_of_the_target_is_made_where_it_is_named() -> None:
    source_only = MethodConfig(distillation=DistillationConfig())
    assert not source_only.looks_at_target
    named = MethodConfig(distillation=DistillationConfig(views=("source", "target")))
    assert named.looks_at_target
    assert step(build(named)).keys() == {"source/segmentation", "source/distillation", "target/distillation"}
    assert method_name({"method": named.model_dump()}) == "source-only + distillation"
    assert method_name({"method": ALL.model_dump()}) == "DACS + SSR + distillation + affinity + regions"


class Power(Observer):
    """Fails after two steps."""

    def stepped(self, result: StepResult) -> None:
        if result.step == 3:
            raise KeyboardInterrupt


def test_a_run_is_resumed_bit_for_bit_and_leaves_no_trace_in_the_model(tmp_path: Path) -> None:
    encoder = {"foundation": {"encoder": "demo", "weights": "none", "input_size": "native"}}
    method = {"teacher": {"regions": encoder}, "distillation": encoder, "affinity": encoder}
    method |= {"masked": None, "feature_distance": None, "regularizer": None}
    settings = settings_for(tmp_path, method=method, val=None, selection=None)
    whole, other = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "other")
    train(settings, whole.path)
    with pytest.raises(KeyboardInterrupt):
        train(settings, other.path, extensions=Extensions(observers=[Power()]))
    train(None, other.path, resume=True)
    states = [torch.load(folder.checkpoint, weights_only=True) for folder in (whole, other)]
    learners = [state["learner"] for state in states]
    assert learners[0].keys() == learners[1].keys()
    assert all(torch.equal(value, learners[1][name]) for name, value in learners[0].items())
    assert {"terms.distillation.project.0.weight", "terms.distillation.standardize.count"} <= learners[0].keys()
    assert not any("rel_pos" in name or "patch_embed" in name for name in learners[0])
    for word in ("method.distillation.stage=2", "method.distillation.foundation.level=-2", "method.affinity=null"):
        with pytest.raises(UserError, match=re.escape(word.partition("=")[0])):
            train(with_words(settings, [word, "train.steps=6"]), other.path, resume=True)
    deployed = load_segmenter(whole.student_last).state_dict()
    assert {f"student.{name}" for name in deployed} == {name for name in learners[0] if name.startswith("student.")}


def write_masks(root: Path, ids: npt.NDArray[Any]) -> None:
    (root / "masks").mkdir(exist_ok=True)
    for image in (root / "images").glob("*.png"):
        Image.fromarray(ids).save(root / "masks" / image.name)


MASKED = {
    "method": {"teacher": {"regions": {"of": "masks"}}, "masked": None, "feature_distance": None, "regularizer": None},
    "target": {"masks": "masks/**/*"},
}


def test_masks_are_cropped_and_mirrored_with_their_images_and_refine_the_labels(tmp_path: Path) -> None:
    """A mask for each block of the picture: pixels of one value are one region, whatever was cropped."""
    settings = settings_for(tmp_path, **MASKED, loader={"crop": [48, 48]}, val=None, selection=None)
    for number, image in enumerate(sorted((tmp_path / "camera" / "images").glob("*.png"))):
        pixels = np.asarray(Image.open(image)).astype(np.int64)
        ids = np.unique(pixels @ [1, 256, 65536], return_inverse=True)[1].reshape(64, 64)
        (tmp_path / "camera" / "masks").mkdir(exist_ok=True)
        Image.fromarray((300 * ids if number else ids + 1).astype(np.uint16)).save(
            tmp_path / "camera" / "masks" / image.name
        )
    raw = next(iter(train_batches(settings)))
    assert raw.regions is not None
    assert raw.valid.dtype == torch.bool
    assert raw.valid.all()
    for image, regions in zip(raw.target.long(), raw.regions, strict=True):
        color = (image * torch.tensor([1, 256, 65536]).view(3, 1, 1)).sum(dim=0).flatten()
        assert torch.equal(color[:, None] == color, regions.flatten()[:, None] == regions.flatten())
    seen = list[Pseudo]()

    class Labels(Observer):
        def labelled(self, pseudo: Pseudo, valid: Tensor) -> None:
            seen.append(pseudo)

    train(settings, tmp_path / "run", extensions=Extensions(observers=[Labels()]))
    assert len(seen) == 4
    assert all(len(pseudo.trust.unique()) > 10 for pseudo in seen)


def test_masks_that_cannot_be_are_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target\.masks and method\.teacher\.regions\.of: masks need each other"):
        settings_for(tmp_path, target={"masks": "masks/**/*"})
    settings = settings_for(tmp_path, **MASKED)
    with pytest.raises(UserError, match=r"target\.masks are matched .* no label matching 'masks/\*\*/\*'"):
        next(iter(train_batches(settings)))
    image = tmp_path / "camera" / "images" / "00.png"
    many = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for ids, said, mended in (
        (many[:32] // 8, r"00\.png is 64x64, its regions .* are 64x32", many // 8),
        (np.zeros((64, 64, 3), np.uint8), "has colours; a map of regions has one channel, of 8 or 16 bits", many // 8),
        (many, "holds 4095 regions, at most 1023 are allowed: join the smallest", many.clip(max=1023)),
    ):
        write_masks(tmp_path / "camera", ids)
        with pytest.raises(UserError, match=said):
            read_masks(tmp_path / "camera" / "masks" / "00.png", image)
        write_masks(tmp_path / "camera", mended)
        assert np.array_equal(read_masks(tmp_path / "camera" / "masks" / "00.png", image), mended)
