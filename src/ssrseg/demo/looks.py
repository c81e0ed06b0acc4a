"""How a scene looks: materials, light and lens turn its maps into RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssrseg.demo import lens
from ssrseg.demo.canvas import PARTS, Scene, Surfaces
from ssrseg.demo.lens import Bytes
from ssrseg.demo.materials import CAMERA_MATERIALS, GAME_MATERIALS, Palette, palette
from ssrseg.demo.scenes import BUILDING
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
    lens: Callable[[Floats, np.random.Generator], Bytes]


GAME_LOOK = Look(palette(GAME_MATERIALS), noon, lens.virtual)
CAMERA_LOOK = Look(palette(CAMERA_MATERIALS), weather, lens.real)


def render(scene: Scene, look: Look, rng: np.random.Generator) -> Bytes:
    """The picture (H, W, 3) of a scene."""
    light = look.light(rng)
    colors = _lit(_colors(scene.surfaces, look.palette, rng), scene.surfaces, light)
    image = colors.reshape(-1, 3).T.take(scene.codes, axis=1)  # (3, H, W): maps multiply it sooner than (H, W, 3)
    gain = _grain(scene, look.palette)
    _cast(gain, scene, light)
    image *= gain
    if light.lit:
        _switch_on(scene, image, light.lit, rng)
    _veil(image, scene, light)
    return look.lens(image, rng)


def _colors(surfaces: Surfaces, palette: Palette, rng: np.random.Generator) -> Floats:
    """What each part of each surface is painted, (S, PARTS, 3) in [0, 1]; the surfaces of one thing are alike."""
    kinds, things = surfaces.classes, surfaces.objects
    per_thing = (int(things.max()) + 1, PARTS)
    first, second = rng.integers(palette.anchors.shape[2], size=(2, *per_thing))[:, things]
    mix = rng.random(per_thing, np.float32)[things, :, None] ** 2  # mostly near the first
    anchors, parts, rows = palette.anchors[kinds], np.arange(PARTS), np.arange(len(kinds))[:, None]
    colors = anchors[rows, parts, first] * (1 - mix) + anchors[rows, parts, second] * mix
    spread = rng.standard_normal((*per_thing, 2), np.float32)[things]  # brightness and warmth
    tint = spread[..., :1] + 0.4 * spread[..., 1:] * np.array([1, 0, -1], np.float32)
    colors += palette.spread[kinds][..., None] * tint
    return colors


def _lit(colors: Floats, surfaces: Surfaces, light: Light) -> Floats:
    """The same under a light that falls on each side as its strength says; lamps shine, the sky has its own light."""
    lit = colors * np.asarray(light.strength, np.float32)[surfaces.facing, None, None]
    lit *= np.asarray(light.color, np.float32)
    lit[surfaces.on_ground, DARK] *= 0.45
    lit[:, LAMP] *= 1 + 6 * light.lit
    if light.strength[0] < 0.8:
        cloud = 0.35 + 0.65 * min(1, light.strength[0] / 0.5)
        lit[0] = np.asarray(light.haze, np.float32) * (0.7 + 0.5 * colors[0]) * cloud
    return lit


def _grain(scene: Scene, palette: Palette) -> Floats:
    """1 + the texture at each pixel, faded where a texel is smaller than a pixel."""
    table = palette.grain[:, scene.surfaces.classes].reshape(4, -1)
    first, per_metre, contrast, fading = table.take(scene.codes, axis=1)
    column, cell = ((at * per_metre).astype(np.int32) for at in (scene.u, scene.v))
    cell &= TILE - 1
    cell *= TILE
    cell += first.astype(np.int32)
    column &= TILE - 1
    cell += column
    fading *= np.float32(scene.view.focal)
    fading /= scene.depth
    grain = textures().take(cell)
    grain *= np.minimum(contrast, fading, out=fading)
    grain += 1
    return grain


def _cast(gain: Floats, scene: Scene, light: Light) -> None:
    """The shade of houses on the ground, and headlights before the car, of which the light's strength knows nothing."""
    if light.shade_from is not None:
        shaded = (scene.u - np.float32(light.shade_from)) * light.shade_sign > 0
        shaded &= scene.surfaces.on_ground.repeat(PARTS).take(scene.codes)
        np.multiply(gain, np.float32(0.5), out=gain, where=shaded)
    if light.headlights:
        beam = np.exp(scene.depth * np.float32(-1 / 12)) * (np.abs(scene.u) < 8)
        beam *= np.float32(light.headlights / light.strength[1])
        gain *= beam + 1


def _switch_on(scene: Scene, image: Floats, lit: float, rng: np.random.Generator) -> None:
    """Some windows, cell by cell, shine by themselves."""
    glass = (scene.surfaces.classes == BUILDING)[:, None] & (np.arange(PARTS) == GLASS)
    panes = np.flatnonzero(glass.take(scene.codes))
    across, up, surface = scene.u.take(panes) / 2.8, scene.v.take(panes) / 3.1, scene.codes.take(panes) // PARTS
    room = across.astype(np.int32) * 7 + up.astype(np.int32) * 31 + surface * 13
    glow = (rng.random(257) < lit)[room % 257]
    image.reshape(3, -1)[:, panes] += glow * np.array([[0.75], [0.6], [0.35]], np.float32)


def _veil(image: Floats, scene: Scene, light: Light) -> None:
    """Air before what is far, and before the sky the lower the more."""
    rows = np.arange(len(scene.depth), dtype=np.float32)[:, None]
    altitude = np.maximum(scene.view.horizon - rows, 0) / np.float32(scene.view.focal)
    clear = np.exp(scene.depth * np.float32(-1 / light.sight))
    np.copyto(clear, 1 - np.exp(altitude / -0.35), where=scene.codes < PARTS)
    haze = np.asarray(light.haze, np.float32)[:, None, None]
    image -= haze
    image *= clear
    image += haze
