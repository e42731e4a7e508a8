"""Images and exact depth of the model; primitives are tested only within their image outlines."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8

from jaxrf.data.bricks.model import Model
from jaxrf.data.bricks.ray_casting import (
    PreparedRays,
    keep_nearest,
    primitive_span,
    surface_normals,
)

CAMERA_ANGLE_X = 0.6911112070083618
SUN = (-0.42, -0.58, 0.62)  # Towards the sun; normalized where it is used.
SUNLIGHT, SKYLIGHT, GROUND_LIGHT = 0.70, 0.50, 0.32
HIGHLIGHT, SHININESS = 0.22, 24.0
LIFT = 1e-6  # Raises a shadow ray off the surface that it starts on.
RAYS_PER_BAND = 2**18  # Rays cast at a time, which bounds the memory for any image size.


def render_view(
    model: Model,
    T_world_camera: Float[np.ndarray, "4 4"],
    width: int,
    height: int,
    supersamples: int = 4,
) -> tuple[UInt8[np.ndarray, "height width 4"], Float32[np.ndarray, "height width"]]:
    """One image and its exact depth.

    Args:
      model: the primitives.
      T_world_camera: camera to world, OpenGL axes (x right, y up, z back).
      width: in pixels; the horizontal field of view is 0.6911112070083618 radians for any size.
      height: in pixels.
      supersamples: rays per pixel along each side, on a regular grid.

    Returns:
      Straight (not premultiplied) RGBA, whose alpha is the covered fraction of the pixel and whose
      rgb is 0 where alpha is 0; and the distance in scene units along the unit ray through the
      pixel's center, inf where that ray misses.
    """
    rows = max(1, RAYS_PER_BAND // (width * (supersamples**2 + 1)))
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
    hit[..., -1] = False  # The ray through the center is only for depth.
    directions = np.stack([d[hit] for d in ray.direction], axis=-1)
    rgb = np.zeros((*hit.shape, 3))
    rgb[hit] = _shade(model, np.array(ray.origin), directions, distances[hit], primitives[hit])

    count = hit.sum(axis=-1)[..., None]
    # The mean over the hits is the premultiplied mean divided by alpha.
    straight = rgb.sum(axis=-2) / np.maximum(count, 1)
    alpha = _to_uint8(count / supersamples**2)
    return np.concatenate([np.where(alpha > 0, _to_uint8(straight), 0), alpha], axis=-1), depth


def _to_uint8(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.floor(255.0 * values + 0.5).astype(np.uint8)


def _focal(width: int) -> float:
    return 0.5 * width / math.tan(0.5 * CAMERA_ANGLE_X)


def _pixel_rays(
    T_world_camera: Float[np.ndarray, "4 4"], size: tuple[int, int], rows: range, supersamples: int
) -> PreparedRays:
    """Rays (rows, width, supersamples^2 + 1): a regular grid in each pixel, then its center."""
    steps = (np.arange(supersamples) + 0.5) / supersamples
    in_x = np.append(np.tile(steps, supersamples), 0.5)
    in_y = np.append(np.repeat(steps, supersamples), 0.5)
    x = (np.arange(size[0])[:, None] + in_x - 0.5 * size[0]) / _focal(size[0])
    y = -(np.array(rows)[:, None, None] + in_y - 0.5 * size[1]) / _focal(size[0])
    directions = [row[0] * x + row[1] * y - row[2] for row in T_world_camera[:3, :3]]
    length = np.sqrt(sum(d * d for d in directions))
    return PreparedRays.prepare(T_world_camera[:3, 3], [d / length for d in directions])


def _cast_pixels(
    model: Model,
    T_world_camera: Float[np.ndarray, "4 4"],
    size: tuple[int, int],
    rows: range,
    ray: PreparedRays,
) -> tuple[Float64[np.ndarray, "rows width rays"], Int[np.ndarray, "rows width rays"]]:
    """Distance and primitive of the first hits; tests near primitives before far ones."""
    distances = np.full(ray.direction[0].shape, np.inf)
    primitives = np.full(ray.direction[0].shape, -1)
    corners = _corners(model)
    outlines = _outlines(corners, T_world_camera, size)
    outlines[:, :, 1] = np.clip(outlines[:, :, 1] - rows.start, 0, len(rows))
    origin = T_world_camera[:3, 3]
    nearest = np.clip(origin, corners.min(axis=1), corners.max(axis=1)) - origin
    nearest = np.sqrt(_dot(nearest, nearest)) - 1e-9  # A margin for rounding.
    for primitive in np.argsort(nearest, kind="stable").tolist():
        (left, top), (right, bottom) = outlines[primitive]
        box = np.s_[top:bottom, left:right]
        if distances[box].max(initial=0.0) < nearest[primitive]:
            continue  # No pixels, or all of them have nearer hits.
        rays_in_box = PreparedRays(
            ray.origin, [d[box] for d in ray.direction], [d[box] for d in ray.inverse]
        )
        span = primitive_span(model, primitive, rays_in_box)
        keep_nearest(distances[box], primitives[box], primitive, *span)
    return distances, primitives


def _corners(model: Model) -> Float[np.ndarray, "primitives 8 3"]:
    """Corners of the bounding box of each primitive."""
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
    """First column and row of the pixels that see each primitive, and those past the last."""
    offsets = corners - T_world_camera[:3, 3]
    x, y, z = np.moveaxis(offsets @ np.linalg.inv(T_world_camera[:3, :3]).T, -1, 0)
    no_projection = z > -1e-6
    scale = _focal(size[0]) / np.where(no_projection, 1.0, -z)
    pixels = np.stack([x * scale + 0.5 * size[0], 0.5 * size[1] - y * scale], axis=-1)
    # The margin is only for rounding: a convex solid projects to between its corners.
    low, high = np.floor(pixels.min(axis=1) - 1e-6), np.ceil(pixels.max(axis=1) + 1e-6)
    outlines = np.clip(np.stack([low, high], axis=1), 0, size).astype(int)
    outlines[no_projection.any(axis=1)] = [(0, 0), size]  # The projection is unbounded.
    return outlines


def _shade(
    model: Model,
    origin: Float[np.ndarray, "3"],
    directions: Float[np.ndarray, "n 3"],
    distances: Float[np.ndarray, " n"],
    primitives: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "n 3"]:
    """Colors in [0, 1]: hemisphere light, a sun with hard shadows, a Blinn-Phong highlight."""
    origins = np.broadcast_to(origin, directions.shape)
    normals = surface_normals(model, origins, directions, primitives)
    sun = _unit(SUN)
    halfway = sun - directions
    halfway /= np.sqrt(_dot(halfway, halfway))[:, None]
    facing = np.maximum(_dot(normals, sun), 0.0)
    points = origins + distances[:, None] * directions + LIFT * normals
    lit = np.zeros(len(points))
    front = facing > 0
    lit[front] = ~_shadowed(model, points[front])

    up = 0.5 + 0.5 * normals[:, 2]
    ambient = GROUND_LIGHT + (SKYLIGHT - GROUND_LIGHT) * up
    diffuse = model.colors[primitives] * (ambient + SUNLIGHT * lit * facing)[:, None]
    highlight = HIGHLIGHT * lit * np.maximum(_dot(normals, halfway), 0.0) ** SHININESS
    return np.minimum(diffuse + highlight[:, None], 1.0)


def _unit(vector: Sequence[float] | np.ndarray) -> Float64[np.ndarray, "3"]:
    return np.array(vector) / np.linalg.norm(vector)


def _dot(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, " n"]:
    return np.einsum("...k,...k->...", a, b)


def _shadowed(model: Model, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    """Whether a primitive lies between each point and the sun.

    Rays to the sun are parallel, so a primitive can only shade points within its bounds in a frame
    whose third axis is the sun's direction.
    """
    sun = _unit(SUN)
    across = _unit(np.cross((0.0, 0.0, 1.0), sun))
    frame = np.stack([across, np.cross(sun, across), sun], axis=-1)
    u, v, height = (points @ frame).T
    order = np.argsort(u, kind="stable")
    u, v, height = u[order], v[order], height[order]
    positions = points[order].T

    corners = _corners(model) @ frame
    low, high = corners.min(axis=1) - LIFT, corners.max(axis=1) + LIFT
    starts, stops = np.searchsorted(u, low[:, 0]), np.searchsorted(u, high[:, 0])
    dark = np.zeros(len(points), bool)
    for primitive, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        nearby = np.s_[start:stop]
        below = (v[nearby] >= low[primitive, 1]) & (v[nearby] <= high[primitive, 1])
        below &= (height[nearby] <= high[primitive, 2]) & ~dark[nearby]
        candidates = start + np.flatnonzero(below)
        ray = PreparedRays([x[candidates] for x in positions], sun, 1.0 / sun)
        enter, leave = primitive_span(model, primitive, ray)
        dark[candidates] = np.maximum(enter, 0.0) < leave
    shadowed = np.empty_like(dark)
    shadowed[order] = dark
    return shadowed
