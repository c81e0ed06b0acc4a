"""How images find their labels."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from factories import CLASSES, write_pairs
from ssrseg.config import DataConfig, assignments, merge, resolve
from ssrseg.data import find_images, find_pairs, refuse_bad_data
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


def test_a_list_with_folders_names_the_images_in_them(tmp_path):
    """Of several with one stem; a list of stems alone names them all."""
    for folder in ("a", "b"):
        write_pairs(tmp_path / folder, 2)
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / folder / kind).rename(tmp_path / kind / folder)
    data = DataConfig(root=tmp_path, stems=tmp_path / "list.txt")
    for text, wanted in {
        "a/00\nb/01.png\n": ["a/00", "b/01"],
        "/elsewhere/images/b/00.png\n": ["b/00"],
        "00\n": ["a/00", "b/00"],
        "c/00\n": ["a/00", "b/00"],
    }.items():
        (tmp_path / "list.txt").write_text(text)
        found = [pair.image.relative_to(tmp_path / "images").with_suffix("") for pair in find_pairs(data)]
        assert [path.as_posix() for path in found] == wanted, text


@pytest.mark.parametrize("change", ["{}_mask.png", "gt-{}.png", "../masks/{}.png"])
def test_the_glob_of_labels_that_the_message_gives_finds_them(change, tmp_path):
    write_pairs(tmp_path, 12)
    (tmp_path / "masks").mkdir()
    for path in (tmp_path / "labels").iterdir():
        path.rename(path.parent / change.format(path.stem))
    tree = {"classes": list(CLASSES), "source": {"root": str(tmp_path)}, "loader": {"crop": [32, 32]}, "method": {}}
    with pytest.raises(UserError, match="has no label") as raised:
        refuse_bad_data(resolve(tree))
    (word,) = re.findall(r"'(source\.labels=[^']+)'", str(raised.value))
    settings = resolve(merge(tree, assignments([word])))
    refuse_bad_data(settings)
    assert len(find_pairs(settings.source)) == 12


def test_images_are_looked_for_where_no_labels_are(tmp_path):
    write_pairs(tmp_path, 2)
    (tmp_path / "images").rename(tmp_path / "pictures")
    (tmp_path / "labels").rename(tmp_path / "annotations")
    with pytest.raises(UserError, match=r"'images=pictures/\*'"):
        find_images(DataConfig(root=tmp_path))
    assert len(find_images(DataConfig(root=tmp_path, images="pictures/*"))) == 2


def test_a_relative_folder_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"not there, seen from {tmp_path}"):
        find_images(DataConfig(root="data"))
