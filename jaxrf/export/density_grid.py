"""The density of a run sampled on a regular grid over its occupied space."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from jaxrf.core import memory
from jaxrf.core.errors import InputError
from jaxrf.export.progress import ProgressFn, no_progress
from jaxrf.fields.base import Field
from jaxrf.models.base import ModelParams
from jaxrf.models.networks import make_density_fn
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training.runs import Run

# Positions evaluated in one call.
CHUNK_SIZE = 1 << 16
# Peak memory of a grid point, from density to surface.
BYTES_PER_POINT = 24
# Radius of a pixel's cone over the spacing of pixels (Mip-NeRF, section 3.1).
CONE_RADIUS_PER_PIXEL = 2.0 / math.sqrt(12.0)


class DensityGrid(NamedTuple):
    """Densities at the points of a regular grid.

    density: (x, y, z) per scene unit.
    origin: (3,) the first point, in scene units.
    spacing: distance between neighbors along each axis, in scene units.
    """

    density: Float32[np.ndarray, "x y z"]
    origin: Float[np.ndarray, "3"]
    spacing: float


def find_occupied_box(grid: OccupancyGrid) -> Float[np.ndarray, "2 3"]:
    """Bounding box of the occupied cells, in scene units.

    Of a contracted space, only the part in the scene's box counts, which is not contracted.

    Raises:
      InputError: no cell is occupied.
    """
    if not np.asarray(grid.occupied).any():
        raise InputError(
            "No cell of the run's occupancy grid is occupied, so there is no geometry: train the "
            "run longer."
        )
    aabb = occupancy.visible_aabb(grid)
    if np.any(aabb[1] <= aabb[0]):
        raise InputError(
            "All occupied cells are outside the scene's box, where no mesh is made: use --format "
            "points."
        )
    return aabb


def find_spacing(aabb: Float[np.ndarray, "2 3"], resolution: int) -> float:
    """Side of a voxel when `resolution` voxels span the longest side of a box."""
    return float(np.max(aabb[1] - aabb[0])) / resolution


def measure_pixel_width(run: Run) -> float:
    """Width of a training pixel at the center of the scene, in scene units."""
    scene = run.scene
    if scene.ndc is not None:
        # In normalized device coordinates, the cameras' view is two units wide.
        return 2.0 / math.sqrt(scene.width * scene.height)
    return scene.radius / scene.focal


def sample_density(run: Run, resolution: int, progress: ProgressFn = no_progress) -> DensityGrid:
    """Densities of a run on a regular grid over its occupied cells.

    Args:
      run: of any field.
      resolution: intervals between points along the longest side of the box.
      progress: reports the slabs of the grid.

    Returns:
      The grid, with a border of zeros. Points in empty cells are not evaluated and are 0.

    Raises:
      InputError: no cell is occupied, or the grid does not fit into memory.
    """
    aabb = find_occupied_box(run.state.grid)
    spacing = find_spacing(aabb, resolution)
    # Complete intervals, centered on the box, plus the border.
    count = np.ceil((aabb[1] - aabb[0]) / spacing - 1e-6).astype(int) + 3
    num_bytes = np.prod(count, dtype=float) * BYTES_PER_POINT
    if num_bytes > memory.free_bytes():
        raise InputError(
            f"--resolution {resolution} needs a grid of {' x '.join(map(str, count))} points, "
            f"which takes {num_bytes / 2**30:.0f} GiB of memory: use a smaller --resolution."
        )
    origin = aabb.mean(axis=0) - 0.5 * spacing * (count - 1)
    density_fn = _make_density_fn(run)
    occupied_fn = functools.partial(_lookup_occupancy, run.state.grid)
    density = np.zeros(count, np.float32)
    slab = np.stack(np.meshgrid(*(np.arange(1, n - 1) for n in count[1:]), indexing="ij"), -1)
    slab = slab.reshape(-1, 2)
    for x in progress(range(1, count[0] - 1), "density"):
        index = np.concatenate([np.full((len(slab), 1), x), slab], axis=1)
        positions = (origin + spacing * index).astype(np.float32)
        occupied = _evaluate_in_chunks(occupied_fn, positions)
        index, positions = index[occupied], positions[occupied]
        density[tuple(index.T)] = _evaluate_in_chunks(density_fn, positions)
    return DensityGrid(density, origin, spacing)


def _make_density_fn(run: Run) -> Callable[[Float[Array, "m 3"]], Float[Array, "m"]]:
    """A function of positions that gives the run's density per scene unit."""
    grid = run.state.grid
    radius = jnp.asarray(CONE_RADIUS_PER_PIXEL * measure_pixel_width(run))
    return functools.partial(
        _evaluate_density, run.stage.field, run.state.eval_params, grid, radius
    )


def _evaluate_in_chunks(
    fn: Callable[[Array], Array], positions: Float32[np.ndarray, "n 3"]
) -> np.ndarray:
    """Evaluates a function of positions in chunks of one size, so that it compiles once."""
    parts = []
    for start in range(0, len(positions), CHUNK_SIZE):
        part = positions[start : start + CHUNK_SIZE]
        padded = np.pad(part, ((0, CHUNK_SIZE - len(part)), (0, 0)), mode="edge")
        parts.append(np.asarray(fn(jnp.asarray(padded)))[: len(part)])
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


# Jitted at module level, so that all chunks share one compiled program.
@jax.jit
def _lookup_occupancy(grid: OccupancyGrid, positions: Float[Array, "m 3"]) -> Bool[Array, "m"]:
    return occupancy.lookup(grid, occupancy.contract_positions(grid, positions))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_density(
    field: Field,
    params: ModelParams,
    grid: OccupancyGrid,
    radius: Float[Array, ""],
    positions: Float[Array, "m 3"],
) -> Float[Array, "m"]:
    return make_density_fn(field, params, grid, radius)(positions)
