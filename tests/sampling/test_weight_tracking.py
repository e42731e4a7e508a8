"""Recorded weights of cells against a list of all that were recorded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occupancy_cases import random_grid

from jaxrf.sampling.occupancy import POOLING, OccupancyGrid, lookup, max_pool_occupancy
from jaxrf.sampling.weight_tracking import (
    WEIGHT_DECAY_PER_STEP,
    WeightTrackedGrid,
    decayed_max_weights,
    record_weights,
    track_weights,
)

record = jax.jit(record_weights)
decayed = jax.jit(decayed_max_weights)


def random_tracked(dilation_cells: float = 2.0) -> WeightTrackedGrid:
    return track_weights(random_grid(), dilation_cells)


def test_track_weights_has_no_weights_and_the_pooled_grid() -> None:
    grid = random_grid(0.02)
    for dilation_cells in (0.0, 4.0, 9.0):
        tracked = track_weights(grid, dilation_cells)
        np.testing.assert_array_equal(tracked.occupied, grid.occupied)
        np.testing.assert_array_equal(tracked.aabb, grid.aabb)
        coarse = max_pool_occupancy(grid, POOLING, dilation_cells)
        np.testing.assert_array_equal(tracked.coarse.occupied, coarse.occupied)
        np.testing.assert_array_equal(tracked.coarse.aabb, coarse.aabb)
        assert tracked.max_weight_log.shape == (grid.occupied.size,) and int(tracked.step) == 0
        np.testing.assert_array_equal(decayed(tracked), 0.0)


def test_decayed_max_weights_equal_loop_over_all_recorded_weights() -> None:
    """A cell's weight is the largest of all it was given, each decayed by the steps since."""
    grid, rng = random_tracked(), np.random.default_rng(0)
    cells = grid.occupied.size
    records: list[list[tuple[int, float]]] = [[] for _ in range(cells)]
    for step in range(60):
        # Some cells get weights in every step, some rarely, some several at once, some never.
        slots = rng.integers(0, cells // 2 if step % 7 else cells - 5, 40)
        weights = rng.uniform(size=40) ** 4
        weights[:3] = [0.0, 1.0, 1e-38]
        grid = record(grid, jnp.asarray(slots, jnp.int32), jnp.asarray(weights, jnp.float32))
        for slot, weight in zip(slots, weights, strict=True):
            records[slot].append((step, weight))
        assert int(grid.step) == step + 1
        if step in (0, 1, 20, 59):
            expected = [
                max((w * WEIGHT_DECAY_PER_STEP ** (step - t) for t, w in d), default=0.0)
                for d in records
            ]
            np.testing.assert_allclose(decayed(grid), expected, rtol=1e-3, atol=1e-8)
    assert not records[-1] and float(decayed(grid)[-1]) == 0.0


def record_one(grid: WeightTrackedGrid, weight: float, slot: int = 3) -> WeightTrackedGrid:
    return record(grid, jnp.asarray([slot], jnp.int32), jnp.asarray([weight], jnp.float32))


@pytest.mark.parametrize("between", [0, 10, 25, 200])
def test_record_weights_replaces_a_decayed_weight_by_a_larger_one(between: int) -> None:
    grid = record_one(random_tracked(), 0.9)
    for _ in range(between):
        grid = record_one(grid, 1.0, slot=7)
    grid = record_one(grid, 0.5)
    decayed_weight = 0.9 * WEIGHT_DECAY_PER_STEP ** (between + 1)
    assert (decayed_weight > 0.5) == (between <= 10)
    assert float(decayed(grid)[3]) == pytest.approx(max(decayed_weight, 0.5), rel=1e-3)


def test_decayed_max_weights_are_accurate_after_many_steps() -> None:
    grid = dataclasses.replace(random_tracked(), step=jnp.asarray(200_000, jnp.int32))
    grid = record_one(record_one(grid, 0.05), 0.0, slot=7)
    assert float(decayed(grid)[3]) == pytest.approx(0.05 * WEIGHT_DECAY_PER_STEP, rel=2e-3)


def test_weight_tracked_grid_is_a_pytree_that_jit_accepts() -> None:
    grid = random_tracked()
    assert len(jax.tree.leaves(grid)) == 6
    again = jax.jit(lambda g: g)(grid)
    assert isinstance(again, WeightTrackedGrid) and isinstance(again.coarse, OccupancyGrid)
    positions = jnp.asarray(np.random.default_rng(5).uniform(0, 3, (6, 3)), jnp.float32)
    np.testing.assert_array_equal(lookup(grid, positions), lookup(random_grid(), positions))
