"""Occupancy that follows a density against loops over the cells."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occupancy_cases import BOX, CELL, SHAPE, random_grid, random_rays

from jaxrf.cameras import contraction
from jaxrf.cameras.base import image_rays, make_cameras, project
from jaxrf.cameras.poses import look_at
from jaxrf.sampling.density_tracking import (
    UNINITIALIZED,
    UPDATE_PHASES,
    DensityTrackedGrid,
    mark_invisible_cells,
    track_density,
    update_occupancy,
)
from jaxrf.sampling.occupancy import (
    POOLING,
    OccupancyGrid,
    OccupancySchedule,
    cell_centers,
    cell_index,
    dilate,
    make_full_grid,
    max_pool_occupancy,
    prune_by_alpha,
    set_contraction_norm,
)

SLOTS = math.prod(SHAPE)
QUARTER = -(-SLOTS // UPDATE_PHASES)
STEP = 0.1


def density_by_cell(values: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A density that is constant in each cell, so that random points do not matter."""

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        return values[cell_index(make_full_grid(SHAPE, jnp.asarray(BOX)), positions)[0]]

    return density


@functools.partial(jax.jit, static_argnames=("dilation_cells", "chunk"))
def update(
    grid: DensityTrackedGrid,
    key: jax.Array,
    values: jax.Array,
    phase: jax.Array | int,
    dilation_cells: float = 3.0,
    chunk: int = 1 << 16,
) -> DensityTrackedGrid:
    fn = density_by_cell(values)
    schedule = OccupancySchedule(decay=0.8, threshold=0.01, dilation_cells=dilation_cells)
    return update_occupancy(grid, key, fn, STEP, phase, schedule, chunk)


def grid_with_depths(
    optical: np.ndarray, occupied: np.ndarray, dilation_cells: float = 3.0
) -> DensityTrackedGrid:
    """A grid whose cells have these optical depths."""
    plain = OccupancyGrid(jnp.asarray(occupied.reshape(SHAPE)), jnp.asarray(BOX))
    grid = track_density(plain, dilation_cells)
    return dataclasses.replace(grid, max_optical_depth=jnp.asarray(optical, jnp.float32))


def test_track_density_keeps_cells_and_evaluates_none() -> None:
    grid = random_grid(0.02)
    for dilation_cells in (0.0, 4.0):
        initial = track_density(grid, dilation_cells)
        np.testing.assert_array_equal(initial.occupied, grid.occupied)
        np.testing.assert_array_equal(initial.aabb, grid.aabb)
        np.testing.assert_array_equal(
            initial.coarse.occupied, max_pool_occupancy(grid, POOLING, dilation_cells).occupied
        )
        assert initial.max_optical_depth.shape == (SLOTS,) and np.all(
            np.asarray(initial.max_optical_depth) < 0
        )
        assert int(initial.step) == 0
    assert isinstance(jax.jit(lambda g: g)(initial), DensityTrackedGrid)


def test_update_occupancy_evaluates_every_cell_and_keeps_it_occupied_until_then() -> None:
    # Only the first cell holds anything: any other is empty once it was evaluated.
    first = np.arange(SLOTS) == 0
    values = 5.0 * jnp.asarray(first, jnp.float32)
    grid = track_density(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    evaluations = np.zeros(SLOTS, int)
    for phase in range(UPDATE_PHASES):
        grid = update(grid, jax.random.key(phase), values, phase)
        evaluated = np.asarray(grid.max_optical_depth) >= 0
        # The quarter of this phase, and cells that were still occupied.
        assert np.all(evaluated[phase % SLOTS :: UPDATE_PHASES])
        assert QUARTER <= evaluated.sum() <= 2 * QUARTER * (phase + 1)
        np.testing.assert_array_equal(np.asarray(grid.occupied).ravel(), ~evaluated | first)
        evaluations[phase::UPDATE_PHASES] += 1
    assert np.all(evaluations == 1) and np.asarray(grid.occupied).ravel().tolist() == first.tolist()
    actual = max_pool_occupancy(OccupancyGrid(grid.occupied, grid.aabb), POOLING, 3.0).occupied
    np.testing.assert_array_equal(grid.coarse.occupied, actual)


def test_update_occupancy_of_a_uniform_density_keeps_all_cells() -> None:
    """A field that starts at zero has to be evaluated, or it would stay zero."""
    grid = track_density(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    for phase in range(UPDATE_PHASES):
        grid = update(grid, jax.random.key(phase), jnp.zeros(SLOTS), phase)
    assert np.all(grid.occupied) and np.all(grid.max_optical_depth == 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 5, 1), (2, 3, 3)])
def test_update_occupancy_evaluates_every_cell_of_a_grid_of_any_size(
    shape: tuple[int, int, int],
) -> None:
    grid = track_density(make_full_grid(shape, jnp.asarray(BOX)), 1.0)
    # As if nothing were occupied: only the quarter of the phase and the last cell are evaluated.
    grid = dataclasses.replace(grid, occupied=jnp.zeros(shape, bool))
    update_once = jax.jit(
        lambda grid, phase: update_occupancy(
            dataclasses.replace(grid, occupied=jnp.zeros(shape, bool)),
            jax.random.key(0),
            lambda positions, radii: positions[:, 0] * 0.0 + 1.0,
            STEP,
            phase,
            OccupancySchedule(decay=0.9, threshold=0.01, dilation_cells=1.0),
        )
    )
    for phase in range(7, 7 + UPDATE_PHASES):
        grid = update_once(grid, phase)
    np.testing.assert_allclose(grid.max_optical_depth, STEP, rtol=1e-6)


@pytest.mark.parametrize("phase", [0, 1, 3, 6])
@pytest.mark.parametrize("count", [0, 1, QUARTER - 1, QUARTER])
def test_update_occupancy_equals_loop_while_all_occupied_cells_fit(count: int, phase: int) -> None:
    rng = np.random.default_rng(count)
    before = rng.choice([-1.0, 0.0, 0.005, 0.05, 3.0], SLOTS)
    values = rng.choice([0.0, 0.02, 0.2, 30.0], SLOTS)
    occupied = np.zeros(SLOTS, bool)
    occupied[rng.permutation(SLOTS)[:count]] = True
    evaluated = {
        cell
        for cell in range(SLOTS)
        if cell % UPDATE_PHASES == phase % UPDATE_PHASES or occupied[cell]
    }
    if count < QUARTER:
        evaluated.add(SLOTS - 1)  # fills the unused places
    expected = before.copy()
    for cell in evaluated:
        expected[cell] = max(max(before[cell], 0.0) * 0.8, values[cell] * STEP)
    level = min(0.01, np.mean(np.maximum(expected, 0.0)))
    grid = update(
        grid_with_depths(before, occupied),
        jax.random.key(5),
        jnp.asarray(values, jnp.float32),
        phase,
    )
    np.testing.assert_allclose(grid.max_optical_depth, expected, rtol=1e-5)
    flags = (expected < 0) | (expected >= np.float32(level))
    np.testing.assert_array_equal(np.asarray(grid.occupied).ravel(), flags)
    assert 0 < flags.sum() < SLOTS
    fine = OccupancyGrid(grid.occupied, grid.aabb)
    np.testing.assert_array_equal(
        grid.coarse.occupied, max_pool_occupancy(fine, POOLING, 3.0).occupied
    )


def test_update_occupancy_evaluates_a_random_run_of_too_many_occupied_cells() -> None:
    counts = np.zeros(SLOTS, int)
    for number in range(200):
        grid = grid_with_depths(np.full(SLOTS, -1.0), np.ones(SLOTS, bool))
        grid = update(grid, jax.random.key(number), jnp.ones(SLOTS), 0)
        evaluated = np.asarray(grid.max_optical_depth) >= 0
        aimed = np.flatnonzero(evaluated & (np.arange(SLOTS) % UPDATE_PHASES != 0))
        # A run of consecutive cells that fills its quarter.
        assert (
            aimed[-1] - aimed[0] < QUARTER and aimed.size >= QUARTER - QUARTER // UPDATE_PHASES - 1
        )
        counts[aimed] += 1
    assert np.all(counts[np.arange(SLOTS) % UPDATE_PHASES != 0] > 0)


@pytest.mark.parametrize("chunk", [1, 7, 2 * QUARTER - 1, 2 * QUARTER])
def test_update_occupancy_does_not_depend_on_chunk_size(chunk: int) -> None:
    values = jnp.asarray(np.random.default_rng(0).uniform(0, 1, SLOTS), jnp.float32)
    initial = track_density(random_grid(), 3.0)
    together, parts = (
        update(initial, jax.random.key(1), values, 2, chunk=n) for n in (1 << 16, chunk)
    )
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_update_occupancy_points_are_uniform_in_their_cells() -> None:
    actual: list[np.ndarray] = []

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        jax.debug.callback(lambda p: actual.append(np.asarray(p)), positions)
        return jnp.zeros(positions.shape[:1])

    grid = track_density(random_grid(), 3.0)
    for number in range(30):
        schedule = OccupancySchedule(decay=0.9, threshold=0.01, dilation_cells=3.0)
        update_occupancy(grid, jax.random.key(number), density, STEP, 1, schedule)
    jax.effects_barrier()
    scaled = (np.concatenate([points[:QUARTER] for points in actual]) - BOX[0]) / CELL
    cells = np.array(np.unravel_index((UPDATE_PHASES * np.arange(QUARTER) + 1) % SLOTS, SHAPE)).T
    fraction = scaled - np.tile(cells, (30, 1))
    assert fraction.min() > -1e-5 and fraction.max() < 1 + 1e-5
    np.testing.assert_allclose(fraction.mean(axis=0), 0.5, atol=0.05)
    np.testing.assert_allclose(fraction.std(axis=0), 12**-0.5, atol=0.03)


def test_update_occupancy_decays_the_optical_depth() -> None:
    grid = grid_with_depths(np.full(SLOTS, 0.05), np.ones(SLOTS, bool))
    largest = []
    for phase in range(8 * UPDATE_PHASES):
        grid = update(grid, jax.random.key(phase), jnp.zeros(SLOTS), phase)
        largest.append(float(jnp.max(grid.max_optical_depth)))
        assert np.all(
            np.asarray(grid.max_optical_depth)
            <= 0.05 * 0.8 ** ((phase + 1) // UPDATE_PHASES) * 1.0001
        )
    assert largest == sorted(largest, reverse=True) and largest[0] == pytest.approx(0.05)
    # 0.05 * 0.8^8 is less than the threshold.
    assert float(jnp.max(grid.max_optical_depth)) < 0.01


def test_update_occupancy_keeps_cells_of_a_dense_ball_and_drops_far_ones() -> None:
    box, shape = jnp.asarray([[-1.0] * 3, [1.0] * 3]), (12, 12, 12)

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        return 50.0 * (jnp.linalg.norm(positions, axis=-1) < 0.6)

    schedule = OccupancySchedule(decay=0.95, threshold=0.01, dilation_cells=2.0)
    update_once = jax.jit(
        lambda grid, key, phase: update_occupancy(grid, key, density, STEP, phase, schedule)
    )
    grid = track_density(make_full_grid(shape, box), 2.0)
    centers = np.linalg.norm(np.asarray(cell_centers(shape, box)), axis=-1)
    half = 0.5 * 3**0.5 / 6
    for phase in range(5 * UPDATE_PHASES):
        grid = update_once(grid, jax.random.key(phase), phase)
        occupied = np.asarray(grid.occupied)
        assert np.all(occupied[centers < 0.6 - half]), "every cell in the ball is occupied"
        assert phase < UPDATE_PHASES or not np.any(occupied[centers > 0.6 + half])
    assert 0.05 < occupied.mean() < 0.3


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_update_occupancy_of_extreme_densities_is_finite(value: float) -> None:
    grid = track_density(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    for phase in range(UPDATE_PHASES):
        grid = update(grid, jax.random.key(phase), jnp.full(SLOTS, value), phase)
    assert np.all(np.isfinite(grid.max_optical_depth))
    np.testing.assert_allclose(grid.max_optical_depth, value * STEP, rtol=1e-5)
    assert np.all(grid.occupied) or value < 1.0


def test_update_occupancy_keeps_thin_cells_above_the_mean() -> None:
    values = np.full(SLOTS, 1e-6)
    values[[3, 17, 40]] = 1e-3
    grid = track_density(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    for phase in range(UPDATE_PHASES):
        grid = update(grid, jax.random.key(phase), jnp.asarray(values, jnp.float32), phase)
    assert np.flatnonzero(np.asarray(grid.occupied)).tolist() == [3, 17, 40]


def test_mark_invisible_cells_are_empty_and_stay_so() -> None:
    """Against the corners of every cell, one camera and one corner at a time."""
    poses = np.stack([look_at(np.array(eye), np.zeros(3)) for eye in ([0, -3, 0.5], [2.0, 0, 0])])
    cameras = make_cameras(poses, 40, 30, 0.5)
    box = jnp.array([[-1.0, -1.2, -1.1], [1.2, 1.0, 1.0]])
    full = track_density(make_full_grid((9, 10, 11), box), 1.0)
    grid = mark_invisible_cells(full, cameras, 1.0)
    low, high = np.asarray(box)
    axes = [np.linspace(low[a], high[a], n + 1) for a, n in enumerate((9, 10, 11))]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    visible = np.zeros((9, 10, 11), bool)
    for camera in range(2):
        points, depth = project(cameras, camera, corners.reshape(-1, 3))
        inside = (depth > 0) & np.all((points >= 0) & (points <= [40, 30]), axis=-1)
        inside = inside.reshape(10, 11, 12)
        for x, y, z in np.ndindex(2, 2, 2):
            visible |= inside[x : x + 9, y : y + 10, z : z + 11]
    occupied = np.asarray(grid.occupied)
    assert (
        np.all(occupied[visible])
        and np.sum(~occupied) > 0
        and np.sum(occupied) < 2 * np.sum(visible)
    )
    dense = jnp.full((1,), 9.0)
    for phase in range(UPDATE_PHASES):
        grid = update_occupancy(
            grid, jax.random.key(phase), lambda p, r: 0.0 * r + dense, 1.0, phase,
            OccupancySchedule(decay=0.9, threshold=0.01, dilation_cells=1.0),
        )  # fmt: skip
    assert np.array_equal(grid.occupied, occupied)


def test_update_occupancy_uses_cone_radii_of_the_cameras_at_every_scale() -> None:
    poses = np.stack([look_at(np.array(eye), np.zeros(3)) for eye in ([0, -4.0, 0.5], [4.0, 0, 0])])
    cameras = make_cameras(poses, 64, 64, 0.4)
    box = jnp.array([[-1.0] * 3, [1.0] * 3])
    grid = mark_invisible_cells(track_density(make_full_grid((4, 4, 4), box), 1.0), cameras, 1.0)
    expected = [
        float(image_rays(cameras, i, 1.0, 8.0).radii[31, 31]) * np.linalg.norm(poses[i, :3, 3])
        for i in range(2)
    ]
    assert float(grid.radius) == pytest.approx(np.mean(expected), rel=2e-3)
    actual: list[np.ndarray] = []

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        jax.debug.callback(lambda r: actual.append(np.asarray(r)), radii)
        return jnp.zeros_like(radii)

    for cone_scales in ((1,), (1, 2, 5)):
        actual.clear()
        schedule = OccupancySchedule(dilation_cells=1.0, cone_scales=cone_scales)
        update_occupancy(grid, jax.random.key(0), density, STEP, 0, schedule)
        jax.effects_barrier()
        ratio = np.unique(np.concatenate(actual) / float(grid.radius))
        np.testing.assert_allclose(ratio, cone_scales, rtol=1e-5)


@pytest.mark.slow
def test_occupancy_in_contracted_space_counts_the_longer_steps_far_out() -> None:
    aabb = contraction.contracted_aabb(BOX)
    grid = make_full_grid((8, 8, 8), jnp.asarray(aabb), jnp.asarray(BOX))
    centers = cell_centers((8, 8, 8), grid.aabb)
    scale = np.asarray(contraction.inverse_contraction_scale(centers, jnp.asarray(BOX)))
    pruned = prune_by_alpha(grid, lambda p: jnp.full(p.shape[:1], 0.5), 0.01, 0.02).occupied
    opaque = scale * 0.005 > -np.log(1 - 0.02)
    assert 0 < opaque.mean() < 1
    np.testing.assert_array_equal(pruned, dilate(jnp.asarray(opaque)))
    # A cell of much density keeps the mean above the threshold, which then decides.
    for dense in (0.5, 1e5):
        tracked = track_density(grid, 1.0)

        def density(p: jax.Array, r: jax.Array, dense: float = dense) -> jax.Array:
            near = jnp.all(jnp.abs(p - jnp.mean(jnp.asarray(aabb), axis=0)[None]) < 0.1, axis=-1)
            return jnp.where(near, dense, 0.5)

        for phase in range(4 * UPDATE_PHASES):
            tracked = update_occupancy(
                tracked, jax.random.key(phase), density, 0.01, phase,
                OccupancySchedule(decay=1.0, threshold=0.02, dilation_cells=1.0),
            )  # fmt: skip
        occupied = np.asarray(tracked.occupied)
        if dense < 1.0:
            assert occupied.all()
        else:
            assert np.all(occupied[scale > 4.5])
            assert np.sum(occupied[scale < 3.5]) <= 8


@pytest.mark.parametrize("norm", ["max", "euclidean"])
def test_mark_invisible_cells_in_contracted_space_uses_positions_in_the_scene(
    norm: contraction.Norm,
) -> None:
    """Looking along an axis from the middle, far cells are visible if they are in the image."""
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
    shape = (16, 16, 16)
    grid = make_full_grid(shape, jnp.asarray(contraction.contracted_aabb(box)), jnp.asarray(box))
    grid = set_contraction_norm(grid, norm)
    pose = look_at(np.array([0.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    cameras = make_cameras(pose[None], 20, 20, 0.8)
    visible = np.asarray(mark_invisible_cells(track_density(grid, 1.0), cameras, 1.0).occupied)
    positions = contraction.uncontract(cell_centers(shape, grid.aabb), jnp.asarray(box), norm)
    pixels, depth = project(cameras, 0, np.asarray(positions, np.float64))
    within = (depth > 0) & np.all((pixels > 0) & (pixels < 20), axis=-1)
    assert np.all(visible[within]) and within.any()
    assert not np.any(visible[:7]) and 0.05 < visible.mean() < 0.5


@pytest.mark.slow
def test_mark_invisible_cells_in_ndc_keeps_all_cells_with_the_ndc_pixel_radius() -> None:
    cameras = make_cameras(np.eye(4)[None], 40, 20, 1.0)
    slopes = (0.5 * 40 / float(cameras.focal[0, 0]), 0.5 * 20 / float(cameras.focal[0, 0]), 1.0)
    cameras = dataclasses.replace(cameras, ndc=slopes)
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
    grid = mark_invisible_cells(
        track_density(make_full_grid((4, 4, 4), jnp.asarray(box)), 1.0), cameras, 1.0
    )
    assert np.all(grid.occupied) and np.all(np.asarray(grid.max_optical_depth) == UNINITIALIZED)
    rays = image_rays(cameras, 0, 0.0, 1.0)
    middle = rays.radii[10, 20] * 0.5 * rays.far[10, 20]
    assert float(grid.radius) == pytest.approx(float(middle), rel=0.05)


# OccupancyGrid.update and maybe_update


@pytest.mark.parametrize("step_size", [None, 0.1])
def test_update_equals_loop_over_the_evaluated_cells(step_size: float | None) -> None:
    """A quarter of the cells in turn and all others that are still occupied, as in a slow loop."""
    values = np.random.default_rng(0).choice([0.0, 0.02, 0.2, 30.0], SLOTS)
    fn = density_by_cell(jnp.asarray(values, jnp.float32))
    grid = OccupancyGrid.create(BOX, SHAPE)
    length = step_size or float(np.linalg.norm(BOX[1] - BOX[0])) / 1024
    ema, occupied = np.full(SLOTS, -1.0), np.ones(SLOTS, bool)
    for phase in range(3 * UPDATE_PHASES):
        before = np.asarray(grid.max_optical_depth)
        grid = grid.update(
            jax.random.key(phase),
            lambda positions: fn(positions, positions[:, 0]),
            step_size=step_size,
            decay=0.8,
            threshold=0.05,
        )
        after = np.asarray(grid.max_optical_depth)
        turn = np.arange(SLOTS) % UPDATE_PHASES == phase % UPDATE_PHASES
        evaluated = after != before
        assert not np.any(evaluated & ~turn & ~occupied & (np.arange(SLOTS) != SLOTS - 1))
        for cell in range(SLOTS):
            if turn[cell] or evaluated[cell]:
                ema[cell] = max(max(ema[cell], 0.0) * 0.8, values[cell] * length)
        np.testing.assert_allclose(after, ema, rtol=1e-4)
        level = min(0.05, float(np.mean(np.maximum(ema, 0.0))))
        near_level = np.isclose(ema, level, rtol=1e-4)
        occupied = np.asarray(grid.occupied).ravel()
        expected = (ema < 0) | (ema >= level)
        np.testing.assert_array_equal(occupied[~near_level], expected[~near_level])
        assert int(grid.step) == phase + 1
    assert 0 < occupied.sum() < SLOTS and np.all(ema >= 0)
    fine = OccupancyGrid(grid.occupied, grid.aabb)
    np.testing.assert_array_equal(
        grid.coarse.occupied, max_pool_occupancy(fine, POOLING, 0.0).occupied
    )


def test_update_under_jit_and_march_skip_empty_space() -> None:
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)

    def density(positions: jax.Array) -> jax.Array:
        return 500.0 * (jnp.linalg.norm(positions, axis=-1) < 0.5)

    grid = OccupancyGrid.create(box, 12)
    update_once = jax.jit(lambda grid, key: grid.update(key, density))
    for number in range(3 * UPDATE_PHASES):
        grid = update_once(grid, jax.random.key(number))
    centers = np.linalg.norm(np.asarray(cell_centers((12,) * 3, grid.aabb)), axis=-1)
    occupied = np.asarray(grid.occupied)
    half = 0.5 * 3**0.5 / 6
    assert np.all(occupied[centers < 0.5 - half]) and not np.any(occupied[centers > 0.5 + half])
    rays = random_rays(30, aims=np.random.default_rng(0).uniform(-1.0, 1.0, (30, 3)))
    samples = grid.march(rays, 0.05)
    middles = 0.5 * (samples.t_starts + samples.t_ends)
    points = (
        rays.origins[samples.ray_indices] + middles[:, None] * rays.directions[samples.ray_indices]
    )
    distance = np.linalg.norm(np.asarray(points), axis=-1)[np.asarray(samples.mask)]
    assert distance.size > 20 and np.all(distance < 0.5 + 2 * half)


@pytest.mark.parametrize("step", [0, 1, 8, 12, 13])
def test_maybe_update_updates_when_due_and_counts_steps(step: int) -> None:
    """All cells while warming up, and a quarter of them later, every `update_interval` steps."""
    schedule = OccupancySchedule(update_interval=4, warmup_steps=10, decay=0.8, threshold=0.01)
    initial = track_density(random_grid(), 0.0)
    initial = dataclasses.replace(initial, step=jnp.asarray(step, jnp.int32))
    values, key = jnp.ones(SLOTS), jax.random.key(1)
    updated = jax.jit(lambda grid: grid.maybe_update(key, density_by_cell(values), STEP, schedule))(
        initial
    )
    assert int(updated.step) == step + 1
    expected = initial
    if step % 4 == 0:
        for phase in range(step // 4, step // 4 + (UPDATE_PHASES if step < 10 else 1)):
            expected = update(
                expected, jax.random.fold_in(key, phase), values, phase, dilation_cells=0.0
            )
    np.testing.assert_array_equal(updated.max_optical_depth, expected.max_optical_depth)
    np.testing.assert_array_equal(updated.occupied, expected.occupied)
    evaluated = np.asarray(updated.max_optical_depth) >= 0
    assert evaluated.all() == (step in (0, 8)) and evaluated.any() == (step % 4 == 0)
