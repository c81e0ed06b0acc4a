"""Kill real training at random moments, resume it, and compare it with the run that was never disturbed.

    python benchmarks/crash_test.py --out runs/crash-test
    python benchmarks/crash_test.py --out runs/crash-test --kills 5 --steps 6 --no-results

MIC + SSR with a small residual network and the demo's foundation encoder, in a process of its own per attempt. Half of
the SIGKILLs fall at a random time, half shortly after a temporary checkpoint file has appeared. Every attempt has
another number of loader workers. The processes are forked from this one, which has imported everything and trains
nothing: an import costs more than such a training. Exit code 1 when a run differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ssrseg.config import Settings, dump, merge, read_yaml, resolve
from ssrseg.demo.dataset import STREETS, write_dataset
from ssrseg.runs.atomic import PARTIAL
from ssrseg.runs.folder import RunFolder
from ssrseg.training import train

RESULTS = Path(__file__).parent / "results"

WALL_CLOCK, WAITING = "images_per_second", "waits for its data"
"""What the clock writes into metrics.jsonl, beside records of kind `data`: a field, and a note."""


@dataclass(frozen=True)
class Trial:
    """One run that was killed once."""

    moment: str
    """What the kill waited for."""
    at_step: int
    """Steps of the last checkpoint when it fell; 0: before the first one."""
    half_written: bool
    """Whether a temporary checkpoint file was left behind."""
    workers: tuple[int, int]
    """Of the loader, before and after."""
    differs: tuple[str, ...]
    """What is not that of the undisturbed run."""


def crash_settings(data: Path, steps: int = 10) -> Settings:
    """MIC + SSR; no interval is a multiple of another."""
    bounded = {"resize": [128, 64]}
    tree = {
        "classes": [{"name": name, "color": color} for name, color in STREETS.classes],
        "source": {"root": data / "game", **bounded},
        "target": {"root": data / "camera" / "train", **bounded},
        "val": {"root": data / "camera" / "val", **bounded},
        "loader": {"crop": [64, 64], "batch": 2, "workers": 0, "rare_class": {}},
        "model": {"backbone": "timm:test_resnet", "head_channels": 8, "pretrained": "none"},
        "method": {
            "teacher": {"decay": 0.9},
            "mixed": {},
            "masked": {"block": 16},
            "feature_distance": {"classes": ["car"]},
            "regularizer": {"stages": [1, 3], "foundation": {"encoder": "demo", "input_size": "native"}},
        },
        "optim": {"warmup": 2, "lr": 1e-3},
        "train": {
            "steps": steps,
            "evaluate_every": 4,
            "checkpoint_every": 3,
            "log_every": 2,
            "pictures_every": 5,
            "accelerator": "cpu",
        },
    }
    return resolve(tree)


def start(folder: Path, settings: Settings, workers: int) -> int:
    """Begin or resume a run in a process of its own; returns its id."""
    config = RunFolder(folder).config
    resume = config.exists()
    if resume:
        settings = resolve(read_yaml(config))
    settings = resolve(merge(settings.model_dump(), {"loader": {"workers": workers}}))
    if resume:
        config.write_text(dump(settings))
    if (process := os.fork()) == 0:
        torch.set_num_threads(1)  # torch mends its thread pool after a fork once, which threads must not do at a time
        try:
            train(None if resume else settings, folder, resume=resume)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process


def finish(process: int) -> None:
    """Wait for an undisturbed end."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != 0:
        sys.exit(f"training ended with code {code}")


def kill_when(process: int, due: Callable[[], bool]) -> bool:
    """SIGKILL as soon as it is due; false when the process has ended before."""
    while not due():
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.0002)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def at_random(seconds: float, draw: random.Random) -> tuple[str, Callable[[], bool]]:
    """Any time of the run."""
    moment = time.monotonic() + draw.uniform(0, seconds)
    return "any time", lambda: time.monotonic() > moment


def in_writing(folder: Path, checkpoints: int, draw: random.Random) -> tuple[str, Callable[[], bool]]:
    """Up to 20 ms after the temporary file of one of the checkpoints has appeared."""
    wanted, delay, seen = draw.randint(1, checkpoints), draw.uniform(0, 0.02), set[str]()

    def due() -> bool:
        seen.update(partials(folder))
        if len(seen) < wanted:
            return False
        time.sleep(delay)
        return True

    return f"checkpoint {wanted}", due


def partials(folder: Path) -> list[str]:
    """Temporary checkpoint files."""
    try:
        return [name for name in os.listdir(RunFolder(folder).checkpoint.parent) if name.endswith(PARTIAL)]
    except FileNotFoundError:
        return []


def try_once(
    folder: Path, whole: Path, settings: Settings, seconds: float, draw: random.Random, *, late: bool
) -> Trial:
    """Train, kill, resume to the end, compare; from the start again when the run was faster than the kill."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        workers = draw.randint(0, 2), draw.randint(0, 2)
        process = start(folder, settings, workers[0])
        checkpoints = -(-settings.train.steps // settings.train.checkpoint_every)
        moment, due = in_writing(folder, checkpoints, draw) if late else at_random(seconds, draw)
        if kill_when(process, due):
            break
    checkpoint = RunFolder(folder).checkpoint
    step = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
    half_written = bool(partials(folder))
    finish(start(folder, settings, workers[1]))
    return Trial(moment, step, half_written, workers, tuple(differences(whole, folder)))


def differences(one: Path, other: Path) -> Iterator[str]:
    """What two run folders do not share, bit for bit."""
    mine, theirs = RunFolder(one), RunFolder(other)
    for kind in ("student_last", "student_best", "scores"):
        if getattr(mine, kind).read_bytes() != getattr(theirs, kind).read_bytes():
            yield kind
    if contents(mine.pictures) != contents(theirs.pictures):
        yield "pictures"
    if journal(mine.metrics) != journal(theirs.metrics):
        yield "metrics"
    states = [torch.load(run.checkpoint, weights_only=True) for run in (mine, theirs)]
    for state in states:
        del state["settings"]["loader"]["workers"]  # another number each time
        del state["observers"]["journal"]  # a length in bytes: the clock's numbers have more digits or fewer
    yield from (f"checkpoint: {key}" for key in states[0] if not equal(states[0][key], states[1][key]))
    yield from (str(left.relative_to(other)) for left in other.rglob(f"*{PARTIAL}"))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def journal(path: Path) -> list[dict[str, Any]]:
    """The records, without what the clock wrote."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timeless = [record for record in records if record["kind"] != "data" and WAITING not in record.get("text", "")]
    return [{key: value for key, value in record.items() if key != WALL_CLOCK} for record in timeless]


def equal(one: Any, other: Any) -> bool:
    """Trees of tensors and plain values, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def write_results(trials: list[Trial], seconds: float) -> None:
    """JSON with every trial, and a page."""
    same = sum(not trial.differs for trial in trials)
    versions = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    content = {"equal": same, "of": len(trials), "undisturbed_seconds": round(seconds, 2), "versions": versions}
    rows = [{**asdict(trial), "equal": not trial.differs} for trial in trials]
    (RESULTS / "crash-test.json").write_text(json.dumps({**content, "trials": rows}, indent=1) + "\n")
    groups = {"at any time": "any time", "when a temporary checkpoint file had appeared": "checkpoint"}
    lines = [f"| {text} | {row(trials, start)} |" for text, start in groups.items()]
    page = f"""# Crash test

`python benchmarks/crash_test.py`: MIC + SSR on the CPU, {len(trials)} trainings, each killed once by SIGKILL, resumed
with 0 to 2 loader workers. Compared with the undisturbed run, bit for bit: last and best student, teacher, optimiser,
generators, scores.json, pictures, and metrics.jsonl but for what the clock writes.

| killed | runs | before the first checkpoint | left a half-written file | equal |
|---|---|---|---|---|
{chr(10).join(lines)}

**{same} of {len(trials)} equal.** Python {versions["python"]}, torch {versions["torch"]}, {versions["machine"]}.
SIGKILL leaves what the system has been given: it does not show what a power loss does, against which files and folders
are synced. Every trial: `crash-test.json`.
"""
    (RESULTS / "crash-test.md").write_text(page)


def row(trials: list[Trial], start: str) -> str:
    """Counts of the trials with such a moment."""
    mine = [trial for trial in trials if trial.moment.startswith(start)]
    early, half = sum(trial.at_step == 0 for trial in mine), sum(trial.half_written for trial in mine)
    return f"{len(mine)} | {early} | {half} | {sum(not trial.differs for trial in mine)}"


def main() -> None:
    """Entry point."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, required=True, help="where data and runs go")
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--steps", type=int, default=10, help="of each training")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--no-results", action="store_true", help="leave benchmarks/results as it is")
    given = words.parse_args()
    torch.set_num_threads(1)
    write_dataset(given.out / "data", STREETS, (6, 6, 2))
    settings, whole = crash_settings(given.out / "data", given.steps), given.out / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    began = time.monotonic()
    finish(start(whole, settings, 0))
    seconds, draw, trials = time.monotonic() - began, random.Random(given.seed), []
    for number in range(given.kills):
        trial = try_once(given.out / "killed", whole, settings, seconds, draw, late=number % 2 == 1)
        trials.append(trial)
        left = ", half-written file" if trial.half_written else ""
        print(
            f"{number + 1}: {trial.moment}, step {trial.at_step}{left}: {', '.join(trial.differs) or 'equal'}",
            flush=True,
        )
    if not given.no_results:
        write_results(trials, seconds)
    same = sum(not trial.differs for trial in trials)
    print(f"{same} of {len(trials)} equal")
    sys.exit(same != len(trials))


if __name__ == "__main__":
    main()
