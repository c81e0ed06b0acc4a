"""How a scene looks: materials, light and lens turn its maps into RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssrseg.demo import lens
from ssrseg.demo.canvas import PARTS, Scene
from ssrseg.demo.materials import CAMERA_MATERIALS, GAME_MATERIALS, Palette, palette
from ssrseg.demo.scenes import BUILDING, SKY
from ssrseg.demo.shapes import DARK, GLASS, LAMP, Floats
from ssrseg.demo.textures import TILE, textures


@dataclass(frozen=True)
class Light:
    """What shines on a scene."""

    strength: tuple[float, float, float, float]
    """On surfaces that face up, the camera, left, right."""
    color: tuple[float, float, float]
    haze: tuple[float, float, float]
    """Colour of far air and of the sky at the horizon."""
    sight: float
    """Metres after which 63% of the light is haze."""
    shade_from: float | None = None
    """The ground on this side of world x lies in the shade of houses; with `shade_sign`, which side."""
    shade_sign: float = 1.0
    lit: float = 0.0
    """Chance of a lit window, and strength of all lamps."""
    headlights: float = 0.0


def noon(rng: np.random.Generator) -> Light:
    """The game's only light: a high sun in clean air."""
    return Light((1.0, 0.86, 0.78, 0.95), (1.03, 1.0, 0.96), (0.8, 0.88, 0.97), sight=600)


def weather(rng: np.random.Generator) -> Light:
    """One of the camera's days: overcast, low sun, fog, rain, dusk or night."""
    return DAYS[int(rng.choice(len(DAYS), p=(0.36, 0.36, 0.07, 0.08, 0.08, 0.05)))](rng)


def _overcast(rng: np.random.Generator) -> Light:
    return Light((0.95, 0.85, 0.82, 0.85), (0.98, 1.0, 1.02), (0.8, 0.84, 0.88), float(rng.uniform(150, 400)))


def _low_sun(rng: np.random.Generator) -> Light:
    side, sun = float(rng.choice((-1, 1))), 1.25
    strength = (1.05, 0.82, sun if side > 0 else 0.65, 0.65 if side > 0 else sun)
    return Light(strength, (1.1, 1.0, 0.86), (0.9, 0.88, 0.84), 300, float(rng.uniform(-4, 4)), side)


def _fog(rng: np.random.Generator) -> Light:
    return Light((0.85, 0.8, 0.8, 0.8), (1.0, 1.0, 1.0), (0.74, 0.76, 0.78), float(rng.uniform(25, 60)))


def _rain(rng: np.random.Generator) -> Light:
    return Light((0.65, 0.65, 0.65, 0.65), (0.94, 1.0, 1.06), (0.6, 0.64, 0.68), float(rng.uniform(80, 160)), lit=0.15)


def _dusk(rng: np.random.Generator) -> Light:
    strength = (0.6, 0.52, 0.62, 0.5)
    return Light(strength, (1.15, 0.92, 0.95), (0.75, 0.52, 0.45), 200, lit=0.3, headlights=0.25)


def _night(rng: np.random.Generator) -> Light:
    strength = (0.32, 0.3, 0.3, 0.3)
    return Light(strength, (1.05, 0.95, 0.9), (0.1, 0.11, 0.16), 120, lit=0.4, headlights=0.7)


DAYS = (_overcast, _low_sun, _fog, _rain, _dusk, _night)


@dataclass(frozen=True)
class Look:
    """A domain's appearance."""

    palette: Palette
    light: Callable[[np.random.Generator], Light]
    lens: Callable[[Floats, np.random.Generator], Floats]


GAME_LOOK = Look(palette(GAME_MATERIALS), noon, lens.virtual)
CAMERA_LOOK = Look(palette(CAMERA_MATERIALS), weather, lens.real)


def render(scene: Scene, look: Look, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The picture (H, W, 3) of a scene."""
    light = look.light(rng)
    return lens.develop(look.lens(_illuminate(scene, _albedo(scene, look.palette, rng), light, rng), rng))


def _albedo(scene: Scene, palette: Palette, rng: np.random.Generator) -> Floats:
    """Colours and textures without light, (H, W, 3)."""
    kinds, things = scene.surfaces.classes, scene.surfaces.objects
    per_thing = (int(things.max()) + 1, PARTS)
    first, second = rng.integers(palette.anchors.shape[2], size=(2, *per_thing))[:, things]
    mix = rng.random(per_thing, np.float32)[things, :, None] ** 2  # mostly near the first
    anchors, parts = palette.anchors[kinds], np.arange(PARTS)
    rows = np.arange(len(kinds))[:, None]
    colors = anchors[rows, parts, first] * (1 - mix) + anchors[rows, parts, second] * mix
    spread = rng.standard_normal((*per_thing, 2), np.float32)[things]  # brightness and warmth
    tint = spread[..., :1] + 0.4 * spread[..., 1:] * np.array([1, 0, -1], np.float32)
    colors += palette.spread[kinds][..., None] * tint
    albedo: Floats = colors.reshape(-1, 3)[scene.codes] * (1 + _grain(scene, palette)[..., None])
    return albedo


def _grain(scene: Scene, palette: Palette) -> Floats:
    """Relative brightness of the texture at each pixel, faded where a texel is smaller than a pixel."""
    texel = palette.texel[scene.surfaces.classes].reshape(-1)[scene.codes]
    texture = palette.texture[scene.surfaces.classes].reshape(-1).astype(np.intp)[scene.codes]
    down = (scene.v / texel).astype(np.int32) & (TILE - 1)
    across = (scene.u / texel).astype(np.int32) & (TILE - 1)
    contrast = palette.grain[scene.surfaces.classes].reshape(-1)[scene.codes]
    size = np.where(scene.codes < PARTS, np.float32(1), scene.view.focal * texel / scene.depth)
    grain: Floats = textures()[texture, down, across] * contrast * np.minimum(size, 1)
    return grain


def _illuminate(scene: Scene, albedo: Floats, light: Light, rng: np.random.Generator) -> Floats:
    """Light, shade, lamps and air over the colours; (H, W, 3) in about [0, 1]."""
    surfaces, sky = scene.surfaces, scene.codes < PARTS
    strength = np.repeat(np.asarray(light.strength, np.float32)[surfaces.facing], PARTS).reshape(-1, PARTS)
    ground = (surfaces.facing == 0) & (surfaces.classes != SKY)
    strength[ground, DARK] *= 0.45
    level = strength.reshape(-1)[scene.codes]
    if light.shade_from is not None:
        shaded = ground[scene.codes // PARTS] & ((scene.u - light.shade_from) * light.shade_sign > 0)
        level[shaded] *= 0.5
    if light.headlights:
        level += light.headlights * np.exp(-scene.depth / 12) * (np.abs(scene.u) < 8)
    image = albedo * level[..., None] * np.asarray(light.color, np.float32)
    if light.lit:
        _switch_on(scene, image, light.lit, rng)
    air = np.exp(-scene.depth / np.float32(light.sight))
    air[sky] = 1 - np.exp(-np.maximum(scene.v[sky], 0) / 0.35)
    haze = np.asarray(light.haze, np.float32)
    if light.strength[0] < 0.8:
        image[sky] = (haze * (0.7 + 0.5 * albedo[sky])) * (0.35 + 0.65 * min(1, light.strength[0] / 0.5))
    seen: Floats = haze + (image - haze) * air[..., None]
    return seen


def _switch_on(scene: Scene, image: Floats, lit: float, rng: np.random.Generator) -> None:
    """Lamps, and some windows cell by cell, shine by themselves."""
    part, surface = scene.codes % PARTS, scene.codes // PARTS
    image[part == LAMP] *= 1 + 6 * lit
    panes = (part == GLASS) & (scene.surfaces.classes[surface] == BUILDING)
    room = (
        (scene.u[panes] / 2.8).astype(np.int32) * 7 + (scene.v[panes] / 3.1).astype(np.int32) * 31 + surface[panes] * 13
    )
    on = rng.random(257) < lit
    image[panes] += on[room % 257][:, None] * np.array([0.75, 0.6, 0.35], np.float32)
