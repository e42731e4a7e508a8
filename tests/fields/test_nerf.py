"""NeRF's network against a forward pass in numpy with the same weights."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.fields.nerf import NeRF

FIELD = NeRF(layers=7, width=10, skip=5, color_width=6, position_octaves=3, direction_octaves=2)


def random_params(field: NeRF, seed: int = 0) -> Any:
    """Parameters of the right shapes out of numpy, biases included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype), shapes)


PARAMS = random_params(FIELD)


@jax.jit
def evaluate(params: Any, positions: jax.Array, directions: jax.Array) -> Any:
    density, latent = FIELD.density(params, positions, positions[:, 0])
    features = FIELD.features(params, latent)
    return density, features, FIELD.color(params, features, directions)


def encode_slowly(x: np.ndarray, octaves: int) -> list[float]:
    out = [float(v) for v in x]
    for octave in range(octaves):
        out += [math.sin(2**octave * float(v)) for v in x]
        out += [math.cos(2**octave * float(v)) for v in x]
    return out


def forward_slowly(
    field: NeRF, params: Any, position: np.ndarray, direction: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """NeRF's appendix A, one sample at a time in float64."""
    layers = params["params"]

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        kernel = np.asarray(layers[name]["kernel"], np.float64)
        return x @ kernel + np.asarray(layers[name]["bias"], np.float64)

    encoded = np.array(encode_slowly(position, field.position_octaves))
    hidden = encoded
    for index in range(field.layers):
        if index == field.skip:
            hidden = np.concatenate([encoded, hidden])
        hidden = np.maximum(dense(f"trunk_{index}", hidden), 0.0)
    density = math.log1p(math.exp(dense("density_head", hidden)[0] + field.density_bias))
    bottleneck = dense("bottleneck", hidden)
    seen = np.array(encode_slowly(direction, field.direction_octaves))
    view = np.maximum(dense("view", np.concatenate([bottleneck, seen])), 0.0)
    return density, bottleneck, 1.0 / (1.0 + np.exp(-dense("rgb_head", view)))


def random_inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return rng.uniform(-1, 1, (count, 3)).astype(np.float32), directions.astype(np.float32)


def test_network_equals_a_forward_pass_in_numpy() -> None:
    positions, directions = random_inputs(12)
    density, features, color = evaluate(PARAMS, jnp.asarray(positions), jnp.asarray(directions))
    assert density.shape == (12,) and features.shape == (12, 10) and color.shape == (12, 3)
    for i in range(12):
        slow = forward_slowly(FIELD, PARAMS, positions[i], directions[i])
        assert float(density[i]) == pytest.approx(slow[0], rel=1e-4)
        np.testing.assert_allclose(features[i], slow[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(color[i], slow[2], rtol=1e-4, atol=1e-6)


def test_original_network_has_as_many_parameters_as_the_paper_s() -> None:
    shapes = jax.eval_shape(NeRF().init, jax.random.key(0))
    # 8 x 256 with one skip, 63 and 27 inputs: the number of the authors' own network.
    assert sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) == 595_844
    kernels = {name: layer["kernel"].shape for name, layer in shapes["params"].items()}
    assert kernels["trunk_0"] == (63, 256)
    assert kernels["trunk_4"] == (256, 256)
    assert kernels["trunk_5"] == (63 + 256, 256)
    assert kernels["view"] == (256 + 27, 128)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_density_is_never_negative_and_colors_are_in_zero_to_one(scale: float) -> None:
    positions, directions = (jnp.asarray(x) for x in random_inputs(12))
    params = jax.tree.map(lambda x: x * scale, PARAMS)
    density, _, color = evaluate(params, positions * 10.0, directions)
    assert np.all(np.asarray(density) >= 0)
    assert np.all(np.isfinite(np.asarray(color)))
    assert np.all(np.asarray(color) >= 0) and np.all(np.asarray(color) <= 1)


def test_density_depends_neither_on_the_direction_nor_on_the_radius() -> None:
    positions, directions = (jnp.asarray(x) for x in random_inputs(12))
    density, _, color = evaluate(PARAMS, positions, directions)
    turned, _, other_color = evaluate(PARAMS, positions, -directions)
    np.testing.assert_array_equal(density, turned)
    assert np.max(np.abs(color - other_color)) > 1e-3
    wide, _ = FIELD.density(PARAMS, positions, jnp.full(12, 100.0))
    np.testing.assert_allclose(wide, density, rtol=1e-5)


def test_density_bias_is_added_before_the_softplus() -> None:
    positions = jnp.zeros((1, 3))
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    for bias in (0.0, -2.0, 3.0):
        field = dataclasses.replace(FIELD, density_bias=bias)
        density, _ = field.density(nothing, positions, jnp.zeros(1))
        assert float(density[0]) == pytest.approx(math.log1p(math.exp(bias)), rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_gradients_are_finite(scale: float) -> None:
    positions, directions = (jnp.asarray(x) for x in random_inputs(4))

    def total(params: Any, positions: jax.Array, directions: jax.Array) -> jax.Array:
        density, _, color = evaluate(params, positions, directions)
        return jnp.sum(density) + jnp.sum(color)

    params = jax.tree.map(lambda x: x * scale, PARAMS)
    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, positions, directions)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_fresh_network_lets_light_through_and_has_a_gradient() -> None:
    # This kind of key compiles much faster.
    params = jax.jit(FIELD.init)(jax.random.key(2, impl="rbg"))
    positions, directions = (jnp.asarray(x) for x in random_inputs(12))
    density, _, color = evaluate(params, positions, directions)
    assert np.all(np.asarray(density) > 0) and np.all(np.asarray(density) < 20)
    assert np.std(np.asarray(color)) > 0
