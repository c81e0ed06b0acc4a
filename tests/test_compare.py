"""Comparisons: statistics by hand, who is grouped and paired with whom, the paper's tables, and every format."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import ssrseg
from ssrseg import cli
from ssrseg.config import affects_result, flatten, resolve
from ssrseg.errors import UserError
from ssrseg.reporting import compare, comparison_text, format_of, members, print_comparison, read_run
from ssrseg.reporting.formats import latex
from ssrseg.reporting.grouping import essentials
from ssrseg.reporting.paper import table1, table2
from ssrseg.reporting.statistics import bootstrap, difference, holm
from ssrseg.reporting.text_tables import TextTable, class_differences, data_of, sentence
from test_reporting import PARTS, SSR, Tags, write_run

CITYSCAPES = data_of("paper.yaml")["table2"]["classes"]


def change(run: Path, **values: Any) -> Path:
    """Another value at `group__key` of a run's settings."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for path, value in values.items():
        *groups, key = path.split("__")
        branch = config
        for group in groups:
            branch = branch[group]
        branch[key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def group(folder: Path, method: dict[str, Any], mious: Sequence[float], first: int = 0, **more: Any) -> list[Path]:
    """A run per mIoU, seeds from `first` on."""
    seeds = range(first, first + len(mious))
    return [write_run(folder / f"{seed}", method, seed, miou, **more) for seed, miou in zip(seeds, mious, strict=True)]


def two(folder: Path, one: Sequence[float], other: Sequence[float], first: int = 0) -> ssrseg.reporting.Comparison:
    """DAFormer and MIC with these scores; MIC's seeds begin at `first`."""
    return compare([*group(folder / "a", PARTS["DAFormer"], one), *group(folder / "b", PARTS["MIC"], other, first)])


def names(runs: Sequence[Path]) -> list[str]:
    """What their groups are called."""
    return [group.name for group in compare(runs).groups]


# statistics


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1, never falling: 0.03, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_agrees_with_the_printed_t_tables() -> None:
    # Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 at 2 degrees; there P(|T| > t) = 1 - t / sqrt(2 + t^2).
    gap = difference([(0, 0.0), (1, 0.0), (2, 0.0)], [(0, 1.0), (1, 2.0), (2, 3.0)])
    assert gap.p == pytest.approx(1 - 3.4641016 / (2 + 12) ** 0.5, abs=1e-6)
    # Interval and p say the same: at the edge of the interval p is 0.05.
    assert (gap.p < 0.05) == (gap.verdict != "within noise")


def test_pairs_are_the_common_seeds_only() -> None:
    base = [(0, 10.0), (1, 20.0), (2, 30.0), (7, 1000.0)]
    gap = difference(base, [(2, 33.0), (0, 11.0), (1, 22.0), (9, -1000.0)])
    assert gap.mean == pytest.approx(2)
    assert gap.half_width == pytest.approx(2.48414, abs=1e-4)
    assert gap.test == "paired by seed, n = 3 in common of 4"


def test_one_common_seed_is_no_pairing() -> None:
    gap = difference([(0, 1.0), (1, 2.0)], [(1, 3.0), (2, 4.0)])
    assert gap.test == "Welch, not paired, n = 2 and 2"
    assert gap.mean == pytest.approx(2)


def test_the_bootstrap_begins_at_five_pairs_and_repeats_itself() -> None:
    gaps = [0.01, 0.02, 0.03, 0.04, 0.05]
    pairs = [(seed, 0.0) for seed in range(5)], list(enumerate(gaps))
    found = difference(*pairs).bootstrap
    assert found == bootstrap(gaps) == bootstrap(gaps)
    assert found is not None
    # Of the 3125 equally likely resamples 2.5% have a sum of 9 or less (in steps of 0.01 from 5 to 25): mean 0.018.
    assert found == pytest.approx((0.018, 0.042), abs=1e-9)
    assert bootstrap(gaps, seed=1) == pytest.approx(found, abs=0.002)
    assert difference(pairs[0][:4], pairs[1][:4]).bootstrap is None


# grouping and names


def test_what_cannot_change_the_result_groups_nothing_apart(tmp_path: Path) -> None:
    runs = group(tmp_path, PARTS["DAFormer"], (0.5, 0.52))
    change(runs[1], train__log_every=7, train__accelerator="cpu", loader__workers=9, source__root="/elsewhere/gta5")
    (found,) = compare(runs).groups
    assert (found.name, found.n, found.miou.mean) == ("DAFormer", 2, pytest.approx(0.51))
    assert found.miou.sd == pytest.approx(0.02 / 2**0.5)


def test_settings_that_cannot_change_a_result_are_marked_where_they_are_declared() -> None:
    tree = {role: {"root": role} for role in ("source", "target", "val")}
    settings = resolve(tree | {"method": {"regularizer": {}}})
    free = {key for key in flatten(settings.model_dump(mode="json")) if not affects_result(key)}
    watching = {key for key in free if key.startswith(("selection.", "train.guard."))}
    loader = {f"loader.{key}" for key in ("workers", "timeout", "cache")}
    computing = {f"train.{key}" for key in ("accelerator", "compile", "deterministic", "activation_checkpointing")}
    writing = {f"train.{key}" for key in ("evaluate_every", "checkpoint_every", "log_every", "pictures_every")}
    tracking = {f"train.{key}" for key in ("timeout_minutes", "track", "track_project")}
    reading = {"loader.max_pixels", "inference.max_pixels"}
    assert free - watching == loader | reading | computing | writing | tracking | {"stages"}
    assert len(watching) > 5
    assert affects_result("train.guard.skip")
    assert affects_result("no.such.setting")
    assert not affects_result("selection")


@pytest.mark.parametrize(
    ("key", "value"), [("optim__lr", 1e-3), ("source__root", "data/urbansyn"), ("train__devices", 2)]
)
def test_what_can_change_the_result_does(tmp_path: Path, key: str, value: Any) -> None:
    runs = group(tmp_path, PARTS["DAFormer"], (0.5, 0.52))
    change(runs[1], **{key: value})
    found = [group.name for group in compare(runs).groups]
    assert len(found) == 2
    word = yaml.safe_dump(value).splitlines()[0].removeprefix("data/")
    assert found[1] == f"DAFormer ({key.replace('__', '.')}={word})"


def test_a_general_folder_name_says_whose_it_is(tmp_path: Path) -> None:
    runs = group(tmp_path, PARTS["DAFormer"], (0.5, 0.52))
    for run, root in zip(runs, ("a/camera/train", "b/game/train"), strict=True):
        change(run, target__root=root)
    assert [essentials(read_run(run))["target.root"] for run in runs] == ["camera/train", "game/train"]


def test_an_older_run_without_a_setting_has_its_default(tmp_path: Path) -> None:
    runs = group(tmp_path, {}, (0.5, 0.52))
    change(runs[1], optim__head_lr_factor=10.0)
    assert len(compare(runs).groups) == 1


def test_many_differences_are_shortened_but_names_stay_distinct(tmp_path: Path) -> None:
    runs = group(tmp_path, {}, (0.5, 0.5, 0.5))
    for seed, run in enumerate(runs[:2]):
        change(run, optim__lr=1.0 + seed, optim__power=1.0 + seed, optim__warmup=1 + seed, optim__min_lr=1.0 + seed)
    first, second = names(runs[:2])
    assert first == "source-only (optim.lr=1.0, optim.warmup=1, optim.power=1.0, …)"
    assert second == "source-only (optim.lr=2.0, optim.warmup=2, optim.power=2.0, …)"
    change(runs[2], optim__lr=2.0, optim__power=2.0, optim__warmup=2, optim__min_lr=3.0)
    third = write_run(tmp_path / "third", {}, 3, 0.5)
    change(third, optim__lr=1.0, optim__power=1.0, optim__warmup=1, optim__min_lr=4.0)
    found = names([*runs, third])
    assert found[1:3] == [
        "source-only (optim.lr=2.0, optim.warmup=2, optim.power=2.0, optim.min_lr=2.0)",
        "source-only (optim.lr=2.0, optim.warmup=2, optim.power=2.0, optim.min_lr=3.0)",
    ]
    assert len(set(found)) == 4


def test_what_is_usual_is_not_said(tmp_path: Path) -> None:
    runs = group(tmp_path, PARTS["DAFormer"] | SSR, (0.5, 0.5, 0.5, 0.5))
    change(runs[1], method__regularizer__foundation__weights="none")
    change(runs[2], method__regularizer__stages=[3])
    change(runs[3], method__regularizer__stages=[2, 3])
    assert names(runs) == [
        "DAFormer + SSR",
        "DAFormer + SSR (method.regularizer.foundation.weights=none)",
        "DAFormer + SSR (method.regularizer.stages=[3])",
        "DAFormer + SSR (method.regularizer.stages=[2, 3])",
    ]


def test_who_trains_on_the_others_target_is_the_oracle(tmp_path: Path) -> None:
    (adapted,), (source_only,), (oracle,) = (
        group(tmp_path / name, method, (0.5,)) for name, method in (("a", PARTS["DAFormer"]), ("b", {}), ("c", {}))
    )
    change(oracle, source={"root": "elsewhere/cityscapes", "spec": "cityscapes", "split": "train"})
    assert [group.name for group in compare([adapted, source_only, oracle]).groups] == [
        "DAFormer",
        "source-only",
        "oracle",
    ]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ({"alignment": {}}, "FADA"),
        ({"alignment": {}} | SSR, "FADA + SSR"),
        ({"alignment": {"weight": 0.01}} | PARTS["DAFormer"], "DAFormer + FADA"),
    ],
)
def test_methods_of_alignment_have_their_names(tmp_path: Path, method: dict[str, Any], name: str) -> None:
    assert compare([write_run(tmp_path / "run", method)]).groups[0].method == name


def recipe(folder: Path, method: dict[str, Any], stages: dict[str, str], seed: int = 0) -> Path:
    """A folder of stages that were trained or adjusted, as settings name them."""
    for number, (name, does) in enumerate(stages.items()):
        run = write_run(folder / name, method, seed, 0.4 + 0.1 * number)
        change(run, model__start=str(folder / "before" / "student-last.safetensors"))
        if does != "train":
            (run / "metrics.jsonl").unlink()
            written = json.loads((run / "scores.json").read_text())
            written["last"]["step"] = 0
            (run / "scores.json").write_text(json.dumps(written))
    base = yaml.safe_load((folder / next(iter(stages)) / "config.yaml").read_text())
    listed = [{"name": "counted", "does": "priors"}, *({"name": name, "does": does} for name, does in stages.items())]
    (folder / "stages.yaml").write_text(yaml.safe_dump(base | {"stages": listed}))
    return folder


def test_the_stages_of_undoing_are_told_apart_over_seeds(tmp_path: Path) -> None:
    method = {"alignment": {}}
    stages = {"align": "train", "adjusted": "adjust", "distilled": "train"}
    folders = [recipe(tmp_path / f"undoing-{seed}", method, stages, seed) for seed in (0, 1)]
    assert [run.name for run in members(folders[0])] == list(stages)
    found = compare(folders).groups
    assert [(group.name, group.n) for group in found] == [
        ("Undoing: align", 2),
        ("Undoing: adjusted", 2),
        ("Undoing", 2),
    ]


def test_a_group_may_hold_folders_of_stages(tmp_path: Path) -> None:
    for seed in (0, 1):
        recipe(tmp_path / f"seed-{seed}", PARTS["DAFormer"], {"trained": "train", "adjusted": "adjust"}, seed)
    (tmp_path / "group.yaml").write_text("{}")
    found = compare([tmp_path]).groups
    assert [(group.name, group.n) for group in found] == [("DAFormer", 2), ("DAFormer + IA", 2)]


# contrasts and words


@pytest.mark.parametrize(
    ("other", "word"),
    [((0.60, 0.62, 0.63), "better"), ((0.40, 0.42, 0.43), "worse"), ((0.53, 0.50, 0.52), "within noise")],
)
def test_the_words_follow_the_interval(tmp_path: Path, other: Sequence[float], word: str) -> None:
    (contrast,) = two(tmp_path, (0.50, 0.52, 0.53), other).contrasts
    gaps = [b - a for a, b in zip((0.50, 0.52, 0.53), other, strict=True)]
    half = 4.30265 * statistics.stdev(gaps) / 3**0.5
    assert contrast.miou.half_width == pytest.approx(half, abs=1e-6)
    assert contrast.verdict == word
    assert sentence(contrast).startswith("MIC against DAFormer: ")
    assert sentence(contrast).endswith(f"(paired by seed, n = 3): {word}.")


def test_other_seeds_are_compared_without_pairs_and_that_is_said(tmp_path: Path) -> None:
    (contrast,) = two(tmp_path, (0.50, 0.51), (0.60, 0.62), first=5).contrasts
    assert "Welch, not paired, n = 2 and 2" in sentence(contrast)


def test_one_seed_says_nothing_and_few_are_a_caveat(tmp_path: Path) -> None:
    found = two(tmp_path, (0.5,), (0.6,))
    assert found.contrasts[0].verdict == "too few seeds"
    assert sentence(found.contrasts[0]).endswith("+10.0 points of mIoU. One seed: no statement about noise.")
    assert any("Fewer than 3 seeds: DAFormer (n = 1), MIC (n = 1)" in line for line in found.caveats)


def test_means_over_different_classes_are_no_one_measure(tmp_path: Path) -> None:
    # No label has a train: two runs leave it out of their mean, the third has predicted a pixel of it.
    runs = [*group(tmp_path / "a", PARTS["DAFormer"], (0.5, 0.5))]
    assert not [line for line in compare(runs).caveats if "different classes" in line]
    runs += group(tmp_path / "b", PARTS["MIC"], (0.4,), iou=(0.9, 0.3, 0.0))
    (said,) = [line for line in compare(runs).caveats if "different classes" in line]
    assert "a score of train in 1 of 3 runs" in said
    assert said.endswith("Over the other 2: DAFormer 50.0, MIC 60.0.")


def test_what_holm_takes_back_is_said(tmp_path: Path) -> None:
    # Differences of 3, 5, 6, 9 points: t = 5.75 / 1.25 at 3 degrees, p = 0.02; four times that is no evidence.
    runs = group(tmp_path / "base", PARTS["DAFormer"], (0.5, 0.5, 0.5, 0.5))
    for number, gaps in enumerate([(0.03, 0.05, 0.06, 0.09)] * 4):
        for run in group(tmp_path / str(number), PARTS["MIC"], [0.5 + gap for gap in gaps]):
            runs.append(change(run, optim__lr=0.1 * (number + 1)))
    found = compare(runs)
    assert found.contrasts[0].miou.verdict == "better"
    assert found.contrasts[0].adjusted_p == pytest.approx(4 * found.contrasts[0].miou.p, abs=1e-9)
    assert found.contrasts[0].verdict == "better, but within noise once all comparisons are counted"


def test_ssr_is_also_set_against_the_method_that_it_is_added_to(tmp_path: Path) -> None:
    parts = {"0": {}, "1": PARTS["MIC"], "2": PARTS["MIC"] | SSR}
    runs = [run for name, method in parts.items() for run in group(tmp_path / name, method, (0.5, 0.6))]
    pairs = [(each.group.name, each.base.name) for each in compare(runs).contrasts]
    assert pairs == [("MIC", "source-only"), ("MIC + SSR", "source-only"), ("MIC + SSR", "MIC")]
    against = compare(runs, against="mic + ssr")
    assert [(each.group.name, each.base.name) for each in against.contrasts] == [
        ("source-only", "MIC + SSR"),
        ("MIC", "MIC + SSR"),
    ]


def test_ssr_is_set_against_the_nearest_settings(tmp_path: Path) -> None:
    runs = []
    for name, method, rate in (("a", {}, 0.1), ("b", {}, 0.2), ("c", SSR, 0.2)):
        runs += [change(run, optim__lr=rate) for run in group(tmp_path / name, PARTS["DAFormer"] | method, (0.5,))]
    found = compare(runs)
    base = found.base_of(found.groups[2])
    assert base is not None
    assert base.name == "DAFormer (optim.lr=0.2)"


def test_classes_are_sorted_by_gain_and_the_absent_come_last(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"a{seed}", PARTS["DAFormer"], seed, iou=(0.9, 0.1, None)) for seed in (0, 1)]
    runs += [write_run(tmp_path / f"b{seed}", PARTS["MIC"], seed, iou=(0.8, 0.2 + seed / 5, None)) for seed in (0, 1)]
    (contrast,) = compare(runs).contrasts
    assert [name for name, _ in contrast.classes] == ["car", "road", "train"]
    car, road, train = (gap for _, gap in contrast.classes)
    assert car is not None
    assert car.mean == pytest.approx(0.2)
    assert car.half_width == pytest.approx(12.7062 * 0.1, abs=1e-4)  # differences 0.1 and 0.3, t at 1 degree
    assert (road is not None and road.verdict, train) == ("worse", None)
    assert class_differences(contrast).rows[-1] == ("train", "absent", "–", "–", "–", "–")


def test_the_best_is_the_oracles_and_the_teacher_can_be_asked(tmp_path: Path) -> None:
    (run,) = group(tmp_path, PARTS["DAFormer"], (0.5,))
    written = json.loads((run / "scores.json").read_text())
    written["best"]["student"] = {**written["best"]["student"], "miou": 0.7}
    written["last"]["teacher"] = {**written["last"]["teacher"], "miou": 0.6}
    (run / "scores.json").write_text(json.dumps(written))
    (student,), (teacher,) = compare([run]).groups, compare([run], network="teacher").groups
    assert (student.miou.mean, teacher.miou.mean) == (0.5, 0.6)
    assert student.best is not None
    assert (student.best.mean, teacher.best) == (0.7, None)
    assert "oracle's choice" in comparison_text(compare([run]))


# refusals


def test_unfinished_runs_are_named_and_can_be_allowed(tmp_path: Path) -> None:
    runs = [*group(tmp_path, PARTS["DAFormer"], (0.5, 0.6)), write_run(tmp_path / "stopped", seed=2, miou=None)]
    late = json.loads((runs[1] / "scores.json").read_text())
    late["last"]["step"] = 400
    (runs[1] / "scores.json").write_text(json.dumps(late))
    with pytest.raises(UserError, match=r"Not finished: .*/1 \(500 of 500 steps\), .*/stopped.*--allow-unfinished"):
        compare(runs)
    found = compare(runs, allow_unfinished=True)
    assert found.groups[0].n == 2
    assert any("stopped" in line and "Left out" in line for line in found.caveats)
    assert any("Not finished, with its latest score" in line for line in found.caveats)


def test_runs_without_scores_are_refused(tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    (run / "scores.json").unlink()
    for allow in (False, True):
        with pytest.raises(UserError, match=r"Without scores: .*run.*give `val`"):
            compare([run, other], allow_unfinished=allow)
    compare([other])  # as the message says: left out
    with pytest.raises(UserError, match="No run to compare"):
        compare([])


def test_runs_of_other_classes_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", classes=("road", "sea", "train"))]
    with pytest.raises(UserError, match=r"b has the classes road, sea, train, but .*a has road, car, train"):
        compare(runs)


@pytest.mark.parametrize(("word", "said"), [("DACS", "no group"), ("d", "several groups")])
def test_a_reference_that_is_not_one_group_is_refused(tmp_path: Path, word: str, said: str) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", PARTS["DAFormer"] | SSR)]
    with pytest.raises(UserError, match=f"{said}; choose one of 'DAFormer', 'DAFormer \\+ SSR'"):
        compare(runs, against=word)


# the paper's tables


def test_the_papers_rows_add_up() -> None:
    table = data_of("paper.yaml")["table2"]
    assert [row["method"] for row in table["rows"]] == [
        "DACS",
        "Undoing",
        "DAFormer",
        "MIC",
        "DAFormer + SSR",
        "MIC + SSR",
    ]
    for row in table["rows"]:
        assert len(row["iou"]) == len(table["classes"]) == len(table["headings"]) == 19
        assert statistics.fmean(row["iou"]) == pytest.approx(row["miou"], abs=0.08)  # as printed
        assert row["source"]


def test_the_papers_numbers_are_those_of_its_text() -> None:
    text = Path(__file__).parents[2] / "shared" / "reference" / "ssr-paper.txt"
    if not text.is_file():
        pytest.skip("the paper's text is not at hand")
    printed = {}
    for line in text.read_text().splitlines():
        name, *cells = (cell.strip() for cell in line.split("|"))
        if len(cells) == 21 and re.fullmatch(r"[\d.]+", cells[0]):
            printed[re.sub(r" \[\d+\]", "", name)] = [float(cell) for cell in cells[:20]]
    assert printed == {row["method"]: [*row["iou"], row["miou"]] for row in data_of("paper.yaml")["table2"]["rows"]}
    ablation = re.findall(r"(?:^|\| )(6[89]\.\d) \| (-|\d\.\d) \|", text.read_text(), re.M)
    assert [float(miou) for miou, _ in ablation] == [row["miou"] for row in data_of("paper.yaml")["table1"]["rows"]]


def test_table_one_sets_our_stages_beside_the_papers(tmp_path: Path) -> None:
    runs = group(tmp_path / "base", PARTS["DAFormer"], (0.5, 0.52, 0.54))
    for name, stages in (("all", [0, 1, 2, 3]), ("odd", [1])):
        method = PARTS["DAFormer"] | {"regularizer": {**SSR["regularizer"], "stages": stages}}
        runs += group(tmp_path / name, method, (0.51, 0.53, 0.56))
    sheet = table1(compare(runs, table1=True))
    rows = {row[:4]: row[4:] for row in sheet.rows}
    assert rows[("", "", "", "")] == ("68.3", "–", "DAFormer", "3", "52.0 ± 2.0", "–")
    assert rows[("", "", "", "✓")] == ("68.8", "+0.5", "–", "–", "–", "–")
    whole = rows[("✓", "✓", "✓", "✓")]
    assert whole[:2] == ("69.3", "+1.0")
    assert whole[2] == "DAFormer + SSR (method.regularizer.stages=[0, 1, 2, 3])"
    assert whole[4:] == ("53.3 ± 2.5", "+1.3 [−0.1 to +2.8], within noise")
    assert rows[("", "✓", "", "")][:2] == ("–", "–")
    assert "not the paper's data" in " ".join(sheet.notes)


def table_two(folder: Path, classes: Sequence[str]) -> list[TextTable]:
    """Two of the six methods, two seeds each."""
    iou = [0.5 + 0.01 * number for number in range(len(classes))]
    runs = group(folder / "a", PARTS["DAFormer"], (0.6, 0.62), classes=classes, iou=iou)
    runs += group(folder / "b", PARTS["DAFormer"] | SSR, (0.63, 0.64), classes=classes, iou=iou)
    return list(table2(compare(runs, table2=True)))


def test_table_two_has_a_row_of_ours_below_each_of_the_papers(tmp_path: Path) -> None:
    whole, gains = table_two(tmp_path, list(reversed(CITYSCAPES)))
    assert [row[:2] for row in whole.rows] == [
        (method, whose)
        for method in ("DACS", "Undoing", "DAFormer", "MIC", "DAFormer + SSR", "MIC + SSR")
        for whose in ("paper", "ours")
    ]
    paper, ours = whole.rows[4:6]
    assert (paper[2], paper[-2], ours[2], ours[-2:]) == ("95.7", "68.3", "68.0", ("61.0 ± 1.4", "2"))
    assert set(whole.rows[1][2:]) == {"–"}
    assert "gta5 → cityscapes, the student at the last step" in " ".join(whole.notes)
    assert "not the paper's data" not in " ".join(whole.notes)
    assert gains.rows[0] == ("DAFormer + SSR", "DAFormer", "+1.0", "2", "+2.5 [−3.9 to +8.9], within noise")
    assert gains.rows[1] == ("MIC + SSR", "MIC", "+0.5", "–", "–")


def test_other_classes_stand_in_a_table_of_their_own_and_are_no_reproduction(tmp_path: Path) -> None:
    whole, ours, _ = table_two(tmp_path, ("road", "car", "train"))
    assert {row[1] for row in whole.rows} == {"paper"}
    assert "nothing here reproduces its numbers" in " ".join(whole.notes)
    assert ours.header[1:4] == ("road", "car", "train")
    assert ours.rows[0] == ("DACS", "–", "–", "–", "–", "–", "57.8")
    assert ours.rows[2] == ("DAFormer", "50.0", "51.0", "52.0", "61.0 ± 1.4", "2", "68.3")


def test_cityscapes_classes_of_other_data_are_no_reproduction(tmp_path: Path) -> None:
    iou = [0.5] * 19
    run = change(write_run(tmp_path / "run", classes=CITYSCAPES, iou=iou), source__spec="urbansyn")
    whole, _ = table2(compare([run], table2=True))
    assert "ours: urbansyn → cityscapes, 19 classes" in " ".join(whole.notes)
    assert "not the paper's data" in " ".join(whole.notes)


# formats


def test_latex_prints_what_it_is_given() -> None:
    assert latex("50% & a_b#1 {x} $y$ ~^\\") == (
        r"50\% \& a\_b\#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert latex("−1.0 ± 0.2 → ✓ [best*] a|b <c>") == (
        r"$-$1.0 $\pm$ 0.2 $\rightarrow$ \checkmark {[}best{*}] a$|$b $<$c$>$"
    )


def test_latex_tables_are_whole(tmp_path: Path) -> None:
    text = comparison_text(two(tmp_path, (0.5, 0.52), (0.6, 0.61)), "latex")
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 4
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        columns, body = block
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert lines
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines)


def test_markdown_has_the_words_and_escapes_bars(tmp_path: Path) -> None:
    text = comparison_text(
        compare([write_run(tmp_path / f"{seed}", seed=seed, classes=("a|b", "car", "train")) for seed in (0, 1)])
    )
    assert "| a\\|b | 90.0 ± 0.0 |" in text
    assert "One group: nothing to compare." in text
    assert "| DAFormer | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 | 0: 50.0, 1: 50.0 |" in text


def test_csv_has_every_number_once(tmp_path: Path) -> None:
    runs = group(tmp_path / "a", PARTS["DAFormer"], (0.5, 0.52, 0.53, 0.55, 0.5))
    runs += group(tmp_path / "b", PARTS["MIC"], (0.6, 0.61, 0.65, 0.62, 0.6))
    found = compare(runs, table1=True, table2=True)
    rows = list(csv.DictReader(io.StringIO(comparison_text(found, "csv"))))
    scores = [row for row in rows if row["record"] == "score" and row["measure"] == "miou"]
    assert [(row["group"], row["seed"], float(row["value"])) for row in scores[:2]] == [
        ("DAFormer", "0", 50.0),
        ("DAFormer", "1", 52.0),
    ]
    whole, resampled = (row for row in rows if row["record"] == "difference" and row["measure"] == "miou")
    gap = found.contrasts[0].miou
    assert gap.interval is not None
    assert (float(whole["low"]), float(whole["p"])) == (pytest.approx(100 * gap.interval[0]), pytest.approx(gap.p))
    assert resampled["test"] == "paired bootstrap"
    assert sum(row["record"] == "paper" for row in rows) == 5 + 6 * 20
    assert not any("train" in row["class"] for row in rows if row["record"] == "difference")


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    hostile = '<script src="https://example.org/x.js">'
    runs = [write_run(tmp_path / name, PARTS[name], classes=(hostile, "car", "train")) for name in ("DAFormer", "MIC")]
    text = comparison_text(compare(runs, table1=True, table2=True), "html")
    tags = Tags()
    tags.feed(text)
    assert not tags.names & {"script", "link", "iframe", "object", "embed", "base", "img"}
    assert not tags.addresses
    assert "&lt;script" in text
    assert "prefers-color-scheme: dark" in text
    assert "Table II: ours, by our classes" in text


def test_the_terminal_turns_wide_tables(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=110)
    found = compare([write_run(tmp_path / "a", classes=("[red]x", "car", "train"))], table2=True)
    print_comparison(found, console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert re.search(r"^Road +95\.0 +92\.9 +95\.7 +96\.9 +96\.5 +97\.3", printed, re.M)
    assert "[red]x" in printed
    assert "…" not in printed


def test_the_format_follows_the_name(tmp_path: Path) -> None:
    assert format_of(Path("x.tex")) == "latex"
    with pytest.raises(UserError, match=r"should end in \.md"):
        format_of(Path("x.pdf"))
    with pytest.raises(UserError, match="There is no format 'pdf'"):
        comparison_text(compare([write_run(tmp_path / "a")]), "pdf")


def test_the_command_line_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(run) for name in ("DAFormer", "MIC") for run in group(tmp_path / name, PARTS[name], (0.5, 0.52))]

    def say(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["ssrseg", "compare", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out + said.err  # type: ignore[return-value]

    code, said = say(*runs, "--against", "mic")
    assert code == 0
    assert "DAFormer against MIC: +0.0 points of mIoU" in said
    page = tmp_path / "out.html"
    assert say(*runs, "--table2", "--out", str(page))[0] == 0
    assert page.read_text().startswith("<!doctype html>")
    assert say(*runs, "--format", "csv")[1].startswith("record,group,")
    code, said = say(*runs, "--against", "nobody")
    assert (code, "names no group" in said) == (2, True)
