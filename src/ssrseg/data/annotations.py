"""Labels as annotation tools export them: named shapes and masks, drawn when they are read."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from ssrseg.data.annotation_sets import members_in
from ssrseg.data.shapes import WRONG, Annotation, Paint, Points, Shape, as_written, id_of, polygon, read_json
from ssrseg.data.storage import holder_of, masks_of, read_bytes, stamp
from ssrseg.errors import UserError, first_line


def read_annotation(path: Path, names: Mapping[str, int] | None = None) -> Annotation:
    """Read what a tool wrote about one image, by the kind of its file.

    Args:
        path: JSON of LabelMe; text of YOLO; `FILE.json/NAME`, an image in a file of COCO or of Label Studio;
            `.../{class=car|road}/...`, one mask per class.
        names: of classes, in small letters -> class id. Masks are laid over each other in the order of the ids.

    Raises:
        UserError: the file is missing or damaged, a package is missing, or it is not what the tool writes.
    """
    with as_written(path):
        if masks := masks_of(path):
            return _masks(masks, names or {})
        if path.suffix.lower() == ".txt":
            return _yolo(path)
        if (holder := holder_of(path)) is None:
            return _labelme(read_json(path))
        members = members_in(holder, stamp(holder))
        if (name := path.relative_to(holder).as_posix()) not in members:
            raise UserError(f"{holder} says nothing about an image {name}.")
        return members[name]()


def names_of_no_class(path: Path, names: Mapping[str, int]) -> list[str]:
    """Return the names in a label that no class takes, sorted; raises as `read_annotation`."""
    with as_written(path):
        found = {shape.name for shape in read_annotation(path, names).shapes if id_of(shape.name, names) is None}
    return sorted(found)


def colors_by_name(path: Path) -> dict[str, tuple[int, int, int]]:
    """Read the `labelmap.txt` of CVAT: name in small letters -> colour. Raises `UserError` for another file."""
    found: dict[str, tuple[int, int, int]] = {}
    for line in read_bytes(path).decode("utf-8-sig", "replace").splitlines():
        if line.strip() and not line.startswith("#"):
            if not (match := re.fullmatch(r"(.*?):(\d+),(\d+),(\d+)(:.*)?", line.strip())):
                raise UserError(f"{path} holds {line.strip()!r}, expected `name:red,green,blue:parts:actions`.")
            name, red, green, blue, _ = match.groups()
            found[name.casefold()] = int(red), int(green), int(blue)
    return found


def names_in_order(path: Path) -> list[str]:
    """Read the names of YOLO's classes, in the order of their numbers: `names` of a YAML file, or a line each."""
    text = read_bytes(path).decode("utf-8-sig", "replace")
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = yaml.safe_load(text)["names"]
        return [str(names[i]) for i in range(len(names))]
    except (yaml.YAMLError, *WRONG) as error:
        raise UserError(
            f"{path} does not say the names of classes ({type(error).__name__}: {first_line(error)}): expected "
            "`names:`, a list, or a number each from 0."
        ) from error


def _labelme(content: Mapping[str, Any]) -> Annotation:
    """Draw shapes as LabelMe's own conversion does: lines are 10 pixels wide, points have a radius of 5."""
    if "objects" in content:  # Cityscapes' polygons
        kept = [one for one in content["objects"] if not one.get("deleted")]
        shapes = [{"label": one["label"], "points": one["polygon"]} for one in kept]
        content = {"shapes": shapes, "imageWidth": content["imgWidth"], "imageHeight": content["imgHeight"]}
    size = int(content["imageWidth"]), int(content["imageHeight"])

    def painted(kind: str, points: Points) -> Paint:
        if kind in ("circle", "point"):
            (x, y), radius = points[0], math.dist(*points) if kind == "circle" else 5
            return lambda pen, value: pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
        if kind in ("line", "linestrip"):
            return lambda pen, value: pen.line(points, fill=value, width=10)
        if kind == "rectangle":
            (left, top), (right, bottom) = zip(*map(sorted, zip(*points, strict=True)), strict=True)
            return lambda pen, value: pen.rectangle((left, top, right, bottom), fill=value)
        if kind not in ("polygon", "oriented_rectangle"):
            raise ValueError(f"the shape {kind!r}")
        return polygon(points)

    def area(shape: Mapping[str, Any]) -> Paint | npt.NDArray[np.bool_]:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        if shape.get("shape_type") != "mask":
            return painted(shape.get("shape_type") or "polygon", points)
        part = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
        left, top = (int(side) for side in points[0])
        whole = np.zeros(size[::-1], bool)
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        return whole

    return Annotation((Shape(str(shape["label"]), area(shape)) for shape in content["shapes"]), size)


def _yolo(path: Path) -> Annotation:
    """Read a line per shape: its class's number, and points as shares of width and height."""
    shapes = []
    for number, line in enumerate(read_bytes(path, empty=True).decode("utf-8-sig").splitlines(), 1):
        if not (words := line.split()):
            continue
        if len(words) < 7 or len(words) % 2 == 0:
            hint = " That is a box of a detection data set: it has no outline." if len(words) == 5 else ""
            raise UserError(
                f"{path}, line {number} has {len(words)} numbers, expected a class and 3 points or more.{hint}"
            )
        shares = list(map(float, words[1:]))
        points = list(zip(shares[::2], shares[1::2], strict=True))
        shapes.append(Shape(str(int(words[0])), polygon(points, shares=True)))
    return Annotation(shapes)


def _masks(files: Sequence[tuple[str, Path]], names: Mapping[str, int]) -> Annotation:
    shapes: list[Shape] = []
    for name, path in sorted(files, key=lambda item: id_of(item[0], names) or 0):
        try:
            values = np.array(Image.open(io.BytesIO(read_bytes(path))))
        except OSError as error:
            raise UserError(f"{path} cannot be read as a mask: {first_line(error)}") from error
        values = np.asarray(values.any(axis=2)) if values.ndim == 3 else values
        if len(found := np.unique(values)) > 2 or (len(found) == 2 and found[0] != 0):
            listed = ", ".join(map(str, found[:5].tolist()))
            raise UserError(f"{path} is no mask of one class: it holds the values {listed}, expected 0 and one other.")
        shapes.append(Shape(name, values.astype(bool)))
    height, width = shapes[0].area.shape  # type: ignore[union-attr]
    return Annotation(shapes, (width, height))
