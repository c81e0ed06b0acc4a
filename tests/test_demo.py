"""The demonstration, in small: four trainings, a table and a page; a second call keeps what is there."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from ssrseg.demo import demo
from ssrseg.demo.dataset import write_dataset


def test_the_demo_ends_in_a_report_and_keeps_finished_runs(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", source=4, target=4, val=2, size=(64, 128))
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    page = demo.demo(tmp_path, source_steps=4, steps=4, pictures=(4, 4, 2), size=(64, 128), console=console)
    text = page.read_text()
    for name in ("source-only", "DAFormer", "DAFormer + SSR"):
        assert name in text
        assert name in printed.getvalue()
    assert "not evidence" in printed.getvalue()
    (tmp_path / "daformer" / "student-last.safetensors").unlink()  # as if interrupted
    demo.demo(tmp_path, source_steps=4, steps=4, pictures=(4, 4, 2), size=(64, 128), console=console)
    assert printed.getvalue().count("finished earlier") == 3
