"""Densities on a regular grid against those of the field."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scenes
from ball_run import CENTER, RADIUS, make_run

from jaxrf.core.errors import InputError
from jaxrf.export import density_grid
from jaxrf.export.density_grid import find_occupied_box, sample_density
from jaxrf.models.networks import make_density_fn
from jaxrf.training import runs


def test_sample_density_evaluates_occupied_cells_only(ball: runs.Run) -> None:
    grid = ball.state.grid
    x, y, z = grid.occupied.shape
    occupied = np.zeros((x, y, z), bool)
    occupied[: x // 2] = True
    half = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
    run = dataclasses.replace(ball, state=dataclasses.replace(ball.state, grid=half))
    densities = sample_density(run, 16)
    middle = 0.5 * float(grid.aabb[0, 0] + grid.aabb[1, 0])
    dense = densities.density > 1.0
    positions = densities.origin + densities.spacing * np.argwhere(dense)
    assert len(positions) and positions[:, 0].max() <= middle + 1e-6
    # The values are those of the field.
    distance = np.linalg.norm(positions - CENTER, axis=-1)
    expected = 400.0 / (1.0 + np.exp(-(RADIUS - distance) / 0.01))
    np.testing.assert_allclose(densities.density[dense], expected, rtol=1e-3)


def test_sample_density_refuses_an_empty_grid(ball: runs.Run) -> None:
    grid = ball.state.grid
    empty = dataclasses.replace(grid, occupied=jnp.zeros(grid.occupied.shape, bool))
    run = dataclasses.replace(ball, state=dataclasses.replace(ball.state, grid=empty))
    with pytest.raises(InputError, match="no geometry"):
        sample_density(run, 16)


def test_sample_density_refuses_a_grid_beyond_the_memory(
    ball: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density_grid.memory, "free_bytes", lambda: 10_000)
    with pytest.raises(InputError, match="resolution 64"):
        sample_density(ball, 64)


def test_sample_density_of_contracted_space_covers_the_scene_box() -> None:
    run = make_run(scenes.tiny_nerf(contract=True))
    bounds = np.asarray(run.state.grid.bounds)
    box = find_occupied_box(run.state.grid)
    np.testing.assert_allclose(box, bounds)
    density = make_density_fn(run.stage.field, run.state.eval_params, run.state.grid, 0.01)
    densities = sample_density(run, 4)
    position = densities.origin + densities.spacing * np.array([[2, 2, 3]])
    expected = density(jnp.asarray(position, jnp.float32))
    np.testing.assert_allclose(densities.density[2, 2, 3], expected[0], rtol=1e-5)
