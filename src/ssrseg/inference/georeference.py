"""Where the pixels of a GeoTIFF lie on the earth, read and written by rasterio (`ssrseg[geo]`)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from ssrseg.data.label_spaces import IGNORE, Color
from ssrseg.errors import UserError

GEOGRAPHY = 34735
"""The TIFF tag of the coordinate system."""
ROWS = 256
"""That are written at a time."""


def is_georeferenced(path: Path) -> bool:
    """Return whether a file is a TIFF that says where it lies, of however many bands; needs no rasterio."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return GEOGRAPHY in file.pages.first.tags
    except (OSError, ValueError, LookupError, struct.error):
        return False


def write_raster(
    place: Path,
    size: tuple[int, int],
    rows: Callable[[slice], npt.NDArray[np.uint8]],
    like: Path,
    colors: Mapping[int, Color],
) -> None:
    """Write class ids as a GeoTIFF of one band that lies where `like` does; 255 where that has no data.

    `size` is (H, W), and `rows` returns those of a slice (h, W). Raises `UserError` without rasterio, or for a `like`
    that is no raster.
    """
    (height, width), rasterio = size, _rasterio()
    layout = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": IGNORE, "compress": "deflate"}
    with _opened(rasterio, like) as source, _unreferenced(rasterio):
        where = {"crs": source.crs, "transform": source.transform, "height": height, "width": width}
        with rasterio.open(place, "w", **layout, **where) as file:
            file.write_colormap(1, dict(colors))
            for top in range(0, height, ROWS):
                part = slice(top, min(top + ROWS, height))
                window = rasterio.windows.Window(0, top, width, part.stop - top)
                known = source.dataset_mask(window=window) > 0
                file.write(np.where(known, rows(part), IGNORE).astype(np.uint8), 1, window=window)


def on_earth(geometries: Sequence[Mapping[str, Any]], like: Path) -> Sequence[Mapping[str, Any]]:
    """Convert geometries in pixels to longitude and latitude (RFC 7946); raises `UserError` without rasterio."""
    with _opened(_rasterio(), like) as source:
        reference, (a, b, c, d, e, f, *_) = source.crs, source.transform

    def placed(geometry: Mapping[str, Any]) -> Mapping[str, Any]:
        rings = [[(a * x + b * y + c, d * x + e * y + f) for x, y in ring] for ring in geometry["coordinates"]]
        return {**geometry, "coordinates": rings}

    warp: Any = importlib.import_module("rasterio.warp")
    converted: Sequence[Mapping[str, Any]] = warp.transform_geom(reference, "EPSG:4326", list(map(placed, geometries)))
    return converted


@contextlib.contextmanager
def _opened(rasterio: Any, path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        try:
            with _unreferenced(rasterio):
                file = stack.enter_context(rasterio.open(path))
        except rasterio.errors.RasterioIOError as error:
            raise UserError(f"{path} cannot be read as a raster: {error}") from error
        yield file


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
