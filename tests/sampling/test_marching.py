"""Marching through occupancy grids against dense marches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occupancy_cases import BOX, CELL, SHAPE, contracted_case, look_up, random_grid, random_rays

from jaxrf.cameras import contraction
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays, clip_to_aabb, points_along
from jaxrf.sampling.marching import PROBES, MarchConfig, march_to_samples, ray_hits_occupied
from jaxrf.sampling.occupancy import (
    POOLING,
    OccupancyGrid,
    contract_positions,
    make_full_grid,
    max_pool_occupancy,
    s_to_t,
    to_s_rays,
)
from jaxrf.sampling.packed import PackedSamples


@functools.partial(jax.jit, static_argnames="blocks_per_wave")
def hit(grid: OccupancyGrid, rays: Rays, blocks_per_wave: int = 8192) -> jax.Array:
    return ray_hits_occupied(
        grid, max_pool_occupancy(grid, POOLING, 0.5 * PROBES), rays, blocks_per_wave
    )


# Cubic cells, so many that entire blocks of probes are skipped.
FINE = (40, 33, 37)
FINE_CELL = 0.09375


def fine_case(cells: int = 8, count: int = 400) -> tuple[OccupancyGrid, Rays]:
    """A few occupied cells, and rays of which many pass by one of them closely."""
    rng = np.random.default_rng(11)
    occupied = np.zeros(FINE, bool)
    targets = rng.integers(0, FINE, (cells, 3))
    occupied[tuple(targets.T)] = True
    aabb = np.stack([BOX[0], BOX[0] + FINE_CELL * np.array(FINE)])
    aims = BOX[0] + (targets[rng.integers(0, cells, count)] + 0.5) * FINE_CELL
    aims = aims + 0.6 * rng.normal(size=(count, 3)) * FINE_CELL
    grid = OccupancyGrid(jnp.asarray(occupied), jnp.asarray(aabb, jnp.float32))
    rays = random_rays(count, aims=aims)
    return grid, dataclasses.replace(rays, far=rays.far + 2.0)


def test_ray_hits_occupied_equals_a_dense_march_up_to_the_probe_spacing() -> None:
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
        for is_occupied in occupied[ray]:
            run = run + 1 if is_occupied else 0
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


@pytest.mark.parametrize("blocks_per_wave", [1, 7, 64, 1000])
def test_ray_hits_occupied_does_not_depend_on_blocks_per_wave(blocks_per_wave: int) -> None:
    grid, rays = fine_case()
    np.testing.assert_array_equal(hit(grid, rays, blocks_per_wave=blocks_per_wave), hit(grid, rays))


@pytest.mark.parametrize("fraction_occupied", [0.0, 0.001, 0.3])
def test_ray_hits_occupied_skips_only_blocks_without_hits(fraction_occupied: float) -> None:
    grid, rays = fine_case()
    occupied = np.random.default_rng(12).uniform(size=FINE) < fraction_occupied
    grid = dataclasses.replace(grid, occupied=grid.occupied | jnp.asarray(occupied))
    coarse = max_pool_occupancy(grid, POOLING, 0.5 * PROBES)
    assert fraction_occupied > 0.1 or np.mean(coarse.occupied) < 0.9
    full_coarse = dataclasses.replace(coarse, occupied=jnp.ones_like(coarse.occupied))
    probed = jax.jit(ray_hits_occupied)(grid, full_coarse, rays)
    np.testing.assert_array_equal(hit(grid, rays), probed)
    assert 50 < np.sum(probed) <= 400


def test_ray_hits_occupied_of_a_full_grid_are_the_rays_through_its_box() -> None:
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


def test_ray_hits_occupied_is_false_for_rays_that_end_early_or_miss() -> None:
    full, rays = make_full_grid(SHAPE, jnp.asarray(BOX)), random_rays(50)
    assert not np.any(hit(full, dataclasses.replace(rays, far=rays.near)))
    outside = dataclasses.replace(
        rays,
        origins=jnp.broadcast_to(jnp.asarray([0.0, 0.5, 9.0]), (50, 3)),
        directions=jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0]), (50, 3)),
    )
    assert not np.any(hit(full, outside))
    facing = dataclasses.replace(outside, directions=-outside.directions, far=rays.near + 20.0)
    assert np.all(hit(full, facing))


def dense_steps(
    grid: OccupancyGrid, rays: Rays, offset: np.ndarray, step: float
) -> list[list[tuple[float, float]]]:
    """For each ray, every step whose middle lies in an occupied cell, by loops."""
    steps_of_rays = []
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
        steps_of_rays.append(steps)
    return steps_of_rays


def marching_case(count: int) -> tuple[OccupancyGrid, OccupancyGrid, Rays, np.ndarray, float, int]:
    grid = random_grid(0.25)
    step = 0.6 * float(np.min(CELL))
    coarse = max_pool_occupancy(grid, 2, 0.5 * 4 * step / float(np.min(CELL)))
    rays = clip_to_aabb(random_rays(count), grid.aabb)
    offset = np.random.default_rng(9).uniform(size=count).astype(np.float32)
    diagonal = float(np.linalg.norm(BOX[1] - BOX[0]))
    return grid, coarse, rays, offset, step, int(diagonal / (4 * step)) + 2


def test_march_to_samples_equals_a_dense_march() -> None:
    grid, coarse, rays, offset, step, blocks = marching_case(60)
    config = MarchConfig(blocks, 4, 2000, 3000)
    samples, num_complete = jax.jit(march_to_samples, static_argnums=5)(
        grid, coarse, rays, jnp.asarray(offset), step, config
    )
    assert int(num_complete) == 60
    expected = dense_steps(grid, rays, offset, step)
    used = np.asarray(samples.mask)
    assert used.sum() == sum(len(steps) for steps in expected) > 50
    assert np.all(np.diff(np.asarray(samples.ray_indices)) >= 0)
    for ray, steps in enumerate(expected):
        of_ray = used & (np.asarray(samples.ray_indices) == ray)
        actual = np.stack([samples.t_starts, samples.t_ends], axis=-1)[of_ray]
        np.testing.assert_allclose(actual, np.reshape(steps, (-1, 2)), atol=1e-5)
    assert not np.any(np.asarray(samples.t_ends)[~used])


@pytest.mark.parametrize("block_budget, sample_budget", [(2000, 57), (31, 3000), (25, 40), (1, 1)])
def test_march_to_samples_has_every_sample_of_the_complete_rays(
    block_budget: int, sample_budget: int
) -> None:
    grid, coarse, rays, offset, step, blocks = marching_case(60)
    expected = dense_steps(grid, rays, offset, step)
    config = MarchConfig(blocks, 4, block_budget, sample_budget)
    samples, num_complete = march_to_samples(grid, coarse, rays, jnp.asarray(offset), step, config)
    num_complete = int(num_complete)
    assert 0 <= num_complete < 60
    used = np.asarray(samples.mask)
    for ray in range(num_complete):
        of_ray = used & (np.asarray(samples.ray_indices) == ray)
        assert of_ray.sum() == len(expected[ray])
    if block_budget == 2000:
        counts = np.cumsum([len(steps) for steps in expected])
        assert num_complete == int(np.argmax(counts > sample_budget))


def test_march_to_samples_of_rays_through_empty_space_is_empty() -> None:
    grid, coarse, rays, offset, step, blocks = marching_case(20)
    config = MarchConfig(blocks, 4, 100, 100)
    empty_rays = dataclasses.replace(rays, far=rays.near)
    samples, num_complete = march_to_samples(
        grid, coarse, empty_rays, jnp.asarray(offset), step, config
    )
    assert int(num_complete) == 20 and not np.any(samples.mask)
    empty = random_grid(0.0)
    samples, _ = march_to_samples(
        empty, max_pool_occupancy(empty, 2, 4.0), rays, jnp.asarray(offset), step, config
    )
    assert not np.any(samples.mask)


def test_march_to_samples_in_contracted_space_equals_a_dense_march() -> None:
    grid, rays, offset, step, dilation_cells = contracted_case(60)
    coarse = max_pool_occupancy(grid, POOLING, dilation_cells)
    diagonal = float(np.linalg.norm(BOX[1] - BOX[0]))
    blocks = int(contraction.MAX_MARCH_DIAGONALS * diagonal / (4 * step)) + 2
    assert blocks * 4 * step > float(jnp.max(rays.far))
    actual, num_complete = jax.jit(march_to_samples, static_argnums=5)(
        grid, coarse, rays, jnp.asarray(offset), step, MarchConfig(blocks, 4, 1 << 14, 1 << 14)
    )
    assert int(num_complete) == 60
    # All steps at once, without skipping any.
    index = jnp.arange(4 * blocks)[None]
    near, far = rays.near[:, None], rays.far[:, None]
    edges = [near + (index + shift - jnp.asarray(offset)[:, None]) * step for shift in (0, 1)]
    starts, stops = (jnp.clip(edge, near, far) for edge in edges)
    begins, ends = (s_to_t(grid, edge, rays.origins) for edge in (starts, stops))
    positions = points_along(rays, 0.5 * (begins + ends))
    inside = np.asarray((ends > begins) & look_up(grid, contract_positions(grid, positions)))
    expected = np.stack([begins, ends], axis=-1)[inside]
    used = np.asarray(actual.mask)
    assert 100 < used.sum() < 0.5 * inside.size
    np.testing.assert_array_equal(np.asarray(actual.ray_indices)[used], np.nonzero(inside)[0])
    marched = np.stack([actual.t_starts, actual.t_ends], axis=-1)[used]
    np.testing.assert_allclose(marched, expected, rtol=1e-4, atol=1e-5)
    # Some lie far behind the box.
    assert np.max(marched[:, 0]) > 10.0 * diagonal


# OccupancyGrid.march


def random_created(fraction_occupied: float = 0.25) -> OccupancyGrid:
    created = OccupancyGrid.create(BOX, SHAPE)
    return dataclasses.replace(created, occupied=random_grid(fraction_occupied).occupied)


def assert_samples_are_steps(
    samples: PackedSamples, expected: list[list[tuple[float, float]]]
) -> None:
    """Every step of every ray is a sample, rays in order, and other slots are empty."""
    used = np.asarray(samples.mask)
    assert used.sum() == sum(len(steps) for steps in expected)
    for ray, steps in enumerate(expected):
        of_ray = used & (np.asarray(samples.ray_indices) == ray)
        edges = np.stack([samples.t_starts, samples.t_ends], axis=-1)[of_ray]
        np.testing.assert_allclose(edges, np.reshape(steps, (-1, 2)), atol=1e-5)
    assert np.all(np.diff(np.asarray(samples.ray_indices)) >= 0)
    assert not np.any(np.asarray(samples.t_starts)[~used] + np.asarray(samples.t_ends)[~used])


# Steps shorter and longer than cells: each is looked up by itself.
@pytest.mark.parametrize("step", [0.09, 0.15, 0.7, 2.0])
def test_march_equals_a_dense_march_for_any_step_size(step: float) -> None:
    grid, rays = random_created(), random_rays(40)
    samples = grid.march(rays, step)
    clipped = clip_to_aabb(rays, grid.aabb)
    assert_samples_are_steps(samples, dense_steps(grid, clipped, np.zeros(40), step))
    assert samples.mask.sum() > 5


def test_march_with_a_key_offsets_each_ray() -> None:
    grid, rays, key = random_created(), random_rays(40), jax.random.key(3)
    samples = grid.march(rays, 0.15, key)
    offset = np.asarray(jax.random.uniform(key, (40,)))
    assert np.std(offset) > 0.1
    clipped = clip_to_aabb(rays, grid.aabb)
    assert_samples_are_steps(samples, dense_steps(grid, clipped, offset, 0.15))


@pytest.mark.parametrize("max_samples", [1, 57, 100, 100_000])
def test_march_drops_the_last_rays_where_samples_do_not_fit(max_samples: int) -> None:
    grid, rays = random_created(), random_rays(40)
    clipped = clip_to_aabb(rays, grid.aabb)
    expected = dense_steps(grid, clipped, np.zeros(40), 0.15)
    samples = grid.march(rays, 0.15, max_samples=max_samples)
    assert samples.mask.shape == (max_samples,)
    used = np.asarray(samples.mask)
    counts = np.bincount(np.asarray(samples.ray_indices)[used], minlength=40)
    lengths = np.array([len(steps) for steps in expected])
    # Some of the first rays with all of their samples, and none of the others.
    complete = int(np.argmax(counts != lengths)) if np.any(counts != lengths) else 40
    np.testing.assert_array_equal(counts[:complete], lengths[:complete])
    assert not np.any(counts[complete:]) and (max_samples < lengths.sum()) == (complete < 40)


def test_march_under_jit_needs_max_steps() -> None:
    grid, rays = random_created(), random_rays(20)
    with pytest.raises(InputError, match="max_steps is missing: under jit give"):
        jax.jit(lambda grid, rays: grid.march(rays, 0.15))(grid, rays)
    jitted = jax.jit(lambda grid, rays: grid.march(rays, 0.15, max_steps=40))(grid, rays)
    clipped = clip_to_aabb(rays, grid.aabb)
    assert_samples_are_steps(jitted, dense_steps(grid, clipped, np.zeros(20), 0.15))


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan")])
def test_march_rejects_steps_without_length(step: float) -> None:
    with pytest.raises(InputError, match=f"step_size is {step}: give a length above 0"):
        random_created().march(random_rays(3), step)


def test_march_in_contracted_space_equals_a_dense_march() -> None:
    grid, _, _, step, _ = contracted_case(1)
    rays = dataclasses.replace(random_rays(30), near=jnp.full((30,), 0.05))
    marched = to_s_rays(grid, rays)
    samples = grid.march(rays, step)
    expected = []
    for ray in range(30):
        near, far = float(marched.near[ray]), float(marched.far[ray])
        edges = np.clip(near + step * np.arange(int((far - near) / step) + 3), near, far)
        edges = edges[: np.argmax(edges >= far) + 1] if np.any(edges >= far) else edges
        origins = jnp.broadcast_to(rays.origins[ray], (1, 3))
        distances = np.asarray(s_to_t(grid, jnp.asarray(edges[None], jnp.float32), origins))[0]
        middles = 0.5 * (distances[1:] + distances[:-1])
        positions = (
            rays.origins[ray][None] + jnp.asarray(middles)[:, None] * rays.directions[ray][None]
        )
        occupied = np.asarray(look_up(grid, contract_positions(grid, positions)))
        expected.append(list(zip(distances[:-1][occupied], distances[1:][occupied], strict=True)))
    used = np.asarray(samples.mask)
    assert used.sum() == sum(len(steps) for steps in expected) > 20
    for ray, steps in enumerate(expected):
        of_ray = used & (np.asarray(samples.ray_indices) == ray)
        edges = np.stack([samples.t_starts, samples.t_ends], axis=-1)[of_ray]
        np.testing.assert_allclose(edges, np.reshape(steps, (-1, 2)), rtol=1e-3, atol=1e-4)
