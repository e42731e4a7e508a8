"""An occupancy grid that follows a density: a decayed maximum of it in each cell.

Müller, Evans, Schied, Keller: Instant neural graphics primitives (SIGGRAPH 2022), appendix C.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.cameras.base import Cameras, frustum_planes
from jaxrf.core.packing import pack, rank_samples
from jaxrf.core.pytree import as_pytree
from jaxrf.sampling.occupancy import (
    POOLING,
    ConeDensityFn,
    DensityFn,
    OccupancyGrid,
    OccupancySchedule,
    PooledGrid,
    cell_centers,
    contraction_jacobian,
    max_pool_occupancy,
    uncontract_positions,
)

# Updates after which every cell was evaluated.
UPDATE_PHASES = 4
# Optical depths of cells that were never evaluated, and of those outside all camera frusta.
UNINITIALIZED, OUTSIDE_FRUSTA = -1.0, -2.0
# Default of the length that the optical depth is measured over, in box diagonals.
DEFAULT_STEPS = 1024


@as_pytree("contraction_norm")
@dataclasses.dataclass(frozen=True)
class DensityTrackedGrid(PooledGrid):
    """An occupancy grid whose cells keep a decayed maximum of the density in them.

    Attributes:
      max_optical_depth: (slots,) per cell, by flat index, the decayed maximum of the optical depth
        of a step there, with the step's length in the grid; `UNINITIALIZED` before the first
        evaluation, `OUTSIDE_FRUSTA` where none is made.
      step: () number of training steps, or of updates.
      radius: () of a pixel's cone at the center of the box, which the density is evaluated for.
    """

    max_optical_depth: Float[Array, "slots"]
    step: Int[Array, ""]
    radius: Float[Array, ""]

    follows_density: ClassVar[bool] = True

    def update(
        self,
        key: jax.Array,
        density_fn: DensityFn,
        *,
        step_size: Float[Array, ""] | float | None = None,
        decay: float = 0.95,
        threshold: float = 0.01,
    ) -> "DensityTrackedGrid":
        """The grid after evaluating a quarter of its cells and as many occupied ones.

        See `OccupancyGrid.update` and `update_occupancy`. `density_fn` is asked at positions in the
        grid.
        """
        if step_size is None:
            step_size = jnp.linalg.norm(self.aabb[1] - self.aabb[0]) / DEFAULT_STEPS
        updated: Any = update_occupancy(
            self,
            key,
            lambda positions, radii: density_fn(positions),
            step_size,
            self.step,
            OccupancySchedule(decay=decay, threshold=threshold),
        )
        return dataclasses.replace(updated, step=self.step + 1)

    def maybe_update(
        self,
        key: jax.Array,
        density_fn: ConeDensityFn,
        step_size: Float[Array, ""] | float,
        schedule: OccupancySchedule,
    ) -> "DensityTrackedGrid":
        """The grid after a training step: updated every `update_interval` steps."""

        def update(phase: Array, grid: Any) -> Any:
            phase_key = jax.random.fold_in(key, phase)
            return update_occupancy(grid, phase_key, density_fn, step_size, phase, schedule)

        first, since = jnp.divmod(self.step, schedule.update_interval)
        phases = jnp.where(self.step < schedule.warmup_steps, UPDATE_PHASES, 1)
        last = first + jnp.where(since == 0, phases, 0)
        updated: DensityTrackedGrid = jax.lax.fori_loop(first, last, update, self)
        return dataclasses.replace(updated, step=updated.step + 1)

    def mark_invisible(self, cameras: Cameras, dilation_cells: float) -> "DensityTrackedGrid":
        """The grid without the cells that no camera sees (`mark_invisible_cells`)."""
        return jax.jit(mark_invisible_cells, static_argnums=2)(self, cameras, dilation_cells)

    def cell_values(
        self, thin_out: Callable[[Any], Float[np.ndarray, "n"]]
    ) -> Float[np.ndarray, "n"]:
        """Optical depths of some cells."""
        return thin_out(np.asarray(self.max_optical_depth))


def track_density(grid: OccupancyGrid, dilation_cells: float) -> DensityTrackedGrid:
    """The same cells, none evaluated. `dilation_cells` as in `max_pool_occupancy`."""
    return DensityTrackedGrid(
        occupied=grid.occupied,
        aabb=grid.aabb,
        bounds=grid.bounds,
        contraction_norm=grid.contraction_norm,
        coarse=max_pool_occupancy(grid, POOLING, dilation_cells),
        max_optical_depth=jnp.full((grid.occupied.size,), UNINITIALIZED),
        step=jnp.zeros((), jnp.int32),
        radius=jnp.zeros(()),
    )


def mark_invisible_cells(
    grid: DensityTrackedGrid, cameras: Cameras, dilation_cells: float
) -> DensityTrackedGrid:
    """The grid without the cells that no camera sees, with the cone radius of these cameras.

    A cell is visible if the ball around it is in front of a camera and not entirely outside its
    image; in contracted space, where cells are long, if a ball as wide as the cell around its
    center or a corner is. Invisible cells stay empty. `dilation_cells` as in `max_pool_occupancy`.
    """
    if cameras.ndc is not None:
        # All cameras see about all of the box, and it is two wide as images are.
        width = 2.0 / math.sqrt(cameras.width * cameras.height)
        return dataclasses.replace(grid, radius=jnp.asarray(width * (2.0 / math.sqrt(12.0))))
    x, y, z = grid.occupied.shape
    balls = _bounding_balls(grid, (x, y, z))

    def add_camera(visible: Array, index: Array) -> tuple[Array, None]:
        hits = [_sees_ball(cameras, index, *ball) for ball in balls]
        return visible | jnp.any(jnp.stack(hits), axis=0), None

    count = cameras.T_world_camera.shape[0]
    none_visible = jnp.zeros((grid.occupied.size,), bool)
    visible, _ = jax.lax.scan(add_camera, none_visible, jnp.arange(count, dtype=jnp.int32))
    occupied = grid.occupied & visible.reshape(x, y, z)
    offset = jnp.mean(grid.aabb, axis=0)[None] - jnp.asarray(cameras.T_world_camera)[:, :3, 3]
    spacing = jnp.linalg.norm(offset, axis=-1) / jnp.mean(jnp.asarray(cameras.focal), axis=-1)
    pooled = dataclasses.replace(grid, occupied=occupied)
    return dataclasses.replace(
        grid,
        occupied=occupied,
        coarse=max_pool_occupancy(pooled, POOLING, dilation_cells),
        max_optical_depth=jnp.where(visible, grid.max_optical_depth, OUTSIDE_FRUSTA),
        # As in `pixels_to_rays`.
        radius=jnp.mean(spacing) * (2.0 / math.sqrt(12.0)),
    )


def _bounding_balls(
    grid: OccupancyGrid, resolution: tuple[int, int, int]
) -> list[tuple[Float[Array, "slots 3"], Float[Array, "slots"]]]:
    """Centers and radii, in the scene, of balls that together cover each cell."""
    centers = cell_centers(resolution, grid.aabb).reshape(-1, 3)
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(resolution, jnp.float32)
    radius = jnp.broadcast_to(0.5 * jnp.linalg.norm(size), centers.shape[:1])
    if grid.bounds is None:
        return [(centers, radius)]
    half = 0.5 * size[None]
    signs = [2.0 * jnp.asarray(corner)[None] - 1.0 for corner in np.ndindex(2, 2, 2)]
    balls = []
    for points in (centers, *(centers + half * sign for sign in signs)):
        outwards = contraction_jacobian(grid, points)
        across = outwards / (2.0 * jnp.sqrt(outwards) - 1.0)
        balls.append((uncontract_positions(grid, points), radius * across))
    return balls


def _sees_ball(
    cameras: Cameras,
    index: Int[Array, ""],
    centers: Float[Array, "n 3"],
    radius: Float[Array, "n"],
) -> Bool[Array, "n"]:
    """Whether balls are at least partly in front of a camera and within its image."""
    pose = jnp.asarray(cameras.T_world_camera)[index]
    offset = centers - pose[None, :3, 3]
    x, y, z = (jnp.sum(offset * pose[None, :3, axis], axis=-1) for axis in range(3))
    slopes = frustum_planes(cameras, index)
    bounded = jnp.isfinite(slopes)
    finite = jnp.where(bounded, slopes, 0.0)
    visible = (z < radius) | ~bounded[0]
    # The planes through the camera and the sides of its image.
    for side, value in enumerate((-x, x, y, -y)):
        beyond = (value + finite[side] * z) / jnp.hypot(1.0, finite[side])
        visible &= (beyond < radius) | ~bounded[side]
    return visible


def update_occupancy(
    grid: DensityTrackedGrid,
    key: jax.Array,
    density_fn: ConeDensityFn,
    step_size: Float[Array, ""] | float,
    phase: Int[Array, ""] | int,
    schedule: OccupancySchedule,
    chunk: int = 1 << 16,
) -> DensityTrackedGrid:
    """Evaluates a quarter of all cells and a quarter that is occupied, and decides occupancy anew.

    The optical depth of a cell becomes the larger of its former one, times the decay, and of
    density times step at a random point of the cell. A cell is occupied if that reaches the
    threshold or the mean, whichever is smaller, or if it was never evaluated (Müller et al. 2022,
    appendix C, with the cells taking turns in place of chance).

    Args:
      grid: to be updated.
      key: of the points.
      density_fn: of positions in the grid and of the radii of cones there.
      step_size: length of a step in the grid, in scene units.
      phase: counts the calls; every cell is evaluated in `UPDATE_PHASES` of them.
      schedule: gives decay, threshold and dilation, and factors of the cone radius, one of which is
        drawn for each point.
      chunk: cells evaluated together.
    """
    slots = grid.occupied.size
    key_start, key_point, key_size = jax.random.split(key, 3)
    cells = _choose_cells(grid, key_start, phase)
    positions = _points_in_cells(grid, key_point, cells)
    count = positions.shape[0]
    scales = jnp.asarray(schedule.cone_scales, jnp.float32)
    radii = grid.radius * scales[jax.random.randint(key_size, (count,), 0, scales.size)]
    padding = -count % chunk if count > chunk else 0
    points = jnp.pad(positions, ((0, padding), (0, 0)), mode="edge")
    parts = points.reshape(-1, min(chunk, count), 3), jnp.pad(radii, (0, padding))
    parts = parts[0], parts[1].reshape(parts[0].shape[:2])
    density = jax.lax.map(lambda part: density_fn(*part), parts).ravel()[:count]
    depths = jnp.full((slots,), UNINITIALIZED).at[cells].max(density * step_size)
    decayed = jnp.maximum(grid.max_optical_depth, 0.0) * schedule.decay
    evaluated = (depths >= 0.0) & (grid.max_optical_depth != OUTSIDE_FRUSTA)
    maximum = jnp.where(evaluated, jnp.maximum(decayed, depths), grid.max_optical_depth)
    # The mean alone would never be exceeded by a field that is the same everywhere.
    level = jnp.minimum(schedule.threshold, jnp.mean(jnp.maximum(maximum, 0.0)))
    x, y, z = grid.occupied.shape
    lengths = contraction_jacobian(grid, cell_centers((x, y, z), grid.aabb)).ravel()
    occupied = ((maximum == UNINITIALIZED) | (maximum * lengths >= level)).reshape(x, y, z)
    coarse = max_pool_occupancy(
        dataclasses.replace(grid, occupied=occupied), POOLING, schedule.dilation_cells
    )
    return dataclasses.replace(grid, occupied=occupied, coarse=coarse, max_optical_depth=maximum)


def _choose_cells(
    grid: DensityTrackedGrid, key: jax.Array, phase: Int[Array, ""] | int
) -> Int[Array, "k"]:
    """Flat indices of this phase's quarter of all cells and of as many occupied ones."""
    slots = grid.occupied.size
    share = -(-slots // UPDATE_PHASES)
    turn = (UPDATE_PHASES * jnp.arange(share, dtype=jnp.int32) + phase % UPDATE_PHASES) % slots
    mask = grid.occupied.reshape(1, -1)
    rank = rank_samples(mask)
    excess = jnp.maximum(rank[0, -1] + mask[0, -1] - share, 0)
    chosen = pack(mask, rank, share, jax.random.randint(key, (), 0, excess + 1))
    return jnp.concatenate([turn, jnp.minimum(chosen.sample, slots - 1)])


def _points_in_cells(
    grid: OccupancyGrid, key: jax.Array, cells: Int[Array, "k"]
) -> Float[Array, "k 3"]:
    """A uniform random point in each of the cells, as positions in the grid."""
    shape = grid.occupied.shape
    corner = jnp.stack(jnp.unravel_index(cells, shape), axis=-1).astype(jnp.float32)
    point = corner + jax.random.uniform(key, corner.shape)
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(shape, jnp.float32)
    return grid.aabb[:1] + point * size[None]
