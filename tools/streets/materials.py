"""What the demo's things are made of: colours and textures, one table for each domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ssrseg.demo.dataset import STREETS
from streets.canvas import FAR, PARTS
from streets.scenes import (
    BUILDING,
    CAR,
    FENCE,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    TRUCK,
    VEGETATION,
)
from streets.shapes import BODY, DARK, GLASS, LAMP, MARK, SECOND, SKIN, Floats
from streets.textures import BRICKS, CLOUDY, LEAVES, PLAIN, SPECKLE, STREAKS, TILE, TILES


@dataclass(frozen=True)
class Material:
    """Colours in 0..255 that objects mix in pairs, their spread, and a texture."""

    colors: str
    """Hexadecimal RGB, separated by spaces."""
    spread: float = 10
    texture: int = PLAIN
    grain: float = 0.0
    """Contrast of the texture, relative to the colour."""
    texel: float = 0.05
    """Metres (the sky: radians)."""


Key = tuple[int, int]

GAME_MATERIALS: dict[Key, Material] = {
    (ROAD, BODY): Material("4c4f57 53565e 474a52", 4, SPECKLE, 0.06, 0.12),
    (ROAD, MARK): Material("e8e8e4", 4),
    (SIDEWALK, BODY): Material("b9b2a4 c4bdae aea798", 5, TILES, 0.14, 0.03),
    (SIDEWALK, SECOND): Material("d4d0c6", 4),
    (BUILDING, BODY): Material("d9b98c c98f6a e2cfa6 b5715a cfc3a8 a8643f", 10, BRICKS, 0.08, 0.06),
    (BUILDING, SECOND): Material("efe6d2 d8cbb0", 8),
    (BUILDING, GLASS): Material("6f9fc4 5b88b0 88b4d2", 8),
    (FENCE, BODY): Material("8a5a3a 9c6b46 7a4e32", 8, STREAKS, 0.12, 0.03),
    (FENCE, SECOND): Material("a97d58", 8),
    (FENCE, DARK): Material("4a3a2e", 5),
    (POLE, BODY): Material("8d979c 7d878c", 5),
    (POLE, SECOND): Material("e6e6d2", 5),
    (SIGN, BODY): Material("d2262c 1f58c4 d2262c", 6),
    (SIGN, MARK): Material("f4f4f0 f4f4f0 f2cf2e", 6),
    (SIGN, DARK): Material("23282a", 4),
    (VEGETATION, BODY): Material("4f9a2e 5fae38 3f8a2a 6cb544", 8, LEAVES, 0.22, 0.05),
    (VEGETATION, SECOND): Material("6b4a2c", 6, STREAKS, 0.2, 0.03),
    (SKY, BODY): Material("4d94e0 5ba2ea", 6, CLOUDY, 0.12, 0.012),
    (PERSON, BODY): Material("e04848 3c78e0 f0c030 40b060 e8e8e8 b050c0", 12),
    (PERSON, SECOND): Material("2f3f66 5a5a62 806040", 8),
    (RIDER, BODY): Material("f07820 30b0c0 e03070 a0d030", 12),
    (RIDER, SECOND): Material("26262c 304a80", 8),
    (CAR, BODY): Material("d02828 2850c8 e8b820 30a050 f0f0f0 d86820", 10),
    (TRUCK, BODY): Material("2860b0 c83030 e0a020", 10),
    (TRUCK, SECOND): Material("f0ece0 d8dce0", 6),
    (CAR, LAMP): Material("d81818 e02020", 6),
    (TRUCK, LAMP): Material("d81818 e02020", 6),
}
CAMERA_MATERIALS: dict[Key, Material] = {
    (ROAD, BODY): Material("636262 5e5e5f 525357 696868", 7, CLOUDY, 0.15, 0.09),
    (ROAD, MARK): Material("d6d4c9 c8c6bc", 10, CLOUDY, 0.35, 0.05),
    (SIDEWALK, BODY): Material("ac9f91 b4aea4 afa08f a29f97", 9, BRICKS, 0.18, 0.02),
    (SIDEWALK, SECOND): Material("bab6ae b0ada6", 8, SPECKLE, 0.15, 0.05),
    (BUILDING, BODY): Material("baa68b be9c81 b0a086 bc947f b29a82 8c6a56", 14, CLOUDY, 0.16, 0.08),
    (BUILDING, SECOND): Material("bfb8a8 c8bea9 aea698", 12, SPECKLE, 0.12, 0.1),
    (BUILDING, GLASS): Material("57748a 5a7690 5e778a 7594ad", 12, CLOUDY, 0.3, 0.1),
    (FENCE, BODY): Material("7a5e49 8e7058 724e37 937157", 12, CLOUDY, 0.25, 0.05),
    (FENCE, SECOND): Material("a08871 8e7661", 10),
    (FENCE, DARK): Material("4b453a 524a40 433b33", 8, LEAVES, 0.3, 0.05),
    (POLE, BODY): Material("747c7d 626a6b 808482 5c6666", 8, STREAKS, 0.2, 0.02),
    (POLE, SECOND): Material("c7c5b6 b9b8ab", 8),
    (SIGN, BODY): Material("c12e30 2655b2 bd3132", 12),
    (SIGN, MARK): Material("deddd7 d4d2ca d9bc3f", 12),
    (SIGN, DARK): Material("282b2b 30312f", 6),
    (VEGETATION, BODY): Material("4e822f 5e8f36 547f2e 588639 6a8731 748934", 12, LEAVES, 0.4, 0.07),
    (VEGETATION, SECOND): Material("5a4734 64503c 523f2d", 8, STREAKS, 0.35, 0.02),
    (SKY, BODY): Material("7ea7d3 90b5db 6ca0d8 7eade1", 8, CLOUDY, 0.1, 0.02),
    (PERSON, BODY): Material("8a4049 4b6292 be7e34 3d8576 b9b6b0 6e3e7a", 14, SPECKLE, 0.12, 0.08),
    (PERSON, SECOND): Material("2c364d 4a4c57 665340 283048", 10),
    (RIDER, BODY): Material("95713e 5d857d 873258 96ae58 be532f 469078", 14, SPECKLE, 0.12, 0.08),
    (RIDER, SECOND): Material("28282e 3a455e 2d2f3b", 10),
    (CAR, BODY): Material("802d30 445a98 c1ab61 7cb48b 929ab6 aa4a26", 12, CLOUDY, 0.12, 0.1),
    (TRUCK, BODY): Material("52709a 8a4652 b6762e 748eb0", 12, CLOUDY, 0.15, 0.1),
    (TRUCK, SECOND): Material("cccac2 b2b6bb dcd8cc a4aaae", 12, STREAKS, 0.15, 0.06),
    (CAR, LAMP): Material("c0221e dc7a70 cc2a22", 12),
    (TRUCK, LAMP): Material("c0221e dc7a70 cc2a22", 12),
}
_COMMON: dict[int, Material] = {
    BODY: Material("808080", 10),
    SECOND: Material("707070", 10),
    GLASS: Material("3c4c58 2c3640 5a6c78", 8),
    DARK: Material("1c1c20 26262a", 5),
    SKIN: Material("d8a884 a87854 6c4a34 e4bc9c 402a20", 8),
    LAMP: Material("e83028 f4f0d8 e83028 38d060", 10),
    MARK: Material("e0e0d8 d0c878", 8),
}
"""Parts that a domain's table does not name."""


@dataclass(frozen=True)
class Palette:
    """Materials as arrays, indexed by class and part."""

    anchors: Floats
    """(3, K, PARTS, A) in [0, 1]."""
    spread: Floats
    grain: Floats
    """(4, K, PARTS): first cell of the texture, texels per metre, contrast, contrast * metres per texel."""


def palette(materials: Mapping[Key, Material], anchors: int = 12) -> Palette:
    """The arrays of a domain's materials."""
    shape = len(STREETS.classes), PARTS
    colors, spread = np.zeros((3, *shape, anchors), np.float32), np.zeros(shape, np.float32)
    grain = np.zeros((4, *shape), np.float32)
    for kind in range(len(STREETS.classes)):
        for part, common in _COMMON.items():
            material = materials.get((kind, part), common)
            if part == DARK and kind in (ROAD, SIDEWALK, VEGETATION):
                material = materials[kind, BODY]  # ground below a thing: `looks` darkens it
            own = [[int(word[i : i + 2], 16) / 255 for i in (0, 2, 4)] for word in material.colors.split()]
            colors[:, kind, part] = np.resize(np.asarray(own, np.float32), (anchors, 3)).T
            spread[kind, part] = material.spread / 255
            texel = material.texel * (FAR if kind == SKY else 1)
            grain[:, kind, part] = material.texture * TILE**2, 1 / texel, material.grain, material.grain * texel
    return Palette(colors, spread, grain)
