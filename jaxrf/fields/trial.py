"""A trial of a user's field before training: the values at its initial parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.core.errors import InputError
from jaxrf.core.rays import ConicalFrusta
from jaxrf.fields.base import Field, FieldContext, Params
from jaxrf.sampling.occupancy import OccupancyGrid

# Random positions in the box.
NUM_POSITIONS = 1024
# Of the largest density, and of a color: less below 0, or above 1, is rounding.
DENSITY_ROUNDING, COLOR_ROUNDING = 1e-6, 1e-3


class Extremes(NamedTuple):
    """Densities and colors of a field at random positions.

    bad_densities, bad_colors: number of positions at which they are not finite.
    min_density, max_density, min_color, max_color: of those that are finite.
    """

    bad_densities: Int[Array, ""]
    bad_colors: Int[Array, ""]
    min_density: Float[Array, ""]
    max_density: Float[Array, ""]
    min_color: Float[Array, ""]
    max_color: Float[Array, ""]


def check_values(field: Field, params: Params, grid: OccupancyGrid) -> None:
    """Requires finite densities of 0 or more, and colors in [0, 1], at random positions.

    Args:
      field: whose functions return the right shapes (`checks.check_functions`).
      params: before training.
      grid: gives the box.

    Raises:
      InputError: if the field has others; it names the method.
    """
    name = type(field).__name__
    # Drawn by numpy, as JAX would have to compile it.
    rng = np.random.default_rng(0)
    unit = rng.uniform(size=(NUM_POSITIONS, 3)).astype(np.float32)
    directions = rng.normal(size=(NUM_POSITIONS, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    evaluate = jax.jit(find_extremes, static_argnums=0)
    extremes = jax.device_get(evaluate(field, params, grid, unit, directions))
    where = f"{NUM_POSITIONS} random positions in the box, at the initial parameters"
    if extremes.bad_densities:
        raise InputError(
            f"{name}.density is not finite at {extremes.bad_densities} of {where}: return finite "
            "numbers of 0 or more, and check what init returns."
        )
    if extremes.min_density < -DENSITY_ROUNDING * max(extremes.max_density, 1.0):
        raise InputError(
            f"{name}.density is as low as {extremes.min_density:.3g} among {where}: return "
            "numbers of 0 or more, as from jax.nn.softplus or jnp.exp."
        )
    if extremes.bad_colors:
        raise InputError(
            f"{name}.color is not finite at {extremes.bad_colors} of {where}: return finite "
            "numbers in [0, 1]."
        )
    if extremes.min_color < -COLOR_ROUNDING or extremes.max_color > 1.0 + COLOR_ROUNDING:
        raise InputError(
            f"{name}.color is between {extremes.min_color:.3g} and {extremes.max_color:.3g} among "
            f"{where}: return numbers in [0, 1], as from jax.nn.sigmoid."
        )


def find_extremes(
    field: Field,
    params: Params,
    grid: OccupancyGrid,
    unit_positions: Float[Array | np.ndarray, "m 3"],
    directions: Float[Array | np.ndarray, "m 3"],
) -> Extremes:
    """The extreme densities and colors, as they are rendered.

    In contracted space there are no frusta, and noise is for training alone.

    Args:
      field, params: of one network.
      grid: gives the box.
      unit_positions: in the box as the unit cube.
      directions: of unit length, from which the positions are seen.
    """
    low, high = grid.aabb[:1], grid.aabb[1:]
    positions, directions = low + (high - low) * unit_positions, jnp.asarray(directions)
    # Cones of a thousandth of the box, seen from its size away.
    distance = jnp.broadcast_to(jnp.linalg.norm(high - low), directions.shape[:1])
    radii = 1e-3 * distance
    frusta = ConicalFrusta(
        directions, jnp.full_like(radii, 1e-3), distance - radii, distance + radii
    )
    contracted = grid.bounds is not None
    context = FieldContext(radii, grid.aabb, None if contracted else frusta, grid)
    density, latent = field.density(params, positions, context)
    color = field.color(params, field.features(params, latent), directions)
    is_dense = jnp.isfinite(density)
    is_color = jnp.isfinite(color)
    return Extremes(
        bad_densities=jnp.sum(~is_dense),
        bad_colors=jnp.sum(jnp.any(~is_color, axis=1)),
        min_density=jnp.min(jnp.where(is_dense, density, 0.0)),
        max_density=jnp.max(jnp.where(is_dense, density, 0.0)),
        min_color=jnp.min(jnp.where(is_color, color, 0.5)),
        max_color=jnp.max(jnp.where(is_color, color, 0.5)),
    )
