"""The training step: seconds and memory by part, before and after, beside the references' way and the floor.

    python benchmarks/speed/train_step.py count                     # arithmetic and memory, on tensors without data
    python benchmarks/speed/train_step.py time "MIC + SSR at 1024, crops of 256" --variant ours
    python benchmarks/speed/train_step.py share "MIC + SSR at native size, crops of 256" --steps 5
    python benchmarks/speed/train_step.py grow
    python benchmarks/speed/train_step.py page

The floor is the counted arithmetic over the rate at which this machine multiplies matrices in the faster of two ways
(`rates.py`), measured before, within and after each step. `--variant before` is `ours` with another
commit's package on PYTHONPATH; `reference` is `reference_step.py`. Every call adds to
`benchmarks/results/train-step.json`; `page` writes the Markdown and the plot.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rates import Rates, best_rate, product_rates
from reference_step import ReferenceStep
from train_step_page import plain_of, write_page

from ssrseg.adapt import adapt
from ssrseg.adapt.methods import Method
from ssrseg.config import Settings, compose, resolve
from ssrseg.planning.fake_step import noise, without_weights
from ssrseg.runs.folder import RunFolder
from ssrseg.training.loop import to_batch
from ssrseg.training.setup import build_context

RESULTS = Path(__file__).parents[1] / "results"
NATIVE = "method.regularizer.foundation.input_size=native"
HALF = "method.regularizer.foundation.precision=half"
SETTINGS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    f"{name}, crops of {crop}": (preset, crop, words)
    for crop in (256, 512)
    for name, preset, words in (
        ("MIC", "mic", ()),
        ("MIC + SSR at native size", "mic-ssr", (NATIVE,)),
        ("MIC + SSR at native size (SAM in bfloat16)", "mic-ssr", (NATIVE, HALF)),
        ("MIC + SSR at 1024", "mic-ssr", ()),
        ("DAFormer", "daformer", ()),
        ("DAFormer + SSR at native size", "daformer-ssr", (NATIVE,)),
        ("DAFormer + SSR at 1024", "daformer-ssr", ()),
    )
}
"""Name -> preset, side of the crops, changes. MiT-B5, two source and two target images."""
CROPS, BATCHES, STAGES = (64, 128, 192, 256, 320), (1, 2, 4, 8), ((3,), (2, 3), (1, 2, 3), (0, 1, 2, 3))
PROBED = ("foundation encoder", "encode", "decode")
"""Parts before which the machine's rate is measured: it changes by a third within a minute where others share it."""
SMALL = 128
"""Side of the crops where the batch grows; the stages grow at twice that."""


def settings_of(preset: str, crop: int, words: tuple[str, ...] = (), batch: int = 2) -> Settings:
    """A published setting with these crops."""
    changes = [f"loader={{crop: [{crop}, {crop}], batch: {batch}}}", "train.accelerator=cpu", *words]
    return without_weights(resolve(compose(preset, None, {}, changes)))


class Stopwatch:
    """Seconds by part, a part that another calls not counted to the other; and the machine's rate meanwhile."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.rates: list[Rates] = []
        self._running = ["rest"]
        self._since = time.perf_counter()

    def _pass(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] = self.seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, clocked."""

        def clocked(*args: Any, **options: Any) -> Any:
            self._pass()
            if name in PROBED:
                self.probe()
            self._running.append(name)
            try:
                return run(*args, **options)
            finally:
                self._pass()
                self._running.pop()

        return clocked

    def probe(self) -> None:
        """Measure the rate; the time that this takes belongs to no part."""
        self.rates.append(product_rates())
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Forget all that was measured."""
        self.seconds.clear()
        self.rates.clear()
        self._since = time.perf_counter()


def our_step(settings: Settings, watch: Stopwatch) -> tuple[Callable[[Settings, int], None], Method]:
    """The package's step, every part clocked."""
    context = build_context(settings, RunFolder(Path("train-step")))
    method, timed = context.method, watch.timed
    method.learner.train()
    student, terms = method.learner.student, method.learner.terms
    student.encode, student.decode = timed("encode", student.encode), timed("decode", student.decode)
    if "regularizer" in terms:
        regularizer: Any = terms["regularizer"]
        regularizer.encoder = timed("foundation encoder", regularizer.encoder)
        regularizer.enhance = timed("cross-attention", regularizer.enhance)
    distance: Any = terms["feature_distance"]
    distance.frozen = timed("ImageNet encoder", distance.frozen)
    average, label = timed("teacher's average", method.teacher.update), timed("teacher's labels", method.teacher)
    makers = [timed("views", make) for make in method.makers]
    backward = timed("backward", lambda loss: loss.backward())
    if hasattr(method.learner, "gradients"):  # `before` has none
        method.learner.gradients = timed("backward", method.learner.gradients)
    update = timed("optimiser", context.optimizer.step)

    def step(settings: Settings, number: int) -> None:
        batch = to_batch(noise(settings, number), torch.device("cpu"))
        context.optimizer.zero_grad(set_to_none=True)
        average(student, number)
        adapt(method.learner, label, makers, batch, backward)
        update()

    return step, method


def reference_step(settings: Settings, watch: Stopwatch, sam_images: int) -> Callable[[Settings, int], None]:
    """The references' way."""
    method = settings.method
    made = ReferenceStep(
        ssr=method.regularizer is not None, masked=method.masked is not None, sam_images=sam_images, timed=watch.timed
    )

    def step(settings: Settings, number: int) -> None:
        batch = to_batch(noise(settings, number), torch.device("cpu"))
        made(batch.source, batch.labels, batch.target, number)

    return step


def clocked(step: Callable[[Settings, int], None], settings: Settings, watch: Stopwatch, number: int) -> dict[str, Any]:
    """One step: seconds by part, and the machine's rate before, within and after it."""
    watch.restart()
    watch.probe()
    watch.timed("rest", step)(settings, number)
    watch.probe()
    parts, rates = dict(watch.seconds), list(watch.rates)
    return {"seconds": sum(parts.values()), "parts": parts, "rate": mean(map(best_rate, rates)), "rates": rates}


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of one setting, after `--warm` uncounted ones."""
    settings, watch, before = settings_of(*SETTINGS[name]), Stopwatch(), resident("VmRSS")
    if options.variant == "reference":
        step = reference_step(settings, watch, options.sam_images)
    else:
        step, _ = our_step(settings, watch)
    found = [clocked(step, settings, watch, number) for number in range(options.warm + options.steps)]
    about = {"threads": torch.get_num_threads(), "warm": options.warm, "sam_images": options.sam_images}
    return [{**row, **about, "resident": resident("VmHWM") - before} for row in found[options.warm :]]


def share(name: str, options: argparse.Namespace) -> list[list[float]]:
    """Seconds of the plain method's step and of the one with SSR, in turns, either first in every other round."""
    jobs = []
    for setting in (settings_of(*SETTINGS[plain_of(name)]), settings_of(*SETTINGS[name])):
        watch = Stopwatch()
        jobs.append(partial(clocked, our_step(setting, watch)[0], setting, watch))
    pairs = []
    for number in range(options.warm + options.steps):
        pair = [0.0, 0.0]
        for index in (0, 1) if number % 2 else (1, 0):
            pair[index] = seconds(jobs[index](number))
        pairs.append(pair)
    return pairs[options.warm :]


def grow(options: argparse.Namespace) -> list[dict[str, Any]]:
    """MIC + SSR at native size over crops, batches and stages: the fastest of `--steps` steps each."""
    watch, found = Stopwatch(), []
    base = settings_of("mic-ssr", SMALL, (NATIVE,))
    step, method = our_step(base, watch)
    stages: Any = method.learner.terms["regularizer"].stages
    kept = dict(stages.items())
    points = [("crop", crop, settings_of("mic-ssr", crop, (NATIVE,)), STAGES[-1]) for crop in CROPS]
    points += [("batch", batch, settings_of("mic-ssr", SMALL, (NATIVE,), batch), STAGES[-1]) for batch in BATCHES]
    points += [("stages", len(some), settings_of("mic-ssr", 2 * SMALL, (NATIVE,)), some) for some in STAGES]
    clocked(step, points[len(CROPS) - 1][2], watch, 0)  # the largest crops: the memory that is kept is there
    for axis, value, settings, some in points:
        stages._modules = {str(i): kept[str(i)] for i in some}
        best = min((clocked(step, settings, watch, number) for number in range(options.steps)), key=seconds)
        found.append({"axis": axis, "value": value, **best})
        print(axis, value, best["seconds"], flush=True)
    return found


def seconds(row: dict[str, Any]) -> float:
    """Of a step."""
    value: float = row["seconds"]
    return value


def main() -> None:
    """Count, time or draw; each adds to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["count", "time", "share", "grow", "page"])
    parser.add_argument("settings", nargs="*", help="; ".join(SETTINGS))
    parser.add_argument("--variant", choices=["ours", "before", "reference"], default="ours")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--warm", type=int, default=1, help="uncounted steps before")
    parser.add_argument("--sam-images", type=int, default=1, help="of the reference: images in SAM at once; theirs: 4")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.out / "train-step.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if options.what == "count":
        from train_step_count import count

        wanted = {name: settings_of(*SETTINGS[name]) for name in options.settings or SETTINGS}
        known = found.get("counted", {})
        found["counted"] = known | count(known, wanted, options.variant)
    for name in options.settings if options.what == "time" else ():
        rows = measure(name, options)
        found.setdefault("timed", {}).setdefault(name, {})[options.variant] = rows
        print(name, options.variant, [(round(row["seconds"], 2), round(row["rate"])) for row in rows], flush=True)
    for name in options.settings if options.what == "share" else ():
        found.setdefault("shares", {})[name] = share(name, options)
        print(name, [(round(plain, 2), round(whole, 2)) for plain, whole in found["shares"][name]], flush=True)
    if options.what == "grow":
        found["growth"] = grow(options)
    path.write_text(json.dumps(found, indent=1) + "\n")
    if "counted" in found:
        write_page(options.out, found)


if __name__ == "__main__":
    main()
