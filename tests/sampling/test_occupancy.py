"""The occupancy grid against loops over its cells, and at its faces."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.cameras import contraction
from jaxrf.cameras.base import image_rays, make_cameras, project
from jaxrf.cameras.poses import look_at
from jaxrf.core.rays import Rays, clip_to_aabb, points_along
from jaxrf.sampling.occupancy import (
    COARSE,
    FADING,
    PROBES,
    UNINITIALISED,
    UPDATE_PHASES,
    DensityEmaGrid,
    Marching,
    OccupancyGrid,
    WeightTrackedGrid,
    cell_centres,
    cell_index,
    contract_positions,
    contraction_jacobian,
    decayed_max_weights,
    dilate,
    init_density_ema,
    lookup,
    make_full_grid,
    march_to_samples,
    mark_invisible_cells,
    max_pool_occupancy,
    occupied_aabb,
    ray_hits_occupied,
    record_weights,
    resample_grid,
    to_marched_rays,
    to_ray_distances,
    update_from_density,
    update_occupancy,
    watch,
)

# Cells of 0.5 x 0.25 x 1, all exact in float32.
BOX = np.array([[-1.0, 0.0, 2.0], [1.0, 1.25, 5.0]], np.float32)
SHAPE = (4, 5, 3)
CELL = (BOX[1] - BOX[0]) / np.array(SHAPE)

look_up = jax.jit(lookup)
dilated = jax.jit(dilate, static_argnames="cells")
note = jax.jit(record_weights)
recall = jax.jit(decayed_max_weights)


@functools.partial(jax.jit, static_argnames="at_once")
def hit(grid: OccupancyGrid, rays: Rays, at_once: int = 8192) -> jax.Array:
    return ray_hits_occupied(grid, max_pool_occupancy(grid, COARSE, 0.5 * PROBES), rays, at_once)


def random_grid(share: float = 0.4, seed: int = 0) -> OccupancyGrid:
    occupied = np.random.default_rng(seed).uniform(size=SHAPE) < share
    return OccupancyGrid(jnp.asarray(occupied), jnp.asarray(BOX))


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
    found = look_up(grid, jnp.asarray(positions))
    assert found.shape == batch and found.dtype == bool
    for index in np.ndindex(batch):
        assert bool(found[index]) == lookup_slowly(grid, positions[index])


def test_every_cell_centre_finds_its_own_cell() -> None:
    grid = random_grid()
    centres = cell_centres(SHAPE, grid.aabb)
    assert centres.shape == (*SHAPE, 3)
    for index in np.ndindex(SHAPE):
        np.testing.assert_allclose(centres[index], BOX[0] + (np.array(index) + 0.5) * CELL)
    np.testing.assert_array_equal(look_up(grid, centres), grid.occupied)


def test_lower_faces_of_cells_belong_to_them_and_the_box_ends_before_its_upper_faces() -> None:
    grid = random_grid()
    corners = np.stack(np.meshgrid(*(np.arange(n + 1) for n in SHAPE), indexing="ij"), axis=-1)
    positions = (BOX[0] + corners * CELL).astype(np.float32)
    found = np.asarray(look_up(grid, jnp.asarray(positions)))
    for index in np.ndindex(found.shape):
        inside = all(i < n for i, n in zip(index, SHAPE, strict=True))
        assert found[index] == (inside and bool(grid.occupied[index]))


def test_nothing_is_occupied_outside_of_the_box() -> None:
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
def test_slots_are_flat_indices_with_the_place_in_the_cell(batch: tuple[int, ...]) -> None:
    unit = np.random.default_rng(1).uniform(-0.3, 1.3, (*batch, 3))
    positions = (BOX[0] + unit * (BOX[1] - BOX[0])).astype(np.float32)
    flat, inside, place = jax.jit(cell_index)(random_grid(), jnp.asarray(positions))
    assert flat.shape == inside.shape == batch and place.shape == (*batch, 3)
    for index in np.ndindex(batch):
        scaled = (positions[index].astype(np.float64) - BOX[0]) / CELL
        nearest = [min(max(math.floor(s), 0), n - 1) for s, n in zip(scaled, SHAPE, strict=True)]
        assert int(flat[index]) == np.ravel_multi_index(nearest, SHAPE)
        assert bool(inside[index]) == bool(np.all((scaled >= 0) & (scaled < SHAPE)))
        if inside[index]:
            np.testing.assert_allclose(place[index], scaled - nearest, atol=1e-5)
        assert np.all((place[index] >= 0) & (place[index] <= 1))


@pytest.mark.parametrize("value", [1e30, -1e30, np.inf, -np.inf, np.nan])
def test_the_slot_of_any_number_is_one_there_is(value: float) -> None:
    positions = jnp.asarray(np.where(np.eye(3) > 0, value, BOX.mean(axis=0)), jnp.float32)
    flat, inside, _ = cell_index(random_grid(), positions)
    assert np.all((flat >= 0) & (flat < math.prod(SHAPE))) and not np.any(inside)


@pytest.mark.parametrize("cells", [0, 1, 2])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_dilation_equals_loop(cells: int, share: float) -> None:
    occupied = np.random.default_rng(2).uniform(size=(5, 6, 4)) < share
    expected = np.zeros_like(occupied)
    for cell in np.argwhere(occupied):
        for other in np.ndindex(occupied.shape):
            if max(abs(a - b) for a, b in zip(cell, other, strict=True)) <= cells:
                expected[other] = True
    np.testing.assert_array_equal(dilated(jnp.asarray(occupied), cells=cells), expected)


def test_dilation_does_not_wrap_around() -> None:
    corner = jnp.zeros((4, 4, 4), bool).at[0, 0, 0].set(True).at[3, 3, 3].set(True)
    assert int(jnp.sum(dilated(corner, cells=1))) == 16


# Updates.


def ball(centre: np.ndarray, radius: float, density: float) -> Callable[[jax.Array], jax.Array]:
    def density_fn(positions: jax.Array) -> jax.Array:
        distance = jnp.sum(jnp.square(positions - jnp.asarray(centre)[None]), axis=-1)
        return jnp.where(distance < radius**2, density, 0.0)

    return density_fn


@pytest.mark.parametrize("chunk", [7, 20, 60, 1000])
def test_update_keeps_the_opaque_cells_and_their_occupied_neighbours(chunk: int) -> None:
    grid, centre = random_grid(0.8), np.array([0.3, 0.6, 3.2], np.float32)
    density_fn, step = ball(centre, 0.6, 2.0), 0.25
    updated = update_from_density(grid, density_fn, step, 0.3, chunk=chunk)
    opaque = np.zeros(SHAPE, bool)
    for index in np.ndindex(SHAPE):
        position = BOX[0] + (np.array(index) + 0.5) * CELL
        density = 2.0 if np.sum((position - centre) ** 2) < 0.36 else 0.0
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
def test_update_never_revives_a_cell(density: float) -> None:
    grid = random_grid(0.3)
    updated = update_from_density(
        grid, lambda x: jnp.full(x.shape[0], density), 0.25, 1e-3, chunk=64
    )
    assert not np.any(np.asarray(updated.occupied) & ~np.asarray(grid.occupied))
    np.testing.assert_array_equal(updated.occupied, grid.occupied if density > 0 else False)


def test_update_of_an_empty_grid_stays_empty() -> None:
    grid = random_grid(0.0)
    updated = update_from_density(grid, lambda x: jnp.ones(x.shape[0]), 1.0, 0.1, chunk=64)
    assert not np.any(updated.occupied)


# Boxes and other cells.


def test_occupied_box_is_the_smallest_that_holds_all_occupied_cells() -> None:
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


def test_occupied_box_of_an_empty_and_of_a_full_grid_is_the_whole_box() -> None:
    np.testing.assert_array_equal(occupied_aabb(random_grid(0.0)), BOX)
    np.testing.assert_allclose(occupied_aabb(make_full_grid(SHAPE, jnp.asarray(BOX))), BOX)


def test_resampling_to_the_same_cells_is_the_identity() -> None:
    grid = random_grid()
    same = resample_grid(grid, SHAPE, grid.aabb)
    np.testing.assert_array_equal(same.occupied, grid.occupied)


@pytest.mark.parametrize("resolution", [(8, 10, 6), (5, 7, 4)])
def test_resampling_loses_no_occupied_place_and_invents_none_far_away(
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


# Rays.


def random_rays(count: int, seed: int = 4, aims: np.ndarray | None = None) -> Rays:
    rng = np.random.default_rng(seed)
    origins = rng.normal(size=(count, 3)) * 3.0 + BOX.mean(axis=0)
    if aims is None:
        aims = BOX[0] + rng.uniform(-0.2, 1.2, (count, 3)) * (BOX[1] - BOX[0])
    directions = aims - origins
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Rays(
        origins=jnp.asarray(origins, jnp.float32),
        directions=jnp.asarray(directions, jnp.float32),
        near=jnp.full((count,), 0.5),
        far=jnp.asarray(rng.uniform(3.0, 9.0, count), jnp.float32),
        radii=jnp.zeros((count,)),
        camera_index=jnp.zeros((count,), jnp.int32),
    )


# Cubic cells, so many that whole blocks of probes are passed over.
FINE = (40, 33, 37)
FINE_CELL = 0.09375


def fine_case(cells: int = 8, count: int = 400) -> tuple[OccupancyGrid, Rays]:
    """A few occupied cells, and rays of which many pass by one of them closely."""
    rng = np.random.default_rng(11)
    occupied = np.zeros(FINE, bool)
    places = rng.integers(0, FINE, (cells, 3))
    occupied[tuple(places.T)] = True
    aabb = np.stack([BOX[0], BOX[0] + FINE_CELL * np.array(FINE)])
    aims = BOX[0] + (places[rng.integers(0, cells, count)] + 0.5) * FINE_CELL
    aims = aims + 0.6 * rng.normal(size=(count, 3)) * FINE_CELL
    grid = OccupancyGrid(jnp.asarray(occupied), jnp.asarray(aabb, jnp.float32))
    rays = random_rays(count, aims=aims)
    return grid, dataclasses.replace(rays, far=rays.far + 2.0)


def test_hits_equal_a_dense_march_but_for_passages_shorter_than_a_probe() -> None:
    grid, rays = fine_case()
    hits = np.asarray(hit(grid, rays))
    spacing = 0.002
    distances = np.arange(0.5, 11.0, spacing)
    positions = (
        np.asarray(rays.origins)[:, None]
        + distances[None, :, None] * np.asarray(rays.directions)[:, None]
    )
    occupied = np.asarray(look_up(grid, jnp.asarray(positions, jnp.float32)))
    occupied = occupied & (distances[None] <= np.asarray(rays.far)[:, None])
    long = 0
    for ray in range(400):
        longest = run = 0
        for wanted in occupied[ray]:
            run = run + 1 if wanted else 0
            longest = max(longest, run)
        long += longest * spacing > FINE_CELL
        if hits[ray]:
            # A probe may fall into a passage that is shorter than the march's spacing.
            assert longest > 0 or lies_beside_occupied(grid, positions[ray])
        elif longest:
            assert longest * spacing <= FINE_CELL + 2 * spacing
    assert 50 < hits.sum() < 350 and long > 50


def lies_beside_occupied(grid: OccupancyGrid, positions: np.ndarray) -> bool:
    offsets = np.array([*np.eye(3), *-np.eye(3)]) * 0.004
    beside = positions[:, None] + offsets[None]
    return bool(np.any(look_up(grid, jnp.asarray(beside, jnp.float32))))


@pytest.mark.parametrize("at_once", [1, 7, 64, 1000])
def test_hits_are_the_same_however_many_blocks_are_probed_at_once(at_once: int) -> None:
    grid, rays = fine_case()
    np.testing.assert_array_equal(hit(grid, rays, at_once=at_once), hit(grid, rays))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3])
def test_what_is_passed_over_as_a_whole_is_never_hit(share: float) -> None:
    grid, rays = fine_case()
    occupied = np.random.default_rng(12).uniform(size=FINE) < share
    grid = dataclasses.replace(grid, occupied=grid.occupied | jnp.asarray(occupied))
    coarse = max_pool_occupancy(grid, COARSE, 0.5 * PROBES)
    assert share > 0.1 or np.mean(coarse.occupied) < 0.9
    everywhere = dataclasses.replace(coarse, occupied=jnp.ones_like(coarse.occupied))
    probed = jax.jit(ray_hits_occupied)(grid, everywhere, rays)
    np.testing.assert_array_equal(hit(grid, rays), probed)
    assert 50 < np.sum(probed) <= 400


def test_full_grid_is_hit_exactly_by_the_rays_that_meet_more_than_a_corner_of_the_box() -> None:
    full, rays = make_full_grid(SHAPE, jnp.asarray(BOX)), random_rays(200)
    hits = np.asarray(hit(full, rays))
    distances = np.linspace(0.5, 9.0, 4000)
    for ray in range(200):
        points = np.asarray(rays.origins[ray]) + distances[:, None] * np.asarray(
            rays.directions[ray]
        )
        inside = np.all((points >= BOX[0]) & (points < BOX[1]), axis=-1)
        length = np.sum(inside & (distances <= float(rays.far[ray]))) * (8.5 / 4000)
        # The first probe is half a cell's width behind the entry.
        if length > 0.5 * float(np.min(CELL)) + 0.01:
            assert hits[ray]
        elif length == 0:
            assert not hits[ray]
    assert not np.any(hit(random_grid(0.0), rays))


def test_rays_that_end_before_the_box_or_look_away_hit_nothing() -> None:
    full, rays = make_full_grid(SHAPE, jnp.asarray(BOX)), random_rays(50)
    assert not np.any(hit(full, dataclasses.replace(rays, far=rays.near)))
    outside = dataclasses.replace(
        rays,
        origins=jnp.broadcast_to(jnp.asarray([0.0, 0.5, 9.0]), (50, 3)),
        directions=jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0]), (50, 3)),
    )
    assert not np.any(hit(full, outside))
    towards = dataclasses.replace(outside, directions=-outside.directions, far=rays.near + 20.0)
    assert np.all(hit(full, towards))


def test_grid_is_a_pytree_that_jit_and_vmap_accept() -> None:
    grid = random_grid()
    assert len(jax.tree.leaves(grid)) == 2
    assert isinstance(jax.jit(lambda g: g)(grid), OccupancyGrid)
    positions = jnp.asarray(np.random.default_rng(5).uniform(0, 3, (6, 3)), jnp.float32)
    mapped = jax.vmap(lambda p: lookup(grid, p))(positions)
    np.testing.assert_array_equal(mapped, lookup(grid, positions))


# Marching by blocks.


def dense_steps(
    grid: OccupancyGrid, rays: Rays, offset: np.ndarray, step: float
) -> list[list[tuple[float, float]]]:
    """For each ray, every step whose middle lies in an occupied cell, by loops."""
    found = []
    for ray in range(rays.near.shape[0]):
        near, far = float(rays.near[ray]), float(rays.far[ray])
        steps = []
        for index in range(int((far - near) / step) + 3):
            start = np.clip(near + (index - offset[ray]) * step, near, far)
            stop = np.clip(near + (index + 1 - offset[ray]) * step, near, far)
            middle = 0.5 * (start + stop)
            position = np.asarray(rays.origins[ray]) + middle * np.asarray(rays.directions[ray])
            if stop > start and bool(look_up(grid, jnp.asarray(position, jnp.float32))):
                steps.append((start, stop))
        found.append(steps)
    return found


def marching_case(count: int) -> tuple[OccupancyGrid, OccupancyGrid, Rays, np.ndarray, float, int]:
    grid = random_grid(0.25)
    step = 0.6 * float(np.min(CELL))
    coarse = max_pool_occupancy(grid, 2, 0.5 * 4 * step / float(np.min(CELL)))
    rays = clip_to_aabb(random_rays(count), grid.aabb)
    offset = np.random.default_rng(9).uniform(size=count).astype(np.float32)
    diagonal = float(np.linalg.norm(BOX[1] - BOX[0]))
    return grid, coarse, rays, offset, step, int(diagonal / (4 * step)) + 2


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("reach", [0.0, 1.0, 2.5, 4.0])
def test_coarse_cells_are_occupied_if_anything_in_reach_is(factor: int, reach: float) -> None:
    grid = random_grid(0.01)
    coarse = max_pool_occupancy(grid, factor, reach)
    rng = np.random.default_rng(0)
    inside = rng.uniform(BOX[0], BOX[1], (3000, 3))
    nearby = inside + rng.uniform(-1, 1, (3000, 3)) * reach * CELL * 0.999
    hit = np.asarray(look_up(grid, jnp.asarray(nearby, jnp.float32)))
    found = np.asarray(look_up(coarse, jnp.asarray(inside, jnp.float32)))
    assert hit.any() and np.all(found[hit])
    assert not np.any(
        look_up(
            max_pool_occupancy(random_grid(0.0), factor, reach), jnp.asarray(inside, jnp.float32)
        )
    )


def test_packed_samples_are_the_steps_of_a_dense_march() -> None:
    grid, coarse, rays, offset, step, blocks = marching_case(60)
    marching = Marching(blocks, 4, 2000, 3000)
    samples, fitting = jax.jit(march_to_samples, static_argnums=5)(
        grid, coarse, rays, jnp.asarray(offset), step, marching
    )
    assert int(fitting) == 60
    wanted = dense_steps(grid, rays, offset, step)
    used = np.asarray(samples.mask)
    assert used.sum() == sum(len(steps) for steps in wanted) > 50
    assert np.all(np.diff(np.asarray(samples.ray_indices)) >= 0)
    for ray, steps in enumerate(wanted):
        mine = used & (np.asarray(samples.ray_indices) == ray)
        found = np.stack([samples.t_starts, samples.t_ends], axis=-1)[mine]
        np.testing.assert_allclose(found, np.reshape(steps, (-1, 2)), atol=1e-5)
    assert not np.any(np.asarray(samples.t_ends)[~used])


@pytest.mark.parametrize("block_budget, sample_budget", [(2000, 57), (31, 3000), (25, 40), (1, 1)])
def test_of_the_rays_that_fit_every_sample_is_there(block_budget: int, sample_budget: int) -> None:
    grid, coarse, rays, offset, step, blocks = marching_case(60)
    wanted = dense_steps(grid, rays, offset, step)
    marching = Marching(blocks, 4, block_budget, sample_budget)
    samples, fitting = march_to_samples(grid, coarse, rays, jnp.asarray(offset), step, marching)
    fitting = int(fitting)
    assert 0 <= fitting < 60
    used = np.asarray(samples.mask)
    for ray in range(fitting):
        mine = used & (np.asarray(samples.ray_indices) == ray)
        assert mine.sum() == len(wanted[ray])
    if block_budget == 2000:
        counts = np.cumsum([len(steps) for steps in wanted])
        assert fitting == int(np.argmax(counts > sample_budget))


def test_rays_that_meet_nothing_take_no_sample() -> None:
    grid, coarse, rays, offset, step, blocks = marching_case(20)
    marching = Marching(blocks, 4, 100, 100)
    away = dataclasses.replace(rays, far=rays.near)
    samples, fitting = march_to_samples(grid, coarse, away, jnp.asarray(offset), step, marching)
    assert int(fitting) == 20 and not np.any(samples.mask)
    empty = random_grid(0.0)
    samples, _ = march_to_samples(
        empty, max_pool_occupancy(empty, 2, 4.0), rays, jnp.asarray(offset), step, marching
    )
    assert not np.any(samples.mask)


# What is remembered of cells.


def random_watched(reach: float = 2.0) -> WeightTrackedGrid:
    return watch(random_grid(), reach)


def test_a_fresh_watch_has_seen_nothing_and_marches_through_the_coarsened_grid() -> None:
    grid = random_grid(0.02)
    for reach in (0.0, 4.0, 9.0):
        watched = watch(grid, reach)
        np.testing.assert_array_equal(watched.occupied, grid.occupied)
        np.testing.assert_array_equal(watched.aabb, grid.aabb)
        coarse = max_pool_occupancy(grid, COARSE, reach)
        np.testing.assert_array_equal(watched.coarse.occupied, coarse.occupied)
        np.testing.assert_array_equal(watched.coarse.aabb, coarse.aabb)
        assert watched.memory.shape == (grid.occupied.size,) and int(watched.clock) == 0
        np.testing.assert_array_equal(recall(watched), 0.0)


def test_remembered_weights_equal_a_diary_of_all_that_was_seen() -> None:
    """Each cell's weight is the largest of all that it was given, faded by the steps since."""
    grid, rng = random_watched(), np.random.default_rng(0)
    cells = grid.occupied.size
    diary: list[list[tuple[int, float]]] = [[] for _ in range(cells)]
    for step in range(60):
        # Some cells are seen in every step, some rarely, some several times at once, some never.
        slots = rng.integers(0, cells // 2 if step % 7 else cells - 5, 40)
        weights = rng.uniform(size=40) ** 4
        weights[:3] = [0.0, 1.0, 1e-38]
        grid = note(grid, jnp.asarray(slots, jnp.int32), jnp.asarray(weights, jnp.float32))
        for slot, weight in zip(slots, weights, strict=True):
            diary[slot].append((step, weight))
        assert int(grid.clock) == step + 1
        if step in (0, 1, 20, 59):
            wanted = [max((w * FADING ** (step - t) for t, w in d), default=0.0) for d in diary]
            np.testing.assert_allclose(recall(grid), wanted, rtol=1e-3, atol=1e-8)
    assert not diary[-1] and float(recall(grid)[-1]) == 0.0


def note_one(grid: WeightTrackedGrid, weight: float, slot: int = 3) -> WeightTrackedGrid:
    return note(grid, jnp.asarray([slot], jnp.int32), jnp.asarray([weight], jnp.float32))


@pytest.mark.parametrize("between", [0, 10, 25, 200])
def test_a_later_weaker_view_counts_once_the_stronger_one_has_faded(between: int) -> None:
    grid = note_one(random_watched(), 0.9)
    for _ in range(between):
        grid = note_one(grid, 1.0, slot=7)
    grid = note_one(grid, 0.5)
    faded = 0.9 * FADING ** (between + 1)
    assert (faded > 0.5) == (between <= 10)
    assert float(recall(grid)[3]) == pytest.approx(max(faded, 0.5), rel=1e-3)


def test_memory_is_exact_enough_after_very_many_steps() -> None:
    grid = dataclasses.replace(random_watched(), clock=jnp.asarray(200_000, jnp.int32))
    grid = note_one(note_one(grid, 0.05), 0.0, slot=7)
    assert float(recall(grid)[3]) == pytest.approx(0.05 * FADING, rel=2e-3)


def test_a_watched_grid_is_a_pytree_that_jit_accepts() -> None:
    grid = random_watched()
    assert len(jax.tree.leaves(grid)) == 6
    again = jax.jit(lambda g: g)(grid)
    assert isinstance(again, WeightTrackedGrid) and isinstance(again.coarse, OccupancyGrid)
    positions = jnp.asarray(np.random.default_rng(5).uniform(0, 3, (6, 3)), jnp.float32)
    np.testing.assert_array_equal(lookup(grid, positions), lookup(random_grid(), positions))


# Probing.

SLOTS = math.prod(SHAPE)
SHARE = -(-SLOTS // UPDATE_PHASES)
STEP = 0.1


def density_by_cell(values: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A density that is constant in each cell, so that chance does not matter."""

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        return values[cell_index(make_full_grid(SHAPE, jnp.asarray(BOX)), positions)[0]]

    return density


@functools.partial(jax.jit, static_argnames=("reach", "chunk"))
def probe(
    grid: DensityEmaGrid,
    key: jax.Array,
    values: jax.Array,
    turn: jax.Array | int,
    reach: float = 3.0,
    chunk: int = 1 << 16,
) -> DensityEmaGrid:
    fn = density_by_cell(values)
    rules = {"decay": 0.8, "threshold": 0.01, "reach": reach, "chunk": chunk}
    return update_occupancy(grid, key, fn, STEP, turn, **rules)


def probed(optical: np.ndarray, occupied: np.ndarray, reach: float = 3.0) -> DensityEmaGrid:
    """A grid with a past."""
    plain = OccupancyGrid(jnp.asarray(occupied.reshape(SHAPE)), jnp.asarray(BOX))
    grid = init_density_ema(plain, reach)
    return dataclasses.replace(grid, optical=jnp.asarray(optical, jnp.float32))


def test_a_grid_that_begins_probing_keeps_its_cells_and_knows_nothing() -> None:
    grid = random_grid(0.02)
    for reach in (0.0, 4.0):
        begun = init_density_ema(grid, reach)
        np.testing.assert_array_equal(begun.occupied, grid.occupied)
        np.testing.assert_array_equal(begun.aabb, grid.aabb)
        np.testing.assert_array_equal(
            begun.coarse.occupied, max_pool_occupancy(grid, COARSE, reach).occupied
        )
        assert begun.optical.shape == (SLOTS,) and np.all(np.asarray(begun.optical) < 0)
        assert int(begun.clock) == 0
    assert isinstance(jax.jit(lambda g: g)(begun), DensityEmaGrid)


def test_every_cell_has_its_turn_and_stays_occupied_until_then() -> None:
    # Only the first cell holds anything: any other is empty as soon as it was looked into.
    first = np.arange(SLOTS) == 0
    values = 5.0 * jnp.asarray(first, jnp.float32)
    grid = init_density_ema(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    turns_of = np.zeros(SLOTS, int)
    for turn in range(UPDATE_PHASES):
        grid = probe(grid, jax.random.key(turn), values, turn)
        known = np.asarray(grid.optical) >= 0
        # Its own quarter, and others that were still occupied.
        assert np.all(known[turn % SLOTS :: UPDATE_PHASES])
        assert SHARE <= known.sum() <= 2 * SHARE * (turn + 1)
        np.testing.assert_array_equal(np.asarray(grid.occupied).ravel(), ~known | first)
        turns_of[turn::UPDATE_PHASES] += 1
    assert np.all(turns_of == 1) and np.asarray(grid.occupied).ravel().tolist() == first.tolist()
    found = max_pool_occupancy(OccupancyGrid(grid.occupied, grid.aabb), COARSE, 3.0).occupied
    np.testing.assert_array_equal(grid.coarse.occupied, found)


def test_where_nothing_is_denser_than_elsewhere_everything_stays_occupied() -> None:
    """A field that starts at nothing has to be looked into, or it would stay nothing."""
    grid = init_density_ema(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    for turn in range(UPDATE_PHASES):
        grid = probe(grid, jax.random.key(turn), jnp.zeros(SLOTS), turn)
    assert np.all(grid.occupied) and np.all(grid.optical == 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 5, 1), (2, 3, 3)])
def test_every_cell_of_a_grid_of_any_size_has_its_turn(shape: tuple[int, int, int]) -> None:
    grid = init_density_ema(make_full_grid(shape, jnp.asarray(BOX)), 1.0)
    # As if nothing were occupied: none but the own quarter and the last cell are looked into.
    grid = dataclasses.replace(grid, occupied=jnp.zeros(shape, bool))
    look = jax.jit(
        lambda grid, turn: update_occupancy(
            dataclasses.replace(grid, occupied=jnp.zeros(shape, bool)),
            jax.random.key(0),
            lambda positions, radii: positions[:, 0] * 0.0 + 1.0,
            STEP,
            turn,
            decay=0.9,
            threshold=0.01,
            reach=1.0,
        )
    )
    for turn in range(7, 7 + UPDATE_PHASES):
        grid = look(grid, turn)
    np.testing.assert_allclose(grid.optical, STEP, rtol=1e-6)


@pytest.mark.parametrize("turn", [0, 1, 3, 6])
@pytest.mark.parametrize("count", [0, 1, SHARE - 1, SHARE])
def test_probing_equals_a_loop_while_all_occupied_cells_have_a_place(count: int, turn: int) -> None:
    rng = np.random.default_rng(count)
    before = rng.choice([-1.0, 0.0, 0.005, 0.05, 3.0], SLOTS)
    values = rng.choice([0.0, 0.02, 0.2, 30.0], SLOTS)
    occupied = np.zeros(SLOTS, bool)
    occupied[rng.permutation(SLOTS)[:count]] = True
    looked = {
        cell
        for cell in range(SLOTS)
        if cell % UPDATE_PHASES == turn % UPDATE_PHASES or occupied[cell]
    }
    if count < SHARE:
        looked.add(SLOTS - 1)  # fills the places that are left
    wanted = before.copy()
    for cell in looked:
        wanted[cell] = max(max(before[cell], 0.0) * 0.8, values[cell] * STEP)
    least = min(0.01, np.mean(np.maximum(wanted, 0.0)))
    grid = probe(
        probed(before, occupied), jax.random.key(5), jnp.asarray(values, jnp.float32), turn
    )
    np.testing.assert_allclose(grid.optical, wanted, rtol=1e-5)
    flags = (wanted < 0) | (wanted >= np.float32(least))
    np.testing.assert_array_equal(np.asarray(grid.occupied).ravel(), flags)
    assert 0 < flags.sum() < SLOTS
    fine = OccupancyGrid(grid.occupied, grid.aabb)
    np.testing.assert_array_equal(
        grid.coarse.occupied, max_pool_occupancy(fine, COARSE, 3.0).occupied
    )


def test_of_too_many_occupied_cells_some_are_looked_into_and_all_of_them_in_the_long_run() -> None:
    seen = np.zeros(SLOTS, int)
    for number in range(200):
        grid = probed(np.full(SLOTS, -1.0), np.ones(SLOTS, bool))
        grid = probe(grid, jax.random.key(number), jnp.ones(SLOTS), 0)
        known = np.asarray(grid.optical) >= 0
        aimed = np.flatnonzero(known & (np.arange(SLOTS) % UPDATE_PHASES != 0))
        # Cells next to each other, as many as there are places.
        assert aimed[-1] - aimed[0] < SHARE and aimed.size >= SHARE - SHARE // UPDATE_PHASES - 1
        seen[aimed] += 1
    assert np.all(seen[np.arange(SLOTS) % UPDATE_PHASES != 0] > 0)


@pytest.mark.parametrize("chunk", [1, 7, 2 * SHARE - 1, 2 * SHARE])
def test_probing_is_the_same_however_many_cells_are_looked_into_together(chunk: int) -> None:
    values = jnp.asarray(np.random.default_rng(0).uniform(0, 1, SLOTS), jnp.float32)
    begun = init_density_ema(random_grid(), 3.0)
    whole, parts = (probe(begun, jax.random.key(1), values, 2, chunk=n) for n in (1 << 16, chunk))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_points_are_spread_over_their_cells_and_nowhere_else() -> None:
    found: list[np.ndarray] = []

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        jax.debug.callback(lambda p: found.append(np.asarray(p)), positions)
        return jnp.zeros(positions.shape[:1])

    grid = init_density_ema(random_grid(), 3.0)
    for number in range(30):
        rules = {"decay": 0.9, "threshold": 0.01, "reach": 3.0}
        update_occupancy(grid, jax.random.key(number), density, STEP, 1, **rules)
    jax.effects_barrier()
    scaled = (np.concatenate([points[:SHARE] for points in found]) - BOX[0]) / CELL
    own = np.array(np.unravel_index((UPDATE_PHASES * np.arange(SHARE) + 1) % SLOTS, SHAPE)).T
    place = scaled - np.tile(own, (30, 1))
    assert place.min() > -1e-5 and place.max() < 1 + 1e-5
    np.testing.assert_allclose(place.mean(axis=0), 0.5, atol=0.05)
    np.testing.assert_allclose(place.std(axis=0), 12**-0.5, atol=0.03)


def test_what_was_found_fades_and_its_cell_is_given_up() -> None:
    grid = probed(np.full(SLOTS, 0.05), np.ones(SLOTS, bool))
    ages = []
    for turn in range(8 * UPDATE_PHASES):
        grid = probe(grid, jax.random.key(turn), jnp.zeros(SLOTS), turn)
        ages.append(float(jnp.max(grid.optical)))
        assert np.all(
            np.asarray(grid.optical) <= 0.05 * 0.8 ** ((turn + 1) // UPDATE_PHASES) * 1.0001
        )
    assert ages == sorted(ages, reverse=True) and ages[0] == pytest.approx(0.05)
    # 0.05 * 0.8^8 is less than the threshold, and what is above the mean is still there.
    assert float(jnp.max(grid.optical)) < 0.01


def test_cells_of_a_dense_ball_stay_and_far_ones_get_empty() -> None:
    box, shape = jnp.asarray([[-1.0] * 3, [1.0] * 3]), (12, 12, 12)

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        return 50.0 * (jnp.linalg.norm(positions, axis=-1) < 0.6)

    rules = {"decay": 0.95, "threshold": 0.01, "reach": 2.0}
    look = jax.jit(
        lambda grid, key, turn: update_occupancy(grid, key, density, STEP, turn, **rules)
    )
    grid = init_density_ema(make_full_grid(shape, box), 2.0)
    centres = np.linalg.norm(np.asarray(cell_centres(shape, box)), axis=-1)
    half = 0.5 * 3**0.5 / 6
    for turn in range(5 * UPDATE_PHASES):
        grid = look(grid, jax.random.key(turn), turn)
        occupied = np.asarray(grid.occupied)
        assert np.all(occupied[centres < 0.6 - half]), "no sample of what is dense is missed"
        assert turn < UPDATE_PHASES or not np.any(occupied[centres > 0.6 + half])
    assert 0.05 < occupied.mean() < 0.3


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_probing_extreme_densities_leaves_numbers(value: float) -> None:
    grid = init_density_ema(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    for turn in range(UPDATE_PHASES):
        grid = probe(grid, jax.random.key(turn), jnp.full(SLOTS, value), turn)
    assert np.all(np.isfinite(grid.optical))
    np.testing.assert_allclose(grid.optical, value * STEP, rtol=1e-5)
    assert np.all(grid.occupied) or value < 1.0


def test_a_few_faint_cells_count_if_all_else_is_fainter() -> None:
    values = np.full(SLOTS, 1e-6)
    values[[3, 17, 40]] = 1e-3
    grid = init_density_ema(make_full_grid(SHAPE, jnp.asarray(BOX)), 3.0)
    for turn in range(UPDATE_PHASES):
        grid = probe(grid, jax.random.key(turn), jnp.asarray(values, jnp.float32), turn)
    assert np.flatnonzero(np.asarray(grid.occupied)).tolist() == [3, 17, 40]


def test_cells_beside_all_pictures_stay_empty_for_good() -> None:
    """Against the corners of every cell, one camera and one corner at a time."""
    poses = np.stack([look_at(np.array(eye), np.zeros(3)) for eye in ([0, -3, 0.5], [2.0, 0, 0])])
    cameras = make_cameras(poses, 40, 30, 0.5)
    box = jnp.array([[-1.0, -1.2, -1.1], [1.2, 1.0, 1.0]])
    full = init_density_ema(make_full_grid((9, 10, 11), box), 1.0)
    grid = mark_invisible_cells(full, cameras, 1.0)
    low, high = np.asarray(box)
    axes = [np.linspace(low[a], high[a], n + 1) for a, n in enumerate((9, 10, 11))]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    seen = np.zeros((9, 10, 11), bool)
    for camera in range(2):
        points, depth = project(cameras, camera, corners.reshape(-1, 3))
        inside = (depth > 0) & np.all((points >= 0) & (points <= [40, 30]), axis=-1)
        inside = inside.reshape(10, 11, 12)
        for x, y, z in np.ndindex(2, 2, 2):
            seen |= inside[x : x + 9, y : y + 10, z : z + 11]
    occupied = np.asarray(grid.occupied)
    assert np.all(occupied[seen]) and np.sum(~occupied) > 0 and np.sum(occupied) < 2 * np.sum(seen)
    dense = jnp.full((1,), 9.0)
    for turn in range(UPDATE_PHASES):
        grid = update_occupancy(
            grid, jax.random.key(turn), lambda p, r: 0.0 * r + dense, 1.0, turn,
            decay=0.9, threshold=0.01, reach=1.0,
        )  # fmt: skip
    assert np.array_equal(grid.occupied, occupied)


def test_cells_are_probed_with_the_cones_of_the_cameras_pixels_of_every_size() -> None:
    poses = np.stack([look_at(np.array(eye), np.zeros(3)) for eye in ([0, -4.0, 0.5], [4.0, 0, 0])])
    cameras = make_cameras(poses, 64, 64, 0.4)
    box = jnp.array([[-1.0] * 3, [1.0] * 3])
    grid = mark_invisible_cells(init_density_ema(make_full_grid((4, 4, 4), box), 1.0), cameras, 1.0)
    wanted = [
        float(image_rays(cameras, i, 1.0, 8.0).radii[31, 31]) * np.linalg.norm(poses[i, :3, 3])
        for i in range(2)
    ]
    assert float(grid.radius) == pytest.approx(np.mean(wanted), rel=2e-3)
    found: list[np.ndarray] = []

    def density(positions: jax.Array, radii: jax.Array) -> jax.Array:
        jax.debug.callback(lambda r: found.append(np.asarray(r)), radii)
        return jnp.zeros_like(radii)

    rules = {"decay": 0.9, "threshold": 0.01, "reach": 1.0}
    for factors in ((1,), (1, 2, 5)):
        found.clear()
        update_occupancy(grid, jax.random.key(0), density, STEP, 0, factors=factors, **rules)
        jax.effects_barrier()
        ratio = np.unique(np.concatenate(found) / float(grid.radius))
        np.testing.assert_allclose(ratio, factors, rtol=1e-5)


# Contracted space.


def contracted_case(
    count: int, share: float = 0.05
) -> tuple[OccupancyGrid, Rays, np.ndarray, float, float]:
    """Some cells of contracted space, rays of which many begin inside it, a step, the reach."""
    aabb = jnp.asarray(contraction.contracted_aabb(BOX))
    occupied = np.random.default_rng(2).uniform(size=(12, 10, 14)) < share
    grid = OccupancyGrid(jnp.asarray(occupied), aabb, bounds=jnp.asarray(BOX))
    cell = float(np.min(np.diff(np.asarray(aabb), axis=0)[0] / occupied.shape))
    rng = np.random.default_rng(3)
    rays = dataclasses.replace(
        random_rays(count),
        origins=jnp.asarray(
            rng.uniform(*contraction.contracted_aabb(BOX), (count, 3)), jnp.float32
        ),
        near=jnp.full((count,), 0.05),
    )
    offset = rng.uniform(size=count).astype(np.float32)
    step = 0.4 * cell
    return (
        grid,
        to_marched_rays(grid, rays),
        offset,
        step,
        contraction.MAX_MARCH_SPEED * 0.5 * 4 * step / cell,
    )


def test_in_contracted_space_packed_samples_are_the_steps_of_a_dense_march() -> None:
    grid, rays, offset, step, reach = contracted_case(60)
    coarse = max_pool_occupancy(grid, COARSE, reach)
    diagonal = float(np.linalg.norm(BOX[1] - BOX[0]))
    blocks = int(contraction.MAX_MARCH_DIAGONALS * diagonal / (4 * step)) + 2
    assert blocks * 4 * step > float(jnp.max(rays.far))
    found, fitting = jax.jit(march_to_samples, static_argnums=5)(
        grid, coarse, rays, jnp.asarray(offset), step, Marching(blocks, 4, 1 << 14, 1 << 14)
    )
    assert int(fitting) == 60
    # All steps at once, nothing passed over.
    index = jnp.arange(4 * blocks)[None]
    near, far = rays.near[:, None], rays.far[:, None]
    edges = [near + (index + shift - jnp.asarray(offset)[:, None]) * step for shift in (0, 1)]
    starts, stops = (jnp.clip(edge, near, far) for edge in edges)
    begins, ends = (to_ray_distances(grid, edge, rays.origins) for edge in (starts, stops))
    positions = points_along(rays, 0.5 * (begins + ends))
    inside = np.asarray((ends > begins) & look_up(grid, contract_positions(grid, positions)))
    wanted = np.stack([begins, ends], axis=-1)[inside]
    used = np.asarray(found.mask)
    assert 100 < used.sum() < 0.5 * inside.size
    np.testing.assert_array_equal(np.asarray(found.ray_indices)[used], np.nonzero(inside)[0])
    marched = np.stack([found.t_starts, found.t_ends], axis=-1)[used]
    np.testing.assert_allclose(marched, wanted, rtol=1e-4, atol=1e-5)
    # Some lie far behind the box.
    assert np.max(marched[:, 0]) > 10.0 * diagonal


def test_without_contraction_rays_march_as_they_are() -> None:
    grid, rays = random_grid(), random_rays(30)
    clipped = clip_to_aabb(rays, grid.aabb)
    marched = to_marched_rays(grid, rays)
    np.testing.assert_array_equal(marched.near, clipped.near)
    np.testing.assert_array_equal(marched.far, clipped.far)
    distances = jnp.asarray([[1.0, 2.0]])
    assert to_ray_distances(grid, distances, jnp.zeros((1, 3))) is distances
    assert contract_positions(grid, rays.origins) is rays.origins
    np.testing.assert_array_equal(contraction_jacobian(grid, jnp.zeros((4, 3))), 1.0)


def test_what_is_made_of_a_grid_keeps_its_bounds() -> None:
    grid, _, _, _, reach = contracted_case(1)
    wider = resample_grid(grid, (20, 20, 20), grid.aabb)
    for made in (
        max_pool_occupancy(grid, 2, 1.0),
        watch(grid, reach),
        init_density_ema(grid, reach),
        wider,
    ):
        np.testing.assert_array_equal(made.bounds, BOX)
    np.testing.assert_array_equal(watch(grid, reach).coarse.bounds, BOX)


@pytest.mark.slow
def test_cells_far_out_need_less_density_as_steps_through_them_are_longer() -> None:
    aabb = contraction.contracted_aabb(BOX)
    grid = make_full_grid((8, 8, 8), jnp.asarray(aabb), jnp.asarray(BOX))
    centres = cell_centres((8, 8, 8), grid.aabb)
    stretched = np.asarray(contraction.inverse_contraction_scale(centres, jnp.asarray(BOX)))
    kept = update_from_density(grid, lambda p: jnp.full(p.shape[:1], 0.5), 0.01, 0.02).occupied
    alone = stretched * 0.005 > -np.log(1 - 0.02)
    assert 0 < alone.mean() < 1
    np.testing.assert_array_equal(kept, dilate(jnp.asarray(alone)))
    # A cell of much density keeps the mean above the threshold, which then decides.
    for dense in (0.5, 1e5):
        probed = init_density_ema(grid, 1.0)

        def density(p: jax.Array, r: jax.Array, dense: float = dense) -> jax.Array:
            near = jnp.all(jnp.abs(p - jnp.mean(jnp.asarray(aabb), axis=0)[None]) < 0.1, axis=-1)
            return jnp.where(near, dense, 0.5)

        for turn in range(4 * UPDATE_PHASES):
            probed = update_occupancy(
                probed, jax.random.key(turn), density, 0.01, turn,
                decay=1.0, threshold=0.02, reach=1.0,
            )  # fmt: skip
        occupied = np.asarray(probed.occupied)
        if dense < 1.0:
            assert occupied.all()
        else:
            assert np.all(occupied[stretched > 4.5])
            assert np.sum(occupied[stretched < 3.5]) <= 8


def test_cameras_see_cells_where_they_are_in_space() -> None:
    """Looking along an axis from the middle, far cells are seen if they are within the picture."""
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
    shape = (16, 16, 16)
    grid = make_full_grid(shape, jnp.asarray(contraction.contracted_aabb(box)), jnp.asarray(box))
    pose = look_at(np.array([0.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    cameras = make_cameras(pose[None], 20, 20, 0.8)
    seen = np.asarray(mark_invisible_cells(init_density_ema(grid, 1.0), cameras, 1.0).occupied)
    positions = contraction.uncontract(cell_centres(shape, grid.aabb), jnp.asarray(box))
    pixels, depth = project(cameras, 0, np.asarray(positions, np.float64))
    within = (depth > 0) & np.all((pixels > 0) & (pixels < 20), axis=-1)
    assert np.all(seen[within]) and within.any()
    assert not np.any(seen[:7]) and 0.05 < seen.mean() < 0.5


@pytest.mark.slow
def test_in_ndc_all_cells_are_looked_for_with_pixels_as_wide_as_there() -> None:
    cameras = make_cameras(np.eye(4)[None], 40, 20, 1.0)
    slopes = (0.5 * 40 / float(cameras.focal[0, 0]), 0.5 * 20 / float(cameras.focal[0, 0]), 1.0)
    cameras = dataclasses.replace(cameras, ndc=slopes)
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
    grid = mark_invisible_cells(
        init_density_ema(make_full_grid((4, 4, 4), jnp.asarray(box)), 1.0), cameras, 1.0
    )
    assert np.all(grid.occupied) and np.all(np.asarray(grid.optical) == UNINITIALISED)
    rays = image_rays(cameras, 0, 0.0, 1.0)
    middle = rays.radii[10, 20] * 0.5 * rays.far[10, 20]
    assert float(grid.radius) == pytest.approx(float(middle), rel=0.05)
