"""Words and settings files as people type them: cut by the shell, not closed, in other encodings and locales."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from factories import write_pairs
from ssrseg.cli import main
from ssrseg.config import assignments, compose, read_yaml, resolve
from ssrseg.errors import UserError
from ssrseg.runs.folder import RunFolder

ASCII = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("classes=[sky, ground, box]", {"classes": ["sky", "ground", "box"]}),
        ("classes=[sky, ground, box train.steps=3", {"classes": ["sky", "ground", "box"]}),
        ("'classes=[road, car'", {"classes": ["road", "car"]}),
        ("'a=[[1, 2], {b: [3'", {"a": [[1, 2], {"b": [3]}]}),
        ("optim={lr: 1, warmup: 2}", {"optim": {"lr": 1, "warmup": 2}}),
        ("'val.root=a: b: c'", {"val": {"root": "a: b: c"}}),
        ("val.split=2020-13-45", {"val": {"split": "2020-13-45"}}),
        ("train.steps= 5", {"train": {"steps": 5}}),
        ("optim.length=", {"optim": {"length": None}}),
        ("train.steps = 5", {"train": {"steps": 5}}),
        ("train.steps =5", {"train": {"steps": 5}}),
        ("source.root=/my data", {"source": {"root": "/my data"}}),
    ],
)
def test_a_word_that_is_no_value_is_answered_with_one_that_is(typed: str, meant: object) -> None:
    with pytest.raises(UserError, match=r"is no YAML value: put the word in quotes: |stands beside it: ") as raised:
        assignments(shlex.split(typed))
    advice = re.split(r"in quotes: |beside it: ", str(raised.value))[1].partition(" (")[0]
    assert assignments(shlex.split(advice)) == meant  # as a shell reads what was printed


def test_a_glob_may_begin_with_its_wildcard() -> None:
    words = ["target.images=*.png", "source.labels=**/*_mask.png"]
    assert assignments(words) == {"target": {"images": "*.png"}, "source": {"labels": "**/*_mask.png"}}


def test_roots_of_the_command_line_keep_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "classes: [a, b]\nsource: {root: x, labels: m/*}\ntarget: {root: y}", encoding="utf-8"
    )
    own = {"source": {"root": "here"}}
    tree = compose("dacs-segformer", tmp_path / "own.yaml", own, [])
    assert (tree["classes"], tree["target"]) == (["a", "b"], {"root": "y"})
    assert tree["source"] == {"root": "here", "labels": "m/*"}
    (tmp_path / "own.yaml").write_text("classes: [a, b]", encoding="utf-8")
    tree = compose("dacs-segformer", tmp_path / "own.yaml", own, [])
    assert (tree["classes"], tree["source"]) == (["a", "b"], {"root": "here"})
    (tmp_path / "own.yaml").write_text("source: {root: x, labels: m/*}", encoding="utf-8")
    several = compose(None, tmp_path / "own.yaml", {"source": [{"root": "p"}, {"root": "q"}]}, [])["source"]
    assert several == [{"root": "p", "labels": "m/*"}, {"root": "q", "labels": "m/*"}]
    (tmp_path / "own.yaml").write_text("source: [{root: x}, {root: y}]", encoding="utf-8")
    with pytest.raises(UserError, match=r"several data sets as `source`.* change the file, or leave --source out"):
        compose(None, tmp_path / "own.yaml", own, [])
    assert compose(None, tmp_path / "own.yaml", {}, [])["source"] == [{"root": "x"}, {"root": "y"}]
    (tmp_path / "own.yaml").write_text("source: {root: x}", encoding="utf-8")
    assert compose(None, tmp_path / "own.yaml", own, [])["source"] == {"root": "here"}


def test_the_message_is_the_line_to_type() -> None:
    with pytest.raises(UserError) as raised:
        assignments(["classes=[road,", "car]"])
    said = "classes=[road, is no YAML value: put the word in quotes: 'classes=[road, car]' ("
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_settings_file_says_its_encoding_itself(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("classes: [Straße, 道路]", encoding=encoding)
    assert read_yaml(tmp_path / "a.yaml") == {"classes": ["Straße", "道路"]}


@pytest.mark.parametrize(
    ("content", "said", "mended"),
    [
        (
            "classes: [Straße]".encode("latin-1"),
            "invalid continuation byte at position 14. Save it as UTF-8.",
            "classes: [Straße]",
        ),
        ("classes: [Straße]".encode("utf-16")[2:], "Save it as UTF-8.", "classes: [Straße]"),
        (
            b"train:\n\tsteps: 1",
            "line 2, column 1: found character '\\t' that cannot start any token. Indent with spaces.",
            "train:\n  steps: 1",
        ),
        (b"classes: [sky, ground", "line 1, column 22: expected ',' or ']'", "classes: [sky, ground]"),
        (b"val: {split: 2020-13-45}", "month must be in 1..12", "val: {split: 2020-12-31}"),
        (b"[" * 1000, "recursion", "{}"),
        (b"images: *.png", 'Put a text that begins with * in quotes: "*.png".', 'images: "*.png"'),
    ],
)
def test_a_file_that_is_no_yaml_says_where(content: bytes, said: str, mended: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "a.yaml")) + " is not valid YAML: ") as raised:
        read_yaml(tmp_path / "a.yaml")
    assert said in str(raised.value)
    (tmp_path / "a.yaml").write_text(mended, encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(mended)


@pytest.mark.parametrize("stages", [3, [3], [{"does": "train"}]])
def test_stages_that_are_none_are_an_error_of_the_settings(stages: object) -> None:
    with pytest.raises(UserError, match=r"  stages"):
        resolve(compose("undoing", None, {}, [f"stages={stages}", "train.steps=1"]))


def test_class_names_in_any_script_where_the_locale_is_ascii(tmp_path: Path) -> None:
    for name in ("quelle", "zürich"):
        write_pairs(tmp_path / name, 2)
    (tmp_path / "my.yaml").write_text(
        "classes: [Himmel, 道路, Baum, Auto, Straße]\nsource: {root: quelle}\ntarget: {root: zürich}\nselection: null\n"
        "model: {backbone: timm:test_resnet, head_channels: 8, pretrained: none}\ntrain: {steps: 1, accelerator: cpu}\n"
        "loader: {crop: [64, 64], workers: 0}\n",
        encoding="utf-8",
    )
    words = ["train", "--preset", "source-only", "--config", "my.yaml", "--out", "run"]
    command = [sys.executable, "-m", "ssrseg", *words]
    done = subprocess.run(command, cwd=tmp_path, env=ASCII, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "no pixel of Stra?e" in done.stdout  # a screen that has no such letter
    assert "道路" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


def test_a_run_folder_whose_name_is_no_text_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `läufe` arrives where the locale has ASCII alone."""
    folder = RunFolder(tmp_path / "l\udcc3\udca4ufe")
    monkeypatch.setattr("ssrseg.cli.app", lambda: folder.create(resolve({"source": {"root": "x"}}), {}))
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "l??ufe: this name is no text in UTF-8. Set PYTHONUTF8=1" in capsys.readouterr().err
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [("source: {root: a}\nsource: {root: b}\n", "line 2.*'source'"), ("source: {root: a, root: b}", "line 1.*'root'")],
)
def test_a_key_that_is_set_twice_is_refused(text: str, line: str, tmp_path: Path) -> None:
    """The last one would win, and nothing would say so."""
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=f"{line} is set twice"):
        compose(None, tmp_path / "own.yaml", {}, [])


@pytest.mark.parametrize(
    ("classes", "names", "ids"),
    [
        ("{0: road, 7: car}", ["road", "car"], [(0,), (7,)]),
        ("{7: car, 0: road, 8: car}", ["road", "car"], [(0,), (7, 8)]),
        ("[{name: road, ids: 0}, {name: car, ids: 7}]", ["road", "car"], [(0,), (7,)]),
    ],
)
def test_classes_as_other_tools_write_them(classes: str, names: list[str], ids: list[tuple[int, ...]]) -> None:
    found = resolve(assignments([f"classes={classes}", "source.root=a"])).classes
    assert not isinstance(found, str | None)
    assert [one.name for one in found] == names
    assert [one.ids for one in found] == ids


def test_colours_may_be_written_as_on_the_web() -> None:
    found = resolve(assignments(["classes=[{name: a, color: '#ff8000'}, b]", "source.root=a"])).classes
    assert not isinstance(found, str | None)
    assert found[0].color == (255, 128, 0)
    for wrong in ("[0, 0, 300]", "'#ff80'"):
        with pytest.raises(UserError, match=r"classes\.0\.color"):
            resolve(assignments([f"classes=[{{name: a, color: {wrong}}}, b]", "source.root=a"]))


def test_a_date_is_no_name() -> None:
    with pytest.raises(UserError, match="is no name: put such words in quotes"):
        resolve(assignments(["classes=[2024-01-01, b]", "source.root=a"]))


def test_a_folder_after_resume_is_meant_as_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ssrseg", "train", "--resume", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert f"ssrseg train --resume --out {tmp_path}" in capsys.readouterr().err.replace("\n", "")
