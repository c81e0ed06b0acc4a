"""Where the pixels of a GeoTIFF lie on the earth, read and written by rasterio (`ssrseg[geo]`)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from ssrseg.data.label_spaces import IGNORE, Color
from ssrseg.errors import UserError

GEOGRAPHY = 34735
"""The TIFF tag of the coordinate system."""


def is_georeferenced(path: Path) -> bool:
    """Return whether a file is a TIFF that says where it lies, of however many bands; needs no rasterio."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with path.open("rb") as file:
        header = file.read(8)
        header += file.read(8) if header[2:3] == b"+" else b""  # BigTIFF
        try:
            tags: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        except (OSError, SyntaxError, ValueError, struct.error):
            return False
        return GEOGRAPHY in tags


def write_raster(place: Path, ids: npt.NDArray[np.uint8], like: Path, colors: Mapping[int, Color]) -> None:
    """Write class ids (H, W) as a GeoTIFF of one band that lies where `like` does; 255 where that has no data.

    Raises `UserError` without rasterio, or for a `like` that is no raster.
    """
    source, rasterio = _described(like), _rasterio()
    ids = np.where(source["known"], ids, IGNORE).astype(np.uint8)
    height, width = ids.shape
    layout = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": IGNORE, "compress": "deflate"}
    where = {"crs": source["crs"], "transform": source["transform"]}
    with _unreferenced(rasterio), rasterio.open(place, "w", height=height, width=width, **layout, **where) as file:
        file.write(ids, 1)
        file.write_colormap(1, dict(colors))


def on_earth(geometries: Sequence[Mapping[str, Any]], like: Path) -> Sequence[Mapping[str, Any]]:
    """Convert geometries in pixels to longitude and latitude (RFC 7946); raises `UserError` without rasterio."""
    source = _described(like)
    a, b, c, d, e, f, *_ = source["transform"]

    def placed(geometry: Mapping[str, Any]) -> Mapping[str, Any]:
        rings = [[(a * x + b * y + c, d * x + e * y + f) for x, y in ring] for ring in geometry["coordinates"]]
        return {**geometry, "coordinates": rings}

    warp: Any = importlib.import_module("rasterio.warp")
    converted: Sequence[Mapping[str, Any]] = warp.transform_geom(
        source["crs"], "EPSG:4326", list(map(placed, geometries))
    )
    return converted


def _described(path: Path) -> dict[str, Any]:
    rasterio = _rasterio()
    with _unreferenced(rasterio):
        try:
            with rasterio.open(path) as file:
                return {"crs": file.crs, "transform": file.transform, "known": file.dataset_mask() > 0}
        except rasterio.errors.RasterioIOError as error:
            raise UserError(f"{path} cannot be read as a raster: {error}") from error


def _rasterio() -> Any:
    if importlib.util.find_spec("rasterio") is None:
        raise UserError("What is written on the earth needs rasterio: pip install 'ssrseg[geo]'")
    return importlib.import_module("rasterio")


@contextlib.contextmanager
def _unreferenced(rasterio: Any) -> Iterator[None]:
    """Leave out the warning of a picture that lies nowhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield
