"""Pixel errors and masked means against loops."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrf.training.config import LossConfig
from jaxrf.training.losses import (
    charbonnier_error,
    huber_error,
    masked_mean,
    mean_squared_error,
    squared_error,
)
from jaxrf.training.train import choose_error

SEEDS = st.integers(0, 2**20)

# The mean over what is used.


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_mean_squared_error_equals_loop_over_the_used_rays(share: float) -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.uniform(size=(2, 20, 3)).astype(np.float32)
    used = rng.uniform(size=20) < share
    squares = [
        (float(predicted[r, c]) - float(truth[r, c])) ** 2
        for r in range(20)
        for c in range(3)
        if used[r]
    ]
    loss = mean_squared_error(jnp.asarray(predicted), jnp.asarray(truth), jnp.asarray(used))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_unused_rays_change_neither_the_loss_nor_its_gradient() -> None:
    truth, used = jnp.full((4, 3), 0.5), jnp.asarray([True, False, True, False])
    wild = jnp.zeros((4, 3)).at[1].set(1e10).at[3].set(jnp.inf)
    loss, gradient = jax.value_and_grad(mean_squared_error)(wild, truth, used)
    assert float(loss) == pytest.approx(0.25)
    np.testing.assert_allclose(gradient[jnp.asarray([0, 2])], -1.0 / 6.0, rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_loss_is_zero_with_finite_gradient_where_no_ray_is_used() -> None:
    loss, gradient = jax.value_and_grad(mean_squared_error)(
        jnp.ones((3, 3)), jnp.zeros((3, 3)), jnp.zeros(3, bool)
    )
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_mean_of_used_equals_loop(share: float) -> None:
    rng = np.random.default_rng(1)
    values, used = rng.normal(size=30).astype(np.float32), rng.uniform(size=30) < share
    chosen = [float(v) for v, u in zip(values, used, strict=True) if u]
    mean, gradient = jax.value_and_grad(masked_mean)(jnp.asarray(values), jnp.asarray(used))
    assert float(mean) == pytest.approx(sum(chosen) / max(len(chosen), 1), rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(gradient, used / max(len(chosen), 1), rtol=1e-6)


def test_what_is_not_used_may_be_infinite_or_not_a_number() -> None:
    values = jnp.asarray([1.0, jnp.inf, jnp.nan, 3.0])
    used = jnp.asarray([True, False, False, True])
    mean, gradient = jax.value_and_grad(masked_mean)(values, used)
    assert float(mean) == 2.0
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.0, 0.5])


# Errors of a pixel's colour.


def squared_slowly(difference: float) -> float:
    return difference**2


def huber_slowly(difference: float, delta: float) -> float:
    size = abs(difference)
    return difference**2 / 2 if size <= delta else delta * (size - delta / 2)


def charbonnier_slowly(difference: float, epsilon: float) -> float:
    return math.sqrt(difference**2 + epsilon**2)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", ["squared", "huber", "charbonnier"])
def test_the_chosen_error_equals_loop_over_channels(name: str, scale: float) -> None:
    slowly = {
        "squared": squared_slowly,
        "huber": partial(huber_slowly, delta=scale),
        "charbonnier": partial(charbonnier_slowly, epsilon=scale),
    }[name]
    predicted, truth = np.random.default_rng(2).uniform(-1, 2, (2, 20, 3)).astype(np.float32)
    truth[0] = predicted[0]
    loss = LossConfig(error=name, huber_delta=scale, charbonnier_epsilon=scale)
    error = jax.jit(choose_error(loss))(jnp.asarray(predicted), jnp.asarray(truth))
    assert error.shape == (20,)
    expected = [
        sum(slowly(float(predicted[r, c]) - float(truth[r, c])) for c in range(3)) / 3
        for r in range(20)
    ]
    np.testing.assert_allclose(error, expected, rtol=1e-5)


DIFFERENCES = np.array([-1e3, -0.5, -0.1001, -0.1, -0.05, 0.0, 0.05, 0.1, 0.1001, 0.5, 1e3])


def slopes(error: str, scale: float) -> np.ndarray:
    """The derivative of the error of one channel at DIFFERENCES."""
    fn = choose_error(LossConfig(error=error, huber_delta=scale, charbonnier_epsilon=scale))
    predicted = jnp.asarray(np.stack([DIFFERENCES] * 3, axis=1), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(fn(x, jnp.zeros_like(x))))(predicted)
    return 3.0 * np.asarray(gradient)[:, 0]


def test_the_slope_of_huber_is_the_difference_clipped() -> None:
    np.testing.assert_allclose(slopes("huber", 0.1), np.clip(DIFFERENCES, -0.1, 0.1), rtol=1e-5)


def test_the_slope_of_charbonnier_is_the_difference_by_the_error_itself() -> None:
    expected = DIFFERENCES / np.sqrt(DIFFERENCES**2 + 0.01)
    np.testing.assert_allclose(slopes("charbonnier", 0.1), expected, rtol=1e-5)


def test_the_slope_of_the_squared_error_is_twice_the_difference() -> None:
    np.testing.assert_allclose(slopes("squared", 0.1), 2.0 * DIFFERENCES, rtol=1e-5)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([1e-3, 0.1, 1.0]))
def test_errors_are_symmetric_and_huber_is_no_larger_than_half_the_square(
    seed: int, scale: float
) -> None:
    a, b = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 4, 3)), jnp.float32)
    for fn in (partial(huber_error, delta=scale), partial(charbonnier_error, epsilon=scale)):
        np.testing.assert_array_equal(fn(a, b), fn(b, a))
        assert np.all(np.asarray(fn(a, b)) >= np.asarray(fn(a, a)))
    half = 0.5 * np.asarray(squared_error(a, b))
    assert np.all(np.asarray(huber_error(a, b, scale)) <= half * (1 + 1e-5))
