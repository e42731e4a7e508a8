"""The alpha mask of TensoRF: points in a box, between which density may be if one of them is set.

TensoRF interpolates the points trilinearly and evaluates the density where the result is above 0.
A converted field keeps the mask to render the same images. Training goes by the cells of its grid.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrf.core.pytree import as_pytree
from jaxrf.sampling.occupancy import lookup
from jaxrf.sampling.weight_tracking import WeightTrackedGrid

# Positions this close to a plane of points, as a share of the mask's size, lie on it. Rounding
# decides in TensoRF. Where rays enter a box, all first samples lie on its faces, up to rounding.
PLANE_TOLERANCE = 6e-6


@as_pytree("contraction_norm")
@dataclasses.dataclass(frozen=True)
class AlphaMaskedGrid(WeightTrackedGrid):
    """A grid whose images are rendered by an alpha mask instead of its cells.

    Every position that the mask admits lies in an occupied cell.

    Attributes:
      mask_points: (x, y, z) flags, the first and last ones on the faces of `mask_aabb`.
      mask_aabb: (2, 3) the mask's box, which may differ from that of the cells.
    """

    mask_points: Bool[Array, "px py pz"]
    mask_aabb: Float[Array, "2 3"]

    def lookup_for_images(self, positions: Float[Array, "*batch 3"]) -> Bool[Array, "*batch"]:
        """Whether images evaluate the density at each position, by the mask."""
        masked = interpolates_above_zero(self.mask_points, self.mask_aabb, positions)
        return masked & lookup(self, positions)


def attach_mask(
    grid: WeightTrackedGrid,
    points: Bool[Array | np.ndarray, "px py pz"],
    aabb: Float[Array | np.ndarray, "2 3"],
) -> AlphaMaskedGrid:
    """The grid with an alpha mask, which must not admit positions outside the occupied cells."""
    parts = {part.name: getattr(grid, part.name) for part in dataclasses.fields(WeightTrackedGrid)}
    box = jnp.asarray(aabb, jnp.float32)
    return AlphaMaskedGrid(**parts, mask_points=jnp.asarray(points), mask_aabb=box)


def interpolates_above_zero(
    points: Bool[Array, "px py pz"],
    aabb: Float[Array, "2 3"],
    positions: Float[Array, "*batch 3"],
) -> Bool[Array, "*batch"]:
    """Whether the trilinear interpolation of points is above 0 at each position.

    That is the case if one of the (up to eight) points of nonzero weight is set. Outside of the box
    the points go on with unset ones, so that set points on a face reach one cell beyond it.

    Args:
      points: two or more along each axis.
      aabb: the box, whose faces hold the first and the last points.
      positions: in scene units.
    """
    lead = (1,) * (positions.ndim - 1)
    shape = points.shape
    last = jnp.asarray(shape, positions.dtype).reshape((*lead, 3)) - 1
    low, high = (side.reshape((*lead, 3)) for side in aabb)
    scaled = (positions - low) / (high - low) * last
    nearest = jnp.round(scaled)
    scaled = jnp.where(jnp.abs(scaled - nearest) <= PLANE_TOLERANCE * last, nearest, scaled)
    # Indices into points that are surrounded by unset ones.
    below, above = (
        jnp.clip(index + 1, 0, last + 2).astype(jnp.int32)
        for index in (jnp.floor(scaled), jnp.ceil(scaled))
    )
    padded = jnp.pad(points, 1).ravel()
    result = jnp.zeros(positions.shape[:-1], bool)
    for corner in np.ndindex(2, 2, 2):
        x, y, z = ((below, above)[side][..., axis] for axis, side in enumerate(corner))
        result |= padded[(x * (shape[1] + 2) + y) * (shape[2] + 2) + z]
    return result
