"""Packed data sets are read as the folders they were."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from factories import random_labels, write_pairs
from ssrseg.cli import app
from ssrseg.config import DataConfig
from ssrseg.data import LabelCode, find_images, find_pairs, read_image, read_labels, train_batches
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.label_mapping import lookup_table
from ssrseg.data.pack import pack
from ssrseg.data.storage import read_bytes, stamp
from ssrseg.errors import UserError
from test_data_loader import settings

pytest.importorskip("litdata", reason="the extra `litdata` is not installed")
TABLE = LabelCode(lookup_table({i: i for i in range(4)}))


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A packed source and target, of three chunks and more, beside their folders."""
    monkeypatch.setattr("ssrseg.data.shards.CHUNK_BYTES", 2_000)
    for domain in ("game", "camera"):
        write_pairs(tmp_path / domain, 6)
    pack(DataConfig(root=tmp_path / "game"), tmp_path / "packed-game")
    pack(DataConfig(root=tmp_path / "camera"), tmp_path / "packed-camera", images_only=True)
    assert len(list((tmp_path / "packed-game").glob("chunk*"))) > 2
    return tmp_path


def batches(root, game, camera, steps=6, start=0, **changes):
    run = settings(root, steps=steps, rare_class={}, **changes)
    source = run.source.model_copy(update={"root": root / game})
    target = run.target.model_copy(update={"root": root / camera})
    return list(train_batches(run.model_copy(update={"source": source, "target": target}), start=start))


def test_every_file_is_there_as_it_was(packed):
    pairs, others = (find_pairs(DataConfig(root=packed / name)) for name in ("game", "packed-game"))
    for one, other in zip(pairs, others, strict=True):
        assert other.image == packed / "packed-game" / "images" / one.image.name
        assert read_bytes(other.image) == read_bytes(one.image)
        assert read_bytes(other.label) == read_bytes(one.label)
    assert len(find_images(DataConfig(root=packed / "packed-camera"))) == 6
    with pytest.raises(UserError, match=r"6 of 6 images .* have no label"):
        find_pairs(DataConfig(root=packed / "packed-camera"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(packed, workers):
    whole = batches(packed, "game", "camera")
    other = batches(packed, "packed-game", "packed-camera", workers=workers, start=2)
    for one, two in zip(whole[2:], other, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("source", "labels", "target"))
        assert [name[-13:] for name in one.names] == [name[-13:] for name in two.names]


def test_classes_were_counted_when_they_were_packed(packed, monkeypatch):
    expected = class_statistics(find_pairs(DataConfig(root=packed / "game")), TABLE, 4).pixels
    folded = LabelCode(lookup_table({0: 1, 1: 1, 2: 0}))
    monkeypatch.setattr("ssrseg.data.class_statistics.read_labels", None)
    pairs = find_pairs(DataConfig(root=packed / "packed-game"))
    assert torch.equal(class_statistics(pairs, TABLE, 4).pixels, expected)
    two = class_statistics(pairs, folded, 2).pixels
    assert torch.equal(two, torch.stack([expected[:, 2], expected[:, :2].sum(1)], dim=1))


def test_files_may_be_packed_at_the_size_that_they_are_trained_at(packed):
    size = DataConfig(root=packed / "game", resize=(40, 40))
    pack(size, packed / "small")
    run = settings(packed, steps=4, workers=0)
    whole = list(train_batches(run.model_copy(update={"source": size})))
    small = run.model_copy(update={"source": DataConfig(root=packed / "small")})
    for one, other in zip(whole, train_batches(small), strict=True):
        assert torch.equal(one.source, other.source)
        assert torch.equal(one.labels, other.labels)


def test_coloured_labels_keep_their_colours(packed):
    colours = np.random.default_rng(0).integers(0, 3, (64, 64, 3), dtype=np.uint8) * 100
    for path in (packed / "game" / "labels").iterdir():
        Image.fromarray(colours).save(path)
    pack(DataConfig(root=packed / "game", resize=(32, 32)), packed / "small")
    (pair, *_) = find_pairs(DataConfig(root=packed / "small"))
    assert np.array_equal(read_image(pair.label).permute(1, 2, 0), colours[::2, ::2])


def test_chunks_are_fetched_from_elsewhere_when_they_are_needed(packed):
    url, kept = f"local:{packed / 'packed-game'}", packed / "kept"
    data = DataConfig(root=kept, url=url)
    pairs = find_pairs(data)
    before = {path.name for path in kept.glob("chunk*")}
    assert torch.equal(read_labels(pairs[0].label, TABLE), torch.from_numpy(random_labels(seed=0)))
    assert before < {path.name for path in (packed / "packed-game").glob("chunk*")}
    assert [pair.image.name for pair in find_pairs(data)] == [f"{i:02}.png" for i in range(6)]
    with pytest.raises(UserError, match=r"keeps the chunks of local:\S+, not of s3://other"):
        find_pairs(DataConfig(root=kept, url="s3://other"))
    with pytest.raises(UserError, match="holds other files"):
        find_pairs(DataConfig(root=packed / "game", url=url))


def test_what_is_no_pack_of_ours_is_refused(packed):
    index = packed / "packed-game" / "index.json"
    content = json.loads(index.read_text())
    content["config"]["data_format"] = ["pickle"]
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"holds items of \['pickle'\], which `ssrseg pack` does not write"):
        find_pairs(DataConfig(root=packed / "packed-game"))


def test_a_damaged_chunk_is_named(packed):
    (pair, *_) = find_pairs(DataConfig(root=packed / "packed-game"))
    chunk = packed / "packed-game" / "chunk-0-0.bin"
    content = bytearray(chunk.read_bytes())
    content[-30] ^= 1
    chunk.write_bytes(content)
    files = [path for one in find_pairs(DataConfig(root=packed / "packed-game")) for path in (one.image, one.label)]
    with pytest.raises(UserError, match="is damaged in its chunk"):
        list(map(read_bytes, files))
    assert stamp(pair.image)
    with pytest.raises(UserError, match="holds no file"):
        stamp(packed / "packed-game" / "images" / "99.png")


def test_nothing_is_packed_over(packed):
    with pytest.raises(UserError, match="is not an empty folder"):
        pack(DataConfig(root=packed / "game"), packed / "packed-camera")


def test_pack_is_a_command(tmp_path):
    write_pairs(tmp_path / "game")
    done = CliRunner().invoke(app, ["pack", str(tmp_path / "game"), str(tmp_path / "out"), "resize=[32, 32]"])
    assert done.exit_code == 0, done.output
    assert "4 images packed" in done.output
    assert read_image(find_images(DataConfig(root=tmp_path / "out"))[0]).shape == (3, 32, 32)
