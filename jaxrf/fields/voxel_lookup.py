"""Trilinear look-ups in the table of `Voxels`, and their gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float, Int

from jaxrf.core.grids import weighted_gather
from jaxrf.core.kernels import calls
from jaxrf.fields.voxel_grid import VoxelGrid, corner_weights, find_cells


class LookUp(NamedTuple):
    """Cells and interpolated values at positions.

    cells: id of the cell that holds each position; 0 if none does.
    first: the first channel of the table there, trilinearly interpolated.
    others: the other channels.
    """

    cells: Int[Array, "m"]
    first: Float[Array, "m"]
    others: Float[Array, "m k"]


def look_up(
    grid: VoxelGrid, table: Float[Array, "rows c"], positions: Float[Array, "m 3"]
) -> LookUp:
    """The cells of positions, and the rows of the table at their corners, interpolated.

    On a CPU a kernel does it (`core.kernels`), whose gradient leaves out row 0, which is no cell's.

    Args:
      grid: gives the cells.
      table: a row for each corner of a cell.
      positions: in the grid.
    """
    if table.shape[1] % calls.LANES or not calls.can_call(table, positions, grid.aabb):
        return look_up_with_xla(grid, table, positions)
    return _look_up(grid, table, positions)


def look_up_with_xla(
    grid: VoxelGrid, table: Float[Array, "rows c"], positions: Float[Array, "m 3"]
) -> LookUp:
    """`look_up` in JAX, on any device and in any precision."""
    cells, fraction = find_cells(grid, positions)
    values = weighted_gather(table, grid.corner_rows[cells], corner_weights(fraction))
    return LookUp(cells, values[:, 0], values[:, 1:])


def _look_up_with_kernel(grid: VoxelGrid, table: Array, positions: Array) -> LookUp:
    cells = calls.find_voxels(positions, grid.cell_ids, grid.aabb)
    values = calls.interpolate_voxels(
        table, positions, cells, grid.corner_rows, grid.cell_ids, grid.aabb
    )
    return LookUp(cells, *values)


@jax.custom_vjp
def _look_up(grid: VoxelGrid, table: Array, positions: Array) -> LookUp:
    lookup: LookUp = jax.lax.platform_dependent(
        grid, table, positions, cpu=_look_up_with_kernel, default=look_up_with_xla
    )
    return lookup


def _look_up_fwd(grid: Any, table: CustomVJPPrimal, positions: CustomVJPPrimal) -> Any:
    grid = jax.tree.map(lambda x: x.value, grid, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    lookup = _look_up(grid, table.value, positions.value)
    # Not the flag itself, which would become an array.
    moves = True if positions.perturbed else None
    return lookup, (grid, table.value, positions.value, lookup.cells, moves)


def _look_up_bwd(residuals: Any, gradients: Any) -> tuple[None, Array, Array]:
    grid, table, positions, cells, moves = residuals
    count = len(positions)
    shapes = (count,), (count, table.shape[1] - 1)
    upstream = tuple(
        jnp.zeros(shape, table.dtype) if isinstance(gradient, SymbolicZero) else gradient
        for gradient, shape in zip(gradients[1:], shapes, strict=True)
    )

    def with_kernel(table: Array, upstream: tuple[Array, Array]) -> Array:
        return calls.scatter_voxels(
            len(table),
            positions,
            cells,
            grid.corner_rows,
            grid.num_cells,
            grid.cell_ids,
            grid.aabb,
            upstream,
        )

    def with_xla(table: Array, upstream: tuple[Array, Array]) -> Array:
        _, pull_back = jax.vjp(lambda t: look_up_with_xla(grid, t, positions)[1:], table)
        return pull_back(upstream)[0]

    to_table: Array = jax.lax.platform_dependent(table, upstream, cpu=with_kernel, default=with_xla)
    if moves is None:
        return None, to_table, jnp.zeros_like(positions)
    _, pull_back = jax.vjp(lambda p: look_up_with_xla(grid, table, p)[1:], positions)
    return None, to_table, pull_back(upstream)[0]


_look_up.defvjp(_look_up_fwd, _look_up_bwd, symbolic_zeros=True)
