"""The grid of `Voxels`: cells with ids, and rows of a table at their corners."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.kernels import calls
from jaxrf.core.pytree import as_pytree
from jaxrf.sampling.occupancy import OccupancyGrid, cell_index, set_contraction_norm
from jaxrf.sampling.weight_tracking import WeightTrackedGrid, init_weight_memory, track_weights

# The eight corners of a cell as offsets along x, y, z.
CORNERS = np.array(list(np.ndindex(2, 2, 2)))


@as_pytree("contraction_norm")
@dataclasses.dataclass(frozen=True)
class VoxelGrid(WeightTrackedGrid):
    """Cubic cells; the occupied ones have ids, and rows of a table at their corners.

    The arrays are as large as the finest grid needs, however few of their entries are in use, so
    that pruning and subdividing change no shape. Cell 0 and row 0 are reserved: no cell, no row.

    Attributes:
      occupied, aabb: of the n^3 cells, most of which may lie outside of the scene's box.
      max_weight_log: (cells,) by id of a cell.
      cell_ids: (n^3,) id of each cell, 0 where it is not occupied.
      corner_rows: (cells, 8) by id of a cell, the rows of the table at its corners.
      num_cells: () how many ids are in use, cell 0 included.
    """

    cell_ids: Int[Array, "n3"]
    corner_rows: Int[Array, "cells 8"]
    num_cells: Int[Array, ""]

    def slots_of(self, positions: Float[Array, "m 3"]) -> Int[Array, "m"]:
        """Id of the cell of each position in the grid."""

        def find(positions: Array) -> Array:
            return find_cells(self, positions)[0]

        if not calls.can_call(positions, self.aabb):
            return find(positions)
        slots: Array = jax.lax.platform_dependent(
            positions,
            cpu=lambda positions: calls.find_voxels(positions, self.cell_ids, self.aabb),
            default=find,
        )
        return slots


def find_cells(
    grid: VoxelGrid, positions: Float[Array, "m 3"]
) -> tuple[Int[Array, "m"], Float[Array, "m 3"]]:
    """Id of the cell that holds each position (0 if none does), and where in it, in [0, 1]."""
    flat, inside, fraction = cell_index(grid, positions)
    return jnp.where(inside, grid.cell_ids[flat], 0), fraction


def corner_weights(
    fraction: Float[Array | np.ndarray, "m 3"],
) -> Float[Array | np.ndarray, "m 8"]:
    """Trilinear weights of the corners of a unit cube, ordered as `CORNERS`; they sum to one."""
    upper = CORNERS.astype(fraction.dtype)[None]
    along = fraction[:, None, :]
    return (along * upper + (1.0 - along) * (1.0 - upper)).prod(axis=-1)


def index_cells(
    occupied: Bool[np.ndarray, "n n n"],
    aabb: Float[np.ndarray, "2 3"],
    dilation_cells: float,
    bounds: Float[Array, "2 3"] | None = None,
) -> VoxelGrid:
    """A grid of these cells, its arrays just large enough.

    `dilation_cells` as in `max_pool_occupancy`.
    """
    side = occupied.shape[0]
    cells = np.argwhere(occupied)
    corners = cells[:, None, :] + CORNERS[None]
    vertex = np.ravel_multi_index(tuple(np.moveaxis(corners, -1, 0)), (side + 1,) * 3)
    used = np.zeros((side + 1) ** 3, bool)
    used[vertex.ravel()] = True
    row_of = np.cumsum(used, dtype=np.int32)
    cell_ids = np.zeros(side**3, np.int32)
    cell_ids[np.flatnonzero(occupied)] = np.arange(1, len(cells) + 1)
    plain = OccupancyGrid(jnp.asarray(occupied), jnp.asarray(aabb, jnp.float32), bounds=bounds)
    tracked = jax.jit(track_weights, static_argnums=1)(plain, dilation_cells)
    return VoxelGrid(
        occupied=tracked.occupied,
        aabb=tracked.aabb,
        bounds=tracked.bounds,
        contraction_norm=tracked.contraction_norm,
        coarse=tracked.coarse,
        max_weight_log=init_weight_memory(len(cells) + 1),
        step=tracked.step,
        cell_ids=jnp.asarray(cell_ids),
        corner_rows=jnp.asarray(np.concatenate([np.zeros((1, 8), np.int32), row_of[vertex]])),
        num_cells=jnp.asarray(len(cells) + 1, jnp.int32),
    )


def count_rows(grid: VoxelGrid) -> int:
    """Rows that a grid needs, row 0 included."""
    return int(grid.corner_rows.max()) + 1


class Subdivided(NamedTuple):
    """A grid made of another one, and its rows as mixtures of the other's.

    grid: the new one, its arrays just large enough.
    parent_rows: (rows, 8) old rows that each new row is a mixture of.
    weights: (rows, 8) of these old rows.
    """

    grid: VoxelGrid
    parent_rows: Int[np.ndarray, "rows 8"]
    weights: Float[np.ndarray, "rows 8"]


def subdivide(
    grid: VoxelGrid, keep: Bool[np.ndarray, "n n n"], factor: int, dilation_cells: float
) -> Subdivided:
    """Keeps some cells and divides each into factor^3, such that the field in them stays the same.

    The kept cells are moved to the grid's low corner, which leaves most room for later divisions.

    Args:
      grid: the present one.
      keep: which of its occupied cells; at least one.
      factor: 1 only drops cells, 2 halves their size.
      dilation_cells: as in `max_pool_occupancy`.
    """
    side = grid.occupied.shape[0]
    old_ids = np.asarray(grid.cell_ids)
    remaining_cells = np.argwhere(keep & np.asarray(grid.occupied))
    low = remaining_cells.min(axis=0)
    assert (remaining_cells.max(axis=0) + 1 - low).max() * factor <= side, (
        "the grid is too small for its cells"
    )
    parts = np.array(list(np.ndindex(factor, factor, factor)))
    cells = ((remaining_cells - low)[:, None] * factor + parts[None]).reshape(-1, 3)
    occupied = np.zeros((side, side, side), bool)
    occupied[tuple(cells.T)] = True
    aabb = np.asarray(grid.aabb, np.float64)
    size = (aabb[1] - aabb[0]) / side
    corner = aabb[0] + low * size
    new_aabb = np.stack([corner, corner + side * size / factor])
    new = index_cells(occupied, new_aabb, dilation_cells, grid.bounds)
    new = set_contraction_norm(new, grid.contraction_norm)

    cells = np.argwhere(occupied)
    parent = old_ids[np.ravel_multi_index(tuple((cells // factor + low).T), (side,) * 3)]
    # A row belongs to up to eight cells, all of which give it the same value: take any.
    owner = np.zeros(count_rows(new), np.int64)
    corners = np.asarray(new.corner_rows)[1:]
    owner[corners.ravel()] = np.arange(corners.size)
    cell, which = np.divmod(owner, 8)
    fraction = (cells[cell] % factor + CORNERS[which]) / factor
    weights = np.asarray(corner_weights(fraction.astype(np.float32)))
    return Subdivided(new, np.asarray(grid.corner_rows)[parent[cell]], weights)


def pad_grid(grid: VoxelGrid, cells: int) -> VoxelGrid:
    """The same grid with room for so many cells; those that do not fit are cut off."""
    rows = grid.corner_rows[:cells]
    missing = cells - rows.shape[0]
    memory = jnp.concatenate([grid.max_weight_log[:cells], init_weight_memory(missing)])
    return dataclasses.replace(
        grid, corner_rows=jnp.pad(rows, ((0, missing), (0, 0))), max_weight_log=memory
    )
