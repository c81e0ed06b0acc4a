"""A pinhole camera in a street, and what outlines on upright or level planes look like to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ssrseg.demo.shapes import Floats, Points, Shape

FACING_UP, FACING_CAMERA, FACING_LEFT, FACING_RIGHT = range(4)
"""Which way a surface looks: light falls on it accordingly."""

_AXES = np.array([[1, 0, 0, 1], [1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]], np.float32)
"""By facing: what a step in u adds to world x and z, and a step in v to height and z."""

SHIFT = 4
"""Outlines are in units of 2 ** -SHIFT pixels from the centre of the first pixel, as OpenCV has them."""

Ints = npt.NDArray[np.int32]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class View:
    """A camera that looks along the street: world x to the right, height up, z ahead, metres."""

    size: tuple[int, int]
    focal: float
    """Pixels."""
    horizon: float
    """Row of the horizon."""
    vanish: float
    """Column where the street vanishes."""
    eye: float
    """Height above the ground, metres."""


class Plane(NamedTuple):
    """Where a shape stands: its (u, v) = (0, 0) is on the ground at (x, z)."""

    facing: int
    x: float = 0.0
    z: float = 0.0


class Cutout(NamedTuple):
    """What the camera sees of a shape."""

    plane: Plane
    window: Window
    """The pixels that it may cover."""
    near: float
    far: float
    """z of its nearest and its farthest corner."""
    layers: list[tuple[int, list[Ints]]]
    """Codes, each with its outlines: corners (n, 2), x and y."""


class Cutouts:
    """Shapes cut out of planes, projected all at once."""

    def __init__(self) -> None:
        self.planes: list[Plane] = []
        self.layers: list[list[tuple[int, int]]] = []  # of each shape: codes and numbers of outlines
        self.sizes: list[int] = []  # of each outline, corners
        self.corners: Points = []

    def add(self, plane: Plane, shape: Shape, code: int) -> None:
        """A shape whose parts have the codes from `code` on."""
        self.planes.append(plane)
        self.layers.append([(code + part, len(outlines)) for part, outlines in shape])
        for _, outlines in shape:
            for points in outlines:
                self.sizes.append(len(points) // 2)
                self.corners += points

    def seen(self, view: View) -> Iterator[Cutout]:
        """Those that reach into the picture."""
        if not self.planes:
            return
        sizes = np.array(self.sizes)
        starts = sizes.cumsum() - sizes
        outlines = np.array([sum(count for _, count in layers) for layers in self.layers])
        first = outlines.cumsum() - outlines  # number of each shape's first outline
        screen, z = self._on_screen(np.add.reduceat(sizes, first), view)
        low, high = np.minimum.reduceat(screen, starts, axis=1), np.maximum.reduceat(screen, starts, axis=1)
        # OpenCV fills the border's pixels, too: with corners half a pixel further in, sizes stay true
        inwards = ((low + high) / 2).repeat(sizes, axis=1) - screen
        screen += np.minimum(np.maximum(inwards, -0.5), 0.5)
        fixed = np.rint(screen * (1 << SHIFT)).T.astype(np.int32, order="C")
        ends = [*starts[1:].tolist(), len(fixed)]
        parts = [fixed[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]
        windows = _windows(np.minimum.reduceat(low, first, axis=1), np.maximum.reduceat(high, first, axis=1), view)
        near, far = (reduce.reduceat(z, starts[first]).tolist() for reduce in (np.minimum, np.maximum))
        for number, (window, place) in enumerate(zip(windows, first.tolist(), strict=True)):
            if window is not None:
                layers = []
                for code, count in self.layers[number]:
                    layers.append((code, parts[place : place + count]))
                    place += count
                yield Cutout(self.planes[number], window, near[number], far[number], layers)

    def _on_screen(self, sizes: npt.NDArray[np.int64], view: View) -> tuple[Floats, Floats]:
        """x and y of all corners, pixels (2, n), and their z (n,), of shapes that have `sizes` corners."""
        corners = np.array(self.corners, np.float32)
        u, v = corners[::2], corners[1::2]
        facing, x, z = np.array(self.planes, np.float32).T
        table = np.stack([x, z, *_AXES[facing.astype(np.intp)].T])
        x, z, across, along, up, ahead = table.repeat(sizes, axis=1)
        z += along * u
        z += ahead * v
        scale = np.float32(view.focal) / z
        screen = np.stack([x + across * u, np.float32(view.eye) - up * v])
        screen *= scale
        screen += np.array([[view.vanish - 0.5], [view.horizon - 0.5]], np.float32)
        return screen, z


def _windows(low: Floats, high: Floats, view: View) -> Iterator[Window | None]:
    """The pixels between corners (2, n), in whole pixels of the picture; None where there are none."""
    height, width = view.size
    for left, top, right, bottom in np.concatenate([low, high]).T.tolist():
        cols = slice(max(0, int(left)), min(width, int(right) + 2))
        rows = slice(max(0, int(top)), min(height, int(bottom) + 2))
        yield (rows, cols) if cols.start < cols.stop and rows.start < rows.stop else None
