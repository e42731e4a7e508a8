"""Activations: values, slopes at extremes, and colors that come back from saturation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrf.core.activations import MIN_SLOPE, clamped_exp, leaky_sigmoid

EXTREMES = np.array(
    [0.0, 1.0, -1.0, 14.9, 15.1, -14.9, -15.1, 79.0, 81.0, 1e30, -1e30, np.inf, -np.inf]
)


def test_clamped_exp_and_its_slope_at_extremes() -> None:
    x = jnp.asarray(EXTREMES, jnp.float32)
    expected = [math.exp(min(float(v), 80.0)) for v in x]
    np.testing.assert_allclose(clamped_exp(x), expected, rtol=1e-5)
    slopes = jax.grad(lambda v: jnp.sum(clamped_exp(v)))(x)
    expected = [math.exp(min(max(float(v), -15.0), 15.0)) for v in x]
    np.testing.assert_allclose(slopes, expected, rtol=1e-5)
    assert np.all(np.isfinite(jax.jvp(clamped_exp, (x,), (jnp.ones_like(x),))[1]))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_clamped_exp_accepts_any_batch_shape(batch: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=batch).astype(np.float32)
    assert clamped_exp(jnp.asarray(x)).shape == batch
    np.testing.assert_allclose(clamped_exp(jnp.asarray(x)), np.exp(x), rtol=1e-6)


def test_leaky_sigmoid_is_the_sigmoid_with_a_least_slope() -> None:
    x = jnp.asarray(EXTREMES, jnp.float32)
    expected = [1.0 / (1.0 + math.exp(-max(float(v), -700.0))) for v in x]
    np.testing.assert_allclose(leaky_sigmoid(x), expected, rtol=1e-5, atol=1e-30)
    slopes = jax.grad(lambda v: jnp.sum(leaky_sigmoid(v)))(x)
    np.testing.assert_allclose(slopes, [max(s * (1.0 - s), MIN_SLOPE) for s in expected], rtol=1e-4)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_leaky_sigmoid_accepts_any_batch_shape(batch: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=batch).astype(np.float32)
    assert leaky_sigmoid(jnp.asarray(x)).shape == batch
    np.testing.assert_allclose(leaky_sigmoid(jnp.asarray(x)), jax.nn.sigmoid(x), rtol=1e-6)


def test_a_saturated_color_is_pulled_back() -> None:
    optimizer = optax.adam(0.1)
    logit = jnp.float32(40.0)
    state = optimizer.init(logit)
    for _ in range(800):
        gradient = jax.grad(lambda x: (leaky_sigmoid(x) - 0.3) ** 2)(logit)
        update, state = optimizer.update(gradient, state)
        logit = optax.apply_updates(logit, update)
    np.testing.assert_allclose(jax.nn.sigmoid(logit), 0.3, atol=0.02)
