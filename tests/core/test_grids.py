"""Interpolation in grids, against hat functions summed over every grid point and against torch.

And mixtures of rows with the gradient of their own, against einsum, and hash grids against loops
over the corners with the integers of Python.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxrf.core import grids
from jaxrf.core.grids import (
    resample_line,
    resample_plane,
    sample_line,
    sample_plane,
    weighted_gather,
)
from jaxrf.core.hash_grids import (
    HashLevels,
    hash_rows,
    plan_hash_levels,
    plan_scaled_hash_levels,
    sample_hash_grid,
)

line_at = jax.jit(sample_line)
plane_at = jax.jit(sample_plane)


def hat(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def line_slowly(line: np.ndarray, coordinate: float) -> np.ndarray:
    """Every grid point's share by its distance; coordinates are clamped to [0, 1]."""
    at = min(max(float(coordinate), 0.0), 1.0) * (len(line) - 1)
    return sum(hat(at - i) * line[i].astype(np.float64) for i in range(len(line)))


def plane_slowly(plane: np.ndarray, across: float, down: float) -> np.ndarray:
    height, width = plane.shape[:2]
    x = min(max(float(across), 0.0), 1.0) * (width - 1)
    y = min(max(float(down), 0.0), 1.0) * (height - 1)
    total = np.zeros(plane.shape[2])
    for row in range(height):
        for column in range(width):
            total += hat(y - row) * hat(x - column) * plane[row, column].astype(np.float64)
    return total


def random_grid(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Inside, on grid points, on the faces and outside of them.
COORDINATES = np.concatenate(
    [
        np.random.default_rng(1).uniform(0, 1, 30),
        [0.0, 1.0, 0.25, 0.5, 0.75, -0.2, 1.3, 1.0 - 1e-7, 1e-7],
    ]
).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_line_equals_hat_functions(size: int) -> None:
    line = random_grid(size, 3)
    values = line_at(jnp.asarray(line), jnp.asarray(COORDINATES))
    for value, coordinate in zip(values, COORDINATES, strict=True):
        np.testing.assert_allclose(value, line_slowly(line, coordinate), atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 5), (5, 1), (1, 1), (2, 2)])
def test_plane_equals_hat_functions(shape: tuple[int, int]) -> None:
    plane, across = random_grid(*shape, 3), COORDINATES
    down = np.random.default_rng(2).permutation(COORDINATES)
    values = plane_at(jnp.asarray(plane), jnp.asarray(across), jnp.asarray(down))
    for value, x, y in zip(values, across, down, strict=True):
        np.testing.assert_allclose(value, plane_slowly(plane, x, y), atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (2, 2)])
def test_plane_equals_torch_grid_sample(shape: tuple[int, int]) -> None:
    plane, across = random_grid(*shape, 3), COORDINATES
    down = np.random.default_rng(3).permutation(COORDINATES)
    values = plane_at(jnp.asarray(plane), jnp.asarray(across), jnp.asarray(down))
    grid = torch.from_numpy(2.0 * np.stack([across, down], axis=-1) - 1.0)
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(plane).permute(2, 0, 1)[None],
        grid[None, :, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    np.testing.assert_allclose(values, sampled[0, :, :, 0].T.numpy(), atol=1e-5)


def test_sample_plane_across_is_width_and_down_is_height() -> None:
    plane = jnp.arange(3.0 * 5.0).reshape(3, 5, 1)
    corners = plane_at(plane, jnp.asarray([0.0, 1.0, 0.0, 1.0]), jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(corners[:, 0], [0.0, 4.0, 10.0, 14.0])


def test_sample_plane_is_exact_at_grid_points() -> None:
    line, plane = random_grid(9, 2), random_grid(5, 9, 2)
    at = jnp.linspace(0.0, 1.0, 9)
    np.testing.assert_allclose(line_at(jnp.asarray(line), at), line, atol=1e-6)
    for row in range(5):
        rows = plane_at(jnp.asarray(plane), at, jnp.full(9, row / 4))
        np.testing.assert_allclose(rows, plane[row], atol=1e-6)


def test_sample_plane_gradient_in_grid_equals_hat_weights() -> None:
    def total(plane: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(sample_plane(plane, x, y))

    x, y = jnp.asarray([0.3, 1.0, -0.5]), jnp.asarray([0.9, 1.0, 0.0])
    gradients = jax.grad(total, argnums=(0, 1, 2))(jnp.zeros((4, 6, 1)), x, y)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    for row in range(4):
        for column in range(6):
            expected = sum(
                hat(min(max(float(a), 0.0), 1.0) * 5 - column) * hat(float(b) * 3 - row)
                for a, b in zip(x, y, strict=True)
            )
            assert float(gradients[0][row, column, 0]) == pytest.approx(expected, abs=1e-5)


def test_sample_line_gradient_in_coordinates_equals_slopes() -> None:
    line = jnp.asarray([[0.0], [1.0], [5.0]])
    slopes = jax.grad(lambda x: jnp.sum(sample_line(line, x)))(jnp.asarray([0.2, 0.7, 1.5]))
    np.testing.assert_allclose(slopes, [2.0, 8.0, 0.0], atol=1e-5)


# Resampling.


def test_resample_to_the_same_size_is_the_identity() -> None:
    line, plane = random_grid(7, 3), random_grid(5, 7, 3)
    np.testing.assert_allclose(resample_line(jnp.asarray(line), 7, 0.0, 1.0), line, atol=1e-5)
    same = resample_plane(jnp.asarray(plane), (5, 7), (0.0, 0.0), (1.0, 1.0))
    assert same.shape == (5, 7, 3)
    np.testing.assert_allclose(same, plane, atol=1e-5)


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.2, 0.9)])
@pytest.mark.parametrize("size", [2, 6, 13])
def test_resampling_is_exact_for_linear_functions(size: int, span: tuple[float, float]) -> None:
    start, stop = span
    line = jnp.linspace(1.0, 3.0, 7)[:, None]
    expected = 1.0 + 2.0 * np.linspace(start, stop, size)
    np.testing.assert_allclose(resample_line(line, size, start, stop)[:, 0], expected, rtol=1e-5)
    # 10 down + across, with another span down the plane.
    down, across = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 7), indexing="ij")
    plane = jnp.asarray(10.0 * down + across, jnp.float32)[..., None]
    resampled = resample_plane(plane, (5, size), (0.1, start), (0.8, stop))
    down, across = np.meshgrid(
        np.linspace(0.1, 0.8, 5), np.linspace(start, stop, size), indexing="ij"
    )
    np.testing.assert_allclose(resampled[..., 0], 10.0 * down + across, rtol=1e-5)


def test_resample_preserves_common_grid_points() -> None:
    line, plane = random_grid(5, 3), random_grid(4, 5, 3)
    finer = resample_line(jnp.asarray(line), 9, 0.0, 1.0)
    np.testing.assert_allclose(finer[::2], line, atol=1e-5)
    np.testing.assert_allclose(finer[1::2], (line[1:] + line[:-1]) / 2, atol=1e-5)
    finer_plane = resample_plane(jnp.asarray(plane), (10, 9), (0.0, 0.0), (1.0, 1.0))
    np.testing.assert_allclose(finer_plane[::3, ::2], plane, atol=1e-5)


def test_resampling_equals_hat_functions() -> None:
    line, plane = random_grid(5, 2), random_grid(4, 6, 2)
    resampled = resample_line(jnp.asarray(line), 8, 0.1, 0.7)
    for i, at in enumerate(np.linspace(0.1, 0.7, 8)):
        np.testing.assert_allclose(resampled[i], line_slowly(line, at), atol=1e-5)
    resampled = resample_plane(jnp.asarray(plane), (3, 7), (0.3, 0.1), (0.9, 0.6))
    for i, down in enumerate(np.linspace(0.3, 0.9, 3)):
        for j, across in enumerate(np.linspace(0.1, 0.6, 7)):
            np.testing.assert_allclose(
                resampled[i, j], plane_slowly(plane, across, down), atol=1e-5
            )


def test_resample_beyond_the_grid_repeats_its_border() -> None:
    line = resample_line(jnp.asarray([[1.0], [2.0]]), 5, -1.0, 2.0)
    np.testing.assert_allclose(line[:, 0], [1.0, 1.0, 1.5, 2.0, 2.0], atol=1e-6)


# Mixtures of rows.


def mix_by_einsum(table: jax.Array, indices: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.einsum("mk,mkc->mc", weights, table[indices])


def mixing_case(rows: int, count: int, corners: int, channels: int) -> tuple[jax.Array, ...]:
    """A table, indices that hit some of its rows often, weights, and a gradient of the result."""
    rng = np.random.default_rng(count)
    indices = rng.integers(0, rows, (count, corners))
    indices[rng.uniform(size=indices.shape) < 0.2] = rows - 1
    return (
        jnp.asarray(rng.normal(size=(rows, channels)), jnp.float32),
        jnp.asarray(indices, jnp.int32),
        jnp.asarray(rng.normal(size=(count, corners)), jnp.float32),
        jnp.asarray(rng.normal(size=(count, channels)), jnp.float32),
    )


@functools.partial(jax.jit, static_argnums=0)
def pull_back(fn: Any, case: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The mixtures, and the gradients for the table and the weights."""
    table, indices, weights, gradient = case
    result, back = jax.vjp(lambda t, w: fn(t, indices, w), table, weights)
    return result, *back(gradient)


def scans_of(case: tuple[jax.Array, ...]) -> list[int]:
    """Lengths of the loops in the gradient's program for a CPU."""
    table, indices, weights, gradient = case
    jaxpr = jax.make_jaxpr(grids._scatter_blocks)(jnp.zeros_like(table), indices, weights, gradient)
    return [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]


@pytest.mark.parametrize(
    ("count", "corners", "channels"),
    [(0, 8, 3), (1, 8, 8), (1, 1, 1), (2, 2, 1), (57, 4, 3), (57, 1, 5), (100, 8, 8)],
)
def test_weighted_gather_equals_einsum(count: int, corners: int, channels: int) -> None:
    case = mixing_case(23, count, corners, channels)
    result, expected = pull_back(weighted_gather, case), pull_back(mix_by_einsum, case)
    assert result[0].shape == (count, channels)
    for value, truth in zip(result, expected, strict=True):
        assert value.shape == truth.shape and value.dtype == truth.dtype
        np.testing.assert_allclose(value, truth, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "blocks"), [(59, 1), (60, 1), (61, 2), (120, 2), (121, 3), (293, 5), (300, 5)]
)
def test_weighted_gather_gradients_do_not_depend_on_number_of_blocks(
    monkeypatch: pytest.MonkeyPatch, count: int, blocks: int
) -> None:
    corners, channels = 4, 5
    monkeypatch.setattr(grids, "SCATTER_BLOCK_BYTES", 60 * corners * channels * 4)
    case = mixing_case(31, count, corners, channels)
    assert scans_of(case) == ([blocks] if blocks > 1 else [])
    table, *rest = case
    _, to_table, to_weights = pull_back(mix_by_einsum, case)
    for scatter in (grids._scatter_blocks, grids._scatter):
        scattered = jax.jit(scatter)(jnp.zeros_like(table), *rest)
        np.testing.assert_allclose(scattered, to_table, atol=1e-4)
    result = pull_back(weighted_gather, case)
    np.testing.assert_allclose(result[1], to_table, atol=1e-4)
    np.testing.assert_allclose(result[2], to_weights, atol=1e-4)


def test_weighted_gather_gradients_of_real_size_equal_einsum() -> None:
    # 5 blocks of 4 MiB with a remainder.
    case = mixing_case(5000, 70_001, 8, 8)
    assert scans_of(case) == [5]
    _, to_table, to_weights = pull_back(weighted_gather, case)
    np.testing.assert_allclose(to_weights, pull_back(mix_by_einsum, case)[2], atol=1e-4)
    _, indices, weights, gradient = (np.asarray(x) for x in case)
    for row in (0, 1234, 4998, 4999):
        m, k = np.nonzero(indices == row)
        exact = np.sum(weights[m, k, None].astype(np.float64) * gradient[m], axis=0)
        # The last row gets 100,000 terms, the others some 100.
        np.testing.assert_allclose(to_table[row], exact, atol=2e-2 if row == 4999 else 1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e10, 1e30])
def test_weighted_gather_gradients_of_extreme_rows_are_finite(scale: float) -> None:
    table, indices, weights, gradient = mixing_case(9, 20, 4, 3)
    for slope in pull_back(weighted_gather, (scale * table, indices, weights, gradient)):
        assert np.all(np.isfinite(slope))


def test_weighted_gather_in_bfloat16_rounds_rows_but_not_gradients() -> None:
    case = mixing_case(23, 500, 8, 3)
    table, *rest = case
    rounded = table.astype(jnp.bfloat16).astype(jnp.float32)
    narrow = functools.partial(weighted_gather, table_dtype="bfloat16")
    result, expected = pull_back(narrow, case), pull_back(weighted_gather, (rounded, *rest))
    for value, truth in zip(result, expected, strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, truth, atol=1e-5)
    # A row that is mixed a hundred times gets the whole sum, which bfloat16 could not hold.
    assert np.abs(np.asarray(pull_back(weighted_gather, case)[0] - result[0])).max() > 1e-4


def test_to_unit_box_includes_the_faces() -> None:
    aabb = jnp.asarray([[-1.0, 0.0, 2.0], [1.0, 4.0, 3.0]])
    positions = jnp.asarray(
        [[-1.0, 0.0, 2.0], [1.0, 4.0, 3.0], [0.0, 1.0, 2.25], [1.1, 1.0, 2.5], [0.0, -1e9, 2.5]]
    )
    unit, inside = grids.to_unit_box(positions, aabb)
    np.testing.assert_allclose(unit[:3], [[0.0] * 3, [1.0] * 3, [0.5, 0.25, 0.25]])
    assert np.asarray(inside).tolist() == [True, True, True, False, False]


def test_weighted_gather_gives_unread_rows_zero_gradient() -> None:
    table, _, weights, gradient = mixing_case(9, 20, 4, 3)
    indices = jnp.asarray(np.random.default_rng(0).choice([2, 5, 6], (20, 4)), jnp.int32)
    slope = np.asarray(pull_back(weighted_gather, (table, indices, weights, gradient))[1])
    assert np.flatnonzero(np.any(slope != 0, axis=1)).tolist() == [2, 5, 6]


# Hash grids.


@pytest.mark.parametrize(
    ("levels", "coarsest", "finest"),
    [(16, 16, 2048), (16, 16, 524_288), (8, 16, 256), (3, 4, 12), (5, 2, 32), (2, 7, 7), (1, 9, 9)],
)
def test_plan_hash_levels_cells_follow_the_geometric_series(
    levels: int, coarsest: int, finest: int
) -> None:
    plan = plan_hash_levels(levels, coarsest, finest, 1 << 19)
    assert len(plan.cells) == levels and plan.cells[0] == coarsest
    assert plan.cells[-1] == finest
    for level, cells in enumerate(plan.cells):
        # cells <= coarsest (finest / coarsest)^(level / (levels - 1)), in integers.
        last = max(levels - 1, 1)
        exact = coarsest ** (last - level) * finest**level
        assert cells**last <= exact < (cells + 1) ** last


@pytest.mark.parametrize("most_rows", [1, 64, 256, 1 << 19])
def test_plan_hash_levels_rows_are_corners_or_max_rows(most_rows: int) -> None:
    plan = plan_hash_levels(5, 3, 40, most_rows)
    start = 0
    for cells, first in zip(plan.cells, plan.starts[:-1], strict=True):
        assert first == start
        start += min((cells + 1) ** 3, most_rows)
    assert plan.starts[-1] == start and len(plan.starts) == 6
    hash(plan)


def hash_row_slowly(corner: tuple[int, ...], cells: int, rows: int) -> int:
    x, y, z = corner
    if (cells + 1) ** 3 <= rows:
        return x * (cells + 1) ** 2 + y * (cells + 1) + z
    return (x ^ (y * 2_654_435_761) % 2**32 ^ (z * 805_459_861) % 2**32) % rows


@pytest.mark.parametrize(("cells", "rows"), [(6, 7**3), (6, 512), (7, 512), (7, 256), (9, 1)])
def test_hash_rows_equal_python_for_all_corners(cells: int, rows: int) -> None:
    corners = list(np.ndindex(cells + 1, cells + 1, cells + 1))
    x, y, z = (jnp.asarray(axis, jnp.int32) for axis in np.transpose(corners))
    result = np.asarray(hash_rows((x, y, z), cells, rows))
    assert result.tolist() == [hash_row_slowly(corner, cells, rows) for corner in corners]
    assert result.min() >= 0 and result.max() < rows
    if len(corners) <= rows:
        assert len(set(result.tolist())) == len(corners), "no two corners share a row"


def test_hash_rows_equal_python_for_a_very_fine_level() -> None:
    cells, rows = 524_288, 1 << 19
    corners = np.random.default_rng(0).integers(0, cells + 1, (500, 3))
    corners[:2] = [[0, 0, 0], [cells, cells, cells]]
    x, y, z = (jnp.asarray(axis, jnp.int32) for axis in corners.T)
    expected = [hash_row_slowly(tuple(c), cells, rows) for c in corners.tolist()]
    assert np.asarray(hash_rows((x, y, z), cells, rows)).tolist() == expected


def hash_grid_slowly(table: np.ndarray, unit: np.ndarray, levels: list[tuple[int, int]]) -> Any:
    """Features of one position: for each (cells, rows) the 8 corners around it by their hats."""
    result, start = [], 0
    for cells, rows in levels:
        at = [min(max(float(u), 0.0), 1.0) * cells for u in unit]
        total = np.zeros(table.shape[1])
        for offset in np.ndindex(2, 2, 2):
            corner = tuple(min(int(a), cells - 1) + o for a, o in zip(at, offset, strict=True))
            share = np.prod([hat(a - c) for a, c in zip(at, corner, strict=True)])
            row = start + hash_row_slowly(corner, cells, rows)
            total += share * table[row].astype(np.float64)
        result.append(total)
        start += rows
    assert start == len(table)
    return np.concatenate(result)


# 4, 6 and 12 cells: one level with a row for each of its corners, two with fewer.
HASHED = plan_hash_levels(3, 4, 12, 256)
HASH_LEVELS = [(4, 125), (6, 256), (12, 256)]
hash_grid_at = jax.jit(sample_hash_grid, static_argnums=2)


def hash_case(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A table, and positions inside, on corners, on the faces and outside."""
    unit = np.random.default_rng(4).uniform(-0.1, 1.1, (count, 3))
    unit[:10] = np.random.default_rng(5).choice([0.0, 0.25, 0.5, 1.0], (10, 3))
    unit[10:13] = [[0, 0, 0], [1, 1, 1], [-1e30, 1e30, np.inf]]
    return random_grid(HASHED.starts[-1], 2), unit.astype(np.float32)


def test_sample_hash_grid_equals_loops_over_all_corners() -> None:
    assert HASHED.cells == (4, 6, 12) and HASHED.starts == (0, 125, 381, 637)
    table, unit = hash_case()
    result = hash_grid_at(jnp.asarray(table), jnp.asarray(unit), HASHED)
    assert result.shape == (60, 6)
    for value, position in zip(result, unit, strict=True):
        expected = hash_grid_slowly(table, position, HASH_LEVELS)
        np.testing.assert_allclose(value, expected, atol=2e-5)


def other_grid_slowly(
    table: np.ndarray, position: np.ndarray, scales: list[float], most: int, centered: bool
) -> list[float]:
    """nerfstudio's two layouts, corner by corner in Python's whole numbers."""
    out, first = [], 0
    for scale in scales:
        at = [float(v) * scale + (0.5 if centered else 0.0) for v in position]
        points = math.ceil(scale) + 1
        rows = min(-(-(points**3) // 8) * 8, most) if centered else most
        total = np.zeros(table.shape[1])
        for corner in itertools.product((0, 1), repeat=3):
            place, weight = [], 1.0
            for value, up in zip(at, corner, strict=True):
                part = value - math.floor(value)
                place.append(math.floor(value) + up)
                weight *= part if up else 1.0 - part
            x, y, z = place
            if centered and points**3 <= most:
                row = (x + points * y + points**2 * z) % rows
            else:
                row = (x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32 % rows
            total += weight * table[first + row]
        out += list(total)
        first += rows
    assert first == len(table)
    return out


@pytest.mark.parametrize("rule", ["all_hashed", "tcnn"])
def test_sample_hash_grid_other_layouts_equal_loops(rule: Any) -> None:
    scales = (5.0, 7.0, 12.0) if rule == "all_hashed" else (4.0, 6.5, 11.3)
    plan = plan_scaled_hash_levels(scales, 512, rule)
    assert plan.starts == ((0, 512, 1024, 1536) if rule == "all_hashed" else (0, 128, 640, 1152))
    table = random_grid(plan.starts[-1], 2)
    unit = np.random.default_rng(4).uniform(0.0, 1.0, (40, 3)).astype(np.float32)
    unit[:3] = [[0, 0, 0], [0.999, 0.5, 0.25], [0.2, 0.4, 0.6]]
    result = hash_grid_at(jnp.asarray(table), jnp.asarray(unit), plan)
    for value, position in zip(result, unit, strict=True):
        expected = other_grid_slowly(table, position, list(scales), 512, rule == "tcnn")
        np.testing.assert_allclose(value, expected, atol=5e-5)


def test_sample_hash_grid_in_float64_equals_loops_closely() -> None:
    table, unit = (x[:20].astype(np.float64) if i else x for i, x in enumerate(hash_case()))
    with jax.enable_x64(True):
        wide = jnp.asarray(table, jnp.float64)
        result = sample_hash_grid(wide, jnp.asarray(unit, jnp.float64), HASHED)
        assert result.dtype == jnp.float64
        for value, position in zip(result, unit, strict=True):
            expected = hash_grid_slowly(table, position, HASH_LEVELS)
            np.testing.assert_allclose(value, expected, atol=1e-13)


def test_sample_hash_grid_accepts_zero_positions() -> None:
    result = sample_hash_grid(jnp.ones((637, 2)), jnp.zeros((0, 3)), HASHED)
    assert result.shape == (0, 6)


def test_sample_hash_grid_reproduces_constant_and_linear_functions() -> None:
    _, unit = hash_case()
    same = hash_grid_at(jnp.full((637, 2), 3.0), jnp.asarray(unit), HASHED)
    np.testing.assert_allclose(same, 3.0, rtol=1e-5)
    corners = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 3, indexing="ij"), axis=-1)
    table = jnp.asarray(corners.reshape(-1, 3), jnp.float32)
    result = hash_grid_at(table, jnp.asarray(unit), HashLevels((4,), (0, 125)))
    np.testing.assert_allclose(result, np.clip(unit, 0, 1), atol=1e-6)


def test_sample_hash_grid_gradients_equal_corner_weights_and_slopes() -> None:
    table, unit = hash_case()
    pull = np.random.default_rng(6).normal(size=(60, 6)).astype(np.float32)

    @jax.jit
    def slopes(table: jax.Array, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = lambda t, u: jnp.sum(jnp.asarray(pull) * sample_hash_grid(t, u, HASHED))  # noqa: E731
        return jax.grad(total, argnums=(0, 1))(table, unit)

    to_table, to_unit = slopes(jnp.asarray(table), jnp.asarray(unit))
    assert np.all(np.isfinite(to_table)) and np.all(np.isfinite(to_unit))
    for row in (0, 62, 124, 130, 300, 500, 636):
        one = np.zeros_like(table)
        one[row] = 1.0
        expected = np.zeros(2)
        for position, weights in zip(unit, pull, strict=True):
            shares = hash_grid_slowly(one, position, HASH_LEVELS)
            expected += np.sum((shares * weights).reshape(3, 2), axis=0)
        np.testing.assert_allclose(to_table[row], expected, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(to_unit)[(unit < 0) | (unit > 1)], 0.0)
    for index in range(20, 30):
        for axis in range(3):
            if not 0.01 < unit[index, axis] < 0.99:
                continue
            ends = []
            for shift in (-1e-4, 1e-4):
                moved = unit[index].astype(np.float64)
                moved[axis] += shift
                ends.append(np.sum(pull[index] * hash_grid_slowly(table, moved, HASH_LEVELS)))
            wanted_slope = (ends[1] - ends[0]) / 2e-4
            assert float(to_unit[index, axis]) == pytest.approx(wanted_slope, rel=1e-3, abs=1e-2)
