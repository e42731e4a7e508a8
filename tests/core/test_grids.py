"""Interpolation in grids, against hat functions summed over every grid point and against torch.

And weighted sums of rows with a gradient of their own, against einsum.
"""

import functools
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
from jaxrf.core.kernels import calls

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


# Weighted sums of rows.


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


@pytest.mark.parametrize("channels", [8, 16, 5])
@pytest.mark.parametrize("kind", ["lines", "planes"])
def test_tables_of_several_sizes_look_the_same_with_and_without_kernels(
    monkeypatch: pytest.MonkeyPatch, kind: str, channels: int
) -> None:
    rng, count = np.random.default_rng(3), 200
    shapes = [(7, 9), (1, 4), (20, 3)]
    at = [
        [jnp.asarray(rng.uniform(-0.1, 1.1, count), jnp.float32) for _ in shapes] for _ in range(2)
    ]
    tables = [
        jnp.asarray(random_grid(*shape[-1 if kind == "lines" else 0 :], channels))
        for shape in shapes
    ]
    factors = jnp.asarray(rng.normal(size=(3, count, channels)), jnp.float32)

    def total(tables: Any, across: Any, down: Any) -> Any:
        if kind == "lines":
            features = grids.sample_lines(tables, across)
        else:
            features = grids.sample_planes(tables, across, down)
        return jnp.sum(jnp.square(jnp.stack(features[:2])) * factors[:2]), features

    results = []
    for switch in ("on", "off"):
        monkeypatch.setenv(calls.SWITCH, switch)
        both = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(tables, *at)
        of_tables, _ = jax.grad(total, has_aux=True)(tables, *at)
        results.append(jax.tree.leaves((both, of_tables)))
    for on, off in zip(*results, strict=True):
        np.testing.assert_allclose(on, off, rtol=1e-4, atol=1e-3)
