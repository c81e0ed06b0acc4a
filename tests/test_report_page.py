"""The page in a browser and out of it: comparison of pictures, confusion, bars, reading by pointer and by keys."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssrseg.errors import UserError
from ssrseg.reporting import compare_records, read_run
from ssrseg.reporting.charts import class_bars, matrices
from ssrseg.reporting.examples import error_map, examples, from_both_ends
from ssrseg.reporting.page import differing
from ssrseg.training.observers.pictures import image_scores, reduced
from test_reporting import PARTS, SSR, append, page, write_run

HOSTILE = '"><img src="https://example.org/x.png" onerror="alert(1)"></script><script>alert(2)</script>'
CONFUSION = [[90, 10, 0], [30, 10, 0], [0, 0, 0]]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def leave_predictions(
    folder: Path, mious: Sequence[float | None], *, truth: int = 0, names: Sequence[str] | None = None
) -> None:
    """Predictions as a run leaves them: the first row of image number `i` is wrong, the last of it unlabelled."""
    home = folder / "pictures" / "val"
    home.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, miou in enumerate(mious):
        labels = np.full((8, 16), truth, np.uint8)
        labels[-1] = 255
        ids = labels.copy()
        ids[0], ids[-1] = 1, 0
        for kind, values in (("truth", labels), ("student", ids)):
            picture = Image.fromarray(values)
            picture.putpalette([128, 64, 128, 0, 0, 142, 0, 80, 100] + [0] * 759)
            picture.save(home / f"{number:03}-{kind}.png")
        Image.new("RGB", (16, 8), (90, 120, 60)).save(home / f"{number:03}-image.jpg")
        name = names[number] if names else f"town/{number}.png"
        entries.append({"number": number, "name": name, "miou": miou, "pixel_accuracy": 0.5, "iou": [miou, None, None]})
    record = {"classes": ["road", "car", "train"], "colors": [[128, 64, 128], [0, 0, 142], [0, 80, 100]]}
    (home / "images.json").write_text(json.dumps({**record, "of": 50, "images": entries}))


def write_confusion(folder: Path) -> None:
    """Let the scores of a run hold its confusion matrix."""
    scores = json.loads((folder / "scores.json").read_text())
    scores["last"]["student"]["confusion"] = CONFUSION
    (folder / "scores.json").write_text(json.dumps(scores))


def two_methods(tmp_path: Path) -> list[Path]:
    """DAFormer and DAFormer + SSR, two seeds each; the first seeds predicted three images, of which one got worse."""
    folders = []
    for name, method in (("plain", PARTS["DAFormer"]), ("ssr", PARTS["DAFormer"] | SSR)):
        for seed in (0, 1):
            folders.append(write_run(tmp_path / name / f"seed-{seed}", method, seed, 0.5 + 0.01 * seed))
            write_confusion(folders[-1])
    leave_predictions(folders[0], (0.5, 0.4, 0.6, 0.3))
    leave_predictions(folders[2], (0.4, 0.7, 0.65, None))
    return folders


def test_an_images_iou_is_that_of_the_classes_it_holds() -> None:
    labels = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    ids = torch.tensor([[0, 2, 1, 1]])
    # Class 0: 1 of 2; class 1: 1 of 1 (the pixel without a label counts nowhere); class 2 is not in the labels.
    scores = image_scores(labels, ids, ("road", "car", "train"))
    assert scores == {"miou": 0.75, "pixel_accuracy": pytest.approx(2 / 3), "iou": [0.5, 1.0, None]}
    nothing = image_scores(
        torch.full((2, 2), 255, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64), ("road", "car")
    )
    assert nothing == {"miou": None, "pixel_accuracy": None, "iou": [None, None]}


@pytest.mark.parametrize(
    ("size", "expected"), [((2048, 1024), (512, 256)), ((100, 60), (100, 60)), ((1000, 1), (512, 1))]
)
def test_predicted_pictures_are_reduced(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert reduced(*size) == expected


def test_an_error_map_tells_right_wrong_and_unlabelled_apart() -> None:
    truth, ids = np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 0]], np.uint8)
    with Image.open(io.BytesIO(error_map(truth, ids))) as picture:
        pixels = np.asarray(picture.convert("RGBA"))[0].tolist()
    assert pixels[0][3] == 0
    assert pixels[1] == [224, 32, 60, 255]
    assert pixels[2] == [128, 128, 128, 150]


def test_what_is_cut_off_is_from_the_middle() -> None:
    assert from_both_ends("abcde") == ["a", "e", "b", "d", "c"]
    assert from_both_ends("ab") == ["a", "b"]
    assert from_both_ends("") == []


def test_examples_are_those_that_one_run_of_each_setting_left(tmp_path: Path) -> None:
    groups = compare_records([read_run(folder) for folder in two_methods(tmp_path)]).groups
    found = examples(groups, 10**6)
    assert found is not None
    assert found.runs == ("DAFormer, seed 0", "DAFormer + SSR, seed 0")
    assert (found.common, found.of, found.classes[1]) == (4, 50, ("car", "#00008e"))
    # Gains: +0.3 of image 1, +0.05 of image 2, none that could be measured of image 3, -0.1 of image 0.
    assert [image.name for image in found.images] == ["town/1.png", "town/0.png", "town/2.png", "town/3.png"]
    assert [layer.miou for layer in found.images[0].layers] == [0.4, 0.7]
    few = examples(groups, 2 * found.images[0].size + 10)
    assert few is not None
    assert [image.name for image in few.images] == ["town/1.png", "town/0.png"]


def test_images_with_other_labels_are_not_compared(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", PARTS["MIC"])
    leave_predictions(one, (0.5, 0.6))
    leave_predictions(other, (0.5, 0.6), truth=1)
    found = examples(compare_records([read_run(one), read_run(other)]).groups, 10**6)
    assert found is not None
    assert (found.common, found.images) == (2, ())
    (other / "pictures" / "val" / "images.json").write_text("{")
    with pytest.raises(UserError, match=r"images\.json is not valid JSON"):
        page([one, other])


def test_an_unreadable_prediction_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    leave_predictions(folder, (0.5, 0.6))
    (folder / "pictures" / "val" / "001-student.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    assert "1 of 50 held-out target images" in re.sub(r"\s+", " ", page([folder]))


def test_confusion_is_the_sum_over_seeds_as_shares_of_the_truth(tmp_path: Path) -> None:
    groups = compare_records([read_run(folder) for folder in two_methods(tmp_path)]).groups
    (_, _, rows), _ = matrices(groups)
    assert rows == [(180, 20, 0), (60, 20, 0), (0, 0, 0)]
    text = page([run.folder for group in groups for run in group.runs])
    row = text.split('<tr><th scope="row">car</th>')[1].split("</tr>")[0]
    cells = re.findall(r'--v:([\d.]+)" data-pixels="(\d+)" class="[hisame ]*"><i></i>(\d*)</td>', row)
    assert cells == [("0.750", "60", "75"), ("0.250", "20", "25"), ("0.000", "0", "")]
    assert "no such pixel in the labels" in text.split('<tr><th scope="row">train</th>')[1].split("</tr>")[0]


def test_a_confusion_matrix_of_another_size_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    scores = json.loads((folder / "scores.json").read_text())
    scores["last"]["student"]["confusion"] = [[1, 2], [3, 4]]
    (folder / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match="confusion matrix of `last` is not 3 × 3"):
        read_run(folder)


def test_bars_have_a_dot_for_each_seed(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(seed), seed=seed, iou=(0.8 + seed / 10, 0.1, None))) for seed in (0, 1)]
    (_, road), _, (_, train) = class_bars(compare_records(runs))
    assert road[0].text == "85.0 ± 7.1"
    assert road[0].dots == (0.8, 0.9)
    assert (train[0].text, train[0].dots) == ("–", ())
    assert [bar.name for bar in class_bars(compare_records(runs[:1]))[0][1]] == [
        "student, last",
        "teacher, last",
        "student, best*",
    ]


def test_only_what_differs_is_listed(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "one"), write_run(tmp_path / "other", PARTS["DAFormer"] | SSR, seed=3)]
    for folder, version in zip(folders, ("0.1.0", "0.2.0"), strict=True):
        facts = {"ssrseg": version, "gpu": {"name": "none"}, "command": f"train --out {folder.name}"}
        (folder / "environment.json").write_text(json.dumps(facts))
    found = differing([group.settings for group in compare_records([*map(read_run, folders)]).groups])
    assert ("method.regularizer.weight", ["–", "1.0"]) in found
    assert not {"train.seed", "train.steps"} & {key for key, _ in found}
    elsewhere = page(folders).split("<h3>Environments in which they differ</h3>")[1].split("</table>")[0]
    assert re.findall(r"<th>(.*?)</th>", elsewhere) == ["", "ssrseg"]


def test_warnings_stand_at_the_top(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    append(folder, json.dumps({"kind": "note", "step": 0, "text": "random weights"}) + "\n")
    append(folder, json.dumps({"kind": "warning", "step": 7, "text": "The class car has collapsed."}) + "\n")
    text = page([folder])
    assert (
        text.index("The class car has collapsed.") < text.index('<section id="scores">') < text.index("random weights")
    )


def test_the_page_may_run_no_script_but_its_own(tmp_path: Path) -> None:
    text = page([write_run(tmp_path / "run")])
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


PROBE = """
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const found = {};
const pressed = (key) => new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
const key = (element, name) => element.dispatchEvent(pressed(name));
(async () => { %s })().catch((error) => { found.failed = String(error); }).finally(() => {
  found.error = document.documentElement.dataset.error ?? null;
  found.ready = document.documentElement.dataset.ready;
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  found.resources = fetched.filter((name) => !name.startsWith("data:"));
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  parent.postMessage(JSON.stringify(found), "*");
});
"""
"""Acts on the page and tells its frame what it found."""
FRAME = """<!doctype html><body><iframe src="probe.html" style="border: 0; width: %spx; height: 900px"></iframe><script>
addEventListener("message", ({ data }) => {
  document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: data }));
});
</script>"""
"""Shows the page in any width: no window is as narrow as a phone."""


def browse(text: str, tmp_path: Path, actions: str, width: int = 1280) -> dict[str, Any]:
    """What a script finds on the page in a browser; the page's own policy would not let it run, so it is lifted."""
    assert BROWSER is not None
    lifted = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    probe = lifted.replace("</body>", f"<script>{PROBE % actions}</script></body>")
    (tmp_path / "probe.html").write_text(probe, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME % width)
    dumped = _dumped(tmp_path / "frame.html", tmp_path, r'<pre id="found">(.*?)</pre>')
    found: dict[str, Any] = json.loads(html.unescape(dumped))
    return found


def _dumped(path: Path, tmp_path: Path, pattern: str) -> str:
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    words = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{word}" for word in quiet)]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,900", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [str(BROWSER), *words, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    match = re.search(pattern, done.stdout, re.DOTALL)
    assert match, done.stdout[-2000:]
    return match[1]


@in_browser
def test_pictures_are_compared_from_gain_to_loss(tmp_path: Path) -> None:
    actions = """
    const told = () => $("#compare .told").textContent;
    found.first = told();
    found.whole = $("#compare .whole").textContent;
    found.gains = $$("#compare .strip")[0].textContent;
    found.losses = $$("#compare .strip")[1].textContent;
    const slider = $("#compare .stage input");
    slider.value = 20; slider.dispatchEvent(new Event("input"));
    found.at = $("#compare .stage").style.getPropertyValue("--at");
    await new Promise((done) => setTimeout(done, 500));
    const area = $("#compare .stage").getBoundingClientRect();
    const at = (down) => ({ clientX: area.left + 5, clientY: area.top + area.height * down });
    found.here = [0.05, 0.5, 0.95].map((down) => {
      $("#compare .stage").dispatchEvent(new PointerEvent("pointermove", at(down)));
      return $("#compare .here").textContent;
    });
    $$("#compare .strip")[1].querySelector("button").click();
    found.loss = told();
    $$("#compare input[type=radio]").find((input) => input.parentElement.textContent === "errors").click();
    found.errors = $$("#compare .side").map((image) => image.alt);
    found.blank = $$("#compare img").filter((image) => !image.src.startsWith("data:image/")).length;
    $$("#compare fieldset")[0].querySelector("input").click();
    found.against_truth = told();
    """
    found = browse(page(two_methods(tmp_path)), tmp_path, actions)
    assert (found["ready"], found["error"], found.get("failed"), found["resources"]) == ("yes", None, None, [])
    assert found["first"] == "1 of 4 · town/1.png · mIoU 40.0 → 70.0 (+30.0)"
    assert found["whole"].startswith(
        "B is better on 2 of these 3 images and worse on 1; mean difference per image +8.3"
    )
    assert (found["gains"], found["losses"]) == ("+30.0+5.0", "−10.0")
    assert found["at"] == "20%"
    assert found["here"] == [
        "truth: road · A: car · B: car",
        "truth: road · A: road · B: road",
        "truth: no label · A: road · B: road",
    ]
    assert found["loss"] == "3 of 4 · town/0.png · mIoU 50.0 → 40.0 (−10.0)"
    assert found["errors"] == ["errors: DAFormer, seed 0", "errors: DAFormer + SSR, seed 0"]
    assert found["blank"] == 0
    assert found["against_truth"] == "1 of 4 · town/1.png · mIoU 70.0"


@in_browser
def test_curves_matrices_and_steps_are_read_by_keys(tmp_path: Path) -> None:
    actions = """
    const chart = $("svg.chart");
    key(chart, "End");
    found.read = $(".readout").innerText.split("\\n").map((line) => line.trim()).filter(Boolean);
    key(chart, "ArrowLeft");
    found.before = $(".readout div").textContent;
    key(chart, "Escape");
    found.cleared = $(".readout").hidden;
    const button = $$(".switches button")[0];
    button.click();
    found.off = [button.ariaPressed, $$(".curve.off", chart).length, $$(".curve", chart).length];
    const cell = $(".matrix td[tabindex='0']");
    cell.focus(); key(cell, "ArrowRight");
    found.cell = $(".told", $("#confusion")).textContent;
    found.matrices = $$("#confusion [data-tab]").map((part) => part.hidden);
    $$("#confusion input[type=radio]")[1].click();
    found.after = $$("#confusion [data-tab]").map((part) => part.hidden);
    const scrub = $(".scrub input");
    found.latest = scrub.getAttribute("aria-valuetext");
    scrub.value = 0; scrub.dispatchEvent(new Event("input"));
    found.earliest = $(".scrub output").textContent;
    found.visible = $$("#seen [data-frame]", $("#seen [data-tab]")).map((part) => part.hidden);
    """
    found = browse(page(two_methods(tmp_path)), tmp_path, actions)
    assert (found["ready"], found["error"], found.get("failed")) == ("yes", None, None)
    assert found["read"][0] == "step 500"
    assert "plain/seed-0, student" in " ".join(found["read"])
    assert "51" in found["read"]
    assert (found["before"], found["cleared"]) == ("step 400", True)
    assert found["off"] == ["false", 4, 8]
    assert found["cell"] == "Of the pixels of road, 10.0 % are called car (20 pixels)."
    assert (found["matrices"], found["after"]) == ([False, True], [True, False])
    assert (found["latest"], found["earliest"]) == ("step 200", "step 100")
    assert found["visible"] == [False, True]


@in_browser
@pytest.mark.parametrize("width", [390, 1440])
def test_hostile_names_do_nothing_and_no_page_is_wider_than_its_window(tmp_path: Path, width: int) -> None:
    folder = write_run(tmp_path / "x<b>'&\"", classes=(HOSTILE, "car", "a-very-long-class-name-without-any-space" * 4))
    write_confusion(folder)
    leave_predictions(folder, (0.5, 0.2), names=(HOSTILE, "b"))
    append(folder, json.dumps({"kind": "warning", "step": 7, "text": HOSTILE}) + "\n")
    other = write_run(tmp_path / "other", PARTS["MIC"], classes=(HOSTILE, "car", "train"))
    leave_predictions(other, (0.5, 0.2), names=(HOSTILE, "b"))
    actions = """
    found.foreign = $$("img").filter((image) => !image.src.startsWith("data:image/")).length;
    found.scripts = $$("script").length;
    found.name = $("#compare .told").textContent;
    found.window = innerWidth;
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    """
    found = browse(page([folder, other]), tmp_path, actions, width)
    assert (found["ready"], found["error"], found.get("failed"), found["resources"]) == ("yes", None, None, [])
    assert (found["foreign"], found["scripts"]) == (0, 2)  # the page's and the probe's
    assert HOSTILE in found["name"]
    assert (found["window"], found["wide"]) == (width, 0)


@in_browser
def test_old_and_empty_runs_run_their_scripts_without_an_error(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text((old / "config.yaml").read_text())
    for folders in ([old], [tmp_path / "begun"], [old, tmp_path / "begun"]):
        found = browse(page(folders), tmp_path, "")
        assert (found["ready"], found["error"], found["wide"]) == ("yes", None, 0)


@in_browser
def test_the_policy_lets_the_pages_own_script_run(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page([write_run(tmp_path / "run")]), encoding="utf-8")
    assert _dumped(path, tmp_path, r'<html[^>]*data-ready="(\w+)"') == "yes"
