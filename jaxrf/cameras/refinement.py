"""Adjustments of cameras that are trained with the field, and their preconditioner.

Park, Henzler, Mildenhall, Barron, Martin-Brualla: CamP: Camera preconditioning for neural radiance
fields (SIGGRAPH Asia 2023). The numbers of a camera differ in what they do to its image by orders
of magnitude, and some of them nearly cancel each other. The preconditioner turns them into numbers
that move the image by about a pixel each, independently of each other. Letters in shapes: n
cameras, k distortion coefficients, d numbers of a camera.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.cameras.base import Cameras, pixels_to_rays, project

Refine = Literal["none", "poses", "lenses"]

# CamP's damping, relative and absolute: directions that images hardly show are not blown up.
RELATIVE_DAMPING, ABSOLUTE_DAMPING = 0.1, 1e-8
# Points that the preconditioner is computed from, the same ones in every frustum.
NUM_POINTS = 1024
# Change of a number by which derivatives of projections are taken, in float64.
DIFFERENCE = 1e-5


# One program instead of an operation at a time.
_jitted_rays = jax.jit(pixels_to_rays)


class CameraAdjustment(NamedTuple):
    """Changes of cameras; zero leaves them as they are.

    pose: (n, 6) rotation vector in radians and translation in scene units, along the camera's axes.
    log_focal: (n, 1) logarithm of the factor of the focal lengths; None leaves them.
    distortion: (n, k) added to the coefficients of the lens; None leaves them.
    """

    pose: Float[Array | np.ndarray, "n 6"]
    log_focal: Float[Array | np.ndarray, "n 1"] | None = None
    distortion: Float[Array | np.ndarray, "n k"] | None = None


def zero_adjustment(
    refine: Refine, num_cameras: int, num_coefficients: int
) -> CameraAdjustment | None:
    """The adjustment before training, which changes nothing; None if cameras are not refined.

    Args:
      refine: what is refined.
      num_cameras: number of training cameras.
      num_coefficients: of their lens; 0 for a pinhole.
    """
    if refine == "none":
        return None
    pose = jnp.zeros((num_cameras, 6))
    if refine == "poses":
        return CameraAdjustment(pose)
    distortion = jnp.zeros((num_cameras, num_coefficients)) if num_coefficients else None
    return CameraAdjustment(pose, jnp.zeros((num_cameras, 1)), distortion)


def adjust_cameras(cameras: Cameras, adjustment: CameraAdjustment, xp: Any = jnp) -> Cameras:
    """Cameras with adjusted poses and lenses; differentiable, also at zero.

    A camera turns around its own center by exp of the rotation vector (Rodrigues) and moves along
    its own axes.

    Args:
      cameras: n cameras.
      adjustment: of each of them.
      xp: jax.numpy or numpy.
    """
    pose = xp.asarray(cameras.T_world_camera)
    rotation = pose[:, :3, :3]
    turn = _rotation_matrices(adjustment.pose[:, :3], xp)
    # Explicit sums, as a matmul would use the default matmul precision.
    turned = xp.sum(rotation[:, :, :, None] * turn[:, None, :, :], axis=2)
    shift = xp.sum(rotation * adjustment.pose[:, None, 3:], axis=2)
    top = xp.concatenate([turned, (pose[:, :3, 3] + shift)[:, :, None]], axis=2)
    changes: dict[str, Any] = {"T_world_camera": xp.concatenate([top, pose[:, 3:]], axis=1)}
    if adjustment.log_focal is not None:
        changes["focal"] = xp.asarray(cameras.focal) * xp.exp(adjustment.log_focal)
    if adjustment.distortion is not None:
        changes["distortion"] = xp.asarray(cameras.distortion) + adjustment.distortion
    return dataclasses.replace(cameras, **changes)


def _rotation_matrices(
    vectors: Float[Array | np.ndarray, "n 3"], xp: Any
) -> Float[Array | np.ndarray, "n 3 3"]:
    """I + a [v] + b [v]^2 with a = sin(t) / t and b = 2 sin(t / 2)^2 / t^2, t the length of v."""
    square = xp.sum(vectors * vectors, axis=1)
    small = square < 1e-6
    angle = xp.sqrt(xp.where(small, 1.0, square))
    a = xp.where(small, 1.0 - square / 6.0, xp.sin(angle) / angle)
    half = xp.sin(0.5 * angle) / angle
    b = xp.where(small, 0.5 - square / 24.0, 2.0 * half * half)
    x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    zero = xp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    skew = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=1)
    outer = vectors[:, :, None] * vectors[:, None, :]
    identity = xp.asarray(np.eye(3), vectors.dtype)[None]
    skew_square = outer - square[:, None, None] * identity
    return identity + a[:, None, None] * skew + b[:, None, None] * skew_square


def flatten_adjustment(adjustment: CameraAdjustment) -> Float[Array, "n d"]:
    """All numbers of each camera in a row."""
    return jnp.concatenate([part for part in adjustment if part is not None], axis=1)


def unflatten_adjustment(
    numbers: Float[Array | np.ndarray, "n d"], like: CameraAdjustment
) -> CameraAdjustment:
    """Inverse of `flatten_adjustment`, with the parts of another adjustment."""
    parts: list[Any] = []
    start = 0
    for part in like:
        width = 0 if part is None else part.shape[1]
        parts.append(None if part is None else numbers[:, start : start + width])
        start += width
    return CameraAdjustment(*parts)


def count_numbers(adjustment: CameraAdjustment) -> int:
    """Numbers of each camera."""
    return sum(part.shape[1] for part in adjustment if part is not None)


def precondition(
    preconditioner: Float[Array, "n d d"], adjustment: CameraAdjustment
) -> CameraAdjustment:
    """The preconditioner of each camera times its adjustment, or times the gradient of that."""
    flat = flatten_adjustment(adjustment)
    return unflatten_adjustment(jnp.sum(preconditioner * flat[:, None, :], axis=2), adjustment)


def make_preconditioner(
    cameras: Cameras,
    refine: Refine,
    near_far: tuple[float, float],
    center: Float[np.ndarray, "3"] | None = None,
    relative_damping: float = RELATIVE_DAMPING,
    absolute_damping: float = ABSOLUTE_DAMPING,
) -> Float[np.ndarray, "n d d"]:
    """P^-1 = (S + lambda diag(S) + mu I)^(-1/2) of each camera, S = J^T J / points (CamP, eq. 7).

    J holds the derivatives, in pixels, of projections of random points in the camera's frustum. The
    points are the same relative to every camera, so it depends on the lens and not on the pose.
    Coefficients of distortion that are 0 for all cameras get rows and columns of 0: they stay 0.

    Args:
      cameras: n cameras.
      refine: "poses" or "lenses".
      near_far: distances from a camera between which the points are spread evenly.
      center: of a scene without bounds, where the points are spread evenly in the inverse of the
        distance, from a quarter of the mean distance of the cameras from the center on.
      relative_damping: lambda.
      absolute_damping: mu.
    """
    count = len(cameras)
    if center is not None:
        near_far = _content_range(cameras, near_far, center)
    coefficients = np.asarray(cameras.distortion if cameras.distortion is not None else [[]])
    lenses = np.concatenate(
        [
            np.asarray(cameras.focal, np.float64),
            np.asarray(cameras.principal_point, np.float64),
            np.broadcast_to(coefficients.astype(np.float64), (count, coefficients.shape[1])),
        ],
        axis=1,
    )
    _, first, inverse = np.unique(lenses, axis=0, return_index=True, return_inverse=True)
    like = zero_adjustment(refine, 1, coefficients.shape[1])
    assert like is not None
    active = np.ones(count_numbers(like), bool)
    if like.distortion is not None:
        active[7:] = np.any(coefficients != 0.0, axis=0)
    distinct = dataclasses.replace(
        jax.tree.map(np.asarray, cameras)[first],
        T_world_camera=np.tile(np.eye(4, dtype=np.float32), (len(first), 1, 1)),
        ndc=None,
        z_depth_bounds=False,
    )
    points = _frustum_points(distinct, near_far, in_disparity=center is not None)
    factors = np.zeros((len(first), active.size, active.size))
    for index, factor in enumerate(factors):
        jacobian = projection_jacobian(distinct[index], like, points[index])
        jacobian = jacobian.reshape(-1, active.size)[:, active]
        moments = jacobian.T @ jacobian / NUM_POINTS
        damping = relative_damping * np.diag(np.diag(moments))
        damping += absolute_damping * np.eye(len(moments))
        values, vectors = np.linalg.eigh(moments + damping)
        factor[np.ix_(active, active)] = vectors / np.sqrt(values) @ vectors.T
    return factors[inverse.ravel()].astype(np.float32)


def _frustum_points(
    cameras: Cameras, near_far: tuple[float, float], in_disparity: bool
) -> Float[np.ndarray, "n m 3"]:
    """Random points that cameras at the origin see between near and far, always the same."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(size=(NUM_POINTS, 2)) * [cameras.width, cameras.height]
    fraction = rng.uniform(size=(NUM_POINTS, 1))
    pixels = np.broadcast_to(pixels.astype(np.float32), (len(cameras), NUM_POINTS, 2))
    index = np.broadcast_to(np.arange(len(cameras), dtype=np.int32)[:, None], pixels.shape[:2])
    rays = _jitted_rays(cameras, jnp.asarray(index), jnp.asarray(pixels), 0.0, 1.0)
    near, far = near_far
    distance = near + fraction * (far - near)
    if in_disparity:
        distance = 1.0 / (1.0 / near + fraction * (1.0 / far - 1.0 / near))
    return distance * np.asarray(rays.directions, np.float64)


def projection_jacobian(
    camera: Cameras, like: CameraAdjustment, positions: Float[np.ndarray, "m 3"]
) -> Float[np.ndarray, "m 2 d"]:
    """Derivatives of image points, in pixels, in the numbers of an adjustment at zero.

    Args:
      camera: a single one.
      like: says which numbers there are.
      positions: in the world.
    """
    camera = dataclasses.replace(
        camera,
        T_world_camera=np.asarray(camera.T_world_camera, np.float64),
        focal=np.asarray(camera.focal, np.float64),
        distortion=None if camera.distortion is None else np.asarray(camera.distortion, np.float64),
    )

    def project_adjusted(numbers: np.ndarray) -> np.ndarray:
        adjustment = unflatten_adjustment(numbers[None], like)
        return project(adjust_cameras(camera, adjustment, np), 0, positions)[0]

    steps = DIFFERENCE * np.eye(count_numbers(like))
    slopes = [(project_adjusted(h) - project_adjusted(-h)) / (2.0 * DIFFERENCE) for h in steps]
    return np.stack(slopes, axis=-1)


def _content_range(
    cameras: Cameras, near_far: tuple[float, float], center: Float[np.ndarray, "3"]
) -> tuple[float, float]:
    """Distances between which the contents of a scene without bounds are, more or less.

    Near is that of rays, which begin right at the camera, but at least a quarter of the mean
    distance of the cameras from the center of the scene.
    """
    positions = np.asarray(cameras.T_world_camera, np.float64)[:, :3, 3]
    distance = float(np.linalg.norm(positions - center, axis=-1).mean())
    return max(near_far[0], min(0.25 * distance, 0.5 * near_far[1])), near_far[1]


class RayCameras(NamedTuple):
    """For each ray of a batch, what it takes to make it anew from an adjusted camera.

    cameras: r of them, one for each ray.
    pixels: (r, 2) image point, column and row.
    scale: (r,) factor of the radius: how many times larger its pixel is.
    """

    cameras: Cameras
    pixels: Float[Array, "r 2"]
    scale: Float[Array, "r"]


def gather_cameras(cameras: Cameras, index: Int[Array, "r"]) -> Cameras:
    """The camera of each index, within a jitted function."""
    distortion = cameras.distortion
    return dataclasses.replace(
        cameras,
        T_world_camera=jnp.asarray(cameras.T_world_camera)[index],
        focal=jnp.asarray(cameras.focal)[index],
        principal_point=jnp.asarray(cameras.principal_point)[index],
        distortion=None if distortion is None else jnp.asarray(distortion)[index],
    )
