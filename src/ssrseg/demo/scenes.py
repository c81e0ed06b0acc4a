"""Procedural street scenes: what stands where, in metres, and what a camera in the street sees of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssrseg.demo import shapes, street_furniture
from ssrseg.demo.canvas import FACING_UP, PARTS, Canvas, Scene, View
from ssrseg.demo.shapes import BODY, DARK, MARK, SECOND, Sprite, Vehicle

CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
)
"""Name and colour of each class, by id. Fences include walls, signs lights, trucks buses, and riders their bicycles."""

ROAD, SIDEWALK, BUILDING, FENCE, POLE, SIGN, VEGETATION, SKY, PERSON, RIDER, CAR, TRUCK = range(len(CLASSES))

Range = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """How a domain's streets are built: ranges in metres, chances in [0, 1], mean counts per scene."""

    lanes: tuple[int, int]
    lane: Range
    sidewalk: Range
    storeys: Range
    """Height of buildings."""
    gap: float
    """Chance that a plot has no building."""
    grass: float
    fence: float
    """Chance of a fence or wall before an empty plot; a hedge otherwise."""
    persons: float
    riders: float
    cars: float
    trucks: float
    trees: float
    poles: float
    signs: float
    eye: Range
    view_angle: Range
    """Horizontal field of view, degrees."""


GAME = Layout(
    lanes=(2, 4), lane=(3.2, 4.0), sidewalk=(2.0, 4.5), storeys=(8, 30), gap=0.2, grass=0.3, fence=0.6,
    persons=5, riders=1.3, cars=6, trucks=1.4, trees=4, poles=5, signs=3.5, eye=(1.4, 1.9), view_angle=(55, 70),
)  # fmt: skip
CAMERA = Layout(
    lanes=(2, 2), lane=(2.7, 3.6), sidewalk=(1.5, 3.0), storeys=(6, 18), gap=0.35, grass=0.6, fence=0.7,
    persons=9, riders=2.6, cars=6, trucks=0.6, trees=9, poles=6, signs=4.5, eye=(1.1, 1.5), view_angle=(50, 65),
)  # fmt: skip


@dataclass(frozen=True)
class Street:
    """One street's cross-section: world x of its lines, metres; the camera stands at 0."""

    left: float
    right: float
    walk: float
    lane: float
    crossing: Range
    """Where a road crosses: z from and to."""


def draw_scene(layout: Layout, size: tuple[int, int], rng: np.random.Generator) -> Scene:
    """One street of `layout`, seen at `size` (height, width)."""
    canvas = Canvas(_view(layout, size, rng))
    canvas.surface(SKY, canvas.thing(), FACING_UP)
    street = _street(layout, rng)
    _pave(canvas, street, layout, rng)
    _backdrop(canvas, rng)
    for edge in (street.left - street.walk, street.right + street.walk):
        _plots(canvas, street, edge, layout, rng)
    _plant(canvas, street, layout, rng)
    _traffic(canvas, street, layout, rng)
    _people(canvas, street, layout, rng)
    return canvas.scene()


def _view(layout: Layout, size: tuple[int, int], rng: np.random.Generator) -> View:
    height, width = size
    focal = width / 2 / np.tan(np.radians(rng.uniform(*layout.view_angle)) / 2)
    return View(
        size=size,
        focal=float(focal),
        horizon=height * float(rng.uniform(0.38, 0.52)),
        vanish=width * float(rng.uniform(0.32, 0.68)),
        eye=float(rng.uniform(*layout.eye)),
    )


def _street(layout: Layout, rng: np.random.Generator) -> Street:
    lanes, lane = int(rng.integers(layout.lanes[0], layout.lanes[1] + 1)), float(rng.uniform(*layout.lane))
    ours = int(rng.integers(1, lanes)) + 0.5 + float(rng.uniform(-0.15, 0.15))
    start = float(rng.uniform(8, 60))
    width = float(rng.uniform(6, 12)) if rng.random() < 0.5 else 0.0
    left = -ours * lane
    return Street(left, left + lanes * lane, float(rng.uniform(*layout.sidewalk)), lane, (start, start + width))


def _pave(canvas: Canvas, street: Street, layout: Layout, rng: np.random.Generator) -> None:
    rows, x, z = canvas.ground
    road, walk = (canvas.surface(kind, canvas.thing(), FACING_UP) for kind in (ROAD, SIDEWALK))
    grass = canvas.surface(VEGETATION, canvas.thing(), FACING_UP)
    codes = np.full(x.shape, walk + BODY, np.int32)
    for sign, edge in ((-1, street.left), (1, street.right)):
        if rng.random() < layout.grass:
            inner = street.walk * float(rng.choice((0.75, 1.0)))
            codes[sign * (x - edge) > inner] = grass
        codes[np.abs(x - edge - sign * 0.12) < 0.14] = walk + SECOND
    codes[(x > street.left) & (x < street.right)] = road
    lines = np.arange(street.left + street.lane, street.right - 0.5, street.lane)
    dashed = np.mod(z + rng.uniform(0, 6), 6) < 3
    for line in lines:
        codes[(np.abs(x - np.float32(line)) < 0.09) & dashed] = road + MARK
    near, far = street.crossing
    codes[((z > near) & (z < far))[:, 0]] = road
    if rng.random() < 0.5:
        zebra = (z > near - 4) & (z < near - 1) & (x > street.left) & (x < street.right) & (np.mod(x, 1.0) < 0.5)
        codes[zebra] = road + MARK
    canvas.codes[rows], canvas.u[rows], canvas.v[rows], canvas.depth[rows] = codes, x, z, z


def _backdrop(canvas: Canvas, rng: np.random.Generator) -> None:
    """What closes the view far ahead."""
    for _ in range(int(rng.integers(3, 8))):
        height, x = float(rng.uniform(5, 22)), float(rng.uniform(-60, 60))
        z, width = float(rng.uniform(95, 140)), float(rng.uniform(12, 40))
        if rng.random() < 0.4:
            canvas.front(VEGETATION, canvas.thing(), street_furniture.hedge(rng, height / 2), x, z, width, height / 2)
        else:
            canvas.front(BUILDING, canvas.thing(), street_furniture.facade(rng, height), x, z, width, height)


def _plots(canvas: Canvas, street: Street, edge: float, layout: Layout, rng: np.random.Generator) -> None:
    """Buildings, fences and hedges along one side."""
    z, outwards = float(rng.uniform(-6, 2)), -1 if edge < 0 else 1
    while z < 90:
        end = z + float(rng.uniform(8, 22))
        if z < street.crossing[1] and end > street.crossing[0] and street.crossing[1] > street.crossing[0]:
            if z >= street.crossing[0] - 3:
                z = street.crossing[1]
                continue
            end = street.crossing[0]
        if rng.random() < layout.gap:
            _enclose(canvas, edge, z, end, layout, rng)
        else:
            _build(canvas, edge + outwards * float(rng.choice((0, 0, 3))), z, end, layout, rng)
        z = end + float(rng.choice((0, 0, 2)))


def _build(canvas: Canvas, x: float, near: float, far: float, layout: Layout, rng: np.random.Generator) -> None:
    height, deep = float(rng.uniform(*layout.storeys)), 12.0
    shape, thing = street_furniture.facade(rng, height), canvas.thing()
    canvas.side(BUILDING, thing, shape, x, near, far, height)
    if near > 1:
        canvas.front(BUILDING, thing, shape, x + (deep if x > 0 else -deep) / 2, near, deep, height)


def _enclose(canvas: Canvas, x: float, near: float, far: float, layout: Layout, rng: np.random.Generator) -> None:
    height = float(rng.uniform(1.0, 2.0))
    if rng.random() < layout.fence:
        shape = (street_furniture.wall if rng.random() < 0.5 else street_furniture.railing)(rng, height)
        canvas.side(FENCE, canvas.thing(), shape, x, near, far, height)
    else:
        canvas.side(VEGETATION, canvas.thing(), street_furniture.hedge(rng, height), x, near, far, height)
    if near > 2:
        beyond = x + (4.0 if x > 0 else -4.0)
        _upright(canvas, VEGETATION, street_furniture.tree(rng), beyond, (near + far) / 2)


def _upright(canvas: Canvas, kind: int, sprite: Sprite, x: float, z: float, base: float = 0.0) -> None:
    canvas.front(kind, canvas.thing(), sprite.parts, x, z, sprite.width, sprite.height, base)


def _kerb(street: Street, rng: np.random.Generator, share: float) -> float:
    """World x on one of the sidewalks: `share` of its width from the road."""
    return street.left - share * street.walk if rng.random() < 0.5 else street.right + share * street.walk


def _plant(canvas: Canvas, street: Street, layout: Layout, rng: np.random.Generator) -> None:
    for _ in range(rng.poisson(layout.trees)):
        sprite = street_furniture.tree(rng) if rng.random() < 0.75 else street_furniture.bush(rng)
        _upright(canvas, VEGETATION, sprite, _kerb(street, rng, float(rng.uniform(0.7, 1.6))), _ahead(rng, 5, 70))
    for _ in range(rng.poisson(layout.poles)):
        _upright(canvas, POLE, street_furniture.lamp_post(rng), _kerb(street, rng, 0.2), _ahead(rng, 4, 50))
    for _ in range(rng.poisson(layout.signs)):
        x, z, base = _kerb(street, rng, 0.22), _ahead(rng, 4, 30), float(rng.uniform(1.9, 2.6))
        board = street_furniture.sign(rng) if rng.random() < 0.6 else street_furniture.traffic_light(rng)
        _upright(canvas, POLE, street_furniture.sign_post(base + 0.2), x, z)
        _upright(canvas, SIGN, board, x, z - 0.05, base)


def _ahead(rng: np.random.Generator, near: float, far: float) -> float:
    """A distance, denser near the camera: uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _traffic(canvas: Canvas, street: Street, layout: Layout, rng: np.random.Generator) -> None:
    for kind, count in ((CAR, layout.cars), (TRUCK, layout.trucks)):
        for _ in range(rng.poisson(count)):
            if kind == CAR:
                vehicle = shapes.car(rng)
            else:
                vehicle = shapes.truck(rng) if rng.random() < 0.6 else shapes.bus(rng)
            _drive(canvas, kind, vehicle, street, rng)


def _drive(canvas: Canvas, kind: int, vehicle: Vehicle, street: Street, rng: np.random.Generator) -> None:
    """A vehicle in a lane, at the kerb, or across the street."""
    half, z = vehicle.width / 2, _ahead(rng, 5 if kind == CAR else 8, 60)
    manner = rng.random()
    if manner < 0.12:
        x = float(rng.uniform(street.left, street.right))
        _shade(canvas, x, z, vehicle.length, vehicle.width)
        canvas.front(kind, canvas.thing(), _turned(vehicle), x, z, vehicle.length, vehicle.height)
        return
    if manner < 0.6:
        x = street.left + half + 0.2 if rng.random() < 0.5 else street.right - half - 0.2
    else:
        lanes = max(1, round((street.right - street.left) / street.lane))
        x = street.left + (int(rng.integers(lanes)) + 0.5) * street.lane
        z = max(z, 10.0)
    _shade(canvas, x, z, vehicle.width, vehicle.length)
    thing, inner = canvas.thing(), x - half if x > 0 else x + half
    canvas.front(kind, thing, vehicle.end, x, z, vehicle.width, vehicle.height)
    if inner * x > 0:
        canvas.side(kind, thing, vehicle.side, inner, z, z + vehicle.length, vehicle.height)


def _turned(vehicle: Vehicle) -> shapes.Shape:
    """A vehicle's side as an upright front."""
    return lambda u, v: vehicle.side(u + np.float32(vehicle.length / 2), v)


def _shade(canvas: Canvas, x: float, z: float, width: float, length: float) -> None:
    """The dark ground below a thing, wherever ground is still seen."""
    rows, across, ahead = canvas.ground
    under = np.flatnonzero((ahead[:, 0] > z - 0.3) & (ahead[:, 0] < z + length))
    if len(under) == 0:
        return
    part = slice(under[0], under[-1] + 1)
    below = np.abs(across[part] - np.float32(x)) < width / 2 + 0.15
    codes, depth = canvas.codes[rows][part], canvas.depth[rows][part]
    below &= depth == ahead[part]
    codes[below] = codes[below] // PARTS * PARTS + DARK


def _people(canvas: Canvas, street: Street, layout: Layout, rng: np.random.Generator) -> None:
    for _ in range(rng.poisson(layout.persons)):
        crosses = rng.random() < 0.2
        x = float(rng.uniform(street.left, street.right)) if crosses else _kerb(street, rng, float(rng.uniform(0.2, 1)))
        _upright(canvas, PERSON, shapes.person(rng), x, _ahead(rng, 4, 30))
    for _ in range(rng.poisson(layout.riders)):
        sprite = shapes.rider_along(rng) if rng.random() < 0.6 else shapes.rider_across(rng)
        x = float(rng.uniform(street.left, street.right)) if rng.random() < 0.5 else _kerb(street, rng, -0.3)
        _upright(canvas, RIDER, sprite, x, _ahead(rng, 4, 25))
