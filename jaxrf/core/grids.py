"""Interpolation in lines and planes of feature rows, and the weighted gather of rows.

A table is row-major: a row holds the features of one grid point, so that a look-up reads contiguous
memory. The first and last rows lie on the faces of the box (align_corners).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.kernels import calls

# Bytes of gradient rows that a CPU scatters per block, so that a block stays in its cache.
SCATTER_BLOCK_BYTES = 1 << 22
TableDtype = Literal["float32", "bfloat16"]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def weighted_gather(
    table: Float[Array, "rows c"],
    indices: Int[Array, "m k"],
    weights: Float[Array, "m k"],
    table_dtype: TableDtype = "float32",
) -> Float[Array, "m c"]:
    """Weighted sums of k rows each: out[i] = sum_k weights[i, k] table[indices[i, k]].

    Makes one gather for each k. The gradient of the table is a scatter, which a CPU does block by
    block, up to 5 times faster than the single scatter that XLA derives (docs/lab/lookups.md).

    Args:
      table: features by row.
      indices: rows to read for each output.
      weights: of these rows.
      table_dtype: type that rows are read in; bfloat16 halves the memory traffic. Sums and
        gradients keep the table's type.
    """
    rows = cast_table(table, table_dtype)
    terms = (weights[:, k, None] * rows[indices[:, k]] for k in range(indices.shape[1]))
    return sum(terms, jnp.zeros((), table.dtype))


def cast_table(table: Float[Array, "rows c"], table_dtype: TableDtype) -> Float[Array, "rows c"]:
    """The table in the type that its rows are read in."""
    return table.astype(jnp.bfloat16) if table_dtype == "bfloat16" else table


def _weighted_gather_fwd(
    table: Float[Array, "rows c"],
    indices: Int[Array, "m k"],
    weights: Float[Array, "m k"],
    table_dtype: TableDtype,
) -> tuple[Float[Array, "m c"], tuple[Array, Array, Array]]:
    return weighted_gather(table, indices, weights, table_dtype), (table, indices, weights)


def _weighted_gather_bwd(
    table_dtype: TableDtype, residuals: tuple[Array, Array, Array], gradient: Float[Array, "m c"]
) -> tuple[Float[Array, "rows c"], None, Float[Array, "m k"]]:
    table, indices, weights = residuals
    rows = cast_table(table, table_dtype)
    grad_weights = [
        jnp.sum(gradient * rows[indices[:, k]], axis=-1) for k in range(indices.shape[1])
    ]
    grad_table = scatter_rows(jnp.zeros_like(table), indices, weights, gradient)
    return grad_table, None, jnp.stack(grad_weights, axis=-1)


weighted_gather.defvjp(_weighted_gather_fwd, _weighted_gather_bwd)


def scatter_rows(
    table: Float[Array, "rows c"],
    indices: Int[Array, "m k"],
    weights: Float[Array, "m k"],
    rows: Float[Array, "m c"],
) -> Float[Array, "rows c"]:
    """Adds each row to k rows of a table, weighted: the gradient of `weighted_gather`."""
    added: Array = jax.lax.platform_dependent(
        table, indices, weights, rows, cpu=_scatter_blocks, default=_scatter
    )
    return added


def _scatter(table: Array, indices: Array, weights: Array, rows: Array) -> Array:
    return table.at[indices].add(weights[:, :, None] * rows[:, None, :])


def _scatter_blocks(table: Array, indices: Array, weights: Array, rows: Array) -> Array:
    count, corners = indices.shape
    blocks = math.ceil(corners * rows.size * rows.dtype.itemsize / SCATTER_BLOCK_BYTES)
    if blocks <= 1:
        return _scatter(table, indices, weights, rows)
    size = -(-count // blocks)

    def split(x: Array) -> Array:
        # The padding of the last block has weight 0.
        padded = jnp.pad(x, ((0, blocks * size - count), (0, 0)))
        return padded.reshape(blocks, size, x.shape[1])

    def add(table: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return _scatter(table, *block), None

    return jax.lax.scan(add, table, (split(indices), split(weights), split(rows)))[0]


def _cell_and_fraction(
    coordinates: Float[Array, "m"], size: int
) -> tuple[Int[Array, "m"], Float[Array, "m"]]:
    """Index of the cell that holds each coordinate, and the fraction of the cell before it.

    Coordinates are clamped to [0, 1], the first and the last row (align_corners).
    """
    scaled = jnp.clip(coordinates, 0.0, 1.0) * (size - 1)
    cell = jnp.clip(jnp.floor(scaled).astype(jnp.int32), 0, max(size - 2, 0))
    return cell, scaled - cell


def sample_lines(
    lines: Sequence[Float[Array, "_ c"]], coordinates: Sequence[Float[Array, "m"]]
) -> list[Float[Array, "m c"]]:
    """Features of several lines, linearly interpolated at coordinates in [0, 1].

    Coordinates 0 and 1 are the end rows of a line.

    Args:
      lines: each (size, c), of any size.
      coordinates: (m,) for each line, clamped to [0, 1].
    """
    if not _have_kernel(lines, coordinates):
        return _sample_lines_at_once(lines, coordinates)
    return _sample_tables([line[None] for line in lines], list(coordinates), None)


def _sample_lines_at_once(lines: Sequence[Array], coordinates: Sequence[Array]) -> list[Array]:
    corners = []
    for line, coordinate in zip(lines, coordinates, strict=True):
        size = line.shape[0]
        cell, fraction = _cell_and_fraction(coordinate, size)
        indices = jnp.stack([cell, jnp.minimum(cell + 1, size - 1)], axis=-1)
        corners.append((indices, jnp.stack([1.0 - fraction, fraction], axis=-1)))
    return _gather_tables(lines, corners)


def _have_kernel(tables: Sequence[Array], coordinates: Sequence[Array]) -> bool:
    """Whether a kernel can look these tables up on a CPU."""
    rows_fit = all(table.shape[-1] % calls.LANES == 0 for table in tables)
    return rows_fit and calls.can_call(*tables, *coordinates)


def sample_line(
    line: Float[Array, "size c"], coordinates: Float[Array, "m"]
) -> Float[Array, "m c"]:
    """Features of one line, linearly interpolated at coordinates in [0, 1]."""
    return sample_lines([line], [coordinates])[0]


def sample_planes(
    planes: Sequence[Float[Array, "_ _ c"]],
    across: Sequence[Float[Array, "m"]],
    down: Sequence[Float[Array, "m"]],
) -> list[Float[Array, "m c"]]:
    """Features of several planes, bilinearly interpolated at coordinates in [0, 1].

    Args:
      planes: each (height, width, c), of any height and width.
      across, down: for each plane, (m,) coordinates along its width and its height, clamped to
        [0, 1].
    """
    if not _have_kernel(planes, [*across, *down]):
        return _sample_planes_at_once(planes, across, down)
    return _sample_tables(list(planes), list(across), list(down))


def _sample_planes_at_once(
    planes: Sequence[Array], across: Sequence[Array], down: Sequence[Array]
) -> list[Array]:
    corners = []
    for plane, horizontal, vertical in zip(planes, across, down, strict=True):
        height, width = plane.shape[:2]
        x, fx = _cell_and_fraction(horizontal, width)
        y, fy = _cell_and_fraction(vertical, height)
        right = jnp.minimum(x + 1, width - 1)
        top = y * width
        bottom = jnp.minimum(y + 1, height - 1) * width
        indices = jnp.stack([top + x, top + right, bottom + x, bottom + right], axis=-1)
        weights = [(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy]
        corners.append((indices, jnp.stack(weights, axis=-1)))
    tables = [plane.reshape(-1, plane.shape[-1]) for plane in planes]
    return _gather_tables(tables, corners)


@jax.custom_vjp
def _sample_tables(
    planes: list[Array], across: list[Array], down: list[Array] | None
) -> list[Array]:
    """Features of planes, or of lines, which are planes of height 1 and have no `down`.

    On a CPU a kernel reads one after the other; elsewhere one gather reads all.
    """
    features: list[Array] = jax.lax.platform_dependent(
        planes, across, down, cpu=_sample_with_kernel, default=_sample_at_once
    )
    return features


def _sample_at_once(
    planes: list[Array], across: list[Array], down: list[Array] | None
) -> list[Array]:
    if down is None:
        return _sample_lines_at_once([plane[0] for plane in planes], across)
    return _sample_planes_at_once(planes, across, down)


def _sample_with_kernel(
    planes: list[Array], across: list[Array], down: list[Array] | None
) -> list[Array]:
    down = [jnp.zeros_like(x) for x in across] if down is None else down
    return [calls.interpolate_plane(*table) for table in zip(planes, across, down, strict=True)]


def _sample_tables_fwd(planes: Any, across: Any, down: Any) -> tuple[list[Array], Any]:
    primals = [planes, across, down]
    values = jax.tree.map(lambda x: x.value, primals, is_leaf=_is_primal)
    coordinates = jax.tree.leaves(primals[1:], is_leaf=_is_primal)
    # Not the flag itself, which would become an array.
    moves = True if any(primal.perturbed for primal in coordinates) else None
    return _sample_tables(*values), (*values, moves)


def _is_primal(node: Any) -> bool:
    return isinstance(node, CustomVJPPrimal)


def _sample_tables_bwd(residuals: Any, gradients: Any) -> tuple[Any, Any, Any]:
    planes, across, down, moves = residuals
    upstream = [
        jnp.zeros(gradient.shape, gradient.dtype)
        if isinstance(gradient, SymbolicZero)
        else gradient
        for gradient in gradients
    ]

    def with_kernel(planes: list[Array], upstream: list[Array]) -> list[Array]:
        lower = [jnp.zeros_like(x) for x in across] if down is None else down
        return [
            calls.scatter_plane(plane.shape, *samples)
            for plane, *samples in zip(planes, across, lower, upstream, strict=True)
        ]

    def with_xla(planes: list[Array], upstream: list[Array]) -> list[Array]:
        _, pull_back = jax.vjp(lambda planes: _sample_at_once(planes, across, down), planes)
        of_planes: list[Array] = pull_back(upstream)[0]
        return of_planes

    of_planes = jax.lax.platform_dependent(planes, upstream, cpu=with_kernel, default=with_xla)
    if moves is None:
        return of_planes, *jax.tree.map(jnp.zeros_like, (across, down))
    _, pull_back = jax.vjp(lambda *at: _sample_at_once(planes, *at), across, down)
    return of_planes, *pull_back(upstream)


_sample_tables.defvjp(_sample_tables_fwd, _sample_tables_bwd, symbolic_zeros=True)


def sample_plane(
    plane: Float[Array, "height width c"],
    across: Float[Array, "m"],
    down: Float[Array, "m"],
) -> Float[Array, "m c"]:
    """Features of one plane, bilinearly interpolated.

    Args:
      plane: (height, width, c).
      across: (m,) coordinate in [0, 1] along the width.
      down: (m,) coordinate in [0, 1] along the height.
    """
    return sample_planes([plane], [across], [down])[0]


def _gather_tables(
    tables: Sequence[Float[Array, "_ c"]],
    corners: Sequence[tuple[Int[Array, "m k"], Float[Array, "m k"]]],
) -> list[Float[Array, "m c"]]:
    """`weighted_gather` of several tables in one call."""
    starts = np.cumsum([0, *(table.shape[0] for table in tables[:-1])])
    indices = [index + int(start) for (index, _), start in zip(corners, starts, strict=True)]
    gathered = weighted_gather(
        jnp.concatenate(list(tables)),
        jnp.concatenate(indices),
        jnp.concatenate([weights for _, weights in corners]),
    )
    return jnp.split(gathered, len(tables))


def resample_line(
    line: Float[Array, "size c"],
    size: int,
    start: float | Float[Array, ""],
    stop: float | Float[Array, ""],
) -> Float[Array, "new_size c"]:
    """A line of `size` rows, interpolated from the part [start, stop] of another line."""
    return sample_line(line, jnp.linspace(start, stop, size))


def resample_plane(
    plane: Float[Array, "height width c"],
    size: tuple[int, int],
    start: tuple[float | Float[Array, ""], float | Float[Array, ""]],
    stop: tuple[float | Float[Array, ""], float | Float[Array, ""]],
) -> Float[Array, "new_height new_width c"]:
    """A plane of `size` (height, width), interpolated from a part of another plane.

    Args:
      plane: (height, width, c).
      size: height and width of the result.
      start, stop: corners of the part, (down, across), in [0, 1].
    """
    down, across = jnp.meshgrid(
        jnp.linspace(start[0], stop[0], size[0]),
        jnp.linspace(start[1], stop[1], size[1]),
        indexing="ij",
    )
    return sample_plane(plane, across.ravel(), down.ravel()).reshape(*size, plane.shape[-1])


def to_unit_box(
    positions: Float[Array, "m 3"], aabb: Float[Array, "2 3"]
) -> tuple[Float[Array, "m 3"], Bool[Array, "m"]]:
    """Positions scaled such that the box becomes [0, 1]^3, and whether they are inside it."""
    unit = (positions - aabb[:1]) / (aabb[1:] - aabb[:1])
    return unit, jnp.all((unit >= 0.0) & (unit <= 1.0), axis=-1)
