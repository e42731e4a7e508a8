"""Lenses: there and back over whole pictures, against loops in numpy, and at extremes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.cameras import lenses
from jaxrf.cameras.lenses import (
    COEFFICIENTS,
    Lens,
    direction_to_point,
    distort,
    point_to_direction,
    undistort,
)

# Family, coefficients, width, height, focal lengths, principal point.
CAMERAS: dict[str, tuple[Lens, list[float], int, int, tuple[float, float], tuple[float, float]]] = {
    "simple pinhole": ("perspective", [0.0] * 8, 640, 480, (500.0, 500.0), (320.0, 240.0)),
    "simple radial": (
        "perspective", [-0.03, 0, 0, 0, 0, 0, 0, 0], 4032, 3024, (3260.5, 3260.5), (2016.0, 1512.0),
    ),
    "radial": (
        "perspective", [0.12, -0.2, 0, 0, 0, 0, 0, 0], 800, 600, (700.0, 700.0), (401.0, 298.0),
    ),
    "opencv": (
        "perspective", [0.0578421, -0.0805099, 0, 0, 0, 0, -0.000980296, 0.00015575],
        1080, 1920, (1375.52, 1374.49), (554.558, 965.268),
    ),
    "full opencv": (
        "perspective", [1.5, -0.4, 0.02, 1.45, -0.1, 0.01, 0.001, -0.002],
        1280, 720, (900.0, 910.0), (650.0, 350.0),
    ),
    "opencv fisheye": (
        "fisheye", [-0.02, 0.006, -0.003, 0.0004, 0, 0, 0, 0],
        1000, 1000, (320.0, 321.0), (498.0, 503.0),
    ),
    "simple radial fisheye": (
        "fisheye", [0.03, 0, 0, 0, 0, 0, 0, 0], 1200, 800, (500.0, 500.0), (600.0, 400.0),
    ),
    "thin prism fisheye": (
        "fisheye", [-0.05, 0.01, -0.002, 0.0002, 0.0005, -0.0004, 0.0006, 0.0002],
        1500, 1000, (600.0, 605.0), (740.0, 510.0),
    ),
    "fov": ("fov", [0.9], 640, 512, (280.0, 281.0), (318.0, 250.0)),
    "fov that bends nothing": ("fov", [0.0], 640, 512, (580.0, 581.0), (318.0, 250.0)),
}  # fmt: skip
each_camera = pytest.mark.parametrize("name", list(CAMERAS))


def picture_points(name: str, dtype: Any, side: int = 60) -> tuple[Lens, Any, Any, np.ndarray]:
    """Lens, coefficients and image points of pixel centers all over a picture, and the focal."""
    lens, numbers, width, height, focal, middle = CAMERAS[name]
    columns, rows = np.meshgrid(
        np.linspace(0.5, width - 0.5, side), np.linspace(0.5, height - 0.5, side)
    )
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    points = (pixels - np.array(middle)) / np.array(focal)
    coefficients = np.broadcast_to(np.array(numbers), (len(points), len(numbers)))
    return lens, jnp.asarray(coefficients, dtype), jnp.asarray(points, dtype), np.array(focal)


@each_camera
def test_distort_inverts_undistort(name: str) -> None:
    lens, coefficients, points, focal = picture_points(name, jnp.float32)
    rays = jax.jit(undistort, static_argnums=0)(lens, coefficients, points)
    back = np.asarray(distort(lens, coefficients, rays), np.float64)
    assert np.max(np.abs(back - np.asarray(points, np.float64)) * focal) < 1e-3
    with jax.enable_x64(True):
        lens, coefficients, points, focal = picture_points(name, jnp.float64)
        exact = undistort(lens, coefficients, points)
        back = distort(lens, coefficients, exact)
        assert np.max(np.abs(np.asarray(back - points)) * focal) < 1e-8
    np.testing.assert_allclose(rays, exact, rtol=2e-6, atol=2e-6)


@each_camera
def test_undistort_inverts_distort(name: str) -> None:
    """The solution that is found is the ray's own, not another one that looks the same."""
    with jax.enable_x64(True):
        lens, coefficients, points, _ = picture_points(name, jnp.float64)
        rays = undistort(lens, coefficients, points)
        again = undistort(lens, coefficients, distort(lens, coefficients, 0.98 * rays))
        np.testing.assert_allclose(again, 0.98 * rays, atol=1e-9)


def distort_slowly(lens: Lens, k: list[float], x: float, y: float) -> tuple[float, float]:
    r = (x * x + y * y) ** 0.5
    if lens == "fov":
        if k[0] == 0 or r == 0:
            return x, y
        bent = np.arctan(2 * r * np.tan(k[0] / 2)) / k[0]
        return x * bent / r, y * bent / r
    if lens == "perspective":
        k1, k2, k3, k4, k5, k6, p1, p2 = k
        radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
        sx1 = sy1 = 0.0
    else:
        k1, k2, k3, k4, p1, p2, sx1, sy1 = k
        radial = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6 + k4 * r**8
    return (
        x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2) + sx1 * r**2,
        y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y + sy1 * r**2,
    )


@each_camera
def test_distort_equals_its_formulas(name: str) -> None:
    lens, numbers, *_ = CAMERAS[name]
    _, coefficients, points, _ = picture_points(name, jnp.float32, 12)
    expected = [distort_slowly(lens, numbers, *point) for point in np.asarray(points, np.float64)]
    np.testing.assert_allclose(distort(lens, coefficients, points), expected, atol=1e-5)
    wide = (np.asarray(a, np.float64) for a in (coefficients, points))
    np.testing.assert_allclose(distort(lens, *wide, xp=np), expected, atol=1e-6)


@pytest.mark.parametrize("lens", list(COEFFICIENTS))
def test_point_to_direction_has_unit_length_and_an_inverse(lens: Lens) -> None:
    points = np.random.default_rng(0).normal(0, 0.7, (200, 2))
    points[:2] = [[0.0, 0.0], [1e-9, 0.0]]
    directions = np.asarray(point_to_direction(lens, jnp.asarray(points, jnp.float32)))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(directions[0], [0.0, 0.0, 1.0])
    back = direction_to_point(lens, 3.0 * directions.astype(np.float64))
    np.testing.assert_allclose(back, points, atol=3e-6)


def test_fisheye_directions_beyond_90_degrees() -> None:
    direction = np.asarray(point_to_direction("fisheye", jnp.asarray([2.0, 0.0])))
    np.testing.assert_allclose(direction, [np.sin(2.0), 0.0, np.cos(2.0)], atol=1e-6)
    assert direction[2] < 0


@each_camera
def test_undistort_is_finite_far_outside_the_image(name: str) -> None:
    lens, coefficients, _, _ = picture_points(name, jnp.float32, 4)
    wild = jnp.asarray(np.random.default_rng(1).normal(0, 50.0, (16, 2)), jnp.float32)

    def total(coefficients: jax.Array, wild: jax.Array) -> jax.Array:
        return jnp.sum(point_to_direction(lens, undistort(lens, coefficients, wild)))

    values, grads = jax.value_and_grad(total, (0, 1))(coefficients, jnp.zeros((16, 2)))
    assert np.isfinite(values) and all(np.all(np.isfinite(g)) for g in grads)
    assert np.isfinite(total(coefficients, wild))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("lens", list(COEFFICIENTS))
def test_any_batch_shape(lens: Lens, batch: tuple[int, ...]) -> None:
    coefficients = jnp.full((*batch, len(COEFFICIENTS[lens])), 0.01)
    seen = jnp.full((*batch, 2), 0.3)
    assert undistort(lens, coefficients, seen).shape == (*batch, 2)
    assert point_to_direction(lens, seen).shape == (*batch, 3)
    assert lenses.distort(lens, coefficients, seen).shape == (*batch, 2)


def test_undistort_in_numpy_agrees_with_undistort() -> None:
    coefficients = np.tile([0.1, -0.02, 0.0, 0.0, 0.0, 0.0, 1e-3, 2e-3], (30, 1))
    points = np.random.default_rng(2).uniform(-0.6, 0.6, (30, 2))
    expected = lenses.undistort("perspective", jnp.asarray(coefficients), jnp.asarray(points))
    found = lenses.undistort_in_numpy("perspective", coefficients, points)
    np.testing.assert_allclose(found, expected, atol=1e-5)
