"""Contraction of unbounded space into a box twice as large as the scene's box."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Norm = Literal["max", "euclidean"]
"""Norm of positions, in halves of the sides of the scene's box, by which space is contracted."""

# Rays end at this multiple of their linear radius (`_ray_warp_params`) where they have no far end.
MAX_DISTANCE_FACTOR = 1000.0
# Longest range of s along a ray, in diagonals of the scene's box.
MAX_MARCH_DIAGONALS = 4.0
# Upper bound of the distance in contracted space per unit of s, for rays that begin within 3 half
# diagonals of the center of the box.
MAX_MARCH_SPEED = 1.5


def contracted_aabb(aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
    """The box that all of space is contracted into: the same center, twice the size."""
    center = 0.5 * (aabb[:1] + aabb[1:])
    return center + 2.0 * (aabb - center)


def contract(
    positions: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"], norm: Norm = "max"
) -> Float[Array, "*batch 3"]:
    """Positions in contracted space, in scene units; those within 1 half side are unchanged.

    Let m be the norm of a position relative to the center of the box, in halves of its sides. Where
    m > 1, all coordinates are multiplied by (2 - 1/m) / m (Mip-NeRF 360, eq. 10). With the maximum
    norm, as in nerfacto, the box remains as it is and all of space becomes a box; with the
    Euclidean one, as in Mip-NeRF 360, this holds for the ellipsoid in the box, and space becomes
    the ellipsoid in the box of twice its size.
    """
    center, half = _center_and_half_size(aabb, positions.ndim)
    m = jnp.maximum(_norm((positions - center) / half, norm), 1.0)[..., None]
    return center + (positions - center) * (2.0 - 1.0 / m) / m


def uncontract(
    contracted: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"], norm: Norm = "max"
) -> Float[Array, "*batch 3"]:
    """Inverse of `contract`; the border of contracted space maps to a far but finite distance."""
    center, _ = _center_and_half_size(aabb, contracted.ndim)
    m = _contracted_norm(contracted, aabb, norm)[..., None]
    return center + (contracted - center) / ((2.0 - m) * m)


def inverse_contraction_scale(
    contracted: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"], norm: Norm = "max"
) -> Float[Array, "*batch"]:
    """Outward length in space per unit in contracted space: m^2 (see `contract`), at least 1."""
    return jnp.square(1.0 / (2.0 - _contracted_norm(contracted, aabb, norm)))


def contract_radii(
    radii: Float[Array, "*batch"],
    positions: Float[Array, "*batch 3"],
    aabb: Float[Array, "2 3"],
    norm: Norm = "max",
) -> Float[Array, "*batch"]:
    """Radii in contracted space of cones with given radii at given positions in space.

    They scale with the cube root of the volume: by (2m - 1)^(2/3) / m^2 (see `contract`).
    """
    center, half = _center_and_half_size(aabb, positions.ndim)
    m = jnp.maximum(_norm((positions - center) / half, norm), 1.0)
    return radii * jnp.cbrt(jnp.square(2.0 * m - 1.0)) / jnp.square(m)


def t_to_s(
    tdist: Float[Array, "*batch n"],
    origins: Float[Array, "*batch 3"],
    aabb: Float[Array, "2 3"],
) -> Float[Array, "*batch n"]:
    """Metric distances t along rays as distances s, of which equal steps suit contracted space.

    s is t up to the linear radius r, at which a ray has left the box whatever its direction. Beyond
    it s = r (2 - r / t), so that equal steps of s are nearly equal steps in contracted space. Where
    2 r exceeds `MAX_MARCH_DIAGONALS` diagonals of the box, s is scaled down to that.
    """
    linear_radius, scale = _ray_warp_params(origins, aabb)
    beyond = linear_radius * (2.0 - linear_radius / jnp.maximum(tdist, linear_radius))
    return jnp.where(tdist > linear_radius, beyond, tdist) * scale


def s_to_t(
    sdist: Float[Array, "*batch n"],
    origins: Float[Array, "*batch 3"],
    aabb: Float[Array, "2 3"],
) -> Float[Array, "*batch n"]:
    """Inverse of `t_to_s`; at most `far_distance`."""
    linear_radius, scale = _ray_warp_params(origins, aabb)
    unscaled = sdist / scale
    inverse = jnp.clip(2.0 - unscaled / linear_radius, 1.0 / MAX_DISTANCE_FACTOR, 1.0)
    return jnp.where(unscaled > linear_radius, linear_radius / inverse, unscaled)


def far_distance(
    origins: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> Float[Array, "*batch"]:
    """Distance at which rays end: `MAX_DISTANCE_FACTOR` times their linear radius."""
    return MAX_DISTANCE_FACTOR * _ray_warp_params(origins, aabb)[0][..., 0]


def _ray_warp_params(
    origins: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch 1"]]:
    """Linear radius and scale of each ray (see `t_to_s`).

    The linear radius is the distance from the origin of the ray to the center of the box, plus half
    the diagonal of the box.
    """
    center, half = _center_and_half_size(aabb, origins.ndim)
    half_diagonal = jnp.linalg.norm(half, axis=-1)
    # The gradient of the norm itself is NaN at the center.
    to_center = jnp.sqrt(jnp.sum(jnp.square(origins - center), axis=-1) + 1e-12)
    linear_radius = to_center + half_diagonal
    scale = jnp.minimum(MAX_MARCH_DIAGONALS * half_diagonal / linear_radius, 1.0)
    return linear_radius[..., None], scale[..., None]


def _center_and_half_size(aabb: Float[Array, "2 3"], ndim: int) -> tuple[Array, Array]:
    """Center and half the sides of a box, broadcastable to positions with `ndim` axes."""
    shape = (1,) * (ndim - 1) + (3,)
    return (0.5 * (aabb[0] + aabb[1])).reshape(shape), (0.5 * (aabb[1] - aabb[0])).reshape(shape)


def _contracted_norm(
    contracted: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"], norm: Norm
) -> Float[Array, "*batch"]:
    """The norm of positions in contracted space, from 1 to short of its border at 2."""
    center, half = _center_and_half_size(aabb, contracted.ndim)
    farthest = 2.0 - 1.0 / MAX_DISTANCE_FACTOR
    return jnp.clip(_norm((contracted - center) / half, norm), 1.0, farthest)


def _norm(scaled: Float[Array, "*batch 3"], norm: Norm) -> Float[Array, "*batch"]:
    if norm == "euclidean":
        # The gradient of the norm itself is NaN at the center.
        return jnp.sqrt(jnp.sum(jnp.square(scaled), axis=-1) + 1e-12)
    # Not jnp.max, whose gradient is 0 / 0 where a compiler rounds operand and maximum differently.
    x, y, z = jnp.moveaxis(jnp.abs(scaled), -1, 0)
    return jnp.maximum(jnp.maximum(x, y), z)
