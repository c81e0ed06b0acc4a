"""The first lines of reports: each sentence where it belongs, and no praise where an interval holds zero."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ssrseg.config import presets
from ssrseg.reporting import compare, compare_records, comparison_text, print_comparison, read_run
from ssrseg.reporting.statistics import share_of_gap
from ssrseg.reporting.verdict import ALARMS, verdict
from test_compare import change, group, recipe
from test_reporting import PARTS, append, page, write_run

PRAISE = re.compile(r"helped|gained (?!none)|beats (?!beyond)|closed \d|rose")
SOURCE_ONLY, ADAPTED, ORACLE = (0.40, 0.42, 0.41), (0.50, 0.53, 0.52), (0.60, 0.62, 0.60)


def recalibrated(folder: Path, mious: Sequence[float], method: dict[str, Any] = PARTS["source-only"]) -> list[Path]:
    """Students of a method after the target's statistics, a recipe per seed."""
    runs = []
    for seed, miou in enumerate(mious):
        runs.append(write_run(folder / f"seed-{seed}" / "recalibrated", method, seed, miou))
        stages = {"stages": [{"name": "trained"}, {"name": "recalibrated", "does": "recalibrate"}]}
        config = yaml.safe_load((runs[-1] / "config.yaml").read_text())
        (runs[-1].parent / "stages.yaml").write_text(yaml.safe_dump(config | stages))
    return runs


def oracles(folder: Path, mious: Sequence[float]) -> list[Path]:
    """Runs on the target's own labels, without a target."""
    data = {"root": "data/cityscapes", "spec": "cityscapes"}
    return [change(run, source=data, target=None) for run in group(folder, {}, mious)]


def said(runs: Sequence[Path]) -> str:
    """The verdict, a line per sentence."""
    return "\n".join(verdict(compare_records([read_run(run) for run in runs])))


def adapted_runs(tmp_path: Path, base: Sequence[float], other: Sequence[float], **more: Any) -> list[Path]:
    """Source-only and DAFormer with these scores; `more` goes to the adapted ones."""
    return [*group(tmp_path / "base", {}, base), *group(tmp_path / "adapted", PARTS["DAFormer"], other, **more)]


def select(run: Path, **courses: Sequence[float]) -> Path:
    """Give a run criteria at steps 100, 200 ..."""
    for number, values in enumerate(zip(*courses.values(), strict=True), start=1):
        criteria = dict(zip(courses, values, strict=True))
        append(run, json.dumps({"kind": "selection", "step": 100 * number, "criteria": criteria}) + "\n")
    return run


def unlabelled(run: Path) -> Path:
    """Take the labels from a run: its validation data, evaluations and scores."""
    (run / "scores.json").unlink()
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"eval"' not in line]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return change(run, val=None)


def test_a_gain_is_said_with_its_interval_and_the_students_worth_deploying(tmp_path: Path) -> None:
    text = said(adapted_runs(tmp_path, SOURCE_ONLY, ADAPTED))
    assert "Without adaptation, source-only has 41.0 mIoU (mean of 3 seeds, standard deviation 1.0)." in text
    # Differences 10, 11, 11 points: mean 10.67, sd 0.577, t(2) 4.303: half width 1.43.
    assert (
        "Adaptation helped: DAFormer has 51.7 mIoU, +10.7 points against source-only "
        "(95% +9.2 to +12.1, paired by seed, n = 3)."
    ) in text
    assert "Deploy the DAFormer student" in text
    assert not re.search("oracle|target statistics|Besides|one seed|No labels|never found|failure|Not ended", text)


def test_noise_is_never_praised_and_the_cheapest_student_is_advised(tmp_path: Path) -> None:
    runs = adapted_runs(tmp_path, SOURCE_ONLY, (0.41, 0.40, 0.43))
    text = said([*runs, *oracles(tmp_path / "oracle", ORACLE)])
    assert "No gain is shown: DAFormer has 41.3 mIoU, +0.3 points against source-only (95% −4.8 to +5.5, " in text
    assert "within noise" in text
    assert "Deploy the source-only student" in text
    assert "no part is shown to be closed: 2%, 95% −25% to 28%" in text
    assert not PRAISE.search(text)


def test_harm_is_said_as_harm_and_names_the_better_student(tmp_path: Path) -> None:
    runs = adapted_runs(tmp_path, ADAPTED, SOURCE_ONLY)
    text = said(runs)
    assert "Adaptation cost 10.7 points: DAFormer has 41.0 mIoU against 51.7 of source-only (95% −12.1 to −9.2" in text
    assert "Deploy the source-only student." in text
    assert not PRAISE.search(text)
    text = said([*runs, *recalibrated(tmp_path / "statistics", (0.6, 0.62, 0.63))])
    assert "Deploy the source-only + target statistics student." in text
    text = said([*runs, *group(tmp_path / "mic", PARTS["MIC"], (0.6, 0.62, 0.63))])
    assert "Adaptation helped: MIC" in text
    assert "DAFormer cost 10.7 points against source-only" in text
    assert "deploy the MIC student instead" in text


def test_the_best_of_many_counts_all_that_were_tried(tmp_path: Path) -> None:
    # As for Holm's correction in comparisons: p = 0.02 of four equal differences is no evidence.
    gaps = (0.03, 0.05, 0.06, 0.09)
    runs = group(tmp_path / "base", {}, (0.5,) * 4)
    for number in range(4):
        tried = group(tmp_path / f"{number}", PARTS["MIC"], [0.5 + gap for gap in gaps])
        runs += [change(run, optim__lr=0.1 * (number + 1)) for run in tried]
    assert "Adaptation helped" in said(runs[:8])
    text = said(runs)
    assert "No gain is shown: MIC" in text
    assert "better, but within noise once all comparisons are counted" in text
    assert "Deploy the source-only student" in text
    assert not PRAISE.search(text)


@pytest.mark.parametrize(
    ("mious", "expected", "deployed"),
    [
        ((0.44, 0.45, 0.47), "DAFormer beats source-only + target statistics (45.3 mIoU)", "DAFormer"),
        ((0.51, 0.53, 0.51), "DAFormer does not beat source-only + target st", "source-only + target statistics"),
        ((0.60, 0.62, 0.63), "DAFormer is worse than source-only + target st", "source-only + target statistics"),
    ],
)
def test_target_statistics_are_what_adaptation_must_beat(
    tmp_path: Path, mious: Sequence[float], expected: str, deployed: str
) -> None:
    runs = adapted_runs(tmp_path, SOURCE_ONLY, ADAPTED)
    text = said([*runs, *recalibrated(tmp_path / "statistics", mious)])
    assert expected in text
    assert f"Deploy the {deployed} student:" in text


def test_one_seed_is_no_evidence_and_deploys_nothing(tmp_path: Path) -> None:
    runs = [*adapted_runs(tmp_path, (0.4,), (0.5,), iou=(0.8, 0.3, 0.0)), *oracles(tmp_path / "oracle", (0.6,))]
    text = said([*runs, *recalibrated(tmp_path / "statistics", (0.44,))])
    assert "source-only has 40.0 mIoU (one seed, which is no evidence of what another would give)" in text
    assert "+10.0 points against source-only: one seed is no evidence that adaptation helps or harms" in text
    assert "DAFormer has +6.0 points: one seed, no evidence" in text
    assert "DAFormer went 50% of the way from source-only: too few seeds for an interval" in text
    assert "2 points or more: up car +20.0; down road −10.0. One seed: no evidence." in text
    assert not re.search("Deploy|beyond noise", text)
    assert not PRAISE.search(text)
    less = said(adapted_runs(tmp_path / "less", (0.5,), (0.4, 0.45)))
    assert "nothing here speaks for deploying it instead of source-only" in less
    assert "cost" not in less


def test_the_share_of_the_gap_by_hand() -> None:
    def seeded(*values: float, first: int = 0) -> list[tuple[int | None, float]]:
        return list(enumerate(values, first))

    # Gains 1, 2, 3 of gaps 4, 4, 4: share 1/2; what is left of the gains, -1, 0, 1, has sd 1: 4.30265 / sqrt(3) / 4.
    share = share_of_gap(seeded(0, 0, 0), seeded(1, 2, 3), seeded(4, 4, 4))
    assert share is not None
    assert (share.mean, share.half_width) == (0.5, pytest.approx(4.30265 / 3**0.5 / 4, abs=1e-5))
    assert share.test == "paired by seed, n = 3"
    # Other seeds: means 0, 2, 4; 2 is 1/2 of the way, variances 0, 1, 0 over 3, so 2 degrees and the same error.
    apart = share_of_gap(seeded(0, 0, 0), seeded(1, 2, 3, first=5), seeded(4, 4, 4, first=9))
    assert apart is not None
    assert (apart.mean, apart.half_width) == (0.5, pytest.approx(share.half_width))
    assert apart.test == "Welch, not paired, n = 3 and 3 and 3"
    # The oracle's deviation counts with the share, the base's with what is left: 1/4 of its variance each.
    top = share_of_gap(seeded(0, 0, 0), seeded(2, 2, 2, first=5), seeded(3, 4, 5, first=9))
    assert top is not None
    assert top.half_width == pytest.approx(share.half_width / 2)
    single = share_of_gap([(0, 0.0)], [(0, 1.0)], [(0, 4.0)])
    assert single is not None
    assert (single.mean, single.half_width) == (0.25, None)
    assert share_of_gap(seeded(1, 1), seeded(2, 3), seeded(1, 1)) is None


def test_an_oracle_is_who_trained_on_the_targets_labels_and_is_scored_alike(tmp_path: Path) -> None:
    runs, oracle = adapted_runs(tmp_path, SOURCE_ONLY, ADAPTED), oracles(tmp_path / "oracle", ORACLE)
    assert "DAFormer closed 54% of the gap of 19.7 points to the oracle student" in said([*runs, *oracle])
    assert "no gap beyond noise" in said([*runs, *oracles(tmp_path / "weak", (0.43, 0.40, 0.41))])
    statistics = recalibrated(tmp_path / "oracle-statistics", ORACLE)
    data = {"root": "data/cityscapes", "spec": "cityscapes"}
    text = said([*runs, *(change(run, source=data, target=None) for run in statistics)])
    assert "target statistics" not in text  # those of the oracle are no baseline
    for run in oracle:
        change(run, val={"root": "data/elsewhere", "spec": "cityscapes"})
    assert "oracle" not in said([*runs, *oracle])


def test_a_source_only_run_scored_on_its_source_is_no_oracle(tmp_path: Path) -> None:
    (run,) = group(tmp_path, {}, (0.5,))
    change(run, val={"root": "data/gta5", "spec": "gta5"})
    assert "The student of source-only has 50.0" in said([run])


@pytest.mark.parametrize(
    ("key", "value"),
    [("source__root", "data/urbansyn"), ("model__backbone", "mit_b0"), ("val__root", "data/acdc")],
)
def test_nothing_is_compared_with_a_source_only_run_of_another_task(tmp_path: Path, key: str, value: str) -> None:
    base, adapted = group(tmp_path / "a", {}, SOURCE_ONLY), group(tmp_path / "b", PARTS["MIC"], ADAPTED)
    text = said([*(change(run, **{key: value}) for run in base), *adapted])
    assert "Nothing here says what adaptation added" in text
    assert "against source-only" not in text
    (named,) = re.findall(r"Train one \(presets (.*?)\)", text)
    assert set(named.split(", ")) <= presets().keys()


def test_other_settings_than_the_methods_are_named(tmp_path: Path) -> None:
    base, *adapted = adapted_runs(tmp_path, (0.4,), (0.5,))
    assert "Besides the method they differ in train.steps." in said([change(base, train__steps=400), *adapted])


def test_classes_that_changed_beyond_noise_are_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"a{s}", {}, s, 0.4, iou=(0.9, 0.2 + s / 100, 0.3)) for s in range(3)]
    for seed in range(3):
        iou = (0.80, 0.4 + seed / 90, 0.2 + 0.2 * seed)  # road falls, car rises, train goes up and down
        runs.append(write_run(tmp_path / f"b{seed}", PARTS["DAFormer"], seed, 0.5 + seed / 100, iou=iou))
    text = said(runs)
    assert "beyond noise: gained car +20.1; lost road −10.0. Each stands alone: of 3 classes" in text
    (tmp_path / "same").mkdir()
    assert "No class changed beyond noise" in said(adapted_runs(tmp_path / "same", SOURCE_ONLY, ADAPTED))


def test_classes_at_zero_are_named_where_labels_have_them(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), seed=seed, iou=(0.9, 0.0, 0.0)) for seed in (0, 1)]
    assert "Classes that are never found (IoU 0): DAFormer: car, train." in said(runs)
    for run in runs:
        scores = json.loads((run / "scores.json").read_text())
        scores["last"]["student"]["confusion"] = [[9, 0, 1], [1, 0, 0], [0, 0, 0]]
        (run / "scores.json").write_text(json.dumps(scores))
    assert "(IoU 0): DAFormer: car." in said(runs)  # no label has a train
    assert "never found" not in said([write_run(tmp_path / "found", iou=(0.9, 0.01, None)), runs[0]][:1])


@pytest.mark.parametrize(
    ("end", "seeds", "expected"),
    [
        (0.5, 1, "was 10.0 at the first evaluation (step 100) and is 50.0 now, +40.0 points: one run, no evidence"),
        (0.5, 2, "rose from 10.1 (first evaluation, step 100) to 50.5 (95% "),
        (0.05, 2, "Training cost 5.1 points: its mIoU fell from 10.1 (first evaluation, step 100) to 5.0 (95%"),
    ],
)
def test_a_run_alone_is_held_against_its_first_evaluation(
    tmp_path: Path, end: float, seeds: int, expected: str
) -> None:
    runs = group(tmp_path, PARTS["DAFormer"], [0.5 + seed / 100 for seed in range(seeds)])
    for run in runs:
        scores = json.loads((run / "scores.json").read_text())
        if end < 0.5:
            scores["last"]["student"]["miou"] = end
        (run / "scores.json").write_text(json.dumps(scores))
    text = said(runs)
    assert expected in text
    assert "Nothing here says what adaptation added" in text


def test_without_labels_the_criteria_speak_and_what_they_mean_is_said(tmp_path: Path) -> None:
    run = unlabelled(write_run(tmp_path / "run"))
    assert "nothing that was recorded says how good DAFormer is" in said([run])
    text = said([select(run, im=(0.7, 1.25, 1.3), agreement=(0.9, 0.8, 0.6))])
    assert (
        "No labels: no score says how good DAFormer is. What the criteria say: information maximisation 0.7 at" in text
    )
    assert "student-teacher agreement 0.9 at step 100, 0.6 at step 300." in text
    assert "not right ones: a model that is sure and wrong pleases them all" in text
    assert "mIoU" not in text
    one = said([select(unlabelled(write_run(tmp_path / "one")), im=(0.7,))])
    assert "information maximisation 0.7 at step 100, its only value." in one
    assert "No labels" not in said([write_run(tmp_path / "labelled")])


def test_criteria_that_fall_over_the_run_are_a_sign(tmp_path: Path) -> None:
    falls = select(write_run(tmp_path / "falls"), im=(1.2, 1.1, 0.9), agreement=(0.5, 0.6, 0.7))
    rises = select(write_run(tmp_path / "rises", seed=1), im=(0.5, 0.9, 1.1), agreement=(0.5, 0.6, 0.7))
    dips = select(write_run(tmp_path / "dips", seed=2), im=(0.8, 0.9, 1.0, 1.1, 0.7), agreement=range(5))
    text = said([falls, rises])
    assert "information maximisation fell from 1.2 at step 100 to 0.9 at step 300 in 1 of 2 runs of DAFormer" in text
    assert "agreement fell" not in text
    assert "failure" not in said([rises])
    assert "failure" not in said([dips])  # a low last value after a rise


def test_alarms_are_counted_as_the_guards_word_them(tmp_path: Path) -> None:
    documented = (Path(__file__).parents[1] / "docs" / "guards.md").read_text()
    warnings = re.findall(r"^warning: (.*)$", documented, re.M)
    runs = [write_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert "failure" not in said(runs)
    for pattern in ALARMS.values():
        (text, *_) = [text for text in warnings if re.match(pattern, text)]
        append(runs[0], json.dumps({"kind": "warning", "step": 7, "text": text}) + "\n")
    text = said(runs)
    assert "in 1 of 2 runs of DAFormer a class collapsed (car)" in text
    assert "in 1 of 2 runs of DAFormer the student left its teacher behind" in text


def test_runs_that_have_not_ended_are_counted(tmp_path: Path) -> None:
    text = said([write_run(tmp_path / "begun", miou=None), write_run(tmp_path / "ended", seed=1)])
    assert "Not ended: 1 of 2 runs." in text
    assert said([tmp_path / "begun"]).endswith("DAFormer has no final score: at step 200 its mIoU was 24.0.")


def test_a_student_made_without_steps_has_ended_and_a_stage_on_the_way_is_no_method(tmp_path: Path) -> None:
    (run,) = recalibrated(tmp_path / "statistics", (0.5,))
    (run / "metrics.jsonl").write_text("")
    (run / "scores.json").unlink()
    assert "Not ended" in said([run])
    (run / "student-last.safetensors").touch()
    assert "Not ended" not in said([run])
    stages = recipe(tmp_path / "undoing", {"alignment": {}}, {"align": "train", "distilled": "train"})
    runs = [stages / "align", change(stages / "distilled", target=None)]
    assert "Nothing here says what adaptation added" in said(runs)
    assert "Nothing here says" not in said(runs[:1])


def test_the_words_stand_first_on_the_page_in_the_texts_and_on_the_terminal(tmp_path: Path) -> None:
    runs = adapted_runs(tmp_path, SOURCE_ONLY, ADAPTED)
    found = compare(runs)
    console = Console(file=io.StringIO(), width=200)
    print_comparison(found, console)
    assert isinstance(console.file, io.StringIO)
    lines = verdict(found)
    texts = {"page": page(runs), "html": comparison_text(found, "html"), "terminal": console.file.getvalue()}
    texts |= {"markdown": comparison_text(found), "run": page(runs[-1:])}
    for name, text in texts.items():
        shown = lines if name != "run" else said(runs[-1:]).splitlines()
        places = [text.index(line) for line in shown]
        assert places == sorted(places)
        assert places[-1] < min(text.find(mark) % len(text) for mark in ("<table", "<dl", "| group", "best*"))
