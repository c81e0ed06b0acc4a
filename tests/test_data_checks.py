"""What `check-data` and the look before training find, show and leave behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ssrseg
from factories import CLASSES, COLORS, random_image, random_labels, write_pairs
from ssrseg.config import resolve
from ssrseg.data import class_statistics, refuse_bad_data, train_batches
from ssrseg.data.checks.colours import colour_facts, colour_moments
from ssrseg.errors import UserError


def settings(root, *, val=None, source=None, classes=CLASSES):
    for domain in ("game", "camera", "street"):
        if not (root / domain).exists():
            write_pairs(root / domain)
    tree = {
        "classes": classes,
        "source": {"root": root / "game", **(source or {})},
        "target": {"root": root / "camera"},
        "loader": {"crop": [32, 32]},
    }
    return resolve({**tree, "val": {"root": root / val}} if val else tree)


def test_scored_images_that_were_learnt_from_are_said(tmp_path):
    assert refuse_bad_data(settings(tmp_path, val="street")) == []
    (note,) = refuse_bad_data(settings(tmp_path, val="game"))
    assert "val: also in the source (4 files), for example" in note
    (note,) = refuse_bad_data(settings(tmp_path, val="camera"))
    assert "val: also in the target (4 files), for example" in note


def test_a_value_outside_an_id_map_is_only_ignored(tmp_path):
    run = settings(tmp_path, source={"id_map": {0: 0, 1: 1, 2: 2, 3: 3}})
    labels = random_labels()
    labels[:32] = 9
    Image.fromarray(labels).save(tmp_path / "game" / "labels" / "01.png")
    (said,) = refuse_bad_data(run)
    assert said.startswith("source: pixels of no class")
    assert "value 9: 12.5%" in said


def test_labels_in_which_nothing_is_known_are_refused(tmp_path):
    with pytest.raises(UserError, match="shows any class"):
        refuse_bad_data(settings(tmp_path, source={"id_map": {200: 0}}))


def test_a_target_that_overlaps_the_source_in_part_is_said(tmp_path):
    run = settings(tmp_path)
    (tmp_path / "camera" / "images" / "linked.png").symlink_to(tmp_path / "game" / "images" / "00.png")
    (note,) = refuse_bad_data(run)
    assert "target: also in the source: " in note
    assert "linked.png" in note


def test_broken_target_images_are_named(tmp_path):
    run = settings(tmp_path)
    (tmp_path / "camera" / "images" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"camera.*00\.png cannot be read"):
        refuse_bad_data(run)


def test_a_photo_turned_by_its_camera_matches_its_label(tmp_path):
    run = settings(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (48, 64))
    image.save(tmp_path / "game" / "images" / "00.png", exif=exif)
    Image.fromarray(random_labels(48, 64)).save(tmp_path / "game" / "labels" / "00.png")
    assert refuse_bad_data(run) == []


# --- the report


def run_of(root, **loader):
    for name, seeds in (("game", range(4)), ("camera", range(10, 13)), ("street", range(20, 22))):
        for kind in ("images", "labels"):
            (root / name / kind).mkdir(parents=True)
        for seed in seeds:
            Image.fromarray(random_image(48, 64, seed=seed)).save(root / name / "images" / f"{seed}.png")
            Image.fromarray(random_labels(48, 64, seed=seed)).save(root / name / "labels" / f"{seed}.png")
    classes = [{"name": n, "color": c} for n, c in zip(CLASSES, COLORS, strict=True)]
    roots = {"source": "game", "target": "camera", "val": "street"}
    return resolve(
        {
            "classes": classes,
            **{domain: {"root": root / name} for domain, name in roots.items()},
            "loader": {"crop": [32, 32], "workers": 0, "rare_class": {}, **loader},
            "method": {"teacher": {}, "mixed": {}},
            "train": {"steps": 2},
        }
    )


def test_the_facts_are_those_of_the_files(tmp_path):
    report = ssrseg.check_data(run_of(tmp_path), tmp_path / "out")
    assert report.trainable
    assert report.problems == []
    source, target = report.facts["domains"]["source"], report.facts["domains"]["target"]
    assert (source["images"], source["labels"], source["sizes"]) == (4, 4, {"64x48": 4})
    assert target["images"] == 3
    assert "labels" not in target
    labels = [random_labels(48, 64, seed=seed) for seed in range(4)]
    for i, name in enumerate(CLASSES):
        pixels = sum(int((one == i).sum()) for one in labels)
        found = source["frequencies"][name]
        assert found["pixels"] == pixels
        assert found["images"] == sum(bool((one == i).any()) for one in labels)
        assert found["share"] == pytest.approx(pixels / sum(int((one != 255).sum()) for one in labels))
    assert source["colour"]["mean"] != target["colour"]["mean"]
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["trainable"] is True
    assert written["domains"]["source"]["frequencies"] == source["frequencies"]


def test_colours_are_those_of_all_pixels():
    images = [torch.from_numpy(random_image(seed=seed)).permute(2, 0, 1) for seed in range(3)]
    pixels = torch.stack(images).double()
    colour = colour_facts([colour_moments(image) for image in images])
    assert colour["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert colour["std"] == pytest.approx(pixels.transpose(0, 1).flatten(1).std(1, correction=0).tolist())


def test_brightness_contrast_and_saturation_of_known_images():
    grey = colour_facts([colour_moments(torch.full((3, 8, 8), 90, dtype=torch.uint8))])
    assert [grey[name] for name in ("brightness", "contrast", "saturation")] == pytest.approx([90, 0, 0])
    assert colour_facts([]) is None
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0, :, :4] = 200
    colour = colour_facts([colour_moments(red)])
    assert colour["brightness"] == pytest.approx(0.299 * 100)
    assert colour["contrast"] == pytest.approx(0.299 * 100)
    assert colour["saturation"] == pytest.approx(0.5)  # black has none


def test_the_sheet_shows_images_labels_and_all_classes(tmp_path):
    ssrseg.check_data(run_of(tmp_path), tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact-sheet.png"))
    seen = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    assert seen >= set(COLORS)  # the legend; over the images they are mixed
    first = random_image(48, 64, seed=0)[0, 0]
    assert tuple(first.tolist()) in seen
    mark = random_labels(48, 64, seed=0)[0, 0]
    mixed = 0.4 * first + 0.6 * np.array(COLORS[mark] if mark != 255 else (0, 0, 0))
    assert np.abs(sheet.astype(float) - mixed).max(-1).min() <= 1


def test_training_takes_the_statistics_over_and_counts_nothing_again(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    ssrseg.check_data(run, tmp_path / "out")

    def again(*words):
        raise AssertionError("counted twice")

    monkeypatch.setattr(class_statistics, "read_labels", again)
    assert len(list(train_batches(run))) == 2
    Image.fromarray(random_labels(48, 64, seed=99)).save(tmp_path / "game" / "labels" / "0.png")
    with pytest.raises(AssertionError, match="counted twice"):
        train_batches(run)


def test_min_pixels_are_those_of_the_crop_unless_set(tmp_path):
    assert ssrseg.check_data(run_of(tmp_path / "a"), tmp_path / "out").facts["min_pixels"] == round(3000 / 256)
    given = run_of(tmp_path / "b", rare_class={"min_pixels": 77})
    assert ssrseg.check_data(given, tmp_path / "out").facts["min_pixels"] == 77
