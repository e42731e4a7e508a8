"""Occupancy grids and rays through them that the tests of sampling share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrf.cameras import contraction
from jaxrf.core.rays import Rays
from jaxrf.sampling.occupancy import OccupancyGrid, lookup, to_s_rays

# Cells of 0.5 x 0.25 x 1, all exact in float32.
BOX = np.array([[-1.0, 0.0, 2.0], [1.0, 1.25, 5.0]], np.float32)
SHAPE = (4, 5, 3)
CELL = (BOX[1] - BOX[0]) / np.array(SHAPE)

look_up = jax.jit(lookup)


def random_grid(fraction_occupied: float = 0.4, seed: int = 0) -> OccupancyGrid:
    occupied = np.random.default_rng(seed).uniform(size=SHAPE) < fraction_occupied
    return OccupancyGrid(jnp.asarray(occupied), jnp.asarray(BOX))


def random_rays(count: int, seed: int = 4, aims: np.ndarray | None = None) -> Rays:
    rng = np.random.default_rng(seed)
    origins = rng.normal(size=(count, 3)) * 3.0 + BOX.mean(axis=0)
    if aims is None:
        aims = BOX[0] + rng.uniform(-0.2, 1.2, (count, 3)) * (BOX[1] - BOX[0])
    directions = aims - origins
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Rays(
        origins=jnp.asarray(origins, jnp.float32),
        directions=jnp.asarray(directions, jnp.float32),
        near=jnp.full((count,), 0.5),
        far=jnp.asarray(rng.uniform(3.0, 9.0, count), jnp.float32),
        radii=jnp.zeros((count,)),
        camera_index=jnp.zeros((count,), jnp.int32),
    )


def contracted_case(
    count: int, fraction_occupied: float = 0.05
) -> tuple[OccupancyGrid, Rays, np.ndarray, float, float]:
    """Some cells of contracted space, rays of which many begin inside it, a step, a dilation."""
    aabb = jnp.asarray(contraction.contracted_aabb(BOX))
    occupied = np.random.default_rng(2).uniform(size=(12, 10, 14)) < fraction_occupied
    grid = OccupancyGrid(jnp.asarray(occupied), aabb, bounds=jnp.asarray(BOX))
    cell = float(np.min(np.diff(np.asarray(aabb), axis=0)[0] / occupied.shape))
    rng = np.random.default_rng(3)
    rays = dataclasses.replace(
        random_rays(count),
        origins=jnp.asarray(
            rng.uniform(*contraction.contracted_aabb(BOX), (count, 3)), jnp.float32
        ),
        near=jnp.full((count,), 0.05),
    )
    offset = rng.uniform(size=count).astype(np.float32)
    step = 0.4 * cell
    return (
        grid,
        to_s_rays(grid, rays),
        offset,
        step,
        contraction.MAX_MARCH_SPEED * 0.5 * 4 * step / cell,
    )
