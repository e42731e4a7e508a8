"""Rays, their cones, points along them, and their intersection with boxes."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.core.pytree import as_pytree

# Of a full turn; no number of such turns nearly closes a circle.
GOLDEN_TURN = 0.5 * (math.sqrt(5.0) - 1.0)


@as_pytree()
@dataclasses.dataclass(frozen=True)
class Rays:
    """A batch of rays of any batch shape.

    Attributes:
      origins: (..., 3) in scene units.
      directions: (..., 3) of unit length.
      near: (...) distance along the unit direction where sampling starts, in scene units.
      far: (...) distance where sampling ends; a ray with `far == near` has no samples.
      radii: (...) radius of the pixel's cone at distance 1.
      camera_index: (...) index of the camera that each ray belongs to.
      ray_z_scale: (...) distance along the ray per unit of depth along the camera's optical axis;
        None unless `Cameras.z_depth_bounds`.
    """

    origins: Float[Array, "*batch 3"]
    directions: Float[Array, "*batch 3"]
    near: Float[Array, "*batch"]
    far: Float[Array, "*batch"]
    radii: Float[Array, "*batch"]
    camera_index: Int[Array, "*batch"]
    ray_z_scale: Float[Array, "*batch"] | None = None

    @classmethod
    def create(
        cls,
        origins: Any,
        directions: Any,
        near: Any,
        far: Any,
        radii: Any = 0.0,
    ) -> "Rays":
        """Rays of one camera from arrays or numbers, which are broadcast to one batch shape.

        Args:
          origins: (..., 3) in scene units.
          directions: (..., 3) of any length; they are normalized.
          near, far, radii: (...) as in `Rays`.

        Examples:
          >>> Rays.create([0.0, 0.0, 4.0], [[0.0, 0.0, -1.0]], near=2.0, far=6.0).origins.shape
          (1, 3)
        """
        o, d = (jnp.asarray(x, jnp.float32) for x in (origins, directions))
        near, far, radii = (jnp.asarray(x, jnp.float32) for x in (near, far, radii))
        ends = (near.shape, far.shape, radii.shape)
        shape = jnp.broadcast_shapes(o.shape[:-1], d.shape[:-1], *ends)
        return cls(
            origins=jnp.broadcast_to(o, (*shape, 3)),
            directions=jnp.broadcast_to(
                d / jnp.linalg.norm(d, axis=-1, keepdims=True), (*shape, 3)
            ),
            near=jnp.broadcast_to(near, shape),
            far=jnp.broadcast_to(far, shape),
            radii=jnp.broadcast_to(radii, shape),
            camera_index=jnp.zeros(shape, jnp.int32),
        )


class ConicalFrusta(NamedTuple):
    """Sections of the rays' cones, one for each of m samples (Mip-NeRF, section 3.1).

    directions: (m, 3) of the cones' axes, of unit length.
    base_radii: (m,) radius of the cone at distance 1.
    starts, ends: (m,) distances from the apex at which the section begins and ends.
    """

    directions: Float[Array, "m 3"]
    base_radii: Float[Array, "m"]
    starts: Float[Array, "m"]
    ends: Float[Array, "m"]

    @property
    def radii(self) -> Float[Array, "m"]:
        """Radii of the cones halfway between the ends of the sections."""
        return self.base_radii * (0.5 * (self.starts + self.ends))


def cast_cones(rays: Rays, edges: Float[Array, "*batch n_plus_1"]) -> ConicalFrusta:
    """Conical frusta of the intervals between `edges` along each ray, in ray-major order."""
    shape = (*edges.shape[:-1], edges.shape[-1] - 1)
    return ConicalFrusta(
        jnp.broadcast_to(rays.directions[..., None, :], (*shape, 3)).reshape(-1, 3),
        jnp.broadcast_to(rays.radii[..., None], shape).ravel(),
        edges[..., :-1].ravel(),
        edges[..., 1:].ravel(),
    )


class Multisamples(NamedTuple):
    """Points that stand for parts of cones, k for each of m samples.

    positions: (m, k, 3).
    stds: (m, k) of an isotropic Gaussian around each.
    """

    positions: Float[Array, "m k 3"]
    stds: Float[Array, "m k"]


def multisample_cones(
    positions: Float[Array, "m 3"], frusta: ConicalFrusta, count: int
) -> Multisamples:
    """Points on a spiral in each section of a cone, with the section's mean and covariance.

    With radius r at distance 1 and edges t_0, t_1 of the section, point j is at distance t_j, at
    r t_j / sqrt(2) from the axis and turned by an angle; its standard deviation is half of that
    (Barron et al.: Zip-NeRF, ICCV 2023, eq. 1 to 3). There count is 6, with angles 0, 2/3, 4/3, 1,
    5/3, 1/3 pi; here every sample's pattern is turned by the golden angle against the one before.

    Args:
      positions: halfway between the ends of the sections.
      frusta: sections of cones.
      count: points of each, 2 or more.
    """
    half = 0.5 * (frusta.ends - frusta.starts)[:, None]
    middle = 0.5 * (frusta.starts + frusta.ends)[:, None]
    # Evenly spaced offsets whose variance is 3/5 whatever their number, as that of 6 is there.
    offset = jnp.linspace(-1.0, 1.0, count)[None] * math.sqrt(1.8 * (count - 1) / (count + 1))
    # Relative to the middle, so that nothing overflows; at the apex itself all lengths are 0.
    q = half / jnp.where(middle > 0.0, middle, 1.0)
    spread = jnp.sqrt(jnp.square(1.0 - q * q) + 4.0)
    fraction = (jnp.square(1.0 + q) + 2.0 + offset * spread) / (3.0 + q * q)
    distances = frusta.starts[:, None] + half * fraction
    turned = GOLDEN_TURN * jnp.arange(len(positions))[:, None]
    turns = jnp.asarray(_spiral_turns(count))[None] + turned
    angles = 2.0 * math.pi * (turns % 1.0)
    across = frusta.base_radii[:, None] * distances / math.sqrt(2.0)
    first, second = _perpendicular_axes(frusta.directions)
    points = positions[:, None] + (distances - middle)[..., None] * frusta.directions[:, None]
    points += (across * jnp.cos(angles))[..., None] * first[:, None]
    points += (across * jnp.sin(angles))[..., None] * second[:, None]
    return Multisamples(points, 0.5 * across)


def _spiral_turns(count: int) -> Float[np.ndarray, "k"]:
    """Angles of a pattern in turns: thirds, then thirds in between."""
    return np.array([(j % 3) / 3 + (j // 3 % 2) / 2 for j in range(count)], np.float32) % 1.0


def _perpendicular_axes(
    directions: Float[Array, "m 3"],
) -> tuple[Float[Array, "m 3"], Float[Array, "m 3"]]:
    """Two unit vectors perpendicular to each direction and to each other."""
    x, y, z = jnp.moveaxis(directions, -1, 0)
    # Duff et al.: Building an orthonormal basis, revisited (JCGT 2017).
    sign = jnp.where(z < 0.0, -1.0, 1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = jnp.stack([1.0 + sign * x * x * a, sign * b, -sign * x], axis=-1)
    return first, jnp.stack([b, sign + y * y * a, -y], axis=-1)


def points_along(rays: Rays, distances: Float[Array, "*batch n"]) -> Float[Array, "*batch n 3"]:
    """Points o + t d at distances t along each ray, in scene units."""
    return rays.origins[..., None, :] + distances[..., None] * rays.directions[..., None, :]


def intersect_aabb(
    origins: Float[Array, "*batch 3"],
    directions: Float[Array, "*batch 3"],
    aabb: Float[Array, "2 3"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Distances at which each line enters and leaves a box.

    Slab method (Kay and Kajiya 1986). Where the line misses the box, the distance of entry is
    larger than that of the exit. Both may be negative: the box then lies behind the origin. Zero
    components of directions are allowed; no result is NaN.
    """
    tiny = jnp.asarray(1e-12, directions.dtype)
    safe = jnp.where(jnp.abs(directions) < tiny, jnp.where(directions < 0, -tiny, tiny), directions)
    to_low = (aabb[0].reshape((1,) * (origins.ndim - 1) + (3,)) - origins) / safe
    to_high = (aabb[1].reshape((1,) * (origins.ndim - 1) + (3,)) - origins) / safe
    enter = jnp.max(jnp.minimum(to_low, to_high), axis=-1)
    leave = jnp.min(jnp.maximum(to_low, to_high), axis=-1)
    return enter, leave


def clip_to_aabb(rays: Rays, aabb: Float[Array, "2 3"]) -> Rays:
    """Rays with near and far clipped to a box; a ray that misses the box gets far == near."""
    enter, leave = intersect_aabb(rays.origins, rays.directions, aabb)
    near = jnp.maximum(rays.near, enter)
    far = jnp.minimum(rays.far, leave)
    hit = far > near
    return dataclasses.replace(
        rays, near=jnp.where(hit, near, rays.near), far=jnp.where(hit, far, rays.near)
    )


def mean_rays(rays: Rays, group_size: int) -> Rays:
    """One ray for each group of consecutive ones: their mean, which spans all of their lengths.

    Args:
      rays: batch shape (r,).
      group_size: rays of a group; r is a multiple of it.
    """

    if group_size == 1:
        return rays

    def group(x: Array) -> Array:
        return x.reshape(-1, group_size, *x.shape[1:])

    direction = jnp.mean(group(rays.directions), axis=1)
    return dataclasses.replace(
        jax.tree.map(lambda x: group(x)[:, 0], rays),
        origins=jnp.mean(group(rays.origins), axis=1),
        directions=direction / jnp.linalg.norm(direction, axis=-1, keepdims=True),
        near=jnp.min(group(rays.near), axis=1),
        far=jnp.max(group(rays.far), axis=1),
    )


def normalize_distances(
    rays: Rays, distances: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Distances mapped linearly from [near, far] to [0, 1]; 0 for rays with far == near."""
    near, length = rays.near[..., None], (rays.far - rays.near)[..., None]
    return jnp.where(length > 0, (distances - near) / jnp.where(length > 0, length, 1.0), 0.0)
