"""The report: statistics by hand, and pages about finished, unfinished and hostile runs."""

from __future__ import annotations

import io
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from ssrseg.errors import UserError
from ssrseg.reporting import compare_records, method_name, overview, print_table, read_run, report, table_markdown
from ssrseg.reporting.charts import ticks
from ssrseg.reporting.examples import spaced
from ssrseg.reporting.page import choices
from ssrseg.reporting.statistics import difference, spearman, spread
from ssrseg.reporting.text_tables import statements

PARTS: dict[str, dict[str, Any]] = {
    "source-only": {},
    "FDA": {"fourier": {}},
    "DACS": {"mixed": {"classes_of": "image"}},
    "DACS + FDA": {"mixed": {"classes_of": "image"}, "fourier": {}},
    "DAFormer": {"mixed": {"classes_of": "batch"}, "feature_distance": {"weight": 0.005}},
    "MIC": {"mixed": {"classes_of": "batch"}, "masked": {"ratio": 0.7}, "feature_distance": {"weight": 0.005}},
}
SSR = {"regularizer": {"foundation": {"encoder": "sam-vit-b", "weights": "hub"}, "weight": 1.0}}
NOTHING = dict.fromkeys(("mixed", "masked", "feature_distance", "regularizer"))


def settings(method: dict[str, Any], seed: int = 0, steps: int = 500) -> dict[str, Any]:
    """The part of the resolved settings that a report reads."""
    return {
        "source": {"root": "data/gta5", "spec": "gta5"},
        "target": {"root": "data/cityscapes", "spec": "cityscapes"},
        "val": {"root": "data/cityscapes", "spec": "cityscapes"},
        "loader": {"crop": [512, 512], "batch": 2},
        "model": {"backbone": "mit_b5", "head": "daformer", "pretrained": "hub"},
        "method": NOTHING | method,
        "optim": {"lr": 6e-5},
        "inference": {"mode": "whole"},
        "train": {"steps": steps, "seed": seed},
    }


def metrics(losses: Sequence[str], until: int, end: float) -> list[dict[str, Any]]:
    """Falling losses and a rising mIoU."""
    lines: list[dict[str, Any]] = []
    for step in range(50, until + 1, 50):
        values = dict.fromkeys(losses, 2.0 / (1 + step / 100))
        lines.append({"kind": "train", "step": step, "lr": 6e-5, "losses": values, "images_per_second": 3.0})
    for step in range(100, until + 1, 100):
        score = {"miou": end * step / until, "pixel_accuracy": 0.8}
        lines.append({"kind": "eval", "step": step, "student": score, "teacher": score})
    return lines


def scores(miou: float, step: int, classes: Sequence[str], iou: Sequence[float | None]) -> dict[str, Any]:
    """A scores.json."""
    student = {"miou": miou, "pixel_accuracy": 0.8, "iou": list(iou)}
    last = {"student": student, "teacher": student, "step": step}
    return {"classes": list(classes), "last": last, "best": {"student": student, "step": step}}


def write_run(
    folder: Path,
    method: dict[str, Any] = PARTS["DAFormer"],
    seed: int = 0,
    miou: float | None = 0.5,
    steps: int = 500,
    classes: Sequence[str] = ("road", "car", "train"),
    iou: Sequence[float | None] = (0.9, 0.1, None),
) -> Path:
    """A run folder as the trainer leaves it; without a mIoU an unfinished one."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(method, seed, steps)))
    (folder / "environment.json").write_text(json.dumps({"ssrseg": "0.1.0", "gpu": {"name": "none"}}))
    lines = metrics(("source/segmentation", "mixed/segmentation"), steps if miou else steps // 2, miou or 0.3)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if miou is not None:
        (folder / "scores.json").write_text(json.dumps(scores(miou, steps, classes, iou)))
    for name in ("step-000100-source", "step-000100-mixed", "step-000200-mixed"):
        Image.new("RGB", (96, 32), (90, 120, 60)).save(folder / "pictures" / f"{name}.png")
    return folder


def page(runs: Sequence[Path]) -> str:
    """The text of the report about the runs."""
    path: Path = report(runs)
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Names of the elements of a page, and every address that one of them would fetch or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what could leave the page."""
        self.names.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def append(folder: Path, text: str) -> None:
    """More text at the end of the metrics."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def test_spread_is_the_sample_deviation_and_blank_for_one_value() -> None:
    several, single = spread([0.1, 0.2, 0.3]), spread([0.4])
    assert several is not None
    assert (several.n, several.mean, several.sd) == (3, pytest.approx(0.2), pytest.approx(0.1))
    assert single is not None
    assert (single.n, single.sd) == (1, None)
    assert spread([]) is None


def test_difference_is_paired_when_the_seeds_coincide() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, so t(2) * 1 / sqrt(3) = 4.30265 / 1.73205.
    gap = difference([(0, 10.0), (1, 20.0), (2, 30.0)], [(2, 33.0), (0, 11.0), (1, 22.0)])
    assert gap.mean == pytest.approx(2)
    assert gap.half_width == pytest.approx(2.48414, abs=1e-4)
    assert gap.verdict == "within noise"
    assert gap.test == "paired by seed, n = 3"


def test_difference_is_welch_when_the_seeds_differ() -> None:
    # Variances 1 and 4, n = 3 and 3: error sqrt(5/3), freedom (5/3)^2 / ((1/9 + 16/9) / 2) = 2.94118,
    # t = 3.21875 (from the regularised incomplete beta function).
    gap = difference([(0, 1.0), (1, 2.0), (2, 3.0)], [(3, 10.0), (4, 12.0), (5, 14.0)])
    assert gap.mean == pytest.approx(10)
    assert gap.half_width == pytest.approx(3.21875 * (5 / 3) ** 0.5, abs=1e-4)
    assert gap.verdict == "better"
    assert gap.test.startswith("Welch")


def test_difference_of_single_seeds_has_no_interval() -> None:
    gap = difference([(0, 1.0)], [(0, 2.0), (1, 2.5)])
    assert gap.half_width is None
    assert gap.verdict == "too few seeds"


def test_difference_without_any_spread_is_no_division_by_zero() -> None:
    assert difference([(0, 1.0), (1, 1.0)], [(2, 2.0), (3, 2.0)]).verdict == "better"


@pytest.mark.parametrize("name", PARTS)
def test_method_names(name: str) -> None:
    assert method_name(settings(PARTS[name])) == name
    assert method_name(settings(PARTS[name] | SSR)) == f"{name} + SSR"


def test_an_unpublished_composition_is_custom() -> None:
    assert method_name(settings({"masked": {"ratio": 0.5}})) == "custom"
    assert method_name(settings({"feature_distance": {"weight": 1.0}} | SSR)) == "custom + SSR"


def test_table_groups_seeds_and_compares_with_the_first_group(tmp_path: Path) -> None:
    values = {"DAFormer": (0.50, 0.52, 0.54), "MIC": (0.60, 0.61, 0.65)}
    folders = [
        write_run(tmp_path / f"{method}-{seed}", PARTS[method], seed, miou)
        for method, mious in values.items()
        for seed, miou in enumerate(mious)
    ]
    result = compare_records([read_run(folder) for folder in folders])
    first, second = result.groups
    assert (first.name, second.name) == ("DAFormer", "MIC")
    assert first.miou is not None
    assert first.miou.sd == pytest.approx(0.02)
    assert first.iou("road") is not None
    assert first.iou("train") is None
    gaps = [0.10, 0.09, 0.11]
    (contrast,) = result.contrasts
    assert (contrast.group, contrast.base) == (second, first)
    assert contrast.miou.half_width == pytest.approx(4.30265 * statistics.stdev(gaps) / 3**0.5, abs=1e-5)
    (line,) = statements(result)
    assert line == ("MIC against DAFormer: +10.0 points of mIoU, 95% +7.5 to +12.5 (paired by seed, n = 3): better.")


def test_one_seed_makes_no_statement_about_noise(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", PARTS["DACS"])),
        read_run(write_run(tmp_path / "b", PARTS["DACS"] | SSR, miou=0.49)),
    ]
    assert statements(compare_records(runs)) == [
        "DACS + SSR against DACS: −1.0 points of mIoU. One seed: no statement about noise."
    ]


def test_groups_of_one_method_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(steps), steps=steps)) for steps in (400, 500)]
    result = compare_records(runs)
    assert [group.name for group in result.groups] == ["DAFormer (train.steps=400)", "DAFormer (train.steps=500)"]
    assert "The runs were scored at different steps: 400, 500." in result.caveats


def test_runs_without_scores_and_repeated_seeds_are_caveats(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b"), write_run(tmp_path / "c", seed=1, miou=None)]
    result = compare_records([read_run(folder) for folder in folders])
    assert result.groups[0].miou is not None
    assert result.groups[0].miou.n == 2
    assert any("1 of 3 runs have no scores" in line for line in result.caveats)
    assert any("seed 0 ran more than once" in line for line in result.caveats)


def test_markdown_and_console_hold_the_same_numbers(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", miou=0.5, classes=("a|b", "[red]x", "train")),
        write_run(tmp_path / "b", seed=1, miou=0.6, classes=("a|b", "[red]x", "train")),
    ]
    result = compare_records([read_run(folder) for folder in folders])
    markdown = table_markdown(overview(result))
    assert "| mIoU | 55.0 ± 7.1 |" in markdown
    assert "| a\\|b | 90.0 ± 0.0 |" in markdown
    assert "| train | – |" in markdown
    console = Console(file=io.StringIO(), width=100)
    print_table(overview(result), console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "55.0 ± 7.1" in printed
    assert "[red]x" in printed


def test_a_page_about_one_run(tmp_path: Path) -> None:
    text = page([write_run(tmp_path / "run", PARTS["MIC"] | SSR)])
    assert (tmp_path / "run" / "report.html").is_file()
    for expected in ("MIC + SSR", "oracle choice", "mixed/segmentation", "sam-vit-b", "gpu.name", "50.0", "road"):
        assert expected in text
    assert text.count("data:image/jpeg;base64,") == 3
    assert "about noise" not in text


def test_a_page_about_several_runs_lies_in_their_common_folder(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / method / f"seed-{seed}", PARTS[method], seed, 0.5 + 0.01 * seed + 0.1 * (method == "MIC"))
        for method in ("DAFormer", "MIC")
        for seed in (0, 1)
    ]
    text = page(folders)
    assert (tmp_path / "report.html").is_file()
    assert "paired by seed, n = 2" in text
    assert "MIC/seed-1" in text
    assert text.count("<svg") == 3


def test_a_page_about_an_unfinished_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", miou=None)
    append(folder, '{"kind": "train", "step": 300, "los')
    text = page([folder])
    assert "250 of 500 steps, unfinished" in text
    assert "No final scores; at step 200 the student had a mIoU of 24.0." in text
    assert 'id="warnings"' not in text


def test_a_page_about_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings({})))
    assert "0 of 500 steps, unfinished" in page([tmp_path])


def test_pages_are_self_contained_and_escaped(tmp_path: Path) -> None:
    hostile = '<script src="https://example.org/x.js">'
    folder = write_run(tmp_path / "<b>run", classes=(hostile, "car", "train"))
    append(folder, json.dumps({"kind": "warning", "step": 7, "text": hostile}) + "\n")
    append(folder, json.dumps({"kind": "train", "step": 550, "losses": {'"><i>/x': 1.0}}) + "\n")
    other = write_run(tmp_path / "other", PARTS["MIC"])
    for text in (page([folder]), page([folder, other])):
        tags = Tags()
        tags.feed(text)
        assert not tags.names & {"link", "iframe", "object", "embed", "base"}
        assert text.count("<script") == 1
        assert tags.addresses
        assert all(re.match(r"data:image/(jpeg|png);base64,|#\w+$", address) for address in tags.addresses)
        assert not re.search(r"@import|url\(", text)
        assert "&lt;script" in text
        assert "<i>/x" not in text
        assert "<b>run" not in text


def test_what_a_resumed_run_logged_again_replaces_the_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    append(folder, '{"kind": "train", "st\n')
    append(folder, json.dumps({"kind": "train", "step": 100, "losses": {"source/segmentation": 7.0}}) + "\n")
    run = read_run(folder)
    assert [entry.step for entry in run.train] == list(range(50, 501, 50))
    assert run.train[1].losses == {"source/segmentation": 7.0}
    assert [note.text for note in run.notes] == ["metrics.jsonl, line 16 is not valid JSON and was left out."]


def test_a_loss_that_is_not_finite_is_a_warning_at_its_first_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for step in (550, 600):
        append(folder, f'{{"kind": "train", "step": {step}, "losses": {{"source/segmentation": NaN}}}}\n')
    (note,) = read_run(folder).notes
    assert (note.step, note.warning) == (550, True)
    assert "source/segmentation was not finite" in page([folder])


def test_an_unreadable_picture_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "pictures" / "step-000300-mixed.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    text = page([folder])
    assert text.count("data:image/jpeg;base64,") == 3
    assert "1 more in the run folder/pictures." in text


def test_many_large_pictures_stay_below_the_budget(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    noise = Image.effect_noise((1600, 1600), 100).convert("RGB")
    noise.save(tmp_path / "noise.png")
    for step in range(1000, 7000, 1000):
        for view in ("source", "mixed", "masked"):
            (folder / "pictures" / f"step-{step:06d}-{view}.png").write_bytes((tmp_path / "noise.png").read_bytes())
    text = page([folder])
    assert len(text) < 10_000_000
    assert "<h3>Step 6000</h3>" in text


@pytest.mark.parametrize(("name", "found"), [("absent", "no such folder"), ("empty", "no config.yaml")])
def test_what_is_no_run_folder_is_named(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=found):
        read_run(tmp_path / name)


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", classes=("road",))
    with pytest.raises(UserError, match="3 IoU values for 1 classes"):
        read_run(folder)
    (folder / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json is not valid JSON .* Write it again, or delete it"):
        read_run(folder)
    (folder / "scores.json").unlink()
    assert read_run(folder).last is None


def test_report_wants_a_run_and_a_writable_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run to report"):
        report([])
    with pytest.raises(UserError, match=r"Cannot write .* Give a file name in `out`\."):
        report([write_run(tmp_path / "run")], out=tmp_path)
    assert report([tmp_path / "run"], out=tmp_path / "page.html").is_file()


@pytest.mark.parametrize(("highest", "last"), [(0.0, None), (0.03, 0.03), (1.0, 1.0), (73.2, 80), (40000, 40000)])
def test_ticks_are_round_and_cover_the_highest(highest: float, last: float | None) -> None:
    found = ticks(highest)
    assert found[0] == 0
    assert 2 <= len(found) <= 6
    assert found[-1] >= highest
    assert last is None or found[-1] == pytest.approx(last)


def test_spaced_keeps_both_ends() -> None:
    assert spaced([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert spaced([1, 2], 6) == [1, 2]


def test_the_report_loads_no_torch_and_scipy_only_when_it_compares() -> None:
    code = "import sys, ssrseg.reporting; sys.exit(bool({'torch', 'scipy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_synthias_means_stand_beside_that_of_all_where_it_is_the_source(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(seed), seed=seed, miou=0.5 + seed / 10) for seed in range(2)]
    for seed, folder in enumerate(folders):
        written = json.loads((folder / "scores.json").read_text())
        written["last"]["student"]["subsets"] = {"synthia16": 0.6 + seed / 10, "synthia13": None}
        (folder / "scores.json").write_text(json.dumps(written))
    assert "synthia16" not in table_markdown(overview(compare_records([read_run(folder) for folder in folders])))
    for folder in folders:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["source"] = {**(config.get("source") or {}), "spec": "synthia"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    markdown = table_markdown(overview(compare_records([read_run(folder) for folder in folders])))
    assert "| mIoU of synthia16 | 65.0 ± 7.1 |" in markdown
    assert "| mIoU of synthia13 | – |" in markdown
    assert "its mIoU of synthia16</dt><dd>60.0" in page(folders[:1])
    assert "mIoU of synthia16" in page([*folders, write_run(tmp_path / "other", PARTS["MIC"])])


def test_the_report_shows_what_the_teacher_labelled(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", classes=("road", "sea", "train"))
    for step, car in ((50, 0.25), (100, 0.00002)):
        append(one, json.dumps({"kind": "labels", "step": step, "shares": {"road": 1 - car, "car": car}}) + "\n")
    append(other, json.dumps({"kind": "labels", "step": 50, "shares": {"sea": 1.0}}) + "\n")
    page = re.sub(r"\s+", "", report([one, other], tmp_path / "report.html").read_text())
    absent = '<tdclass="n">–</td>'
    assert f'<th>car</th><tdclass="n">0.002</td><tdclass="n">25</td>{absent}{absent}' in page
    assert f'<th>sea</th>{absent}{absent}<tdclass="n">100</td><tdclass="n">100</td>' in page


def test_spearman_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5 (sums), so 4.5 / sqrt(22.5).
    assert spearman([1, 5, 5, 9], [0.1, 0.3, 0.2, 0.4]) == pytest.approx(4.5 / 22.5**0.5)
    assert spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_choices_without_labels_are_held_against_the_truth(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", miou=0.5)
    assert "Choosing without labels" not in page([folder])
    # The true mIoU rises to 0.5 at step 500: `im` falls, `snd` peaks at step 300, `agreement` says nothing.
    for step, snd in zip(range(100, 600, 100), (1, 2, 5, 4, 3), strict=True):
        criteria = {"im": -step, "snd": snd, "agreement": None}
        append(folder, json.dumps({"kind": "selection", "step": step, "criteria": criteria}) + "\n")
    im, snd, last, oracle = choices(read_run(folder))
    assert (im.step, im.correlation, im.miou) == (100, pytest.approx(-1), pytest.approx(0.1))
    assert im.regret == pytest.approx(0.4)
    # Ranks 1 2 5 4 3 against 1 2 3 4 5: 1 - 6 * (0 + 0 + 4 + 0 + 4) / (5 * 24).
    assert (snd.step, snd.correlation) == (300, pytest.approx(0.6))
    assert snd.regret == pytest.approx(0.2)
    assert (last.step, last.regret) == (500, 0)
    assert (oracle.step, oracle.miou) == (500, 0.5)
    text = page([folder])
    assert "soft neighbourhood density" in text
    assert "oracle* (target labels)" in text


def test_choices_without_any_labels_are_steps_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", miou=0.5)
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"eval"' not in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    append(folder, json.dumps({"kind": "selection", "step": 100, "criteria": {"im": 1.0}}) + "\n")
    (only,) = choices(read_run(folder))
    assert (only.step, only.correlation, only.miou, only.regret) == (100, None, None, None)
