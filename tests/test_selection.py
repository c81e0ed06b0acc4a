"""Choosing without labels: every formula by hand, and what a run keeps of its choices."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from factories import tiny_frozen
from ssrseg.config import CRITERIA, resolve
from ssrseg.inference.criteria import (
    CriteriaAccumulator,
    entropy,
    soft_neighborhood_density,
)
from ssrseg.models import load_segmenter
from ssrseg.runs.folder import RunFolder
from ssrseg.training import Extensions, train
from ssrseg.training.loop import Observer, StepResult
from test_training import records, run, settings_for, weights

LN2 = math.log(2)


def logits_of(rows: Tensor) -> Tensor:
    """Logits (K, 1, N) whose softmax is `rows` (N, K)."""
    return rows.clamp(min=1e-30).log().T[:, None]


def information_maximization(rows: Tensor) -> float | None:
    """Of one image with predictions (N, K)."""
    found = CriteriaAccumulator(rows.shape[1], 0.9, pixels=2)
    found.add(logits_of(rows), None)
    return found.criteria()[0]["im"]


def test_entropy_and_diversity_by_hand() -> None:
    # Entropies: ln 2 for (1/2, 1/2), 0 for (1, 0); mean prediction (3/4, 1/4).
    predictions = tensor([[0.5, 0.5], [1.0, 0.0]])
    assert float(entropy(predictions).mean()) == pytest.approx(LN2 / 2)
    quarter = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert float(entropy(predictions.mean(dim=0))) == pytest.approx(quarter)
    assert information_maximization(predictions) == pytest.approx(quarter - LN2 / 2)


def test_information_maximization_wants_sure_and_varied_predictions() -> None:
    varied, collapsed, unsure = torch.eye(3), tensor([[1.0, 0, 0]] * 3), torch.full((3, 3), 1 / 3)
    assert information_maximization(varied) == pytest.approx(math.log(3))
    assert information_maximization(collapsed) == pytest.approx(0, abs=1e-7)
    assert information_maximization(unsure) == pytest.approx(0, abs=1e-6)


def test_soft_neighborhood_density_by_hand() -> None:
    # Similarities: 1 between the first two, 0 to the third. The first chooses the second with p = e^20 / (e^20 + 1),
    # so does the second the first; the third is torn between both: ln 2.
    p = 1 / (1 + math.exp(-20))
    sure = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = soft_neighborhood_density(tensor([[1.0, 0], [1, 0], [0, 1]]))
    assert float(found) == pytest.approx((2 * sure + LN2) / 3, rel=1e-5)
    # Temperature 1: p = e / (e + 1); cosine similarity takes no notice of lengths.
    p = math.e / (math.e + 1)
    unsure = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = soft_neighborhood_density(tensor([[2.0, 0], [1, 0], [0, 3]]), temperature=1)
    assert float(found) == pytest.approx((2 * unsure + LN2) / 3, rel=1e-6)


def test_soft_neighborhood_density_cannot_see_a_collapse() -> None:
    assert float(soft_neighborhood_density(tensor([[1.0, 0]] * 5))) == pytest.approx(math.log(4))


def test_agreement_by_hand() -> None:
    # Class 0: 2 of 3 pixels in common, class 1: 1 of 2, class 2 in neither.
    student, teacher = tensor([0, 0, 0, 1]), tensor([0, 0, 1, 1])
    found = CriteriaAccumulator(3, 0.9, pixels=2)
    found.add(torch.nn.functional.one_hot(student, 3).T[:, None] * 50.0, teacher[None])
    assert found.criteria()[0]["agreement"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.criteria()[1]["pixel_agreement"] == pytest.approx(3 / 4)


def test_confidence_by_hand_and_images_add_up() -> None:
    found = CriteriaAccumulator(2, 0.9, pixels=2)
    found.add(logits_of(tensor([[0.95, 0.05], [0.6, 0.4]])), None)
    found.add(logits_of(tensor([[0.2, 0.8], [0.09, 0.91], [0.02, 0.98], [0.0, 1.0]])), None)
    assert found.criteria()[0]["confidence"] == pytest.approx(((0.95 + 0.6) / 2 + (0.8 + 0.91 + 0.98 + 1) / 4) / 2)
    assert found.criteria()[1]["confident_share"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found.criteria()[0]["agreement"] is None
    mean = (0.775 + 0.0775) / 2  # of the first class, over both images
    expected = -mean * math.log(mean) - (1 - mean) * math.log(1 - mean)
    assert found.criteria()[1]["diversity"] == pytest.approx(expected, rel=1e-6)


def test_what_is_not_a_number_is_not_a_score() -> None:
    found = CriteriaAccumulator(2, 0.9, pixels=2)
    found.add(torch.full((2, 1, 4), math.nan), None)
    assert set(found.criteria()[0].values()) == {None}


def choices(folder: Path) -> dict[str, Any]:
    """What scores.json says of the choices."""
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())["selection"]
    return found


def test_a_run_notes_and_keeps_its_choices(tmp_path: Path) -> None:
    folder = run(tmp_path, "run")
    lines = records(folder, "selection")
    assert [line["step"] for line in lines] == [2, 4]
    truth = {line["step"]: line["student"]["miou"] for line in records(folder, "eval")}
    for name in CRITERIA:
        best = max(lines, key=lambda line: line["criteria"][name])
        assert choices(folder)[name] == {
            "step": best["step"],
            "value": best["criteria"][name],
            "miou": pytest.approx(truth[best["step"]]),
        }
        kept = load_segmenter(RunFolder(folder).student_best_by(name)).state_dict()
        last = weights(folder)
        assert all(torch.equal(kept[key], last[key]) for key in last) == (best["step"] == 4)


def test_students_of_one_step_lie_on_disk_once(tmp_path: Path) -> None:
    folder = run(tmp_path, "run", train={"evaluate_every": 4})
    files = [RunFolder(folder).student_best_by(name).stat() for name in CRITERIA]
    assert len({file.st_ino for file in files}) == 1
    assert files[0].st_nlink == len(CRITERIA)
    assert not list(folder.glob("*.partial")) + list(folder.glob(".*.partial"))


def test_it_works_without_any_label_and_changes_no_training(tmp_path: Path) -> None:
    with_labels, without = run(tmp_path, "one"), run(tmp_path, "two", val=None)
    off = run(tmp_path, "off", val=None, selection=None)
    assert records(with_labels, "selection") == records(without, "selection")
    assert {choice["miou"] for choice in choices(without).values()} == {None}
    assert not (off / "scores.json").exists()
    assert not records(off, "selection")
    one, two, three = weights(with_labels), weights(without), weights(off)
    assert all(torch.equal(one[name], two[name]) and torch.equal(one[name], three[name]) for name in one)


def test_only_the_criteria_asked_for_are_kept(tmp_path: Path) -> None:
    folder = run(tmp_path, "run", selection={"keep": ["im"], "images": 2})
    assert [path.name for path in folder.glob("student-best-by-*")] == ["student-best-by-im.safetensors"]
    assert set(choices(folder)) == set(CRITERIA)


def test_without_a_teacher_there_is_no_agreement(tmp_path: Path) -> None:
    settings = settings_for(tmp_path).model_dump()
    folder = train(resolve({**settings, "method": {"distort": True}}), tmp_path / "run").folder
    assert all(line["criteria"]["agreement"] is None for line in records(folder, "selection"))
    assert set(choices(folder)) == set(CRITERIA) - {"agreement"}


def test_a_resumed_run_makes_the_same_choices(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole")

    class Power(Observer):
        def stepped(self, result: StepResult) -> None:
            if result.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            settings_for(tmp_path),
            tmp_path / "cut",
            extensions=Extensions(foundation=tiny_frozen(), observers=[Power()]),
        )
    cut = train(None, tmp_path / "cut", resume=True, extensions=Extensions(foundation=tiny_frozen())).folder
    assert records(whole, "selection") == records(cut, "selection")
    assert choices(whole) == choices(cut)
