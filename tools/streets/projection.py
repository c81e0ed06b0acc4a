"""A pinhole camera in a street, and what outlines on upright or level planes look like to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, compress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streets.shapes import Floats, Shape

FACING_UP, FACING_CAMERA, FACING_LEFT, FACING_RIGHT = range(4)
"""Which way a surface looks: light falls on it accordingly."""

_AXES = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0]], np.float32)
"""What a step in u adds to world x and to z, and a step in v to height and to z; by facing."""

SHIFT = 4
"""Outlines are in units of 2 ** -SHIFT pixels from the centre of the first pixel, as OpenCV has them."""

Ints = npt.NDArray[np.int32]


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
    """A shape on a plane; its parts have the codes from `code` on."""

    plane: Plane
    shape: Shape
    code: int


class Seen(NamedTuple):
    """What the camera sees of a cutout."""

    plane: Plane
    layers: list[tuple[int, list[Ints]]]
    """Codes, each with its outlines: corners (n, 2), x and y."""
    near: float
    far: float
    """z of its nearest and its farthest corner."""
    bounds: list[float]
    """Its first column and row, and its last ones; pixels."""


def project(cutouts: list[Cutout], view: View) -> Iterator[Seen]:
    """What is seen of those cutouts that reach into the picture, the farthest first."""
    outlines = [points for _, shape, _ in cutouts for _, own in shape for points in own]
    sizes = np.array([len(points) for points in outlines]) // 2
    starts = sizes.cumsum() - sizes
    counts = np.array([sum(len(own) for _, own in shape) for _, shape, _ in cutouts])
    first = counts.cumsum() - counts  # number of each cutout's first outline
    planes = np.array([plane for plane, _, _ in cutouts], np.float32).repeat(np.add.reduceat(sizes, first), axis=0)
    screen, z = _on_screen(np.array(list(chain.from_iterable(outlines)), np.float32), planes, view)
    low, high = np.minimum.reduceat(screen, starts, axis=1), np.maximum.reduceat(screen, starts, axis=1)
    parts = _fixed_point(screen, ((low + high) * np.float32(0.5)).repeat(sizes, axis=1), starts)
    near, far = np.minimum.reduceat(z, starts[first]), np.maximum.reduceat(z, starts[first])
    bounds = np.concatenate([np.minimum.reduceat(low, first, axis=1), np.maximum.reduceat(high, first, axis=1)])
    inside = (bounds[:2] < np.array([view.size[::-1]]).T).all(0) & (bounds[2:] > -1).all(0)
    order = near.argsort(kind="stable")[::-1]
    table = zip(order.tolist(), *(values[order].tolist() for values in (first, near, far, bounds.T)), strict=True)
    for number, start, nearest, farthest, limits in compress(table, inside[order].tolist()):
        plane, shape, code = cutouts[number]
        layers = []
        for part, own in shape:
            layers.append((code + part, parts[start : start + len(own)]))
            start += len(own)
        yield Seen(plane, layers, nearest, farthest, limits)


def _on_screen(corners: Floats, planes: Floats, view: View) -> tuple[Floats, Floats]:
    """Columns and rows of corners on planes (n, 3), pixels (2, n), and their z (n,)."""
    (u, v), (facing, x, z) = corners.reshape(-1, 2).T, planes.T
    across, along, up, ahead = _AXES.take(facing.astype(np.intp), axis=1)
    z = z + along * u + ahead * v
    screen = np.stack([x + across * u, np.float32(view.eye) - up * v])
    screen *= np.float32(view.focal) / z
    screen += np.array([[view.vanish - 0.5], [view.horizon - 0.5]], np.float32)
    return screen, z


def _fixed_point(screen: Floats, centres: Floats, starts: npt.NDArray[np.int64]) -> list[Ints]:
    """Outlines as OpenCV fills them. It fills the border's pixels, too: half a pixel further in, sizes stay true."""
    inwards = np.minimum(np.maximum(centres - screen, np.float32(-0.5)), np.float32(0.5))
    fixed = np.rint((screen + inwards) * (1 << SHIFT)).T.astype(np.int32, order="C")
    ends = [*starts[1:].tolist(), len(fixed)]
    return [fixed[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]
