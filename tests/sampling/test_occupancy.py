"""Occupancy grids against loops over their cells, and at their faces."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occupancy_cases import BOX, CELL, SHAPE, contracted_case, look_up, random_grid, random_rays

from jaxrf.cameras.contraction import Norm
from jaxrf.core.errors import InputError
from jaxrf.core.rays import clip_to_aabb
from jaxrf.sampling.density_tracking import DensityTrackedGrid, track_density
from jaxrf.sampling.occupancy import (
    OccupancyGrid,
    OccupancySchedule,
    cell_centers,
    cell_index,
    contract_positions,
    contraction_jacobian,
    dilate,
    lookup,
    make_full_grid,
    max_pool_occupancy,
    occupied_aabb,
    prune_by_alpha,
    resample_grid,
    s_to_t,
    set_contraction_norm,
    to_s_rays,
    uncontract_positions,
    visible_aabb,
)
from jaxrf.sampling.weight_tracking import track_weights

dilated = jax.jit(dilate, static_argnames="cells")


def lookup_slowly(grid: OccupancyGrid, position: np.ndarray) -> bool:
    """Whether any occupied cell contains the position; a cell's lower faces belong to it."""
    low, high = np.asarray(grid.aabb, np.float64)
    for cell in np.argwhere(np.asarray(grid.occupied)):
        size = (high - low) / grid.occupied.shape
        if all(
            low[a] + cell[a] * size[a] <= position[a] < low[a] + (cell[a] + 1) * size[a]
            for a in range(3)
        ):
            return True
    return False


@pytest.mark.parametrize("batch", [(), (200,), (4, 30)])
def test_lookup_equals_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    grid = random_grid()
    size = BOX[1] - BOX[0]
    unit = np.random.default_rng(1).uniform(-0.3, 1.3, (*batch, 3))
    positions = (BOX[0] + unit * size).astype(np.float32)
    actual = look_up(grid, jnp.asarray(positions))
    assert actual.shape == batch and actual.dtype == bool
    for index in np.ndindex(batch):
        assert bool(actual[index]) == lookup_slowly(grid, positions[index])


def test_cell_centers_look_up_their_own_cells() -> None:
    grid = random_grid()
    centers = cell_centers(SHAPE, grid.aabb)
    assert centers.shape == (*SHAPE, 3)
    for index in np.ndindex(SHAPE):
        np.testing.assert_allclose(centers[index], BOX[0] + (np.array(index) + 0.5) * CELL)
    np.testing.assert_array_equal(look_up(grid, centers), grid.occupied)


def test_lookup_includes_lower_faces_and_excludes_upper_faces_of_the_box() -> None:
    grid = random_grid()
    corners = np.stack(np.meshgrid(*(np.arange(n + 1) for n in SHAPE), indexing="ij"), axis=-1)
    positions = (BOX[0] + corners * CELL).astype(np.float32)
    actual = np.asarray(look_up(grid, jnp.asarray(positions)))
    for index in np.ndindex(actual.shape):
        inside = all(i < n for i, n in zip(index, SHAPE, strict=True))
        assert actual[index] == (inside and bool(grid.occupied[index]))


def test_lookup_outside_the_box_is_false() -> None:
    full = make_full_grid(SHAPE, jnp.asarray(BOX))
    middle = BOX.mean(axis=0)
    outside = []
    for axis in range(3):
        for value in (BOX[0, axis] - 1e-3, BOX[1, axis] + 1e-3, -1e30, 1e30, np.inf, -np.inf):
            position = middle.copy()
            position[axis] = value
            outside.append(position)
    assert not np.any(look_up(full, jnp.asarray(np.stack(outside))))
    assert bool(look_up(full, jnp.asarray(middle)))
    assert not np.any(look_up(full, jnp.full((3,), jnp.nan)))


@pytest.mark.parametrize("batch", [(), (200,), (4, 30)])
def test_cell_index_is_the_flat_index_and_the_position_in_the_cell(batch: tuple[int, ...]) -> None:
    unit = np.random.default_rng(1).uniform(-0.3, 1.3, (*batch, 3))
    positions = (BOX[0] + unit * (BOX[1] - BOX[0])).astype(np.float32)
    flat, inside, fraction = jax.jit(cell_index)(random_grid(), jnp.asarray(positions))
    assert flat.shape == inside.shape == batch and fraction.shape == (*batch, 3)
    for index in np.ndindex(batch):
        scaled = (positions[index].astype(np.float64) - BOX[0]) / CELL
        nearest = [min(max(math.floor(s), 0), n - 1) for s, n in zip(scaled, SHAPE, strict=True)]
        assert int(flat[index]) == np.ravel_multi_index(nearest, SHAPE)
        assert bool(inside[index]) == bool(np.all((scaled >= 0) & (scaled < SHAPE)))
        if inside[index]:
            np.testing.assert_allclose(fraction[index], scaled - nearest, atol=1e-5)
        assert np.all((fraction[index] >= 0) & (fraction[index] <= 1))


@pytest.mark.parametrize("value", [1e30, -1e30, np.inf, -np.inf, np.nan])
def test_cell_index_of_any_number_is_in_range(value: float) -> None:
    positions = jnp.asarray(np.where(np.eye(3) > 0, value, BOX.mean(axis=0)), jnp.float32)
    flat, inside, _ = cell_index(random_grid(), positions)
    assert np.all((flat >= 0) & (flat < math.prod(SHAPE))) and not np.any(inside)


@pytest.mark.parametrize("cells", [0, 1, 2])
@pytest.mark.parametrize("fraction_occupied", [0.0, 0.05, 1.0])
def test_dilate_equals_loop(cells: int, fraction_occupied: float) -> None:
    occupied = np.random.default_rng(2).uniform(size=(5, 6, 4)) < fraction_occupied
    expected = np.zeros_like(occupied)
    for cell in np.argwhere(occupied):
        for other in np.ndindex(occupied.shape):
            if max(abs(a - b) for a, b in zip(cell, other, strict=True)) <= cells:
                expected[other] = True
    np.testing.assert_array_equal(dilated(jnp.asarray(occupied), cells=cells), expected)


def test_dilate_does_not_wrap_around() -> None:
    corner = jnp.zeros((4, 4, 4), bool).at[0, 0, 0].set(True).at[3, 3, 3].set(True)
    assert int(jnp.sum(dilated(corner, cells=1))) == 16


def ball(center: np.ndarray, radius: float, density: float) -> Callable[[jax.Array], jax.Array]:
    def density_fn(positions: jax.Array) -> jax.Array:
        distance = jnp.sum(jnp.square(positions - jnp.asarray(center)[None]), axis=-1)
        return jnp.where(distance < radius**2, density, 0.0)

    return density_fn


@pytest.mark.parametrize("chunk", [7, 20, 60, 1000])
def test_prune_by_alpha_keeps_opaque_cells_and_their_occupied_neighbors(chunk: int) -> None:
    grid, center = random_grid(0.8), np.array([0.3, 0.6, 3.2], np.float32)
    density_fn, step = ball(center, 0.6, 2.0), 0.25
    updated = prune_by_alpha(grid, density_fn, step, 0.3, chunk=chunk)
    opaque = np.zeros(SHAPE, bool)
    for index in np.ndindex(SHAPE):
        position = BOX[0] + (np.array(index) + 0.5) * CELL
        density = 2.0 if np.sum((position - center) ** 2) < 0.36 else 0.0
        opaque[index] = 1 - math.exp(-density * step) > 0.3 and bool(grid.occupied[index])
    assert 0 < opaque.sum() < 30
    for index in np.ndindex(SHAPE):
        near = any(
            max(abs(a - b) for a, b in zip(index, cell, strict=True)) <= 1
            for cell in np.argwhere(opaque)
        )
        assert bool(updated.occupied[index]) == (near and bool(grid.occupied[index]))
    np.testing.assert_array_equal(updated.aabb, grid.aabb)


@pytest.mark.parametrize("density", [0.0, 1.0, 1e10, np.inf])
def test_prune_by_alpha_never_adds_a_cell(density: float) -> None:
    grid = random_grid(0.3)
    updated = prune_by_alpha(grid, lambda x: jnp.full(x.shape[0], density), 0.25, 1e-3, chunk=64)
    assert not np.any(np.asarray(updated.occupied) & ~np.asarray(grid.occupied))
    np.testing.assert_array_equal(updated.occupied, grid.occupied if density > 0 else False)


def test_prune_by_alpha_of_an_empty_grid_is_empty() -> None:
    grid = random_grid(0.0)
    updated = prune_by_alpha(grid, lambda x: jnp.ones(x.shape[0]), 1.0, 0.1, chunk=64)
    assert not np.any(updated.occupied)


def test_occupied_aabb_is_the_smallest_box_of_all_occupied_cells() -> None:
    for seed in range(5):
        grid = random_grid(0.03, seed=seed)
        cells = np.argwhere(np.asarray(grid.occupied))
        if len(cells) == 0:
            continue
        low, high = [math.inf] * 3, [-math.inf] * 3
        for cell in cells:
            for a in range(3):
                low[a] = min(low[a], float(BOX[0, a] + cell[a] * CELL[a]))
                high[a] = max(high[a], float(BOX[0, a] + (cell[a] + 1) * CELL[a]))
        np.testing.assert_allclose(occupied_aabb(grid), [low, high], rtol=1e-6)


def test_occupied_aabb_of_an_empty_or_full_grid_is_its_box() -> None:
    np.testing.assert_array_equal(occupied_aabb(random_grid(0.0)), BOX)
    np.testing.assert_allclose(occupied_aabb(make_full_grid(SHAPE, jnp.asarray(BOX))), BOX)


def test_resample_grid_to_the_same_cells_is_the_identity() -> None:
    grid = random_grid()
    same = resample_grid(grid, SHAPE, grid.aabb)
    np.testing.assert_array_equal(same.occupied, grid.occupied)


@pytest.mark.parametrize("resolution", [(8, 10, 6), (5, 7, 4)])
def test_resample_grid_covers_occupied_cells_and_adds_only_touching_ones(
    resolution: tuple[int, int, int],
) -> None:
    grid = random_grid(0.2)
    aabb = np.array([[-0.8, 0.1, 2.2], [0.7, 1.1, 4.9]], np.float32)
    finer = resample_grid(grid, resolution, jnp.asarray(aabb))
    assert finer.occupied.shape == resolution
    size = (aabb[1] - aabb[0]) / np.array(resolution)
    rng = np.random.default_rng(3)
    # Not on the last hundredth of the cells, where rounding decides.
    index = rng.integers(0, resolution, (2000, 3))
    positions = (aabb[0] + (index + rng.uniform(0.01, 0.99, (2000, 3))) * size).astype(np.float32)
    before = np.asarray(look_up(grid, jnp.asarray(positions)))
    after = np.asarray(look_up(finer, jnp.asarray(positions)))
    assert not np.any(before & ~after)
    for cell in np.argwhere(np.asarray(finer.occupied)):
        corners = [aabb[0] + (cell + np.array(corner)) * size for corner in np.ndindex(2, 2, 2)]
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        touched = False
        for old in np.argwhere(np.asarray(grid.occupied)):
            old_low = BOX[0] + old * CELL
            touched |= bool(np.all(old_low < high) and np.all(old_low + CELL > low))
        assert touched


def test_grid_is_a_pytree_that_jit_and_vmap_accept() -> None:
    grid = random_grid()
    assert len(jax.tree.leaves(grid)) == 2
    assert isinstance(jax.jit(lambda g: g)(grid), OccupancyGrid)
    positions = jnp.asarray(np.random.default_rng(5).uniform(0, 3, (6, 3)), jnp.float32)
    mapped = jax.vmap(lambda p: lookup(grid, p))(positions)
    np.testing.assert_array_equal(mapped, lookup(grid, positions))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation_cells", [0.0, 1.0, 2.5, 4.0])
def test_max_pool_occupancy_covers_all_cells_within_the_dilation(
    factor: int, dilation_cells: float
) -> None:
    grid = random_grid(0.01)
    coarse = max_pool_occupancy(grid, factor, dilation_cells)
    rng = np.random.default_rng(0)
    inside = rng.uniform(BOX[0], BOX[1], (3000, 3))
    nearby = inside + rng.uniform(-1, 1, (3000, 3)) * dilation_cells * CELL * 0.999
    hit = np.asarray(look_up(grid, jnp.asarray(nearby, jnp.float32)))
    actual = np.asarray(look_up(coarse, jnp.asarray(inside, jnp.float32)))
    assert hit.any() and np.all(actual[hit])
    assert not np.any(
        look_up(
            max_pool_occupancy(random_grid(0.0), factor, dilation_cells),
            jnp.asarray(inside, jnp.float32),
        )
    )


def test_to_marched_rays_without_contraction_only_clips() -> None:
    grid, rays = random_grid(), random_rays(30)
    clipped = clip_to_aabb(rays, grid.aabb)
    marched = to_s_rays(grid, rays)
    np.testing.assert_array_equal(marched.near, clipped.near)
    np.testing.assert_array_equal(marched.far, clipped.far)
    distances = jnp.asarray([[1.0, 2.0]])
    assert s_to_t(grid, distances, jnp.zeros((1, 3))) is distances
    assert contract_positions(grid, rays.origins) is rays.origins
    np.testing.assert_array_equal(contraction_jacobian(grid, jnp.zeros((4, 3))), 1.0)


def test_derived_grids_keep_the_bounds_and_the_norm() -> None:
    grid, _, _, _, dilation_cells = contracted_case(1)
    grid = set_contraction_norm(grid, "euclidean")
    wider = resample_grid(grid, (20, 20, 20), grid.aabb)
    for made in (
        max_pool_occupancy(grid, 2, 1.0),
        track_weights(grid, dilation_cells),
        track_density(grid, dilation_cells),
        wider,
    ):
        np.testing.assert_array_equal(made.bounds, BOX)
        assert made.contraction_norm == "euclidean"
    tracked = track_weights(grid, dilation_cells)
    np.testing.assert_array_equal(tracked.coarse.bounds, BOX)
    assert tracked.coarse.contraction_norm == "euclidean"
    other = set_contraction_norm(tracked, "max")
    assert other.contraction_norm == other.coarse.contraction_norm == "max"


@pytest.mark.parametrize("norm", ["max", "euclidean"])
def test_uncontract_positions_is_the_inverse_of_contract_positions(norm: Norm) -> None:
    grid, rays, *_ = contracted_case(40)
    grid = set_contraction_norm(grid, norm)
    there = contract_positions(grid, rays.origins)
    np.testing.assert_allclose(uncontract_positions(grid, there), rays.origins, rtol=1e-4)
    bounded = dataclasses.replace(grid, bounds=None)
    assert uncontract_positions(bounded, rays.origins) is rays.origins


@pytest.mark.parametrize(
    ("resolution", "cells"), [(6, (4, 3, 6)), ((2, 3, 4), (2, 3, 4)), (1, (1, 1, 1))]
)
def test_create_makes_cells_that_are_all_occupied(
    resolution: int | tuple[int, int, int], cells: tuple[int, int, int]
) -> None:
    grid = OccupancyGrid.create(BOX, resolution)
    assert grid.occupied.shape == cells and np.all(grid.occupied) and grid.bounds is None
    np.testing.assert_array_equal(grid.aabb, BOX)
    assert isinstance(grid, DensityTrackedGrid) and np.all(np.asarray(grid.max_optical_depth) < 0)
    assert OccupancyGrid.create(np.array([[0.0] * 3, [1.0] * 3])).occupied.shape == (128,) * 3


@pytest.mark.parametrize(
    ("aabb", "resolution", "complaint"),
    [
        (BOX[::-1], 8, "aabb is .*: give two corners, the lower one first"),
        (np.zeros((2, 3)), 8, "give two corners, the lower one first"),
        (np.array([[0.0, 0, 0], [1, 1, np.nan]]), 8, "give two corners, the lower one first"),
        (BOX, (4, 0, 4), r"resolution is \(4, 0, 4\): give 1 cell or more"),
    ],
)
def test_create_rejects_boxes_and_resolutions_without_cells(
    aabb: np.ndarray, resolution: int | tuple[int, int, int], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        OccupancyGrid.create(aabb, resolution)


@pytest.mark.parametrize("resolution", [0, -3])
def test_create_rejects_resolutions_below_one(resolution: int) -> None:
    with pytest.raises(InputError, match=f"resolution is {resolution}: give 1 cell or more"):
        OccupancyGrid.create(BOX, resolution)


def test_a_fixed_grid_refuses_update_and_records_nothing() -> None:
    grid = random_grid()
    with pytest.raises(InputError, match="does not follow a density: make a grid that does"):
        grid.update(jax.random.key(0), lambda x: jnp.ones(x.shape[0]))
    schedule = OccupancySchedule()
    updated = grid.maybe_update(jax.random.key(0), lambda x, r: r, jnp.asarray(0.1), schedule)
    assert updated is grid and grid.record(jnp.zeros((1, 3)), jnp.ones(1)) is grid
    assert grid.weight_memory is None and grid.with_weight_memory(None) is grid
    assert grid.cell_values(np.asarray) is None and not grid.follows_density


def test_visible_aabb_is_clipped_to_the_bounds_where_space_is_contracted() -> None:
    grid = random_grid(0.2)
    np.testing.assert_array_equal(visible_aabb(grid), occupied_aabb(grid))
    contracted, _, _, _, _ = contracted_case(1, 0.5)
    np.testing.assert_array_equal(visible_aabb(contracted), BOX)
