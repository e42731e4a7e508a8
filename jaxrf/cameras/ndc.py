"""Normalized device coordinates, where a forward-facing scene fills a cube (NeRF, appendix C)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core.rays import Rays


def rays_to_ndc(rays: Rays, slopes: Float[Array, "2"], plane: float = 1.0) -> Rays:
    """Rays in normalized device coordinates.

    Moves the origin o to the near plane z = -n; then
    o' = -(o_x / (s_x o_z), o_y / (s_y o_z), -1 - 2 n / o_z), where s is half the image size divided
    by the focal length. The rays reach from the near plane (z' = -1) to infinity (z' = 1). Their
    directions have unit length. Pixels have about the same width everywhere along a ray; `radii`
    give cones that have this width at the middle of the ray.

    Args:
      rays: looking down -z; other rays get far == near.
      slopes: half of the image's width and height divided by the focal lengths.
      plane: n, distance of the near plane.
    """
    axis = (1,) * (rays.origins.ndim - 1)
    scale = slopes.reshape((*axis, 2))
    ahead = -rays.directions[..., 2:]
    looks_ahead = ahead[..., 0] > 1e-6
    ahead = jnp.where(looks_ahead[..., None], ahead, 1.0)
    start = (plane + rays.origins[..., 2:]) / ahead
    origin = rays.origins + start * rays.directions
    depth = -origin[..., 2:]
    to_point = origin[..., :2] / (scale * depth)
    begin = jnp.concatenate([to_point, 1.0 - 2.0 * plane / depth], axis=-1)
    end_point = rays.directions[..., :2] / (scale * ahead)
    end = jnp.concatenate([end_point, jnp.ones_like(depth)], axis=-1)
    span = end - begin
    length = jnp.linalg.norm(span, axis=-1)
    # Half an image, which is 1 wide in these coordinates, is `scale` wide at distance 1.
    width = rays.radii / jnp.sqrt(scale[..., 0] * scale[..., 1])
    return dataclasses.replace(
        rays,
        origins=begin,
        directions=span / length[..., None],
        near=jnp.zeros_like(length),
        far=jnp.where(looks_ahead, length, 0.0),
        radii=width / (0.5 * length),
    )


def ndc_to_distance(
    rays: Rays, ndc: Rays, distances: Float[Array, "*batch"], plane: float = 1.0
) -> Float[Array, "*batch"]:
    """Distances along rays in space, for distances along the same rays in `rays_to_ndc`.

    t = n t' / (-d_z (1 - t')) beyond the near plane, where t' in [0, 1] is the distance along the
    ray in NDC divided by its length. Infinity becomes 1e6 times the distance of the near plane.

    Args:
      rays: in space.
      ndc: the result of `rays_to_ndc` for them.
      distances: along `ndc`.
      plane: n, distance of the near plane.
    """
    ahead, start = _meet_near_plane(rays, plane)
    fraction = distances / jnp.where(ndc.far > 0.0, ndc.far, 1.0)
    return start + plane * fraction / (ahead * jnp.maximum(1.0 - fraction, 1e-6))


def distance_to_ndc(
    rays: Rays, ndc: Rays, distances: Float[Array, "*batch"], plane: float = 1.0
) -> Float[Array, "*batch"]:
    """Distances along the rays of `rays_to_ndc`, for distances along the same rays in space.

    The inverse of `ndc_to_distance`: 0 before the near plane.

    Args:
      rays: in space.
      ndc: the result of `rays_to_ndc` for them.
      distances: along `rays`.
      plane: n, distance of the near plane.
    """
    ahead, start = _meet_near_plane(rays, plane)
    beyond = ahead * jnp.maximum(distances - start, 0.0)
    return ndc.far * beyond / (plane + beyond)


def _meet_near_plane(
    rays: Rays, plane: float
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Cosines of rays with -z (1 for backward rays), and their distances to the near plane."""
    ahead = -rays.directions[..., 2]
    ahead = jnp.where(ahead > 1e-6, ahead, 1.0)
    return ahead, (plane + rays.origins[..., 2]) / ahead
