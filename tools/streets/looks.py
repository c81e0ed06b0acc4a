"""How a scene looks: materials, light and lens turn its maps into RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streets import lens
from streets.canvas import PARTS, Scene, Surfaces
from streets.lens import Bytes
from streets.materials import CAMERA_MATERIALS, GAME_MATERIALS, Palette, palette
from streets.scenes import BUILDING
from streets.shapes import DARK, GLASS, LAMP, Floats
from streets.textures import TILE, textures


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
    image = colors.reshape(3, -1).take(scene.codes, axis=1)
    gain = _grain(scene, look.palette)
    _cast(gain, scene, light)
    image *= gain
    if light.lit:
        _switch_on(scene, image, light.lit, rng)
    _veil(image, scene, light)
    return look.lens(image, rng)


def _colors(surfaces: Surfaces, palette: Palette, rng: np.random.Generator) -> Floats:
    """What each part of each surface is painted, (3, S, PARTS); the surfaces of one thing are alike."""
    kinds, things = surfaces.classes.astype(np.intp), surfaces.objects
    per_thing = (int(things.max()) + 1, PARTS)
    choices = palette.anchors.shape[-1]
    material = (kinds[:, None] * PARTS + np.arange(PARTS)) * choices
    first, second = rng.integers(choices, size=(2, *per_thing)).take(things, axis=1) + material
    anchors = palette.anchors.reshape(3, -1)
    colors: Floats = anchors.take(first, axis=1)
    mix = rng.random(per_thing, np.float32).take(things, axis=0) ** 2  # mostly near the first
    colors += (anchors.take(second, axis=1) - colors) * mix
    brightness, warmth = rng.standard_normal((2, *per_thing), np.float32).take(things, axis=1)
    warmth *= 0.4
    spread = palette.spread.take(kinds, axis=0)
    colors += np.stack([brightness + warmth, brightness, brightness - warmth]) * spread
    return np.maximum(colors, 0, out=colors)


def _lit(colors: Floats, surfaces: Surfaces, light: Light) -> Floats:
    """The same under a light that falls on each side as its strength says; lamps shine, the sky has its own light."""
    tint, haze = (np.array(color, np.float32)[:, None, None] for color in (light.color, light.haze))
    lit = colors * np.array(light.strength, np.float32).take(surfaces.facing)[:, None] * tint
    lit[:, surfaces.on_ground, DARK] *= 0.45
    lit[:, :, LAMP] *= 1 + 6 * light.lit
    if light.strength[0] < 0.8:
        cloud = 0.35 + 0.65 * min(1, light.strength[0] / 0.5)
        lit[:, :1] = haze * (0.7 + 0.5 * colors[:, :1]) * cloud
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
    grain: Floats = textures().take(cell)
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
