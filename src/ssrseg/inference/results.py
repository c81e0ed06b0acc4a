"""Predictions as they are needed: pictures, values of a data set, certainty, polygons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ssrseg.data.images import as_rgb
from ssrseg.data.label_spaces import SPACES, Color, LabelSpace
from ssrseg.data.layouts import SPECS
from ssrseg.errors import UserError
from ssrseg.inference.georeference import is_georeferenced, on_earth, write_raster
from ssrseg.runs.atomic import write_json

Kind = Literal["ids", "color", "overlay", "confidence", "probabilities", "geojson", "geotiff", "coco"]
ENDINGS: dict[Kind, str] = {
    "ids": "_ids.png",
    "color": "_color.png",
    "overlay": "_overlay.jpg",
    "confidence": "_confidence.png",
    "probabilities": "_probabilities.npy",
    "geojson": ".geojson",
    "geotiff": "_ids.tif",
}
"""Class ids as grey values; the classes' colours as a palette; these over the image; the largest probability, of which
255 is 1; all probabilities (K, H, W), float16; polygons of each class, in longitude and latitude of
a GeoTIFF, else in pixels; class ids that lie where the image does. COCO is one file for all images, `coco.json`."""
CERTAIN = {"confidence", "probabilities"}
"""Kinds that need probabilities."""
OPACITY = 0.5
Ids = npt.NDArray[np.uint8]
Ring = list[list[float]]
"""Corners (x, y) in pixels from the image's upper left corner, the first again at the end."""


def kinds_of(text: str) -> list[Kind]:
    """Split what `--write` says; raises `UserError` for an unknown word."""
    known: tuple[Kind, ...] = get_args(Kind)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if wrong := [word for word in words if word not in known]:
        raise UserError(f"There is no result {wrong[0]!r}: choose some of {', '.join(known)}.")
    return [kind for kind in known if kind in words]


def values_of_classes(text: str, classes: Sequence[str]) -> list[int]:
    """Return the value that each class is written as: of a layout of `SPECS` by name, or as `road=7,car=26`.

    A layout with several values for a class gives the first. Raises `UserError` for a class that has no value.
    """
    folded = [name.casefold() for name in classes]
    if "=" in text:
        pairs = [word.rpartition("=") for word in text.split(",") if word.strip()]
        known = {name.strip().casefold(): value.strip() for name, _, value in pairs}
        if wrong := [value for value in known.values() if not value.isdecimal() or int(value) > 255]:
            raise UserError(f"{wrong[0]!r} is no value of a label: give whole numbers from 0 to 255.")
        values = {name: int(value) for name, value in known.items()}
    elif text in SPECS and (space := SPECS[text].space) is not None:
        names = [name.casefold() for name in SPACES[space].names]
        raw = SPECS[text].ids or {i: i for i in range(len(names))}
        values = {}
        for value, number in raw.items():
            values.setdefault(names[number], value)
    else:
        named = ", ".join(name for name, spec in SPECS.items() if spec.space is not None)
        raise UserError(f"{text!r} is no layout with values: use one of {named}, or say name=value,name=value.")
    if missing := [name for name, key in zip(classes, folded, strict=True) if key not in values]:
        raise UserError(f"The class {missing[0]!r} has no value in {text}: say name=value for each class.")
    return [values[key] for key in folded]


@dataclass
class Results:
    """Writes what is known of each image."""

    space: LabelSpace
    """Names and colours of the classes."""
    values: Sequence[int] | None = None
    """Of each class in the kind `ids`; its number when absent."""
    collected: list[tuple[str, tuple[int, int], list[dict[str, Any]]]] = field(default_factory=list)
    """For COCO: name, (width, height) and annotations of each image."""

    @property
    def written(self) -> Ids:
        """What each class (K,) is written as."""
        return np.array(range(len(self.space.names)) if self.values is None else self.values, np.uint8)

    @property
    def palette(self) -> dict[int, Color]:
        """Colours of what is written."""
        return dict(zip(self.written.tolist(), self.space.colors, strict=True))

    def writer(
        self, kind: Kind, path: Path, image: Tensor, ids: Tensor, certain: Tensor | None
    ) -> Callable[[Path], object]:
        """Return what writes a file: image (C, H, W), bytes; ids (H, W); probabilities (K, H, W) where needed."""
        if kind == "probabilities" and certain is not None:
            array = certain.half().numpy()
            return lambda place: _save_array(place, array)
        if kind == "confidence" and certain is not None:
            grey = (255 * certain.amax(0)).round().to(torch.uint8).numpy()
            return lambda place: Image.fromarray(grey).save(place, "PNG")
        if kind == "geojson":
            found = polygons(ids.numpy())
            shapes: Sequence[Mapping[str, Any]] = [{"type": "Polygon", "coordinates": rings} for _, rings in found]
            shapes = on_earth(shapes, path) if is_georeferenced(path) else shapes
            known = [{"class": self.space.names[number], "id": number} for number, _ in found]
            features = [
                {"type": "Feature", "properties": properties, "geometry": shape}
                for properties, shape in zip(known, shapes, strict=True)
            ]
            return lambda place: write_json(place, {"type": "FeatureCollection", "features": features})
        if kind in ("ids", "geotiff") and self.values is not None:
            ids = torch.from_numpy(self.written)[ids.long()]
        if kind == "geotiff":
            pixels = ids.numpy()
            return lambda place: write_raster(place, pixels.shape, pixels.__getitem__, path, self.palette)
        picture = draw(kind, image, ids, np.array(self.space.colors, np.uint8))
        return lambda place: picture.save(place, "JPEG" if kind == "overlay" else "PNG")

    def collect(self, name: str, ids: Tensor) -> None:
        """Keep the polygons of an image for COCO, whose first cover the others, larger ones first."""
        height, width = ids.shape
        found = [(number, rings[0]) for number, rings in polygons(ids.numpy())]
        found.sort(key=lambda item: -abs(_area(item[1])))
        shapes = [{"category_id": number + 1, "segmentation": [flat(ring)], **_box(ring)} for number, ring in found]
        self.collected.append((name, (width, height), shapes))

    def coco(self) -> dict[str, Any]:
        """Return all that was collected as COCO has it: holes are what later polygons cover."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, (width, height), shapes in self.collected:
            images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
            for shape in shapes:
                annotations.append({"id": len(annotations) + 1, "image_id": len(images), "iscrowd": 0, **shape})
        categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(self.space.names, 1)]
        return {"images": images, "annotations": annotations, "categories": categories}


def draw(kind: str, image: Tensor, ids: Tensor, colors: npt.NDArray[np.uint8]) -> Image.Image:
    """Draw one of the pictures: image (C, H, W), bytes; ids (H, W); colours (K, 3), RGB bytes."""
    labels = Image.fromarray(ids.to(torch.uint8).numpy())
    if kind == "ids":
        return labels
    labels.putpalette(colors.tobytes())
    if kind == "color":
        return labels
    return Image.blend(Image.fromarray(as_rgb(image).permute(1, 2, 0).numpy()), labels.convert("RGB"), OPACITY)


def polygons(ids: npt.NDArray[np.integer]) -> list[tuple[int, list[Ring]]]:
    """Outline each connected region of ids (H, W): its class and rings, the outer first, then those of holes.

    Rings run a quarter of a pixel inside the region's edge, so a pixel is in a polygon when its centre is.
    """
    found: list[tuple[int, list[Ring]]] = []
    for number in np.unique(ids).tolist():
        doubled = cv2.resize((ids == number).astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        parents = hierarchy[0, :, 3].tolist() if hierarchy is not None else []
        regions = {i: [_ring(contours[i])] for i, parent in enumerate(parents) if parent < 0}
        for i, parent in enumerate(parents):
            if parent >= 0:
                regions[parent].append(_ring(contours[i]))
        found += [(number, rings) for rings in regions.values()]
    return found


def _ring(contour: npt.NDArray[Any]) -> Ring:
    corners: Ring = ((contour[:, 0].astype(float) + 0.5) / 2).tolist()
    return [*corners, corners[0]]


def flat(ring: Ring) -> list[float]:
    """Return a ring as COCO has it: x, y, x, y ..., the first corner not repeated."""
    return [value for corner in ring[:-1] for value in corner]


def _area(ring: Ring) -> float:
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _box(ring: Ring) -> dict[str, Any]:
    (left, top), (right, bottom) = np.min(ring, axis=0).tolist(), np.max(ring, axis=0).tolist()
    return {"bbox": [left, top, right - left, bottom - top], "area": abs(_area(ring))}


def _save_array(place: Path, array: npt.NDArray[Any]) -> None:
    with place.open("wb") as file:
        np.save(file, array, allow_pickle=False)
