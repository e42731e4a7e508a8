"""Interpolation in grids, against hat functions summed over every grid point and against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxrf.grids import resample_line, resample_plane, sample_line, sample_plane

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


def test_across_runs_along_the_width_and_down_along_the_height() -> None:
    plane = jnp.arange(3.0 * 5.0).reshape(3, 5, 1)
    corners = plane_at(plane, jnp.asarray([0.0, 1.0, 0.0, 1.0]), jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(corners[:, 0], [0.0, 4.0, 10.0, 14.0])


def test_grid_points_give_exactly_their_rows() -> None:
    line, plane = random_grid(9, 2), random_grid(5, 9, 2)
    at = jnp.linspace(0.0, 1.0, 9)
    np.testing.assert_allclose(line_at(jnp.asarray(line), at), line, atol=1e-6)
    for row in range(5):
        rows = plane_at(jnp.asarray(plane), at, jnp.full(9, row / 4))
        np.testing.assert_allclose(rows, plane[row], atol=1e-6)


def test_gradients_of_the_grid_are_the_weights_of_the_hat_functions() -> None:
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


def test_gradients_in_the_coordinates_are_the_slopes() -> None:
    line = jnp.asarray([[0.0], [1.0], [5.0]])
    slopes = jax.grad(lambda x: jnp.sum(sample_line(line, x)))(jnp.asarray([0.2, 0.7, 1.5]))
    np.testing.assert_allclose(slopes, [2.0, 8.0, 0.0], atol=1e-5)


# Resampling.


def test_resampling_to_the_same_grid_is_the_identity() -> None:
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


def test_upsampling_keeps_the_values_of_the_common_points() -> None:
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


def test_what_lies_beyond_the_old_grid_repeats_its_border() -> None:
    line = resample_line(jnp.asarray([[1.0], [2.0]]), 5, -1.0, 2.0)
    np.testing.assert_allclose(line[:, 0], [1.0, 1.0, 1.5, 2.0, 2.0], atol=1e-6)
