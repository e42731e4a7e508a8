"""Ternary layers and their gradients against the recipe in numpy and float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.fields.base import FieldContext
from jaxrf.fields.bitnerf import (
    MIN_SCALE,
    BitDense,
    BitNeRF,
    normalize,
    quantize_activations,
    quantize_weights,
)

# ---------------------------------------------------------------------------------------------
# The recipe, literally, with its W of shape (out, in)
# ---------------------------------------------------------------------------------------------


def quantize_weights_slowly(W: np.ndarray) -> tuple[np.ndarray, float]:
    scale = max(float(np.mean(np.abs(W))), MIN_SCALE)
    return np.clip(np.round(W / scale), -1, 1), scale


def quantize_activations_slowly(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.maximum(np.max(np.abs(X), axis=1, keepdims=True) / 127, MIN_SCALE)
    return np.clip(np.round(X / scales), -128, 127), scales


def normalize_slowly(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalized rows, and the Jacobian of each: (n, i, i)."""
    square = np.mean(x**2, axis=1) + 1e-6
    root, channels = np.sqrt(square), x.shape[1]
    outer = x[:, :, None] * x[:, None, :] / (channels * square[:, None, None])
    return x / root[:, None], (np.eye(channels) - outer) / root[:, None, None]


def bit_dense_slowly(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Output, and the gradients of sum(g * output) in input, kernel and bias."""
    normalized, jacobian = normalize_slowly(x)
    Xq, s_x = quantize_activations_slowly(normalized)
    Wq, s_w = quantize_weights_slowly(kernel.T)
    y = (Xq @ Wq.T) * s_x * s_w + bias
    dX = (g @ Wq) * s_w
    dW = g.T @ (Xq * s_x)
    return y, np.einsum("nij,ni->nj", jacobian, dX), dW.T, g.sum(axis=0)


@jax.jit
def apply_layer(x: jax.Array, kernel: jax.Array, bias: jax.Array, **more: jax.Array) -> jax.Array:
    out: Any = BitDense(kernel.shape[1]).apply(
        {"params": {"kernel": kernel, "bias": bias, **more}}, x
    )
    return out


@jax.jit
def layer_with_gradients(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, g: jax.Array
) -> tuple[jax.Array, ...]:
    y, pull_back = jax.vjp(apply_layer, x, kernel, bias)
    return (y, *pull_back(g))


def random_layer(
    rows: int, inside: int, outside: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Input, kernel, bias, and a gradient that comes back, in float32."""
    rng = np.random.default_rng(seed)
    shapes = (rows, inside), (inside, outside), (outside,), (rows, outside)
    x, kernel, bias, g = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, kernel, bias, g


# ---------------------------------------------------------------------------------------------
# Quantization
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-8, 1e-4, 1.0, 1e15])
def test_quantized_weights_equal_the_recipe(size: float) -> None:
    weights = size * random_layer(1, 17, 9)[1]
    ternary, scale = quantize_weights(jnp.asarray(weights))
    expected, expected_scale = quantize_weights_slowly(weights.astype(np.float64))
    np.testing.assert_array_equal(ternary, expected)
    assert float(scale) == pytest.approx(expected_scale, rel=1e-6)
    assert size < 1e-5 or set(np.unique(ternary)) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1.0, 1e30])
def test_quantized_activations_equal_the_recipe(size: float) -> None:
    x = size * random_layer(11, 33, 1)[0]
    integers, scales = quantize_activations(jnp.asarray(x))
    expected, expected_scales = quantize_activations_slowly(x.astype(np.float64))
    np.testing.assert_array_equal(integers, expected)
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-6)
    assert size < 1.0 or np.all(np.max(np.abs(integers), axis=1) == 127)
    error = np.abs(np.asarray(integers) * np.asarray(scales) - x)
    assert np.all(error <= 0.5001 * np.asarray(scales))


def test_quantized_activations_round_halves_toward_zero() -> None:
    """Whichever way scales are rounded: sums of integers often lie halfway."""
    halves = np.arange(-127, 128)[None] / 2.0
    for scale in np.random.default_rng(0).uniform(0.01, 100.0, 50):
        x = np.float32(scale) * np.concatenate([halves, [[127.0]]], axis=1).astype(np.float32)
        integers, _ = quantize_activations(jnp.asarray(x))
        np.testing.assert_array_equal(integers[:, :-1], np.trunc(halves))


def test_quantization_passes_gradients_straight_through_rounding_but_not_scales() -> None:
    x, kernel, _, _ = random_layer(5, 7, 7)
    g = random_layer(5, 7, 7, seed=1)

    def of_weights(w: jax.Array) -> jax.Array:
        ternary, scale = quantize_weights(w)
        return jnp.sum(ternary * scale * g[1])

    def of_activations(x: jax.Array) -> jax.Array:
        integers, scales = quantize_activations(x)
        return jnp.sum(integers * scales * g[0])

    np.testing.assert_allclose(jax.grad(of_weights)(kernel), g[1], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(of_activations)(x), g[0], rtol=1e-6)
    # An outlier is clipped; its gradient is not.
    kernel[2, 3] = 100.0
    np.testing.assert_allclose(jax.grad(of_weights)(kernel), g[1], rtol=1e-6)
    for function, value in ((quantize_weights, kernel), (quantize_activations, x)):
        scale_gradient = jax.grad(lambda v, f=function: jnp.sum(f(v)[1]))(jnp.asarray(value))
        np.testing.assert_array_equal(scale_gradient, np.zeros_like(value))


def test_quantized_ternary_weights_are_unchanged_but_their_scale_is_not() -> None:
    ternary, scale = quantize_weights(jnp.asarray(random_layer(1, 16, 8)[1]))
    again, other = quantize_weights(ternary * scale)
    np.testing.assert_array_equal(again, ternary)
    assert float(other) < 0.9 * float(scale)


def test_normalized_rows_have_a_mean_square_of_one_for_any_size() -> None:
    x = random_layer(4, 16, 1)[0] * np.array([[1e-2], [1.0], [1e6], [1e18]], np.float32)
    mean_square = np.mean(np.asarray(normalize(jnp.asarray(x))) ** 2, axis=1)
    np.testing.assert_allclose(mean_square, 1.0, rtol=0.02)


# ---------------------------------------------------------------------------------------------
# The layer
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5, 4), (31, 64, 16), (3, 1, 5), (4, 9, 1), (1, 1, 1)])
def test_bit_dense_and_its_gradients_equal_the_recipe(shape: tuple[int, int, int]) -> None:
    layer = random_layer(*shape)
    actual = layer_with_gradients(*(jnp.asarray(value) for value in layer))
    expected = bit_dense_slowly(*(value.astype(np.float64) for value in layer))
    for name, a, b in zip(("y", "dx", "dW", "db"), actual, expected, strict=True):
        assert a.shape == b.shape
        # Normalizing one channel leaves only its sign, so its gradient cancels to nearly 0.
        tolerance = 1e-5 * max(np.max(np.abs(b)), 0.1)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance, err_msg=name)


def test_bit_dense_products_are_sums_of_integers() -> None:
    """Exact, so that no order of summation and no lower precision changes a bit."""
    x, kernel, bias, _ = random_layer(8, 300, 5)
    actual = apply_layer(jnp.asarray(x), jnp.asarray(kernel), jnp.zeros_like(bias))
    integers, scales = jax.jit(lambda x: quantize_activations(normalize(x)))(x)
    ternary, scale = jax.jit(quantize_weights)(kernel)
    sums = np.asarray(actual, np.float64) / np.asarray(scales) / float(scale)
    np.testing.assert_allclose(sums, np.round(sums), atol=1e-3)
    np.testing.assert_array_equal(np.round(sums), np.asarray(integers) @ np.asarray(ternary))


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (2, 1, 3)])
def test_bit_dense_of_any_batch_shape_equals_its_rows_one_by_one(batch: tuple[int, ...]) -> None:
    rows = int(np.prod(batch))
    x, kernel, bias, _ = random_layer(rows, 6, 4)
    actual = apply_layer(jnp.asarray(x).reshape(*batch, 6), jnp.asarray(kernel), jnp.asarray(bias))
    assert actual.shape == (*batch, 4)
    for row, out in zip(x, np.asarray(actual).reshape(rows, 4), strict=True):
        # The scale of a row does not depend on the other rows.
        alone = apply_layer(jnp.asarray(row), jnp.asarray(kernel), jnp.asarray(bias))
        np.testing.assert_allclose(out, alone, rtol=1e-6)


ROWS = {
    "zeros": 0.0,
    "tiny": 1e-20,
    "small": 1e-5,
    "large": 1e6,
    "huge": 1e18,
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("weights", ["zeros", "tiny", "small", "large"])
def test_bit_dense_at_extremes_is_finite_and_equals_the_recipe(row: str, weights: str) -> None:
    x, kernel, bias, g = random_layer(4, 8, 3)
    x, kernel = x * np.float32(ROWS[row]), kernel * np.float32(ROWS[weights])
    layer = x, kernel, bias, g
    actual = layer_with_gradients(*(jnp.asarray(value) for value in layer))
    assert all(np.all(np.isfinite(leaf)) for leaf in actual)
    expected = bit_dense_slowly(*(value.astype(np.float64) for value in layer))
    for a, b in zip(actual, expected, strict=True):
        # The gradient of normalizing huge rows cancels up to rounding.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(np.max(np.abs(b)), 1e-6))
    if "zeros" in (row, weights):
        np.testing.assert_array_equal(actual[0], np.broadcast_to(bias, (4, 3)))


def test_bit_dense_with_one_outlier_zeroes_the_other_weights_without_nan() -> None:
    x, kernel, bias, g = random_layer(4, 8, 3)
    kernel[0, 0] = 1e9
    y, *gradients = layer_with_gradients(*(jnp.asarray(v) for v in (x, kernel, bias, g)))
    np.testing.assert_array_equal(y[:, 1:], np.broadcast_to(bias[1:], (4, 2)))
    assert all(np.all(np.isfinite(leaf)) for leaf in gradients)


def test_bit_dense_uses_a_scale_among_the_parameters() -> None:
    x, kernel, bias, _ = (jnp.asarray(value) for value in random_layer(9, 12, 7))
    ternary, scale = quantize_weights(kernel)
    y = apply_layer(x, kernel, bias)
    np.testing.assert_array_equal(apply_layer(x, ternary, bias, scale=scale), y)
    doubled = apply_layer(x, ternary, jnp.zeros_like(bias), scale=2.0 * scale)
    np.testing.assert_allclose(doubled, 2.0 * (y - bias[None]), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------

FIELD = BitNeRF(
    layers=2,
    width=8,
    skip=1,
    color_width=6,
    num_position_frequencies=2,
    num_direction_frequencies=1,
)


@jax.jit
def evaluate(params: Any, positions: jax.Array, directions: jax.Array) -> tuple[Any, Any]:
    context = FieldContext(positions[:, 0], jnp.zeros((2, 3)))
    density, latent = FIELD.density(params, positions, context)
    return density, FIELD.color(params, FIELD.features(params, latent), directions)


def random_params(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(FIELD.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype), shapes)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_bitnerf_has_finite_density_color_and_gradients(scale: float) -> None:
    rng = np.random.default_rng(1)
    positions = jnp.asarray(rng.uniform(-1, 1, (12, 3)), jnp.float32)
    directions = rng.normal(size=(12, 3))
    directions = jnp.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))
    params = jax.tree.map(lambda x: x * scale, random_params())
    density, color = evaluate(params, positions, directions.astype(jnp.float32))
    assert density.shape == (12,) and color.shape == (12, 3)
    assert np.all(np.isfinite(density)) and np.all(np.asarray(density) >= 0)
    assert np.all(np.asarray(color) >= 0) and np.all(np.asarray(color) <= 1)
    assert scale == 0.0 or np.std(np.asarray(color)) > 0

    def total(params: Any) -> jax.Array:
        density, color = evaluate(params, positions, directions.astype(jnp.float32))
        return jnp.sum(density) + jnp.sum(color)

    gradients = jax.jit(jax.grad(total))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_bitnerf_depends_on_its_ternary_weights_alone() -> None:
    """Weights that move within their third of the range change nothing but their common scale."""
    params = random_params()
    kernel = params["params"]["trunk_1"]["kernel"]
    ternary, scale = quantize_weights(kernel)
    quantized = params["params"] | {
        "trunk_1": params["params"]["trunk_1"] | {"kernel": ternary, "scale": scale}
    }
    positions = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (12, 3)), jnp.float32)
    for a, b in zip(
        evaluate(params, positions, positions),
        evaluate({"params": quantized}, positions, positions),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bit_dense_gain_scales_each_normalized_channel() -> None:
    rng = np.random.default_rng(3)
    x, kernel = (rng.normal(size=size).astype(np.float32) for size in ((6, 5), (5, 4)))
    gain = rng.uniform(0.5, 2.0, 5).astype(np.float32)
    layer = BitDense(4, gain=True, epsilon=1e-3)
    params = layer.init(jax.random.key(0), jnp.asarray(x))["params"]
    np.testing.assert_array_equal(params["gain"], np.ones(5))
    changed = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(4), "gain": jnp.asarray(gain)}
    actual = layer.apply({"params": changed}, jnp.asarray(x))
    normalized = gain * x / np.sqrt(np.mean(x.astype(np.float64) ** 2, -1, keepdims=True) + 1e-3)
    integers, rows = quantize_activations_slowly(normalized)
    ternary, scale = quantize_weights_slowly(kernel.T)
    np.testing.assert_allclose(actual, integers @ ternary.T * rows * scale, rtol=1e-4, atol=1e-5)
