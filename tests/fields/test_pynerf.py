"""PyNeRF: levels by sample size, their blend, and the field against a loop over its levels."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrf.cameras.base import image_rays, make_cameras, resize_cameras
from jaxrf.core import encodings, hash_grids
from jaxrf.fields.base import FieldContext
from jaxrf.fields.pynerf import (
    PyNeRF,
    blend_levels,
    compute_sample_area,
    create_pyramid_hierarchy,
    get_pyramid_level,
    level_consistency_loss,
)

BOX = np.array([[-1.0, -2.0, 0.5], [1.5, 1.0, 1.7]], np.float32)
EXTENT = 3.0
FIELD = PyNeRF(
    num_pyramid_levels=3,
    num_levels=2,
    features_per_level=2,
    base_resolution=2,
    max_resolution=16,
    log2_hashmap_size=7,
    tables="separate",
    width=5,
    feature_dim=3,
    color_width=4,
    color_layers=1,
    num_sh_bands=2,
)


def test_create_pyramid_hierarchy_divides_the_finest_by_powers_of_the_factor() -> None:
    assert create_pyramid_hierarchy(4, 64) == (8.0, 16.0, 32.0, 64.0)
    assert create_pyramid_hierarchy(3, 90, 3.0) == pytest.approx((10.0, 30.0, 90.0))
    assert create_pyramid_hierarchy(1, 5) == (5.0,)


def test_compute_sample_area_equals_the_pixel_area_at_that_distance() -> None:
    """In the middle of an image, pixels are squares of side distance / focal length."""
    cameras = make_cameras(np.eye(4)[None], 101, 101, 0.3)
    rays = image_rays(cameras, 0, 1.0, 2.0)
    area = compute_sample_area(rays.radii, jnp.full((101, 101), 5.0))
    side = 5.0 / float(cameras.focal[0, 0])
    assert float(area[50, 50]) == pytest.approx(side**2, rel=1e-3)


def test_get_pyramid_level_of_a_sample_as_wide_as_a_cell_is_that_level() -> None:
    hierarchy = create_pyramid_hierarchy(4, 64)
    widths = jnp.asarray([EXTENT / cells for cells in hierarchy])
    actual = get_pyramid_level(jnp.square(widths), EXTENT, hierarchy[0])
    np.testing.assert_allclose(actual, [0.0, 1.0, 2.0, 3.0], atol=1e-5)
    between = get_pyramid_level(jnp.asarray(2.0 * EXTENT / 64) ** 2 / 2.0, EXTENT, hierarchy[0])
    assert float(between) == pytest.approx(2.5, abs=1e-5)


def test_get_pyramid_level_is_one_less_for_images_half_as_large() -> None:
    cameras = make_cameras(np.eye(4)[None], 64, 64, 0.2)
    level = [
        get_pyramid_level(
            compute_sample_area(image_rays(c, 0, 1.0, 2.0).radii[3, 5], jnp.asarray(4.0)), 2.0, 8.0
        )
        for c in (cameras, resize_cameras(cameras, 32, 32))
    ]
    assert float(level[0] - level[1]) == pytest.approx(1.0, abs=0.02)


@given(st.floats(-50, 50), st.integers(1, 9))
def test_blend_levels_sum_to_one_over_the_neighboring_levels(level: float, levels: int) -> None:
    weights_by_level = np.asarray(blend_levels(jnp.asarray(level, jnp.float32), levels))
    assert weights_by_level.shape == (levels,) and weights_by_level.min() >= 0
    assert weights_by_level.sum() == pytest.approx(1.0, abs=1e-5)
    clamped = min(max(level, 0.0), levels - 1.0)
    assert np.sum(weights_by_level * np.arange(levels)) == pytest.approx(clamped, abs=1e-4)
    assert all(abs(i - clamped) < 1.0 + 1e-5 for i in np.flatnonzero(weights_by_level > 0))


@pytest.mark.parametrize("area", [0.0, 1e-30, 1e30, math.inf])
def test_blend_levels_of_extreme_areas_are_the_first_or_the_last(area: float) -> None:
    weights_by_level = blend_levels(get_pyramid_level(jnp.asarray([area]), EXTENT, 4.0), 3)
    expected = [0.0, 0.0, 1.0] if area < 1.0 else [1.0, 0.0, 0.0]
    np.testing.assert_array_equal(weights_by_level[0], expected)


def random_params(field: PyNeRF) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.7, s.shape), s.dtype), shapes)


def random_inputs(count: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    positions = BOX[0] + rng.uniform(0, 1, (count, 3)) * (BOX[1] - BOX[0])
    radii = np.geomspace(1e-3, 2.0, count)
    return tuple(x.astype(np.float32) for x in (positions, directions, radii))  # type: ignore[return-value]


def evaluate(field: PyNeRF, params: Any, *inputs: Any) -> tuple[jax.Array, jax.Array]:
    positions, directions, radii = map(jnp.asarray, inputs)
    context = FieldContext(radii, jnp.asarray(BOX, positions.dtype))
    density, latent = field.density(params, positions, context)
    return density, field.color(params, field.features(params, latent), directions)


def evaluate_slowly(field: PyNeRF, params: Any, *inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """One sample and one pyramid level after the other."""
    densities, colors = [], []
    hierarchy = create_pyramid_hierarchy(
        field.num_pyramid_levels, field.max_resolution, field.factor
    )
    for position, direction, radius in zip(*inputs, strict=True):
        unit = jnp.asarray((position - BOX[0]) / (BOX[1] - BOX[0]))[None]
        width = radius * math.sqrt(3.0)
        level = math.log(EXTENT / width / hierarchy[0], field.factor)
        level = min(max(level, 0.0), field.num_pyramid_levels - 1.0)
        lower = min(int(level), field.num_pyramid_levels - 2)
        weights = {lower: 1.0 - (level - lower), lower + 1: level - lower}
        harmonics = np.asarray(encodings.spherical_harmonics(jnp.asarray(direction)[None], 2))[0]

        def shade(mlp: Any, features: np.ndarray, harmonics: np.ndarray = harmonics) -> np.ndarray:
            x = np.concatenate([features, harmonics])
            hidden = np.maximum(x @ np.asarray(mlp["params"]["Dense_0"]["kernel"]), 0.0)
            return 1.0 / (1.0 + np.exp(-hidden @ np.asarray(mlp["params"]["Dense_1"]["kernel"])))

        out, density, color = np.zeros(1 + field.feature_dim), 0.0, np.zeros(3)
        for index, weight in weights.items():
            number = index if field.tables == "separate" else 0
            plan = field.plans()[number]
            first = sum(p.starts[-1] for p in field.plans()[:number])
            table = params["table"][first : first + plan.starts[-1]]
            encoded = hash_grids.sample_hash_grid(table, unit, plan)
            hidden = np.maximum(np.asarray(encoded[0] @ params["hidden"][index]), 0.0)
            result = hidden @ np.asarray(params["out"][index])
            if field.blend == "features":
                out += weight * result
            else:
                density += weight * math.exp(result[0] - 1.0)
                color += weight * shade(params["color_mlp"][index], result[1:])
        if field.blend == "features":
            density, color = math.exp(out[0] - 1.0), shade(params["color_mlp"][0], out[1:])
        densities.append(density)
        colors.append(color)
    return np.array(densities), np.array(colors)


@pytest.mark.parametrize("tables", ["shared", "separate"])
@pytest.mark.parametrize("blend", ["features", "results"])
def test_pynerf_equals_a_loop_over_samples_and_levels(tables: Any, blend: Any) -> None:
    field = dataclasses.replace(FIELD, tables=tables, blend=blend)
    params, inputs = random_params(field), random_inputs()
    density, rgb = evaluate(field, params, *inputs)
    expected_density, expected_rgb = evaluate_slowly(field, params, *inputs)
    np.testing.assert_allclose(density, expected_density, rtol=2e-4)
    np.testing.assert_allclose(rgb, expected_rgb, atol=2e-5)


@pytest.mark.parametrize("blend", ["features", "results"])
def test_pynerf_in_float64_equals_float32(blend: Any) -> None:
    field = dataclasses.replace(FIELD, blend=blend)
    params, inputs = random_params(field), random_inputs()
    narrow = evaluate(field, params, *inputs)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
        exact = evaluate(field, wide, *(np.asarray(x, np.float64) for x in inputs))
        assert all(value.dtype == jnp.float64 for value in exact)
    for value, expected in zip(narrow, exact, strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e3, 1e8])
@pytest.mark.parametrize("blend", ["features", "results"])
def test_density_is_finite_for_parameters_of_any_size(blend: Any, scale: float) -> None:
    field = dataclasses.replace(FIELD, blend=blend)
    params = jax.tree.map(lambda x: x * scale, random_params(field))
    density, rgb = evaluate(field, params, *random_inputs())
    assert np.all(np.isfinite(density)) and np.all(np.asarray(density) >= 0)
    if scale < 1e8:
        # At 1e8 the sums of the color network are infinite.
        assert np.all((np.asarray(rgb) >= 0) & (np.asarray(rgb) <= 1))


def test_init_is_even_and_has_the_documented_shapes() -> None:
    params = FIELD.init(jax.random.key(3))
    rows = sum(plan.starts[-1] for plan in FIELD.plans())
    assert params["table"].shape == (rows, 2) and len(params["color_mlp"]) == 1
    # The finest hash level of each pyramid level has that level's cells.
    assert [plan.cells[-1] for plan in FIELD.plans()] == [4, 8, 16]
    assert params["hidden"].shape == (3, 4, 5) and params["out"].shape == (3, 5, 4)
    density, rgb = evaluate(FIELD, params, *random_inputs())
    np.testing.assert_allclose(density, math.exp(-1.0), rtol=0.01)
    np.testing.assert_allclose(rgb, 0.5, atol=0.5)


def test_density_outside_the_box_is_zero_and_gradients_are_finite() -> None:
    params = random_params(FIELD)
    positions = jnp.asarray(np.stack([BOX[0] - 0.1, BOX[1] + 5.0, BOX[0], 1e9 * BOX[1]]))
    radii = jnp.asarray([0.0, 1e9, 1e-9, 1.0])
    directions = jnp.tile(jnp.asarray([[0.0, 0.0, 1.0]]), (4, 1))

    def total(params: Any, positions: jax.Array) -> jax.Array:
        density, rgb = evaluate(FIELD, params, positions, directions, radii)
        return jnp.sum(density) + jnp.sum(rgb)

    density, _ = FIELD.density(params, positions, FieldContext(radii, jnp.asarray(BOX)))
    assert np.asarray(density > 0).tolist() == [False, False, True, False]
    for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(params, positions)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_encode_nearest_equals_encode_all_for_neighboring_levels_and_is_zero_elsewhere(
    num_levels: int,
) -> None:
    field = dataclasses.replace(FIELD, num_pyramid_levels=num_levels)
    params = random_params(field)
    unit = jax.random.uniform(jax.random.key(1), (60, 3), minval=-0.1, maxval=1.1)
    level = jnp.linspace(-1.5, num_levels + 0.5, 60)
    weights_by_level = np.asarray(blend_levels(level, num_levels))
    actual = field.encode_nearest(params, unit, level)
    expected = field.encode_all(params, unit)
    for index in range(num_levels):
        counts = weights_by_level[:, index] > 0
        assert counts.any()
        np.testing.assert_allclose(actual[index][counts], expected[index][counts], atol=1e-5)
        far = np.abs(np.clip(np.asarray(level), 0, num_levels - 1) - index) > 1.0
        np.testing.assert_array_equal(np.asarray(actual[index])[far], 0.0)


def test_level_consistency_loss_of_equal_levels_is_zero() -> None:
    field = dataclasses.replace(FIELD, tables="shared")
    params = random_params(field)
    unit = jax.random.uniform(jax.random.key(0), (50, 3))
    outputs, _ = field.run_levels(params, field.encode_all(params, unit), jnp.ones((50, 3)))
    expected = np.mean(np.square(np.asarray(outputs)[:, 1:] - np.asarray(outputs)[:, :-1]))
    assert float(level_consistency_loss(field, params, unit)) == pytest.approx(
        float(expected), rel=1e-5
    )
    alike = {
        **params,
        "hidden": jnp.repeat(params["hidden"][:1], 3, axis=0),
        "out": jnp.repeat(params["out"][:1], 3, axis=0),
    }
    assert float(level_consistency_loss(field, alike, unit)) < 1e-10 < float(expected)
