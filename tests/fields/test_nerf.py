"""NeRF's network against a forward pass in numpy with the same weights."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core import encodings
from jaxrf.core.rays import ConicalFrusta
from jaxrf.fields.base import FieldContext
from jaxrf.fields.nerf import NeRF

FIELD = NeRF(
    layers=7,
    width=10,
    skip=5,
    color_width=6,
    num_position_frequencies=3,
    num_direction_frequencies=2,
)


def random_params(field: NeRF, seed: int = 0) -> Any:
    """Random parameters out of numpy, biases included, of the shapes of fresh ones."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype), shapes)


PARAMS = random_params(FIELD)


def context_of(
    radii: Any, frusta: ConicalFrusta | None = None, noise: jax.Array | None = None
) -> FieldContext:
    """A context of these radii; the box does not matter to a NeRF."""
    return FieldContext(jnp.asarray(radii), jnp.zeros((2, 3)), frusta, noise=noise)


@jax.jit
def evaluate(params: Any, positions: jax.Array, directions: jax.Array) -> Any:
    density, latent = FIELD.density(params, positions, context_of(positions[:, 0]))
    features = FIELD.features(params, latent)
    return density, features, FIELD.color(params, features, directions)


def encode_slowly(x: np.ndarray, frequencies: int) -> list[float]:
    out = [float(v) for v in x]
    for power in range(frequencies):
        out += [math.sin(2**power * float(v)) for v in x]
        out += [math.cos(2**power * float(v)) for v in x]
    return out


def forward_slowly(
    field: NeRF, params: Any, position: np.ndarray, direction: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """NeRF's appendix A, one sample at a time in float64."""
    layers = params["params"]

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        kernel = np.asarray(layers[name]["kernel"], np.float64)
        return x @ kernel + np.asarray(layers[name]["bias"], np.float64)

    encoded = np.array(encode_slowly(position, field.num_position_frequencies))
    hidden = encoded
    for index in range(field.layers):
        if index == field.skip:
            hidden = np.concatenate([encoded, hidden])
        hidden = np.maximum(dense(f"trunk_{index}", hidden), 0.0)
    density = math.log1p(math.exp(dense("density_head", hidden)[0] + field.density_bias))
    bottleneck = dense("bottleneck", hidden)
    encoded_direction = np.array(encode_slowly(direction, field.num_direction_frequencies))
    view = np.maximum(dense("view", np.concatenate([bottleneck, encoded_direction])), 0.0)
    return density, bottleneck, 1.0 / (1.0 + np.exp(-dense("rgb_head", view)))


def random_inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return rng.uniform(-1, 1, (count, 3)).astype(np.float32), directions.astype(np.float32)


def test_nerf_equals_a_forward_pass_in_numpy() -> None:
    positions, directions = random_inputs(12)
    density, features, color = evaluate(PARAMS, jnp.asarray(positions), jnp.asarray(directions))
    assert density.shape == (12,) and features.shape == (12, 10) and color.shape == (12, 3)
    for i in range(12):
        slow = forward_slowly(FIELD, PARAMS, positions[i], directions[i])
        assert float(density[i]) == pytest.approx(slow[0], rel=1e-4)
        np.testing.assert_allclose(features[i], slow[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(color[i], slow[2], rtol=1e-4, atol=1e-6)


def test_default_network_has_as_many_parameters_as_the_original() -> None:
    shapes = jax.eval_shape(NeRF().init, jax.random.key(0))
    # 8 x 256 with one skip, 63 and 27 inputs: the number of the authors' own network.
    assert sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) == 595_844
    kernels = {name: layer["kernel"].shape for name, layer in shapes["params"].items()}
    assert kernels["trunk_0"] == (63, 256)
    assert kernels["trunk_4"] == (256, 256)
    assert kernels["trunk_5"] == (63 + 256, 256)
    assert kernels["view"] == (256 + 27, 128)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_density_is_not_negative_and_colors_are_in_zero_to_one(scale: float) -> None:
    positions, directions = (jnp.asarray(x) for x in random_inputs(12))
    params = jax.tree.map(lambda x: x * scale, PARAMS)
    density, _, color = evaluate(params, positions * 10.0, directions)
    assert np.all(np.asarray(density) >= 0)
    assert np.all(np.isfinite(np.asarray(color)))
    assert np.all(np.asarray(color) >= 0) and np.all(np.asarray(color) <= 1)


def test_density_does_not_depend_on_direction_or_radius() -> None:
    positions, directions = (jnp.asarray(x) for x in random_inputs(12))
    density, _, color = evaluate(PARAMS, positions, directions)
    turned, _, other_color = evaluate(PARAMS, positions, -directions)
    np.testing.assert_array_equal(density, turned)
    assert np.max(np.abs(color - other_color)) > 1e-3
    wide, _ = FIELD.density(PARAMS, positions, context_of(jnp.full(12, 100.0)))
    np.testing.assert_allclose(wide, density, rtol=1e-5)


def test_density_bias_is_added_before_the_softplus() -> None:
    positions = jnp.zeros((1, 3))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for bias in (0.0, -2.0, 3.0):
        field = dataclasses.replace(FIELD, density_bias=bias)
        density, _ = field.density(zeros, positions, context_of(jnp.zeros(1)))
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


def test_init_makes_a_translucent_network() -> None:
    # This kind of key compiles much faster.
    params = jax.jit(FIELD.init)(jax.random.key(2, impl="rbg"))
    positions, directions = (jnp.asarray(x) for x in random_inputs(12))
    density, _, color = evaluate(params, positions, directions)
    assert np.all(np.asarray(density) > 0) and np.all(np.asarray(density) < 20)
    assert np.std(np.asarray(color)) > 0


# Options.


def run_field(
    field: NeRF, params: Any, positions: np.ndarray, directions: np.ndarray, radii: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Density and color."""
    density, latent = field.density(params, jnp.asarray(positions), context_of(radii))
    features = field.features(params, latent)
    return density, field.color(params, features, jnp.asarray(directions))


def raw_slowly(field: NeRF, params: Any, encoded: np.ndarray) -> tuple[float, np.ndarray]:
    """Raw density and the trunk's output."""
    layers, hidden = params["params"], encoded
    for index in range(field.layers):
        layer = layers[f"trunk_{index}"]
        hidden = np.concatenate([encoded, hidden]) if index == field.skip else hidden
        kernel = np.asarray(layer["kernel"], np.float64)
        hidden = np.maximum(hidden @ kernel + np.asarray(layer["bias"], np.float64), 0.0)
    head = layers["density_head"]
    raw = hidden @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"], np.float64)
    return float(raw[0]), hidden


def test_integrated_encoding_fades_frequencies_finer_than_the_cone() -> None:
    field = dataclasses.replace(FIELD, encoding="integrated", layers=2)
    params = random_params(field)
    assert params["params"]["trunk_0"]["kernel"].shape == (2 * 3 * 3, 10)
    positions, directions = random_inputs(8)
    radii = np.array([0.0, 1e-6, 0.05, 0.1, 0.3, 1.0, 30.0, 1e15], np.float32)
    density, color = run_field(field, params, positions, directions, radii)
    assert np.all(np.isfinite(density)) and np.all(np.isfinite(color))
    for i in range(8):
        encoded = []
        for power in range(3):
            # A disc's variance along each axis is a quarter of its radius squared.
            fade = math.exp(-0.5 * 4**power * 0.25 * float(radii[i]) ** 2)
            for fn in (math.sin, math.cos):
                encoded += [fade * fn(2**power * float(x)) for x in positions[i]]
        raw, _ = raw_slowly(field, params, np.array(encoded))
        assert float(density[i]) == pytest.approx(math.log1p(math.exp(raw)), rel=1e-4)


def test_integrated_encoding_uses_the_frusta_of_the_context() -> None:
    field = dataclasses.replace(FIELD, encoding="integrated", layers=2)
    assert field.needs_intervals() and not FIELD.needs_intervals()
    params = random_params(field)
    positions, directions = random_inputs(8)
    directions = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    starts = np.linspace(0.0, 3.0, 8)
    frusta = ConicalFrusta(
        *(jnp.asarray(x, jnp.float32) for x in (directions, np.full(8, 0.1), starts, starts + 0.7))
    )
    density, _ = field.density(params, jnp.asarray(positions), context_of(jnp.zeros(8), frusta))
    mean, variance = encodings.conical_frustum_to_gaussian(jnp.asarray(positions), frusta)
    for i in range(8):
        encoded = []
        for power in range(3):
            fade = np.exp(-0.5 * 4**power * np.asarray(variance[i], np.float64))
            for fn in (np.sin, np.cos):
                encoded += [*(fade * fn(2**power * np.asarray(mean[i], np.float64)))]
        raw, _ = raw_slowly(field, params, np.array(encoded))
        assert float(density[i]) == pytest.approx(math.log1p(math.exp(raw)), rel=1e-4)


def test_integrated_encoding_gradients_are_finite_for_any_radius() -> None:
    field = dataclasses.replace(FIELD, encoding="integrated", layers=2)
    params = random_params(field)
    positions, directions = random_inputs(4)
    radii = jnp.asarray([0.0, 1e-20, 1.0, 1e15])

    def total(params: Any, positions: jax.Array, radii: jax.Array) -> jax.Array:
        density, latent = field.density(params, positions, context_of(radii))
        color = field.color(params, field.features(params, latent), jnp.asarray(directions))
        return jnp.sum(density) + jnp.sum(color)

    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, jnp.asarray(positions), radii)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_color_without_directions_is_a_layer_of_the_trunk() -> None:
    field = dataclasses.replace(FIELD, use_directions=False, layers=2)
    params = random_params(field)
    assert set(params["params"]) == {"trunk_0", "trunk_1", "density_head", "rgb_head"}
    positions, directions = random_inputs(8)
    density, color = run_field(field, params, positions, directions, np.zeros(8, np.float32))
    _, turned = run_field(field, params, positions, -directions, np.zeros(8, np.float32))
    np.testing.assert_array_equal(color, turned)
    head = params["params"]["rgb_head"]
    for i in range(8):
        encoded = np.array(encode_slowly(positions[i], field.num_position_frequencies))
        raw, hidden = raw_slowly(field, params, encoded)
        assert float(density[i]) == pytest.approx(math.log1p(math.exp(raw)), rel=1e-4)
        rgb = hidden @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
        np.testing.assert_allclose(color[i], 1.0 / (1.0 + np.exp(-rgb)), atol=1e-5)


def test_relu_density_is_the_positive_part_of_the_raw_density() -> None:
    field = dataclasses.replace(FIELD, activation="relu", layers=2, density_bias=-0.8)
    params = random_params(field)
    positions, _ = random_inputs(40)
    density, _ = field.density(params, jnp.asarray(positions), context_of(jnp.zeros(40)))
    expected = []
    for position in positions:
        encoded = np.array(encode_slowly(position, field.num_position_frequencies))
        expected.append(max(raw_slowly(field, params, encoded)[0] - 0.8, 0.0))
    np.testing.assert_allclose(density, expected, rtol=1e-4, atol=1e-5)
    assert 3 < np.sum(np.asarray(expected) == 0) < 37


def test_noise_of_the_context_is_added_to_the_raw_density() -> None:
    field = dataclasses.replace(FIELD, activation="relu", density_noise=0.5, density_bias=100.0)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    positions = jnp.zeros((4000, 3))

    def density_with(noise: jax.Array | None) -> np.ndarray:
        context = context_of(jnp.zeros(4000), noise=noise)
        return np.asarray(field.density(zeros, positions, context)[0])

    assert field.noise_std() == 0.5 and FIELD.noise_std() == 0.0
    np.testing.assert_array_equal(density_with(None), 100.0)
    first, again, other = (
        density_with(jax.random.normal(jax.random.key(k), (4000,))) - 100.0 for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.05
    for noise in (first, other):
        assert np.mean(noise) == pytest.approx(0.0, abs=0.03)
        assert np.std(noise) == pytest.approx(0.5, rel=0.05)
    # Colors have no noise.
    points, directions = (jnp.asarray(x) for x in random_inputs(5))
    colors = []
    for noise in (jnp.ones(5), None):
        latent = field.density(PARAMS, points, context_of(jnp.zeros(5), noise=noise))[1]
        colors.append(field.color(PARAMS, field.features(PARAMS, latent), directions))
    np.testing.assert_array_equal(*colors)
