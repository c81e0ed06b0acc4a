"""Every page: commands that the parser takes, settings that there are and that resolve, programs whose names exist.

Pages that run whole elsewhere (`test_tutorials.py`, `test_own_data.py`, `test_examples.py`) are looked at too: a new
page is covered by being there.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from factories import write_pairs
from ssrseg.cli import app
from ssrseg.cli.options import settings_from
from ssrseg.config import Settings, assignments, merge, resolve
from ssrseg.errors import UserError
from ssrseg.training.stages import planned

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


@pytest.mark.parametrize("page", having("python"))
def test_every_program_names_what_exists_and_calls_it_as_it_takes_it(page: Path) -> None:
    nodes = list(ast.walk(ast.parse("\n".join(blocks(page, "python")))))
    known: dict[str, Any] = {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), str(page), "exec"), known)
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Name):
            assert node.id in made | known.keys() | vars(builtins).keys(), node.id
        if isinstance(node, ast.Attribute):
            found(node, known)
        if isinstance(node, ast.Call) and callable(called := found(node.func, known)):
            words = {word.arg: word.value for word in node.keywords if word.arg}
            inspect.signature(called).bind(*node.args, **words)


def found(node: ast.expr, known: dict[str, Any]) -> Any:
    """Return what `a.b.c` is where `a` was imported; nothing for what the program makes."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    owner = found(node.value, known) if isinstance(node, ast.Attribute) else None
    return None if owner is None else getattr(owner, node.attr)
