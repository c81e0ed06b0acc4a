"""What is found before training, beyond the plain cases."""

from __future__ import annotations

import pytest
from PIL import Image

from factories import CLASSES, random_labels, write_pairs
from ssrseg.config import resolve
from ssrseg.data import refuse_bad_data
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
    assert refuse_bad_data(run) == []


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
