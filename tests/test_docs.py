"""Every page: commands that the parser takes, settings that there are and that resolve, programs that run.

Pages that run whole elsewhere (`test_tutorials.py`, `test_own_data.py`, `test_examples.py`) are looked at too: a new
page is covered by being there.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.constants import ENDPOINT
from PIL import Image
from typer.main import get_command

import ssrseg
from factories import write_pairs
from ssrseg.cli import app
from ssrseg.cli.options import settings_from
from ssrseg.config import Settings, assignments, merge, resolve
from ssrseg.errors import UserError
from ssrseg.training.stages import planned
from test_tutorials import SMALL

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "docs" / "tutorials")
PAGES = [page for folder in FOLDERS for page in sorted(folder.glob("*.md")) if page.name != "settings.md"]
"""All but the page that a build of the site leaves there."""
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {
    name: {word for each in command.params for word in (*each.opts, *each.secondary_opts)} | {"--help"}
    for name, command in COMMANDS.items()
}
OTHERS = {"--rows", "--nnodes", "--rdzv-*", "--rdzv-conf", "--kill-on-bad-exit"}
"""Options of benchmarks, torchrun and srun."""
FILES = {"bin", "ckpt", "json", "onnx", "pth", "safetensors", "txt", "xml", "yaml"}
"""Endings of names that begin as a setting does, as `model.onnx`."""
AROUND = {"source": {"root": "game"}, "target": {"root": "camera"}, "method": {"teacher": {}, "mixed": {}}}
"""What a run has beside the settings that a page shows."""
ELSEWHERE = {"edge-box.md": "test_tutorials.py", "extend.md": "test_examples.py"}
"""Page -> the test that runs its programs."""
FENCED = re.compile(r"^```(\S*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page that are in one of the languages."""
    fenced = FENCED.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in fenced if language in languages]


def having(*languages: str) -> list[Any]:
    """Return the pages that have such blocks, as parameters of a test."""
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, *languages)]


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after `ssrseg` in the lines that run it; `...` stands for words that a reader has."""
    for block in blocks(page, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(srun .*)?ssrseg ", line):
                words = shlex.split(line, comments=True)
                yield [word for word in words[words.index("ssrseg") + 1 :] if word != "..."]


@pytest.mark.parametrize("page", having("", "bash"))
def test_every_command_is_one_and_its_settings_resolve(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, *words in commands(page):
        given = COMMANDS[name].make_context(name, words).params
        if "preset" in given and given.get("source", given["preset"]):
            roots = {role: given.get(role) for role in ("source", "target", "val")}
            for root in chain.from_iterable(filter(None, roots.values())):
                write_pairs(tmp_path / root, 1)
            settings_from(given["words"], given["preset"], None, **roots)
        elif "words" in given:
            assignments(given["words"] or [])


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_commands_options_and_settings_that_the_text_names_are_there(page: Path) -> None:
    for span in re.findall(r"`([^`]+)`", FENCED.sub("", page.read_text(encoding="utf-8"))):
        words = span.split()
        command = words[1] if words[0] == "ssrseg" and words[1:] and words[1].islower() else ""
        if command or words[0].startswith("--"):
            named = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
            assert named <= (OPTIONS[command] if command else set().union(*OPTIONS.values(), OTHERS)), span
        for path in (word.partition("=")[0].strip("'") for word in words):
            if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", path) and path.rpartition(".")[2] not in FILES:
                assert path.partition(".")[0] not in Settings.model_fields or exists(path), span


def exists(path: str) -> bool:
    """Tell whether there is a setting at a dotted path, whatever its value."""
    try:
        resolve(merge(AROUND, assignments([f"{path}=0"])))
    except UserError as error:
        return "no such setting" not in str(error)
    return True


@pytest.mark.parametrize("page", having("yaml"))
def test_every_settings_file_resolves(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        tree = yaml.safe_load(block)
        own = {} if "spec:" in block or "classes" in tree else {"classes": ["road", "car"]}
        planned(resolve(merge({**AROUND, **own}, tree)), tmp_path)


def test_every_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("game", "camera"):
        for label in (write_pairs(tmp_path / name) / "labels").iterdir():
            Image.open(label).point(lambda k: k if k == 255 else k % 2).save(label)  # road or car, as on the pages
    shutil.copy(tmp_path / "camera" / "images" / "00.png", tmp_path / "street.png")
    whole = ssrseg.resolve
    monkeypatch.setattr(ssrseg, "resolve", lambda given: whole(merge(given, assignments(SMALL))))
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, repo_id, **__: RepoUrl(f"{ENDPOINT}/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, folder_path, **__: shutil.copytree(folder_path, "hub"))
    monkeypatch.setattr(ssrseg.models.weights, "hf_hub_download", lambda _, name, revision: Path("hub", name))
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        if page.name not in ELSEWHERE and (programs := blocks(page, "python")):
            exec(compile("\n".join(programs), str(page), "exec"), {"__name__": page.stem})
            shutil.copytree("runs/first", "runs/mine", dirs_exist_ok=True)  # what later pages begin with
    assert "license: cc-by-nc-4.0" in Path("hub", "README.md").read_text(encoding="utf-8")
