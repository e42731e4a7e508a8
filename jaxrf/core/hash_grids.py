"""Multiresolution hash grids: the layout of their levels in one table, and trilinear look-ups.

Müller et al.: Instant neural graphics primitives with a multiresolution hash encoding (SIGGRAPH
2022).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float, Int, UInt32

from jaxrf.core.grids import TableDtype, cast_table, scatter_rows, weighted_gather
from jaxrf.core.kernels import calls

HashLayout = Literal["dense_coarse", "all_hashed", "tcnn"]


class HashLevels(NamedTuple):
    """Layout of the levels of a hash grid, one after the other in one table; static.

    cells: cells along each side, per level; with "tcnn" the number of grid points.
    starts: first row of each level, and the total number of rows as the last entry.
    hash_layout:
      "dense_coarse": grid corners lie on the faces of the box; a level has one row per corner
        where that fits into the table, and is hashed otherwise.
      "all_hashed": every level is hashed, as in nerfstudio's PyTorch code.
      "tcnn": the faces of the box lie half a cell inside the grid, as in tiny-cuda-nn.
    scales: cells from face to face, per level; for "all_hashed" and "tcnn".
    axis_order: axes of positions that are x, y and z of the grid.
    """

    cells: tuple[int, ...]
    starts: tuple[int, ...]
    hash_layout: HashLayout = "dense_coarse"
    scales: tuple[float, ...] = ()
    axis_order: tuple[int, int, int] = (0, 1, 2)


def plan_hash_levels(
    num_levels: int, base_resolution: int, max_resolution: int, max_rows: int
) -> HashLevels:
    """Levels whose resolutions grow geometrically, the coarse ones dense (eq. 2 and 3).

    Args:
      num_levels: number of levels.
      base_resolution, max_resolution: cells along a side of the first and of the last level.
      max_rows: of a level, a power of two; a level with fewer corners has one row for each.
    """
    assert max_rows & (max_rows - 1) == 0
    growth = (max_resolution / base_resolution) ** (1.0 / max(num_levels - 1, 1))
    # The small number keeps a rounding error from taking a cell off the last level.
    cells = tuple(math.floor(base_resolution * growth**level + 1e-6) for level in range(num_levels))
    rows = (min((n + 1) ** 3, max_rows) for n in cells)
    return HashLevels(cells, tuple(int(start) for start in np.cumsum([0, *rows])))


def hash_level_scales(
    num_levels: int,
    base_resolution: int,
    max_resolution: int,
    hash_layout: Literal["all_hashed", "tcnn"],
    level_growth: float | None = None,
) -> tuple[float, ...]:
    """Cells from face to face of each level, rounded in float32 as nerfstudio and tiny-cuda-nn do.

    Args:
      num_levels: number of levels.
      base_resolution, max_resolution: cells along a side of the first and of the last level.
      hash_layout: see `HashLevels`.
      level_growth: ratio of a level's resolution to that of the level before; by default what leads
        from the first to the last.
    """
    index = np.arange(num_levels).astype(np.float32)
    if level_growth is None:
        log_ratio = np.log(max_resolution) - np.log(base_resolution)
        level_growth = float(np.exp(log_ratio / max(num_levels - 1, 1)))
    growth = np.float32(level_growth)
    if hash_layout == "all_hashed":
        scales = np.floor(np.float32(base_resolution) * np.power(growth, index))
        return tuple(float(v) for v in scales)
    # Each step rounded once to float32, as libraries round their float32 functions differently.
    octaves = index * np.float32(math.log2(float(growth)))
    powers = np.exp2(octaves.astype(np.float64)).astype(np.float32)
    return tuple(float(v) for v in powers * np.float32(base_resolution) - np.float32(1.0))


def plan_scaled_hash_levels(
    scales: Sequence[float], max_rows: int, hash_layout: Literal["all_hashed", "tcnn"]
) -> HashLevels:
    """Levels of given scales, laid out as in nerfstudio's PyTorch code or in tiny-cuda-nn.

    Args:
      scales: cells from face to face, per level.
      max_rows: of a level, a power of two.
      hash_layout: see `HashLevels`.
    """
    if hash_layout == "all_hashed":
        cells = tuple(round(scale) for scale in scales)
        rows = [max_rows] * len(cells)
    else:
        cells = tuple(math.ceil(scale) + 1 for scale in scales)
        # tiny-cuda-nn rounds the rows of a dense level up to a multiple of 8.
        rows = [min(-(-(n**3) // 8) * 8, max_rows) for n in cells]
    starts = tuple(int(n) for n in np.cumsum([0, *rows]))
    return HashLevels(cells, starts, hash_layout, tuple(scales))


def hash_rows(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]],
    cells: int,
    rows: int,
) -> Int[Array, "*batch"]:
    """Row of each corner within its level: its number where all fit, else its hash (eq. 4).

    Args:
      corner: x, y, z from 0 to `cells`.
      cells: along a side.
      rows: of the level.
    """
    x, y, z = corner
    if (cells + 1) ** 3 <= rows:
        return (x * (cells + 1) + y) * (cells + 1) + z
    return _hashed_rows(corner, rows)


def _hashed_rows(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]], rows: int
) -> Int[Array, "*batch"]:
    return (_hash_corners(corner) & jnp.uint32(rows - 1)).astype(jnp.int32)


def _hash_corners(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]],
) -> UInt32[Array, "*batch"]:
    x, y, z = corner
    hashed = x.astype(jnp.uint32)
    for axis, prime in ((y, 2654435761), (z, 805459861)):
        hashed = hashed ^ (axis.astype(jnp.uint32) * jnp.uint32(prime))
    return hashed


def _tcnn_rows(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]],
    points: int,
    rows: int,
) -> Int[Array, "*batch"]:
    """Row of each corner as in tiny-cuda-nn: x varies fastest, rows past the last wrap around."""
    x, y, z = corner
    if points**3 <= rows:
        return (x + points * (y + points * z)) % rows
    return _hashed_rows(corner, rows)


def sample_hash_grid(
    table: Float[Array, "rows c"],
    unit: Float[Array, "m 3"],
    levels: HashLevels,
    table_dtype: TableDtype = "float32",
) -> Float[Array, "m e"]:
    """Trilinearly interpolated features of all levels.

    A CPU reads level after level, so that no array but the features leaves its cache
    (docs/lab/lookups.md); elsewhere one gather reads all levels. Both have the same gradient.

    Args:
      table: rows of all levels.
      unit: positions, clamped to [0, 1].
      levels: layout of the table.
      table_dtype: type that rows are read in (`weighted_gather`).

    Returns:
      (m, levels c), the coarsest level first.
    """
    if levels.axis_order != (0, 1, 2):
        unit = unit[:, list(levels.axis_order)]
    return _interpolate(table, _clamp(unit), levels, table_dtype)


def _clamp(unit: Float[Array, "m 3"]) -> Float[Array, "m 3"]:
    """Positions clamped to [0, 1], as an array in memory on a CPU.

    XLA would compute them anew in each operation that reads them, with the contraction of space and
    all else before it, for every corner of every level. It keeps what a condition chooses.
    """

    def move_inside(unit: Array) -> Array:
        # Not jnp.clip, whose slope on the faces would be half of what the other branch has there.
        return jnp.where(unit > 1.0, 1.0, jnp.where(unit < 0.0, 0.0, unit))

    def move_if_outside(unit: Array) -> Array:
        is_inside = jnp.all((unit >= 0.0) & (unit <= 1.0))
        chosen: Array = jax.lax.cond(is_inside, lambda unit: unit, move_inside, unit)
        return chosen

    # An accelerator would wait for its host to read the condition.
    clamped: Array = jax.lax.platform_dependent(unit, cpu=move_if_outside, default=move_inside)
    return clamped


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _interpolate(
    table: Float[Array, "rows c"],
    unit: Float[Array, "m 3"],
    levels: HashLevels,
    table_dtype: TableDtype,
) -> Float[Array, "m e"]:
    def on_cpu(table: Array, unit: Array) -> Array:
        if _has_kernel(table, unit, levels, table_dtype):
            return calls.interpolate_hashed(table, unit, levels.cells, levels.starts)
        return _sample_by_level(table, unit, levels, table_dtype)

    features: Array = jax.lax.platform_dependent(
        table,
        unit,
        cpu=on_cpu,
        default=lambda table, unit: _sample_at_once(table, unit, levels, table_dtype),
    )
    return features


def _has_kernel(table: Array, unit: Array, levels: HashLevels, table_dtype: TableDtype) -> bool:
    """Whether a kernel can look this table up on a CPU."""
    is_plain = levels.hash_layout == "dense_coarse" and table_dtype == "float32"
    return is_plain and table.shape[1] == calls.FEW_LANES and calls.can_call(table, unit)


def _interpolate_fwd(
    table: CustomVJPPrimal, unit: CustomVJPPrimal, levels: HashLevels, table_dtype: TableDtype
) -> tuple[Float[Array, "m e"], tuple[Array, Array, Any]]:
    # Not the flag itself, which would become an array.
    moves = True if unit.perturbed else None
    features = _interpolate(table.value, unit.value, levels, table_dtype)
    return features, (table.value, unit.value, moves)


def _interpolate_bwd(
    levels: HashLevels,
    table_dtype: TableDtype,
    residuals: tuple[Array, Array, Any],
    gradient: Float[Array, "m e"] | SymbolicZero,
) -> tuple[Float[Array, "rows c"], Float[Array, "m 3"]]:
    table, unit, moves = residuals
    if isinstance(gradient, SymbolicZero):
        return jnp.zeros_like(table), jnp.zeros_like(unit)

    def with_xla(unit: Array, gradient: Array) -> Array:
        indices, weights = _stack_corners(unit, levels)
        channels = table.shape[1]
        by_level = gradient.reshape(len(unit), len(levels.cells), channels).transpose(1, 0, 2)
        rows = by_level.reshape(len(indices), channels)
        return scatter_rows(jnp.zeros_like(table), indices, weights, rows)

    def on_cpu(unit: Array, gradient: Array) -> Array:
        if _has_kernel(table, unit, levels, table_dtype):
            return calls.scatter_hashed(unit, levels.cells, levels.starts, gradient)
        return with_xla(unit, gradient)

    to_table: Array = jax.lax.platform_dependent(unit, gradient, cpu=on_cpu, default=with_xla)
    if moves is None:
        return to_table, jnp.zeros_like(unit)

    def sample(unit: Array) -> Array:
        return _sample_at_once(table, unit, levels, table_dtype)

    return to_table, jax.vjp(sample, unit)[1](gradient)[0]


_interpolate.defvjp(_interpolate_fwd, _interpolate_bwd, symbolic_zeros=True)


def _sample_by_level(
    table: Float[Array, "rows c"],
    unit: Float[Array, "m 3"],
    levels: HashLevels,
    table_dtype: TableDtype,
) -> Float[Array, "m e"]:
    rows, features = cast_table(table, table_dtype), []
    for level, start in enumerate(levels.starts[:-1]):
        low, fraction = _cells_and_fractions(unit, levels, level)
        total = jnp.zeros((), table.dtype)
        for corner in np.ndindex(2, 2, 2):
            row, weight = _corner_row(low, fraction, corner, levels, level)
            total += weight[:, None] * rows[row + start]
        features.append(total)
    return jnp.concatenate(features, axis=-1)


def _cells_and_fractions(
    unit: Float[Array, "m 3"], levels: HashLevels, level: int
) -> tuple[list[Int[Array, "m"]], list[Float[Array, "m"]]]:
    """Lowest corner of each position's cell by axis, and the fraction of the cell before it."""
    is_inset = levels.hash_layout == "tcnn"
    cells: float = levels.scales[level] if is_inset else levels.cells[level]
    low, fraction = [], []
    for coordinate in jnp.moveaxis(unit, -1, 0):
        scaled = coordinate * cells + (0.5 if is_inset else 0.0)
        cell = jnp.floor(scaled).astype(jnp.int32)
        cell = cell if is_inset else jnp.minimum(cell, int(cells) - 1)
        low.append(cell)
        fraction.append(scaled - cell)
    return low, fraction


def _corner_row(
    low: Sequence[Int[Array, "m"]],
    fraction: Sequence[Float[Array, "m"]],
    corner: tuple[int, int, int],
    levels: HashLevels,
    level: int,
) -> tuple[Int[Array, "m"], Float[Array, "m"]]:
    """Row within its level of a corner of each cell, and its trilinear weight.

    `corner` is 0 or 1 by axis.
    """
    x, y, z = (cell + upper for cell, upper in zip(low, corner, strict=True))
    weight = jnp.ones((), fraction[0].dtype)
    for value, upper in zip(fraction, corner, strict=True):
        weight *= value if upper else 1.0 - value
    return _level_rows((x, y, z), levels, level), weight


def _level_rows(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]],
    levels: HashLevels,
    level: int,
) -> Int[Array, "*batch"]:
    """Row of each corner within its level."""
    rows = levels.starts[level + 1] - levels.starts[level]
    if levels.hash_layout == "tcnn":
        return _tcnn_rows(corner, levels.cells[level], rows)
    if levels.hash_layout == "all_hashed":
        return _hashed_rows(corner, rows)
    return hash_rows(corner, levels.cells[level], rows)


def _stack_corners(
    unit: Float[Array, "m 3"], levels: HashLevels
) -> tuple[Int[Array, "n 8"], Float[Array, "n 8"]]:
    """Rows in the table and weights of the corners, of all positions in one level after the other.

    All samples of one level come together, so that its rows stay in the cache.
    """
    is_inset = levels.hash_layout == "tcnn"
    indices, weights = [], []
    for level, start in enumerate(levels.starts[:-1]):
        cells = levels.scales[level] if is_inset else levels.cells[level]
        corner, weight = _cell_corners(unit, cells, half_cell_inset=is_inset)
        indices.append(_level_rows(corner, levels, level) + start)
        weights.append(weight)
    return jnp.concatenate(indices), jnp.concatenate(weights)


def _sample_at_once(
    table: Float[Array, "rows c"],
    unit: Float[Array, "m 3"],
    levels: HashLevels,
    table_dtype: TableDtype,
) -> Float[Array, "m e"]:
    return _gather_levels(table, *_stack_corners(unit, levels), len(levels.cells), table_dtype)


def sample_hash_grids(
    table: Float[Array, "rows c"],
    unit: Float[Array, "m 3"],
    grids: Sequence[HashLevels],
    grid_index: Int[Array, "m"],
    table_dtype: TableDtype = "float32",
) -> Float[Array, "m e"]:
    """Like `sample_hash_grid`, but looks each position up in one of several grids.

    Args:
      table: rows of all grids, one grid after the other.
      unit: positions, clamped to [0, 1].
      grids: layouts, all with the same number of levels and "dense_coarse".
      grid_index: the grid to read for each position.
      table_dtype: type that rows are read in (`weighted_gather`).
    """
    grid_starts = np.cumsum([0, *(levels.starts[-1] for levels in grids[:-1])])
    cells = np.array([levels.cells for levels in grids], np.int32)
    starts = np.array([levels.starts[:-1] for levels in grids]) + grid_starts[:, None]
    rows = np.array([np.diff(levels.starts) for levels in grids], np.int32)
    dense = (cells.astype(np.int64) + 1) ** 3 <= rows
    unit, indices, weights = _clamp(unit), [], []
    for level in range(cells.shape[1]):
        level_cells, start, level_rows, is_dense = (
            jnp.asarray(numbers[:, level])[grid_index][:, None]
            for numbers in (cells, starts.astype(np.int32), rows, dense)
        )
        (x, y, z), weight = _cell_corners(unit, level_cells)
        number = (x * (level_cells + 1) + y) * (level_cells + 1) + z
        hashed = _hash_corners((x, y, z)) & (level_rows - 1).astype(jnp.uint32)
        indices.append(jnp.where(is_dense, number, hashed.astype(jnp.int32)) + start)
        weights.append(weight)
    stacked = jnp.concatenate(indices), jnp.concatenate(weights)
    return _gather_levels(table, *stacked, cells.shape[1], table_dtype)


def mean_squares(table: Float[Array, "rows c"], levels: HashLevels) -> Float[Array, "levels"]:
    """Mean square of the rows of each level."""
    squares = jnp.sum(jnp.square(table), axis=1)
    spans = zip(levels.starts[:-1], levels.starts[1:], strict=True)
    return jnp.stack([jnp.mean(squares[start:end]) for start, end in spans]) / table.shape[1]


def level_downweights(
    stds: Float[Array, "*batch"], levels: HashLevels
) -> Float[Array, "*batch levels"]:
    """Weight of each level's features for Gaussians of given widths, in [0, 1] (Zip-NeRF, eq. 5).

    erf(1 / sqrt(8 std^2 n^2)), n being the cells along a side: the share of a Gaussian that a cell
    around its mean holds. Levels finer than a Gaussian are noise to it.

    Args:
      stds: standard deviations in sides of the unit box; 0 weighs every level by 1.
      levels: layout of the grid.
    """
    cells = np.asarray(levels.scales or levels.cells, np.float32)
    widths = jnp.maximum(stds, 1e-9)[..., None] * cells.reshape((1,) * stds.ndim + (-1,))
    return jax.lax.erf(1.0 / (math.sqrt(8.0) * widths))


def _cell_corners(
    unit: Float[Array, "m 3"],
    cells: int | float | Int[Array, "m 1"],
    half_cell_inset: bool = False,
) -> tuple[tuple[Int[Array, "m 8"], Int[Array, "m 8"], Int[Array, "m 8"]], Float[Array, "m 8"]]:
    """Coordinates x, y and z of the corners of each position's cell, and their trilinear weights.

    Computes all corners of an axis in one operation: few large operations compile several times
    faster than one for each corner.

    Args:
      unit: positions in [0, 1].
      cells: from face to face of the box.
      half_cell_inset: the box begins half a cell inside the grid, which extends beyond the box.
    """
    corner, weight = [], jnp.ones((unit.shape[0], 8), unit.dtype)
    for axis, offset in enumerate(np.array(list(np.ndindex(2, 2, 2)), np.int32).T):
        scaled = unit[:, axis, None] * cells
        if half_cell_inset:
            scaled += 0.5
        low = jnp.floor(scaled).astype(jnp.int32)
        if not half_cell_inset:
            low = jnp.minimum(low, cells - 1)
        fraction, upper = scaled - low, offset[None]
        corner.append(low + upper)
        weight *= jnp.where(upper == 1, fraction, 1.0 - fraction)
    x, y, z = corner
    return (x, y, z), weight


def _gather_levels(
    table: Float[Array, "rows c"],
    indices: Int[Array, "n 8"],
    weights: Float[Array, "n 8"],
    num_levels: int,
    table_dtype: TableDtype,
) -> Float[Array, "m e"]:
    """Features of all levels side by side, given the corners in one level after the other."""
    gathered = weighted_gather(table, indices, weights, table_dtype)
    count, channels = len(indices) // num_levels, table.shape[1]
    by_level = gathered.reshape(num_levels, count, channels)
    return by_level.transpose(1, 0, 2).reshape(count, num_levels * channels)
