"""Inference beside its floor and beside Hugging Face's and segmentation_models_pytorch's SegFormer-B5, fp32 on a CPU.

The ways take turns in every round, in one process; figures are medians over rounds. The floor is the counted
arithmetic of the plain model over the rate of 2048x2048 matrix products in the faster of two ways (`rates.py`), which
is measured in every round too.
Parts may be run one after the other; each keeps what the others left in the results.

    python benchmarks/speed/inference.py {512,slide,windows,head,ssr,area,table} [--seconds 100]

Beside ssrseg[openvino] it wants `pip install transformers segmentation-models-pytorch`; what is absent is left out.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rates import Rates, best_rate, product_rates
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssrseg import cpu
from ssrseg.adapt import build_method
from ssrseg.adapt.foundation import Frozen
from ssrseg.config import InferenceConfig, compose, resolve
from ssrseg.inference import graph_signature
from ssrseg.inference.engines import open_engine
from ssrseg.inference.sliding_window import build_inference, slide
from ssrseg.models import Segmenter, build_segmenter
from ssrseg.models.fused import fuse

RESULTS = Path(__file__).parents[1] / "results" / "inference-speed.json"
CLASSES = 19
Way = tuple[Callable[[Tensor], object] | None, Callable[[Tensor], object]]
"""The encoder alone, and all: images -> logits of the images' size."""


def ours(engine: str | None, backbone: str) -> Way:
    """An engine of ssrseg, or the plain model."""
    torch.manual_seed(0)
    model = build_segmenter(backbone, "daformer", CLASSES).eval()
    network = model if engine is None else open_engine(model, engine)
    assert (network is model) is (engine is None), "the engine was left out"
    return network.encode if isinstance(network, Segmenter) else None, network


def hugging_face() -> Way:
    """`SegformerForSemanticSegmentation` as B5, with the same last up-scaling."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[3, 6, 40, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768, num_labels=CLASSES
    )
    model = SegformerForSemanticSegmentation(config).eval()

    def all_of_it(images: Tensor) -> Tensor:
        return F.interpolate(model(images).logits, images.shape[-2:], mode="bilinear")

    return partial(model.segformer, output_hidden_states=True), all_of_it


def smp() -> Way:
    """segmentation_models_pytorch's SegFormer with MiT-B5."""
    import segmentation_models_pytorch

    model = segmentation_models_pytorch.Segformer(
        "mit_b5", encoder_weights=None, decoder_segmentation_channels=768, classes=CLASSES
    ).eval()
    return model.encoder, model


def ways(backbone: str) -> dict[str, Way]:
    """All that can be had here."""
    made = {"ssrseg, plain model": ours(None, backbone), "ssrseg, engine torch": ours("torch", backbone)}
    if importlib.util.find_spec("openvino"):
        made["ssrseg, engine openvino"] = ours("openvino", backbone)
    if importlib.util.find_spec("transformers"):
        made["Hugging Face SegFormer-B5"] = hugging_face()
    if importlib.util.find_spec("segmentation_models_pytorch"):
        made["smp SegFormer-B5"] = smp()
    return made


def seconds_of(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def rounds(
    jobs: dict[str, Callable[[], object]],
    seconds: float,
    *,
    least: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, float], Rates]:
    """Median seconds of each job, and the median rates; the jobs take turns until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    rates: list[Rates] = []
    start = time.perf_counter()
    while len(rates) < least or time.perf_counter() - start < seconds:
        rates.append(product_rates())
        for name, job in jobs.items():
            times[name].append(seconds_of(job, clock))
    usual = {way: statistics.median(measured[way] for measured in rates) for way in rates[0]}
    print(f"{len(rates)} rounds, GFLOP/s: {usual}")
    return {name: statistics.median(values) for name, values in times.items()}, usual


def gflop(run: Callable[[], object]) -> float:
    # The counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() / 1e9


def at_512(backbone: str, seconds: float) -> dict[str, object]:
    """One picture of 512x512, encoder and all."""
    images, jobs = torch.rand(1, 3, 512, 512), {}
    made = ways(backbone)
    for name, (encode, whole) in made.items():
        jobs[name] = partial(whole, images)
        if encode is not None:
            jobs[f"{name}: encoder"] = partial(encode, images)
    encode, whole = made["ssrseg, plain model"]
    work = {"encoder": gflop(partial(encode, images)), "all": gflop(partial(whole, images))}
    for job in jobs.values():
        job()
    times, measured = rounds(jobs, seconds)
    return {"gflop": work, "gflop_per_s": measured, "seconds": times}


def at_once(backbone: str, seconds: float) -> dict[str, object]:
    """The engine torch, as in `by_slide`, with so many windows at once."""
    images, whole, config = torch.rand(1, 3, 1024, 2048), ours("torch", backbone)[1], InferenceConfig()
    jobs = {str(n): partial(slide, whole, images, config.window, config.stride, batch=n) for n in (1, 8)}
    times, measured = rounds(jobs, seconds)
    return {"gflop_per_s": measured, "seconds": times}


def head_alone(backbone: str, seconds: float) -> dict[str, object]:
    """The DAFormer head at 512x512, plain and arranged, before and after the C library keeps memory."""
    torch.manual_seed(0)
    model = build_segmenter(backbone, "daformer", CLASSES).eval()
    features = [level.contiguous() for level in model.encode(torch.rand(1, 3, 512, 512))]
    last = [level.contiguous(memory_format=torch.channels_last) for level in features]
    with patch.object(cpu, "keep_memory"):
        arranged, direct = (cpu.optimize(fuse(model)).head for _ in range(2))
    direct.bottleneck.conv = fuse(model).head.bottleneck.conv
    jobs = {
        "plain": partial(model.head, features),
        "plain, channels last": partial(copy.deepcopy(model.head).to(memory_format=torch.channels_last), last),
        "arranged, without Winograd": partial(direct, features),
        "arranged": partial(arranged, features),
    }
    for job in jobs.values():
        job()
    before, _ = rounds(jobs, seconds / 2, least=3, clock=time.process_time)
    cpu.keep_memory()
    after, _ = rounds(jobs, seconds / 2, least=3, clock=time.process_time)
    return {"threads": torch.get_num_threads(), "before": before, "after": after}


def with_ssr(backbone: str, seconds: float) -> dict[str, object]:
    """A model of DAFormer and one of DAFormer + SSR in turns: either goes first in every other round."""
    images, (plain, regularised) = torch.rand(1, 3, 512, 512), students(backbone)
    jobs = [partial(open_engine(model, "torch"), images) for model in (plain, regularised)]
    ratios: list[float] = []
    times = [seconds_of(job) for job in jobs]
    start = time.perf_counter()
    while len(ratios) % 2 or time.perf_counter() - start < seconds:
        for index in (0, 1) if len(ratios) % 2 else (1, 0):
            times[index] = seconds_of(jobs[index])
        ratios.append(times[1] / times[0])
    same = graph_signature(plain) == graph_signature(regularised)
    return {"ratio": statistics.median(ratios), "rounds": len(ratios), "same_graph": same}


def students(backbone: str) -> tuple[Segmenter, Segmenter]:
    """The students of the presets `daformer` and `daformer-ssr`, each handed to its method."""
    made = []
    for preset in ("daformer", "daformer-ssr"):
        torch.manual_seed(0)
        student = build_segmenter(backbone, "daformer", CLASSES).eval()
        data = {"source": {"root": "."}, "target": {"root": "."}}
        config = resolve(compose(preset, None, data, [])).method.model_copy(update={"feature_distance": None})
        encoder = nn.Conv2d(3, 256, 16, 16)
        frozen = Frozen(encoder, encoder, channels=256, mean=(0.5,) * 3, std=(0.5,) * 3)
        build_method(config, student, classes=[str(i) for i in range(CLASSES)], foundation=frozen)
        made.append(student.eval())
    return made[0], made[1]


def by_slide(backbone: str, seconds: float) -> dict[str, object]:
    """One picture of 1024x2048 in windows of 512, as published: 18 windows, eight at once."""
    images, config = torch.rand(1, 3, 1024, 2048), InferenceConfig(mode="slide")
    made, infer = ways(backbone), build_inference(config)
    plain = made.pop("ssrseg, plain model")[1]  # takes too long here; it stands in the table of 512
    jobs = {name: partial(infer, whole, images, None) for name, (_, whole) in made.items()}
    jobs["ssrseg, engine torch, again"] = jobs["ssrseg, engine torch"]  # how much a round tells
    for _, network in made.values():
        network(images[..., :512, :512])
    times, measured = rounds(jobs, seconds)
    work = 18 * gflop(partial(plain, images[..., :512, :512]))
    return {"gflop": work, "gflop_per_s": measured, "seconds": times}


def over_area(backbone: str, seconds: float) -> dict[str, object]:
    """The engine torch on whole pictures of growing area."""
    whole = ours("torch", backbone)[1]
    sizes = [(256, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024), (1024, 2048)]
    jobs = {f"{height}x{width}": partial(whole, torch.rand(1, 3, height, width)) for height, width in sizes}
    jobs["256x256"]()
    times, measured = rounds(jobs, seconds)
    return {"gflop_per_s": measured, "seconds": times}


PARTS = {"512": at_512, "slide": by_slide, "windows": at_once, "head": head_alone, "ssr": with_ssr, "area": over_area}


def table(results: dict) -> str:
    """All parts as Markdown."""
    lines = ["# Inference: time over floor", ""]
    about = results["about"]
    lines += [f"MiT-B5, {CLASSES} classes, one picture, fp32, {about['threads']} threads; {about['software']}.", ""]
    lines += [
        "Parts were measured one by one; where the rate of products matters, it is given.",
        "",
    ]
    if "512" in results:
        lines += _table_512(results["512"])
    if "ssr" in results:
        part = results["ssr"]
        same = "the same graph" if part["same_graph"] else "ANOTHER GRAPH"
        lines += [f"DAFormer + SSR over DAFormer: {part['ratio']:.2f} (median of {part['rounds']} rounds), {same}.", ""]
    if "slide" in results:
        part = results["slide"]
        floor = part["gflop"] / best_rate(part["gflop_per_s"])
        lines += [f"## 1024x2048, windows of 512 every 341 (floor {floor:.1f} s)", ""]
        lines += ["| | s | over floor |", "|---|---|---|"]
        lines += [f"| {name} | {value:.1f} | {value / floor:.2f} |" for name, value in part["seconds"].items()]
        lines += [
            "",
            "Medians over the rounds; OpenVINO loads programs for eight and for two windows in the first.",
            "",
        ]
    if "windows" in results:
        said = (f"{count} at once {value:.1f} s" for count, value in results["windows"]["seconds"].items())
        lines += [f"Windows, engine torch: {', '.join(said)}.", ""]
    if "head" in results:
        part = results["head"]
        lines += ["## The head alone, 512x512", "", f"Processor time, threads: {part['threads']}.", ""]
        lines += ["| | s | s with `keep_memory` |", "|---|---|---|"]
        lines += [f"| {name} | {part['before'][name]:.2f} | {part['after'][name]:.2f} |" for name in part["before"]]
        lines.append("")
    if "area" in results:
        part = results["area"]
        lines += ["## Whole pictures, engine torch", "", "| size | s | s per megapixel |", "|---|---|---|"]
        for name, value in part["seconds"].items():
            height, width = map(int, name.split("x"))
            lines.append(f"| {name} | {value:.2f} | {value / (height * width / 1e6):.2f} |")
        lines.append("")
    return "\n".join(lines)


def _table_512(part: dict) -> list[str]:
    work, times, rates = part["gflop"], part["seconds"], part["gflop_per_s"]
    floors = {name: value / best_rate(rates) for name, value in work.items()}
    lines = [
        "## 512x512",
        "",
        f"Counted: encoder {work['encoder']:.0f} GFLOP, DAFormer head {work['all'] - work['encoder']:.0f}. Products: "
        f"{', '.join(f'{rate:.0f} GFLOP/s by {way}' for way, rate in rates.items())}. Floors, by the faster: "
        f"{floors['encoder']:.2f} s, with the head {floors['all']:.2f} s. In brackets: over the floor by `@`, as torch "
        "multiplies.",
        "",
        "| | encoder s | over floor | all s | over floor |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in times if ":" not in name):
        others = "SegFormer" in name
        cells = []
        for which, job in (("encoder", f"{name}: encoder"), ("all", name)):
            over, plain = times[job] / floors[which], times[job] * rates["@"] / work[which]
            figures = "" if others and which == "all" else f"{over:.2f} ({plain:.2f})"
            cells.append(f"{times[job]:.2f} | {figures}")
        lines.append(f"| {name}{' (its own, smaller head)' if others else ''} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--backbone", default="mit_b5")
    parser.add_argument("--out", type=Path, default=RESULTS)
    words = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    results = json.loads(words.out.read_text()) if words.out.exists() else {}
    if words.part != "table":
        with torch.inference_mode():
            results[words.part] = PARTS[words.part](words.backbone, words.seconds)
        software = f"python {platform.python_version()}, torch {torch.__version__}"
        results["about"] = results.get("about") or {"threads": torch.get_num_threads(), "software": software}
        words.out.write_text(json.dumps(results, indent=1) + "\n")
    words.out.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
