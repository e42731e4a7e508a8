"""Hash grid: density and color against a forward pass in numpy, and the clamped exponential."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core import encodings, hash_grids
from jaxrf.core.rays import Multisamples
from jaxrf.fields.base import FieldContext
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.sampling.occupancy import make_full_grid

# Nothing is cubic, so that no two axes can be exchanged unnoticed.
BOX = np.array([[-1.0, -2.0, 0.5], [1.5, 1.0, 1.7]], np.float32)
FIELD = HashGrid(
    num_levels=3,
    features_per_level=2,
    base_resolution=3,
    max_resolution=9,
    log2_hashmap_size=7,
    width=6,
    density_layers=2,
    color_layers=1,
    feature_dim=4,
    num_sh_bands=2,
    density_shift=-0.5,
    density_scale=3.0,
)


def random_params(field: HashGrid, seed: int = 0) -> Any:
    """Random parameters out of numpy, of the shapes of fresh ones."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.7, s.shape), s.dtype), shapes)


PARAMS = random_params(FIELD)


def context_of(positions: jax.Array, aabb: Any = BOX) -> FieldContext:
    """Rays without width in a box."""
    return FieldContext(jnp.zeros_like(positions[:, 0]), jnp.asarray(aabb, positions.dtype))


@jax.jit
def evaluate(params: Any, positions: jax.Array, directions: jax.Array, aabb: Any = BOX) -> Any:
    density, latent = FIELD.density(params, positions, context_of(positions, aabb))
    features = FIELD.features(params, latent)
    return density, features, FIELD.color(params, features, directions)


def random_inputs(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    positions = BOX[0] + rng.uniform(0, 1, (count, 3)) * (BOX[1] - BOX[0])
    return positions.astype(np.float32), directions.astype(np.float32)


def forward_slowly(network: Any, x: np.ndarray) -> np.ndarray:
    """Layers without biases, ReLUs in between, in float64."""
    layers = network["params"]
    for index in range(len(layers)):
        assert set(layers[f"Dense_{index}"]) == {"kernel"}
        x = x @ np.asarray(layers[f"Dense_{index}"]["kernel"], np.float64)
        x = np.maximum(x, 0.0) if index + 1 < len(layers) else x
    return x


def evaluate_slowly(
    params: Any, positions: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unit = (positions - BOX[0]) / (BOX[1] - BOX[0])
    encoded = hash_grids.sample_hash_grid(params["table"], jnp.asarray(unit), FIELD.plan())
    out = forward_slowly(params["density_mlp"], np.asarray(encoded, np.float64))
    harmonics = np.asarray(encodings.spherical_harmonics(jnp.asarray(directions), 2))
    raw = forward_slowly(params["color_mlp"], np.concatenate([out[:, 1:], harmonics], axis=-1))
    return 3.0 * np.exp(out[:, 0] - 0.5), out[:, 1:], 1.0 / (1.0 + np.exp(-raw))


def test_hashgrid_equals_a_forward_pass_in_numpy() -> None:
    positions, directions = random_inputs()
    outputs = evaluate(PARAMS, jnp.asarray(positions), jnp.asarray(directions))
    assert [value.shape for value in outputs] == [(12,), (12, 4), (12, 3)]
    for value, expected in zip(
        outputs, evaluate_slowly(PARAMS, positions, directions), strict=True
    ):
        assert np.std(expected) > 0.01
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_hashgrid_in_float64_equals_float32() -> None:
    positions, directions = random_inputs()
    narrow = evaluate(PARAMS, jnp.asarray(positions), jnp.asarray(directions))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), PARAMS)
        exact = evaluate(wide, *(jnp.asarray(x, jnp.float64) for x in (positions, directions)))
        assert all(value.dtype == jnp.float64 for value in exact)
    for value, expected in zip(narrow, exact, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_density_is_zero_outside_the_box_but_not_on_its_faces() -> None:
    middle, unit_box = BOX.mean(axis=0), np.array([[0.0] * 3, [1.0] * 3], np.float32)
    outside = []
    for axis in range(3):
        for corner, sign in zip(BOX, (-1.0, 1.0), strict=True):
            for distance in (1e-3, 1.0, 1e6, np.inf):
                position = middle.copy()
                position[axis] = corner[axis] + sign * distance
                outside.append(position)
    up = jnp.asarray([[0.0, 0.0, 1.0]])
    outside_density, _, color = evaluate(
        PARAMS, jnp.asarray(np.stack(outside)), jnp.tile(up, (24, 1))
    )
    np.testing.assert_array_equal(outside_density, 0.0)
    assert np.all((np.asarray(color) >= 0) & (np.asarray(color) <= 1))
    faces = np.array([*np.ndindex(2, 2, 2), [0.5, 0.5, 0.0], [1.0, 0.5, 0.5]], np.float32)
    on_faces, _, _ = evaluate(PARAMS, jnp.asarray(faces), jnp.tile(up, (10, 1)), unit_box)
    assert np.all(np.asarray(on_faces) > 0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e8])
def test_density_and_gradients_are_finite_for_parameters_of_any_size(scale: float) -> None:
    positions, directions = random_inputs()
    positions[:4] = [*BOX, (9.0, 9.0, 9.0), (0.0, 0.0, 1.0)]
    params = jax.tree.map(lambda x: x * scale, PARAMS)

    @jax.jit
    def total(params: Any, positions: jax.Array, directions: jax.Array) -> Any:
        density, _, color = evaluate(params, positions, directions)
        # As light is absorbed, however much density there is.
        return jnp.sum(jnp.exp(-0.1 * density)) + jnp.sum(color), density

    grads, density = jax.grad(total, argnums=(0, 1), has_aux=True)(
        params, jnp.asarray(positions), jnp.asarray(directions)
    )
    assert np.all(np.asarray(density) >= 0) and np.all(np.isfinite(density))
    if scale <= 1.0:
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
        outside = np.asarray(grads[1])[2]
        np.testing.assert_array_equal(outside, 0.0)


def test_density_outside_the_box_has_no_gradient() -> None:
    outside = jnp.full((1, 3), 50.0)
    gradients = jax.grad(lambda p: FIELD.density(p, outside, context_of(outside))[0][0])(PARAMS)
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(leaf, 0.0)


def test_init_has_the_documented_shapes_and_range() -> None:
    # This kind of key compiles much faster.
    params = jax.jit(FIELD.init)(jax.random.key(1, impl="rbg"))
    table = np.asarray(params["table"])
    # 3, 5 and 9 cells: 4^3 corners, and twice the 128 rows that are allowed.
    assert table.shape == (64 + 128 + 128, 2)
    assert np.all(np.abs(table) <= 1e-4) and np.std(table) == pytest.approx(1e-4 / 3**0.5, rel=0.1)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["density_mlp"]["params"] == {
        "Dense_0": {"kernel": (6, 6)},
        "Dense_1": {"kernel": (6, 6)},
        "Dense_2": {"kernel": (6, 5)},
    }
    assert shapes["color_mlp"]["params"] == {
        "Dense_0": {"kernel": (4 + 4, 6)},
        "Dense_1": {"kernel": (6, 3)},
    }
    positions, directions = (jnp.asarray(x) for x in random_inputs())
    density, _, _ = evaluate(params, positions, directions)
    # Nearly the same everywhere, as the table is nearly zero.
    np.testing.assert_allclose(density, 3.0 * math.exp(-0.5), rtol=1e-2)


def test_default_table_has_about_twelve_million_features() -> None:
    shapes = jax.eval_shape(HashGrid().init, jax.random.key(0))
    rows, side = 0, 16.0
    for _ in range(16):
        rows += min((math.floor(side + 1e-6) + 1) ** 3, 2**19)
        side *= 128.0 ** (1 / 15)
    assert shapes["table"].shape == (rows, 2)
    assert 1.1e7 < 2 * rows < 1.3e7
    assert dataclasses.replace(HashGrid(), log2_hashmap_size=10).plan().starts[-1] == 16 * 1024


# Zip-NeRF's options.


def cone_context(positions: jax.Array, count: int) -> FieldContext:
    """Multisamples around positions, of random widths."""
    rng = np.random.default_rng(7)
    offsets = rng.normal(0.0, 0.1, (len(positions), count, 3))
    points = Multisamples(
        positions[:, None] + jnp.asarray(offsets, jnp.float32),
        jnp.asarray(rng.uniform(0.0, 0.2, (len(positions), count)), jnp.float32),
    )
    radii = jnp.asarray(rng.uniform(0.0, 0.4, len(positions)), jnp.float32)
    return context_of(positions)._replace(radii=radii, multisamples=points)


@pytest.mark.parametrize("downweight", [False, True])
def test_encoding_of_multisamples_is_the_mean_of_their_weighted_features(downweight: bool) -> None:
    field = dataclasses.replace(FIELD, multisamples=4, downweight_levels=downweight)
    positions = jnp.asarray(np.random.default_rng(8).uniform(BOX[0], BOX[1], (9, 3)), jnp.float32)
    context = cone_context(positions, 4)
    plan, table = field.plan(), PARAMS["table"]
    encoded, inside = field.encode(table, positions, plan, context)
    assert np.all(inside)
    assert context.multisamples is not None
    for i in range(9):
        features = []
        for j in range(4):
            unit = (np.asarray(context.multisamples.positions[i, j]) - BOX[0]) / (BOX[1] - BOX[0])
            point = np.array(hash_grids.sample_hash_grid(table, jnp.asarray(unit[None]), plan))[0]
            std = float(context.multisamples.stds[i, j]) / 3.0
            for level, cells in enumerate(plan.cells):
                weight = math.erf(1.0 / (math.sqrt(8.0) * max(std, 1e-9) * cells))
                point[2 * level : 2 * level + 2] *= weight if downweight else 1.0
            features.append(point)
        np.testing.assert_allclose(encoded[i], np.mean(features, axis=0), rtol=1e-4, atol=1e-5)


def test_levels_finer_than_a_cone_are_weighed_down_by_half_of_its_radius() -> None:
    field = dataclasses.replace(FIELD, downweight_levels=True)
    positions = jnp.asarray([[0.1, -0.3, 1.0]])
    plan, table = field.plan(), PARAMS["table"]
    thin, _ = field.encode(table, positions, plan, context_of(positions))
    plain, _ = FIELD.encode(table, positions, plan, context_of(positions))
    np.testing.assert_allclose(thin, plain, rtol=1e-6)
    wide, _ = field.encode(
        table, positions, plan, context_of(positions)._replace(radii=jnp.asarray([0.6]))
    )
    ratio = np.asarray(wide / plain)[0, ::2]
    # The longest side of the box is 3.
    expected = [math.erf(1.0 / (math.sqrt(8.0) * 0.1 * cells)) for cells in plan.cells]
    np.testing.assert_allclose(ratio, expected, rtol=1e-4)


def test_table_decay_is_the_sum_over_levels_of_mean_squares() -> None:
    field = dataclasses.replace(FIELD, table_decay=0.3)
    grid, key = make_full_grid((1, 1, 1), jnp.asarray(BOX)), jax.random.key(0)
    penalty = field.regularization(PARAMS, grid, key, jnp.ones(()))
    starts, table = field.plan().starts, np.asarray(PARAMS["table"], np.float64)
    expected = sum(np.mean(np.square(table[low:high])) for low, high in itertools.pairwise(starts))
    assert penalty == pytest.approx(0.3 * expected, rel=1e-5)
    assert FIELD.regularization(PARAMS, grid, key, jnp.ones(())) == 0.0


def test_scale_features_are_the_weights_of_levels_in_the_size_of_their_rows() -> None:
    field = dataclasses.replace(FIELD, featurize_scale=True)
    assert field.num_encoded() == FIELD.num_encoded() + 3
    plan, table = field.plan(), PARAMS["table"]
    positions = jnp.asarray(np.random.default_rng(9).uniform(BOX[0], BOX[1], (5, 3)), jnp.float32)
    radii = jnp.asarray([0.0, 0.1, 0.3, 1.0, 9.0])
    context = context_of(positions)._replace(radii=radii)
    encoded, _ = field.encode(table, positions, plan, context)
    np.testing.assert_array_equal(encoded[:, :6], FIELD.encode(table, positions, plan, context)[0])
    for i, radius in enumerate(radii):
        for level, (low, high) in enumerate(itertools.pairwise(plan.starts)):
            size = math.sqrt(np.mean(np.square(np.asarray(table[low:high], np.float64))) + 1e-8)
            std = max(0.5 * float(radius) / 3.0, 1e-9)
            weight = math.erf(1.0 / (math.sqrt(8.0) * std * plan.cells[level]))
            expected = (2.0 * weight - 1.0) * size
            assert encoded[i, 6 + level] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    gradient = jax.grad(lambda t: jnp.sum(field.encode(t, positions, plan, context)[0][:, 6:]))
    np.testing.assert_array_equal(gradient(table), 0.0)
