"""Encodings against loops, quadrature and the definition of the spherical harmonics."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrf.core.encodings import (
    conical_frustum_to_gaussian,
    fourier,
    integrated_fourier,
    spherical_harmonics,
)
from jaxrf.core.rays import ConicalFrusta

encode = jax.jit(fourier, static_argnames=("num_frequencies", "include_input"))
integrate = jax.jit(integrated_fourier, static_argnames="num_frequencies")
expand = jax.jit(spherical_harmonics, static_argnames="degree")

BATCHES = [(), (5,), (2, 3)]


def fourier_slowly(x: np.ndarray, num_frequencies: int, include_input: bool) -> list[float]:
    """The sines of all coordinates, then their cosines, octave by octave."""
    out = [float(v) for v in x] if include_input else []
    for octave in range(num_frequencies):
        for wave in (math.sin, math.cos):
            for v in x:
                out.append(wave(float(v) * 2**octave))
    return out


@pytest.mark.parametrize("include_input", [False, True])
@pytest.mark.parametrize("num_frequencies", [0, 1, 4])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_fourier_equals_loop_for_any_batch_shape(
    batch: tuple[int, ...], num_frequencies: int, include_input: bool
) -> None:
    x = np.random.default_rng(0).uniform(-2, 2, (*batch, 3)).astype(np.float32)
    encoded = encode(jnp.asarray(x), num_frequencies=num_frequencies, include_input=include_input)
    assert encoded.shape == (*batch, 3 * (2 * num_frequencies + include_input))
    for index in np.ndindex(batch):
        expected = fourier_slowly(x[index], num_frequencies, include_input)
        np.testing.assert_allclose(encoded[index], expected, atol=1e-5)


def test_fourier_frequency_scales_the_angles() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (7, 3)).astype(np.float32)
    result = fourier(jnp.asarray(x), 5, frequency=math.pi)
    np.testing.assert_array_equal(result[:, :3], x)
    slow = np.array([fourier_slowly(math.pi * row.astype(np.float64), 5, False) for row in x])
    np.testing.assert_allclose(result[:, 3:], slow, atol=2e-5)


def test_fourier_has_the_sizes_of_the_paper() -> None:
    assert encode(jnp.zeros(3), num_frequencies=10).shape == (63,)
    assert encode(jnp.zeros(3), num_frequencies=4).shape == (27,)


def test_fourier_gradient_equals_derivative_of_the_waves() -> None:
    x = jnp.asarray([0.0, 0.5, 1e3])
    jacobian = jax.jacobian(lambda x: fourier(x, 3, include_input=False))(x)
    assert np.all(np.isfinite(jacobian))
    for octave in range(3):
        frequency = 2.0**octave
        rows = jacobian[6 * octave : 6 * octave + 6]
        np.testing.assert_allclose(
            rows[:3], np.diag(frequency * np.cos(frequency * np.asarray(x))), atol=1e-4
        )
        np.testing.assert_allclose(
            rows[3:], np.diag(-frequency * np.sin(frequency * np.asarray(x))), atol=1e-4
        )


# The expectation over a Gaussian.


@pytest.mark.parametrize("num_frequencies", [0, 1, 4])
@pytest.mark.parametrize("batch", BATCHES)
def test_integrated_fourier_equals_mean_of_fourier_for_any_batch_shape(
    batch: tuple[int, ...], num_frequencies: int
) -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, (*batch, 3)).astype(np.float32)
    variance = rng.uniform(0.0, 0.3, (*batch, 3)).astype(np.float32)
    encoded = integrate(jnp.asarray(x), jnp.asarray(variance), num_frequencies=num_frequencies)
    assert encoded.shape == (*batch, 6 * num_frequencies)
    # Gauss-Hermite quadrature of a Gaussian: all coordinates may move together, as each number
    # depends on one of them.
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(60)
    node_weights /= np.sum(node_weights)
    for index in np.ndindex(batch):
        expected = np.zeros(6 * num_frequencies)
        for node, weight in zip(nodes, node_weights, strict=True):
            moved = x[index].astype(np.float64) + node * np.sqrt(variance[index], dtype=np.float64)
            expected += weight * np.array(
                fourier_slowly(moved, num_frequencies, include_input=False)
            )
        np.testing.assert_allclose(encoded[index], expected, atol=1e-5)


def test_integrated_fourier_equals_mean_over_random_points() -> None:
    rng = np.random.default_rng(2)
    x, variance = np.array([0.3, -1.1, 0.8], np.float32), np.float32(0.1)
    points = (x + math.sqrt(variance) * rng.normal(size=(40000, 3))).astype(np.float32)
    mean = np.mean(encode(jnp.asarray(points), num_frequencies=3, include_input=False), axis=0)
    # Four standard errors.
    np.testing.assert_allclose(
        integrate(jnp.asarray(x), jnp.full(3, variance), num_frequencies=3),
        mean,
        atol=4 / math.sqrt(40000),
    )


def test_integrated_fourier_of_zero_variance_equals_fourier() -> None:
    x = jnp.asarray(np.random.default_rng(3).uniform(-2, 2, (7, 3)), jnp.float32)
    integrated = integrate(x, jnp.zeros((7, 3)), num_frequencies=5)
    np.testing.assert_allclose(
        integrated, encode(x, num_frequencies=5, include_input=False), atol=1e-6
    )


@pytest.mark.parametrize("variance", [0.0, 1e-30, 1.0, 1e30])
def test_integrated_fourier_fades_out_with_finite_gradients(variance: float) -> None:
    x = jnp.asarray([0.5, -1.0, 1e3])

    def total(x: jax.Array, variance: jax.Array) -> jax.Array:
        return jnp.sum(integrated_fourier(x, variance, 10))

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(x, jnp.full(3, variance))
    assert np.isfinite(value) and all(np.all(np.isfinite(gradient)) for gradient in gradients)
    encoded = np.abs(integrate(x, jnp.full(3, variance), num_frequencies=10))
    if variance >= 1.0:
        assert np.all(encoded[6 * 3 :] < 1e-10)
    if variance == 1e30:
        np.testing.assert_array_equal(encoded, 0.0)


# Parts of cones.


@pytest.mark.parametrize(
    ("slope", "start", "end"), [(0.1, 2.0, 3.0), (0.5, 0.0, 1.0), (0.01, 1.0, 1.001), (0.3, 0.5, 4)]
)
def test_conical_frustum_has_mean_and_variance_of_its_points(
    slope: float, start: float, end: float
) -> None:
    rng, count = np.random.default_rng(4), 400_000
    axis = np.array([0.48, -0.6, 0.64])
    # Uniform in the volume, which grows with the square of the distance.
    t = np.cbrt(rng.uniform(start**3, end**3, count))
    aside, turn = slope * t * np.sqrt(rng.uniform(size=count)), rng.uniform(0, 2 * np.pi, count)
    across = np.cross(axis, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across)
    points = t[:, None] * axis + aside[:, None] * (
        np.cos(turn)[:, None] * across + np.sin(turn)[:, None] * np.cross(axis, across)
    )
    frusta = ConicalFrusta(*(jnp.asarray([v], jnp.float32) for v in (axis, slope, start, end)))
    middle = jnp.asarray(0.5 * (start + end) * axis, jnp.float32)[None]
    mean, variance = jax.jit(conical_frustum_to_gaussian)(middle, frusta)
    error = points.std(axis=0) / math.sqrt(count)
    np.testing.assert_allclose(mean[0], points.mean(axis=0), atol=4 * error.max() + 1e-6)
    np.testing.assert_allclose(variance[0], points.var(axis=0), rtol=0.01, atol=1e-9)


def test_conical_frustum_gradients_are_finite_at_extremes() -> None:
    starts = jnp.asarray([0.0, 0.0, 2.0, 2.0, 1e9, 0.0])
    ends = jnp.asarray([0.0, 1.0, 2.0, 1e10, 1e10, 1e-12])
    directions = jnp.tile(jnp.asarray([[0.0, 0.0, 1.0]]), (6, 1))

    def total(middles: jax.Array, slopes: jax.Array, starts: jax.Array, ends: jax.Array) -> Any:
        mean, variance = conical_frustum_to_gaussian(
            middles, ConicalFrusta(directions, slopes, starts, ends)
        )
        return jnp.sum(integrated_fourier(mean, variance, 10)), variance

    grads, variance = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(
        jnp.ones((6, 3)), jnp.full(6, 0.01), starts, ends
    )
    assert all(np.all(np.isfinite(gradient)) for gradient in grads)
    assert np.all(np.isfinite(variance)) and np.all(np.asarray(variance) >= 0)


# Spherical harmonics.


def harmonics_slowly(direction: np.ndarray, degree: int) -> list[float]:
    """From the derivatives of (t^2 - 1)^l (Rodrigues), with the phase (-1)^m."""
    x, y, z = (float(v) for v in direction)
    azimuth, sine = math.atan2(y, x), math.sqrt(max(1.0 - z * z, 0.0))
    out = []
    for band in range(degree):
        for order in range(-band, band + 1):
            m = abs(order)
            power = np.polynomial.Polynomial([-1.0, 0.0, 1.0]) ** band
            derivative = power.deriv(band + m) if band + m else power
            legendre = (-sine) ** m * derivative(z) / (2**band * math.factorial(band))
            ratio = math.factorial(band - m) / math.factorial(band + m)
            value = math.sqrt((2 * band + 1) / (4 * math.pi) * ratio) * legendre
            if order:
                wave = math.cos if order > 0 else math.sin
                value *= math.sqrt(2) * wave(m * azimuth)
            out.append(value)
    return out


def random_directions(rng: np.random.Generator, batch: tuple[int, ...]) -> np.ndarray:
    directions = rng.normal(size=(*batch, 3))
    return (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", BATCHES)
def test_harmonics_equal_their_definition_for_any_batch_shape(
    batch: tuple[int, ...], degree: int
) -> None:
    directions = random_directions(np.random.default_rng(4), batch)
    values = expand(jnp.asarray(directions), degree=degree)
    assert values.shape == (*batch, degree**2)
    for index in np.ndindex(batch):
        expected = harmonics_slowly(directions[index], degree)
        np.testing.assert_allclose(values[index], expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_harmonics_along_the_axes_equal_their_definition_with_finite_gradients(
    axis: int, sign: float
) -> None:
    direction = sign * np.eye(3, dtype=np.float32)[axis]
    values = expand(jnp.asarray(direction), degree=4)
    np.testing.assert_allclose(values, harmonics_slowly(direction, 4), atol=1e-6)
    jacobian = jax.jit(jax.jacobian(lambda d: spherical_harmonics(d, 4)))(jnp.asarray(direction))
    assert np.all(np.isfinite(jacobian))


def test_harmonics_are_orthonormal_over_the_sphere() -> None:
    # Exact for polynomials of six: Gauss-Legendre in z, even angles around it.
    nodes, node_weights = np.polynomial.legendre.leggauss(8)
    angles = (np.arange(16) + 0.5) * 2 * math.pi / 16
    sine = np.sqrt(1 - nodes**2)
    directions = np.stack(
        [
            np.outer(sine, np.cos(angles)),
            np.outer(sine, np.sin(angles)),
            np.outer(nodes, np.ones(16)),
        ],
        axis=-1,
    )
    values = np.asarray(expand(jnp.asarray(directions, jnp.float32), degree=4), np.float64)
    areas = node_weights * 2 * math.pi / 16
    products = np.einsum("a,abi,abj->ij", areas, values, values)
    np.testing.assert_allclose(products, np.eye(16), atol=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 2**20))
def test_harmonics_products_of_a_band_depend_only_on_the_angle(seed: int) -> None:
    # The addition theorem: sum_m Y_lm(a) Y_lm(b) = (2 l + 1) / (4 pi) P_l(a . b).
    a, b = random_directions(np.random.default_rng(seed), (2,))
    left, right = np.asarray(expand(jnp.stack([a, b]), degree=4), np.float64)
    cosine = float(np.dot(a.astype(np.float64), b))
    for band in range(4):
        terms = slice(band**2, (band + 1) ** 2)
        legendre = np.polynomial.Legendre.basis(band)(cosine)
        expected = (2 * band + 1) / (4 * math.pi) * legendre
        assert np.dot(left[terms], right[terms]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("degree", [0, 5])
def test_harmonics_reject_unsupported_degrees(degree: int) -> None:
    with pytest.raises(AssertionError):
        spherical_harmonics(jnp.asarray([0.0, 0.0, 1.0]), degree)
