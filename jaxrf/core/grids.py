"""Interpolation in grids: lines, planes and hash tables of rows, with corners on the box's faces.

Tables are row-major, a row being the features of one grid point, so that a look-up reads
contiguous memory.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

# Bytes of gradient rows that a CPU scatters at a time: what stays in its cache.
SCATTERED_AT_ONCE = 1 << 22
TableType = Literal["float32", "bfloat16"]
HashRule = Literal["faces", "hashed", "centred"]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def weighted_gather(
    table: Float[Array, "rows c"],
    indices: Int[Array, "m k"],
    weights: Float[Array, "m k"],
    read_as: TableType = "float32",
) -> Float[Array, "m c"]:
    """Weighted sums of k rows: out[i] = sum_k weights[i, k] table[indices[i, k]].

    One gather for each k. Its gradient is a scatter, which on a CPU goes block by block: that is up
    to 5 times faster than the one scatter that XLA derives (docs/gather.md). Read as bfloat16, rows
    are half as long; the sums and the gradient are of the table's own type even so.
    """
    rows = _narrow(table, read_as)
    terms = (weights[:, k, None] * rows[indices[:, k]] for k in range(indices.shape[1]))
    return sum(terms, jnp.zeros((), table.dtype))


def _narrow(table: Float[Array, "rows c"], read_as: TableType) -> Float[Array, "rows c"]:
    return table.astype(jnp.bfloat16) if read_as == "bfloat16" else table


def _mix_rows_forward(
    table: Float[Array, "rows c"],
    indices: Int[Array, "m k"],
    weights: Float[Array, "m k"],
    read_as: TableType,
) -> tuple[Float[Array, "m c"], tuple[Array, Array, Array]]:
    return weighted_gather(table, indices, weights, read_as), (table, indices, weights)


def _mix_rows_backward(
    read_as: TableType, kept: tuple[Array, Array, Array], gradient: Float[Array, "m c"]
) -> tuple[Float[Array, "rows c"], None, Float[Array, "m k"]]:
    table, indices, weights = kept
    places, rows = range(indices.shape[1]), _narrow(table, read_as)
    to_weights = [jnp.sum(gradient * rows[indices[:, k]], axis=-1) for k in places]
    to_table = jax.lax.platform_dependent(
        jnp.zeros_like(table), indices, weights, gradient, cpu=_scatter_blocks, default=_scatter
    )
    return to_table, None, jnp.stack(to_weights, axis=-1)


weighted_gather.defvjp(_mix_rows_forward, _mix_rows_backward)


def _scatter(table: Array, indices: Array, weights: Array, rows: Array) -> Array:
    return table.at[indices].add(weights[:, :, None] * rows[:, None, :])


def _scatter_blocks(table: Array, indices: Array, weights: Array, rows: Array) -> Array:
    count, corners = indices.shape
    blocks = math.ceil(corners * rows.size * rows.dtype.itemsize / SCATTERED_AT_ONCE)
    if blocks <= 1:
        return _scatter(table, indices, weights, rows)
    size = -(-count // blocks)

    def split(x: Array) -> Array:
        # What is added to fill the last block has no weight.
        padded = jnp.pad(x, ((0, blocks * size - count), (0, 0)))
        return padded.reshape(blocks, size, x.shape[1])

    def add(table: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return _scatter(table, *block), None

    return jax.lax.scan(add, table, (split(indices), split(weights), split(rows)))[0]


def _split(coordinates: Float[Array, "m"], size: int) -> tuple[Int[Array, "m"], Float[Array, "m"]]:
    """Cell and fraction of coordinates in [0, 1], which are clamped to it (align_corners)."""
    scaled = jnp.clip(coordinates, 0.0, 1.0) * (size - 1)
    cell = jnp.clip(jnp.floor(scaled).astype(jnp.int32), 0, max(size - 2, 0))
    return cell, scaled - cell


def sample_lines(
    lines: Sequence[Float[Array, "_ c"]], coordinates: Sequence[Float[Array, "m"]]
) -> list[Float[Array, "m c"]]:
    """Linear interpolation of lines of rows, of each at its own coordinates in [0, 1].

    0 and 1 are a line's end rows. All lines are looked up at once, as one table.
    """
    corners = []
    for line, coordinate in zip(lines, coordinates, strict=True):
        size = line.shape[0]
        cell, fraction = _split(coordinate, size)
        indices = jnp.stack([cell, jnp.minimum(cell + 1, size - 1)], axis=-1)
        corners.append((indices, jnp.stack([1.0 - fraction, fraction], axis=-1)))
    return _mix_tables(lines, corners)


def sample_line(
    line: Float[Array, "size c"], coordinates: Float[Array, "m"]
) -> Float[Array, "m c"]:
    """Linear interpolation of a line of rows at coordinates in [0, 1]; 0 and 1 are its end rows."""
    return sample_lines([line], [coordinates])[0]


def sample_planes(
    planes: Sequence[Float[Array, "_ _ c"]],
    across: Sequence[Float[Array, "m"]],
    down: Sequence[Float[Array, "m"]],
) -> list[Float[Array, "m c"]]:
    """Bilinear interpolation of planes of rows, of each at its own coordinates in [0, 1].

    All planes are looked up at once, as one table.

    Args:
      planes: each (height, width, c), of any height and width.
      across, down: for each plane, (m,) coordinates along its width and its height.
    """
    corners = []
    for plane, horizontal, vertical in zip(planes, across, down, strict=True):
        height, width = plane.shape[:2]
        x, fx = _split(horizontal, width)
        y, fy = _split(vertical, height)
        right = jnp.minimum(x + 1, width - 1)
        top = y * width
        bottom = jnp.minimum(y + 1, height - 1) * width
        indices = jnp.stack([top + x, top + right, bottom + x, bottom + right], axis=-1)
        weights = [(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy]
        corners.append((indices, jnp.stack(weights, axis=-1)))
    tables = [plane.reshape(-1, plane.shape[-1]) for plane in planes]
    return _mix_tables(tables, corners)


def sample_plane(
    plane: Float[Array, "height width c"],
    across: Float[Array, "m"],
    down: Float[Array, "m"],
) -> Float[Array, "m c"]:
    """Bilinear interpolation of a plane of rows.

    Args:
      plane: (height, width, c).
      across: (m,) coordinate in [0, 1] along the width.
      down: (m,) coordinate in [0, 1] along the height.
    """
    return sample_planes([plane], [across], [down])[0]


def _mix_tables(
    tables: Sequence[Float[Array, "_ c"]],
    corners: Sequence[tuple[Int[Array, "m k"], Float[Array, "m k"]]],
) -> list[Float[Array, "m c"]]:
    """`weighted_gather` for several tables at once."""
    starts = np.cumsum([0, *(table.shape[0] for table in tables[:-1])])
    indices = [index + int(start) for (index, _), start in zip(corners, starts, strict=True)]
    mixed = weighted_gather(
        jnp.concatenate(list(tables)),
        jnp.concatenate(indices),
        jnp.concatenate([weights for _, weights in corners]),
    )
    return jnp.split(mixed, len(tables))


def resample_line(
    line: Float[Array, "size c"],
    size: int,
    start: float | Float[Array, ""],
    stop: float | Float[Array, ""],
) -> Float[Array, "new_size c"]:
    """A line with `size` rows that spans [start, stop] of the old one's [0, 1]."""
    return sample_line(line, jnp.linspace(start, stop, size))


def resample_plane(
    plane: Float[Array, "height width c"],
    size: tuple[int, int],
    start: tuple[float | Float[Array, ""], float | Float[Array, ""]],
    stop: tuple[float | Float[Array, ""], float | Float[Array, ""]],
) -> Float[Array, "new_height new_width c"]:
    """A plane of `size` (height, width) that spans [start, stop] (down, across) of the old one."""
    down, across = jnp.meshgrid(
        jnp.linspace(start[0], stop[0], size[0]),
        jnp.linspace(start[1], stop[1], size[1]),
        indexing="ij",
    )
    return sample_plane(plane, across.ravel(), down.ravel()).reshape(*size, plane.shape[-1])


def to_unit_box(
    positions: Float[Array, "m 3"], aabb: Float[Array, "2 3"]
) -> tuple[Float[Array, "m 3"], Bool[Array, "m"]]:
    """Positions as parts of a box's sides, and whether they are inside: all in [0, 1]."""
    unit = (positions - aabb[:1]) / (aabb[1:] - aabb[:1])
    return unit, jnp.all((unit >= 0.0) & (unit <= 1.0), axis=-1)


class HashLevels(NamedTuple):
    """The levels of a multiresolution hash grid, one after the other in one table; static.

    cells: along each side, per level.
    starts: first row of each level, and the number of rows as a last entry.
    rule: "faces" has corners on the box's faces, and a row for each where they fit; "hashed" hashes
      the corners of every level; "centred" has the box's faces half a cell inside of the grid, and
      `cells` points along a side.
    scales: cells from face to face where they are centred.
    """

    cells: tuple[int, ...]
    starts: tuple[int, ...]
    rule: HashRule = "faces"
    scales: tuple[float, ...] = ()


def plan_hash_levels(levels: int, coarsest: int, finest: int, most_rows: int) -> HashLevels:
    """Levels whose cells along a side grow in geometric steps (Mueller et al. 2022, eq. 2 and 3).

    Args:
      levels: how many.
      coarsest, finest: cells along a side of the first and of the last.
      most_rows: of a level, a power of two; those with fewer corners have a row for each.
    """
    assert most_rows & (most_rows - 1) == 0
    growth = (finest / coarsest) ** (1.0 / max(levels - 1, 1))
    # Rounded down only past the rounding error.
    cells = tuple(math.floor(coarsest * growth**level + 1e-6) for level in range(levels))
    rows = (min((n + 1) ** 3, most_rows) for n in cells)
    return HashLevels(cells, tuple(int(start) for start in np.cumsum([0, *rows])))


def grow_scales(
    levels: int, coarsest: int, finest: int, rule: Literal["hashed", "centred"]
) -> tuple[float, ...]:
    """Cells from face to face of each level, rounded as nerfstudio or tiny-cuda-nn do, in float32.

    Args:
      levels: how many.
      coarsest, finest: cells of the first and of the last.
      rule: see `HashLevels`.
    """
    index = np.arange(levels).astype(np.float32)
    growth = np.float32(np.exp((np.log(finest) - np.log(coarsest)) / max(levels - 1, 1)))
    if rule == "hashed":
        return tuple(float(v) for v in np.floor(np.float32(coarsest) * np.power(growth, index)))
    octaves = np.exp2(index * np.log2(growth))
    return tuple(float(v) for v in octaves * np.float32(coarsest) - np.float32(1.0))


def place_hash_levels(
    scales: Sequence[float], most_rows: int, rule: Literal["hashed", "centred"]
) -> HashLevels:
    """Levels as nerfstudio's PyTorch code ("hashed") or tiny-cuda-nn ("centred") lays them out.

    Args:
      scales: cells from face to face, per level.
      most_rows: of a level, a power of two.
      rule: see `HashLevels`.
    """
    if rule == "hashed":
        cells = tuple(round(scale) for scale in scales)
        rows = [most_rows] * len(cells)
    else:
        cells = tuple(math.ceil(scale) + 1 for scale in scales)
        rows = [min(-(-(n**3) // 8) * 8, most_rows) for n in cells]
    return HashLevels(cells, tuple(int(n) for n in np.cumsum([0, *rows])), rule, tuple(scales))


def find_hash_rows(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]],
    cells: int,
    rows: int,
) -> Int[Array, "*batch"]:
    """Row of each corner in its level: its number, or a hash of it (Mueller et al. 2022, eq. 4).

    Args:
      corner: x, y, z from 0 to `cells`.
      cells: along a side.
      rows: of the level.
    """
    x, y, z = corner
    if (cells + 1) ** 3 <= rows:
        return (x * (cells + 1) + y) * (cells + 1) + z
    return _hash_rows(corner, rows)


def _hash_rows(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]], rows: int
) -> Int[Array, "*batch"]:
    return (_hash_corners(corner) & jnp.uint32(rows - 1)).astype(jnp.int32)


def _hash_corners(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]],
) -> UInt32[Array, "*batch"]:
    x, y, z = corner
    mixed = x.astype(jnp.uint32)
    for axis, prime in ((y, 2654435761), (z, 805459861)):
        mixed = mixed ^ (axis.astype(jnp.uint32) * jnp.uint32(prime))
    return mixed


def sample_hash_grid(
    table: Float[Array, "rows c"],
    unit: Float[Array, "m 3"],
    plan: HashLevels,
    read_as: TableType = "float32",
) -> Float[Array, "m e"]:
    """Trilinear features of all levels at positions in [0, 1], which are clamped to it.

    The table is read as `weighted_gather` does.

    Returns:
      (m, levels c), those of the coarsest level first.
    """
    corners = []
    for level, (cells, start) in enumerate(zip(plan.cells, plan.starts, strict=False)):
        rows = plan.starts[level + 1] - start
        if plan.rule == "centred":
            corner, weight = _find_corners(unit, plan.scales[level], centred=True)
            index = _find_centred_rows(corner, cells, rows)
        else:
            corner, weight = _find_corners(unit, cells)
            hashed = plan.rule == "hashed"
            index = _hash_rows(corner, rows) if hashed else find_hash_rows(corner, cells, rows)
        corners.append((index + start, weight))
    return _mix_levels(table, corners, read_as)


def _find_centred_rows(
    corner: tuple[Int[Array, "*batch"], Int[Array, "*batch"], Int[Array, "*batch"]],
    points: int,
    rows: int,
) -> Int[Array, "*batch"]:
    """Row of each corner, x counting fastest; what lies beyond the last point goes round."""
    x, y, z = corner
    if points**3 <= rows:
        return (x + points * (y + points * z)) % rows
    return _hash_rows(corner, rows)


def _find_corners(
    unit: Float[Array, "m 3"], cells: int | float | Int[Array, "m 1"], centred: bool = False
) -> tuple[tuple[Int[Array, "m 8"], Int[Array, "m 8"], Int[Array, "m 8"]], Float[Array, "m 8"]]:
    """The corners of each position's cell, x, y and z apart, and their trilinear weights.

    As arrays along one axis each: few and large operations compile several times faster than one
    for each corner. Where they are `centred` the box begins half a cell inside of the grid, which
    goes on behind it.
    """
    corner, weight = [], jnp.ones((unit.shape[0], 8), unit.dtype)
    for axis, offset in enumerate(np.array(list(np.ndindex(2, 2, 2)), np.int32).T):
        scaled = jnp.clip(unit[:, axis, None], 0.0, 1.0) * cells
        if centred:
            scaled += 0.5
        low = jnp.floor(scaled).astype(jnp.int32)
        if not centred:
            low = jnp.minimum(low, cells - 1)
        fraction, upper = scaled - low, offset[None]
        corner.append(low + upper)
        weight *= jnp.where(upper == 1, fraction, 1.0 - fraction)
    x, y, z = corner
    return (x, y, z), weight


def _mix_levels(
    table: Float[Array, "rows c"],
    corners: Sequence[tuple[Int[Array, "m 8"], Float[Array, "m 8"]]],
    read_as: TableType,
) -> Float[Array, "m e"]:
    """Features of levels, given the rows and weights of the corners in each, side by side."""
    indices, weights = zip(*corners, strict=True)
    # All samples of a level together, whose rows so stay in the cache.
    mixed = weighted_gather(table, jnp.concatenate(indices), jnp.concatenate(weights), read_as)
    levels, count = len(corners), indices[0].shape[0]
    mixed = mixed.reshape(levels, count, table.shape[1])
    return mixed.transpose(1, 0, 2).reshape(count, levels * table.shape[1])


def sample_hash_grids(
    table: Float[Array, "rows c"],
    unit: Float[Array, "m 3"],
    plans: Sequence[HashLevels],
    chosen: Int[Array, "m"],
    read_as: TableType = "float32",
) -> Float[Array, "m e"]:
    """As `sample_hash_grid`, with each position in one of several grids of as many levels each.

    Args:
      table: of the grids one after the other.
      unit: positions in [0, 1], which are clamped to it.
      plans: of each grid.
      chosen: which grid each position is in.
      read_as: see `weighted_gather`.
    """
    firsts = np.cumsum([0, *(plan.starts[-1] for plan in plans[:-1])])
    cells = np.array([plan.cells for plan in plans], np.int32)
    starts = np.array([plan.starts[:-1] for plan in plans]) + firsts[:, None]
    rows = np.array([np.diff(plan.starts) for plan in plans], np.int32)
    dense = (cells.astype(np.int64) + 1) ** 3 <= rows
    corners = []
    for level in range(cells.shape[1]):
        along, start, most, numbered = (
            jnp.asarray(numbers[:, level])[chosen][:, None]
            for numbers in (cells, starts.astype(np.int32), rows, dense)
        )
        (x, y, z), weight = _find_corners(unit, along)
        number = (x * (along + 1) + y) * (along + 1) + z
        hashed = _hash_corners((x, y, z)) & (most - 1).astype(jnp.uint32)
        corners.append((jnp.where(numbered, number, hashed.astype(jnp.int32)) + start, weight))
    return _mix_levels(table, corners, read_as)
