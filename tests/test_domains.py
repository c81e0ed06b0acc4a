"""Several sources, targets and validation sets in one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator
from typer.testing import CliRunner

import ssrseg
from factories import random_image
from ssrseg.adapt.batch import Batch, Pseudo
from ssrseg.adapt.views import Labelled
from ssrseg.cli import app
from ssrseg.config import RareClassConfig, Settings, compose, merge, resolve, with_words
from ssrseg.data import find_bounded, refuse_bad_data, train_batches
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.data.samplers import SOURCE, RareClassSampler, generator_of
from ssrseg.data.streams import source_images, target_images
from ssrseg.errors import UserError
from ssrseg.reporting import RunRecord, compare_records, method_name, model_card, overview, read_run, verdict
from ssrseg.reporting.grouping import essentials
from ssrseg.reporting.text_tables import per_class
from ssrseg.training import Extensions, train
from ssrseg.training.resume import PLACES, differences
from test_compare import change, group
from test_reporting import PARTS
from test_resume import At, assert_same, die

YAML = Path(__file__).parents[1] / "examples" / "domains.yaml"
SMALL = (
    "loader={crop: [64, 64], batch: 2, workers: 0, rare_class: {min_pixels: 50}}",
    "model={backbone: timm:test_resnet, head_channels: 16, pretrained: none}",
    "train={steps: 4, evaluate_every: 2, checkpoint_every: 2, log_every: 2, pictures_every: 4, accelerator: cpu}",
    "selection.images=4",
    "method.teacher.decay=0.9",
    "source.resize=null",
    "target.resize=null",
    "val.resize=null",
)
ROAD, SKY, CAR = {"game": 7, "day": 3}, {"game": 23, "day": 0}, {"game": 26, "day": 8}
"""Raw values in the labels of Cityscapes and GTA5, and in those of CamVid."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def draw(image: Path, label: Path, values: tuple[int, ...], seed: int) -> None:
    """An image, and a label with a band of rows of each value."""
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.repeat(np.array(values, np.uint8), -(-96 // len(values)))[:96]
    Image.fromarray(random_image(96, 128, seed=seed)).save(image)
    Image.fromarray(np.repeat(rows[:, None], 128, 1)).save(label)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Drawn data in the layouts that `examples/domains.yaml` names; the working directory holds them."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    for i in range(2):
        draw(root / f"gta5/images/{i:05}.png", root / f"gta5/labels/{i:05}.png", (7, 23, 26), i)
    stems = [f"{i:02}" for i in range(9)]
    for i, stem in enumerate(stems):
        draw(root / f"camvid/train/images/{stem}.png", root / f"camvid/train/labels/{stem}.png", (3, 0), 10 + i)
    (root / "camvid/splits").mkdir()
    for name, part in {"day_source": stems[:4], "dusk_target_train": stems[4:7], "dusk_target_val": stems[7:]}.items():
        (root / f"camvid/splits/{name}.txt").write_text("\n".join(part))
    for split, count in {"train": 2, "val": 1}.items():
        for i in range(count):
            images, labels = (root / "carla" / kind / split / "town" for kind in ("leftImg8bit", "gtFine"))
            name = f"town_00_{i}"
            draw(images / f"{name}_leftImg8bit.png", labels / f"{name}_gtFine_labelIds.png", (7, 23), 20 + i)
    return root


def settings_of(*words: str) -> Settings:
    return resolve(compose("dacs-segformer", YAML, {}, [*SMALL, *words]))


def test_a_run_of_several_domains_resumes_bitwise_and_scores_each(data: Path, tmp_path: Path) -> None:
    settings = settings_of()
    train(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "cut", extensions=Extensions(observers=[At(3, die)]))
    train(None, tmp_path / "cut", resume=True, extensions=Extensions(observers=[At(0, die)]))
    assert_same(tmp_path / "whole", tmp_path / "cut")

    student = json.loads((tmp_path / "whole" / "scores.json").read_text(encoding="utf-8"))["last"]["student"]
    assert student["domains"].keys() == {"dusk", "simulated"}
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text(encoding="utf-8"))
    assert {name: found["files"] for name, found in environment["data"].items()} == {
        "source game": 4,
        "source day": 8,
        "target dusk": 3,
        "target simulated": 2,
        "val dusk": 4,
        "val simulated": 2,
    }
    model = tmp_path / "whole" / "student-last.safetensors"
    together = ssrseg.evaluate(model, settings.val, classes="camvid11")
    alone = [ssrseg.evaluate(model, one, classes="camvid11") for one in settings.val]
    assert together.confusion.equal(alone[0].confusion + alone[1].confusion)
    for name, one in zip(("dusk", "simulated"), alone, strict=True):
        assert together.domains[name].confusion.equal(one.confusion)
        assert student["domains"][name]["miou"] == one.miou
    said = CliRunner().invoke(app, ["evaluate", str(model), str(tmp_path / "whole" / "config.yaml")])
    assert said.exit_code == 0, said.output
    assert "all of dusk" in said.output

    found = compare_records([read_run(tmp_path / name) for name in ("whole", "cut")])
    assert len(found.groups) == 1  # the same settings, wherever the folders lie
    rows = {row[0]: row[1] for row in overview(found).rows}
    assert rows["mIoU on dusk"].startswith(f"{100 * alone[0].miou:.1f}")
    assert any("(dusk, simulated) together" in note for note in overview(found).notes)
    assert "Road, simulated" in [row[0] for row in per_class(found).rows]
    assert any("on dusk" in line and "on simulated" in line for line in verdict(found))
    page = ssrseg.report([tmp_path / "whole"]).read_text(encoding="utf-8")
    assert "its mIoU on dusk" in page
    assert "gta5, camvid" in page
    assert "gta5 (gta5), camvid (camvid)" in model_card(tmp_path / "whole")


def test_each_source_has_its_own_layout_and_mapping(data: Path) -> None:
    classes = {name: set() for name in ("gta5", "camvid")}
    for batch in train_batches(settings_of("train.steps=20")):
        for name, labels in zip(batch.names, batch.labels, strict=False):
            classes["gta5" if "gta5" in name else "camvid"] |= set(labels.unique().tolist())
    assert classes == {"gta5": {3, 0, 8}, "camvid": {3, 0}}  # Road, Sky, Car; what was no label is not there


def test_a_data_set_is_drawn_by_its_share_and_a_draw_depends_on_its_number_alone(data: Path) -> None:
    settings = settings_of("loader.rare_class=null")

    def names(role: str, settings: Settings, count: int = 400) -> list[str]:
        stream = source_images(settings) if role == "source" else target_images(settings)
        assert stream is not None
        return [stream.draw(i, generator_of(0, SOURCE, i))[2] for i in range(count)]

    drawn = names("source", settings)
    assert sum("gta5" in name for name in drawn) / 400 == pytest.approx(1 / 4, abs=0.06)
    other = with_words(settings, ["source.0.share=9", "source.1.share=1"])
    assert sum("gta5" in name for name in names("source", other)) / 400 == pytest.approx(0.9, abs=0.06)
    # without shares, by the number of images: two of five
    assert sum("carla" in name for name in names("target", settings)) / 400 == pytest.approx(2 / 5, abs=0.08)
    assert len(set(drawn)) == 6
    late = [batch.names for batch in train_batches(with_words(settings, ["train.steps=6"]), start=3)]
    assert late == [batch.names for batch in train_batches(with_words(settings, ["train.steps=6"]))][3:]


def test_a_list_of_one_draws_as_a_mapping_does(data: Path) -> None:
    tree: dict[str, Any] = {"classes": "camvid11", "loader": {"crop": [32, 32], "batch": 2, "workers": 0}}
    tree |= {"method": {"teacher": {}, "mixed": {}}, "train": {"steps": 5}}
    source, target = ({"root": "data/camvid", "spec": "camvid"}, {"root": "data/carla", "spec": "cityscapes"})
    one, other = (
        train_batches(resolve({**tree, "source": given[0], "target": given[1]}))
        for given in ((source, target), ([source], [target]))
    )
    for mine, theirs in zip(one, other, strict=True):
        assert mine.names == theirs.names
        assert mine.source.equal(theirs.source)
        assert mine.target.equal(theirs.target)


def test_rare_class_sampling_counts_the_classes_of_all_sources() -> None:
    first = ClassStatistics(torch.tensor([[900, 100, 0], [1000, 0, 0]]))
    second = ClassStatistics(torch.tensor([[800, 3, 197]]))
    config = RareClassConfig(temperature=0.1, min_pixels=50)
    weights = (0.25, 0.5)  # of an image: half of the draws are of each set
    one, two = (RareClassSampler(own, config, (8, 8), (first, second), weights) for own in (first, second))
    frequency = torch.tensor([0.25 * 1900 + 0.5 * 800, 0.25 * 100 + 0.5 * 3, 0.5 * 197]) / 1000
    expected = ((1 - frequency) / 0.1).softmax(0)

    def of(sampler: RareClassSampler) -> dict[int, float]:
        return dict(zip(sampler.classes.tolist(), sampler.probabilities.tolist(), strict=True))

    # class 2 is in the second alone, and three pixels of class 1 are not enough where the first shows a hundred
    assert of(one) == {c: pytest.approx(float(expected[c] / expected[[0, 1]].sum()), rel=1e-4) for c in (0, 1)}
    assert of(two) == {c: pytest.approx(float(expected[c] / expected[[0, 2]].sum()), rel=1e-4) for c in (0, 2)}
    assert one.files == {0: [0, 1], 1: [0], 2: []}
    alone = ClassStatistics(torch.tensor([[3, 0, 0], [0, 0, 0]]))
    nothing = RareClassSampler(alone, config, (8, 8), (first, alone), weights)
    assert {nothing(i, Generator().manual_seed(i)).file for i in range(20)} == {0, 1}


def test_check_data_names_the_domain_of_every_number(data: Path, tmp_path: Path) -> None:
    settings = settings_of()
    report = ssrseg.check_data(settings, tmp_path / "check")
    assert report.trainable
    domains = report.facts["domains"]
    assert list(domains) == [
        *("source game", "source day", "target dusk", "target simulated", "val dusk", "val simulated")
    ]
    assert [domains[f"source {name}"]["share"] for name in ("game", "day")] == [0.25, 0.75]
    assert domains["target dusk"]["share"] == pytest.approx(3 / 5)
    assert domains["source day"]["frequencies"]["Car"]["images"] == 0
    assert domains["source game"]["frequencies"]["Car"]["images"] == 2
    (absent,) = [one for one in report.problems if one.kind == "class that never occurs" and one.domain == "source"]
    assert "Car" not in absent.text  # which one source shows
    assert report.facts["drawn"]["Car"] > 0
    (data / "carla/leftImg8bit/train/town/town_00_0_leftImg8bit.png").write_bytes(b"no image")
    broken = ssrseg.check_data(settings, tmp_path / "check")
    (problem,) = [one for one in broken.problems if one.fatal]
    assert problem.domain == "target simulated"
    same = with_words(settings, ["source.1.stems=data/camvid/splits/dusk_target_val.txt"])
    said = {(one.domain, one.text.partition(" is also")[2]) for one in ssrseg.check_data(same, tmp_path / "c").problems}
    assert ("val dusk", " in the source day.") in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["source.name=game"], "Two data sets of source are called 'game': give each a `name` of its own."),
        (["source.0.share=null"], "some data sets of source have a share and others none"),
        (["val.0.share=2"], "leave val.share out"),
        (["source.1.rot=x"], "source.1.rot: no such setting. Did you mean 'root'?"),
        (["source=[]"], "source: .* at least 1 item"),
    ],
)
def test_what_cannot_be_told_apart_or_drawn_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("[", r"\[") if "at least" not in said else said):
        settings_of(*words)


def test_the_command_line_takes_a_role_more_than_once(data: Path, tmp_path: Path) -> None:
    words = ["source.0.spec=gta5", "source.1.spec=camvid", "target.spec=camvid", "classes=camvid11"]
    sources = ["--source", "data/gta5", "--source", "data/camvid", "--target", "data/camvid"]
    stems = ["source.1.stems=data/camvid/splits/day_source.txt", "target.stems=data/camvid/splits/dusk_target_val.txt"]
    command = ["check-data", "--preset", "dacs-segformer", *sources, "--out", "check", *words, *stems]
    said = CliRunner().invoke(app, [*command, "loader.crop=[64, 64]"])
    assert said.exit_code == 0, said.output
    facts = json.loads(Path("check/report.json").read_text(encoding="utf-8"))["domains"]
    assert {name: of["images"] for name, of in facts.items()} == {"source gta5": 2, "source camvid": 4, "target": 2}


def test_words_change_all_data_sets_of_a_list_or_one(data: Path) -> None:
    base = {"source": [{"root": "a", "resize": [4, 4]}, {"root": "b"}]}
    assert merge(base, {"source": {"resize": [8, 8], "1": {"root": "c"}}}) == {
        "source": [{"root": "a", "resize": [8, 8]}, {"root": "c", "resize": [8, 8]}]
    }
    whole = settings_of()
    assert [str(path.parent.name) for path, _ in find_bounded(whole.target)] == ["images"] * 3 + ["town"] * 2


def test_priors_and_statistics_are_those_of_all_domains(data: Path, tmp_path: Path) -> None:
    settings = settings_of("train={steps: 1, accelerator: cpu}", "val=null", "selection=null")
    model = train(settings, tmp_path / "run").folder / "student-last.safetensors"
    priors = ssrseg.estimate_priors(model, settings)
    counts = dict(zip(priors.classes, priors.source, strict=True))
    assert (counts["Road"], counts["Car"]) == (6, 2)
    assert ssrseg.recalibrate(model, settings.target, tmp_path / "new.safetensors").images == 5


def test_labelled_target_images_are_a_view_of_their_own_and_resume_bitwise(data: Path, tmp_path: Path) -> None:
    settings = settings_of("target.0.labelled={count: 2}", "method.labelled.weight=0.5", "loader.labelled=1")
    run = train(settings, tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "cut", extensions=Extensions(observers=[At(3, die)]))
    train(None, tmp_path / "cut", resume=True, extensions=Extensions(observers=[At(0, die)]))
    assert_same(run, tmp_path / "cut")
    record = read_run(run)
    assert record.train[0].losses.keys() == {"source/segmentation", "labelled/segmentation", "mixed/segmentation"}
    assert any(
        "labelled dusk: 2 target images have labels, each of which is drawn about 2 times" in note.text
        for note in record.notes
    )
    assert record.environment["data.labelled dusk.files"] == 4
    assert method_name(record.config) == "DACS + target labels"
    assert "labels of some images used" in model_card(run)


def test_labels_change_no_other_draw_and_come_from_the_target_alone(data: Path) -> None:
    plain = settings_of("train.steps=6")
    other = with_words(plain, ["target.0.labelled={}", "loader.labelled=3"])
    assert other.method.labelled is not None
    seen = set()
    for mine, theirs in zip(train_batches(plain), train_batches(other), strict=True):
        assert mine.source.equal(theirs.source)
        assert mine.target.equal(theirs.target)
        assert mine.names == theirs.names[:4]
        assert (mine.labelled, len(theirs.labelled)) == (None, 3)
        assert set(theirs.labelled_labels.unique().tolist()) <= {3, 0}  # Road, Sky
        seen |= {Path(name).stem for name in theirs.names[4:]}
    assert seen == {"04", "05", "06"}
    late = [batch.labelled for batch in train_batches(other, start=4)]
    assert all(map(torch.equal, late, [batch.labelled for batch in train_batches(other)][4:]))


def test_the_labelled_view_weighs_its_labels(tmp_path: Path) -> None:
    images, labels = torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    batch = Batch(images, labels, images[:0], labels[:0].bool(), labelled=images, labelled_labels=labels)
    pseudo = Pseudo(labels[:0], images[:0, 0])
    view = Labelled(weight=0.25)(batch, pseudo)
    assert view.trust is not None
    assert view.trust.unique().tolist() == [0.25]
    assert Labelled()(batch, pseudo).trust is None
    with pytest.raises(UserError, match=r"target\.labelled"):
        Labelled()(replace(batch, labelled=None), pseudo)


def test_labelled_images_are_never_scored(data: Path, tmp_path: Path) -> None:
    words = ["target.0.labelled={count: 2}", "val.0.stems=data/camvid/splits/dusk_target_train.txt"]
    with pytest.raises(UserError, match=r"(?s)val dusk: also in the labelled target \(2 files\).*with `val.stems`"):
        refuse_bad_data(settings_of(*words))
    Path("rest.txt").write_text("05", encoding="utf-8")  # of 04, 05 and 06 the first and the last but one are labelled
    Path("labelled.txt").write_text("04\n06", encoding="utf-8")
    rest = ["target.0.labelled={stems: labelled.txt}", "val.0.stems=rest.txt"]
    assert any(note.startswith("labelled dusk: 2 target images") for note in refuse_bad_data(settings_of(*rest)))
    copy = (data / "camvid/train/images/04.png").read_bytes()  # under another name
    (data / "camvid/train/images/07.png").write_bytes(copy)
    stems = "target.0.labelled={stems: labelled.txt}"
    with pytest.raises(UserError, match="val dusk: same content as in the labelled target") as refused:
        refuse_bad_data(settings_of(stems))
    assert "leave it out with `val.stems`" in str(refused.value)
    Path("others.txt").write_text("08", encoding="utf-8")
    refuse_bad_data(settings_of(stems, "val.0.stems=others.txt"))
    facts = ssrseg.check_data(settings_of(*rest), tmp_path / "check").facts["domains"]
    assert facts["labelled dusk"]["images"] == 2
    assert facts["labelled dusk"]["draws"] == 4 * 2 / 2
    assert facts["labelled dusk"]["frequencies"]["Road"]["images"] == 2


@pytest.mark.parametrize(
    ("words", "said", "mended"),
    [
        (
            ["target.0.labelled={count: 4}"],
            "3 images of data/camvid have a label.*count=4 is too many",
            "target.0.labelled.count=3",
        ),
        (
            ["target.0.labelled={stems: data/camvid/splits/dusk_target_val.txt}"],
            "'07', which is no image of the target .`stems`",
            "target.0.stems=null",
        ),
        (
            ["target.1.labelled={}", "target.1.labels=none/*.png"],
            "0 images of data/carla have a label.*see `labels`",
            "target.1.labels=null",
        ),
    ],
)
def test_labels_that_are_not_there_are_named(words: list[str], said: str, mended: str, data: Path) -> None:
    with pytest.raises(UserError, match=said):
        refuse_bad_data(settings_of(*words))
    assert "target images have labels" in refuse_bad_data(settings_of(*words, "val=null", mended))[-1]


def test_a_labelled_view_and_labelled_images_come_together() -> None:
    with pytest.raises(UserError, match=r"target\.labelled\.count=10"):
        settings_of("method.labelled={}")
    with pytest.raises(UserError, match=r"val\.labelled: all of its images have labels"):
        settings_of("val.0.labelled={count: 1}")
    settings = settings_of("target.0.labelled={count: 10}")
    with pytest.raises(UserError, match=r"or set method\.labelled to null"):
        with_words(settings, ["target.0.labelled=null"])
    assert with_words(settings, ["target.0.labelled=null", "method.labelled=null"]).method.labelled is None


def test_the_report_sets_labels_against_the_same_adaptation_without(tmp_path: Path) -> None:
    target = {"root": "data/cityscapes", "spec": "cityscapes", "labelled": {"count": 10}}
    labelled = group(tmp_path / "labels", {**PARTS["DAFormer"], "labelled": {"weight": 1.0}}, (0.57, 0.61, 0.59))
    runs = [
        *group(tmp_path / "base", {}, (0.40, 0.42, 0.41)),
        *group(tmp_path / "adapted", PARTS["DAFormer"], (0.50, 0.53, 0.52)),
        *(change(run, target=target) for run in labelled),
    ]
    found = compare_records([read_run(run) for run in runs])
    assert [each.name for each in found.groups] == ["source-only", "DAFormer", "DAFormer + target labels"]
    pairs = {(each.group.name, each.base.name) for each in found.contrasts}
    assert ("DAFormer + target labels", "DAFormer") in pairs
    text = "\n".join(verdict(found))
    assert "Adaptation helped: DAFormer has 51.7 mIoU" in text  # not with labels
    assert "DAFormer + target labels learnt from labels of target images too and has 59.0 mIoU: +7.3 points" in text


def test_the_same_data_elsewhere_are_the_same_settings(tmp_path: Path) -> None:
    stems = "target.0.labelled={stems: there/labelled.txt}"
    one = settings_of("target.0.labelled={stems: here/labelled.txt}")
    other = settings_of("source.1.root=elsewhere/camvid", "val.1.root=elsewhere/carla", stems)
    changed = differences(one, other)
    assert changed.keys() == {"source.1.root", "val.1.root", "target.0.labelled.stems"}
    assert all(map(PLACES.fullmatch, changed))
    unseen: dict[str, Any] = {"environment": {}, "last": None, "best": None}
    unseen |= dict.fromkeys(("train", "evaluations", "notes", "classes", "shares", "views"), ())
    records = [RunRecord(tmp_path, each.model_dump(mode="json"), **unseen) for each in (one, other)]
    assert essentials(records[0]) == essentials(records[1])
    assert essentials(records[0])["source.1.root"] == "camvid"
