"""Alpha masks against trilinear interpolation point by point, and against PyTorch's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxrf.sampling.alpha_mask import attach_mask, interpolates_above_zero
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.sampling.weight_tracking import track_weights

BOX = np.array([[-1.0, 0.0, 2.0], [1.0, 1.25, 5.0]], np.float32)
POINTS = np.random.default_rng(0).uniform(size=(5, 6, 4)) < 0.15
interpolates = jax.jit(interpolates_above_zero)


def interpolate_slowly(points: np.ndarray, aabb: np.ndarray, position: np.ndarray) -> float:
    """The sum of all points, each weighted by a product of three hat functions around it."""
    low, high = aabb.astype(np.float64)
    scaled = (position.astype(np.float64) - low) / (high - low) * (np.array(points.shape) - 1)
    total = 0.0
    for index in np.argwhere(points):
        total += float(np.prod(np.maximum(0.0, 1.0 - np.abs(scaled - index))))
    return total


def random_positions(count: int) -> np.ndarray:
    """In the box, and up to two cells outside of it."""
    unit = np.random.default_rng(1).uniform(-0.6, 1.6, (count, 3))
    return (BOX[0] + unit * (BOX[1] - BOX[0])).astype(np.float32)


def test_interpolates_above_zero_equals_slow_interpolation() -> None:
    positions = random_positions(2000)
    actual = interpolates(jnp.asarray(POINTS), jnp.asarray(BOX), jnp.asarray(positions))
    expected = [interpolate_slowly(POINTS, BOX, position) > 0.0 for position in positions]
    np.testing.assert_array_equal(actual, expected)
    assert 0.1 < np.mean(expected) < 0.9


def test_interpolates_above_zero_equals_grid_sample() -> None:
    positions = random_positions(20_000)
    volume = torch.tensor(POINTS.transpose(2, 1, 0)[None, None], dtype=torch.float64)
    unit = 2.0 * (positions.astype(np.float64) - BOX[0]) / (BOX[1] - BOX[0]) - 1.0
    grid = torch.tensor(unit).view(1, -1, 1, 1, 3)
    sampled = torch.nn.functional.grid_sample(volume, grid, align_corners=True).view(-1)
    actual = interpolates(jnp.asarray(POINTS), jnp.asarray(BOX), jnp.asarray(positions))
    np.testing.assert_array_equal(actual, sampled.numpy() > 0.0)


@pytest.mark.parametrize("rounding", [0.0, 1e-6, -1e-6])
def test_interpolates_above_zero_takes_the_points_of_a_plane_alone_on_it(rounding: float) -> None:
    """On faces, edges, corners, and planes in between: as exact numbers, whatever the rounding."""
    size = BOX[1] - BOX[0]
    axes = [np.arange(2 * n - 1) / (2 * n - 2) for n in POINTS.shape]
    exact = np.array(list(itertools.product(*axes))) * size.astype(np.float64) + BOX[0]
    expected = [interpolate_slowly(POINTS, BOX, position) > 1e-9 for position in exact]
    positions = jnp.asarray(exact + rounding * size, jnp.float32)
    actual = interpolates(jnp.asarray(POINTS), jnp.asarray(BOX), positions)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("batch", [(), (7,), (4, 3)])
def test_alpha_masked_grid_admits_by_its_mask_within_its_cells(batch: tuple[int, ...]) -> None:
    full = OccupancyGrid(jnp.ones((3, 2, 2), bool), jnp.asarray(BOX))
    wider = BOX + np.array([[-0.3], [0.3]], np.float32)
    grid = attach_mask(track_weights(full, 0.0), POINTS, wider)
    unit = np.random.default_rng(2).uniform(-0.3, 1.3, (*batch, 3))
    positions = (BOX[0] + unit * (BOX[1] - BOX[0])).astype(np.float32)
    actual = np.asarray(grid.lookup_for_images(jnp.asarray(positions)))
    assert actual.shape == batch
    for index in np.ndindex(batch):
        inside = bool(np.all((positions[index] > BOX[0]) & (positions[index] < BOX[1])))
        masked = interpolate_slowly(POINTS, wider, positions[index]) > 0.0
        assert bool(actual[index]) == (inside and masked)
