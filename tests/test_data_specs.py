"""How images find their labels."""

from __future__ import annotations

import pytest
from PIL import Image

from ssrseg.config import DataConfig
from ssrseg.data import find_images, find_pairs
from ssrseg.errors import UserError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / path)
    return root


def found(root, **config):
    pairs = find_pairs(DataConfig(root=root, **config))
    return [(p.image.relative_to(root).as_posix(), p.label.relative_to(root).as_posix()) for p in pairs]


def test_folders_pair_by_path_whatever_the_ending(tmp_path):
    touch(tmp_path, "images/b.png", "images/a/b.jpg", "images/ä ö.jpeg", "labels/ä ö.png", "labels/b.png")
    touch(tmp_path, "labels/a/b.png", "labels/unused.png")
    (tmp_path / "images/notes.txt").write_text("not an image")
    assert found(tmp_path) == [
        ("images/a/b.jpg", "labels/a/b.png"),
        ("images/b.png", "labels/b.png"),
        ("images/ä ö.jpeg", "labels/ä ö.png"),
    ]


def test_stems_with_dots_are_kept_apart(tmp_path):
    touch(tmp_path, "images/a.1.png", "images/a.2.png", "labels/a.1.png", "labels/a.2.png")
    assert [label for _, label in found(tmp_path)] == ["labels/a.1.png", "labels/a.2.png"]


def test_cityscapes_layout_takes_the_split_that_is_asked_for(tmp_path):
    for split, city in (("train", "ulm"), ("val", "bonn")):
        stem = f"{split}/{city}/{city}_000000_000019"
        touch(tmp_path, f"leftImg8bit/{stem}_leftImg8bit.png")
        touch(tmp_path, *(f"gtFine/{stem}_gtFine_{kind}.png" for kind in ("labelIds", "labelTrainIds", "color")))
    assert [label for _, label in found(tmp_path, spec="cityscapes")] == [
        "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    ]
    assert [label for _, label in found(tmp_path, spec="cityscapes-trainids", split="val")] == [
        "gtFine/val/bonn/bonn_000000_000019_gtFine_labelTrainIds.png"
    ]


def test_globs_replace_those_of_the_layout(tmp_path):
    touch(tmp_path, "day/1_rgb.png", "day/1_gt.png", "day/2_rgb.png", "day/2_gt.png")
    assert found(tmp_path, images="*/*_rgb.png", labels="*/*_gt.png", stems=stems(tmp_path, "2_rgb")) == [
        ("day/2_rgb.png", "day/2_gt.png")
    ]


def stems(root, *lines):
    path = root / "stems.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_list_of_stems_may_lie_in_the_data(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png")
    stems(tmp_path, "b", "")
    assert [path.stem for path in find_images(DataConfig(root=tmp_path, stems="stems.txt"))] == ["b"]


def test_a_stem_without_image_is_refused(tmp_path):
    touch(tmp_path, "images/a.png")
    with pytest.raises(UserError, match=r"1 stems .* for example 'c'"):
        find_images(DataConfig(root=tmp_path, stems=stems(tmp_path, "a", "c")))
    with pytest.raises(UserError, match=r"Cannot read the list of stems"):
        find_images(DataConfig(root=tmp_path, stems="none.txt"))


def test_a_target_needs_no_label_folder(tmp_path):
    touch(tmp_path, "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png", "images/a.png")
    for spec in ("cityscapes", "folders"):
        assert len(find_images(DataConfig(root=tmp_path, spec=spec))) == 1


def test_missing_labels_are_counted_both_ways_with_the_globs(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png", "images/c.png", "labels/a.png", "labels/x.png")
    with pytest.raises(UserError) as error:
        find_pairs(DataConfig(root=tmp_path))
    for text in ("2 of 3 images", "2 labels found, 1 of them without image", "images/b.png", "images/c.png"):
        assert text in str(error.value)
    assert "'images/**/*'" in str(error.value)
    assert "'labels/**/*'" in str(error.value)


def test_files_that_the_wildcards_cannot_tell_apart_are_refused(tmp_path):
    touch(tmp_path, "images/a.png", "images/a.jpg")
    with pytest.raises(UserError, match="only the ending differs"):
        find_images(DataConfig(root=tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"root": "nowhere"}, "no folder"),
        ({"images": "*.jpg"}, r"No image matches '\*\.jpg'"),
        ({"spec": "cityscape"}, "no data layout 'cityscape'"),
    ],
)
def test_data_that_are_not_there_are_refused(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        find_images(DataConfig(**{"root": tmp_path, **config}))


def test_files_of_the_file_manager_are_no_images(tmp_path):
    touch(tmp_path, "images/a.png", "images/._a.png")
    assert [path.name for path in find_images(DataConfig(root=tmp_path))] == ["a.png"]


def test_one_folder_of_labels_may_serve_two_of_images(tmp_path):
    touch(tmp_path, "images/fog/a.png", "images/rain/a.png", "clear/a.png")
    (tmp_path / "labels").mkdir()
    for weather in ("fog", "rain"):
        (tmp_path / "labels" / weather).symlink_to(tmp_path / "clear")
    assert [label for _, label in found(tmp_path)] == ["labels/fog/a.png", "labels/rain/a.png"]


def test_a_link_to_its_own_folder_ends(tmp_path):
    touch(tmp_path, "images/a.png", "images/b/c.png")
    (tmp_path / "images/b/again").symlink_to(tmp_path / "images")
    assert len(find_images(DataConfig(root=tmp_path))) == 2
