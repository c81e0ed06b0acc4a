"""Archives that are read in place."""

from __future__ import annotations

import multiprocessing
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factories import CLASSES, random_image, random_labels, write_pairs
from ssrseg.config import DataConfig, resolve
from ssrseg.data import find_images, find_pairs, read_image, refuse_bad_data, train_batches
from ssrseg.data.checks.inspect import read_header
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.label_mapping import code_for
from ssrseg.data.storage import list_files, list_members, open_file, read_bytes, stamp
from ssrseg.errors import UserError


def packed(root: Path, archive: Path, prefix: str = "", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """All files below `root` in an archive."""
    with zipfile.ZipFile(archive, "w", compression) as file:
        file.writestr("__MACOSX/._images", b"")
        for path in sorted(root.rglob("*")):
            file.write(path, prefix + path.relative_to(root).as_posix())
    return archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four pairs, packed; the unpacked ones are beside it."""
    write_pairs(tmp_path / "plain", height=60, width=70)
    return packed(tmp_path / "plain", tmp_path / "packed.zip")


def names(root: Path) -> list[str]:
    return [pair.label.as_posix()[len(root.as_posix()) + 1 :] for pair in find_pairs(DataConfig(root=root))]


def test_an_archive_is_a_folder(archive: Path) -> None:
    assert names(archive) == [f"labels/{i:02}.png" for i in range(4)]
    plain = find_pairs(DataConfig(root=archive.with_name("plain")))
    for inside, outside in zip(find_pairs(DataConfig(root=archive)), plain, strict=True):
        assert read_bytes(inside.label) == outside.label.read_bytes()
        assert torch.equal(read_image(inside.image), read_image(outside.image))
        assert read_header(inside.image).stored == (70, 60)


def test_archives_lie_beside_each_other_as_they_were_downloaded(tmp_path: Path) -> None:
    write_pairs(tmp_path / "plain")
    (tmp_path / "root").mkdir()
    for part in ("images", "labels"):
        packed(tmp_path / "plain" / part, tmp_path / "root" / f"{part}_v1.zip", prefix=f"{part}/")
    assert names(tmp_path / "root") == [f"labels_v1.zip/labels/{i:02}.png" for i in range(4)]


def test_what_is_unpacked_wins(tmp_path: Path, archive: Path) -> None:
    root = tmp_path / "plain"
    packed(root, root / "all.zip")
    (root / "images" / "03.png").unlink()  # taken out on purpose: the archive does not bring it back
    assert names(root) == [f"labels/{i:02}.png" for i in range(3)]
    for path in (root / "labels").iterdir():
        path.unlink()
    assert names(root) == [f"all.zip/labels/{i:02}.png" for i in range(3)]


def test_a_file_in_two_archives_is_refused(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "root").mkdir()
    for name in ("a.zip", "b.zip"):
        packed(tmp_path / "plain", tmp_path / "root" / name)
    with pytest.raises(UserError, match=r"a\.zip/images/00\.png and .*b\.zip/images/00\.png are the same"):
        find_images(DataConfig(root=tmp_path / "root"))


def test_names_may_hold_any_letters(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / "plain" / part / "Zürich").mkdir(parents=True)
        Image.fromarray(random_labels()).save(tmp_path / "plain" / part / "Zürich" / "日 本.png")
    archive = packed(tmp_path / "plain", tmp_path / "straße.zip")
    assert names(archive) == ["labels/Zürich/日 本.png"]
    assert read_image(find_images(DataConfig(root=archive))[0]).shape == (3, 64, 64)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 on forks
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_threads_and_processes_read_at_once(tmp_path: Path, compression: int) -> None:
    write_pairs(tmp_path / "plain", 8)
    paths = find_images(DataConfig(root=packed(tmp_path / "plain", tmp_path / "a.zip", compression=compression)))
    wanted = [read_bytes(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_bytes, paths * 20)) == wanted * 20
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(read_bytes, paths * 20) == wanted * 20


def run_on(root: Path, workers: int = 0):
    return resolve(
        {
            "classes": CLASSES,
            "source": {"root": root},
            "target": {"root": root.with_name("camera")},
            "loader": {"crop": [32, 32], "workers": workers, "rare_class": {}},
            "method": {"teacher": {}, "mixed": {}},
            "train": {"steps": 4},
        }
    )


def test_training_from_an_archive_equals_training_from_the_folder(tmp_path: Path, archive: Path) -> None:
    write_pairs(tmp_path / "camera")
    plain, inside = run_on(tmp_path / "plain"), run_on(archive, workers=2)
    assert refuse_bad_data(inside) == refuse_bad_data(plain)
    for one, other in zip(train_batches(plain), train_batches(inside), strict=True):
        assert torch.equal(one.source, other.source)
        assert torch.equal(one.labels, other.labels)


def test_statistics_are_counted_again_when_a_member_changes(tmp_path: Path, archive: Path) -> None:
    run = resolve({"classes": CLASSES, "source": {"root": archive}})

    def count() -> list[int]:
        pairs = find_pairs(run.source)
        return class_statistics(pairs, code_for(run.source, run.classes), 4).totals.tolist()

    before = count()
    assert count() == before
    Image.fromarray(np.zeros((60, 70), np.uint8)).save(tmp_path / "plain" / "labels" / "00.png")
    packed(tmp_path / "plain", archive)
    assert count()[0] > before[0]


def test_a_stamp_tells_files_apart(tmp_path: Path, archive: Path) -> None:
    members = dict(list_members(archive))
    assert stamp(members["images/00.png"]) != stamp(members["images/01.png"])
    plain = tmp_path / "plain" / "images" / "00.png"
    before = stamp(plain)
    Image.fromarray(random_image(seed=9)).save(plain)
    assert stamp(plain) != before
    for missing in (tmp_path / "none.png", archive / "images/none.png"):
        with pytest.raises(UserError, match=r"none\.png"):
            stamp(missing)


def test_damaged_archives_and_members_are_named(tmp_path: Path, archive: Path) -> None:
    encoded = archive.read_bytes()
    (tmp_path / "half.zip").write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(UserError, match=r"half\.zip cannot be read as a zip archive"):
        find_images(DataConfig(root=tmp_path / "half.zip"))
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo("images/00.png").header_offset + 60
    (tmp_path / "bent.zip").write_bytes(encoded[:start] + bytes(40) + encoded[start + 40 :])
    with pytest.raises(UserError, match=r"bent\.zip/images/00\.png cannot be read"):
        read_bytes(tmp_path / "bent.zip" / "images" / "00.png")


def test_encrypted_and_strangely_packed_members_are_named(tmp_path: Path, archive: Path) -> None:
    encoded = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        local, central = file.getinfo("images/00.png").header_offset, file.start_dir
    entry = encoded.index(b"images/00.png", central) - 46
    for name, places, value, message in (
        ("secret.zip", (local + 6, entry + 8), 1, "password"),
        ("odd.zip", (local + 8, entry + 10), 77, "compression"),
    ):
        changed = bytearray(encoded)
        for place in places:
            changed[place] = value
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(UserError, match=rf"{name}/images/00\.png cannot be read: .*{message}"):
            read_bytes(tmp_path / name / "images" / "00.png")


def test_what_is_no_folder_and_no_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "data.tar").touch()
    for name, message in (("data.tar", "no zip archive"), ("none", "not there"), ("none.zip", "not there")):
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            list_files(tmp_path / name)


def test_files_are_opened_to_read_their_header_only(archive: Path) -> None:
    with open_file(archive / "images/00.png") as file, Image.open(file) as image:
        assert image.size == (70, 60)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "stems.txt").write_text("a")
    data = resolve({"classes": ["a"], "source": {"root": "~/data", "stems": "~/stems.txt"}}).source
    assert (data.root, data.stems) == (tmp_path / "data", tmp_path / "stems.txt")
    assert DataConfig(root="~nobody-of-this-name/x").root == Path("~nobody-of-this-name/x")
