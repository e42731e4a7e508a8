"""Geometry of the built-in scene: a house and a garden of bricks and rods.

Distances are in scene units, z is up, and the model fits the box [-1.3, 1.3]^3.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

STUD, PLATE = 0.125, 0.05  # One step of the lattice, sideways and upwards.
CENTER = (7.0, 6.0, 14.0)  # Lattice point at the origin of the world.
BRICK = 3  # Height of a brick, in plates.
STUD_RADIUS, STUD_HEIGHT = 0.3, 0.55  # In lattice steps.
GAP = 0.02  # Free space at each side of a brick, so that no two visible faces share a plane.

WHITE, GRAY, DARK = (0.86, 0.86, 0.83), (0.50, 0.51, 0.53), (0.28, 0.29, 0.31)
SAND, BROWN, RED = (0.86, 0.72, 0.46), (0.42, 0.25, 0.13), (0.76, 0.13, 0.10)
ORANGE, YELLOW, BLUE = (0.92, 0.45, 0.10), (0.93, 0.74, 0.14), (0.14, 0.40, 0.76)
GREEN, LEAF = (0.30, 0.60, 0.24), (0.10, 0.40, 0.16)

Number = int | float
Color = tuple[float, float, float]
LatticePoint = tuple[Number, Number, Number]  # x and y in studs, z in plates.
Footprint = tuple[Number, Number, Number, Number]  # Smallest x, y and largest x, y.


@dataclass(frozen=True)
class Model:
    """A union of solid primitives, numbered with boxes first, then cylinders.

    Attributes:
      boxes: smallest and largest corner, in scene units.
      cylinders: x, y, bottom, top, radius of vertical capped cylinders, in scene units.
      colors: diffuse albedo of each primitive, in [0, 1].
    """

    boxes: Float64[np.ndarray, "boxes 2 3"]
    cylinders: Float64[np.ndarray, "cylinders 5"]
    colors: Float64[np.ndarray, "primitives 3"]


# Everything below is in lattice steps: x and y count studs, z counts plates.


class _Brick(NamedTuple):
    """A box, with or without studs on top."""

    lower: LatticePoint
    size: LatticePoint
    color: Color
    studs: bool = True


class _Rod(NamedTuple):
    """A vertical cylinder; the radius is in studs."""

    base: LatticePoint
    height: Number
    radius: Number
    color: Color


def build_model() -> Model:
    """The scene: a house with a garden on a 14 x 12 base plate.

    The interiors of primitives never overlap; bricks that stand on each other touch.
    """
    parts: list[_Brick | _Rod] = [
        *_ground(),
        *_walls(),
        *_arch(),
        *_windows(),
        *_roof(),
        *_tree(12.5, 8.5),
        *_flagpole(12.5, 4.5),
        *_fence(),
        *_flowers(),
    ]
    bricks = [part for part in parts if isinstance(part, _Brick)]
    rods = [part for part in parts if isinstance(part, _Rod)]
    # Adjacent bricks of one color differ a little in tone, which shows the joints.
    tones = 0.9 + 0.1 * np.modf(np.arange(len(bricks)) * 0.618034)[0]
    bricks = [
        brick._replace(color=tuple(tone * np.array(brick.color)))
        for tone, brick in zip(tones, bricks, strict=True)
    ]
    rods += [stud for brick in bricks if brick.studs for stud in _free_studs(brick, parts)]
    return Model(
        boxes=np.array([_brick_bounds(brick) for brick in bricks]),
        cylinders=np.array([_rod_shape(rod) for rod in rods]),
        colors=np.array([b.color for b in bricks] + [r.color for r in rods]),
    )


def _ground() -> Iterator[_Brick]:
    yield _Brick((0, 0, 0), (14, 12, 1), GREEN)
    for y in (0, 2, 4):
        yield _Brick((3, y, 1), (2, 2, 1), GRAY, studs=False)
    yield _Brick((2, 6, 1), (6, 4, 1), BROWN, studs=False)  # The floor of the house.
    yield _Brick((7, 1, 1), (4, 3, 1), BLUE, studs=False)  # A pond with a duck.
    yield _Brick((8.6, 2, 2), (1.4, 0.9, 1.8), YELLOW, studs=False)
    yield _Brick((8.6, 2.1, 3.8), (0.7, 0.7, 1.7), YELLOW, studs=False)
    yield _Brick((8.3, 2.25, 4.2), (0.3, 0.4, 0.6), ORANGE, studs=False)


def _row(start: int, stop: int, joint: int, holes: Iterable[tuple[int, int]]) -> list[tuple]:
    """Start and stop of the bricks in a row with a joint every four studs and with holes."""
    joints = {*range(joint, stop, 4), *(edge for hole in holes for edge in hole)}
    cuts = sorted({start, stop, *(cut for cut in joints if start < cut < stop)})
    return [
        (low, high)
        for low, high in pairwise(cuts)
        if not any(first <= low and high <= last for first, last in holes)
    ]


def _walls() -> Iterator[_Brick]:
    """Four courses in running bond on x 1..9, y 5..11, which interlock at the corners."""
    door, arch, window, wide_window, side_window = (3, 5), (2, 6), (6, 8), (3, 7), (7, 9)
    front = [[door], [door, window], [arch, window], [arch]]
    back = [[], [wide_window], [wide_window], []]
    sides = [[], [side_window], [side_window], []]
    for course in range(4):
        z, inset = 1 + BRICK * course, course % 2
        for y, holes in ((5, front[course]), (10, back[course])):
            for low, high in _row(1 + inset, 9 - inset, 5 - 2 * inset, holes):
                yield _Brick((low, y, z), (high - low, 1, BRICK), SAND)
        for x in (1, 8):
            for low, high in _row(6 - inset, 10 + inset, 8 - inset, sides[course]):
                yield _Brick((x, low, z), (1, high - low, BRICK), SAND)


def _arch() -> Iterator[_Brick]:
    """The arch over the door, narrowing in steps from both sides."""
    for z, height, width in ((7, 3, 1), (10, 1, 1.25), (11, 1, 1.6)):
        yield _Brick((2, 5, z), (width, 1, height), WHITE, studs=False)
        yield _Brick((6 - width, 5, z), (width, 1, height), WHITE, studs=False)
    yield _Brick((2, 5, 12), (4, 1, 1), WHITE)


def _windows() -> Iterator[_Brick]:
    """A cross of bars in each window."""
    bar, z, height = 0.3, 4, 2 * BRICK
    for x, y, width in ((6, 5.35, 2), (3, 10.35, 4)):
        half = (width - bar) / 2
        yield _Brick((x + half, y, z), (bar, bar, height), WHITE, studs=False)
        for left in (float(x), x + half + bar):
            yield _Brick((left, y, z + 2.6), (half, bar, 0.8), WHITE, studs=False)
    for side in (1.35, 8.35):
        yield _Brick((side, 7.85, z), (bar, bar, height), WHITE, studs=False)
        for front in (7, 8.15):
            yield _Brick((side, front, z + 2.6), (bar, 0.85, 0.8), WHITE, studs=False)


def _roof() -> Iterator[_Brick]:
    """Four steps of overlapping bricks that meet in a ridge, the gables, and a chimney."""
    for step in range(4):
        z = 13 + BRICK * step
        for y in sorted({4 + step, 10 - step}):
            for low, high in _row(0, 10, 4 - 2 * (step % 2), []):
                yield _Brick((low, y, z), (high - low, 2, BRICK), RED)
    for x, (z, y, depth) in product((1, 8), ((13, 6, 4), (16, 7, 2))):
        yield _Brick((x, y, z), (1, depth, BRICK), SAND)
    for z, color in ((25, DARK), (28, GRAY)):
        yield _Brick((6, 7, z), (2, 2, BRICK), color)


def _tree(x: float, y: float) -> Iterator[_Brick]:
    for z, width, height, color in (
        (1, 1, 2 * BRICK, BROWN),
        (7, 3, BRICK, LEAF),
        (10, 1, BRICK, BROWN),
        (13, 3, BRICK, LEAF),
        (16, 1, BRICK, LEAF),
    ):
        yield _Brick((x - width / 2, y - width / 2, z), (width, width, height), color)


def _flagpole(x: float, y: float) -> Iterator[_Brick | _Rod]:
    yield _Rod((x, y, 1), 1, 0.5, GRAY)
    yield _Rod((x, y, 2), 26, 0.17, WHITE)
    yield _Rod((x, y, 28), 1, 0.3, YELLOW)
    for z, color in ((21, ORANGE), (23, WHITE), (25, BLUE)):
        yield _Brick((x - 2.7, y - 0.12, z), (2.5, 0.24, 2), color, studs=False)


def _fence() -> Iterator[_Brick]:
    """Posts and two rails along the front edge, open at the path."""
    posts = [0.35, 1.5, 2.65, 5.35, 7.0, 8.65, 10.3, 11.95, 13.6]
    for x in posts:
        yield _Brick((x - 0.2, 0.15, 1), (0.4, 0.4, 4), WHITE, studs=False)
    for (low, high), z in product(pairwise(posts), (2, 3.6)):
        if (low, high) != (2.65, 5.35):
            yield _Brick((low + 0.2, 0.25, z), (high - low - 0.4, 0.2, 0.7), WHITE, studs=False)


def _flowers() -> Iterator[_Rod]:
    for (x, y), color in zip(
        ((0.5, 2.5), (1.5, 1.5), (1.5, 3.5), (5.5, 2.5), (11.5, 1.5)),
        (RED, YELLOW, ORANGE, YELLOW, RED),
        strict=True,
    ):
        yield _Rod((x, y, 1), 2.5, 0.12, LEAF)
        yield _Rod((x, y, 3.5), 0.8, 0.35, color)


def _free_studs(brick: _Brick, parts: Iterable[_Brick | _Rod]) -> Iterator[_Rod]:
    """Studs of a brick, except where another part stands on it."""
    x, y, z = (low + size for low, size in zip(brick.lower, (0.5, 0.5, brick.size[2]), strict=True))
    standing = [_footprint(part) for part in parts if _bottom(part) == z]
    for i, j in product(range(round(brick.size[0])), range(round(brick.size[1]))):
        stud = _Rod((x + i, y + j, z), STUD_HEIGHT, STUD_RADIUS, brick.color)
        if not any(_overlap(_footprint(stud), other) for other in standing):
            yield stud


def _bottom(part: _Brick | _Rod) -> Number:
    return part.lower[2] if isinstance(part, _Brick) else part.base[2]


def _footprint(part: _Brick | _Rod) -> Footprint:
    if isinstance(part, _Brick):
        (x, y, _), (dx, dy, _) = part.lower, part.size
        return x, y, x + dx, y + dy
    (x, y, _), r = part.base, part.radius
    return x - r, y - r, x + r, y + r


def _overlap(a: Footprint, b: Footprint) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _to_world(point: LatticePoint) -> tuple[float, float, float]:
    x, y, z = (value - center for value, center in zip(point, CENTER, strict=True))
    return x * STUD, y * STUD, z * PLATE


def _brick_bounds(brick: _Brick) -> tuple[tuple[float, ...], tuple[float, ...]]:
    (x, y, z), (dx, dy, dz) = brick.lower, brick.size
    return (
        _to_world((x + GAP, y + GAP, z)),
        _to_world((x + dx - GAP, y + dy - GAP, z + dz)),
    )


def _rod_shape(rod: _Rod) -> tuple[float, ...]:
    x, y, z = rod.base
    return (*_to_world((x, y, z)), _to_world((x, y, z + rod.height))[2], rod.radius * STUD)
