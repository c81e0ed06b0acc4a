"""Parts that repeat across a wall: windows, doors, pillars and bars, from tiles."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streets.shapes import BASE, BODY, DARK, GLASS, SECOND

CELLS = 32
"""Cells on a tile's side; a power of two."""

VARIANTS = 64
"""Tiles of each kind."""

_NONE, STOREYS, DOORS, SHOPS, PILLARS, BARS = (VARIANTS * kind for kind in range(6))
"""Number of the first tile of each kind."""


class Pattern(NamedTuple):
    """Tiles in place of a surface's main part and of its ground floor."""

    body: int = _NONE
    base: int = _NONE
    pitch: float = 1.0
    """Width of a tile of the main part, metres; the ground floor's are twice as wide."""
    rise: float = 1.0
    """Height of a tile, metres."""


PLAIN = Pattern()
"""Adds nothing."""


@cache
def tiles() -> npt.NDArray[np.int32]:
    """What each cell of each tile adds to the part it lies on, (6 * VARIANTS, CELLS, CELLS), row 0 lowest."""
    rng = np.random.default_rng(5)
    parts = np.full((6, VARIANTS, CELLS, CELLS), BODY, np.int32)
    for number in range(VARIANTS):
        _storey(parts[1, number], rng)
        parts[2, number, : int(rng.integers(22, 28)), : int(rng.integers(6, 14))] = GLASS
        parts[3, number, int(rng.integers(3, 7)) : int(rng.integers(22, 28)), int(rng.integers(2, 8)) :] = GLASS
        parts[4, number, :, : int(rng.integers(2, 5))] = SECOND
        parts[5, number, :, np.arange(CELLS) % 4 > 1] = DARK  # eight bars and the gaps between them
    parts[2:4] -= BASE - BODY
    return parts.reshape(-1, CELLS, CELLS)


def _storey(tile: npt.NDArray[np.int32], rng: np.random.Generator) -> None:
    """A window over its sill, in one pane or two."""
    low, high, wide = (int(rng.integers(*bounds)) for bounds in ((6, 12), (22, 29), (11, 23)))
    tile[low - 2 : low, : wide + 2] = SECOND
    tile[low:high, :wide] = GLASS
    if rng.random() < 0.5:
        tile[low:high, wide // 2 : wide // 2 + 1] = SECOND
