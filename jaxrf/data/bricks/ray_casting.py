"""Exact intersection of rays with the primitives of a model, in float64.

A line is inside a convex primitive on one interval of distances, its span.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from jaxrf.data.bricks.model import Model

TINY = 1e-30  # Replaces a zero direction component, so that a slab never computes 0 * inf.

Numbers = Any  # An array, or one number for all rays.
Components = Sequence[Numbers] | np.ndarray  # x, y, z.


@dataclass(frozen=True)
class Hits:
    """The first point of the model on each ray.

    Attributes:
      distances: along the unit direction, in scene units; inf for a miss.
      normals: of unit length, facing the ray's origin; zero for a miss.
      primitives: number of the primitive in the model; -1 for a miss.
    """

    distances: Float64[np.ndarray, " n"]
    normals: Float64[np.ndarray, "n 3"]
    primitives: Int[np.ndarray, " n"]


def cast_rays(
    model: Model, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
) -> Hits:
    """The first point of the model on each ray, found by testing every primitive.

    Args:
      model: the primitives.
      origins: in scene units. A ray that starts inside a primitive hits at distance 0, with its
        reversed direction as the normal.
      directions: of unit length; components may be zero.
    """
    origins, directions = origins.astype(np.float64), directions.astype(np.float64)
    distances = np.full(len(origins), np.inf)
    primitives = np.full(len(origins), -1)
    ray = PreparedRays.prepare(origins.T, directions.T)
    for primitive in range(len(model.colors)):
        keep_nearest(distances, primitives, primitive, *primitive_span(model, primitive, ray))
    normals = np.zeros_like(origins)
    hit = primitives >= 0
    normals[hit] = surface_normals(model, origins[hit], directions[hit], primitives[hit])
    return Hits(distances, normals, primitives)


def contains(model: Model, positions: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    """Whether each position (in scene units) lies in a primitive or on its surface."""
    inside = np.zeros(len(positions), bool)
    for low, high in model.boxes:
        inside |= np.all((positions >= low) & (positions <= high), axis=-1)
    for x, y, bottom, top, radius in model.cylinders:
        px, py, pz = positions.T
        inside |= ((px - x) ** 2 + (py - y) ** 2 <= radius**2) & (pz >= bottom) & (pz <= top)
    return inside


class PreparedRays(NamedTuple):
    """Rays by component, with the reciprocal directions that the slab test multiplies by."""

    origin: Components
    direction: Components
    inverse: Components

    @classmethod
    def prepare(cls, origin: Components, direction: Components) -> "PreparedRays":
        safe = [np.where(np.abs(d) < TINY, TINY, d) for d in direction]
        return cls(list(origin), safe, [1.0 / d for d in safe])


def primitive_span(
    model: Model, primitive: int, ray: PreparedRays
) -> tuple[np.ndarray, np.ndarray]:
    """Distances at which lines enter and leave a primitive; entry >= exit means a miss."""
    boxes = len(model.boxes)
    if primitive < boxes:
        return _box_span(model.boxes[primitive], ray)
    return _cylinder_span(model.cylinders[primitive - boxes], ray)


def _slab_span(low: Numbers, high: Numbers, origin: Numbers, inverse: Numbers) -> tuple:
    a, b = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _box_span(aabb: Float[np.ndarray, "2 3"], ray: PreparedRays) -> tuple[np.ndarray, np.ndarray]:
    """Span of a box, by the slab method (Kay and Kajiya 1986)."""
    enter, leave = _slab_span(aabb[0, 0], aabb[1, 0], ray.origin[0], ray.inverse[0])
    for axis in (1, 2):
        low, high = _slab_span(aabb[0, axis], aabb[1, axis], ray.origin[axis], ray.inverse[axis])
        enter, leave = np.maximum(enter, low), np.minimum(leave, high)
    return enter, leave


def _side_span(
    cylinder: Float[np.ndarray, "*n 5"], ray: PreparedRays
) -> tuple[np.ndarray, np.ndarray]:
    """Span of an infinitely long cylinder."""
    x, y, radius = (
        ray.origin[0] - cylinder[..., 0],
        ray.origin[1] - cylinder[..., 1],
        cylinder[..., 4],
    )
    dx, dy, _ = ray.direction
    squared = dx * dx + dy * dy
    # The cross product avoids the cancellation of b^2 - a c for a small, distant cylinder.
    root = np.sqrt(np.maximum(squared * radius**2 - (x * dy - y * dx) ** 2, 0.0))
    middle = x * dx + y * dy
    return (-middle - root) / squared, (-middle + root) / squared


def _cylinder_span(
    cylinder: Float[np.ndarray, "5"], ray: PreparedRays
) -> tuple[np.ndarray, np.ndarray]:
    enter, leave = _side_span(cylinder, ray)
    low, high = _slab_span(cylinder[2], cylinder[3], ray.origin[2], ray.inverse[2])
    return np.maximum(enter, low), np.minimum(leave, high)


def keep_nearest(
    distances: np.ndarray,
    primitives: np.ndarray,
    primitive: int,
    enter: np.ndarray,
    leave: np.ndarray,
) -> None:
    """Updates distances and primitives, in place, where the primitive is nearer than those."""
    start = np.maximum(enter, 0.0)
    nearer = start < np.minimum(leave, distances)
    np.copyto(distances, start, where=nearer)
    np.copyto(primitives, primitive, where=nearer)


def surface_normals(
    model: Model,
    origins: Float[np.ndarray, "n 3"],
    directions: Float[np.ndarray, "n 3"],
    primitives: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "n 3"]:
    """Unit normals where rays enter the primitives that they hit."""
    normals = np.empty_like(directions)
    boxes = len(model.boxes)
    for chosen, normals_of, shapes, first in (
        (primitives < boxes, _box_normals, model.boxes, 0),
        (primitives >= boxes, _cylinder_normals, model.cylinders, boxes),
    ):
        shape = shapes[primitives[chosen] - first]
        ray = PreparedRays.prepare(origins[chosen].T, directions[chosen].T)
        enter, outward = normals_of(shape, ray)
        starts_inside = (enter < 0)[:, None]
        normals[chosen] = np.where(starts_inside, -directions[chosen], outward)
    return normals


def _box_normals(
    boxes: Float[np.ndarray, "n 2 3"], ray: PreparedRays
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of entry, and the normal of the slab that is entered last."""
    x, y, z = (
        _slab_span(boxes[:, 0, axis], boxes[:, 1, axis], ray.origin[axis], ray.inverse[axis])[0]
        for axis in range(3)
    )
    enter = np.maximum(np.maximum(x, y), z)
    axis = np.where(x == enter, 0, np.where(y == enter, 1, 2))
    outward = [np.where(axis == k, -np.sign(ray.direction[k]), 0.0) for k in range(3)]
    return enter, np.stack(outward, axis=-1)


def _cylinder_normals(
    cylinders: Float[np.ndarray, "n 5"], ray: PreparedRays
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of entry, and the normal of the cap or the side, whichever is entered last."""
    side, _ = _side_span(cylinders, ray)
    cap, _ = _slab_span(cylinders[:, 2], cylinders[:, 3], ray.origin[2], ray.inverse[2])
    on_cap = cap >= side
    x, y = (ray.origin[k] + side * ray.direction[k] - cylinders[:, k] for k in (0, 1))
    # Normalize again: at a grazing hit, rounding of the distance moves the point sideways.
    length = np.where(on_cap, 1.0, np.hypot(x, y))
    z = np.where(on_cap, -np.sign(ray.direction[2]), 0.0)
    outward = [np.where(on_cap, 0.0, x / length), np.where(on_cap, 0.0, y / length), z]
    return np.maximum(cap, side), np.stack(outward, axis=-1)
