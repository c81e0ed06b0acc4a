"""Procedural street scenes: what stands where, in metres, and what a camera in the street sees of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssrseg.demo.dataset import STREETS
from streets import shapes, street_furniture
from streets.canvas import Canvas, Scene
from streets.dice import Dice, Range
from streets.projection import FACING_UP, View
from streets.shapes import MARK, SECOND, Vehicle

ROAD, SIDEWALK, BUILDING, FENCE, POLE, SIGN, VEGETATION, SKY, PERSON, RIDER, CAR, TRUCK = range(len(STREETS.classes))
"""The ids of the classes."""

REACH, CELL = 40.0, 0.04
"""Cross-sections of streets reach this far to both sides, in cells of this width; metres."""

NEAREST = 0.5
"""What stands along the street is cut off nearer than this, metres."""


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

    def kerb(self, share: float, dice: Dice) -> float:
        """World x on one of the sidewalks: `share` of its width from the road."""
        return self.left - share * self.walk if dice.chance(0.5) else self.right + share * self.walk


def draw_scene(layout: Layout, size: tuple[int, int], rng: np.random.Generator) -> Scene:
    """One street of `layout`, seen at `size` (height, width)."""
    dice = Dice.of(rng)
    canvas = Canvas(_view(layout, size, dice), sky=SKY)
    street = _street(layout, dice)
    _pave(canvas, street, layout, dice)
    _backdrop(canvas, dice)
    for edge in (street.left - street.walk, street.right + street.walk):
        _plots(canvas, street, edge, layout, dice)
    _plant(canvas, street, layout, dice)
    _traffic(canvas, street, layout, dice)
    _people(canvas, street, layout, dice)
    return canvas.scene()


def _view(layout: Layout, size: tuple[int, int], dice: Dice) -> View:
    height, width = size
    return View(
        size=size,
        focal=width / 2 / math.tan(math.radians(dice.within(layout.view_angle)) / 2),
        horizon=height * dice.uniform(0.38, 0.52),
        vanish=width * dice.uniform(0.32, 0.68),
        eye=dice.within(layout.eye),
    )


def _street(layout: Layout, dice: Dice) -> Street:
    lanes, lane = dice.randint(*layout.lanes), dice.within(layout.lane)
    ours = dice.randrange(1, lanes) + 0.5 + dice.uniform(-0.15, 0.15)
    start, width = dice.uniform(8, 60), dice.uniform(6, 12) if dice.chance(0.5) else 0.0
    left = -ours * lane
    return Street(left, left + lanes * lane, dice.within(layout.sidewalk), lane, (start, start + width))


def _pave(canvas: Canvas, street: Street, layout: Layout, dice: Dice) -> None:
    """Every row of the ground shows one of four cross-sections: lines, gaps between them, a crossing, a zebra."""
    road, walk, grass = (canvas.surface(kind, canvas.thing(), FACING_UP) for kind in (ROAD, SIDEWALK, VEGETATION))
    across = np.arange(-REACH, REACH, CELL, dtype=np.float32)
    plain = np.full(across.shape, walk, np.int32)
    for sign, edge in ((-1, street.left), (1, street.right)):
        beyond = sign * (across - edge)
        if dice.chance(layout.grass):
            plain[beyond > street.walk * dice.choice((0.75, 1.0))] = grass
        plain[np.abs(beyond - 0.12) < 0.14] = walk + SECOND
    carriageway = (across > street.left) & (across < street.right)
    plain[carriageway] = road
    lined, zebra, crossing = plain.copy(), plain.copy(), np.full_like(plain, road)
    for lane in range(1, round((street.right - street.left) / street.lane)):
        lined[np.abs(across - street.left - lane * street.lane) < 0.09] = road + MARK
    zebra[carriageway & (across % 1 < 0.5)] = road + MARK

    _, x, z = canvas.ground
    near, far = street.crossing
    section = (np.mod(z + dice.uniform(0, 6), 6) < 3).astype(np.int32)
    section[(z > near) & (z < far)] = 3
    if dice.chance(0.5):
        section[(z > near - 4) & (z < near - 1)] = 2
    cells = x.clip(-REACH, REACH - CELL)
    cells += REACH
    cells *= 1 / CELL
    column = cells.astype(np.int32)
    column += section * len(across)
    canvas.pave(np.concatenate([plain, lined, zebra, crossing]).take(column))


def _backdrop(canvas: Canvas, dice: Dice) -> None:
    """What closes the view far ahead."""
    for _ in range(dice.randint(3, 7)):
        height, x, z, width = dice.uniform(5, 22), dice.uniform(-60, 60), dice.uniform(80, 130), dice.uniform(12, 40)
        if dice.chance(0.4):
            hedge = street_furniture.hedge(dice, height / 2, width)
            canvas.front(VEGETATION, canvas.thing(), hedge, x - width / 2, z)
        else:
            wall = street_furniture.facade(dice, height)
            canvas.front(BUILDING, canvas.thing(), wall.shape(width), x - width / 2, z, wall.pattern)


def _plots(canvas: Canvas, street: Street, edge: float, layout: Layout, dice: Dice) -> None:
    """Buildings, fences and hedges along one side."""
    z, outwards = dice.uniform(-6, 2), -1 if edge < 0 else 1
    near, far = street.crossing
    while z < 75:
        end = z + dice.uniform(8, 22)
        if near < far and z < far and end > near:
            if z >= near - 3:
                z = far
                continue
            end = near
        if end > NEAREST:
            if dice.chance(layout.gap):
                _enclose(canvas, edge, max(z, NEAREST), end, layout, dice)
            else:
                _build(canvas, edge + outwards * dice.choice((0, 0, 3)), max(z, NEAREST), end, layout, dice)
        z = end + dice.choice((0, 0, 2))


def _build(canvas: Canvas, x: float, near: float, far: float, layout: Layout, dice: Dice) -> None:
    height, deep = dice.within(layout.storeys), 12.0
    wall, thing = street_furniture.facade(dice, height), canvas.thing()
    canvas.side(BUILDING, thing, wall.shape(far - near), x, near, wall.pattern)
    if near > 1:
        canvas.front(BUILDING, thing, wall.shape(deep), x if x > 0 else x - deep, near, wall.pattern)


def _enclose(canvas: Canvas, x: float, near: float, far: float, layout: Layout, dice: Dice) -> None:
    height = dice.uniform(1.0, 2.0)
    if dice.chance(layout.fence):
        wall = (street_furniture.garden_wall if dice.chance(0.5) else street_furniture.railing)(dice, height)
        canvas.side(FENCE, canvas.thing(), wall.shape(far - near), x, near, wall.pattern)
    else:
        canvas.side(VEGETATION, canvas.thing(), street_furniture.hedge(dice, height, far - near), x, near)
    if near > 2:
        beyond = x + (4.0 if x > 0 else -4.0)
        canvas.front(VEGETATION, canvas.thing(), street_furniture.tree(dice), beyond, (near + far) / 2)


def _plant(canvas: Canvas, street: Street, layout: Layout, dice: Dice) -> None:
    """Trees, poles and signs on the sidewalks."""
    for _ in range(dice.count(layout.trees)):
        shape = street_furniture.tree(dice) if dice.chance(0.75) else street_furniture.bush(dice)
        canvas.front(VEGETATION, canvas.thing(), shape, street.kerb(dice.uniform(0.7, 1.6), dice), dice.ahead(5, 70))
    for _ in range(dice.count(layout.poles)):
        post = street_furniture.lamp_post(dice)
        canvas.front(POLE, canvas.thing(), post, street.kerb(0.2, dice), dice.ahead(4, 50))
    for _ in range(dice.count(layout.signs)):
        x, z, base = street.kerb(0.22, dice), dice.ahead(4, 30), dice.uniform(1.9, 2.6)
        board = (street_furniture.sign if dice.chance(0.6) else street_furniture.traffic_light)(dice, base)
        canvas.front(POLE, canvas.thing(), street_furniture.sign_post(base + 0.2), x, z)
        canvas.front(SIGN, canvas.thing(), board, x, z - 0.05)


def _traffic(canvas: Canvas, street: Street, layout: Layout, dice: Dice) -> None:
    for _ in range(dice.count(layout.cars)):
        _drive(canvas, CAR, shapes.car(dice), street, dice)
    for _ in range(dice.count(layout.trucks)):
        _drive(canvas, TRUCK, shapes.truck(dice) if dice.chance(0.6) else shapes.bus(dice), street, dice)


def _drive(canvas: Canvas, kind: int, vehicle: Vehicle, street: Street, dice: Dice) -> None:
    """A vehicle in a lane, at the kerb, or across the street."""
    half, z, thing = vehicle.width / 2, dice.ahead(5 if kind == CAR else 8, 60), canvas.thing()
    manner = dice.random()
    if manner < 0.12:
        x = dice.uniform(street.left, street.right) - vehicle.length / 2
        canvas.shade(x - 0.15, x + vehicle.length + 0.15, z - 0.3, z + vehicle.width)
        canvas.front(kind, thing, vehicle.side, x, z)
        return
    if manner < 0.6:
        x = street.left + half + 0.2 if dice.chance(0.5) else street.right - half - 0.2
    else:
        lanes = max(1, round((street.right - street.left) / street.lane))
        x = street.left + (dice.randrange(lanes) + 0.5) * street.lane
        z = max(z, 10.0)
    inner = x - half if x > 0 else x + half
    canvas.shade(x - half - 0.15, x + half + 0.15, z - 0.3, z + vehicle.length)
    canvas.front(kind, thing, vehicle.end, x, z)
    if inner * x > 0:
        canvas.side(kind, thing, vehicle.side, inner, z)


def _people(canvas: Canvas, street: Street, layout: Layout, dice: Dice) -> None:
    for _ in range(dice.count(layout.persons)):
        crosses = dice.chance(0.2)
        x = dice.uniform(street.left, street.right) if crosses else street.kerb(dice.uniform(0.2, 1), dice)
        canvas.front(PERSON, canvas.thing(), shapes.person(dice), x, dice.ahead(4, 30))
    for _ in range(dice.count(layout.riders)):
        shape = shapes.rider_along(dice) if dice.chance(0.6) else shapes.rider_across(dice)
        x = dice.uniform(street.left, street.right) if dice.chance(0.5) else street.kerb(-0.3, dice)
        canvas.front(RIDER, canvas.thing(), shape, x, dice.ahead(4, 25))
