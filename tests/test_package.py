"""What is installed: the wheel's files and size, and what maintainers ask for."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from typer.testing import CliRunner

import ssrseg
from release_notes import release_notes
from ssrseg.cli import app
from ssrseg.config import resolve
from ssrseg.errors import UserError
from ssrseg.runs.folder import RunFolder

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # hatchling's
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"])
    assert Path(wheel).stat().st_size <= 15e6
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert "ssrseg = ssrseg.cli:main" in archive.read(entry).decode()
    here = {path for path in (SOURCE / "ssrseg").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(SOURCE).as_posix() for path in here}
    kinds = {Path(name).suffix for name in names}
    assert kinds == {".py", ".yaml", ".zip", ".safetensors", ".csv", ".md", ".jinja", ".css", ".js", ".typed"}


def test_citation_and_changelog_name_the_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == changelog.split("\n## ")[1].split()[0]
    assert f'version = "{citation["version"]}"' in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def test_release_notes_are_the_section_of_a_version() -> None:
    version = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    notes = release_notes(version)
    assert notes.startswith("- ")
    assert f"\n\n{notes}\n" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## " not in notes
    with pytest.raises(SystemExit, match=rf"says nothing of 9.9.9: expected one of {version}"):
        release_notes("9.9.9")
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    assert any("tools/release_notes.py" in step.get("run", "") for step in workflow["jobs"]["release"]["steps"])


def test_every_extra_that_is_for_users_is_in_the_documentation() -> None:
    section = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^(\w+) = \[", section.split("\n\n")[0], flags=re.MULTILINE))
    page = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    assert extras == {
        "docs",
        "dev",
        *re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE))),
    }


def test_env_describes_the_machine_and_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    settings = resolve({"source": {"root": str(tmp_path / "game")}, "classes": ["road", "car"]})
    RunFolder(tmp_path / "run").create(settings, {"torch": "2.6.0"})
    found = CliRunner().invoke(app, ["env", str(tmp_path / "run")])
    assert found.exit_code == 0, found.output
    said = yaml.safe_load(found.output)
    assert {"ssrseg", "torch", "timm"} <= said["versions"].keys()
    assert said["settings"]["source"]["root"] == "~/game"  # whose home it is, nobody needs to know
    assert said["made_with"] == {"torch": "2.6.0"}
    assert str(tmp_path) not in found.output
    with pytest.raises(UserError, match=r"is no run: expected the folder"):
        ssrseg.env(tmp_path)
