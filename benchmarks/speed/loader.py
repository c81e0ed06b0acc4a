"""Images per second and core, from files to training crops, beside a plain Pillow + NumPy pipeline.

The paper's setting: GTA5 frames of 1914x1052 (PNG), bounded by 1280x720, cropped to 512x512. Three ways take turns
image by image in one process with one thread: plain, ours from the raw files, ours from the cache of scaled images.
Time is the processor's, so that other users of the machine count little; the ratio by the clock stands beside it.

    python benchmarks/speed/loader.py --data PATH/gta5 [--rounds 30]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import PIL
import torch
from PIL import Image

from ssrseg.config import DataConfig, LoaderConfig, resolve
from ssrseg.data import Pair, code_for, find_pairs
from ssrseg.data.datasets import SourceImages
from ssrseg.data.samplers import SOURCE, Draw, generator_of
from ssrseg.data.streams import scaled_files
from ssrseg.data.transforms import mirrored, random_box, rescale_size, retry

RESULTS = Path(__file__).parents[1] / "results"
BOUND, CROP = (1280, 720), (512, 512)
Way = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Draw number -> image (3, h, w) and labels (h, w), uint8."""


def plain_way(pairs: list[Pair], table: np.ndarray, config: LoaderConfig, resample: Callable[..., np.ndarray]) -> Way:
    """What people write: open, convert, resize, map the labels, crop, flip. It draws the same crops as ours."""

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        generator, pair = generator_of(0, SOURCE, number), pairs[number % len(pairs)]
        image = Image.open(pair.image).convert("RGB")
        size = rescale_size(*image.size, BOUND)
        pixels = resample(image, size)
        labels = table[np.array(Image.open(pair.label).resize(size, Image.Resampling.NEAREST))]

        def varied(box):
            counts = np.bincount(labels[box].ravel(), minlength=256)[:255]
            return (counts > 0).sum() > 1 and counts.max() / counts.sum() < config.max_class_share

        box = retry(lambda: random_box(*labels.shape, config.crop, generator), varied)
        pixels, labels = pixels[box], labels[box]
        if mirrored(generator, config.flip):
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), np.ascontiguousarray(labels)

    return draw


def with_pillow(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Pillow's bilinear, which antialiases."""
    return np.array(image.resize(size, Image.Resampling.BILINEAR))


def with_opencv(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The references' bilinear, which does not."""
    return cv2.resize(np.array(image), size, interpolation=cv2.INTER_LINEAR)


def our_way(pairs: list[Pair], code, data: DataConfig, config: LoaderConfig) -> Way:
    """The loader's own."""
    stream = SourceImages(pairs, code, scaled_files(data, config), config, lambda n, _: Draw(n % len(pairs)))

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        image, labels, *_ = stream.draw(number, generator_of(0, SOURCE, number))
        return image.numpy(), labels.numpy()

    return draw


def differences(ways: dict[str, Way], one: str, other: str, numbers: range) -> dict[str, float]:
    """Between the crops of two ways: grey values, and the share of label pixels that are not the same."""
    highest, means, labels = 0, [], []
    for number in numbers:
        (image, label), (image2, label2) = ways[one](number), ways[other](number)
        difference = np.abs(image.astype(int) - image2)
        highest = max(highest, int(difference.max()))
        means.append(difference.mean())
        labels.append((label != label2).mean())
    return {"max_grey": highest, "mean_grey": round(float(np.mean(means)), 4), "labels_unequal": float(np.mean(labels))}


def timed(ways: dict[str, Way], rounds: int, images: int) -> list[dict[str, tuple[float, float]]]:
    """Milliseconds per image of each round, the processor's and the clock's, the ways taking turns at every image."""
    measured = []
    for index in range(rounds):
        spent = {name: [0.0, 0.0] for name in ways}
        for place in range(images):
            for name, draw in ways.items():
                began = time.process_time(), time.perf_counter()
                draw(index * images + place)
                spent[name][0] += time.process_time() - began[0]
                spent[name][1] += time.perf_counter() - began[1]
        measured.append({name: (1000 * cpu / images, 1000 * wall / images) for name, (cpu, wall) in spent.items()})
    return measured


def summary(measured: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Medians over rounds of the time, and of the ratio to the plain way in the same round."""
    result = {}
    for name in measured[0]:
        milliseconds = statistics.median(one[name][0] for one in measured)
        ratios, by_clock = ([one["plain"][kind] / one[name][kind] for one in measured] for kind in (0, 1))
        result[name] = {
            "cpu_ms": round(milliseconds, 2),
            "images_per_second_and_core": round(1000 / milliseconds, 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_lowest": round(min(ratios), 2),
            "ratio_highest": round(max(ratios), 2),
            "ratio_by_clock": round(statistics.median(by_clock), 2),
        }
    return result


def machine() -> dict[str, str]:
    """What the figures hold for."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {
        "cpu": model or platform.machine(),
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "torch": torch.__version__,
        "imagecodecs": imagecodecs.__version__,
    }


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder in GTA5's layout")
    parser.add_argument("--rounds", type=int, default=30)
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    settings = resolve({"source": {"root": words.data, "spec": "gta5", "resize": BOUND}, "loader": {"crop": CROP}})
    data, config = settings.source, settings.loader
    pairs, code = find_pairs(data), code_for(data, settings.classes, settings.source)
    table = code.table.numpy()
    with tempfile.TemporaryDirectory() as folder:
        cached = config.model_copy(update={"cache": Path(folder)})
        ways = {
            "plain": plain_way(pairs, table, config, with_pillow),
            "raw": our_way(pairs, code, data, config),
            "cache": our_way(pairs, code, data, cached),
        }
        compared = {**ways, "reference": plain_way(pairs, table, config, with_opencv)}
        numbers = range(4 * len(pairs))  # also fills the cache
        equal = {
            "raw, plain": differences(compared, "raw", "plain", numbers),
            "raw, plain with OpenCV's resize": differences(compared, "raw", "reference", numbers),
            "cache, raw": differences(compared, "cache", "raw", numbers),
        }
        sizes = [path.stat().st_size for path in Path(folder).rglob("*.npy")]
        measured = timed(ways, words.rounds, 2 * len(pairs))
    result = {
        "setting": f"{len(pairs)} GTA5 frames, 1914x1052 -> bound 1280x720 -> crop 512x512, one process, one thread",
        "machine": machine(),
        "rounds": words.rounds,
        "ways": summary(measured),
        "differences": equal,
        "cache_bytes_per_image": max(sizes),
    }
    (RESULTS / "loader.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "loader.md").write_text(page(result))
    print(page(result))


def page(result: dict) -> str:
    """The result as Markdown."""
    names = {"plain": "plain Pillow + NumPy", "raw": "ssrseg, raw files", "cache": "ssrseg, `loader.cache`"}
    lines = [
        "# Loading: images per second and core",
        "",
        f"{result['setting']}.",
        f"The ways take turns image by image; processor time, medians of {result['rounds']} rounds, ratios",
        "within a round.",
        f"{', '.join(f'{name} {value}' for name, value in result['machine'].items())}.",
        "",
        "| | ms per image | images/s | times plain (lowest .. highest round) | by the clock |",
        "|---|---|---|---|---|",
    ]
    for name, one in result["ways"].items():
        spread = f"{one['ratio']} ({one['ratio_lowest']} .. {one['ratio_highest']})"
        speed = f"{one['cpu_ms']} | {one['images_per_second_and_core']}"
        lines.append(f"| {names[name]} | {speed} | {spread} | {one['ratio_by_clock']} |")
    lines += ["", "| between | grey values: max | mean | labels unequal |", "|---|---|---|---|"]
    for name, one in result["differences"].items():
        lines.append(f"| {name} | {one['max_grey']} | {one['mean_grey']} | {100 * one['labels_unequal']:.3f} % |")
    lines += [
        "",
        "Pillow's resize antialiases, the references' (OpenCV's) and ours do not: hence the first row. Pillow rounds",
        "nearest neighbours another way than OpenCV. All ways draw the same crops.",
        f"An entry of the cache has {result['cache_bytes_per_image'] / 1e6:.1f} MB.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
