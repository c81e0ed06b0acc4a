"""Label shift: the numbers of the release, and properties that hold exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch

from factories import CLASSES, small_segmenter, tiny_segmenter
from ssrseg.adapt import Segmentation, View
from ssrseg.adapt.terms import segmentation_loss
from ssrseg.config import DataConfig
from ssrseg.errors import UserError
from ssrseg.inference import Predictor
from ssrseg.label_shift import (
    Priors,
    adjust,
    find_priors,
    fold_shift,
    labelled_by,
    log_ratio,
    published_priors,
    read_priors,
)
from ssrseg.label_shift.priors import image_scores, presence_counts, target_counts
from ssrseg.models.segmenter import Segmenter


def test_the_published_shift() -> None:
    gta5 = published_priors("gta5-cityscapes")
    shift = dict(zip(gta5.classes, gta5.shift.tolist(), strict=True))
    for name, expected in {"road": 0.212, "sky": -2.154, "rider": 2.108, "bicycle": 3.978}.items():
        assert shift[name] == pytest.approx(expected, abs=5e-4)
    attentive = published_priors("gta5-cityscapes-attentive")
    assert attentive.shift[gta5.classes.index("wall")].item() == pytest.approx(-1.367, abs=5e-4)
    synthia = published_priors("synthia-cityscapes")
    assert synthia.shift[synthia.classes.index("person")].item() == pytest.approx(-1.373, abs=5e-4)
    with pytest.raises(UserError, match="gta5-cityscapes"):
        published_priors("elsewhere")


def test_equal_priors_change_nothing_and_empty_classes_are_floored() -> None:
    assert log_ratio([3, 5], [30, 50]).tolist() == pytest.approx([0, 0], abs=1e-7)
    priors = Priors(("a", "b"), (0, 10), (5, 5))
    assert torch.isfinite(priors.shift).all()
    assert priors.rare == ["a"]
    assert priors.shift[0].item() == pytest.approx(math.log(0.5 / (0.5 / 10.5)))


def test_priors_of_other_classes() -> None:
    priors = Priors(("a", "b", "c"), (1, 2, 3), (4, 5, 6))
    assert priors.of(["c", "a"]).source == (3, 1)
    with pytest.raises(UserError, match="'d'"):
        priors.of(["d"])


def test_priors_in_a_file(tmp_path: Path) -> None:
    priors = Priors(("a", "b"), (1, 2), (3, 4), "counted")
    (tmp_path / "priors.json").write_text(json.dumps(dataclasses.asdict(priors)))
    assert read_priors(tmp_path / "priors.json") == priors
    (tmp_path / "priors.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold priors") as raised:
        read_priors(tmp_path / "priors.json")
    keys = re.findall(r"\((.*?)\)", str(raised.value))[0].split(", ")
    content = dict(zip(keys, (["a", "b"], [1, 2], [3, 4], "counted"), strict=True))
    (tmp_path / "priors.json").write_text(json.dumps(content))
    assert read_priors(tmp_path / "priors.json") == priors
    with pytest.raises(UserError, match="published priors only for") as raised:
        find_priors("gta5")
    tasks = str(raised.value).partition("only for ")[2].rstrip(".").split(", ")
    assert len([find_priors(task) for task in tasks]) == 4


def test_what_is_missing_for_priors_and_labels_is_set_as_said(tmp_path: Path) -> None:
    priors = Priors(CLASSES, (1, 2, 3, 4), (4, 3, 2, 1))
    segmenter = small_segmenter()
    segmenter.description, description = None, segmenter.description
    with pytest.raises(UserError, match=r"set `segmenter\.description`"):
        adjust(segmenter, priors, tmp_path / "a.safetensors")
    segmenter.description = description
    adjust(segmenter, priors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"set target\.root to a folder of images"):
        labelled_by(None, 4, tmp_path)
    assert labelled_by(DataConfig(root=tmp_path), 4, tmp_path).labels_root == tmp_path


def test_image_scores_lie_between_mean_and_maximum() -> None:
    probabilities = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    scores = image_scores(probabilities)
    assert (scores >= probabilities.mean(dim=(2, 3))).all()
    assert (scores <= probabilities.amax(dim=(2, 3))).all()
    covered = torch.zeros(1, 1, 8, 8)
    covered[..., :2, :] = 1  # a quarter
    assert image_scores(covered).item() == pytest.approx(math.log(1 + (math.e - 1) / 4), abs=1e-6)


def test_presence_counts() -> None:
    pixels = torch.tensor([[90, 10, 0], [50, 0, 50], [0, 0, 0]])
    assert presence_counts(pixels).tolist() == [2, 1, 1]
    assert presence_counts(pixels, 0.2).tolist() == [2, 0, 1]


def test_target_counts_follow_the_threshold() -> None:
    model = tiny_segmenter()
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(3)]
    predictor = Predictor(model, device="cpu")
    assert target_counts(predictor, images, torch.full((4,), -1.0)).tolist() == [3, 3, 3, 3]
    assert target_counts(predictor, images, torch.full((4,), 1.0)).tolist() == [0, 0, 0, 0]
    scores = torch.stack([image_scores(predictor.probabilities(image)[None])[0] for image in images])
    assert target_counts(predictor, images, scores.median(dim=0).values).tolist() == [1, 1, 1, 1]
    assert model.training


def test_a_folded_shift_is_the_shift_of_every_logit() -> None:
    model = tiny_segmenter().eval()
    shift = torch.tensor([0.5, -1.0, 2.0, 0.0])
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(fold_shift(model, shift)(images), model(images) + shift.view(1, -1, 1, 1), atol=1e-5)
    assert fold_shift(model, shift).state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="4 classes"):
        fold_shift(model, torch.zeros(3))


def loss_of(student: Segmenter, term: Segmentation, view: View) -> torch.Tensor:
    return term(view, student.encode(view.images), student)


def test_refinement_is_the_loss_of_the_adjusted_logits_with_all_pixels_in_the_divisor() -> None:
    student, shift = tiny_segmenter().eval(), torch.tensor([0.5, -1.0, 2.0, 0.0])
    labels = torch.randint(0, len(CLASSES), (2, 64, 64))
    labels[:, :16] = 255
    view = View("source", torch.rand(2, 3, 64, 64), labels)
    refined = loss_of(student, Segmentation(["source"], shift=-shift), view)
    adjusted = fold_shift(student, -shift)
    assert refined.item() == pytest.approx(segmentation_loss(adjusted(view.images), labels).item(), rel=1e-5)
    plain = torch.nn.functional.cross_entropy(adjusted(view.images), labels, ignore_index=255)
    assert refined.item() == pytest.approx(plain.item() * 0.75, rel=1e-5)


def test_temperature_and_divisor_of_the_segmentation_term() -> None:
    student = tiny_segmenter().eval()
    labels = torch.randint(0, len(CLASSES), (1, 64, 64))
    labels[:, :32] = 255
    view = View("source", torch.rand(1, 3, 64, 64), labels)
    term = Segmentation(["source"], temperature=1.8, over_labelled=["source"])
    expected = torch.nn.functional.cross_entropy(student(view.images) / 1.8, labels, ignore_index=255)
    assert loss_of(student, term, view).item() == pytest.approx(expected.item(), rel=1e-5)
