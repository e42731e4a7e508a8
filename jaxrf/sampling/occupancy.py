"""Occupancy grid: which cells of the box may hold anything, so that the rest is never evaluated."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.cameras import contraction
from jaxrf.cameras.base import Cameras, frustum_planes
from jaxrf.core.packing import pack, rank_samples
from jaxrf.core.pytree import as_pytree
from jaxrf.core.rays import Rays, clip_to_aabb, points_along


@as_pytree()
@dataclasses.dataclass(frozen=True)
class OccupancyGrid:
    """Cells of a box that may be occupied.

    Attributes:
      occupied: (x, y, z) one flag per cell.
      aabb: (2, 3) the box that the cells tile.
      bounds: (2, 3) the scene's box, if space around it is contracted, which the cells then tile.
    """

    occupied: Bool[Array, "x y z"]
    aabb: Float[Array, "2 3"]
    bounds: Float[Array, "2 3"] | None = dataclasses.field(default=None, kw_only=True)


# Fine cells along the side of a coarse one.
COARSE = 4
# Probes of a block when only asking whether a ray hits anything.
PROBES = 8
# What rays have seen in a cell counts less by this factor for every step since.
FADING = 0.97
# Calls of `update_occupancy` after which every cell had its turn.
UPDATE_PHASES = 4
UNINITIALISED, OUTSIDE_FRUSTA = -1.0, -2.0


@as_pytree()
@dataclasses.dataclass(frozen=True)
class WeightTrackedGrid(OccupancyGrid):
    """An occupancy grid to march through, which remembers what rays have seen in its cells.

    Attributes:
      coarse: made of it by `max_pool_occupancy`.
      memory: (slots,) per cell, when it was last given weight and how much in one number: the
        largest of clock + log(weight) / -log(FADING). A slot is a cell's flat index here.
      clock: () how often weights have been noted.
    """

    coarse: OccupancyGrid
    memory: Float[Array, "slots"]
    clock: Int[Array, ""]


Watched = TypeVar("Watched", bound=WeightTrackedGrid)


@as_pytree()
@dataclasses.dataclass(frozen=True)
class DensityEmaGrid(OccupancyGrid):
    """An occupancy grid to march through, kept by probing the density in its cells.

    Attributes:
      coarse: made of it by `max_pool_occupancy`.
      optical: (slots,) per cell, the largest optical depth of a step found there, fading, a step
        being as long as it is in the grid;
        `UNINITIALISED` where none has been looked for yet, `OUTSIDE_FRUSTA` where nothing is to be looked for. A
        slot is a cell's flat index.
      clock: () how many steps have been done.
      radius: () of a pixel's cone in the middle of the box, for which the density is probed.
    """

    coarse: OccupancyGrid
    optical: Float[Array, "slots"]
    clock: Int[Array, ""]
    radius: Float[Array, ""]


class PackedSamples(NamedTuple):
    """Samples of many rays one after the other, those of a ray in order, in a fixed budget.

    t_starts, t_ends: (m,) distances along the ray between which each lies; both 0 if unused.
    ray_indices: (m,) the ray of each, ascending; unused places repeat the last ray.
    mask: (m,) whether the place is used.
    """

    t_starts: Float[Array, "m"]
    t_ends: Float[Array, "m"]
    ray_indices: Int[Array, "m"]
    mask: Bool[Array, "m"]


class Marching(NamedTuple):
    """How rays are marched through an occupancy grid; static numbers.

    blocks: per ray at most; together they must reach across the box.
    block_steps: steps of a block, which is passed over as a whole if nothing near it is occupied.
    block_budget: blocks that are looked into at most, over all rays.
    sample_budget: samples at most, over all rays.
    """

    blocks: int
    block_steps: int
    block_budget: int
    sample_budget: int


def make_full_grid(
    resolution: tuple[int, int, int],
    aabb: Float[Array, "2 3"],
    bounds: Float[Array, "2 3"] | None = None,
) -> OccupancyGrid:
    """A grid in which every cell may be occupied."""
    return OccupancyGrid(jnp.ones(resolution, bool), jnp.asarray(aabb, jnp.float32), bounds=bounds)


def contract_positions(
    grid: OccupancyGrid, positions: Float[Array, "*batch 3"]
) -> Float[Array, "*batch 3"]:
    """Where positions in the scene are in the grid: themselves, unless space is contracted."""
    return positions if grid.bounds is None else contraction.contract(positions, grid.bounds)


def to_marched_rays(grid: OccupancyGrid, rays: Rays) -> Rays:
    """Rays whose near and far are those of marching, which steps along them are even in.

    They are clipped to the box. Where space is contracted they are marched distances, which
    `to_ray_distances` makes distances again, and far is far out.
    """
    if grid.bounds is None:
        return clip_to_aabb(rays, grid.aabb)
    ends = jnp.stack([rays.near, contraction.far_distance(rays.origins, grid.bounds)], axis=-1)
    near, far = jnp.moveaxis(contraction.t_to_s(ends, rays.origins, grid.bounds), -1, 0)
    return dataclasses.replace(rays, near=near, far=far)


def to_ray_distances(
    grid: OccupancyGrid, marched: Float[Array, "*batch n"], origins: Float[Array, "*batch 3"]
) -> Float[Array, "*batch n"]:
    """Distances along rays from these origins that are so far in marching."""
    if grid.bounds is None:
        return marched
    return contraction.s_to_t(marched, origins, grid.bounds)


def cell_index(
    grid: OccupancyGrid, positions: Float[Array, "*batch 3"]
) -> tuple[Int[Array, "*batch"], Bool[Array, "*batch"], Float[Array, "*batch 3"]]:
    """Flat index of each position's cell, whether it is inside the box, and where in the cell.

    Outside the box the index is that of the nearest cell along each axis. The place in the cell is
    in [0, 1].
    """
    resolution = grid.occupied.shape
    lead = (1,) * (positions.ndim - 1)
    low = grid.aabb[0].reshape((*lead, 3))
    count = jnp.asarray(resolution, positions.dtype).reshape((*lead, 3))
    size = (grid.aabb[1] - grid.aabb[0]).reshape((*lead, 3)) / count
    scaled = (positions - low) / size
    cell = jnp.floor(scaled)
    inside = jnp.all((cell >= 0) & (cell < count), axis=-1)
    x, y, z = jnp.moveaxis(jnp.clip(cell, 0, count - 1).astype(jnp.int32), -1, 0)
    flat = (x * resolution[1] + y) * resolution[2] + z
    return flat, inside, jnp.clip(scaled - cell, 0.0, 1.0)


def lookup(grid: OccupancyGrid, positions: Float[Array, "*batch 3"]) -> Bool[Array, "*batch"]:
    """Whether the cell of each position in the grid may be occupied; outside the box nothing is."""
    flat, inside, _ = cell_index(grid, positions)
    return inside & grid.occupied.ravel()[flat]


def watch(grid: OccupancyGrid, reach: float) -> WeightTrackedGrid:
    """The same grid, nothing seen yet. `reach` is that of `max_pool_occupancy`."""
    return WeightTrackedGrid(
        occupied=grid.occupied,
        aabb=grid.aabb,
        bounds=grid.bounds,
        coarse=max_pool_occupancy(grid, COARSE, reach),
        memory=forget(grid.occupied.size),
        clock=jnp.zeros((), jnp.int32),
    )


def init_density_ema(grid: OccupancyGrid, reach: float) -> DensityEmaGrid:
    """The same grid, nothing probed yet. `reach` is that of `max_pool_occupancy`."""
    return DensityEmaGrid(
        occupied=grid.occupied,
        aabb=grid.aabb,
        bounds=grid.bounds,
        coarse=max_pool_occupancy(grid, COARSE, reach),
        optical=jnp.full((grid.occupied.size,), UNINITIALISED),
        clock=jnp.zeros((), jnp.int32),
        radius=jnp.zeros(()),
    )


def mark_invisible_cells(grid: DensityEmaGrid, cameras: Cameras, reach: float) -> DensityEmaGrid:
    """The grid without the cells that no camera sees, probed for pixels of these cameras' width.

    A cell is seen if the ball around it is before the camera and not wholly beside its picture; in
    contracted space, where cells are long, if a ball as wide as the cell around its middle or a
    corner is. The others stay empty for good. `reach` is that of `max_pool_occupancy`.
    """
    if cameras.ndc is not None:
        # All cameras look into all of the box, more or less, and it is two wide as pictures are.
        width = 2.0 / math.sqrt(cameras.width * cameras.height)
        return dataclasses.replace(grid, radius=jnp.asarray(width * (2.0 / math.sqrt(12.0))))
    x, y, z = shape = grid.occupied.shape
    centres = cell_centres((x, y, z), grid.aabb).reshape(-1, 3)
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(shape, jnp.float32)
    radius = jnp.broadcast_to(0.5 * jnp.linalg.norm(size), centres.shape[:1])
    balls = [(centres, radius)]
    if grid.bounds is not None:
        half = 0.5 * size[None]
        signs = [2.0 * jnp.asarray(corner)[None] - 1.0 for corner in np.ndindex(2, 2, 2)]
        corners = [centres + half * sign for sign in signs]
        balls = []
        for places in (centres, *corners):
            outwards = contraction.inverse_contraction_scale(places, grid.bounds)
            across = outwards / (2.0 * jnp.sqrt(outwards) - 1.0)
            balls.append((contraction.uncontract(places, grid.bounds), radius * across))

    def add(seen: Array, index: Array) -> tuple[Array, None]:
        inside = [is_seen(index, *ball) for ball in balls]
        return seen | jnp.any(jnp.stack(inside), axis=0), None

    def is_seen(index: Array, centres: Array, radius: Array) -> Array:
        pose = jnp.asarray(cameras.T_world_camera)[index]
        offset = centres - pose[None, :3, 3]
        x, y, z = (jnp.sum(offset * pose[None, :3, axis], axis=-1) for axis in range(3))
        slopes = frustum_planes(cameras, index)
        bounded = jnp.isfinite(slopes)
        finite = jnp.where(bounded, slopes, 0.0)
        inside = (z < radius) | ~bounded[0]
        # The planes through the camera and the picture's sides.
        for side, value in enumerate((-x, x, y, -y)):
            beyond = (value + finite[side] * z) / jnp.hypot(1.0, finite[side])
            inside &= (beyond < radius) | ~bounded[side]
        return inside

    count = cameras.T_world_camera.shape[0]
    nothing = jnp.zeros(centres.shape[:1], bool)
    seen, _ = jax.lax.scan(add, nothing, jnp.arange(count, dtype=jnp.int32))
    occupied = grid.occupied & seen.reshape(shape)
    away = jnp.mean(grid.aabb, axis=0)[None] - jnp.asarray(cameras.T_world_camera)[:, :3, 3]
    spacing = jnp.linalg.norm(away, axis=-1) / jnp.mean(jnp.asarray(cameras.focal), axis=-1)
    return dataclasses.replace(
        grid,
        occupied=occupied,
        coarse=max_pool_occupancy(dataclasses.replace(grid, occupied=occupied), COARSE, reach),
        optical=jnp.where(seen, grid.optical, OUTSIDE_FRUSTA),
        # As in `pixels_to_rays`.
        radius=jnp.mean(spacing) * (2.0 / math.sqrt(12.0)),
    )


def update_occupancy(
    grid: DensityEmaGrid,
    key: jax.Array,
    density_fn: Callable[[Float[Array, "n 3"], Float[Array, "n"]], Float[Array, "n"]],
    step: Float[Array, ""] | float,
    turn: Int[Array, ""] | int,
    *,
    factors: tuple[int, ...] = (1,),
    decay: float,
    threshold: float,
    reach: float,
    chunk: int = 1 << 16,
) -> DensityEmaGrid:
    """Looks into a quarter of all cells and a quarter that is occupied, and decides anew.

    A cell's optical depth becomes the larger of what it was, times `decay`, and of density times
    step at a random point of the cell. Occupied is what reaches the threshold or the mean, if that
    is less, and what was never probed (Mueller et al. 2022, appendix C, with every cell having its
    turn instead of chance).

    Args:
      grid: to be brought up to date.
      key: of the points.
      density_fn: of positions in the grid and of the radii of cones there.
      step: length of a step in the grid, in scene units.
      factors: how many times wider cones are, one of these by chance.
      turn: counts the calls; every cell is probed in `UPDATE_PHASES` of them.
      decay, threshold: see above.
      reach: that of `max_pool_occupancy`.
      chunk: cells looked into together.
    """
    shape = grid.occupied.shape
    slots = grid.occupied.size
    share = -(-slots // UPDATE_PHASES)
    key_start, key_place, key_size = jax.random.split(key, 3)
    own = (UPDATE_PHASES * jnp.arange(share, dtype=jnp.int32) + turn % UPDATE_PHASES) % slots
    mask = grid.occupied.reshape(1, -1)
    rank = rank_samples(mask)
    spare = jnp.maximum(rank[0, -1] + mask[0, -1] - share, 0)
    aimed = pack(mask, rank, share, jax.random.randint(key_start, (), 0, spare + 1))
    cells = jnp.concatenate([own, jnp.minimum(aimed.sample, slots - 1)])
    place = jnp.stack(jnp.unravel_index(cells, shape), axis=-1).astype(jnp.float32)
    place = place + jax.random.uniform(key_place, place.shape)
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(shape, jnp.float32)
    positions = grid.aabb[:1] + place * size[None]
    count = positions.shape[0]
    wider = jnp.asarray(factors, jnp.float32)
    radii = grid.radius * wider[jax.random.randint(key_size, (count,), 0, len(factors))]
    padding = -count % chunk if count > chunk else 0
    points = jnp.pad(positions, ((0, padding), (0, 0)), mode="edge")
    parts = points.reshape(-1, min(chunk, count), 3), jnp.pad(radii, (0, padding))
    parts = parts[0], parts[1].reshape(parts[0].shape[:2])
    density = jax.lax.map(lambda part: density_fn(*part), parts).ravel()[:count]
    found = jnp.full((slots,), UNINITIALISED).at[cells].max(density * step)
    before = jnp.maximum(grid.optical, 0.0) * decay
    probed = (found >= 0.0) & (grid.optical != OUTSIDE_FRUSTA)
    optical = jnp.where(probed, jnp.maximum(before, found), grid.optical)
    least = jnp.minimum(threshold, jnp.mean(jnp.maximum(optical, 0.0)))
    # Not more than the mean alone: a field that is the same everywhere is occupied everywhere.
    x, y, z = shape
    stretch = contraction_jacobian(grid, cell_centres((x, y, z), grid.aabb)).ravel()
    occupied = ((optical == UNINITIALISED) | (optical * stretch >= least)).reshape(shape)
    coarse = max_pool_occupancy(dataclasses.replace(grid, occupied=occupied), COARSE, reach)
    return dataclasses.replace(grid, occupied=occupied, coarse=coarse, optical=optical)


def contraction_jacobian(
    grid: OccupancyGrid, positions: Float[Array, "*batch 3"]
) -> Float[Array, "*batch"]:
    """How much longer the scene is than the grid at positions in the grid."""
    if grid.bounds is None:
        return jnp.ones(positions.shape[:-1])
    return contraction.inverse_contraction_scale(positions, grid.bounds)


def forget(slots: int) -> Float[Array, "slots"]:
    """The memory of cells in which nothing was seen."""
    return jnp.full((slots,), -1e9)


def record_weights(grid: Watched, slots: Int[Array, "m"], weights: Float[Array, "m"]) -> Watched:
    """The grid after rays have given some cells some weight."""
    now = grid.clock.astype(jnp.float32)
    seen = now + jnp.log(jnp.maximum(weights, 1e-30)) / -math.log(FADING)
    return dataclasses.replace(grid, memory=grid.memory.at[slots].max(seen), clock=grid.clock + 1)


def get_weight_memory(grid: OccupancyGrid) -> Float[Array, "slots"] | None:
    """What a grid remembers of rays, if it does; of two memories the larger counts in each cell."""
    return grid.memory if isinstance(grid, WeightTrackedGrid) else None


def set_weight_memory(grid: OccupancyGrid, memory: Float[Array, "slots"] | None) -> OccupancyGrid:
    """The grid after a step of which this is remembered."""
    if memory is None or not isinstance(grid, WeightTrackedGrid):
        return grid
    return dataclasses.replace(grid, memory=memory, clock=grid.clock + 1)


def decayed_max_weights(grid: WeightTrackedGrid) -> Float[Array, "slots"]:
    """The largest weight that each cell was given, those of long ago counting less."""
    ago = grid.clock.astype(jnp.float32) - 1.0 - grid.memory
    return jnp.exp(math.log(FADING) * ago)


def cell_centres(
    resolution: tuple[int, int, int], aabb: Float[Array, "2 3"]
) -> Float[Array, "x y z 3"]:
    """Centres of a grid's cells, in scene units."""
    axes = [
        aabb[0, a] + (jnp.arange(n) + 0.5) * (aabb[1, a] - aabb[0, a]) / n
        for a, n in enumerate(resolution)
    ]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def dilate(occupied: Bool[Array, "x y z"], cells: int = 1) -> Bool[Array, "x y z"]:
    """Every cell within `cells` of an occupied one, along each axis and diagonally."""
    for axis in range(3):
        for _ in range(cells):
            forward = jnp.roll(occupied, 1, axis).at[_first(axis)].set(False)
            backward = jnp.roll(occupied, -1, axis).at[_last(axis)].set(False)
            occupied = occupied | forward | backward
    return occupied


def _first(axis: int) -> tuple[slice | int, ...]:
    return (slice(None),) * axis + (0,)


def _last(axis: int) -> tuple[slice | int, ...]:
    return (slice(None),) * axis + (-1,)


def update_from_density(
    grid: OccupancyGrid,
    density_fn: Callable[[Float[Array, "n 3"]], Float[Array, "n"]],
    step: Float[Array, ""] | float,
    threshold: float,
    chunk: int = 1 << 18,
) -> OccupancyGrid:
    """Keeps the occupied cells in or next to which a step through the field absorbs enough light.

    A cell counts when alpha = 1 - exp(-density step) at its centre exceeds the threshold, and is
    then dilated by one cell (TensoRF, section 4, "alpha mask"). A cell that was not occupied before
    stays so: what was pruned does not come back.
    """
    x, y, z = grid.occupied.shape
    centres = cell_centres((x, y, z), grid.aabb).reshape(-1, 3)
    count = centres.shape[0]
    padded = jnp.pad(centres, ((0, -count % chunk), (0, 0)), mode="edge")
    density = jax.lax.map(density_fn, padded.reshape(-1, min(chunk, padded.shape[0]), 3))
    step = step * contraction_jacobian(grid, centres)
    alpha = 1.0 - jnp.exp(-density.ravel()[:count] * step)
    opaque = (alpha > threshold).reshape(grid.occupied.shape)
    return dataclasses.replace(grid, occupied=grid.occupied & dilate(opaque & grid.occupied))


def occupied_aabb(grid: OccupancyGrid) -> Float[np.ndarray, "2 3"]:
    """The smallest box that holds all occupied cells; the whole box if none is occupied."""
    occupied = np.asarray(grid.occupied)
    aabb = np.asarray(grid.aabb, np.float64)
    if not occupied.any():
        return aabb
    cells = np.argwhere(occupied)
    size = (aabb[1] - aabb[0]) / np.array(occupied.shape)
    return np.stack([aabb[0] + cells.min(0) * size, aabb[0] + (cells.max(0) + 1) * size])


def visible_aabb(grid: OccupancyGrid) -> Float[np.ndarray, "2 3"]:
    """The box of what may be occupied; where space is contracted, of that in the scene's box."""
    box = occupied_aabb(grid)
    return box if grid.bounds is None else np.clip(box, *np.asarray(grid.bounds))


def resample_grid(
    grid: OccupancyGrid, resolution: tuple[int, int, int], aabb: Float[Array, "2 3"]
) -> OccupancyGrid:
    """The same occupancy on other cells: one is occupied if any corner or its centre was.

    Meant for cells not larger than the old ones.
    """
    centres = cell_centres(resolution, aabb)
    half = 0.499 * (aabb[1] - aabb[0]) / jnp.asarray(resolution, jnp.float32)
    occupied = lookup(grid, centres)
    for corner in np.ndindex(2, 2, 2):
        sign = jnp.asarray(corner, jnp.float32) * 2.0 - 1.0
        occupied |= lookup(grid, centres + (sign * half).reshape(1, 1, 1, 3))
    return OccupancyGrid(occupied, jnp.asarray(aabb, jnp.float32), bounds=grid.bounds)


def ray_hits_occupied(
    grid: OccupancyGrid, coarse: OccupancyGrid, rays: Rays, at_once: int = 8192
) -> Bool[Array, "r"]:
    """Whether each ray passes an occupied cell between near and far, probed every cell's width.

    Args:
      grid: whose cells are meant.
      coarse: made of it by `max_pool_occupancy` with a reach of half of `PROBES`.
      rays: batch shape (r,).
      at_once: blocks of probes looked into together.
    """
    assert grid.bounds is None, "where space is contracted every ray may hit something"
    step = jnp.min((grid.aabb[1] - grid.aabb[0]) / jnp.asarray(grid.occupied.shape, jnp.float32))
    clipped = clip_to_aabb(rays, grid.aabb)
    most = math.ceil(math.sqrt(sum(n * n for n in grid.occupied.shape)) / PROBES) + 1
    # Cells may be longer along some axes than along others.
    length = jnp.linalg.norm(grid.aabb[1] - grid.aabb[0])
    step = jnp.maximum(step, length / ((most - 1) * PROBES))
    mask = occupied_blocks(coarse, clipped, PROBES * step, most)
    rank = rank_samples(mask)
    total = rank[-1, -1] + mask[-1, -1]

    def probe(index: Array, hit: Array) -> Array:
        block = pack(mask, rank, at_once, index * at_once)
        flat = jnp.minimum(block.sample, mask.size - 1)
        ray = flat // most
        count = (flat % most)[:, None] * PROBES + jnp.arange(PROBES, dtype=jnp.int32)[None]
        start, stop = (x[ray][:, None] for x in (clipped.near, clipped.far))
        # A passage shorter than a step is probed in its middle.
        distance = start + (count + 0.5) * step
        distance = jnp.minimum(distance, jnp.maximum(stop - 0.5 * step, 0.5 * (start + stop)))
        position = clipped.origins[ray][:, None]
        position = position + distance[..., None] * clipped.directions[ray][:, None]
        found = block.valid & (stop > start)[:, 0] & jnp.any(lookup(grid, position), axis=1)
        return hit.at[ray].max(found)

    chunks = (total + at_once - 1) // at_once
    return jax.lax.fori_loop(0, chunks, probe, jnp.zeros(rays.near.shape, bool))


def max_pool_occupancy(grid: OccupancyGrid, factor: int, reach: float) -> OccupancyGrid:
    """A grid of cells `factor` times as long, each occupied if anything near it is.

    If a point's coarse cell is empty, so is every fine cell that holds a point within `reach` fine
    cells of it along each axis. The coarse grid may stick out of the box at its upper faces.
    """
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(grid.occupied.shape, grid.aabb.dtype)
    padded = jnp.pad(grid.occupied, [(0, -n % factor) for n in grid.occupied.shape])
    x, y, z = (n // factor for n in padded.shape)
    pooled = padded.reshape(x, factor, y, factor, z, factor).any(axis=(1, 3, 5))
    high = grid.aabb[0] + size * jnp.asarray(padded.shape, grid.aabb.dtype)
    aabb = jnp.stack([grid.aabb[0], high])
    return OccupancyGrid(dilate(pooled, math.ceil(reach / factor)), aabb, bounds=grid.bounds)


def occupied_blocks(
    coarse: OccupancyGrid,
    rays: Rays,
    length: Float[Array, ""] | float,
    count: int,
    begin: Float[Array, "r"] | None = None,
) -> Bool[Array, "r count"]:
    """Which of the blocks of one length may hold anything between near and far.

    Args:
      coarse: made by `max_pool_occupancy` with a reach of half a block.
      rays: batch shape (r,), made by `to_marched_rays`.
      length: of a block, in scene units.
      count: of blocks.
      begin: (r,) where the first block begins; by default at near.
    """
    near, far = rays.near[:, None], rays.far[:, None]
    begin = rays.near if begin is None else begin
    start = begin[:, None] + length * jnp.arange(count, dtype=near.dtype)[None]
    # What lies outside of the box is cut off, lest the middle of the rest be missed.
    start, stop = jnp.maximum(start, near), jnp.minimum(start + length, far)
    middle = to_ray_distances(coarse, 0.5 * (start + stop), rays.origins)
    return (stop > start) & lookup(coarse, contract_positions(coarse, points_along(rays, middle)))


def march_to_samples(
    grid: OccupancyGrid,
    coarse: OccupancyGrid,
    rays: Rays,
    offset: Float[Array, "r"],
    step: Float[Array, ""] | float,
    marching: Marching,
) -> tuple[PackedSamples, Int[Array, ""]]:
    """Steps of one length through the occupied cells, packed.

    Args:
      grid: a step is a sample if its middle lies in an occupied cell.
      coarse: made by `max_pool_occupancy` with a reach of half a block of steps.
      rays: batch shape (r,), made by `to_marched_rays`.
      offset: (r,) in [0, 1); each ray's first step begins so many steps before its near, and is
        clamped to it.
      step: length of a step, in scene units.
      marching: shapes and budgets.

    Returns:
      The samples, between distances along the rays as they are, and how many rays fitted into the
      budgets: of the first so many rays all samples are there, of the others none is to be used.
    """
    steps = marching.block_steps
    near = rays.near - offset * step
    mask = occupied_blocks(coarse, rays, steps * step, marching.blocks, near)
    rank = rank_samples(mask)
    block = pack(mask, rank, marching.block_budget)
    fitting = _first_overflow(mask, rank, marching.block_budget)
    index = jnp.minimum(block.sample, mask.size - 1)
    ray, number = index // marching.blocks, index % marching.blocks

    count = number[:, None] * steps + jnp.arange(steps, dtype=jnp.int32)[None]
    starts = near[ray][:, None] + step * count
    low, high = rays.near[ray][:, None], rays.far[ray][:, None]
    stops = jnp.clip(starts + step, low, high)
    starts = jnp.clip(starts, low, high)
    origins = rays.origins[ray]
    starts, stops = (to_ray_distances(grid, edges, origins) for edges in (starts, stops))
    middle = 0.5 * (starts + stops)
    positions = origins[:, None] + middle[..., None] * rays.directions[ray][:, None]
    inside = (
        block.valid[:, None] & (stops > starts) & lookup(grid, contract_positions(grid, positions))
    )
    rank = rank_samples(inside)
    sample = pack(inside, rank, marching.sample_budget)
    overflow = _first_overflow(inside, rank, marching.sample_budget)
    fitting = jnp.minimum(fitting, jnp.append(ray, rays.near.size)[overflow])
    index = jnp.minimum(sample.sample, inside.size - 1)
    last = rays.near.size - 1
    return PackedSamples(
        t_starts=jnp.where(sample.valid, starts.ravel()[index], 0.0),
        t_ends=jnp.where(sample.valid, stops.ravel()[index], 0.0),
        ray_indices=jnp.where(sample.valid, ray[index // steps], last),
        mask=sample.valid,
    ), fitting


def _first_overflow(
    mask: Bool[Array, "r n"], rank: Int[Array, "r n"], budget: int
) -> Int[Array, ""]:
    """The first row that holds a wanted element past the budget; the number of rows if none."""
    over = jnp.any(mask & (rank >= budget), axis=1)
    return jnp.where(jnp.any(over), jnp.argmax(over), mask.shape[0]).astype(jnp.int32)
