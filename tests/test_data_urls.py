"""Data below URLs and in archives there are read as the folder that they were made from."""

from __future__ import annotations

import re
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.registry import known_implementations
from PIL import Image

from factories import write_pairs
from ssrseg.config import DataConfig, dump, resolve
from ssrseg.config.base import Url
from ssrseg.data import code_for, find_images, find_pairs, read_image, refuse_bad_data, train_batches
from ssrseg.data.class_statistics import class_statistics
from ssrseg.data.pack import pack
from ssrseg.data.storage import list_files, open_file, read_bytes, stamp
from ssrseg.errors import UserError
from ssrseg.training.env import data_fingerprint

GTA5 = Path(__file__).parents[2] / "shared" / "data" / "format-samples" / "gta5"
PLACES = ["memory", "http", "zip", "memory-zip", "http-zip", "packed-http"]
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 on forks


class WithRanges(SimpleHTTPRequestHandler):
    """Serves and lists a folder; parts of files too, unless told otherwise."""

    ranges = True
    log: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.log.append((self.path, asked))
        path = Path(self.translate_path(self.path))
        if asked is None or not self.ranges or not path.is_file():
            return super().do_GET()
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
        content = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Length", str(len(content[first : last + 1])))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[first : last + 1])
        return None

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server(tmp_path):
    """A folder that is served: its path, its URL, and the handler."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Handler", (WithRanges,), {"log": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()


@pytest.fixture
def place(server, tmp_path):
    """Puts a folder somewhere else, and says where."""
    memory = fsspec.filesystem("memory")
    served, url, _ = server

    def put(kind: str, root: Path, **layout: str) -> str:
        name = f"{tmp_path.name}-{root.name}"
        archive = tmp_path / f"{name}.zip"
        if kind == "packed-http":
            pack(DataConfig(root=root, **layout), archive)
        elif "zip" in kind:
            shutil.make_archive(str(archive.with_suffix("")), "zip", root)
        if kind == "zip":
            return str(archive)
        if kind.startswith("memory"):
            inner = f"/{name}.zip" if "zip" in kind else f"/{name}"
            memory.put(str(archive) if "zip" in kind else f"{root}/", inner, recursive=True)
            return f"memory:/{inner}"
        copied = served / (archive.name if archive.exists() else name)
        shutil.copy(archive, copied) if archive.exists() else shutil.copytree(root, copied)
        return f"{url}/{copied.name}"

    yield put
    memory.store.clear()


def run_on(source: str | Path, target: str | Path, **more):
    return resolve(
        {
            "classes": ["road", "car", "sky", "tree"],
            "source": {"root": source},
            "target": {"root": target},
            "loader": {"crop": [32, 32], "rare_class": {}, **more.pop("loader", {})},
            "method": {"teacher": {}, "mixed": {}},
            "train": {"steps": 4},
            **more,
        }
    )


def same(one, other) -> bool:
    return all(
        torch.equal(getattr(one, part), getattr(other, part)) for part in ("source", "labels", "target", "valid")
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", PLACES)
def test_batches_are_those_of_the_folder(tmp_path, place, kind, workers):
    write_pairs(tmp_path / "a game", height=60, width=70)
    write_pairs(tmp_path / "camera")
    plain = run_on(tmp_path / "a game", tmp_path / "camera", loader={"workers": 0})
    other = run_on(place(kind, tmp_path / "a game"), place(kind, tmp_path / "camera"), loader={"workers": workers})
    for name in ("source", "target"):
        one, two = getattr(plain, name), getattr(other, name)
        assert [str(p.relative_to(two.root)) for p in find_images(two)] == [
            str(p.relative_to(one.root)) for p in find_images(one)
        ]
    assert refuse_bad_data(other) == refuse_bad_data(plain)
    expected = list(train_batches(plain))
    found = list(train_batches(other))
    assert [same(a, b) for a, b in zip(expected, found, strict=True)] == [True] * 4
    assert same(expected[2], next(train_batches(other, start=2)))
    prints, others = data_fingerprint(plain), data_fingerprint(other)
    assert [prints[name]["files"] for name in prints] == [others[name]["files"] for name in others] == [8, 4]
    assert prints == others


@pytest.mark.skipif(not GTA5.is_dir(), reason="needs the shared samples of GTA5")
@pytest.mark.parametrize("kind", ["memory", "http", "zip", "packed-http"])
def test_gta5_is_read_from_anywhere(tmp_path, place, kind):
    def run(root):
        data = {"root": root, "spec": "gta5", "resize": [640, 360]}
        loader = {"crop": [128, 128], "workers": 2, "rare_class": {}}
        return resolve({"source": data, "loader": loader, "train": {"steps": 3}})

    plain, other = run(GTA5), run(place(kind, GTA5, spec="gta5"))
    assert len(find_pairs(other.source)) == 3
    notes = [note.replace(str(run.source.root), "ROOT") for run in (plain, other) for note in refuse_bad_data(run)]
    assert notes[: len(notes) // 2] == notes[len(notes) // 2 :]
    for a, b in zip(train_batches(plain), train_batches(other), strict=True):
        assert torch.equal(a.source, b.source)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("kind", ["memory", "http", "memory-zip", "http-zip"])
def test_statistics_are_counted_again_only_when_a_label_changes(tmp_path, place, kind):
    write_pairs(tmp_path / "game")
    run = run_on(place(kind, tmp_path / "game"), tmp_path / "game")

    def stamps():
        return [stamp(pair.label) for pair in find_pairs(run.source)]

    def count():
        pairs, code = find_pairs(run.source), code_for(run.source, run.classes)
        return class_statistics(pairs, code, 4).totals.tolist()

    before, stamped = count(), stamps()
    assert stamps() == stamped
    Image.new("L", (50, 50)).save(tmp_path / "game" / "labels" / "00.png")
    shutil.rmtree(tmp_path / "served") if kind == "http" else None
    assert place(kind, tmp_path / "game") == str(run.source.root)
    assert sum(one != other for one, other in zip(stamped, stamps(), strict=True)) == (4 if kind == "memory" else 1)
    assert count() != before


def test_an_archive_at_a_url_is_read_in_parts(tmp_path, server, place):
    write_pairs(tmp_path / "game", 3)
    _, _, handler = server
    data = DataConfig(root=place("packed-http", tmp_path / "game"))
    images = find_images(data)
    handler.log.clear()
    assert torch.equal(read_image(images[1]), read_image(tmp_path / "game" / "images" / "01.png"))
    assert [asked is not None for _, asked in handler.log] == [True]
    with open_file(images[2]) as file, Image.open(file) as header:
        assert header.size == (64, 64)
    with open_file(images[0]) as file:
        assert file.read() == (tmp_path / "game" / "images" / "00.png").read_bytes()


def test_a_folder_of_archives_at_a_url_is_as_if_unpacked(tmp_path, server, place):
    write_pairs(tmp_path / "plain")
    served, url, _ = server
    (served / "down loads").mkdir()
    for part in ("images", "labels"):
        shutil.make_archive(str(served / "down loads" / part), "zip", tmp_path / "plain", part)
    pairs = find_pairs(DataConfig(root=f"{url}/down loads"))
    assert str(pairs[0].label) == f"{url}/down loads/labels.zip/labels/00.png"
    assert len(pairs) == 4


def test_labels_and_stems_may_lie_elsewhere(tmp_path, place, server):
    write_pairs(tmp_path / "game")
    served, url, _ = server
    (served / "some.txt").write_text("01\n03\n")
    root = place("memory", tmp_path / "game")
    pairs = find_pairs(DataConfig(root=root, labels_root=tmp_path / "game", stems=f"{url}/some.txt"))
    assert [(str(pair.image), pair.label) for pair in pairs] == [
        (f"{root}/images/{stem}.png", tmp_path / "game" / "labels" / f"{stem}.png") for stem in ("01", "03")
    ]


def test_what_cannot_be_reached_is_named(tmp_path, server, monkeypatch):
    monkeypatch.setattr("ssrseg.data.remote._ask.__defaults__", ((),))
    served, url, handler = server
    for root, message in (
        ("memory://nowhere", "memory://nowhere cannot be read: there is no such file"),
        (f"{url}/nowhere", "nowhere cannot be read: there is no such file"),
        (f"{url}/nowhere.zip", "nowhere.zip cannot be read: .*404"),
        ("http://127.0.0.1:9/data", "http://127.0.0.1:9/data cannot be read: .*127.0.0.1"),
        ("http://127.0.0.1:9/data.zip", "http://127.0.0.1:9/data.zip cannot be read: .*127.0.0.1"),
        ("ftps3://bucket/data", "ftps3://bucket/data cannot be read: .*ftps3"),
    ):
        with pytest.raises(UserError, match=message):
            find_images(DataConfig(root=root))
    write_pairs(tmp_path / "game")
    shutil.make_archive(str(served / "game"), "zip", tmp_path / "game")
    handler.ranges = False
    with pytest.raises(UserError, match=r"game\.zip.* its server sends no parts of files"):
        find_images(DataConfig(root=f"{url}/game.zip"))


def test_a_missing_package_is_named(monkeypatch):
    entry = {"class": "no_such_package.S3", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "nosuch", entry)
    with pytest.raises(UserError, match=r"nosuch://bucket/a needs a package .* Install s3fs to access S3"):
        list_files(Url("nosuch://bucket/a"))


def test_a_request_that_fails_once_is_repeated(tmp_path, place, monkeypatch):
    write_pairs(tmp_path / "game", 1)
    (image,) = find_images(DataConfig(root=place("memory", tmp_path / "game")))
    files, calls = type(fsspec.filesystem("memory")), []
    read = files.cat_file

    def shaky(self, path, **more):
        calls.append(path)
        if len(calls) == 1:
            raise ConnectionError("reset")
        return read(self, path, **more)

    monkeypatch.setattr(files, "cat_file", shaky)
    assert read_bytes(image) == (tmp_path / "game" / "images" / "00.png").read_bytes()
    assert len(calls) == 2


def test_a_url_is_a_path_that_keeps_its_slashes():
    data = resolve({"classes": ["a"], "source": {"root": "s3://bucket/gta5"}}).source
    assert str(data.root / "images" / "00.png") == "s3://bucket/gta5/images/00.png"
    assert (data.root / "a.png").relative_to(data.root).as_posix() == "a.png"
    assert str(DataConfig(root=Path("s3://bucket/gta5")).root) == "s3://bucket/gta5"  # as the command line has it
    assert DataConfig(root="file:///data/a").root == Path("/data/a")
    settings = resolve({"classes": ["a"], "source": {"root": "s3://bucket/gta5"}})
    assert "root: s3://bucket/gta5" in dump(settings)
    assert isinstance(data.root.absolute(), Url)


def test_a_packed_archive_is_not_compressed(tmp_path):
    write_pairs(tmp_path / "game", 1)
    pack(DataConfig(root=tmp_path / "game"), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert file.namelist() == ["labels/00.png", "images/00.png", "ssrseg-pack.json"]
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
