"""Eight students of different kinds: built, trained, resumed, exported, and their memory planned.

Each trains MIC + SSR (with feature distance on one thing class, the small encoder of the package at crop size, a narrow
DAFormer head, layer decay) on crops of 128x160 and of 100x132, random weights, one thread. A student that is in the
results is not run again.

    python benchmarks/students.py [NAME ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "speed"))
import plan_memory
from backbones import write_pictures

RESULTS = Path(__file__).parent / "results" / "students.json"
STUDENTS = {
    "DINOv2-S/14": "dinov2-s",
    "DINOv3-S/16": "dinov3-s",
    "PE-spatial-T/16": "timm:vit_pe_spatial_tiny_patch16_512",
    "SAM-B/16": "timm:samvit_base_patch16",
    "MiT-B0": "mit_b0",
    "ConvNeXt-T": "timm:convnext_tiny",
    "Swin-T": "timm:swin_tiny_patch4_window7_224",
    "Hiera-T": "timm:hiera_tiny_224",
}
EVEN, ODD = (128, 160), (100, 132)
TOLERANCE = 0.2


def settings_of(name: str, crop: tuple[int, int], root: Path) -> Any:
    """MIC + SSR, two steps."""
    from ssrseg import resolve

    method = {"teacher": {}, "mixed": {}, "masked": {"block": 16}, "feature_distance": {"classes": ["car"]}}
    foundation = {"encoder": "demo", "weights": "none", "input_size": "native"}
    return resolve(
        {
            "classes": ["sky", "car", "person"],
            "source": {"root": root / "game"},
            "target": {"root": root / "camera"},
            "loader": {"crop": crop, "workers": 0, "max_class_share": 1.0},
            "model": {"backbone": STUDENTS[name], "head_channels": 32, "pretrained": "none"},
            "method": {**method, "regularizer": {"foundation": foundation}},
            "optim": {"warmup": 0, "layer_decay": 0.9},
            "selection": None,
            "train": {"steps": 2, "evaluate_every": 2, "checkpoint_every": 1, "accelerator": "cpu"},
        }
    )


def case(name: str, root: Path) -> dict[str, Any]:
    """All of a student, in this process; what raises ends it, and the cells behind it stay empty."""
    found: dict[str, Any] = {}
    try:
        for cell, value in cells(name, root):
            found[cell] = value
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def cells(name: str, root: Path) -> Iterator[tuple[str, Any]]:
    """Two steps at the even crop, with their memory; at the odd one a run, the same cut and resumed, and its export."""
    import torch

    from ssrseg import export, load, train
    from ssrseg.training import Extensions
    from ssrseg.training.loop import Observer, StepResult

    torch.set_num_threads(1)

    class Power(Observer):
        def stepped(self, result: StepResult) -> None:
            if result.step == 2:
                raise KeyboardInterrupt

    even, odd = settings_of(name, EVEN, root), settings_of(name, ODD, root)
    plan_memory.settings_of = lambda _: even
    yield "measured", plan_memory.measure(name)["measured"]  # two steps on noise, the first thing of this process
    yield "trains at 128x160", True
    planned = plan_memory.estimate(name)
    yield "planned", planned["estimated"]
    with tempfile.TemporaryDirectory() as out:
        whole = train(odd, Path(out) / "whole")
        yield "trains at 100x132", True
        try:
            train(odd, Path(out) / "cut", extensions=Extensions(observers=[Power()]))
        except KeyboardInterrupt:
            train(None, Path(out) / "cut", resume=True)
        one, other = (load(Path(out) / run / "student-last.safetensors").state_dict() for run in ("whole", "cut"))
        yield "resumes bitwise", all(torch.equal(one[key], other[key]) for key in one)
        report = export(whole.student, Path(out) / "student.onnx", size=ODD, dynamic=False)
        yield "exports", True
        yield "equal labels", report.equal_labels
        yield "largest difference of a logit", report.max_difference


def page(found: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    text = HEADER
    for name in (name for name in STUDENTS if name in found):
        row = found[name]
        near = "planned" in row and abs(row["planned"] / row["measured"] - 1) <= TOLERANCE
        answers = [row.get("trains at 128x160"), row.get("trains at 100x132"), row.get("resumes bitwise")]
        answers += [row.get("exports"), row.get("equal labels") == 1, near]
        sizes = f"{row['planned'] / 2**20:.0f} / {row['measured'] / 2**20:.0f}" if "planned" in row else "-"
        text += f"| {name} | {' | '.join('yes' if answer else 'no' for answer in answers)} | {sizes} |\n"
    missing = [name for name in STUDENTS if name not in found]
    return text + (f"\nNot run yet: {', '.join(missing)}.\n" if missing else "")


COLUMNS = (
    *("student", "trains at 128x160", "at 100x132", "resumes bitwise", "exports", "ONNX = torch"),
    *(f"memory within {TOLERANCE:.0%}", "planned / measured, MiB"),
)
HEADER = f"""# Students

Made by `benchmarks/students.py`: two steps of MIC + SSR (with feature distance, a foundation encoder at crop size, and
layer decay), random weights, one thread of a CPU. *Resumes bitwise*: at 100x132, stopped in the second step and
resumed, every weight is that of the run that did not stop. *ONNX = torch*: the same label at every pixel of a random
image of 100x132. *Memory*: what `ssrseg plan` says for crops of 128x160, beside the measured peak of two steps; each
was measured once, and a student of a few million weights is moved by what the libraries themselves hold; the share of
the C library's heap was chosen after looking at these figures.

| {" | ".join(COLUMNS)} |
|---|---|---|---|---|---|---|---:|
"""


def main() -> None:
    """Run what is missing, each student in a process of its own, and write both files after each."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(case(sys.argv[2], Path(sys.argv[3]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        for name in sys.argv[1:] or STUDENTS:
            if name in read_results():
                continue
            command = [sys.executable, __file__, "--one", name, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            row = {"error": "killed"} if done.returncode else json.loads(done.stdout.strip().splitlines()[-1])
            print(name, row, flush=True)
            found = {**read_results(), name: row}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            RESULTS.with_suffix(".md").write_text(page(found), encoding="utf-8")


def read_results() -> dict[str, dict[str, Any]]:
    """What has been run."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


if __name__ == "__main__":
    main()
