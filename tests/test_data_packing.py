"""Packed data sets are read as the folders they were."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from factories import write_pairs
from ssrseg.cli import app
from ssrseg.config import DataConfig
from ssrseg.data import LabelCode, find_images, find_pairs, read_image, train_batches
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.label_files import read_raw_labels
from ssrseg.data.label_mapping import lookup_table
from ssrseg.data.pack import pack
from ssrseg.data.storage import read_bytes, values_of
from ssrseg.errors import UserError
from test_data_loader import settings

TABLE = LabelCode(lookup_table({i: i for i in range(4)}))


@pytest.fixture
def packed(tmp_path):
    """A packed source and target beside their folders."""
    for domain in ("game", "camera"):
        write_pairs(tmp_path / domain, 6)
    pack(DataConfig(root=tmp_path / "game"), tmp_path / "packed-game.zip")
    pack(DataConfig(root=tmp_path / "camera"), tmp_path / "packed-camera.zip", images_only=True)
    return tmp_path


def batches(root, game, camera, steps=6, start=0, **changes):
    run = settings(root, steps=steps, rare_class={}, **changes)
    source = run.source.model_copy(update={"root": root / game})
    target = run.target.model_copy(update={"root": root / camera})
    return list(train_batches(run.model_copy(update={"source": source, "target": target}), start=start))


def test_every_file_is_there_as_it_was(packed):
    pairs, others = (find_pairs(DataConfig(root=packed / name)) for name in ("game", "packed-game.zip"))
    for one, other in zip(pairs, others, strict=True):
        assert other.image == packed / "packed-game.zip" / "images" / one.image.name
        assert read_bytes(other.image) == read_bytes(one.image)
        assert read_bytes(other.label) == read_bytes(one.label)
    assert len(find_images(DataConfig(root=packed / "packed-camera.zip"))) == 6
    with pytest.raises(UserError, match=r"6 of 6 images .* have no label"):
        find_pairs(DataConfig(root=packed / "packed-camera.zip"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(packed, workers):
    whole = batches(packed, "game", "camera")
    other = batches(packed, "packed-game.zip", "packed-camera.zip", workers=workers, start=2)
    for one, two in zip(whole[2:], other, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("source", "labels", "target"))
        assert [name[-13:] for name in one.names] == [name[-13:] for name in two.names]


def test_classes_were_counted_when_they_were_packed(packed, monkeypatch):
    expected = class_statistics(find_pairs(DataConfig(root=packed / "game")), TABLE, 4).pixels
    folded = LabelCode(lookup_table({0: 1, 1: 1, 2: 0}))
    monkeypatch.setattr("ssrseg.data.class_statistics.read_labels", None)
    pairs = find_pairs(DataConfig(root=packed / "packed-game.zip"))
    assert torch.equal(class_statistics(pairs, TABLE, 4).pixels, expected)
    two = class_statistics(pairs, folded, 2).pixels
    assert torch.equal(two, torch.stack([expected[:, 2], expected[:, :2].sum(1)], dim=1))


def test_files_may_be_packed_at_the_size_that_they_are_trained_at(packed):
    size = DataConfig(root=packed / "game", resize=(40, 40))
    pack(size, packed / "small.zip")
    run = settings(packed, steps=4, workers=0)
    whole = list(train_batches(run.model_copy(update={"source": size})))
    small = run.model_copy(update={"source": DataConfig(root=packed / "small.zip")})
    for one, other in zip(whole, train_batches(small), strict=True):
        assert torch.equal(one.source, other.source)
        assert torch.equal(one.labels, other.labels)


def test_coloured_labels_keep_their_colours(packed):
    colours = np.random.default_rng(0).integers(0, 3, (64, 64, 3), dtype=np.uint8) * 100
    for path in (packed / "game" / "labels").iterdir():
        Image.fromarray(colours).save(path)
    pack(DataConfig(root=packed / "game", resize=(32, 32)), packed / "small.zip")
    (pair, *_) = find_pairs(DataConfig(root=packed / "small.zip"))
    assert np.array_equal(read_image(pair.label).permute(1, 2, 0), colours[::2, ::2])


def test_the_same_files_make_the_same_archive(packed):
    pack(DataConfig(root=packed / "game"), packed / "again.zip")
    assert (packed / "again.zip").read_bytes() == (packed / "packed-game.zip").read_bytes()
    assert not list(packed.glob(".*.partial"))


def test_labels_may_lie_elsewhere_but_not_under_the_images_names(packed):
    data = DataConfig(root=packed / "game", labels_root=packed / "marks", labels="labels/**/*")
    (packed / "marks").mkdir()
    (packed / "game" / "labels").rename(packed / "marks" / "labels")
    pack(data, packed / "both.zip")
    assert len(find_pairs(DataConfig(root=packed / "both.zip"))) == 6
    (packed / "marks" / "labels").rename(packed / "marks" / "images")
    with pytest.raises(UserError, match=r"Two files .* would be images/00\.png .* set `labels_root`"):
        pack(data.model_copy(update={"labels": "images/**/*"}), packed / "twice.zip")
    assert not (packed / "twice.zip").exists()
    pack(data, packed / "game.zip", images_only=True)  # as it says
    pack(DataConfig(root=packed / "marks"), packed / "marks.zip", images_only=True)
    apart = DataConfig(root=packed / "game.zip", labels_root=packed / "marks.zip", labels="images/**/*")
    assert [pair.image.name for pair in find_pairs(apart)] == [pair.label.name for pair in find_pairs(apart)]


def rewritten(archive, out, **members):
    """The archive with other contents of some members."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, members.get(info.filename.rpartition("/")[2], old.read(info)))
    return out


def test_counts_of_a_label_that_was_replaced_do_not_hold(packed):
    grey = packed / "grey.png"
    Image.new("L", (64, 64), 3).save(grey)
    changed = rewritten(packed / "packed-game.zip", packed / "changed.zip", **{"00.png": grey.read_bytes()})
    pairs = find_pairs(DataConfig(root=changed))
    assert [values_of(pair.label) is None for pair in pairs] == [True] + [False] * 5
    assert class_statistics(pairs, TABLE, 4).pixels[0].tolist() == [0, 0, 0, 64 * 64]


def test_a_damaged_index_is_named(packed):
    index = {"ssrseg-pack.json": json.dumps({})[:1].encode()}
    damaged = rewritten(packed / "packed-game.zip", packed / "damaged.zip", **index)
    with pytest.raises(UserError, match=r"damaged\.zip/ssrseg-pack\.json is damaged"):
        class_statistics(find_pairs(DataConfig(root=damaged)), TABLE, 4)
    damaged.unlink()
    pack(DataConfig(root=packed / "game"), damaged)  # again
    assert class_statistics(find_pairs(DataConfig(root=damaged)), TABLE, 4).totals.sum() > 0


def test_labels_that_cannot_become_pngs_are_packed_as_they_are(tmp_path):
    write_pairs(tmp_path, 1)
    ids = np.array(Image.open(tmp_path / "labels" / "00.png")).astype(np.float32)
    (tmp_path / "labels" / "00.png").unlink()
    Image.fromarray(ids).save(tmp_path / "labels" / "00.tif")
    data = DataConfig(root=tmp_path, resize=(32, 32))
    with pytest.raises(
        UserError, match=r"00\.tif \(float32\) cannot become a PNG, which resize makes of it: pack with"
    ):
        pack(data, tmp_path / "a.zip")
    pack(data.model_copy(update={"resize": None}), tmp_path / "a.zip")
    (pair,) = find_pairs(DataConfig(root=tmp_path / "a.zip"))
    assert np.array_equal(read_raw_labels(pair.label), ids)


def test_only_a_new_archive_is_written(packed):
    for name, message in (("packed-camera.zip", "is there already"), ("packed", "does not end in .zip")):
        with pytest.raises(UserError, match=message):
            pack(DataConfig(root=packed / "game"), packed / name)
    pack(DataConfig(root=packed / "game"), packed / "into.zip")  # a new .zip file
    assert len(find_pairs(DataConfig(root=packed / "into.zip"))) == 6
    (packed / "game" / "images" / "03.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"03\.png cannot be read"):
        pack(DataConfig(root=packed / "game"), packed / "new.zip")
    assert not list(packed.glob("*new.zip*"))


def test_pack_is_a_command(tmp_path):
    write_pairs(tmp_path / "game")
    done = CliRunner().invoke(app, ["pack", str(tmp_path / "game"), str(tmp_path / "out.zip"), "resize=[32, 32]"])
    assert done.exit_code == 0, done.output
    assert "4 images packed" in done.output
    assert read_image(find_images(DataConfig(root=tmp_path / "out.zip"))[0]).shape == (3, 32, 32)
