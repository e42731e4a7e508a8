"""Contraction: all of space in a box twice as large as the scene's, which itself stays as it is."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Rays end so many knees from their origin, where distances have no end.
MAX_DISTANCE_FACTOR = 1000.0
# What is marched along a ray at most, in diagonals of the scene's box.
MAX_MARCH_DIAGONALS = 4.0
# A ray crosses contracted space at most so many times as fast as its marched distance grows, if it
# begins within 3 half diagonals of the box's center.
MAX_MARCH_SPEED = 1.5


def contracted_aabb(aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
    """The box that all of space is contracted into: the same center, twice the size."""
    center = 0.5 * (aabb[:1] + aabb[1:])
    return center + 2.0 * (aabb - center)


def contract(
    positions: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> Float[Array, "*batch 3"]:
    """Positions in contracted space, in scene units; inside the box nothing moves.

    With m the largest coordinate, counted from the box's center in halves of its sides, all
    coordinates are multiplied with (2 - 1/m) / m where m > 1 (Mip-NeRF 360, eq. 10, with the
    maximum for the norm, so that a box remains a box).
    """
    center, half = _measure(aabb, positions.ndim)
    largest = jnp.maximum(_largest((positions - center) / half), 1.0)[..., None]
    return center + (positions - center) * (2.0 - 1.0 / largest) / largest


def uncontract(
    contracted: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> Float[Array, "*batch 3"]:
    """The inverse of `contract`; what lies on the contracted space's border is put far out."""
    center, half = _measure(aabb, contracted.ndim)
    inside = jnp.clip(_largest((contracted - center) / half), 1.0, 2.0 - 1.0 / MAX_DISTANCE_FACTOR)[
        ..., None
    ]
    return center + (contracted - center) / ((2.0 - inside) * inside)


def inverse_contraction_scale(
    contracted: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> Float[Array, "*batch"]:
    """How much longer space is outwards than contracted space is there: m^2, 1 inside the box."""
    center, half = _measure(aabb, contracted.ndim)
    inside = jnp.clip(_largest((contracted - center) / half), 1.0, 2.0 - 1.0 / MAX_DISTANCE_FACTOR)
    return jnp.square(1.0 / (2.0 - inside))


def contract_radii(
    radii: Float[Array, "*batch"], positions: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> Float[Array, "*batch"]:
    """Radii of cones at positions in space as they are in contracted space.

    They shrink like the third root of the volume, (2m - 1)^(2/3) / m^2.
    """
    center, half = _measure(aabb, positions.ndim)
    largest = jnp.maximum(_largest((positions - center) / half), 1.0)
    return radii * jnp.cbrt(jnp.square(2.0 * largest - 1.0)) / jnp.square(largest)


def t_to_s(
    distances: Float[Array, "*batch n"],
    origins: Float[Array, "*batch 3"],
    aabb: Float[Array, "2 3"],
) -> Float[Array, "*batch n"]:
    """Marched distances of distances along rays: as long up to a knee behind the box, then finite.

    Beyond the knee k a distance t counts as k (2 - k / t), so that even steps of it are about even
    steps through contracted space. The knee lies where the box can but be behind. What is longer
    than `MAX_MARCH_DIAGONALS` diagonals of the box is shortened to that as a whole.
    """
    knee, shortening = _ray_warp_params(origins, aabb)
    beyond = knee * (2.0 - knee / jnp.maximum(distances, knee))
    return jnp.where(distances > knee, beyond, distances) * shortening


def s_to_t(
    marched: Float[Array, "*batch n"],
    origins: Float[Array, "*batch 3"],
    aabb: Float[Array, "2 3"],
) -> Float[Array, "*batch n"]:
    """The inverse of `t_to_s`: at most `MAX_DISTANCE_FACTOR` knees."""
    knee, shortening = _ray_warp_params(origins, aabb)
    straight = marched / shortening
    rest = jnp.clip(2.0 - straight / knee, 1.0 / MAX_DISTANCE_FACTOR, 1.0)
    return jnp.where(straight > knee, knee / rest, straight)


def far_distance(
    origins: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> Float[Array, "*batch"]:
    """The distance at which rays end: `MAX_DISTANCE_FACTOR` knees."""
    return MAX_DISTANCE_FACTOR * _ray_warp_params(origins, aabb)[0][..., 0]


def _ray_warp_params(
    origins: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"]
) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch 1"]]:
    """The distance at which a ray has surely left the box, and the factor of what it marches."""
    center, half = _measure(aabb, origins.ndim)
    radius = jnp.linalg.norm(half, axis=-1)
    # Not the norm itself, whose gradient at the center is not a number.
    away = jnp.sqrt(jnp.sum(jnp.square(origins - center), axis=-1) + 1e-12)
    knee = away + radius
    shortening = jnp.minimum(MAX_MARCH_DIAGONALS * radius / knee, 1.0)
    return knee[..., None], shortening[..., None]


def _measure(aabb: Float[Array, "2 3"], axes: int) -> tuple[Array, Array]:
    """Center and half the sides of a box, with as many axes as the positions have."""
    shape = (1,) * (axes - 1) + (3,)
    return (0.5 * (aabb[0] + aabb[1])).reshape(shape), (0.5 * (aabb[1] - aabb[0])).reshape(shape)


def _largest(scaled: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
    return jnp.max(jnp.abs(scaled), axis=-1)
