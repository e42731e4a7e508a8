"""RGB losses and masked means against loops."""

import math
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrf.core.errors import InputError
from jaxrf.training.config import LossConfig
from jaxrf.training.losses import (
    RGB_LOSSES,
    charbonnier_loss,
    huber_loss,
    make_rgb_loss_fn,
    masked_mean,
    mean_squared_error,
    squared_error,
)

SEEDS = st.integers(0, 2**20)

# Masked means.


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_mean_squared_error_equals_loop_over_masked_rays(fraction: float) -> None:
    rng = np.random.default_rng(0)
    rgb, target_rgb = rng.uniform(size=(2, 20, 3)).astype(np.float32)
    mask = rng.uniform(size=20) < fraction
    squares = [
        (float(rgb[r, c]) - float(target_rgb[r, c])) ** 2
        for r in range(20)
        for c in range(3)
        if mask[r]
    ]
    loss = mean_squared_error(jnp.asarray(rgb), jnp.asarray(target_rgb), jnp.asarray(mask))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_mean_squared_error_and_gradient_ignore_rays_outside_the_mask() -> None:
    target_rgb, mask = jnp.full((4, 3), 0.5), jnp.asarray([True, False, True, False])
    rgb = jnp.zeros((4, 3)).at[1].set(1e10).at[3].set(jnp.inf)
    loss, gradient = jax.value_and_grad(mean_squared_error)(rgb, target_rgb, mask)
    assert float(loss) == pytest.approx(0.25)
    np.testing.assert_allclose(gradient[jnp.asarray([0, 2])], -1.0 / 6.0, rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_mean_squared_error_of_an_empty_mask_is_zero_with_zero_gradient() -> None:
    loss, gradient = jax.value_and_grad(mean_squared_error)(
        jnp.ones((3, 3)), jnp.zeros((3, 3)), jnp.zeros(3, bool)
    )
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_masked_mean_equals_loop(fraction: float) -> None:
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=30).astype(np.float32), rng.uniform(size=30) < fraction
    chosen = [float(v) for v, u in zip(values, mask, strict=True) if u]
    mean, gradient = jax.value_and_grad(masked_mean)(jnp.asarray(values), jnp.asarray(mask))
    assert float(mean) == pytest.approx(sum(chosen) / max(len(chosen), 1), rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(gradient, mask / max(len(chosen), 1), rtol=1e-6)


def test_masked_mean_ignores_infinite_and_nan_values_outside_the_mask() -> None:
    values = jnp.asarray([1.0, jnp.inf, jnp.nan, 3.0])
    mask = jnp.asarray([True, False, False, True])
    mean, gradient = jax.value_and_grad(masked_mean)(values, mask)
    assert float(mean) == 2.0
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.0, 0.5])


# RGB losses.


def squared_slowly(difference: float) -> float:
    return difference**2


def huber_slowly(difference: float, delta: float) -> float:
    size = abs(difference)
    return difference**2 / 2 if size <= delta else delta * (size - delta / 2)


def charbonnier_slowly(difference: float, epsilon: float) -> float:
    return math.sqrt(difference**2 + epsilon**2)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", ["squared", "huber", "charbonnier"])
def test_make_rgb_loss_fn_equals_loop_over_channels(name: str, scale: float) -> None:
    slowly = {
        "squared": squared_slowly,
        "huber": partial(huber_slowly, delta=scale),
        "charbonnier": partial(charbonnier_slowly, epsilon=scale),
    }[name]
    rgb, target_rgb = np.random.default_rng(2).uniform(-1, 2, (2, 20, 3)).astype(np.float32)
    target_rgb[0] = rgb[0]
    loss = LossConfig(rgb_loss=name, huber_delta=scale, charbonnier_epsilon=scale)
    error = jax.jit(make_rgb_loss_fn(loss))(jnp.asarray(rgb), jnp.asarray(target_rgb))
    assert error.shape == (20,)
    expected = [
        sum(slowly(float(rgb[r, c]) - float(target_rgb[r, c])) for c in range(3)) / 3
        for r in range(20)
    ]
    np.testing.assert_allclose(error, expected, rtol=1e-5)


def test_every_name_that_the_option_accepts_has_a_function() -> None:
    option = typing.get_type_hints(LossConfig)["rgb_loss"]
    assert set(typing.get_args(option)) == set(RGB_LOSSES)


def test_make_rgb_loss_fn_refuses_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RGB_LOSSES, "huber")
    with pytest.raises(InputError, match=r"loss\.rgb_loss is 'huber': give one of squared, char"):
        make_rgb_loss_fn(LossConfig(rgb_loss="huber"))


DIFFERENCES = np.array([-1e3, -0.5, -0.1001, -0.1, -0.05, 0.0, 0.05, 0.1, 0.1001, 0.5, 1e3])


def rgb_loss_gradients(error: str, scale: float) -> np.ndarray:
    """Derivative of the error with respect to one channel at DIFFERENCES."""
    fn = make_rgb_loss_fn(LossConfig(rgb_loss=error, huber_delta=scale, charbonnier_epsilon=scale))
    rgb = jnp.asarray(np.stack([DIFFERENCES] * 3, axis=1), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(fn(x, jnp.zeros_like(x))))(rgb)
    return 3.0 * np.asarray(gradient)[:, 0]


def test_huber_loss_gradient_is_the_clipped_difference() -> None:
    np.testing.assert_allclose(
        rgb_loss_gradients("huber", 0.1), np.clip(DIFFERENCES, -0.1, 0.1), rtol=1e-5
    )


def test_charbonnier_loss_gradient_is_the_difference_over_the_error() -> None:
    expected = DIFFERENCES / np.sqrt(DIFFERENCES**2 + 0.01)
    np.testing.assert_allclose(rgb_loss_gradients("charbonnier", 0.1), expected, rtol=1e-5)


def test_squared_error_gradient_is_twice_the_difference() -> None:
    np.testing.assert_allclose(rgb_loss_gradients("squared", 0.1), 2.0 * DIFFERENCES, rtol=1e-5)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([1e-3, 0.1, 1.0]))
def test_errors_are_symmetric_and_huber_is_at_most_half_the_square(seed: int, scale: float) -> None:
    a, b = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 4, 3)), jnp.float32)
    for fn in (partial(huber_loss, delta=scale), partial(charbonnier_loss, epsilon=scale)):
        np.testing.assert_array_equal(fn(a, b), fn(b, a))
        assert np.all(np.asarray(fn(a, b)) >= np.asarray(fn(a, a)))
    half = 0.5 * np.asarray(squared_error(a, b))
    assert np.all(np.asarray(huber_loss(a, b, scale)) <= half * (1 + 1e-5))
