"""examples/quickstart.ipynb runs from top to bottom in an empty folder, and its file is a notebook without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
SMALL = "STEPS, PICTURES = 2, (2, 2, 1)"
"""Follows the cell that is tagged `parameters`, as papermill does it."""


def test_it_runs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in code_cells():
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            exec(SMALL, names)
    left = {path.name for path in (tmp_path / "quickstart").iterdir()}
    assert {"check", "run", "chosen.safetensors", "predictions", "model.onnx", "report.html"} <= left
    assert len(list((tmp_path / "quickstart" / "predictions").glob("*_ids.png"))) == 1


def test_it_is_a_notebook_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
    assert "pip install" in code_cells()[0]["source"][0]
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code_cells()) == 1


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]
