"""`model.start`: whose row of the classifier is whose, told by the names of the classes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from factories import write_pairs
from ssrseg.config import assignments, merge, resolve
from ssrseg.data import resolve_space
from ssrseg.errors import UserError
from ssrseg.inference import evaluate
from ssrseg.label_shift import Priors, estimate_priors
from ssrseg.models import BACKBONES, HEADS, Description, Segmenter, build_segmenter, load_segmenter, save_segmenter
from ssrseg.models.backbones import Architecture
from ssrseg.models.convert import convert
from ssrseg.training.setup import build_student

OLD = ("sky", "ground", "box")
IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def saved(
    path: Path, head: str = "daformer", classes: tuple[str, ...] = OLD, backbone: str = "timm:test_resnet"
) -> Path:
    """A model file whose classifier knows its classes apart."""
    torch.manual_seed(3)
    model = build_segmenter(backbone, head, len(classes), head_channels=8)
    for value in model.head.parameters():
        torch.nn.init.normal_(value)
    model.description = Description(backbone, head, classes, head_channels=8)
    save_segmenter(model, path)
    return path


def started(start: Path, classes: tuple[str, ...], *words: str, **model: Any) -> tuple[Segmenter, str]:
    """The student of a run, and the note about it; `words` as on the command line."""
    network = {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none", "start": str(start)}
    tree = {"classes": list(classes), "source": {"root": "game"}, "model": network | model}
    settings = resolve(merge(tree, assignments(words)))
    student, note = build_student(settings, resolve_space(settings.classes, settings.source))
    return student.eval(), note


def logits(model: Segmenter) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGES)[0]


def ways(message: object) -> list[list[str]]:
    """The words of each remedy that a message lists."""
    return [shlex.split(way) for way in re.findall(r"^  (model\..*?): ", str(message), re.M)]


@pytest.mark.parametrize("head", HEADS)
def test_the_same_classes_in_another_order_take_their_rows_along(head: str, tmp_path: Path) -> None:
    start = saved(tmp_path / "start.safetensors", head)
    student, note = started(start, ("ground", "sky", "box"), head=head)
    torch.testing.assert_close(logits(student), logits(load_segmenter(start))[[1, 0, 2]])
    assert note.endswith(": its classes stand in another order, and so do the rows of its classifier")
    assert started(start, OLD, head=head)[1] == f"the student starts from {start}"


@pytest.mark.parametrize("head", HEADS)
def test_shared_classes_keep_their_rows_and_the_rest_of_the_decoder_is_kept(head: str, tmp_path: Path) -> None:
    start = saved(tmp_path / "start.safetensors", head)
    student, note = started(start, ("box", "cat", "ground", "dog"), "model.start_classes=shared", head=head)
    before = load_segmenter(start)
    torch.testing.assert_close(logits(student)[[0, 2]], logits(before)[[2, 1]])
    assert not torch.allclose(logits(student)[1], logits(before)[0])
    assert note.endswith(
        "2 classes keep their rows of the classifier: box, ground; 2 start fresh: cat, dog; left out: sky"
    )
    old, new = before.state_dict(), student.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if old[name].shape == new[name].shape)


def test_names_that_differ_in_spelling_only_are_the_same(tmp_path: Path) -> None:
    start = saved(tmp_path / "start.safetensors", classes=("Traffic-Light", "road ", "BOX"))
    student, note = started(start, ("road", "traffic light", "box"))
    torch.testing.assert_close(logits(student), logits(load_segmenter(start))[[1, 0, 2]])
    assert "road (there: road )" in note
    ambiguous = saved(tmp_path / "start.safetensors", classes=("Box", "BOX", "sky"))
    with pytest.raises(UserError, match="shared: sky; only in the model: Box, BOX; only in `classes`: box, car"):
        started(ambiguous, ("box", "car", "sky"))


@pytest.mark.parametrize("classes", [("cat", "dog", "cow"), ("sky", "ground", "box", "car")])
def test_other_classes_are_refused_with_ways_that_work(classes: tuple[str, ...], tmp_path: Path) -> None:
    start = saved(tmp_path / "my start.safetensors")
    with pytest.raises(UserError, match=f"sky, ground, box; `classes` are {', '.join(classes)}") as refused:
        started(start, classes)
    found = ways(refused.value)
    assert len(found) == (3 if len(classes) == 3 else 2)
    for words in found:
        student, note = started(start, classes, *words)
        assert student.num_classes == len(classes)
        assert str(start) in note
        theirs = load_segmenter(start).backbone.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in student.backbone.state_dict().items())


def test_renamed_classes_keep_their_places(tmp_path: Path) -> None:
    start = saved(tmp_path / "start.safetensors")
    student, note = started(start, ("Himmel", "Boden", "Kiste"), "model.start_classes=renamed")
    torch.testing.assert_close(logits(student), logits(load_segmenter(start)))
    assert "Himmel (there: sky), Boden (there: ground), Kiste (there: box)" in note


@pytest.mark.parametrize(
    ("model", "remedies"),
    [
        ({"head": "segformer"}, 2),
        ({"head_channels": 16}, 2),
        ({"backbone": "timm:test_convnext"}, 1),
        ({"backbone": "timm:test_efficientnet", "head": "deeplabv2"}, 1),
    ],
)
def test_another_network_is_refused_with_ways_that_work(model: dict[str, Any], remedies: int, tmp_path: Path) -> None:
    start = saved(tmp_path / "start.safetensors")
    with pytest.raises(UserError, match="is another network than this run's") as refused:
        started(start, OLD, **model)
    found = ways(refused.value)
    assert len(found) == remedies
    for words in found:
        student, _ = started(start, OLD, *words, **model)
        theirs = load_segmenter(start).backbone.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in student.backbone.state_dict().items())


def test_the_backbone_of_our_own_model_is_not_turned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights of this one want blue, green, red; a model of ours has been turned already."""
    backbone = "small-caffe"
    monkeypatch.setitem(BACKBONES, backbone, Architecture("test_resnet", bgr=True))
    start = saved(tmp_path / "start.safetensors", "deeplabv2", backbone=backbone)
    words = ["model.start=null", f"model.pretrained={start}"]
    student, _ = started(start, ("cat", "dog"), *words, backbone=backbone, head="deeplabv2")
    theirs = load_segmenter(start).backbone.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in student.backbone.state_dict().items())


def test_a_file_without_a_description_is_refused_with_the_way(tmp_path: Path) -> None:
    model = build_segmenter("timm:test_resnet", "daformer", 3, head_channels=8)
    torch.save(model.state_dict(), tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"is not a model of ssrseg .* `ssrseg convert IN OUT` makes one"):
        started(tmp_path / "old.pth", OLD)
    convert(tmp_path / "old.pth", tmp_path / "start.safetensors", backbone="timm:test_resnet", head="daformer")
    with pytest.raises(UserError, match=r"found the folder .*: give one of .*start\.safetensors") as refused:
        started(tmp_path, ("class-0", "class-1", "class-2"))
    started(Path(str(refused.value).rpartition("one of ")[2][:-1]), ("class-0", "class-1", "class-2"))


def test_priors_and_scores_are_refused_for_classes_in_another_order(tmp_path: Path) -> None:
    start, data = saved(tmp_path / "start.safetensors"), write_pairs(tmp_path / "data", 1)
    tree = {"classes": ["ground", "sky", "box"], "source": {"root": data}, "target": {"root": data}}
    with pytest.raises(UserError, match="in the same order"):
        estimate_priors(start, resolve(tree), device="cpu")
    with pytest.raises(UserError, match="in the same order"):
        evaluate(start, data, classes=("ground", "sky", "box"), device="cpu")
    there = [{"name": "Sky", "ids": [1]}, {"name": "ground", "ids": [0]}, {"name": "box", "ids": [2, 3]}]
    scores = evaluate(start, data, classes=resolve(tree | {"classes": there}).classes, device="cpu")
    assert scores.classes == ("Sky", "ground", "box")
    assert Priors(("Sky", "box"), (1.0, 2.0), (3.0, 4.0)).of(("box", "sky")).source == (2.0, 1.0)
