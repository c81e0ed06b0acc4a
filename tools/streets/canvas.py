"""A painter of ground, upright fronts and upright sides: every pixel keeps the nearest."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from streets.patterns import CELLS, PLAIN, Pattern, tiles
from streets.projection import (
    FACING_CAMERA,
    FACING_LEFT,
    FACING_RIGHT,
    FACING_UP,
    SHIFT,
    Cutout,
    Ints,
    Plane,
    Seen,
    View,
    project,
)
from streets.shapes import BASE, BODY, DARK, Floats, Shape

PARTS = 8
"""A pixel's code is surface * PARTS + part."""

FAR = 400.0
"""Depth of the sky, metres."""

_STEP = 2.0**-9
"""Depth is counted in steps of this many metres."""
_BITS = 12
"""A pixel's key is depth << _BITS | code: the lowest key is the nearest."""
_CODES = 1 << _BITS
_EMPTY = 1 << 30
"""Above all keys, as is its sum with a depth."""


@dataclass(frozen=True)
class Surfaces:
    """What was painted, one row per surface."""

    classes: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.int32]
    facing: npt.NDArray[np.uint8]

    @property
    def on_ground(self) -> npt.NDArray[np.bool_]:
        """Which surfaces face up and are not the sky."""
        ground: npt.NDArray[np.bool_] = self.facing == FACING_UP
        ground[0] = False
        return ground


@dataclass(frozen=True)
class Scene:
    """All that a renderer needs to know of every pixel; maps are (H, W)."""

    view: View
    codes: npt.NDArray[np.intp]
    u: Floats
    """World x, or z on what stands along the street, metres."""
    v: Floats
    """Height above the ground, or z on the ground, metres."""
    depth: Floats
    """z, metres."""
    surfaces: Surfaces

    @property
    def classes(self) -> npt.NDArray[np.uint8]:
        """Class ids."""
        return self.surfaces.classes.repeat(PARTS).take(self.codes)

    @property
    def objects(self) -> npt.NDArray[np.int32]:
        """Object ids: all surfaces of one thing share one."""
        return self.surfaces.objects.repeat(PARTS).take(self.codes)


class Canvas:
    """Takes surfaces in any order and paints them all at once: `scene`."""

    def __init__(self, view: View, sky: int) -> None:
        self.view = view
        height, width = view.size
        self.rows = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - view.horizon)  # below the horizon
        self.cols = np.arange(width, dtype=np.float32)[None] + np.float32(0.5 - view.vanish)
        self.keys = np.full(view.size, _key(FAR), np.int32)
        self.stencil = np.full(view.size, _EMPTY, np.int32)
        self.ground = self._ground()
        """Rows below the horizon, and their world x (h, W) and z (h, 1)."""
        self.things = 0
        self.surfaces: list[tuple[int, int, int]] = []
        self.patterns: list[Pattern] = []
        self.cutouts: list[Cutout] = []
        self.surface(sky, self.thing(), FACING_UP)

    def _ground(self) -> tuple[slice, Floats, Floats]:
        nearest_to_horizon = self.view.focal * self.view.eye / (FAR - 1)
        first = int(np.searchsorted(self.rows[:, 0], nearest_to_horizon))
        z = np.float32(self.view.focal * self.view.eye) / self.rows[first:]
        return slice(first, None), self.cols * (z / np.float32(self.view.focal)), z

    def thing(self) -> int:
        """The id of a new object."""
        self.things += 1
        return self.things - 1

    def surface(self, kind: int, thing: int, facing: int, pattern: Pattern = PLAIN) -> int:
        """The code of a new surface's part 0."""
        if len(self.surfaces) < _CODES // PARTS:  # several times what any street has: the rest share the last one
            self.surfaces.append((kind, thing, facing))
            self.patterns.append(pattern)
        return (len(self.surfaces) - 1) * PARTS

    def pave(self, codes: npt.NDArray[np.int32]) -> None:
        """Cover the ground (h, W)."""
        rows, _, z = self.ground
        self.keys[rows] = codes + _keys(z)

    def shade(self, left: float, right: float, near: float, far: float) -> None:
        """Darken the ground between two x and two z."""
        outline = [left, near, right, near, right, far, left, far]
        self.cutouts.append(Cutout(Plane(FACING_UP), [(DARK, [outline])], 0))

    def front(self, kind: int, thing: int, shape: Shape, x: float, z: float, pattern: Pattern = PLAIN) -> None:
        """A surface that faces the camera; `u` is relative to `x`."""
        code = self.surface(kind, thing, FACING_CAMERA, pattern)
        self.cutouts.append(Cutout(Plane(FACING_CAMERA, x, z), shape, code))

    def side(self, kind: int, thing: int, shape: Shape, x: float, near: float, pattern: Pattern = PLAIN) -> None:
        """A surface along the street at `x`; `u` starts `near` metres ahead."""
        if abs(x) > 0.1:
            facing = FACING_LEFT if x > 0 else FACING_RIGHT
            self.cutouts.append(Cutout(Plane(facing, x, near), shape, self.surface(kind, thing, facing, pattern)))

    def scene(self) -> Scene:
        """All that was put on the canvas."""
        seen = list(project(self.cutouts, self.view))
        self._darken([one for one in seen if one.plane.facing == FACING_UP])
        self._paint_fronts([one for one in seen if one.plane.facing == FACING_CAMERA])
        for one in seen:
            if one.plane.facing in (FACING_LEFT, FACING_RIGHT):
                self._paint_side(one)
        classes, objects, facing = zip(*self.surfaces, strict=True)
        surfaces = Surfaces(np.array(classes, np.uint8), np.array(objects, np.int32), np.array(facing, np.uint8))
        return self._mapped(surfaces)

    def _darken(self, shadows: list[Seen]) -> None:
        """Ground in shadow becomes its surface's dark part."""
        for shadow in shadows:
            self._draw(shadow, 0)
        keys, stencil = self.keys[self.ground[0]], self.stencil[self.ground[0]]
        np.copyto(keys, keys & -PARTS | DARK, where=stencil < _EMPTY)
        self.stencil.fill(_EMPTY)

    def _paint_fronts(self, fronts: list[Seen]) -> None:
        """Each is equally far everywhere: the nearer are drawn over the farther."""
        for front in fronts:
            self._draw(front, _key(front.plane.z))
        np.minimum(self.keys, self.stencil, out=self.keys)
        self.stencil.fill(_EMPTY)

    def _paint_side(self, side: Seen) -> None:
        """The depth of a side differs from column to column."""
        self._draw(side, 0)
        left, top, right, bottom = side.bounds
        rows, cols = slice(max(0, int(top)), int(bottom) + 2), slice(max(0, int(left)), int(right) + 2)
        keys, stencil = self.keys[rows, cols], self.stencil[rows, cols]
        aside = np.maximum(np.abs(self.cols[:, cols]), np.float32(0.01))
        depth = np.float32(self.view.focal * abs(side.plane.x)) / aside
        depth = np.minimum(np.maximum(depth, np.float32(side.near)), np.float32(side.far))
        np.minimum(keys, stencil + _keys(depth), out=keys)
        stencil.fill(_EMPTY)

    def _draw(self, seen: Seen, key: int) -> None:
        """Put the codes with `key` on the stencil, to be emptied after use."""
        for code, outlines in seen.layers:
            cv2.fillPoly(self.stencil, outlines, key + code, cv2.LINE_8, SHIFT)

    def _mapped(self, surfaces: Surfaces) -> Scene:
        """The maps of what is seen."""
        depth = (self.keys >> _BITS).astype(np.float32) * np.float32(_STEP)
        codes = (self.keys & (_CODES - 1)).astype(np.intp)
        scale = depth * np.float32(1 / self.view.focal)
        across, height = self.cols * scale, np.float32(self.view.eye) - self.rows * scale
        u = _blend(across, depth, surfaces.facing >= FACING_LEFT, codes)
        v = _blend(height, depth, surfaces.on_ground, codes)
        self._add_patterns(codes, u, v)
        return Scene(self.view, codes, u, v, depth, surfaces)

    def _add_patterns(self, codes: npt.NDArray[np.intp], u: Floats, v: Floats) -> None:
        """Put the cells of the surfaces' tiles into the codes."""
        patterns = np.array(self.patterns, np.float32)
        table = np.zeros((3, len(patterns), PARTS), np.float32)  # tile, cells per metre across and up
        table[0, :, [BODY, BASE]] = patterns[:, :2].T
        table[1:] = CELLS / patterns[:, 2:].T[..., None]
        table[1, :, BASE] /= 2
        tiled = np.flatnonzero((table[0] > 0).take(codes))
        own = codes.take(tiled)
        tile, across, up = table.reshape(3, -1).take(own, axis=1)
        across *= u.take(tiled)
        up *= v.take(tiled)
        row, column = (cell.astype(np.int32) & (CELLS - 1) for cell in (up, across))
        own += tiles().take((tile.astype(np.int32) * CELLS + row) * CELLS + column)
        codes.put(tiled, own)


def _blend(one: Floats, other: Floats, chosen: npt.NDArray[np.bool_], codes: npt.NDArray[np.intp]) -> Floats:
    """The other map where the pixel's surface is chosen."""
    np.copyto(one, other, where=chosen.repeat(PARTS).take(codes))
    return one


def _key(depth: float) -> int:
    return int(depth / _STEP) << _BITS


def _keys(depth: Floats) -> Ints:
    """Depths in metres as the upper bits of keys."""
    keys: Ints = (depth * np.float32(1 / _STEP)).astype(np.int32) << _BITS
    return keys
