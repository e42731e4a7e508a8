"""A small brick-built house with exact geometry, rendered into the Blender layout.

It stands in for a data set when there is none. A ray caster in float64 gives every pixel its exact
color, coverage and depth, so tests can measure a reconstruction against the truth. Distances are
in scene units, z is up, and the model fits the box [-1.3, 1.3]^3.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8

_VERSION = 1  # part of the cache folder's name: raise it whenever a rendered pixel changes

_CAMERA_ANGLE_X = 0.6911112070083618
_CAMERA_DISTANCE = 4.03
_LOWEST, _HIGHEST = math.radians(-5.0), math.radians(85.0)
_FIRST_POSE = {"train": 0, "val": 10_000, "test": 20_000}

_STUD, _PLATE = 0.125, 0.05  # one step of the lattice sideways and upwards
_CENTER = (7.0, 6.0, 14.0)  # the lattice point at the world's origin
_BRICK = 3  # height of a brick, in plates
_STUD_RADIUS, _STUD_HEIGHT = 0.3, 0.55  # in lattice steps
_GAP = 0.02  # left free at each side of a brick, so that no two visible faces share a plane

_WHITE, _GRAY, _DARK = (0.86, 0.86, 0.83), (0.50, 0.51, 0.53), (0.28, 0.29, 0.31)
_SAND, _BROWN, _RED = (0.86, 0.72, 0.46), (0.42, 0.25, 0.13), (0.76, 0.13, 0.10)
_ORANGE, _YELLOW, _BLUE = (0.92, 0.45, 0.10), (0.93, 0.74, 0.14), (0.14, 0.40, 0.76)
_GREEN, _LEAF = (0.30, 0.60, 0.24), (0.10, 0.40, 0.16)

_SUN = (-0.42, -0.58, 0.62)  # towards the sun; normalized where it is used
_SUNLIGHT, _SKYLIGHT, _GROUND_LIGHT = 0.70, 0.50, 0.32
_HIGHLIGHT, _SHININESS = 0.22, 24.0

_LIFT = 1e-6  # raises a shadow ray off the surface that it starts on
_TINY = 1e-30  # replaces a zero direction component, so that a slab never computes 0 * inf
_BAND = 2**18  # rays cast at once: bounds the memory whatever the size of the image

Number = int | float
Color = tuple[float, float, float]
DensityGrid = tuple[Number, Number, Number]  # x and y in studs, z in plates
Footprint = tuple[Number, Number, Number, Number]  # smallest x, y and largest x, y
Numbers = Any  # an array, or one number for all rays
Components = Sequence[Numbers] | np.ndarray  # x, y, z


@dataclass(frozen=True)
class Model:
    """A union of solids, its primitives numbered boxes first, then cylinders.

    Attributes:
      boxes: smallest and largest corner, in scene units.
      cylinders: x, y, bottom, top, radius of vertical capped cylinders, in scene units.
      colors: diffuse albedo of each primitive, in [0, 1].
    """

    boxes: Float64[np.ndarray, "boxes 2 3"]
    cylinders: Float64[np.ndarray, "cylinders 5"]
    colors: Float64[np.ndarray, "primitives 3"]


@dataclass(frozen=True)
class Hits:
    """The first point of the solid on each ray.

    Attributes:
      distances: along the unit direction, in scene units; inf on a miss.
      normals: unit length, facing against the ray; zero on a miss.
      primitives: number of the primitive in the model; -1 on a miss.
    """

    distances: Float64[np.ndarray, " n"]
    normals: Float64[np.ndarray, "n 3"]
    primitives: Int[np.ndarray, " n"]


# --- The model, in lattice steps: x and y count studs, z counts plates ---


class _Brick(NamedTuple):
    """A box; smooth parts carry no studs."""

    lower: DensityGrid
    size: DensityGrid
    color: Color
    studs: bool = True


class _Rod(NamedTuple):
    """A vertical cylinder; its radius counts studs."""

    base: DensityGrid
    height: Number
    radius: Number
    color: Color


def build_model() -> Model:
    """Build the scene: a house with a garden on a 14 x 12 base plate.

    Interiors of primitives never overlap; bricks standing on each other touch.
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
    # Neighbors of one color differ a little in tone, as worn bricks do, which shows the bond.
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
    yield _Brick((0, 0, 0), (14, 12, 1), _GREEN)
    for y in (0, 2, 4):
        yield _Brick((3, y, 1), (2, 2, 1), _GRAY, studs=False)
    yield _Brick((2, 6, 1), (6, 4, 1), _BROWN, studs=False)  # the floor of the house
    yield _Brick((7, 1, 1), (4, 3, 1), _BLUE, studs=False)  # a pond, and a duck on it
    yield _Brick((8.6, 2, 2), (1.4, 0.9, 1.8), _YELLOW, studs=False)
    yield _Brick((8.6, 2.1, 3.8), (0.7, 0.7, 1.7), _YELLOW, studs=False)
    yield _Brick((8.3, 2.25, 4.2), (0.3, 0.4, 0.6), _ORANGE, studs=False)


def _row(start: int, stop: int, joint: int, holes: Iterable[tuple[int, int]]) -> list[tuple]:
    """Start and stop of the bricks in a row, jointed every four studs and kept out of the holes."""
    joints = {*range(joint, stop, 4), *(edge for hole in holes for edge in hole)}
    cuts = sorted({start, stop, *(cut for cut in joints if start < cut < stop)})
    return [
        (low, high)
        for low, high in pairwise(cuts)
        if not any(first <= low and high <= last for first, last in holes)
    ]


def _walls() -> Iterator[_Brick]:
    """Four courses in running bond on x 1..9, y 5..11, interlocking at the corners."""
    door, arch, window, wide_window, side_window = (3, 5), (2, 6), (6, 8), (3, 7), (7, 9)
    front = [[door], [door, window], [arch, window], [arch]]
    back = [[], [wide_window], [wide_window], []]
    sides = [[], [side_window], [side_window], []]
    for course in range(4):
        z, inset = 1 + _BRICK * course, course % 2
        for y, holes in ((5, front[course]), (10, back[course])):
            for low, high in _row(1 + inset, 9 - inset, 5 - 2 * inset, holes):
                yield _Brick((low, y, z), (high - low, 1, _BRICK), _SAND)
        for x in (1, 8):
            for low, high in _row(6 - inset, 10 + inset, 8 - inset, sides[course]):
                yield _Brick((x, low, z), (1, high - low, _BRICK), _SAND)


def _arch() -> Iterator[_Brick]:
    """The arch over the door, stepped in from both sides."""
    for z, height, width in ((7, 3, 1), (10, 1, 1.25), (11, 1, 1.6)):
        yield _Brick((2, 5, z), (width, 1, height), _WHITE, studs=False)
        yield _Brick((6 - width, 5, z), (width, 1, height), _WHITE, studs=False)
    yield _Brick((2, 5, 12), (4, 1, 1), _WHITE)


def _windows() -> Iterator[_Brick]:
    """A cross of bars in each hole of the walls."""
    bar, z, height = 0.3, 4, 2 * _BRICK
    for x, y, width in ((6, 5.35, 2), (3, 10.35, 4)):
        half = (width - bar) / 2
        yield _Brick((x + half, y, z), (bar, bar, height), _WHITE, studs=False)
        for left in (float(x), x + half + bar):
            yield _Brick((left, y, z + 2.6), (half, bar, 0.8), _WHITE, studs=False)
    for side in (1.35, 8.35):
        yield _Brick((side, 7.85, z), (bar, bar, height), _WHITE, studs=False)
        for front in (7, 8.15):
            yield _Brick((side, front, z + 2.6), (bar, 0.85, 0.8), _WHITE, studs=False)


def _roof() -> Iterator[_Brick]:
    """Four steps of overlapping bricks that meet in a ridge, the gables, and a chimney."""
    for step in range(4):
        z = 13 + _BRICK * step
        for y in sorted({4 + step, 10 - step}):
            for low, high in _row(0, 10, 4 - 2 * (step % 2), []):
                yield _Brick((low, y, z), (high - low, 2, _BRICK), _RED)
    for x, (z, y, depth) in product((1, 8), ((13, 6, 4), (16, 7, 2))):
        yield _Brick((x, y, z), (1, depth, _BRICK), _SAND)
    for z, color in ((25, _DARK), (28, _GRAY)):
        yield _Brick((6, 7, z), (2, 2, _BRICK), color)


def _tree(x: float, y: float) -> Iterator[_Brick]:
    for z, width, height, color in (
        (1, 1, 2 * _BRICK, _BROWN),
        (7, 3, _BRICK, _LEAF),
        (10, 1, _BRICK, _BROWN),
        (13, 3, _BRICK, _LEAF),
        (16, 1, _BRICK, _LEAF),
    ):
        yield _Brick((x - width / 2, y - width / 2, z), (width, width, height), color)


def _flagpole(x: float, y: float) -> Iterator[_Brick | _Rod]:
    yield _Rod((x, y, 1), 1, 0.5, _GRAY)
    yield _Rod((x, y, 2), 26, 0.17, _WHITE)
    yield _Rod((x, y, 28), 1, 0.3, _YELLOW)
    for z, color in ((21, _ORANGE), (23, _WHITE), (25, _BLUE)):
        yield _Brick((x - 2.7, y - 0.12, z), (2.5, 0.24, 2), color, studs=False)


def _fence() -> Iterator[_Brick]:
    """Posts and two rails along the front edge, open at the path."""
    posts = [0.35, 1.5, 2.65, 5.35, 7.0, 8.65, 10.3, 11.95, 13.6]
    for x in posts:
        yield _Brick((x - 0.2, 0.15, 1), (0.4, 0.4, 4), _WHITE, studs=False)
    for (low, high), z in product(pairwise(posts), (2, 3.6)):
        if (low, high) != (2.65, 5.35):
            yield _Brick((low + 0.2, 0.25, z), (high - low - 0.4, 0.2, 0.7), _WHITE, studs=False)


def _flowers() -> Iterator[_Rod]:
    for (x, y), color in zip(
        ((0.5, 2.5), (1.5, 1.5), (1.5, 3.5), (5.5, 2.5), (11.5, 1.5)),
        (_RED, _YELLOW, _ORANGE, _YELLOW, _RED),
        strict=True,
    ):
        yield _Rod((x, y, 1), 2.5, 0.12, _LEAF)
        yield _Rod((x, y, 3.5), 0.8, 0.35, color)


def _free_studs(brick: _Brick, parts: Iterable[_Brick | _Rod]) -> Iterator[_Rod]:
    """The studs of a brick, save those where something stands on it."""
    x, y, z = (low + size for low, size in zip(brick.lower, (0.5, 0.5, brick.size[2]), strict=True))
    standing = [_footprint(part) for part in parts if _bottom(part) == z]
    for i, j in product(range(round(brick.size[0])), range(round(brick.size[1]))):
        stud = _Rod((x + i, y + j, z), _STUD_HEIGHT, _STUD_RADIUS, brick.color)
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


def _to_world(point: DensityGrid) -> tuple[float, float, float]:
    x, y, z = (value - center for value, center in zip(point, _CENTER, strict=True))
    return x * _STUD, y * _STUD, z * _PLATE


def _brick_bounds(brick: _Brick) -> tuple[tuple[float, ...], tuple[float, ...]]:
    (x, y, z), (dx, dy, dz) = brick.lower, brick.size
    return (
        _to_world((x + _GAP, y + _GAP, z)),
        _to_world((x + dx - _GAP, y + dy - _GAP, z + dz)),
    )


def _rod_shape(rod: _Rod) -> tuple[float, ...]:
    x, y, z = rod.base
    return (*_to_world((x, y, z)), _to_world((x, y, z + rod.height))[2], rod.radius * _STUD)


# --- Exact intersection. A convex primitive is the interval of distances that a line is inside ---


def cast_rays(
    model: Model, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
) -> Hits:
    """Find the first point of the solid on each ray by testing every primitive.

    Args:
      model: the solids.
      origins: in scene units. A ray that starts inside a solid hits at distance 0, with its
        reversed direction for a normal.
      directions: of unit length; zero components are fine.
    """
    origins, directions = origins.astype(np.float64), directions.astype(np.float64)
    distances = np.full(len(origins), np.inf)
    primitives = np.full(len(origins), -1)
    ray = _Ray.prepare(origins.T, directions.T)
    for primitive in range(len(model.colors)):
        _keep_nearest(distances, primitives, primitive, *_span(model, primitive, ray))
    normals = np.zeros_like(origins)
    hit = primitives >= 0
    normals[hit] = _normals(model, origins[hit], directions[hit], primitives[hit])
    return Hits(distances, normals, primitives)


def contains(model: Model, positions: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    """Whether each position (scene units) lies in some primitive, its surface included."""
    inside = np.zeros(len(positions), bool)
    for low, high in model.boxes:
        inside |= np.all((positions >= low) & (positions <= high), axis=-1)
    for x, y, bottom, top, radius in model.cylinders:
        px, py, pz = positions.T
        inside |= ((px - x) ** 2 + (py - y) ** 2 <= radius**2) & (pz >= bottom) & (pz <= top)
    return inside


class _Ray(NamedTuple):
    """Rays by components, with the reciprocals that the slab test multiplies by."""

    origin: Components
    direction: Components
    inverse: Components

    @classmethod
    def prepare(cls, origin: Components, direction: Components) -> "_Ray":
        safe = [np.where(np.abs(d) < _TINY, _TINY, d) for d in direction]
        return cls(list(origin), safe, [1.0 / d for d in safe])


def _span(model: Model, primitive: int, ray: _Ray) -> tuple[np.ndarray, np.ndarray]:
    """Distances at which lines enter and leave a primitive; no entry before the exit is a miss."""
    boxes = len(model.boxes)
    if primitive < boxes:
        return _box_span(model.boxes[primitive], ray)
    return _cylinder_span(model.cylinders[primitive - boxes], ray)


def _slab_span(low: Numbers, high: Numbers, origin: Numbers, inverse: Numbers) -> tuple:
    a, b = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _box_span(box: Float[np.ndarray, "2 3"], ray: _Ray) -> tuple[np.ndarray, np.ndarray]:
    """The slab method (Kay and Kajiya 1986)."""
    enter, leave = _slab_span(box[0, 0], box[1, 0], ray.origin[0], ray.inverse[0])
    for axis in (1, 2):
        low, high = _slab_span(box[0, axis], box[1, axis], ray.origin[axis], ray.inverse[axis])
        enter, leave = np.maximum(enter, low), np.minimum(leave, high)
    return enter, leave


def _side_span(cylinder: Float[np.ndarray, "*n 5"], ray: _Ray) -> tuple[np.ndarray, np.ndarray]:
    """The span of the infinitely long cylinder."""
    x, y, radius = (
        ray.origin[0] - cylinder[..., 0],
        ray.origin[1] - cylinder[..., 1],
        cylinder[..., 4],
    )
    dx, dy, _ = ray.direction
    squared = dx * dx + dy * dy
    # The cross product instead of b^2 - a c: no cancellation for a small cylinder far away.
    root = np.sqrt(np.maximum(squared * radius**2 - (x * dy - y * dx) ** 2, 0.0))
    middle = x * dx + y * dy
    return (-middle - root) / squared, (-middle + root) / squared


def _cylinder_span(cylinder: Float[np.ndarray, "5"], ray: _Ray) -> tuple[np.ndarray, np.ndarray]:
    enter, leave = _side_span(cylinder, ray)
    low, high = _slab_span(cylinder[2], cylinder[3], ray.origin[2], ray.inverse[2])
    return np.maximum(enter, low), np.minimum(leave, high)


def _keep_nearest(
    distances: np.ndarray,
    primitives: np.ndarray,
    primitive: int,
    enter: np.ndarray,
    leave: np.ndarray,
) -> None:
    """Write the primitive, in place, wherever it is the nearest one so far."""
    start = np.maximum(enter, 0.0)
    nearer = start < np.minimum(leave, distances)
    np.copyto(distances, start, where=nearer)
    np.copyto(primitives, primitive, where=nearer)


def _normals(
    model: Model,
    origins: Float[np.ndarray, "n 3"],
    directions: Float[np.ndarray, "n 3"],
    primitives: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "n 3"]:
    """Unit normals where rays enter the primitives that they are known to hit."""
    normals = np.empty_like(directions)
    boxes = len(model.boxes)
    for chosen, normals_of, shapes, first in (
        (primitives < boxes, _box_normals, model.boxes, 0),
        (primitives >= boxes, _cylinder_normals, model.cylinders, boxes),
    ):
        shape = shapes[primitives[chosen] - first]
        ray = _Ray.prepare(origins[chosen].T, directions[chosen].T)
        enter, outward = normals_of(shape, ray)
        starts_inside = (enter < 0)[:, None]
        normals[chosen] = np.where(starts_inside, -directions[chosen], outward)
    return normals


def _box_normals(boxes: Float[np.ndarray, "n 2 3"], ray: _Ray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of entry, and the normal of the slab that was entered last."""
    x, y, z = (
        _slab_span(boxes[:, 0, axis], boxes[:, 1, axis], ray.origin[axis], ray.inverse[axis])[0]
        for axis in range(3)
    )
    enter = np.maximum(np.maximum(x, y), z)
    axis = np.where(x == enter, 0, np.where(y == enter, 1, 2))
    outward = [np.where(axis == k, -np.sign(ray.direction[k]), 0.0) for k in range(3)]
    return enter, np.stack(outward, axis=-1)


def _cylinder_normals(
    cylinders: Float[np.ndarray, "n 5"], ray: _Ray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of entry, and the normal of the cap or the side, whichever was entered last."""
    side, _ = _side_span(cylinders, ray)
    cap, _ = _slab_span(cylinders[:, 2], cylinders[:, 3], ray.origin[2], ray.inverse[2])
    on_cap = cap >= side
    x, y = (ray.origin[k] + side * ray.direction[k] - cylinders[:, k] for k in (0, 1))
    # Renormalized: at a grazing hit, rounding of the distance moves the point sideways.
    length = np.where(on_cap, 1.0, np.hypot(x, y))
    z = np.where(on_cap, -np.sign(ray.direction[2]), 0.0)
    outward = [np.where(on_cap, 0.0, x / length), np.where(on_cap, 0.0, y / length), z]
    return np.maximum(cap, side), np.stack(outward, axis=-1)


# --- Rendering: the same intersections, tried only where a primitive's outline falls ---


def render_view(
    model: Model,
    T_world_camera: Float[np.ndarray, "4 4"],
    width: int,
    height: int,
    supersamples: int = 4,
) -> tuple[UInt8[np.ndarray, "height width 4"], Float32[np.ndarray, "height width"]]:
    """Render one image and its exact depth.

    Args:
      model: the solids.
      T_world_camera: camera to world, OpenGL axes (x right, y up, z back).
      width: pixels; the horizontal field of view is 0.6911112070083618 radians whatever the size.
      height: pixels.
      supersamples: rays per pixel along each side, on a regular grid.

    Returns:
      Straight (unpremultiplied) RGBA, its alpha the covered fraction of the pixel, rgb 0 where
      alpha is 0; and the distance in scene units along the unit ray through the pixel's center,
      inf where that ray misses.
    """
    rows = max(1, _BAND // (width * (supersamples**2 + 1)))
    bands = [
        _render_rows(
            model,
            T_world_camera,
            (width, height),
            range(top, min(top + rows, height)),
            supersamples,
        )
        for top in range(0, height, rows)
    ]
    rgba, depth = zip(*bands, strict=True)
    return np.concatenate(rgba), np.concatenate(depth)


def _render_rows(
    model: Model,
    T_world_camera: Float[np.ndarray, "4 4"],
    size: tuple[int, int],
    rows: range,
    supersamples: int,
) -> tuple[UInt8[np.ndarray, "rows width 4"], Float32[np.ndarray, "rows width"]]:
    ray = _pixel_rays(T_world_camera, size, rows, supersamples)
    distances, primitives = _cast_pixels(model, T_world_camera, size, rows, ray)
    depth = distances[..., -1].astype(np.float32)
    hit = primitives >= 0
    hit[..., -1] = False  # the ray through the center is for depth alone
    directions = np.stack([d[hit] for d in ray.direction], axis=-1)
    rgb = np.zeros((*hit.shape, 3))
    rgb[hit] = _shade_ray(model, np.array(ray.origin), directions, distances[hit], primitives[hit])

    count = hit.sum(axis=-1)[..., None]
    # The mean over the hits alone is the premultiplied mean divided by alpha.
    straight = rgb.sum(axis=-2) / np.maximum(count, 1)
    alpha = _to_uint8(count / supersamples**2)
    return np.concatenate([np.where(alpha > 0, _to_uint8(straight), 0), alpha], axis=-1), depth


def _to_uint8(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.floor(255.0 * values + 0.5).astype(np.uint8)


def _focal(width: int) -> float:
    return 0.5 * width / math.tan(0.5 * _CAMERA_ANGLE_X)


def _pixel_rays(
    T_world_camera: Float[np.ndarray, "4 4"], size: tuple[int, int], rows: range, supersamples: int
) -> _Ray:
    """Rays (rows, width, supersamples^2 + 1): a regular grid in each pixel, then its center."""
    steps = (np.arange(supersamples) + 0.5) / supersamples
    in_x = np.append(np.tile(steps, supersamples), 0.5)
    in_y = np.append(np.repeat(steps, supersamples), 0.5)
    x = (np.arange(size[0])[:, None] + in_x - 0.5 * size[0]) / _focal(size[0])
    y = -(np.array(rows)[:, None, None] + in_y - 0.5 * size[1]) / _focal(size[0])
    directions = [row[0] * x + row[1] * y - row[2] for row in T_world_camera[:3, :3]]
    length = np.sqrt(sum(d * d for d in directions))
    return _Ray.prepare(T_world_camera[:3, 3], [d / length for d in directions])


def _cast_pixels(
    model: Model,
    T_world_camera: Float[np.ndarray, "4 4"],
    size: tuple[int, int],
    rows: range,
    ray: _Ray,
) -> tuple[Float64[np.ndarray, "rows width rays"], Int[np.ndarray, "rows width rays"]]:
    """Distance and primitive of the first hits, from near primitives to far ones."""
    distances = np.full(ray.direction[0].shape, np.inf)
    primitives = np.full(ray.direction[0].shape, -1)
    corners = _corners(model)
    outlines = _outlines(corners, T_world_camera, size)
    outlines[:, :, 1] = np.clip(outlines[:, :, 1] - rows.start, 0, len(rows))
    origin = T_world_camera[:3, 3]
    nearest = np.clip(origin, corners.min(axis=1), corners.max(axis=1)) - origin
    nearest = np.sqrt(_dot(nearest, nearest)) - 1e-9  # for rounding
    for primitive in np.argsort(nearest, kind="stable").tolist():
        (left, top), (right, bottom) = outlines[primitive]
        box = np.s_[top:bottom, left:right]
        if distances[box].max(initial=0.0) < nearest[primitive]:
            continue  # no pixels, or everything there is nearer
        part = _Ray(ray.origin, [d[box] for d in ray.direction], [d[box] for d in ray.inverse])
        span = _span(model, primitive, part)
        _keep_nearest(distances[box], primitives[box], primitive, *span)
    return distances, primitives


def _corners(model: Model) -> Float[np.ndarray, "primitives 8 3"]:
    """Corners of the box around each primitive."""
    x, y, bottom, top, radius = model.cylinders.T
    lows = np.stack([x - radius, y - radius, bottom], axis=-1)
    highs = np.stack([x + radius, y + radius, top], axis=-1)
    bounds = np.concatenate([model.boxes, np.stack([lows, highs], axis=1)])
    picks = np.array(list(product((0, 1), repeat=3)))
    return np.stack([bounds[:, picks[:, axis], axis] for axis in range(3)], axis=-1)


def _outlines(
    corners: Float[np.ndarray, "primitives 8 3"],
    T_world_camera: Float[np.ndarray, "4 4"],
    size: tuple[int, int],
) -> Int[np.ndarray, "primitives 2 2"]:
    """First column and row of the pixels that see a primitive, and those past the last."""
    offsets = corners - T_world_camera[:3, 3]
    x, y, z = np.moveaxis(offsets @ np.linalg.inv(T_world_camera[:3, :3]).T, -1, 0)
    behind = z > -1e-6
    scale = _focal(size[0]) / np.where(behind, 1.0, -z)
    pixels = np.stack([x * scale + 0.5 * size[0], 0.5 * size[1] - y * scale], axis=-1)
    # The margin is for rounding alone: projections of convex solids lie between their corners'.
    low, high = np.floor(pixels.min(axis=1) - 1e-6), np.ceil(pixels.max(axis=1) + 1e-6)
    outlines = np.clip(np.stack([low, high], axis=1), 0, size).astype(int)
    outlines[behind.any(axis=1)] = [(0, 0), size]  # unbounded: look everywhere
    return outlines


def _shade_ray(
    model: Model,
    origin: Float[np.ndarray, "3"],
    directions: Float[np.ndarray, "n 3"],
    distances: Float[np.ndarray, " n"],
    primitives: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "n 3"]:
    """Colors in [0, 1]: hemisphere light, one sun with hard shadows, a Blinn-Phong highlight."""
    origins = np.broadcast_to(origin, directions.shape)
    normals = _normals(model, origins, directions, primitives)
    sun = _unit(_SUN)
    halfway = sun - directions
    halfway /= np.sqrt(_dot(halfway, halfway))[:, None]
    facing = np.maximum(_dot(normals, sun), 0.0)
    points = origins + distances[:, None] * directions + _LIFT * normals
    lit = np.zeros(len(points))
    front = facing > 0
    lit[front] = ~_shadowed(model, points[front])

    up = 0.5 + 0.5 * normals[:, 2]
    ambient = _GROUND_LIGHT + (_SKYLIGHT - _GROUND_LIGHT) * up
    diffuse = model.colors[primitives] * (ambient + _SUNLIGHT * lit * facing)[:, None]
    highlight = _HIGHLIGHT * lit * np.maximum(_dot(normals, halfway), 0.0) ** _SHININESS
    return np.minimum(diffuse + highlight[:, None], 1.0)


def _unit(vector: Sequence[float] | np.ndarray) -> Float64[np.ndarray, "3"]:
    return np.array(vector) / np.linalg.norm(vector)


def _dot(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, " n"]:
    return np.einsum("...k,...k->...", a, b)


def _shadowed(model: Model, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    """Whether a primitive stands between each point and the sun.

    Seen from the sun all rays are parallel, so a primitive can only shade points within its bounds
    in a frame whose third axis is the sun's direction.
    """
    sun = _unit(_SUN)
    across = _unit(np.cross((0.0, 0.0, 1.0), sun))
    frame = np.stack([across, np.cross(sun, across), sun], axis=-1)
    u, v, height = (points @ frame).T
    order = np.argsort(u, kind="stable")
    u, v, height = u[order], v[order], height[order]
    positions = points[order].T

    corners = _corners(model) @ frame
    low, high = corners.min(axis=1) - _LIFT, corners.max(axis=1) + _LIFT
    starts, stops = np.searchsorted(u, low[:, 0]), np.searchsorted(u, high[:, 0])
    dark = np.zeros(len(points), bool)
    for primitive, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        nearby = np.s_[start:stop]
        below = (v[nearby] >= low[primitive, 1]) & (v[nearby] <= high[primitive, 1])
        below &= (height[nearby] <= high[primitive, 2]) & ~dark[nearby]
        candidates = start + np.flatnonzero(below)
        ray = _Ray([x[candidates] for x in positions], sun, 1.0 / sun)
        enter, leave = _span(model, primitive, ray)
        dark[candidates] = np.maximum(enter, 0.0) < leave
    shadowed = np.empty_like(dark)
    shadowed[order] = dark
    return shadowed


# --- The data set ---


def write_bricks(
    folder: Path,
    width: int = 100,
    height: int = 100,
    train_views: int = 100,
    val_views: int = 10,
    test_views: int = 25,
    supersamples: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render the scene into a folder in the layout of NeRF's synthetic ("Blender") scenes.

    Beside each `<split>/r_<i>.png` lies its exact depth, `<split>/r_<i>_depth.npy`; see
    `render_view` for both. The folder appears whole or not at all, and of two processes that write
    the same one, the first to finish wins.

    Args:
      folder: must not exist yet; its parents are made.
      width: pixels.
      height: pixels.
      train_views: poses spread evenly over the upper hemisphere; the first n of them are too.
      val_views: other such poses.
      test_views: other such poses. They do not depend on the number of training views.
      supersamples: rays per pixel along each side.
      progress: called with (images done, images in all) after each image.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder is already there.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: delete it or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = build_model()
    counts = {"train": train_views, "val": val_views, "test": test_views}
    done = 0
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        scene = Path(scratch) / folder.name
        for split, count in counts.items():
            (scene / split).mkdir(parents=True)
            poses = [_pose(_FIRST_POSE[split] + i) for i in range(count)]
            for i, pose in enumerate(poses):
                rgba, depth = render_view(model, pose, width, height, supersamples)
                iio.imwrite(scene / split / f"r_{i}.png", rgba)
                np.save(scene / split / f"r_{i}_depth.npy", depth)
                done += 1
                if progress is not None:
                    progress(done, sum(counts.values()))
            frames = [
                {"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()}
                for i, pose in enumerate(poses)
            ]
            transforms = {"camera_angle_x": _CAMERA_ANGLE_X, "frames": frames}
            (scene / f"transforms_{split}.json").write_text(json.dumps(transforms, indent=2))
        _publish(scene, folder)
    return folder


def _publish(scene: Path, folder: Path) -> None:
    """Move the finished scene into place, unless another process was faster."""
    try:
        scene.rename(folder)
    except OSError:
        if not (folder / "transforms_test.json").exists():
            raise


def _pose(index: int) -> Float64[np.ndarray, "4 4"]:
    """The index-th camera, looking at the origin.

    Poses follow the low-discrepancy sequence of the plastic number (Roberts 2018), so that any run
    of them covers the hemisphere evenly and no two are the same.
    """
    plastic = 1.324717957244746
    u, v = (0.5 + index / plastic) % 1.0, (0.5 + index / plastic**2) % 1.0
    z = math.sin(_LOWEST) + u * (math.sin(_HIGHEST) - math.sin(_LOWEST))
    azimuth, across = 2.0 * math.pi * v, math.sqrt(1.0 - z * z)
    back = np.array([across * math.cos(azimuth), across * math.sin(azimuth), z])
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, _CAMERA_DISTANCE * back], axis=-1)
    return pose


def cached_bricks(
    cache: Path | None = None,
    width: int = 100,
    height: int = 100,
    train_views: int = 100,
    val_views: int = 10,
    test_views: int = 25,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder of the scene, written by `write_bricks` the first time it is asked for.

    Args:
      cache: folder to keep scenes in; by default `jaxrf` in `$XDG_CACHE_HOME` or `~/.cache`.
      width: pixels.
      height: pixels.
      train_views: number of training images.
      val_views: number of validation images.
      test_views: number of held-out images.
      progress: called with (images done, images in all) after each image.

    Raises:
      OSError: the cache cannot be written.
    """
    cache = _default_cache() if cache is None else Path(cache)
    views = f"{train_views}-{val_views}-{test_views}"
    folder = cache / f"bricks-v{_VERSION}-{width}x{height}-{views}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return write_bricks(
            folder, width, height, train_views, val_views, test_views, progress=progress
        )
    except OSError as error:
        if folder.is_dir():  # another process has just written it
            return folder
        raise type(error)(
            f"The built-in scene cannot be written to {folder} ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that you can write to."
        ) from error


def _default_cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "jaxrf"
