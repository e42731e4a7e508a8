"""PyNeRF: levels by a sample's size, their blend, and the field against a loop over its heads."""

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
from jaxrf.core import encodings, grids
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
    heads=3,
    levels=2,
    channels=2,
    coarsest=2,
    finest=16,
    log2_hashmap_size=7,
    tables="separate",
    width=5,
    feature_dim=3,
    color_width=4,
    color_layers=1,
    num_sh_bands=2,
)


def test_levels_are_powers_of_the_factor_below_the_finest() -> None:
    assert create_pyramid_hierarchy(4, 64) == (8.0, 16.0, 32.0, 64.0)
    assert create_pyramid_hierarchy(3, 90, 3.0) == pytest.approx((10.0, 30.0, 90.0))
    assert create_pyramid_hierarchy(1, 5) == (5.0,)


def test_the_area_of_a_sample_is_that_of_its_pixel_on_the_image_plane() -> None:
    """In the middle of a picture pixels are squares of distance / focal length."""
    cameras = make_cameras(np.eye(4)[None], 101, 101, 0.3)
    rays = image_rays(cameras, 0, 1.0, 2.0)
    area = compute_sample_area(rays.radii, jnp.full((101, 101), 5.0))
    side = 5.0 / float(cameras.focal[0, 0])
    assert float(area[50, 50]) == pytest.approx(side**2, rel=1e-3)


def test_a_sample_as_wide_as_a_cell_has_the_level_of_that_cell() -> None:
    hierarchy = create_pyramid_hierarchy(4, 64)
    widths = jnp.asarray([EXTENT / cells for cells in hierarchy])
    found = get_pyramid_level(jnp.square(widths), EXTENT, hierarchy[0])
    np.testing.assert_allclose(found, [0.0, 1.0, 2.0, 3.0], atol=1e-5)
    between = get_pyramid_level(jnp.asarray(2.0 * EXTENT / 64) ** 2 / 2.0, EXTENT, hierarchy[0])
    assert float(between) == pytest.approx(2.5, abs=1e-5)


def test_pictures_half_as_large_ask_for_one_level_less() -> None:
    cameras = make_cameras(np.eye(4)[None], 64, 64, 0.2)
    level = [
        get_pyramid_level(
            compute_sample_area(image_rays(c, 0, 1.0, 2.0).radii[3, 5], jnp.asarray(4.0)), 2.0, 8.0
        )
        for c in (cameras, resize_cameras(cameras, 32, 32))
    ]
    assert float(level[0] - level[1]) == pytest.approx(1.0, abs=0.02)


@given(st.floats(-50, 50), st.integers(1, 9))
def test_shares_sum_to_one_and_belong_to_neighbours(level: float, levels: int) -> None:
    share = np.asarray(blend_levels(jnp.asarray(level, jnp.float32), levels))
    assert share.shape == (levels,) and share.min() >= 0
    assert share.sum() == pytest.approx(1.0, abs=1e-5)
    clamped = min(max(level, 0.0), levels - 1.0)
    assert np.sum(share * np.arange(levels)) == pytest.approx(clamped, abs=1e-4)
    assert all(abs(i - clamped) < 1.0 + 1e-5 for i in np.flatnonzero(share > 0))


@pytest.mark.parametrize("area", [0.0, 1e-30, 1e30, math.inf])
def test_extreme_areas_end_at_the_first_or_the_last_head(area: float) -> None:
    share = blend_levels(get_pyramid_level(jnp.asarray([area]), EXTENT, 4.0), 3)
    wanted = [0.0, 0.0, 1.0] if area < 1.0 else [1.0, 0.0, 0.0]
    np.testing.assert_array_equal(share[0], wanted)


def random_params(field: PyNeRF) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.7, s.shape), s.dtype), shapes)
    return {**params, "aabb": jnp.asarray(BOX)}


def random_inputs(count: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    positions = BOX[0] + rng.uniform(0, 1, (count, 3)) * (BOX[1] - BOX[0])
    radii = np.geomspace(1e-3, 2.0, count)
    return tuple(x.astype(np.float32) for x in (positions, directions, radii))  # type: ignore[return-value]


def evaluate(field: PyNeRF, params: Any, *inputs: Any) -> tuple[jax.Array, jax.Array]:
    positions, directions, radii = map(jnp.asarray, inputs)
    density, latent = field.density(params, positions, radii)
    return density, field.color(params, field.features(params, latent), directions)


def evaluate_slowly(field: PyNeRF, params: Any, *inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """One sample and one head after the other."""
    densities, colors = [], []
    hierarchy = create_pyramid_hierarchy(field.heads, field.finest, field.factor)
    for position, direction, radius in zip(*inputs, strict=True):
        unit = jnp.asarray((position - BOX[0]) / (BOX[1] - BOX[0]))[None]
        width = radius * math.sqrt(3.0)
        level = math.log(EXTENT / width / hierarchy[0], field.factor)
        level = min(max(level, 0.0), field.heads - 1.0)
        lower = min(int(level), field.heads - 2)
        weights = {lower: 1.0 - (level - lower), lower + 1: level - lower}
        seen = np.asarray(encodings.spherical_harmonics(jnp.asarray(direction)[None], 2))[0]

        def shade(mlp: Any, features: np.ndarray, seen: np.ndarray = seen) -> np.ndarray:
            x = np.concatenate([features, seen])
            hidden = np.maximum(x @ np.asarray(mlp["params"]["Dense_0"]["kernel"]), 0.0)
            return 1.0 / (1.0 + np.exp(-hidden @ np.asarray(mlp["params"]["Dense_1"]["kernel"])))

        out, density, color = np.zeros(1 + field.feature_dim), 0.0, np.zeros(3)
        for head, weight in weights.items():
            number = head if field.tables == "separate" else 0
            plan = field.plans()[number]
            first = sum(p.starts[-1] for p in field.plans()[:number])
            table = params["table"][first : first + plan.starts[-1]]
            encoded = grids.sample_hash_grid(table, unit, plan)
            hidden = np.maximum(np.asarray(encoded[0] @ params["hidden"][head]), 0.0)
            result = hidden @ np.asarray(params["out"][head])
            if field.blend == "features":
                out += weight * result
            else:
                density += weight * math.exp(result[0] - 1.0)
                color += weight * shade(params["color_mlp"][head], result[1:])
        if field.blend == "features":
            density, color = math.exp(out[0] - 1.0), shade(params["color_mlp"][0], out[1:])
        densities.append(density)
        colors.append(color)
    return np.array(densities), np.array(colors)


@pytest.mark.parametrize("tables", ["shared", "separate"])
@pytest.mark.parametrize("blend", ["features", "results"])
def test_field_equals_a_loop_over_samples_and_heads(tables: Any, blend: Any) -> None:
    field = dataclasses.replace(FIELD, tables=tables, blend=blend)
    params, inputs = random_params(field), random_inputs()
    density, rgb = evaluate(field, params, *inputs)
    wanted_density, wanted_rgb = evaluate_slowly(field, params, *inputs)
    np.testing.assert_allclose(density, wanted_density, rtol=2e-4)
    np.testing.assert_allclose(rgb, wanted_rgb, atol=2e-5)


@pytest.mark.parametrize("blend", ["features", "results"])
def test_field_in_float64_equals_the_one_in_float32(blend: Any) -> None:
    field = dataclasses.replace(FIELD, blend=blend)
    params, inputs = random_params(field), random_inputs()
    narrow = evaluate(field, params, *inputs)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
        exact = evaluate(field, wide, *(np.asarray(x, np.float64) for x in inputs))
        assert all(value.dtype == jnp.float64 for value in exact)
    for value, wanted in zip(narrow, exact, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e3, 1e8])
@pytest.mark.parametrize("blend", ["features", "results"])
def test_density_is_finite_for_parameters_of_any_size(blend: Any, scale: float) -> None:
    field = dataclasses.replace(FIELD, blend=blend)
    params = {
        name: value if name == "aabb" else jax.tree.map(lambda x: x * scale, value)
        for name, value in random_params(field).items()
    }
    density, rgb = evaluate(field, params, *random_inputs())
    assert np.all(np.isfinite(density)) and np.all(np.asarray(density) >= 0)
    if scale < 1e8:
        # Beyond, the colour network's sums are infinite.
        assert np.all((np.asarray(rgb) >= 0) & (np.asarray(rgb) <= 1))


def test_fresh_parameters_are_even_and_of_the_shapes_that_were_promised() -> None:
    params = FIELD.init(jax.random.key(3))
    rows = sum(plan.starts[-1] for plan in FIELD.plans())
    assert params["table"].shape == (rows, 2) and len(params["color_mlp"]) == 1
    # Each head's finest level has its own cells.
    assert [plan.cells[-1] for plan in FIELD.plans()] == [4, 8, 16]
    assert params["hidden"].shape == (3, 4, 5) and params["out"].shape == (3, 5, 4)
    density, rgb = evaluate(FIELD, {**params, "aabb": jnp.asarray(BOX)}, *random_inputs())
    np.testing.assert_allclose(density, math.exp(-1.0), rtol=0.01)
    np.testing.assert_allclose(rgb, 0.5, atol=0.5)


def test_outside_the_box_there_is_nothing_and_gradients_are_finite() -> None:
    params = random_params(FIELD)
    positions = jnp.asarray(np.stack([BOX[0] - 0.1, BOX[1] + 5.0, BOX[0], 1e9 * BOX[1]]))
    radii = jnp.asarray([0.0, 1e9, 1e-9, 1.0])
    directions = jnp.tile(jnp.asarray([[0.0, 0.0, 1.0]]), (4, 1))

    def total(params: Any, positions: jax.Array) -> jax.Array:
        density, rgb = evaluate(FIELD, params, positions, directions, radii)
        return jnp.sum(density) + jnp.sum(rgb)

    density, _ = FIELD.density(params, positions, radii)
    assert np.asarray(density > 0).tolist() == [False, False, True, False]
    for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(params, positions)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_heads_next_to_a_level_see_what_all_see_and_the_others_nothing(heads: int) -> None:
    field = dataclasses.replace(FIELD, heads=heads)
    params = random_params(field)
    unit = jax.random.uniform(jax.random.key(1), (60, 3), minval=-0.1, maxval=1.1)
    level = jnp.linspace(-1.5, heads + 0.5, 60)
    share = np.asarray(blend_levels(level, heads))
    found = field.encode_nearest(params, unit, level)
    wanted = field.encode_all(params, unit)
    for head in range(heads):
        counts = share[:, head] > 0
        assert counts.any()
        np.testing.assert_allclose(found[head][counts], wanted[head][counts], atol=1e-5)
        far = np.abs(np.clip(np.asarray(level), 0, heads - 1) - head) > 1.0
        np.testing.assert_array_equal(np.asarray(found[head])[far], 0.0)


def test_heads_that_agree_are_consistent() -> None:
    field = dataclasses.replace(FIELD, tables="shared")
    params = random_params(field)
    unit = jax.random.uniform(jax.random.key(0), (50, 3))
    outputs, _ = field.run_heads(params, field.encode_all(params, unit), jnp.ones((50, 3)))
    wanted = np.mean(np.square(np.asarray(outputs)[:, 1:] - np.asarray(outputs)[:, :-1]))
    assert float(level_consistency_loss(field, params, unit)) == pytest.approx(
        float(wanted), rel=1e-5
    )
    alike = {
        **params,
        "hidden": jnp.repeat(params["hidden"][:1], 3, axis=0),
        "out": jnp.repeat(params["out"][:1], 3, axis=0),
    }
    assert float(level_consistency_loss(field, alike, unit)) < 1e-10 < float(wanted)
