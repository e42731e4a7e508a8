"""Lens distortion of real cameras, and its exact inverse.

Points of the image plane are relative to the principal point, for a focal length of 1, with x to
the right and y down. A lens distorts "ray points". For perspective lenses the ray point is where
the ray meets the plane at depth 1. For fisheye lenses it is the vector whose length is the angle
between the ray and the optical axis, pointing to the side on which the ray leaves the axis.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Lens = Literal["perspective", "fisheye", "fov"]
# Distortion coefficients, by lens; those that a file leaves out are 0.
#   perspective: k1 k2 k3 k4 k5 k6 p1 p2 r8 (OpenCV's rational model, of which COLMAP's
#     SIMPLE_RADIAL, RADIAL, OPENCV and FULL_OPENCV are parts; r8 is the factor of r^8, which
#     Metashape calls k4)
#   fisheye: k1 k2 k3 k4 p1 p2 sx1 sy1 (COLMAP's THIN_PRISM_FISHEYE, of which OPENCV_FISHEYE,
#     SIMPLE_RADIAL_FISHEYE and RADIAL_FISHEYE are parts)
#   fov: omega (Devernay and Faugeras 2001)
COEFFICIENTS: dict[Lens, tuple[str, ...]] = {
    "perspective": ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "r8"),
    "fisheye": ("k1", "k2", "k3", "k4", "p1", "p2", "sx1", "sy1"),
    "fov": ("omega",),
}
# Newton's method doubles the number of correct digits per step: 4 steps take 1e-1 to float64.
NEWTON_STEPS = 12


def distort(
    lens: Lens,
    coefficients: Float[Array | np.ndarray, "*batch k"],
    point: Float[Array | np.ndarray, "*batch 2"],
    xp: Any = jnp,
) -> Float[Array | np.ndarray, "*batch 2"]:
    """Point of the image plane at which a ray point appears.

    Args:
      lens: family of the lens.
      coefficients: in the order of `COEFFICIENTS`; those after the last are 0.
      point: ray points.
      xp: jax.numpy or numpy.
    """
    num_coefficients = coefficients.shape[-1]
    k = [
        coefficients[..., i] if i < num_coefficients else 0.0
        for i in range(len(COEFFICIENTS[lens]))
    ]
    x, y = point[..., 0], point[..., 1]
    square = x * x + y * y
    if lens == "fov":
        return point * _fov_factor(square, k[0], xp)[..., None]
    if lens == "perspective":
        k1, k2, k3, k4, k5, k6, p1, p2, r8 = k
        radial = 1.0 + square * (k1 + square * (k2 + square * (k3 + square * r8)))
        radial = radial / (1.0 + square * (k4 + square * (k5 + square * k6)))
        prism: tuple[Any, Any] = (0.0, 0.0)
    else:
        k1, k2, k3, k4, p1, p2, sx1, sy1 = k
        radial = 1.0 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
        prism = (sx1 * square, sy1 * square)
    across = 2.0 * p1 * x * y + p2 * (square + 2.0 * x * x) + prism[0]
    down = p1 * (square + 2.0 * y * y) + 2.0 * p2 * x * y + prism[1]
    return xp.stack([x * radial + across, y * radial + down], axis=-1)


def _fov_factor(square: Any, omega: Any, xp: Any) -> Any:
    """arctan(2 r tan(omega / 2)) / (r omega), by its series where r or omega is close to 0."""
    slope = 2.0 * xp.tan(0.5 * omega)
    small = (square * slope * slope < 1e-6) | (omega < 1e-4)
    radius = xp.sqrt(xp.where(small, 1.0, square))
    width = xp.where(omega < 1e-4, 1.0, omega)
    exact = xp.arctan(radius * slope) / (radius * width)
    straight = xp.where(omega < 1e-4, 1.0 + omega * omega / 12.0, slope / width)
    series = straight * (1.0 - square * slope * slope / 3.0)
    return xp.where(small, series, exact)


def undistort(
    lens: Lens, coefficients: Float[Array, "*batch k"], image_point: Float[Array, "*batch 2"]
) -> Float[Array, "*batch 2"]:
    """Ray point that appears at a point of the image plane: the inverse of `distort`.

    Newton's method from the image point, with the exact Jacobian. Where a lens that was fitted to a
    smaller image folds over, the solution may be another ray point with the same image. Points far
    outside the range of the lens give a finite result.
    """

    def bend(point: Array) -> Array:
        return jnp.asarray(distort(lens, coefficients, point))

    axes = [
        jnp.broadcast_to(jnp.asarray(unit, image_point.dtype), image_point.shape)
        for unit in np.eye(2)
    ]

    def improve(_: Any, point: Array) -> Array:
        distorted = bend(point)
        right, down = (jax.jvp(bend, (point,), (axis,))[1] for axis in axes)
        residual = image_point - distorted
        area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
        # The Jacobian is singular at a fold: take no step there.
        safe = jnp.where(jnp.abs(area) < 1e-6, jnp.inf, area)
        step = jnp.stack(
            [
                residual[..., 0] * down[..., 1] - residual[..., 1] * down[..., 0],
                residual[..., 1] * right[..., 0] - residual[..., 0] * right[..., 1],
            ],
            axis=-1,
        )
        return point + jnp.clip(step / safe[..., None], -0.5, 0.5)

    return jax.lax.fori_loop(0, NEWTON_STEPS, improve, image_point)


def undistort_in_numpy(
    lens: Lens, coefficients: Float[np.ndarray, "m k"], image_point: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m 2"]:
    """`undistort` in numpy, for a few points, where compiling would take longer than all else."""
    point, step = image_point, 1e-5

    def bend(point: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 2"]:
        return np.asarray(distort(lens, coefficients, point, xp=np))

    for _ in range(NEWTON_STEPS):
        sides = [
            (bend(point + axis) - bend(point - axis)) / (2 * step) for axis in step * np.eye(2)
        ]
        jacobian = np.stack(sides, axis=-1)
        regular = np.abs(np.linalg.det(jacobian)) > 1e-6
        jacobian = np.where(regular[:, None, None], jacobian, 1e6 * np.eye(2))
        change = np.linalg.solve(jacobian, (image_point - bend(point))[..., None])[..., 0]
        point = point + np.clip(change, -0.5, 0.5)
    return point


def point_to_direction(
    lens: Lens, point: Float[Array | np.ndarray, "*batch 2"], xp: Any = jnp
) -> Float[Array | np.ndarray, "*batch 3"]:
    """Unit direction of a ray point; x right, y down, z forwards.

    Args:
      lens: family of the lens.
      point: ray points.
      xp: jax.numpy or numpy.
    """
    if lens == "perspective" or lens == "fov":
        ahead = xp.concatenate([point, xp.ones_like(point[..., :1])], axis=-1)
        return ahead / xp.linalg.norm(ahead, axis=-1, keepdims=True)
    square = xp.sum(xp.square(point), axis=-1, keepdims=True)
    center = square < 1e-12
    angle = xp.sqrt(xp.where(center, 1.0, square))
    # sin(angle) / angle, whose limit at 0 is 1.
    ratio = xp.where(center, 1.0, xp.sin(angle) / angle)
    return xp.concatenate([point * ratio, xp.where(center, 1.0, xp.cos(angle))], axis=-1)


def direction_to_point(
    lens: Lens, direction: Float[np.ndarray, "*batch 3"]
) -> Float[np.ndarray, "*batch 2"]:
    """Ray point of directions of any length, in numpy; the inverse of `point_to_direction`."""
    across, ahead = direction[..., :2], direction[..., 2:]
    if lens == "perspective" or lens == "fov":
        with np.errstate(divide="ignore", invalid="ignore"):
            return across / ahead
    radius = np.linalg.norm(across, axis=-1, keepdims=True)
    angle = np.arctan2(radius, ahead)
    return across * np.where(radius > 0, angle / np.where(radius > 0, radius, 1.0), 0.0)
