from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset
from typer.testing import CliRunner

from factories import CLASSES, COLORS, random_image, random_labels, small_segmenter, tiny_segmenter, write_pairs
from ssrseg.cli import app
from ssrseg.config import ClassConfig, DataConfig, InferenceConfig
from ssrseg.data import SPACES
from ssrseg.data.datasets import bounded
from ssrseg.errors import UserError
from ssrseg.inference import Scores, evaluate, evaluate_model, scores_table
from ssrseg.inference.image_scores import boundary_counts
from ssrseg.inference.sliding_window import averaged, predict_ids, whole
from ssrseg.models import Description, Segmenter, save_segmenter

FIXTURES = Path(__file__).parents[2] / "shared" / "reference" / "fixtures"


@dataclass(frozen=True)
class Item:
    image: Tensor
    labels: Tensor
    path: Path = Path("street.png")


class Items(Dataset[Item]):
    """Images of 64x96 whose labels have other sizes."""

    def __init__(self, sizes: Sequence[tuple[int, int]] = ((64, 96), (90, 100), (33, 47))) -> None:
        self.items = [
            Item(
                torch.from_numpy(random_image(64, 96, seed=i)).permute(2, 0, 1),
                torch.from_numpy(random_labels(*size, seed=i)),
            )
            for i, size in enumerate(sizes)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


def counted(pairs: Sequence[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """The confusion matrix, pixel by pixel."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for truth, prediction in pairs:
        for true, predicted in zip(truth.flatten().tolist(), prediction.flatten().tolist(), strict=True):
            if true != 255:
                confusion[true, predicted] += 1
    return confusion


def test_scores_of_a_small_matrix() -> None:
    scores = Scores(("a", "b", "c", "d"), torch.tensor([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]))
    assert scores.iou == [3 / 6, 4 / 7, 0.0, 0.0]
    assert scores.miou == pytest.approx((3 / 6 + 4 / 7) / 4)
    assert scores.accuracy == [3 / 4, 4 / 6, None, 0.0]
    assert scores.pixel_accuracy == 7 / 12
    assert scores.precision == [3 / 5, 4 / 5, 0.0, None]
    assert scores.dice == [6 / 9, 8 / 11, 0.0, 0.0]
    assert scores.mean_dice == pytest.approx((6 / 9 + 8 / 11) / 4)


def test_boundary_iou_is_that_of_the_paper() -> None:
    """A square, and one shifted by a pixel: the pixels within d of each contour, counted by distances."""
    true, found = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    true[20:45, 20:50] = found[21:46, 20:50] = 1
    distance = round(0.02 * 100)

    def boundary(mask: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(mask)
        inner = np.zeros_like(mask)
        inner[
            rows.min() + distance : rows.max() + 1 - distance, columns.min() + distance : columns.max() + 1 - distance
        ] = 1
        return (mask == 1) & (inner == 0)

    one, other = boundary(true), boundary(found)
    counts = boundary_counts(torch.from_numpy(true), torch.from_numpy(found).long(), 3)
    assert counts[1].tolist() == [(one & other).sum(), (one | other).sum()]
    assert counts[2].tolist() == [0, 0]
    scores = Scores(("a", "b", "c"), torch.eye(3, dtype=torch.int64), boundary=counts)
    assert scores.boundary_iou[1] == pytest.approx((one & other).sum() / (one | other).sum())
    assert scores.boundary_iou[2] is None
    true[:, :30] = 255  # what is ignored is no contour, and counts nowhere
    cut = boundary_counts(torch.from_numpy(true), torch.from_numpy(found).long(), 3)
    assert cut[1].tolist() == [(one & other)[:, 30:].sum(), (one | other)[:, 30:].sum()]


def test_each_image_has_a_line_the_worst_first(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 3)
    words = {"per_image": tmp_path / "images.csv", "boundary": True, "device": "cpu"}
    scores = evaluate(described(), tmp_path / "data", **words)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "images.csv").read_text())))
    assert [float(line["miou"]) for line in lines] == sorted(float(line["miou"]) for line in lines)
    assert {Path(line["image"]).name for line in lines} == {"00.png", "01.png", "02.png"}
    assert {"image", "mean_dice", "pixel_accuracy", "boundary_miou", "iou road", "iou car"} <= lines[0].keys()
    assert 0 < scores.boundary_miou < 1
    assert scores.to_dict()["boundary_iou"] == scores.boundary_iou


def test_absent_classes_do_not_count() -> None:
    scores = Scores(("a", "b", "c"), torch.tensor([[3, 0, 1], [0, 0, 0], [0, 0, 4]]))
    assert scores.iou == [3 / 4, None, 4 / 5]
    assert scores.miou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert scores.miou_over(["a", "b"]) == 3 / 4
    with pytest.raises(UserError, match=r"no class 'z'.*a, b, c"):
        scores.miou_over(["a", "z"])


def test_synthias_classes_are_scored_beside_all() -> None:
    names = SPACES["cityscapes19"].names
    confusion = torch.randint(1, 9, (19, 19), generator=torch.Generator().manual_seed(0))
    scores = Scores(names, confusion)
    for name, count in (("synthia16", 16), ("synthia13", 13)):
        part = [iou for label, iou in zip(names, scores.iou, strict=True) if label in SPACES[name].names]
        assert len(part) == count
        assert scores.to_dict()["subsets"][name] == pytest.approx(sum(part) / count)
    assert Scores(SPACES["synthia16"].names, confusion[:16, :16]).subsets.keys() == {"synthia13"}
    empty = Scores(names, torch.zeros(19, 19, dtype=torch.int64)).to_dict()
    assert empty["subsets"] == {"synthia16": None, "synthia13": None}
    json.dumps(empty, allow_nan=False)


def test_nothing_measured_is_nan_and_null() -> None:
    scores = Scores(("a", "b"), torch.zeros(2, 2, dtype=torch.int64))
    assert math.isnan(scores.miou)
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False)) == {
        "miou": None,
        "pixel_accuracy": None,
        "mean_dice": None,
        **{key: [None, None] for key in ("iou", "accuracy", "dice", "precision")},
    }


def test_evaluation_counts_pixels_at_label_resolution() -> None:
    model, data = tiny_segmenter().eval(), Items()
    scores = evaluate_model(model, data, whole, device="cpu", classes=CLASSES)
    with torch.no_grad():
        pairs = [(item.labels, predict_ids(model, item.image, whole, tuple(item.labels.shape))) for item in data]
    expected = counted(pairs, len(CLASSES))
    assert torch.equal(scores.confusion, expected)
    assert (expected > 0).sum() > len(CLASSES)  # or the test could not tell rows from columns
    assert scores.confusion.dtype == torch.int64
    assert scores.classes == CLASSES


def test_bytes_do_not_overflow_with_many_classes() -> None:
    model, data = tiny_segmenter(19).eval(), Items(((64, 96),))
    item = data.items[0]
    labels = torch.arange(64 * 96, dtype=torch.int64).view(64, 96).remainder(19).byte()
    data.items[0] = Item(item.image, labels)
    scores = evaluate_model(model, data, whole, device="cpu", classes=[str(i) for i in range(19)])
    with torch.no_grad():
        assert torch.equal(scores.confusion, counted([(labels, predict_ids(model, item.image, whole, (64, 96)))], 19))


def test_evaluation_of_parts_adds_up() -> None:
    model, sizes = tiny_segmenter(), ((64, 96), (90, 100), (33, 47))
    data = Items(sizes)
    whole_set = evaluate_model(model, data, whole, device="cpu", classes=CLASSES)
    halves = [torch.utils.data.Subset(data, part) for part in ([0], [1, 2])]
    parts = [evaluate_model(model, half, whole, device="cpu", classes=CLASSES) for half in halves]
    assert torch.equal(parts[0].confusion + parts[1].confusion, whole_set.confusion)


def test_evaluation_leaves_the_model_as_it_was() -> None:
    model = tiny_segmenter().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    randomness = torch.get_rng_state()
    evaluate_model(model, Items(), whole, device="cpu", classes=CLASSES)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), randomness)
    model(torch.rand(2, 3, 64, 64)).sum().backward()  # still trainable


def test_a_label_that_is_no_class_is_refused() -> None:
    data = Items(((64, 96),))
    data.items[0].labels[5, 7] = 9
    with pytest.raises(UserError, match=r"street\.png holds the class id 9; ids are 0\.\.3"):
        evaluate_model(tiny_segmenter(), data, whole, device="cpu", classes=CLASSES)


def described(resize: tuple[int, int] | None = None, classes: tuple[str, ...] = CLASSES) -> Segmenter:
    model = tiny_segmenter()
    model.description = Description("tiny", "daformer", classes, COLORS, resize)
    return model


def test_a_folder_is_scored_and_written(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 3)
    model, out = described(resize=(32, 32)), tmp_path / "scores" / "scores.json"
    flip = InferenceConfig(flip=True)
    scores = evaluate(model, tmp_path / "data", out=out, device="cpu", inference=flip)
    assert model.training
    with torch.no_grad():
        pairs = []
        for i in range(3):
            image = torch.from_numpy(random_image(seed=i)).permute(2, 0, 1)
            ids = predict_ids(model.eval(), bounded(image, (32, 32)), averaged(whole, flip=True), (64, 64))
            pairs.append((torch.from_numpy(random_labels(seed=i)), ids))
    assert torch.equal(scores.confusion, counted(pairs, 4))
    written = json.loads(out.read_text())
    assert {key: written[key] for key in scores.to_dict()} == scores.to_dict()
    assert written["classes"] == list(CLASSES)
    assert written["confusion"] == scores.confusion.tolist()
    assert written["images"] == 3
    assert written["inference"]["flip"] is True
    assert written["data"]["resize"] == [32, 32]


def test_the_words_of_the_command_line(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 2)
    save_segmenter(small_segmenter(), tmp_path / "model.safetensors")
    start = ["evaluate", str(tmp_path / "model.safetensors"), str(tmp_path / "data"), "resize=[48, 48]"]
    words = ["inference.flip=true", "inference.scales=[1, 1.5]", "--device", "cpu", "--out", str(tmp_path / "s.json")]
    run = CliRunner().invoke(app, [*start, *words])
    assert run.exit_code == 0, run.output
    written = json.loads((tmp_path / "s.json").read_text())
    settings = InferenceConfig(flip=True, scales=(1.0, 1.5))
    assert written["inference"] == settings.model_dump(mode="json")
    data = DataConfig(root=tmp_path / "data", resize=(48, 48))
    expected = evaluate(tmp_path / "model.safetensors", data, inference=settings, device="cpu")
    assert written["confusion"] == expected.confusion.tolist()
    refused = CliRunner().invoke(app, [*start, "inference.flop=true"])
    assert "Did you mean 'flip'" in str(refused.exception)


def test_classes_may_say_which_values_mean_them(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    plain = evaluate(described(), tmp_path, device="cpu")
    swapped = [ClassConfig(name=name, ids=(3 - i,)) for i, name in enumerate(CLASSES)]
    scores = evaluate(described(), tmp_path, classes=swapped, device="cpu")
    assert torch.equal(scores.confusion, plain.confusion.flip(0))
    with pytest.raises(UserError, match="The model's classes are road, wall, tree, car"):
        evaluate(described(), tmp_path, classes=["wall", "road", "tree", "car"], device="cpu")


def test_a_known_label_space_is_recognised(tmp_path: Path) -> None:
    """Cityscapes' raw values become the ids of a model that was trained on 19 classes."""
    for folder, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        path = tmp_path / folder / "val" / "town" / f"a_{ending}.png"
        path.parent.mkdir(parents=True)
        pixels = random_image() if folder == "leftImg8bit" else np.full((64, 64), 26, np.uint8)  # car
        Image.fromarray(pixels).save(path)
    model = tiny_segmenter(19)
    model.description = Description("tiny", "daformer", SPACES["cityscapes19"].names, resize=(64, 64))
    scores = evaluate(model, DataConfig(root=tmp_path, spec="cityscapes", split="val"), device="cpu")
    assert scores.confusion.sum(1).nonzero().flatten().tolist() == [13]


def test_a_part_of_the_classes_is_scored_by_name(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 2)
    out = tmp_path / "scores.json"
    scores = evaluate(described(), tmp_path / "data", subset=["tree", "car"], out=out, device="cpu")
    assert scores.subsets == {"subset": scores.miou_over(["tree", "car"])}
    written = json.loads(out.read_text())
    assert written["subset"] == ["tree", "car"]
    assert written["subsets"]["subset"] == pytest.approx(scores.subsets["subset"])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(scores_table(scores))
    assert "of these, tree, car" in console.export_text()
    with pytest.raises(UserError, match="no class 'trees'"):
        evaluate(described(), tmp_path / "data", subset=["trees"], device="cpu")


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        evaluate(described(), tmp_path / "missing", device="cpu")
    write_pairs(tmp_path, 1)
    with pytest.raises(UserError, match="Which classes"):
        evaluate(tiny_segmenter(), tmp_path, device="cpu")
    with pytest.raises(UserError, match="predicts 4 classes; `classes` are a, b"):
        evaluate(tiny_segmenter(), tmp_path, classes=["a", "b"], device="cpu")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write .*scores\.json"):
        evaluate(described(), tmp_path, out=tmp_path / "file" / "scores.json", device="cpu")


def test_table_shows_percent() -> None:
    scores = Scores(("road", "wall", "sky"), torch.tensor([[30, 10, 0], [0, 1000, 0], [0, 0, 0]]))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(scores_table(scores))
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert rows[1:] == [
        ["road", "75.00", "85.71", "100.00", "75.00", "40"],
        ["wall", "99.01", "99.50", "99.01", "100.00", "1,000"],
        ["sky", "-", "-", "-", "-", "0"],
        ["all", "87.00", "92.61", "-", "99.04", "1,040"],
    ]


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the reference fixtures are not there")
def test_reference_metrics() -> None:
    """Numbers of the references' metrics: nan for absent classes, 255 left out."""
    arrays = np.load(FIXTURES / "metrics_a.npz")
    pairs = [(torch.from_numpy(arrays[f"gt_{i}"]), torch.from_numpy(arrays[f"pred_{i}"])) for i in range(2)]
    scores = Scores(tuple(map(str, range(19))), counted(pairs, 19))
    assert scores.pixel_accuracy == pytest.approx(float(arrays["aAcc"]))
    assert scores.miou == pytest.approx(float(arrays["mIoU"]))
    for ours, theirs in ((scores.iou, arrays["IoU"]), (scores.accuracy, arrays["Acc"])):
        assert [math.nan if value is None else value for value in ours] == pytest.approx(theirs.tolist(), nan_ok=True)
