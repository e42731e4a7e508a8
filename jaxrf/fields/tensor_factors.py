"""Factors of TensoRF: planes and lines on the points of a grid, their resampling and penalties.

Chen, Xu, Geiger, Yu, Su: TensoRF, tensorial radiance fields (ECCV 2022), section 4.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core import grids

Params = dict[str, Any]

# A plane spans two axes (across, down), its line the third.
PLANE_AXES = ((0, 1), (0, 2), (1, 2))
LINE_AXES = (2, 1, 0)


def resample(
    params: Params,
    resolution: tuple[int, int, int],
    old: Float[Array, "2 3"],
    new: Float[Array, "2 3"],
) -> Params:
    """Parameters on the grid points of another box, by linear interpolation.

    Serves upsampling (section 4.4) as well as shrinking the box; what of the new box lies outside
    the old one repeats its border. Works on anything shaped like the parameters, such as the
    moments of an optimizer.

    Args:
      params: on the box `old`.
      resolution: grid points along x, y, z from now on.
      old, new: the boxes.
    """
    start, stop = (new - old[:1]) / (old[1:] - old[:1])

    def resample_factors(factors: dict[str, tuple[Array, ...]]) -> dict[str, tuple[Array, ...]]:
        return {
            "planes": tuple(
                grids.resample_plane(
                    plane,
                    (resolution[down], resolution[across]),
                    (start[down], start[across]),
                    (stop[down], stop[across]),
                )
                # Without planes there are none to go on.
                for plane, (across, down) in zip(factors["planes"], PLANE_AXES, strict=False)
            ),
            "lines": tuple(
                grids.resample_line(line, resolution[axis], start[axis], stop[axis])
                for line, axis in zip(factors["lines"], LINE_AXES, strict=True)
            ),
        }

    return {
        **params,
        "density": resample_factors(params["density"]),
        "features": resample_factors(params["features"]),
    }


def fit_resolution(voxels: int, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
    """Grid points along x, y, z such that about `voxels` cubic voxels fill the box."""
    size = [float(s) for s in np.asarray(aabb[1], np.float64) - aabb[0]]
    voxel = (size[0] * size[1] * size[2] / voxels) ** (1.0 / 3.0)
    # Rounded up only past the rounding error, or a cube of n^3 voxels would get n + 1 points.
    x, y, z = (max(2, math.ceil(s / voxel - 1e-6)) for s in size)
    return x, y, z


def l1_norm(params: Params) -> Float[Array, ""]:
    """Mean absolute value of the density's factors, summed over planes and lines (section 4.3)."""
    leaves = jax.tree.leaves(params["density"])
    return sum((jnp.mean(jnp.abs(leaf)) for leaf in leaves), jnp.zeros(()))


def total_variation(factors: dict[str, tuple[Array, ...]]) -> Float[Array, ""]:
    """Mean squared difference of neighbouring entries, summed over planes, both ways.

    Over lines where there are no planes (the authors' code, section "TV loss").
    """

    def variation(entries: Array, axis: int) -> Array:
        return jnp.mean(jnp.square(jnp.diff(entries, axis=axis)))

    along = [(plane, axis) for plane in factors["planes"] for axis in (0, 1)]
    along = along or [(line, 0) for line in factors["lines"]]
    return sum((variation(*entries) for entries in along), jnp.zeros(()))


def ortho_loss(params: Params) -> Float[Array, ""]:
    """Mean absolute inner product of different components' lines, summed over all lines.

    Zero if the components along each axis are orthogonal (the authors' code, "Ortho weight").
    """

    def mean_product(line: Array) -> Array:
        count = line.shape[1]
        products = jnp.abs(line.T @ line) * (1.0 - jnp.eye(count, dtype=line.dtype))
        return jnp.sum(products) / max(count * (count - 1), 1)

    lines = [*params["density"]["lines"], *params["features"]["lines"]]
    return sum((mean_product(line) for line in lines), jnp.zeros(()))
