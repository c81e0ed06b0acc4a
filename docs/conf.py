"""The documentation site: `make docs` builds it into docs/_build/html; a warning is an error."""

import ast
import inspect
import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ssrseg.config import Settings
from ssrseg.config.base import Strict

HERE = Path(__file__).parent
RESULTS = HERE / "results"

project, author = "ssrseg", "The ssrseg authors"
release = metadata.version("ssrseg")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title = "furo", "ssrseg"
html_show_copyright = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3
default_role = "code"  # docstrings are Markdown where they can be: a name in single backticks
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_preserve_defaults = True


def setup(app: Any) -> None:
    """Write what the site takes from elsewhere: committed results, and a table of all settings."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir()
    for file in (HERE.parent / "benchmarks" / "results").glob("*"):
        if file.suffix in (".md", ".svg", ".png"):
            shutil.copyfile(file, RESULTS / file.name)
    tables = "\n".join(settings_tables(Settings, "", set()))
    (HERE / "settings.md").write_text(f"# All settings\n\n{INTRODUCTION}\n\n{tables}\n", encoding="utf-8")
    app.connect("source-read", in_the_site)


def in_the_site(app: Any, page: str, text: list[str]) -> None:
    """Lead links to committed results, which lie beside the documentation, to their pages here."""
    text[0] = re.sub(r"\]\((\.\./)+benchmarks/results/", "](" + "../" * page.count("/") + "results/", text[0])


INTRODUCTION = """What may stand in a settings file, group by group, and as `key.path=value` on the command line. A
preset sets some of them; `config.yaml` in a run folder holds all of that run."""


def settings_tables(group: type[Strict], path: str, seen: set[type[Strict]], kind: str = "") -> Iterator[str]:
    """Yield a Markdown table of a group of settings, and after it those of the groups inside, each kind once."""
    seen.add(group)
    yield f"## {path.rstrip('.') or 'A run'}{kind}\n\n{inspect.cleandoc(group.__doc__ or '')}\n"
    yield "| setting | takes | when absent | |\n|---|---|---|---|"
    said, inner = docstrings(group), list[tuple[str, type[Strict]]]()
    for name, field in group.model_fields.items():
        groups = groups_in(field.annotation)
        inner += [(name, each) for each in groups]
        default = "" if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        nested = isinstance(default, Strict)
        shown = "required" if field.is_required() else "its own" if nested else f"`{plain(default)}`"
        words = " ".join(said.get(name, "").split()).replace("|", "\\|")
        yield f"| `{path}{name}` | {takes(field.annotation)} | {shown} | {words} |"
    yield ""
    for name, each in inner:
        several = sum(other == name for other, _ in inner) > 1
        if each not in seen:
            yield from settings_tables(each, f"{path}{name}.", seen, f" ({each.__name__})" if several else "")


def groups_in(annotation: Any) -> list[type[Strict]]:
    """Find the groups of settings in a type."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [group for part in get_args(annotation) for group in groups_in(part)]


def takes(annotation: Any) -> str:
    """Say in a few words which values a type takes."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if isinstance(annotation, type) and get_origin(annotation) is None:
        kinds = {"int": "number", "float": "number", "str": "text", "bool": "`true` or `false`", "NoneType": "`null`"}
        return (
            "a group" if issubclass(annotation, Strict) else kinds.get(annotation.__name__, annotation.__name__.lower())
        )
    parts = [part for part in get_args(annotation) if isinstance(part, type) or get_args(part)]
    if get_origin(annotation) in (tuple, list):
        return "list of " + " or ".join(dict.fromkeys(map(takes, parts)))
    if get_origin(annotation) is dict:
        return "a table"
    return " or ".join(dict.fromkeys(map(takes, parts))) or "any"


def plain(value: Any) -> str:
    """Write a default as YAML would have it in a line."""
    return json.dumps(value, default=str).replace("|", "\\|")


def docstrings(group: type[Strict]) -> dict[str, str]:
    """Collect the text that follows each field in the source of a class and of those that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(group.__mro__):
        if issubclass(owner, Strict) and owner is not Strict:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
            assert isinstance(tree, ast.ClassDef)
            for field, text in zip(tree.body, tree.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    found[ast.unparse(field.target)] = str(text.value.value)
    return found
