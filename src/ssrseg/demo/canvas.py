"""A painter of ground, upright fronts and upright sides into a depth buffer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssrseg.demo.shapes import Floats, Parts, Shape

FACING_UP, FACING_CAMERA, FACING_LEFT, FACING_RIGHT = range(4)
"""Which way a surface looks: light falls on it accordingly."""

PARTS = 8
"""A pixel's code is surface * PARTS + part."""

FAR = 400.0
"""Depth of the sky, metres."""


@dataclass(frozen=True)
class View:
    """A pinhole camera that looks along the street: world x to the right, v up, z ahead, metres."""

    size: tuple[int, int]
    focal: float
    """Pixels."""
    horizon: float
    """Row of the horizon."""
    vanish: float
    """Column where the street vanishes."""
    eye: float
    """Height above the ground, metres."""


@dataclass(frozen=True)
class Surfaces:
    """What was painted, one row per surface."""

    classes: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.int32]
    facing: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """All that a renderer needs to know of every pixel; maps are (H, W)."""

    view: View
    codes: npt.NDArray[np.int32]
    u: Floats
    """Position across the surface, metres (the sky: radians)."""
    v: Floats
    """Position up the surface, metres; on the ground, distance ahead."""
    depth: Floats
    """Metres."""
    surfaces: Surfaces

    @property
    def classes(self) -> npt.NDArray[np.uint8]:
        """Class ids."""
        return self.surfaces.classes[self.codes // PARTS]

    @property
    def objects(self) -> npt.NDArray[np.int32]:
        """Object ids: all surfaces of one thing share one."""
        return self.surfaces.objects[self.codes // PARTS]


class Canvas:
    """Paints surfaces in any order; the nearest wins."""

    def __init__(self, view: View) -> None:
        self.view = view
        height, width = view.size
        self.rows = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - view.horizon)  # below the horizon
        self.cols = np.arange(width, dtype=np.float32)[None] + np.float32(0.5 - view.vanish)
        self.codes = np.zeros(view.size, np.int32)
        self.u, self.v = np.empty(view.size, np.float32), np.empty(view.size, np.float32)
        self.u[:], self.v[:] = self.cols / view.focal, -self.rows / view.focal
        self.depth = np.full(view.size, FAR, np.float32)
        self.ground = self._ground()
        """Rows below the horizon, and their world x (h, W) and z (h, 1)."""
        self.table: list[tuple[int, int, int]] = []
        self.things = 0

    def _ground(self) -> tuple[slice, Floats, Floats]:
        first = int(np.searchsorted(self.rows[:, 0], 0.6))  # nearer to the horizon the distance explodes
        z = np.float32(self.view.focal * self.view.eye) / self.rows[first:]
        return slice(first, None), self.cols * z / np.float32(self.view.focal), z

    def thing(self) -> int:
        """The id of a new object."""
        self.things += 1
        return self.things - 1

    def surface(self, kind: int, thing: int, facing: int) -> int:
        """The code of a new surface's part 0."""
        self.table.append((kind, thing, facing))
        return (len(self.table) - 1) * PARTS

    def front(
        self, kind: int, thing: int, shape: Shape, x: float, z: float, width: float, height: float, base: float = 0.0
    ) -> None:
        """A surface that faces the camera: centred on `x`, from `base` metres up."""
        scale = self.view.focal / z
        window = self._window(
            (x - width / 2) * scale,
            (x + width / 2) * scale,
            (self.view.eye - base - height) * scale,
            (self.view.eye - base) * scale,
        )
        if window is None:
            return
        rows, cols = window
        u = self.cols[:, cols] / np.float32(scale) - np.float32(x)
        v = np.float32(self.view.eye - base) - self.rows[rows] / np.float32(scale)
        self._paint(window, self.surface(kind, thing, FACING_CAMERA), shape(u, v), np.float32(z), u, v)

    def side(self, kind: int, thing: int, shape: Shape, x: float, near: float, far: float, height: float) -> None:
        """A surface along the street at `x`, from `near` to `far` ahead; its `u` starts at the near end."""
        focal, near = self.view.focal, max(near, 0.5)
        if far <= near or abs(x) < 0.1:
            return
        left, right = sorted((x * focal / near, x * focal / far))
        low, top = (
            self.view.eye * focal / near,
            (self.view.eye - height) * focal / (near if height > self.view.eye else far),
        )
        window = self._window(left, right, top, low)
        if window is None:
            return
        rows, cols = window
        z = np.float32(focal * x) / self.cols[:, cols]
        u, v = z - np.float32(near), np.float32(self.view.eye) - self.rows[rows] * (z / np.float32(focal))
        parts = shape(u, v)
        parts[(v < 0) | (v > height)] = -1
        facing = FACING_LEFT if x > 0 else FACING_RIGHT
        self._paint(window, self.surface(kind, thing, facing), parts, z, u, v)

    def _window(self, left: float, right: float, top: float, low: float) -> tuple[slice, slice] | None:
        """Pixels between two columns and two rows, relative to the vanishing point; None when there are none."""
        (height, width), view = self.view.size, self.view
        rows = slice(max(0, round(top + view.horizon)), min(height, round(low + view.horizon)))
        cols = slice(max(0, round(left + view.vanish)), min(width, round(right + view.vanish)))
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None

    def _paint(
        self, window: tuple[slice, slice], code: int, parts: Parts, z: Floats | np.float32, u: Floats, v: Floats
    ) -> None:
        depth = self.depth[window]
        seen = (parts >= 0) & (depth > z)
        np.copyto(depth, z, where=seen)
        np.copyto(self.codes[window], parts + np.int32(code), where=seen)
        np.copyto(self.u[window], u, where=seen)
        np.copyto(self.v[window], v, where=seen)

    def scene(self) -> Scene:
        """What has been painted."""
        classes, objects, facing = (np.asarray(column) for column in zip(*self.table, strict=True))
        surfaces = Surfaces(classes.astype(np.uint8), objects.astype(np.int32), facing.astype(np.uint8))
        return Scene(self.view, self.codes, self.u, self.v, self.depth, surfaces)
