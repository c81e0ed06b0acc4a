"""Choosing among models and statistics without labels: what consistency is, and what cannot deceive it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from factories import CLASSES, small_segmenter, tiny_segmenter, write_pairs
from ssrseg import choose
from ssrseg.cli import app
from ssrseg.config import resolve
from ssrseg.config.settings import ChooseStage, DeployConfig
from ssrseg.errors import UserError
from ssrseg.inference.choose import CHANCE, MARGIN, average, consistency
from ssrseg.inference.sliding_window import whole
from ssrseg.models import Description
from ssrseg.models.segmenter import Segmenter, build_described, load_segmenter, save_segmenter
from ssrseg.reporting import compare
from ssrseg.training import train
from ssrseg.training.stages import corrected, deployed, planned
from test_pipeline import small


class ByColor(Segmenter):
    """Sees classes by the colour of each pixel, wherever it lies."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean(dim=1)
        return torch.stack([bright, 1 - bright, *[torch.zeros_like(bright)] * (len(CLASSES) - 2)], dim=1)


class ByPlace(Segmenter):
    """Sees the first class on the left and the second on the right, whatever is there."""

    def forward(self, images: Tensor) -> Tensor:
        columns = torch.linspace(0, 1, images.shape[-1]).expand(len(images), *images.shape[-2:])
        return torch.stack([1 - columns, columns, *[torch.zeros_like(columns)] * (len(CLASSES) - 2)], dim=1)


class Collapsed(Segmenter):
    """Sees one class everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        one = torch.ones(len(images), 1, *images.shape[-2:])
        return torch.cat([one, torch.zeros(len(images), len(CLASSES) - 1, *images.shape[-2:])], dim=1)


def model(kind: type[Segmenter], *, norms: bool = False, mark: float = 0.0) -> Segmenter:
    """A segmenter of a kind; without BatchNorm, so that it stands once. The mark tells it from another in a file."""
    whole_model = small_segmenter()
    whole_model.__class__ = kind
    for name, module in list(whole_model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not norms:
            whole_model.set_submodule(name, nn.Identity())
    with torch.no_grad():
        next(whole_model.parameters()).view(-1)[0] = mark
    return whole_model.eval()


def pictures() -> list[Tensor]:
    dark_and_bright = torch.zeros(3, 32, 32, dtype=torch.uint8)
    dark_and_bright[:, 8:20, 4:12] = 255
    return [dark_and_bright]


def test_consistency_is_the_iou_with_the_mirrored_and_the_enlarged_image() -> None:
    assert all(0.9 < value <= 1 for value in consistency(model(ByColor), pictures(), whole)[:2] if value is not None)
    first, second, *others = consistency(model(ByPlace), pictures(), whole)
    assert first == pytest.approx(0.5, abs=0.05)  # 0 when mirrored, 1 when enlarged
    assert second == pytest.approx(0.5, abs=0.05)
    assert others == [None] * len(others)


def test_the_consistent_model_is_written_and_a_collapsed_one_never(tmp_path: Path) -> None:
    target = write_pairs(tmp_path / "target")
    models = {"place": model(ByPlace), "collapsed": model(Collapsed), "colour": model(ByColor, mark=7.0)}
    found = choose(models, target, tmp_path / "new.safetensors")
    assert found.candidates[0].name == "colour"
    assert found.images == 4
    assert found.scores == tuple(sorted(found.scores, reverse=True))
    (of_collapsed,) = (
        score for each, score in zip(found.candidates, found.scores, strict=True) if each.name == "collapsed"
    )
    assert of_collapsed <= 0.5  # sure of one class of the two that others see
    assert float(torch.as_tensor(first_weight(tmp_path / "new.safetensors"))) == 7.0


def first_weight(path: Path) -> Tensor:
    from safetensors.torch import load_file

    state = load_file(path)
    name = next(name for name, _ in small_segmenter().named_parameters())
    return state[name].view(-1)[0]


def test_of_equals_the_earlier_wins_and_statistics_are_candidates(tmp_path: Path) -> None:
    target = write_pairs(tmp_path / "target")
    models = {"source": model(ByColor, norms=True), "adapted": model(ByColor, norms=True)}
    found = choose(models, target, tmp_path / "new.safetensors")
    assert [(each.name, each.statistics) for each in found.candidates] == [
        (name, statistics) for name in models for statistics in ("as-trained", "blend", "target")
    ]
    written, own = load_segmenter(found.path).state_dict(), models["source"].state_dict()
    assert all(torch.equal(written[name], value) for name, value in own.items())


def test_models_of_other_classes_and_none_are_refused(tmp_path: Path) -> None:
    target, other = write_pairs(tmp_path / "target"), small_segmenter()
    assert other.description is not None
    object.__setattr__(other.description, "classes", ("cat", *CLASSES[1:]))
    for models, text in (({}, "nothing to choose from"), ({"a": small_segmenter(), "b": other}, "cat")):
        with pytest.raises(UserError, match=text):
            choose(models, target, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_a_start_of_another_network_is_refused_and_none_is_needed(tmp_path: Path) -> None:
    target, out = write_pairs(tmp_path / "target", 1), tmp_path / "new.safetensors"
    other = build_described(Description("mit_b0", "segformer", CLASSES))
    with pytest.raises(UserError, match=r"no average: mit_b0, segformer and mit_b0, daformer\. Give .*, or none\."):
        choose({"a": small_segmenter()}, target, out, start=other)
    choose({"a": small_segmenter()}, target, out)


def test_a_run_ends_with_a_choice_between_its_start_and_the_average_with_its_teacher(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    before = small("source-only", tmp_path)
    train(before, tmp_path / "before")
    (tmp_path / "before" / "student-last.safetensors").rename(start)
    parts = {"loader": {"rare_class": None}, "deploy": {"statistics": "auto"}, "model": {"start": str(start)}}
    settings = small("daformer", tmp_path, **parts)
    out = tmp_path / "out"
    assert train(settings, out).folder == out / "chosen"
    record = json.loads((out / "chosen" / "choice.json").read_text())
    assert {row["name"] for row in record["candidates"]} == {"start", "average of start and teacher"}
    assert {row["statistics"] for row in record["candidates"]} == {"as-trained", "blend", "target"}
    worth = [
        row["score"] - MARGIN * (row["name"] == "start") - CHANCE * (row["statistics"] != "blend")
        for row in record["candidates"]
    ]
    assert worth == sorted(worth, reverse=True)
    assert json.loads((out / "chosen" / "scores.json").read_text())["last"]["student"]["miou"] >= 0
    assert [group.name for group in compare([out]).groups] == ["DAFormer", "DAFormer, chosen without labels"]
    written = (out / "chosen" / "student-last.safetensors").read_bytes()
    (out / "chosen" / "student-last.safetensors").unlink()  # killed while choosing
    train(None, out, resume=True)
    assert (out / "chosen" / "student-last.safetensors").read_bytes() == written


def test_with_a_start_the_models_themselves_are_no_candidates(tmp_path: Path) -> None:
    target, start, adapted = write_pairs(tmp_path / "target"), small_segmenter(seed=0), small_segmenter(seed=1)
    found = choose({"adapted": adapted}, target, tmp_path / "new.safetensors", start=start)
    assert {each.name for each in found.candidates} == {"start", "average of start and adapted"}
    halfway, one, other = (each.state_dict() for each in (average(start, adapted), start, adapted))
    floats = [name for name, value in one.items() if value.is_floating_point()]
    assert all(torch.allclose(halfway[name], (one[name] + other[name]) / 2, atol=1e-6) for name in floats)
    with pytest.raises(UserError, match="different networks"):
        average(start, adapted, tiny_segmenter())


def test_all_that_went_on_from_a_start_are_averaged_with_it(tmp_path: Path) -> None:
    target = write_pairs(tmp_path / "target")
    models = {"styled": model(ByColor, mark=6.0), "teacher": model(ByColor, mark=3.0)}
    found = choose(models, target, tmp_path / "new.safetensors", start=model(ByColor))
    assert found.candidates[0].name == "average of start, styled and teacher"
    assert float(first_weight(found.path)) == 3.0


def test_one_that_failed_is_left_out_of_the_average(tmp_path: Path) -> None:
    target = write_pairs(tmp_path / "target")
    models = {"teacher": model(ByColor, mark=6.0), "failed": model(ByPlace)}  # an average is of its last one's kind
    found = choose(models, target, tmp_path / "new.safetensors", start=model(ByColor))
    assert found.candidates[0].name == "average of start and teacher"
    assert float(first_weight(found.path)) == 3.0


def test_a_start_that_is_hardly_better_gives_way_to_the_average(tmp_path: Path) -> None:
    target, start = write_pairs(tmp_path / "target"), model(ByColor)
    equal = choose({"adapted": model(ByColor, mark=7.0)}, target, tmp_path / "new.safetensors", start=start)
    assert [each.name for each in equal.candidates] == ["average of start and adapted", "start"]
    assert equal.scores[0] == equal.scores[1]
    assert float(first_weight(equal.path)) == 3.5
    worse = choose({"adapted": model(ByPlace)}, target, tmp_path / "new.safetensors", start=start)
    assert [each.name for each in worse.candidates] == ["start", "average of start and adapted"]


def test_without_a_start_student_and_teacher_are(tmp_path: Path) -> None:
    settings = small("daformer", tmp_path, loader={"rare_class": None}, deploy={"statistics": "auto"})
    train(settings, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "chosen" / "choice.json").read_text())
    assert {row["name"] for row in record["candidates"]} == {"student", "teacher"}


def test_a_start_that_knows_no_label_of_the_target_is_no_candidate_beside_one_that_does(tmp_path: Path) -> None:
    settings = small("daformer", tmp_path, loader={"rare_class": None}, model={"start": "start.safetensors"})
    settings = settings.model_copy(update={"deploy": DeployConfig(statistics="auto")})
    tree = settings.model_dump(mode="json")
    target = {**tree["target"], "labels": "labels/*.png", "labelled": {"count": 1}}
    both = {"teacher", "student"}
    for known, start, names in ((tree["target"], "start.safetensors", {"teacher"}), (target, None, both)):
        stage = planned(deployed(resolve({**tree, "target": known})), tmp_path / "out")[-1][0]
        assert isinstance(stage, ChooseStage)
        assert (stage.start, stage.models and stage.models.keys()) == (start, names)


@pytest.mark.parametrize(("how", "made"), [("ia", "adjusted"), ("cr", "refined")])
def test_a_correction_is_not_lost_by_choosing(how: str, made: str, tmp_path: Path) -> None:
    settings = small("daformer", tmp_path, loader={"rare_class": None}, model={"start": "start.safetensors"})
    settings = settings.model_copy(update={"deploy": DeployConfig(statistics="auto")})
    stage = planned(deployed(corrected(settings, how)), tmp_path / "out")[-1][0]
    assert isinstance(stage, ChooseStage)
    assert stage.models == {"student": str(tmp_path / "out" / made / "student-last.safetensors")}
    assert stage.start is None


def test_the_word(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.safetensors") for name in ("source", "adapted")]
    for seed, file in enumerate(files):
        save_segmenter(small_segmenter(seed=seed), Path(file))
    target, out = write_pairs(tmp_path / "target"), tmp_path / "new.safetensors"
    done = CliRunner().invoke(app, ["choose", str(out), *files, "--target", str(target), "resize=[48, 48]"])
    assert done.exit_code == 0, done.output
    assert "consistency on 4 images" in done.output
    assert load_segmenter(out).num_classes == len(CLASSES)
