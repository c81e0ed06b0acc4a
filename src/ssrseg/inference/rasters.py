"""Pictures that are too large to be held with their logits: read, labelled and written by bands of sliding windows."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image

from ssrseg.config.data import Bound
from ssrseg.data.images import TIFF, Reading, parts_of, read_image
from ssrseg.data.storage import open_file
from ssrseg.data.transforms import rescale_size
from ssrseg.inference.georeference import ROWS, write_raster
from ssrseg.inference.predictor import Predictor
from ssrseg.inference.results import Kind, Results
from ssrseg.inference.sliding_window import windows_for
from ssrseg.models.multi_resolution import MultiResolution, spans
from ssrseg.runs.atomic import write_atomically

LARGE = 2**25
"""Pixels (33 million) from which `slide` works by bands."""
LOGITS = 2**28
"""Bytes of logits that are held: of all rows of a window, and as many columns as fit."""
OVERVIEW = 4096
"""Pixels of the longer side of the overlay of a large picture."""
Pixels = npt.NDArray[np.uint8]


class Raster:
    """A picture of which parts are read: those of a TIFF as they are needed, another format whole.

    Args:
        path: the file.
        reading: how it is read; in parts only where values need not be stretched.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._file = contextlib.ExitStack()
        self._page: Any = None
        bands = parts_of(reading)[0]
        with open_file(path) as file:
            tiff = file.read(4) in TIFF
        if tiff:
            page: Any = self._file.enter_context(tifffile.TiffFile(str(path))).pages.first
            plain = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK)
            if plain and page.dtype == np.uint8 and page.samplesperpixel >= bands and page.imagedepth == 1:
                self._page, self._bands = page, bands
                self.size = page.imagelength, page.imagewidth
        if self._page is None:
            self._whole = read_image(path, reading)
            self.size = self._whole.shape[1], self._whole.shape[2]

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """Read a part as bytes (C, h, w)."""
        if self._page is None:
            return self._whole[:, rows, columns]
        page, (height, width) = self._page, self.size
        tile = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
        across, down = -(-width // tile[1]), -(-height // tile[0])
        planes = range(self._bands if page.planarconfig == 2 else 1)
        part = np.zeros((rows.stop - rows.start, columns.stop - columns.start, self._bands), np.uint8)
        for plane in planes:
            for y in range(rows.start // tile[0], -(-rows.stop // tile[0])):
                for x in range(columns.start // tile[1], -(-columns.stop // tile[1])):
                    index = (plane * down + y) * across + x
                    self._paste(index, plane if len(planes) > 1 else None, part, (rows.start, columns.start))
        return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))

    def _paste(self, index: int, plane: int | None, part: Pixels, origin: tuple[int, int]) -> None:
        """Decode a tile or strip, and copy what lies in the part."""
        page = self._page
        handle, count = page.parent.filehandle, page.databytecounts[index]
        if not count:  # a tile that was left out is black
            return
        handle.seek(page.dataoffsets[index])
        segment, place, shape = page.decode(handle.read(count), index, jpegtables=page.jpegtables)
        (top, left), (height, width) = (place[2], place[3]), (shape[1], shape[2])
        y, x = top - origin[0], left - origin[1]
        inside = slice(max(y, 0), min(y + height, part.shape[0])), slice(max(x, 0), min(x + width, part.shape[1]))
        pixels = segment[0, inside[0].start - y : inside[0].stop - y, inside[1].start - x : inside[1].stop - x]
        if plane is None:
            part[inside] = pixels[..., : part.shape[2]]
        else:
            part[..., plane][inside] = pixels[..., 0]


def is_large(predictor: Predictor, size: tuple[int, int]) -> bool:
    """Whether a picture (height, width) is labelled by bands: in sliding windows, once, or resized for the network."""
    config = predictor.inference
    plain = config.mode == "slide" and not config.flip and config.scales == (1.0,)
    plain = plain and not isinstance(predictor.network, MultiResolution)  # which looks at context, too
    return size[0] * size[1] >= LARGE and (plain or bool(predictor.bound))


def label_resized(predictor: Predictor, raster: Raster, bound: Bound) -> Iterator[tuple[slice, slice, Pixels]]:
    """Label a picture at the network's size, and bring the logits to its own by bands; yields as `label_bands`."""
    height, width = raster.size
    wide, tall = rescale_size(width, height, bound)
    low, high, share = _between(height, tall)
    left, right, across = _between(width, wide)
    seen = []
    for rows in torch.arange(tall).split(max(1, ROWS * tall // height)):
        first, last = int(low[rows[0]]), int(high[rows[-1]])
        band = raster.read(slice(first, last + 1), slice(0, width))
        above, below = (band[:, taken[rows] - first].float() for taken in (low, high))
        line = torch.lerp(above, below, share[rows, None])
        seen.append(torch.lerp(line[..., left], line[..., right], across).round().to(torch.uint8))
    logits = predictor.logits(torch.cat(seen, dim=1)[None])[0].float().cpu()
    low, high, share = _between(tall, height)
    for rows in torch.arange(height).split(max(1, LOGITS // (4 * predictor.num_classes * width))):
        band = torch.lerp(logits[:, low[rows]], logits[:, high[rows]], share[rows, None])
        ids = F.interpolate(band[None], (len(rows), width), mode="bilinear")[0].argmax(0)
        yield slice(int(rows[0]), int(rows[-1]) + 1), slice(0, width), ids.to(torch.uint8).numpy()


def _between(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the two of `old` places between which each of `new` lies, and the share of the second (bilinear)."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    low = place.long()
    return low, (low + 1).clamp(max=old - 1), (place - low).float()


def label_bands(predictor: Predictor, raster: Raster) -> Iterator[tuple[slice, slice, Pixels]]:
    """Label a picture as `slide` does, some columns after others, each from top to bottom.

    Yields rows, columns and class ids (h, w) of parts that are done. Logits are held of the rows of one window.
    """
    (height, width), config = raster.size, predictor.inference
    batch = 1 if predictor.device.type == "cpu" else 8
    window, stride = windows_for(predictor.network, config.window, config.stride)
    window = min(window[0], height), min(window[1], width)
    across = list(spans(width, window[1], stride[1]))
    columns = max(window[1], LOGITS // (4 * window[0] * predictor.num_classes))
    for left in range(0, width, columns):
        part = slice(left, min(left + columns, width))
        begin = part.start
        touching = [span for span in across if span.start < part.stop and span.stop > part.start]
        total = torch.zeros(predictor.num_classes, window[0], part.stop - part.start)
        visits = torch.zeros(window[0], part.stop - part.start)
        down = list(spans(height, window[0], stride[0]))
        for rows, after in zip(down, [*down[1:], slice(height, height)], strict=True):
            origin = touching[0].start
            band = raster.read(rows, slice(origin, touching[-1].stop))
            for first in range(0, len(touching), batch):
                group = touching[first : first + batch]
                crops = [band[..., span.start - origin : span.stop - origin] for span in group]
                logits = predictor.logits(torch.stack(crops)).float().cpu()
                for span, crop in zip(group, logits, strict=True):
                    low, high = max(span.start, part.start), min(span.stop, part.stop)
                    own = slice(low - begin, high - begin)
                    total[:, :, own] += crop[:, :, low - span.start : high - span.start]
                    visits[:, own] += 1
            done = after.start - rows.start
            ids = np.empty((done, part.stop - part.start), np.uint8)
            for row in range(done):  # a division of all would hold them twice
                ids[row] = (total[:, row] / visits[row]).argmax(0).to(torch.uint8).numpy()
            yield slice(rows.start, after.start), part, ids
            for held in (total, visits):  # what the next row of windows adds to
                kept = held[..., done:, :].clone()
                held.zero_()[..., : kept.shape[-2], :] = kept


def write_large(
    predictor: Predictor, path: Path, raster: Raster, results: Results, places: Mapping[Kind, Path]
) -> None:
    """Label a large picture and write the results `ids`, `color`, `overlay` and `geotiff` where `places` say.

    The overlay is an overview, of `OVERVIEW` pixels at most.
    """
    (height, width), colors = raster.size, predictor.colors
    step = -(-max(height, width) // OVERVIEW)
    overlay = np.zeros((-(-height // step), -(-width // step), 3), np.uint8)
    folder = next(iter(places.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as scratch, tempfile.TemporaryFile(dir=folder) as mapped:
        bound = predictor.bound
        parts = label_resized(predictor, raster, bound) if bound else label_bands(predictor, raster)
        for rows, columns, ids in parts:
            for number, line in enumerate(ids):
                scratch.seek((rows.start + number) * width + columns.start)
                scratch.write(line.tobytes())
            y, x = -rows.start % step, -columns.start % step
            if "overlay" in places and ids[y::step, x::step].size:
                image = raster.read(rows, columns)[:3, y::step, x::step].permute(1, 2, 0).numpy()
                shown = (image.astype(np.uint16) + colors[ids[y::step, x::step]]) // 2
                top, left = -(-rows.start // step), -(-columns.start // step)
                overlay[top : top + len(shown), left : left + shown.shape[1]] = shown
        scratch.flush()
        stored = written = np.memmap(scratch, np.uint8, "r", shape=raster.size)
        if results.values is not None:
            for top in range(0, height, ROWS):
                mapped.write(results.written[stored[top : top + ROWS]].tobytes())
            mapped.flush()
            written = np.memmap(mapped, np.uint8, "r", shape=raster.size)

        def write(kind: Kind, place: Path) -> None:
            if kind == "geotiff":
                write_raster(place, raster.size, written.__getitem__, path, results.palette)
                return
            picture = Image.fromarray({"overlay": overlay, "color": stored}.get(kind, written))
            if kind == "color":
                picture.putpalette(colors.tobytes())
            picture.save(place, "JPEG" if kind == "overlay" else "PNG", compress_level=1)

        for kind, place in places.items():
            write_atomically(place, partial(write, kind))
