"""Packed voxels: numbering, interpolation, subdivision that preserves the field, gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core.grids import weighted_gather
from jaxrf.fields import voxel_grid, voxels
from jaxrf.fields.base import Field, FieldContext
from jaxrf.fields.voxel_grid import CORNERS, VoxelGrid
from jaxrf.fields.voxels import Voxels
from jaxrf.sampling import weight_tracking
from jaxrf.sampling.occupancy import set_contraction_norm

SIDE = 12
BOX = np.array([[-1.0, 0.5, 2.0], [2.0, 3.5, 5.0]])
CELL = 3.0 / SIDE


def make_occupied(share: float = 0.2, extent: int = 5, seed: int = 0) -> np.ndarray:
    """Cells in the low corner only, so that they can be divided once."""
    occupied = np.zeros((SIDE,) * 3, bool)
    part = np.random.default_rng(seed).uniform(size=(extent,) * 3) < share
    part[1, 2, 3] = True
    occupied[:extent, :extent, :extent] = part
    return occupied


def make_grid(**options: Any) -> VoxelGrid:
    return voxel_grid.index_cells(make_occupied(**options), BOX, 4.0)


def make_field(grid: VoxelGrid, **options: Any) -> tuple[Voxels, Any]:
    """A field with a random table, and its parameters."""
    field = Voxels(table_rows=voxel_grid.count_rows(grid), feature_dim=3, width=8, **options)
    params = field.init(jax.random.key(0))
    table = jax.random.normal(jax.random.key(1), params["table"].shape)
    return field, params | {"table": table}


def context_of(grid: VoxelGrid, count: int) -> FieldContext:
    """Rays without width in the cells of a grid."""
    return FieldContext(jnp.zeros(count), grid.aabb, grid=grid)


def random_positions(occupied: np.ndarray, count: int, box: np.ndarray = BOX) -> jax.Array:
    """Positions within occupied cells."""
    rng = np.random.default_rng(3)
    cells = np.argwhere(occupied)
    size = (box[1] - box[0]) / occupied.shape[0]
    scaled = cells[rng.integers(0, len(cells), count)] + rng.uniform(0.01, 0.99, (count, 3))
    return jnp.asarray(box[0] + scaled * size, jnp.float32)


def test_voxels_have_the_shapes_of_a_field() -> None:
    grid = make_grid()
    field, params = make_field(grid)
    assert isinstance(field, Field) and hash(field) == hash(dataclasses.replace(field))
    positions = random_positions(np.asarray(grid.occupied), 7)
    density, latent = field.density(params, positions, context_of(grid, 7))
    features = field.features(params, latent)
    rgb = field.color(params, features, positions / 5.0)
    assert density.shape == (7,) and features.shape == (7, 3) and rgb.shape == (7, 3)
    assert np.all(density > 0) and np.all((rgb >= 0) & (rgb <= 1))
    empty, _ = field.density(params, jnp.zeros((0, 3)), context_of(grid, 0))
    assert empty.shape == (0,)


def test_init_is_an_even_thin_fog() -> None:
    grid = make_grid()
    field = Voxels(table_rows=voxel_grid.count_rows(grid))
    params = field.init(jax.random.key(0))
    density, _ = field.density(
        params, random_positions(np.asarray(grid.occupied), 50), context_of(grid, 50)
    )
    np.testing.assert_allclose(density, 25.0 * np.log1p(np.exp(-4.0)), rtol=1e-5)


def test_index_cells_numbers_each_cell_once_and_shares_corners() -> None:
    occupied = make_occupied()
    grid = make_grid()
    number, rows = np.asarray(grid.cell_ids).reshape(occupied.shape), np.asarray(grid.corner_rows)
    assert np.array_equal(number > 0, occupied)
    assert sorted(number[occupied]) == list(range(1, occupied.sum() + 1))
    assert int(grid.num_cells) == occupied.sum() + 1 and not rows[0].any()
    vertex_of_row: dict[int, tuple[int, ...]] = {}
    for cell in np.argwhere(occupied):
        for corner, row in zip(CORNERS, rows[number[tuple(cell)]], strict=True):
            assert row > 0
            assert vertex_of_row.setdefault(row, tuple(cell + corner)) == tuple(cell + corner)
    assert len(set(vertex_of_row.values())) == len(vertex_of_row) == voxel_grid.count_rows(grid) - 1


def test_find_cells_equals_loop() -> None:
    grid, occupied = make_grid(), make_occupied()
    rng = np.random.default_rng(1)
    positions = rng.uniform(BOX[0] - 0.5, BOX[1] + 0.5, (500, 3)).astype(np.float32)
    cell, fraction = voxel_grid.find_cells(grid, jnp.asarray(positions))
    number = np.asarray(grid.cell_ids).reshape(occupied.shape)
    for position, actual, offset in zip(positions, cell, fraction, strict=True):
        scaled = (position.astype(np.float64) - BOX[0]) / CELL
        cell_of_position = np.floor(scaled).astype(int)
        if np.all((cell_of_position >= 0) & (cell_of_position < SIDE)):
            assert actual == number[tuple(cell_of_position)]
            np.testing.assert_allclose(offset, scaled - cell_of_position, atol=1e-5)
        else:
            assert actual == 0


def interpolate(table: jax.Array, corners: jax.Array, fraction: jax.Array) -> jax.Array:
    return weighted_gather(table, corners, voxel_grid.corner_weights(fraction))


def test_interpolate_gradients_equal_finite_differences() -> None:
    rng = np.random.default_rng(6)
    table, fraction = rng.normal(size=(12, 2)), rng.uniform(0.1, 0.9, (5, 3))
    corners, factors = rng.integers(0, 12, (5, 8)), rng.normal(size=(5, 2))

    def total(table: Any, fraction: Any) -> Any:
        values = interpolate(table, jnp.asarray(corners), fraction)
        return jnp.sum(values * jnp.asarray(factors, values.dtype))

    with jax.enable_x64(True):
        arguments = jnp.asarray(table), jnp.asarray(fraction)
        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(*arguments)
        check = jax.jit(total)
        for number, gradient in enumerate(gradients):
            for index in np.ndindex(gradient.shape):
                ends = []
                for sign in (-1, 1):
                    moved = [np.array(x) for x in (table, fraction)]
                    moved[number][index] += sign * 1e-6
                    ends.append(float(check(*(jnp.asarray(x) for x in moved))))
                slope = (ends[1] - ends[0]) / 2e-6
                assert float(gradient[index]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_interpolate_equals_loops() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 5)).astype(np.float32)
    corners = rng.integers(0, 40, (30, 8))
    fraction = rng.uniform(size=(30, 3)).astype(np.float32)
    fraction[:2] = [[0, 0, 0], [1, 1, 1]]
    actual = interpolate(jnp.asarray(table), jnp.asarray(corners), jnp.asarray(fraction))
    for m in range(30):
        expected = np.zeros(5)
        for k, corner in enumerate(np.ndindex(2, 2, 2)):
            x, y, z = (f if up else 1 - f for f, up in zip(fraction[m], corner, strict=True))
            expected += x * y * z * table[corners[m, k]]
        np.testing.assert_allclose(actual[m], expected, atol=1e-5)
    np.testing.assert_allclose(actual[0], table[corners[0, 0]], atol=1e-6)
    np.testing.assert_allclose(actual[1], table[corners[1, 7]], atol=1e-6)


def test_interpolate_reproduces_linear_functions() -> None:
    grid, occupied = make_grid(), make_occupied()
    rows = np.asarray(grid.corner_rows)
    table = np.zeros((voxel_grid.count_rows(grid), 1), np.float32)
    slope = np.array([1.0, -2.0, 0.5])
    for number, cell in enumerate(np.argwhere(occupied), start=1):
        for k, corner in enumerate(CORNERS):
            table[rows[number, k], 0] = (BOX[0] + (cell + corner) * CELL) @ slope
    positions = random_positions(occupied, 200)
    actual, fraction = voxel_grid.find_cells(grid, positions)
    values = interpolate(jnp.asarray(table), grid.corner_rows[actual], fraction)
    np.testing.assert_allclose(values[:, 0], np.asarray(positions) @ slope, atol=1e-4)


def test_density_without_a_cell_is_zero() -> None:
    grid = make_grid()
    field, params = make_field(grid)
    outside = jnp.asarray(np.concatenate([BOX + 5.0, BOX - 5.0, [BOX[1] - 0.1]]), jnp.float32)
    density, _ = field.density(params, outside, context_of(grid, 5))
    assert not np.any(density)
    holes = random_positions(~np.asarray(grid.occupied), 50)
    assert not np.any(field.density(params, holes, context_of(grid, 50))[0])


@pytest.mark.parametrize("factor", [1, 2])
def test_subdivide_preserves_the_field(factor: int) -> None:
    grid, occupied = make_grid(share=0.4), make_occupied(share=0.4)
    field, params = make_field(grid)
    keep = occupied & (np.random.default_rng(5).uniform(size=occupied.shape) < 0.7)
    # The kept cells begin at another corner, so that they are moved.
    keep[0] = False
    subdivided = voxel_grid.subdivide(grid, keep, factor, 4.0)
    assert int(subdivided.grid.occupied.sum()) == keep.sum() * factor**3
    rows = voxel_grid.count_rows(subdivided.grid)
    assert subdivided.parent_rows.shape == subdivided.weights.shape == (rows, 8)
    np.testing.assert_allclose(subdivided.weights.sum(axis=1), 1.0, atol=1e-6)
    table = jnp.einsum("rk,rkc->rc", subdivided.weights, params["table"][subdivided.parent_rows])
    new = params | {"table": table}
    positions = random_positions(keep, 400)
    for old_value, new_value in zip(
        field.density(params, positions, context_of(grid, 400)),
        field.density(new, positions, context_of(subdivided.grid, 400)),
        strict=True,
    ):
        np.testing.assert_allclose(new_value, old_value, rtol=1e-3, atol=1e-4)
    dropped = random_positions(occupied & ~keep, 100)
    assert not np.any(field.density(new, dropped, context_of(subdivided.grid, 100))[0])
    size = np.diff(np.asarray(subdivided.grid.aabb), axis=0)[0]
    np.testing.assert_allclose(size, 3.0 / factor, rtol=1e-6)


def test_subdivide_twice_preserves_the_field() -> None:
    occupied = np.zeros((SIDE,) * 3, bool)
    occupied[4:7, 5:8, 2:4] = True
    grid = voxel_grid.index_cells(occupied, BOX, 4.0)
    field, params = make_field(grid)
    new, new_grid = params, grid
    for _ in range(2):
        all_cells = np.asarray(new_grid.occupied)
        subdivided = voxel_grid.subdivide(new_grid, all_cells, 2, 4.0)
        table = jnp.einsum("rk,rkc->rc", subdivided.weights, new["table"][subdivided.parent_rows])
        new, new_grid = new | {"table": table}, subdivided.grid
    assert int(new_grid.occupied.sum()) == 18 * 64
    positions = random_positions(occupied, 300)
    np.testing.assert_allclose(
        field.density(new, positions, context_of(new_grid, 300))[0],
        field.density(params, positions, context_of(grid, 300))[0],
        rtol=1e-3,
    )


def test_subdivide_keeps_how_space_is_contracted() -> None:
    grid = voxel_grid.index_cells(make_occupied(share=0.4), BOX, 4.0, jnp.asarray(BOX))
    grid = set_contraction_norm(grid, "euclidean")
    new = voxel_grid.subdivide(grid, np.asarray(grid.occupied), 1, 4.0).grid
    np.testing.assert_array_equal(new.bounds, BOX)
    assert new.contraction_norm == new.coarse.contraction_norm == "euclidean"


def test_weights_are_recorded_by_cell_number_and_reset_by_subdivide() -> None:
    grid, occupied = make_grid(), make_occupied()
    positions = random_positions(occupied, 25)
    weights = np.random.default_rng(2).uniform(size=25).astype(np.float32)
    cell, _ = voxel_grid.find_cells(grid, positions)
    noted = weight_tracking.record_weights(grid, cell, jnp.asarray(weights))
    assert isinstance(noted, VoxelGrid)
    expected = np.zeros(int(grid.num_cells))
    for c, w in zip(np.asarray(cell), weights, strict=True):
        expected[c] = max(expected[c], w)
    assert np.sum(expected == 0) > 1
    np.testing.assert_allclose(
        weight_tracking.decayed_max_weights(noted), expected, rtol=1e-5, atol=1e-12
    )
    # Cells of a subdivided grid have other numbers.
    subdivided = voxel_grid.subdivide(noted, occupied, 1, 4.0).grid
    assert (
        subdivided.max_weight_log.shape == (int(subdivided.num_cells),)
        and int(subdivided.step) == 0
    )
    assert not np.any(weight_tracking.decayed_max_weights(subdivided))


def test_total_variation_equals_loops() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 4)).astype(np.float32)
    rows = rng.integers(0, 20, (6, 8))
    density, features = voxels.total_variation(jnp.asarray(table)[rows])
    expected = np.zeros(4)
    for cell in rows:
        corner = dict(zip(np.ndindex(2, 2, 2), cell, strict=True))
        for offset, row in corner.items():
            for axis in range(3):
                if offset[axis] == 0:
                    other = tuple(1 if a == axis else p for a, p in enumerate(offset))
                    expected += np.square(table[corner[other]] - table[row]) / len(rows)
    np.testing.assert_allclose(density, expected[0], rtol=1e-5)
    np.testing.assert_allclose(features, expected[1:].sum(), rtol=1e-5)


def test_pad_grid_adds_and_removes_unused_cells() -> None:
    grid = make_grid()
    cells = grid.corner_rows.shape[0]
    numbers = jnp.arange(cells, dtype=jnp.int32)
    grid = weight_tracking.record_weights(grid, numbers, jnp.linspace(0.1, 0.9, cells))
    weights = weight_tracking.decayed_max_weights(grid)
    large = voxel_grid.pad_grid(grid, cells + 9)
    assert large.corner_rows.shape == (cells + 9, 8) and large.max_weight_log.shape == (cells + 9,)
    assert not np.any(large.corner_rows[cells:]) and np.array_equal(
        large.corner_rows[:cells], grid.corner_rows
    )
    np.testing.assert_array_equal(weight_tracking.decayed_max_weights(large)[:cells], weights)
    np.testing.assert_array_equal(weight_tracking.decayed_max_weights(large)[cells:], 0.0)
    again = voxel_grid.pad_grid(large, cells)
    assert np.array_equal(again.corner_rows, grid.corner_rows) and int(again.num_cells) == int(
        grid.num_cells
    )
    np.testing.assert_array_equal(weight_tracking.decayed_max_weights(again), weights)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradients_are_finite_and_nonzero_only_at_corners_of_sampled_cells(scale: float) -> None:
    grid = make_grid()
    field, params = make_field(grid)
    positions = random_positions(np.asarray(grid.occupied), 20)

    def total(table: jax.Array) -> jax.Array:
        density, latent = field.density(params | {"table": table}, positions, context_of(grid, 20))
        return jnp.sum(density) + jnp.sum(jnp.sin(latent))

    gradient = np.asarray(jax.grad(total)(scale * params["table"]))
    assert np.all(np.isfinite(gradient))
    cell, _ = voxel_grid.find_cells(grid, positions)
    touched = np.unique(np.asarray(grid.corner_rows)[np.asarray(cell)])
    assert not np.any(np.delete(gradient, touched, axis=0))
    if scale == 1.0:
        assert np.all(np.any(gradient[touched] != 0, axis=1))


@pytest.mark.parametrize(
    ("voxels_per_pixel", "survives"), [(1.0, False), (0.7, False), (0.4, True)]
)
def test_small_voxels_are_remembered_longer(voxels_per_pixel: float, survives: bool) -> None:
    """A cell that had a weight of 1 some 150 steps ago, and others that have it now."""
    occupied = np.zeros((SIDE,) * 3, bool)
    occupied[1, 1, 1] = occupied[4, 4, 4] = True
    grid = voxel_grid.index_cells(occupied, BOX, 4.0)
    old, new = (jnp.asarray(BOX[:1] + (np.array([[i] * 3]) + 0.5) * CELL) for i in (1, 4))
    grid = grid.record(old, jnp.ones(1))
    for _ in range(150):
        grid = grid.record(new, jnp.ones(1))
    field = Voxels(prune_threshold=0.05, pixel_size=CELL / voxels_per_pixel)
    kept = field._cells_with_weight(grid, occupied)
    assert kept[4, 4, 4] and kept[1, 1, 1] == survives and kept.sum() == 1 + survives
