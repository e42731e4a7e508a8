"""Occupancy grids: the cells of a box that may hold density; the others are never evaluated.

`OccupancyGrid` is a fixed set of cells. Two subclasses follow a field while it is trained:
`density_tracking.DensityTrackedGrid` keeps a decayed maximum of the density in its cells and
decides occupancy from it; `weight_tracking.WeightTrackedGrid` records the rendering weights of the
samples in its cells, by which a field prunes them. Both have a pooled copy, in which whole blocks
of steps are looked up first.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.cameras import contraction
from jaxrf.cameras.base import Cameras
from jaxrf.core.errors import InputError
from jaxrf.core.pytree import as_pytree
from jaxrf.core.rays import Rays, clip_to_aabb
from jaxrf.sampling.packed import PackedSamples

# Cells along the side of a cell of the pooled grid that blocks of steps are looked up in.
POOLING = 4

DensityFn = Callable[[Float[Array, "n 3"]], Float[Array, "n"]]
ConeDensityFn = Callable[[Float[Array, "n 3"], Float[Array, "n"]], Float[Array, "n"]]


@dataclasses.dataclass(frozen=True)
class OccupancySchedule:
    """When and how a `DensityTrackedGrid` is updated while training.

    Attributes:
      update_interval: steps between two updates.
      warmup_steps: steps during which an update evaluates all cells; later it evaluates a quarter
        of them and as many occupied ones.
      decay: factor by which a cell's optical depth shrinks before the maximum with a new one is
        taken (`ema_decay` in nerfacc).
      threshold: optical depth of a step above which a cell is occupied, or the mean, if smaller
        (`occ_thre` in nerfacc).
      dilation_cells: half a block of steps in cells (`max_pool_occupancy`).
      cone_scales: factors of the radius of the cones that the density is evaluated for.
    """

    update_interval: int = 16
    warmup_steps: int = 256
    decay: float = 0.95
    threshold: float = 0.01
    dilation_cells: float = 0.0
    cone_scales: tuple[int, ...] = (1,)


@as_pytree("contraction_norm")
@dataclasses.dataclass(frozen=True)
class OccupancyGrid:
    """The cells of a box, and which of them may be occupied; rays skip the others.

    Attributes:
      occupied: (x, y, z) one flag per cell.
      aabb: (2, 3) the box that the cells tile, in scene units.
      bounds: (2, 3) the scene's box where space around it is contracted; `aabb` is then the box of
        contracted space, which is twice as large.
      contraction_norm: by which space around the scene's box is contracted.
    """

    occupied: Bool[Array, "x y z"]
    aabb: Float[Array, "2 3"]
    bounds: Float[Array, "2 3"] | None = dataclasses.field(default=None, kw_only=True)
    contraction_norm: contraction.Norm = dataclasses.field(default="max", kw_only=True)

    follows_density: ClassVar[bool] = False
    """Whether empty cells can become occupied again, so that no pixel may be excluded for good."""

    @classmethod
    def create(
        cls, aabb: Float[Array | np.ndarray, "2 3"], resolution: int | tuple[int, int, int] = 128
    ) -> "OccupancyGrid":
        """A `DensityTrackedGrid`, which `update` keeps; all cells may be occupied at first.

        Args:
          aabb: the box in scene units.
          resolution: cells along each side, or along the longest one (cells are then cubes).

        Examples:
          >>> import numpy as np
          >>> grid = OccupancyGrid.create(np.array([[-1.0, -1, -1], [1, 1, 1]]), resolution=16)
          >>> grid.occupied.shape
          (16, 16, 16)
        """
        from jaxrf.sampling.density_tracking import track_density

        corners = np.asarray(aabb, np.float32)
        if corners.shape != (2, 3) or not np.all(corners[1] > corners[0]):
            raise InputError(f"aabb is {corners.tolist()}: give two corners, the lower one first.")
        sides = (resolution,) if isinstance(resolution, int) else resolution
        if min(sides) < 1:
            raise InputError(f"resolution is {resolution}: give 1 cell or more along each side.")
        cells = count_cells(resolution, corners) if isinstance(resolution, int) else resolution
        return track_density(make_full_grid(cells, jnp.asarray(corners)), dilation_cells=0.0)

    @property
    def block_grid(self) -> "OccupancyGrid":
        """The grid in which blocks of steps are looked up.

        Raises:
          InputError: if this grid has no pooled copy.
        """
        raise InputError(
            f"A {type(self).__name__} has no pooled copy to look up blocks of steps in: make one "
            "that has with track_density or track_weights."
        )

    def march(
        self,
        rays: Rays,
        step_size: float,
        key: jax.Array | None = None,
        *,
        max_steps: int | None = None,
        max_samples: int | None = None,
    ) -> PackedSamples:
        """Steps of one length through the occupied cells between the near and far of each ray.

        Args:
          rays: batch shape (r,).
          step_size: in scene units.
          key: of the random offset of each ray's first step; None begins at near.
          max_steps: steps of a ray at most; by default as many as cross the box, which under jit
            must be given, since shapes are static.
          max_samples: length of the packed arrays; by default all steps fit. Where samples do not
            fit, the last rays are dropped as a whole.

        Raises:
          InputError: if a step has no length, or under jit without `max_steps`.
        """
        from jaxrf.sampling.marching import march_all_steps

        return march_all_steps(self, rays, step_size, key, max_steps, max_samples)

    def update(
        self,
        key: jax.Array,
        density_fn: DensityFn,
        *,
        step_size: Float[Array, ""] | float | None = None,
        decay: float = 0.95,
        threshold: float = 0.01,
    ) -> "OccupancyGrid":
        """Evaluates the density in some cells, and decides anew which are occupied.

        Args:
          key: of the points within cells.
          density_fn: density per scene unit at positions (n, 3).
          step_size: length that the optical depth is measured over; by default 1/1024 of the box's
            diagonal.
          decay, threshold: see `OccupancySchedule`.

        Raises:
          InputError: if the grid is a fixed one.
        """
        raise InputError(
            f"A {type(self).__name__} does not follow a density: make a grid that does with "
            "OccupancyGrid.create."
        )

    def maybe_update(
        self,
        key: jax.Array,
        density_fn: ConeDensityFn,
        step_size: Float[Array, ""] | float,
        schedule: OccupancySchedule,
    ) -> "OccupancyGrid":
        """The grid after a training step: updated if that is due. A fixed grid is unchanged."""
        del key, density_fn, step_size, schedule
        return self

    def mark_invisible(self, cameras: Cameras, dilation_cells: float) -> "OccupancyGrid":
        """Empties the cells that no camera sees, if it tracks the density."""
        del cameras, dilation_cells
        return self

    def record(self, positions: Float[Array, "m 3"], weights: Float[Array, "m"]) -> "OccupancyGrid":
        """Records the rendering weights of samples at positions in the scene, if it tracks them."""
        del positions, weights
        return self

    def lookup_for_images(self, positions: Float[Array, "*batch 3"]) -> Bool[Array, "*batch"]:
        """Whether images evaluate the density at each position in the grid: where `lookup` says."""
        return lookup(self, positions)

    @property
    def weight_memory(self) -> Float[Array, "slots"] | None:
        """The recorded weights, if it tracks them; two memories combine by their maximum."""
        return None

    def with_weight_memory(self, memory: Float[Array, "slots"] | None) -> "OccupancyGrid":
        """The grid after a training step with these recorded weights."""
        del memory
        return self

    def cell_values(
        self, thin_out: Callable[[Any], Float[np.ndarray, "n"]]
    ) -> Float[np.ndarray, "n"] | None:
        """Weights or optical depths of some cells, for histograms; None if it has neither."""
        del thin_out
        return None


@as_pytree("contraction_norm")
@dataclasses.dataclass(frozen=True)
class PooledGrid(OccupancyGrid):
    """An occupancy grid with a pooled copy, in which blocks of steps are looked up first.

    Attributes:
      coarse: the pooled grid (`max_pool_occupancy`).
    """

    coarse: OccupancyGrid

    @property
    def block_grid(self) -> OccupancyGrid:
        """The pooled copy."""
        return self.coarse


Grid = TypeVar("Grid", bound=OccupancyGrid)


def make_full_grid(
    resolution: tuple[int, int, int],
    aabb: Float[Array, "2 3"],
    bounds: Float[Array, "2 3"] | None = None,
) -> OccupancyGrid:
    """A grid in which every cell may be occupied."""
    return OccupancyGrid(jnp.ones(resolution, bool), jnp.asarray(aabb, jnp.float32), bounds=bounds)


def set_contraction_norm(grid: Grid, norm: contraction.Norm) -> Grid:
    """The grid, and its pooled copy, with space contracted by this norm."""
    if isinstance(grid, PooledGrid):
        coarse = dataclasses.replace(grid.coarse, contraction_norm=norm)
        return dataclasses.replace(grid, coarse=coarse, contraction_norm=norm)
    return dataclasses.replace(grid, contraction_norm=norm)


def count_cells(longest: int, aabb: Float[np.ndarray | Array, "2 3"]) -> tuple[int, int, int]:
    """Number of cubic cells along each side of a box that has `longest` along its longest one."""
    size = np.asarray(aabb[1] - aabb[0])
    cell = size.max() / longest
    x, y, z = (math.ceil(s / cell - 1e-6) for s in size)
    return x, y, z


def contract_positions(
    grid: OccupancyGrid, positions: Float[Array, "*batch 3"]
) -> Float[Array, "*batch 3"]:
    """Positions in the grid of positions in the scene: the same unless space is contracted."""
    if grid.bounds is None:
        return positions
    return contraction.contract(positions, grid.bounds, grid.contraction_norm)


def uncontract_positions(
    grid: OccupancyGrid, positions: Float[Array, "*batch 3"]
) -> Float[Array, "*batch 3"]:
    """Positions in the scene of positions in the grid: the inverse of `contract_positions`."""
    if grid.bounds is None:
        return positions
    return contraction.uncontract(positions, grid.bounds, grid.contraction_norm)


def to_s_rays(grid: OccupancyGrid, rays: Rays) -> Rays:
    """Rays whose near and far are s distances, along which marching steps have equal length.

    They are clipped to the box. Where space is contracted, s distances are lengths in contracted
    space, `s_to_t` converts them back, and far is far out.
    """
    if grid.bounds is None:
        return clip_to_aabb(rays, grid.aabb)
    ends = jnp.stack([rays.near, contraction.far_distance(rays.origins, grid.bounds)], axis=-1)
    near, far = jnp.moveaxis(contraction.t_to_s(ends, rays.origins, grid.bounds), -1, 0)
    return dataclasses.replace(rays, near=near, far=far)


def s_to_t(
    grid: OccupancyGrid, sdist: Float[Array, "*batch n"], origins: Float[Array, "*batch 3"]
) -> Float[Array, "*batch n"]:
    """Distances along rays from these origins at s distances."""
    if grid.bounds is None:
        return sdist
    return contraction.s_to_t(sdist, origins, grid.bounds)


def contraction_jacobian(
    grid: OccupancyGrid, positions: Float[Array, "*batch 3"]
) -> Float[Array, "*batch"]:
    """Scene length per length in the grid, outwards, at positions in the grid."""
    if grid.bounds is None:
        return jnp.ones(positions.shape[:-1])
    return contraction.inverse_contraction_scale(positions, grid.bounds, grid.contraction_norm)


def cell_index(
    grid: OccupancyGrid, positions: Float[Array, "*batch 3"]
) -> tuple[Int[Array, "*batch"], Bool[Array, "*batch"], Float[Array, "*batch 3"]]:
    """Flat index of the cell of each position in the grid, whether it is inside, and where in it.

    Outside the box the index is that of the nearest cell along each axis. The position within the
    cell is in [0, 1].
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
    """Whether the cell of each position in the grid may be occupied; False outside the box."""
    flat, inside, _ = cell_index(grid, positions)
    return inside & grid.occupied.ravel()[flat]


def cell_centers(
    resolution: tuple[int, int, int], aabb: Float[Array, "2 3"]
) -> Float[Array, "x y z 3"]:
    """Centers of a grid's cells, in scene units."""
    axes = [
        aabb[0, a] + (jnp.arange(n) + 0.5) * (aabb[1, a] - aabb[0, a]) / n
        for a, n in enumerate(resolution)
    ]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def dilate(occupied: Bool[Array, "x y z"], cells: int = 1) -> Bool[Array, "x y z"]:
    """Every cell within `cells` of an occupied one, along each axis and diagonally."""
    for axis in range(3):
        lead = (slice(None),) * axis
        for _ in range(cells):
            forward = jnp.roll(occupied, 1, axis).at[(*lead, 0)].set(False)
            backward = jnp.roll(occupied, -1, axis).at[(*lead, -1)].set(False)
            occupied = occupied | forward | backward
    return occupied


def max_pool_occupancy(grid: OccupancyGrid, factor: int, dilation_cells: float) -> OccupancyGrid:
    """A grid of cells `factor` times as long, each occupied if any cell near it is.

    If the coarse cell of a point is empty, so is every fine cell that holds a point within
    `dilation_cells` fine cells of it along each axis. The coarse grid may extend beyond the upper
    faces of the box.
    """
    size = (grid.aabb[1] - grid.aabb[0]) / jnp.asarray(grid.occupied.shape, grid.aabb.dtype)
    padded = jnp.pad(grid.occupied, [(0, -n % factor) for n in grid.occupied.shape])
    x, y, z = (n // factor for n in padded.shape)
    pooled = padded.reshape(x, factor, y, factor, z, factor).any(axis=(1, 3, 5))
    high = grid.aabb[0] + size * jnp.asarray(padded.shape, grid.aabb.dtype)
    aabb = jnp.stack([grid.aabb[0], high])
    pooled = dilate(pooled, math.ceil(dilation_cells / factor))
    norm = grid.contraction_norm
    return OccupancyGrid(pooled, aabb, bounds=grid.bounds, contraction_norm=norm)


def prune_by_alpha(
    grid: OccupancyGrid,
    density_fn: DensityFn,
    step_size: Float[Array, ""] | float,
    threshold: float,
    chunk: int = 1 << 18,
) -> OccupancyGrid:
    """Keeps the occupied cells in or next to which a step through the field absorbs enough light.

    A cell counts when alpha = 1 - exp(-density step) at its center exceeds the threshold, and is
    then dilated by one cell (TensoRF, section 4, "alpha mask"). A pruned cell stays pruned.
    """
    x, y, z = grid.occupied.shape
    centers = cell_centers((x, y, z), grid.aabb).reshape(-1, 3)
    count = centers.shape[0]
    padded = jnp.pad(centers, ((0, -count % chunk), (0, 0)), mode="edge")
    density = jax.lax.map(density_fn, padded.reshape(-1, min(chunk, padded.shape[0]), 3))
    lengths = step_size * contraction_jacobian(grid, centers)
    alpha = 1.0 - jnp.exp(-density.ravel()[:count] * lengths)
    opaque = (alpha > threshold).reshape(grid.occupied.shape)
    return dataclasses.replace(grid, occupied=grid.occupied & dilate(opaque & grid.occupied))


def occupied_aabb(grid: OccupancyGrid) -> Float[np.ndarray, "2 3"]:
    """The smallest box that holds all occupied cells; the grid's box if none is occupied."""
    occupied = np.asarray(grid.occupied)
    aabb = np.asarray(grid.aabb, np.float64)
    if not occupied.any():
        return aabb
    cells = np.argwhere(occupied)
    size = (aabb[1] - aabb[0]) / np.array(occupied.shape)
    return np.stack([aabb[0] + cells.min(0) * size, aabb[0] + (cells.max(0) + 1) * size])


def visible_aabb(grid: OccupancyGrid) -> Float[np.ndarray, "2 3"]:
    """The box of all occupied cells; where space is contracted, of those in the scene's box."""
    aabb = occupied_aabb(grid)
    return aabb if grid.bounds is None else np.clip(aabb, *np.asarray(grid.bounds))


def resample_grid(
    grid: OccupancyGrid, resolution: tuple[int, int, int], aabb: Float[Array, "2 3"]
) -> OccupancyGrid:
    """The same occupancy on other cells: one is occupied if any corner or its center was.

    Meant for cells not larger than the old ones.
    """
    centers = cell_centers(resolution, aabb)
    half = 0.499 * (aabb[1] - aabb[0]) / jnp.asarray(resolution, jnp.float32)
    occupied = lookup(grid, centers)
    for corner in np.ndindex(2, 2, 2):
        sign = jnp.asarray(corner, jnp.float32) * 2.0 - 1.0
        occupied |= lookup(grid, centers + (sign * half).reshape(1, 1, 1, 3))
    box, norm = jnp.asarray(aabb, jnp.float32), grid.contraction_norm
    return OccupancyGrid(occupied, box, bounds=grid.bounds, contraction_norm=norm)
