"""Train a student that the demo goes on from: from scratch, on the labels of the source alone, seed 0.

    python benchmarks/accuracy/train_demo_students.py nuclei src/ssrseg/demo/nuclei.safetensors
    python benchmarks/accuracy/train_demo_students.py streets src/ssrseg/demo/streets.safetensors

The last step's student is kept, in half precision, whatever it scores on the target; the scores on the way are printed.
The run lies beside the file. Restartable.
"""

from __future__ import annotations

import argparse
import zipfile
from importlib import resources
from pathlib import Path

import torch
from rich.console import Console

from ssrseg.config import merge
from ssrseg.demo.dataset import NUCLEI, STREETS, DemoSet
from ssrseg.demo.demo import METHODS, demo_settings
from ssrseg.models import load, save_segmenter
from ssrseg.training import finish

STEPS = {NUCLEI.name: 1000, STREETS.name: 1500}
RARE = {"loader": {"rare_class": {"any_image": 0}}}
"""Streets have classes that a short training would not meet otherwise."""


def train_student(pictures: DemoSet, out: Path, steps: int, seed: int = 0) -> None:
    """Train, and write the model file."""
    work = out.with_suffix(".run")
    with resources.as_file(resources.files("ssrseg.demo") / f"{pictures.name}.zip") as path:
        zipfile.ZipFile(path).extractall(work / "data")
    method = merge(METHODS["source-only"], RARE if pictures is STREETS else {})
    settings = demo_settings(work / "data", method, steps, seed, pictures)
    settings = settings.model_copy(update={"target": None})  # nothing of it is looked at; `val` is only printed
    run = finish(settings, work / "run", console=Console(force_terminal=False))
    save_segmenter(load(run.folder / "student-last.safetensors").half(), out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same sums in the same order on every machine of a kind
    pictures = {each.name: each for each in (NUCLEI, STREETS)}[options.name]
    train_student(pictures, options.out, STEPS[pictures.name])


if __name__ == "__main__":
    main()
