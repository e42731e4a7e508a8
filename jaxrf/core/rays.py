"""Rays: the pytree that samplers and renderers work on, and its intersection with a box."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrf.core.pytree import as_pytree


@as_pytree()
@dataclasses.dataclass(frozen=True)
class Rays:
    """A batch of rays, any batch shape.

    Attributes:
      origins: (..., 3) in scene units.
      directions: (..., 3) of unit length.
      near: (...) distance along the unit direction where sampling starts, in scene units.
      far: (...) distance where it ends; `far == near` is a ray without samples.
      radii: (...) radius of the pixel's cone at distance 1.
      camera_index: (...) index of the camera that each ray comes from.
      stretch: (...) length of the direction if it is to reach one unit along the camera's axis;
        None where nothing asks for it.
    """

    origins: Float[Array, "*batch 3"]
    directions: Float[Array, "*batch 3"]
    near: Float[Array, "*batch"]
    far: Float[Array, "*batch"]
    radii: Float[Array, "*batch"]
    camera_index: Int[Array, "*batch"]
    stretch: Float[Array, "*batch"] | None = None


class ConicalFrusta(NamedTuple):
    """The parts of cones that m samples stand for.

    directions: (m, 3) of their axes, of unit length.
    slopes: (m,) radius of the cone at distance 1.
    starts, ends: (m,) between which distances from the apex they lie.
    """

    directions: Float[Array, "m 3"]
    slopes: Float[Array, "m"]
    starts: Float[Array, "m"]
    ends: Float[Array, "m"]

    @property
    def radii(self) -> Float[Array, "m"]:
        """Of the cones halfway through."""
        return self.slopes * (0.5 * (self.starts + self.ends))


def cast_cones(rays: Rays, edges: Float[Array, "*batch n_plus_1"]) -> ConicalFrusta:
    """The parts of each ray's cone between given distances, those of a ray one after the other."""
    shape = (*edges.shape[:-1], edges.shape[-1] - 1)
    return ConicalFrusta(
        jnp.broadcast_to(rays.directions[..., None, :], (*shape, 3)).reshape(-1, 3),
        jnp.broadcast_to(rays.radii[..., None], shape).ravel(),
        edges[..., :-1].ravel(),
        edges[..., 1:].ravel(),
    )


def points_along(rays: Rays, distances: Float[Array, "*batch n"]) -> Float[Array, "*batch n 3"]:
    """Points at given distances along each ray, in scene units: o + t d."""
    return rays.origins[..., None, :] + distances[..., None] * rays.directions[..., None, :]


def intersect_aabb(
    origins: Float[Array, "*batch 3"],
    directions: Float[Array, "*batch 3"],
    aabb: Float[Array, "2 3"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Distances at which each line enters and leaves the box.

    Slab method (Kay and Kajiya 1986). The entry is behind the exit (`enter > exit`) where the line
    misses the box; both may be negative where the box lies behind the origin. Directions with zero
    components are handled; nothing is NaN.
    """
    tiny = jnp.asarray(1e-12, directions.dtype)
    safe = jnp.where(jnp.abs(directions) < tiny, jnp.where(directions < 0, -tiny, tiny), directions)
    to_low = (aabb[0].reshape((1,) * (origins.ndim - 1) + (3,)) - origins) / safe
    to_high = (aabb[1].reshape((1,) * (origins.ndim - 1) + (3,)) - origins) / safe
    enter = jnp.max(jnp.minimum(to_low, to_high), axis=-1)
    leave = jnp.min(jnp.maximum(to_low, to_high), axis=-1)
    return enter, leave


def clip_to_aabb(rays: Rays, aabb: Float[Array, "2 3"]) -> Rays:
    """Rays whose near and far are narrowed to the box; a ray that misses it gets far == near."""
    enter, leave = intersect_aabb(rays.origins, rays.directions, aabb)
    near = jnp.maximum(rays.near, enter)
    far = jnp.minimum(rays.far, leave)
    hit = far > near
    return dataclasses.replace(
        rays, near=jnp.where(hit, near, rays.near), far=jnp.where(hit, far, rays.near)
    )


def normalize_distances(
    rays: Rays, distances: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Distances such that near is 0 and far is 1; all 0 for rays without length."""
    near, length = rays.near[..., None], (rays.far - rays.near)[..., None]
    return jnp.where(length > 0, (distances - near) / jnp.where(length > 0, length, 1.0), 0.0)
