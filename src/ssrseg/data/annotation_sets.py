"""Files that hold the labels of many images: COCO, Label Studio."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from ssrseg.data.shapes import WRONG, Annotation, Ids, Paint, Shape, Size, polygon, possible, read_json
from ssrseg.data.storage import stamp
from ssrseg.errors import UserError, first_line


def members_of(files: Sequence[Path], images: Mapping[Any, Path], twice: list[tuple[Path, Path]]) -> dict[Any, Path]:
    """Find the label of each image, as `FILE.json/NAME`, in files that hold those of many.

    A name in the file and an image's path are the same when they end alike: the longest common end wins, and the file's
    own name must be in it (Label Studio puts eight letters and a hyphen before it). What cannot be told apart is added
    to `twice`. Raises `UserError` for a file that is none of COCO or Label Studio.
    """
    known: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
    for file in files:
        for name in members_in(file, stamp(file)):
            parts = PurePosixPath(name).parts
            for last in {parts[-1], re.sub(r"^[0-9a-f]{8}-", "", parts[-1])}:
                known.setdefault(last, []).append(((*parts[:-1], last), file / name))
    labels: dict[Any, Path] = {}
    taken: dict[Path, tuple[int, Any]] = {}
    for key, image in images.items():
        found = [(_common_end(parts, image.parts), label) for parts, label in known.get(image.name, ())]
        best = max(found, default=(0, image))[0]
        matched = list(dict.fromkeys(label for length, label in found if length == best))
        if not matched:
            continue
        twice += [(matched[0], other) for other in matched[1:]]
        length, other = taken.get(matched[0], (0, None))
        if length == best:
            twice.append((images[other], image))
        if length < best:
            labels.pop(other, None)
            labels[key], taken[matched[0]] = matched[0], (best, key)
    for file in files:
        for name in members_in(file, stamp(file)):
            if file / name not in taken:
                labels[file / name] = file / name  # of no image
    return labels


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


FAR = 16
"""Times an image's longer side that a point may lie outside."""
Members = Mapping[str, Callable[[], Annotation]]
"""Image -> what reads the annotation of it."""


@functools.lru_cache(maxsize=8)
def members_in(path: Path, stamp: str) -> Members:
    """Read which images a file is about; again when the file has changed."""
    content = read_json(path)
    try:
        if isinstance(content, dict) and content.keys() >= {"images", "annotations", "categories"}:
            return _coco(content)
        if isinstance(content, list):
            return dict(map(_label_studio, content))
    except WRONG as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} is not as COCO or Label Studio have it ({reason}): export it again.") from error
    raise UserError(
        f"{path} is neither COCO (images, annotations, categories) nor Label Studio (a list of tasks): set `labels` to "
        "the file that holds the labels."
    )


def _coco(content: Mapping[str, Any]) -> Members:
    names = {one["id"]: str(one["name"]) for one in content["categories"]}
    shapes: dict[Any, list[Mapping[str, Any]]] = {}
    for one in content["annotations"]:
        if one.get("segmentation"):
            shapes.setdefault(one["image_id"], []).append(one)
    if shapes and importlib.util.find_spec("pycocotools") is None:
        raise UserError("Labels of COCO need pycocotools: pip install 'ssrseg[coco]'")

    def read(image: Mapping[str, Any]) -> Annotation:
        width, height = int(image["width"]), int(image["height"])
        own = shapes.get(image["id"], ())
        drawn = (Shape(names[one["category_id"]], _coco_mask(one["segmentation"], width, height)) for one in own)
        return Annotation(drawn, (width, height))

    return {_file_name(image["file_name"]): functools.partial(read, image) for image in content["images"]}


def _coco_mask(segmentation: Any, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Draw polygons or run lengths, compressed or not, as COCO's own code does."""
    masks: Any = importlib.import_module("pycocotools.mask")
    runs = segmentation
    if isinstance(segmentation, list):
        if any(not abs(float(x)) <= FAR * max(width, height) for part in segmentation for x in part):
            raise ValueError("a point far outside of the image")  # pycocotools would walk there
        if odd := [part for part in segmentation if len(part) < 6 or len(part) % 2]:
            raise ValueError(f"an outline of {len(odd[0])} numbers, expected three points or more")
        runs = masks.merge(masks.frPyObjects(segmentation, height, width))
    elif [*segmentation["size"]] != [height, width]:
        raise ValueError(f"run lengths of the size {segmentation['size']}, expected [{height}, {width}]")
    elif isinstance(segmentation["counts"], list):
        if min(segmentation["counts"]) < 0 or sum(segmentation["counts"]) != height * width:
            raise ValueError(f"run lengths of {sum(segmentation['counts'])} pixels, expected {height * width}")
        runs = masks.frPyObjects(segmentation, height, width)
    return np.asarray(masks.decode(runs), bool)


def _label_studio(task: Mapping[str, Any]) -> tuple[str, Callable[[], Annotation]]:
    """Find a task's image and reader, of the exports JSON and JSON-MIN."""
    if "annotations" not in task:  # JSON-MIN: a key per control
        results = [one for value in task.values() if isinstance(value, list) for one in value if isinstance(one, dict)]
        sources: Mapping[str, Any] = task
    else:
        results, sources = [], task["data"]
        finished = [one for one in task["annotations"] if not one.get("was_cancelled")]
        chosen = [one for one in finished if one.get("ground_truth")] or finished
        if len(chosen) > 1:
            raise UserError(
                f"The task {task['id']} of Label Studio has {len(chosen)} annotations: mark one as ground truth, or "
                "delete the others, and export again."
            )
        for one in chosen:
            results += [result | result.get("value", {}) for result in one["result"]]
    shapes = [one for one in results if any(key.endswith("labels") for key in one)]
    name = next(
        value for value in sources.values() if isinstance(value, str) and PurePosixPath(_file_name(value)).suffix
    )
    return _file_name(name), lambda: _label_studio_shapes(shapes)


def _label_studio_shapes(results: Sequence[Mapping[str, Any]]) -> Annotation:
    sizes = [(int(one["original_width"]), int(one["original_height"])) for one in results]
    kinds = [next(key for key in one if key.endswith("labels")) for one in results]
    shapes = (
        Shape(str(name), _label_studio_area(one, size))
        for one, size, kind in zip(results, sizes, kinds, strict=True)
        for name in one[kind]
    )
    return Annotation(shapes, sizes[0] if sizes else None)


def _label_studio_area(one: Mapping[str, Any], size: Size) -> Paint | npt.NDArray[np.bool_]:
    if one.get("image_rotation"):
        raise ValueError(f"the image is turned by {one['image_rotation']} degrees in the tool")
    if one.get("format") == "rle":
        return unpack_runs(bytes(one["rle"])).reshape(size[1], size[0], 4)[..., 3] > 0  # drawn as RGBA
    if "points" in one:
        return polygon([(x / 100, y / 100) for x, y in one["points"]], shares=True)
    if one.get("rotation") or not {"width", "height"} <= one.keys():
        raise ValueError("a shape that is no brush, polygon or upright rectangle")
    (left, top), (width, height) = (one["x"], one["y"]), (one["width"], one["height"])
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    return polygon([(x / 100, y / 100) for x, y in corners], shares=True)


def unpack_runs(packed: bytes) -> Ids:
    """Decode Label Studio's run lengths, thi.ng/rle-pack: bytes, here in a numpy array (n,).

    Its own package is left out: it holds OpenCV and others to old versions. After 32 bits of n, 5 of the word's length
    and four times 4 of a run's lengths (all but n less one) follow runs: a bit whether they repeat one word, 2 bits
    that choose the length, the count less one, and the word or words.
    """
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > 8 * len(packed):
            raise ValueError("the run lengths end too early")
        window = int.from_bytes(packed[(place - count) // 8 : -(-place // 8)], "big")
        return window >> -place % 8 & (1 << count) - 1

    out = np.zeros(possible((take(32), 1))[0], np.uint8)
    word, lengths = take(5) + 1, [take(4) + 1 for _ in range(4)]
    done = 0
    while done < len(out):
        repeated, count = take(1), take(lengths[take(2)]) + 1
        out[done : done + count] = take(word) if repeated else [take(word) for _ in range(count)]
        done += count
    return out


def _file_name(given: str) -> str:
    """Return the path of an image, of a path or URL in any tool's spelling, with `/` and without `..`."""
    parts = urlsplit(given.replace("\\", "/"))
    path = unquote(parts.query.removeprefix("d=") if parts.query.startswith("d=") else parts.path)
    return PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..", "."))).as_posix()
