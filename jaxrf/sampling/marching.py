"""Marching: steps of one length through the occupied cells of a grid, packed."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.cameras import contraction
from jaxrf.core.errors import InputError
from jaxrf.core.kernels import calls
from jaxrf.core.packing import pack, rank_samples
from jaxrf.core.rays import Rays, clip_to_aabb, points_along
from jaxrf.sampling.occupancy import (
    OccupancyGrid,
    contract_positions,
    lookup,
    s_to_t,
    to_s_rays,
)
from jaxrf.sampling.packed import PackedSamples

# Steps of a block that is skipped as a whole where no cell near it is occupied.
STEPS_PER_BLOCK = 8
# Probes of a block when only asking whether a ray hits anything.
PROBES = 8


class MarchConfig(NamedTuple):
    """How rays are marched through an occupancy grid; static numbers.

    max_blocks: per ray; together they must reach across the box.
    steps_per_block: a block is skipped as a whole if no cell near it is occupied.
    block_budget: blocks entered at most, over all rays.
    sample_budget: samples at most, over all rays.
    """

    max_blocks: int
    steps_per_block: int
    block_budget: int
    sample_budget: int


def max_blocks_per_ray(
    aabb: Float[np.ndarray, "2 3"],
    step_size: Float[Array, ""],
    bounds: Float[np.ndarray | Array, "2 3"] | None = None,
) -> int:
    """Blocks of steps that reach across the box, or to the end of contracted space."""
    diagonals = contraction.MAX_MARCH_DIAGONALS if bounds is not None else 1.0
    low, high = aabb if bounds is None else bounds
    diagonal = float(np.linalg.norm(np.asarray(high - low)))
    return math.ceil(diagonals * diagonal / float(step_size) / STEPS_PER_BLOCK) + 1


def block_dilation(
    step_size: Float[Array, ""],
    aabb: Float[np.ndarray, "2 3"],
    resolution: tuple[int, int, int],
    contracted: bool,
) -> float:
    """Half a block of steps, in cells of an occupancy grid: the `dilation_cells` of its pooling."""
    cell = float(np.min((aabb[1] - aabb[0]) / np.array(resolution)))
    cell = cell / contraction.MAX_MARCH_SPEED if contracted else cell
    return 0.5 * STEPS_PER_BLOCK * float(step_size) / cell


def occupied_blocks(
    coarse: OccupancyGrid,
    rays: Rays,
    length: Float[Array, ""] | float,
    count: int,
    begin: Float[Array, "r"] | None = None,
) -> Bool[Array, "r count"]:
    """Whether each of a ray's blocks, all of one length, may hold anything between near and far.

    Args:
      coarse: made by `max_pool_occupancy` with a dilation of half a block.
      rays: batch shape (r,), made by `to_s_rays`.
      length: of a block, an s distance.
      count: number of blocks.
      begin: (r,) where the first block begins; near by default.
    """
    near, far = rays.near[:, None], rays.far[:, None]
    begin = rays.near if begin is None else begin
    start = begin[:, None] + length * jnp.arange(count, dtype=near.dtype)[None]
    # Clipped to the box, or the middle of a block that sticks out would miss what is inside.
    start, stop = jnp.maximum(start, near), jnp.minimum(start + length, far)
    middle = s_to_t(coarse, 0.5 * (start + stop), rays.origins)
    return (stop > start) & lookup(coarse, contract_positions(coarse, points_along(rays, middle)))


def march_to_samples(
    grid: OccupancyGrid,
    coarse: OccupancyGrid,
    rays: Rays,
    offset: Float[Array, "r"],
    step_size: Float[Array, ""] | float,
    march: MarchConfig,
) -> tuple[PackedSamples, Int[Array, ""]]:
    """Steps of one length through the occupied cells, packed.

    Args:
      grid: a step is a sample if its middle lies in an occupied cell.
      coarse: made by `max_pool_occupancy` with a dilation of half a block of steps.
      rays: batch shape (r,), made by `to_s_rays`.
      offset: (r,) in [0, 1); each ray's first step begins so many steps before its near, and is
        clamped to it.
      step_size: an s distance.
      march: shapes and budgets.

    Returns:
      The samples, with distances along the rays, and the number of rays that fit into the budgets:
      of that many first rays all samples are there, the others must not be used. On a CPU a kernel
      marches (`core.kernels`), which has no budget of blocks.
    """
    has_kernel = grid.bounds is None and march.steps_per_block == calls.STEPS_PER_BLOCK
    if not has_kernel or not calls.can_call(rays.origins, rays.near, offset, grid.aabb):
        return _march_with_xla(grid, coarse, rays, offset, step_size, march)
    packed: tuple[PackedSamples, Array] = jax.lax.platform_dependent(
        grid,
        coarse,
        rays,
        offset,
        jnp.asarray(step_size, jnp.float32),
        cpu=partial(_march_with_kernel, march),
        default=partial(_march_with_xla, march=march),
    )
    return packed


def _march_with_kernel(
    march: MarchConfig,
    grid: OccupancyGrid,
    coarse: OccupancyGrid,
    rays: Rays,
    offset: Float[Array, "r"],
    step_size: Float[Array, ""],
) -> tuple[PackedSamples, Int[Array, ""]]:
    *samples, num_complete_rays = calls.march(
        (grid.occupied, grid.aabb),
        (coarse.occupied, coarse.aabb),
        (rays.origins, rays.directions, rays.near, rays.far),
        rays.near - offset * step_size,
        step_size,
        march.max_blocks,
        march.sample_budget,
    )
    return PackedSamples(*samples), num_complete_rays


def _march_with_xla(
    grid: OccupancyGrid,
    coarse: OccupancyGrid,
    rays: Rays,
    offset: Float[Array, "r"],
    step_size: Float[Array, ""] | float,
    march: MarchConfig,
) -> tuple[PackedSamples, Int[Array, ""]]:
    steps = march.steps_per_block
    near = rays.near - offset * step_size
    block_mask = occupied_blocks(coarse, rays, steps * step_size, march.max_blocks, near)
    block_rank = rank_samples(block_mask)
    blocks = pack(block_mask, block_rank, march.block_budget)
    block_index = jnp.minimum(blocks.sample, block_mask.size - 1)
    ray, block_of_ray = block_index // march.max_blocks, block_index % march.max_blocks

    step_of_ray = block_of_ray[:, None] * steps + jnp.arange(steps, dtype=jnp.int32)[None]
    starts = near[ray][:, None] + step_size * step_of_ray
    low, high = rays.near[ray][:, None], rays.far[ray][:, None]
    stops = jnp.clip(starts + step_size, low, high)
    starts = jnp.clip(starts, low, high)
    origins = rays.origins[ray]
    starts, stops = (s_to_t(grid, edges, origins) for edges in (starts, stops))
    middle = 0.5 * (starts + stops)
    positions = origins[:, None] + middle[..., None] * rays.directions[ray][:, None]
    occupied = lookup(grid, contract_positions(grid, positions))
    step_mask = blocks.valid[:, None] & (stops > starts) & occupied
    step_rank = rank_samples(step_mask)
    samples = pack(step_mask, step_rank, march.sample_budget)
    step_index = jnp.minimum(samples.sample, step_mask.size - 1)

    overflowed_ray = _first_overflow(block_mask, block_rank, march.block_budget)
    overflowed_block = _first_overflow(step_mask, step_rank, march.sample_budget)
    num_rays = rays.near.size
    num_complete_rays = jnp.minimum(overflowed_ray, jnp.append(ray, num_rays)[overflowed_block])
    return PackedSamples(
        t_starts=jnp.where(samples.valid, starts.ravel()[step_index], 0.0),
        t_ends=jnp.where(samples.valid, stops.ravel()[step_index], 0.0),
        ray_indices=jnp.where(samples.valid, ray[step_index // steps], num_rays - 1),
        mask=samples.valid,
    ), num_complete_rays


def march_all_steps(
    grid: OccupancyGrid,
    rays: Rays,
    step_size: float,
    key: jax.Array | None,
    max_steps: int | None,
    max_samples: int | None,
) -> PackedSamples:
    """`OccupancyGrid.march`: every step is looked up in the grid itself, whatever its length."""
    if isinstance(step_size, int | float) and not step_size > 0.0:
        raise InputError(f"step_size is {step_size}: give a length above 0, in scene units.")
    if max_steps is None:
        if isinstance(grid.aabb, jax.core.Tracer):
            raise InputError(
                "max_steps is missing: under jit give the number of steps of a ray, as shapes are "
                "static."
            )
        step = jnp.asarray(step_size)
        max_steps = STEPS_PER_BLOCK * max_blocks_per_ray(np.asarray(grid.aabb), step, grid.bounds)
    s_rays = to_s_rays(grid, rays)
    count = rays.near.shape[0]
    offset = jnp.zeros((count,)) if key is None else jax.random.uniform(key, (count,))
    budget = count * max_steps if max_samples is None else max_samples
    config = MarchConfig(max_steps, 1, budget, budget)
    samples, num_complete_rays = march_to_samples(grid, grid, s_rays, offset, step_size, config)
    used = samples.mask & (samples.ray_indices < num_complete_rays)
    return samples._replace(
        t_starts=jnp.where(used, samples.t_starts, 0.0),
        t_ends=jnp.where(used, samples.t_ends, 0.0),
        mask=used,
    )


def ray_hits_occupied(
    grid: OccupancyGrid, coarse: OccupancyGrid, rays: Rays, blocks_per_wave: int = 8192
) -> Bool[Array, "r"]:
    """Whether each ray passes an occupied cell between near and far, probed every cell's width.

    Args:
      grid: not of contracted space, where every ray may hit something.
      coarse: made of it by `max_pool_occupancy` with a dilation of half of `PROBES`.
      rays: batch shape (r,).
      blocks_per_wave: blocks of probes evaluated together.
    """
    assert grid.bounds is None, "where space is contracted every ray may hit something"
    step = jnp.min((grid.aabb[1] - grid.aabb[0]) / jnp.asarray(grid.occupied.shape, jnp.float32))
    clipped = clip_to_aabb(rays, grid.aabb)
    max_blocks = math.ceil(math.sqrt(sum(n * n for n in grid.occupied.shape)) / PROBES) + 1
    # Cells may be longer along some axes than along others.
    length = jnp.linalg.norm(grid.aabb[1] - grid.aabb[0])
    step = jnp.maximum(step, length / ((max_blocks - 1) * PROBES))
    mask = occupied_blocks(coarse, clipped, PROBES * step, max_blocks)
    rank = rank_samples(mask)
    total = rank[-1, -1] + mask[-1, -1]

    def probe(index: Array, hit: Array) -> Array:
        block = pack(mask, rank, blocks_per_wave, index * blocks_per_wave)
        flat = jnp.minimum(block.sample, mask.size - 1)
        ray = flat // max_blocks
        count = (flat % max_blocks)[:, None] * PROBES + jnp.arange(PROBES, dtype=jnp.int32)[None]
        start, stop = (x[ray][:, None] for x in (clipped.near, clipped.far))
        # A passage shorter than a step is probed in its middle.
        distance = start + (count + 0.5) * step
        distance = jnp.minimum(distance, jnp.maximum(stop - 0.5 * step, 0.5 * (start + stop)))
        position = clipped.origins[ray][:, None]
        position = position + distance[..., None] * clipped.directions[ray][:, None]
        occupied = jnp.any(lookup(grid, position), axis=1)
        return hit.at[ray].max(block.valid & (stop > start)[:, 0] & occupied)

    waves = (total + blocks_per_wave - 1) // blocks_per_wave
    return jax.lax.fori_loop(0, waves, probe, jnp.zeros(rays.near.shape, bool))


def _first_overflow(
    mask: Bool[Array, "r n"], rank: Int[Array, "r n"], budget: int
) -> Int[Array, ""]:
    """The first row with a set element beyond the budget; the number of rows if there is none."""
    over = jnp.any(mask & (rank >= budget), axis=1)
    return jnp.where(jnp.any(over), jnp.argmax(over), mask.shape[0]).astype(jnp.int32)
