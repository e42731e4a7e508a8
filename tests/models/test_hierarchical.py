"""The hierarchical model: two networks, and points as in NeRF's original code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from renders import random_params, render_batch, render_image, train_rays
from scenes import change, first_state, tiny_nerf

from jaxrf import presets
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.fields.base import FieldContext
from jaxrf.fields.nerf import NeRF
from jaxrf.models.base import ModelParams, StageSpec
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.training.config import TrainConfig


@pytest.mark.parametrize("value", [0, -3])
def test_hierarchical_model_refuses_to_have_no_coarse_samples(value: int) -> None:
    option = f"model.num_coarse_samples is {value}: give a number above 0"
    with pytest.raises(InputError, match=option):
        HierarchicalModel(num_coarse_samples=value)


@pytest.mark.parametrize("samples", [1, 2])
def test_points_need_three_coarse_samples(samples: int) -> None:
    with pytest.raises(InputError, match="points need 3 or more"):
        HierarchicalModel(quadrature="points", num_coarse_samples=samples)
    HierarchicalModel(quadrature="points", num_coarse_samples=3)
    HierarchicalModel(quadrature="intervals", num_coarse_samples=samples)


def test_points_are_refused_by_an_integrated_encoding() -> None:
    field = NeRF(encoding="integrated")
    points = HierarchicalModel(quadrature="points")
    with pytest.raises(InputError, match=r"set model.quadrature to intervals"):
        points.check(field, RayConvention())
    with pytest.raises(InputError, match=r"set model.quadrature to intervals"):
        TrainConfig(field=field, model=points)
    points.check(NeRF(encoding="fourier"), RayConvention())
    HierarchicalModel(quadrature="intervals").check(field, RayConvention())


def test_the_original_preset_refuses_numbers_that_points_cannot_use() -> None:
    config = presets.make_preset("nerf-original")
    assert isinstance(config.model, HierarchicalModel) and config.model.quadrature == "points"
    with pytest.raises(InputError, match="points need 3 or more"):
        change(config, num_coarse_samples=2)
    with pytest.raises(InputError, match=r"model.quadrature to intervals"):
        change(config, encoding="integrated")


def test_num_samples_are_those_of_both_networks() -> None:
    config = tiny_nerf()  # 12 coarse ones, then 12 + 8
    stage, state = first_state(config)
    batch = (state.params, state.grid, jax.random.key(0), train_rays(16), jnp.ones((16, 3)))
    assert int(render_batch(config, stage, *batch).num_samples) == 16 * (12 + 20)


def test_without_fine_samples_there_is_one_network() -> None:
    config = tiny_nerf(num_fine_samples=0)
    stage, state = first_state(config)
    assert state.params.coarse is None and state.params.proposals == ()
    batch = (state.params, state.grid, jax.random.key(0), train_rays(16), jnp.ones((16, 3)))
    rendering = render_batch(config, stage, *batch)
    assert len(rendering.rgb) == 1 and not rendering.overflowed.any()


def test_the_two_networks_start_differently() -> None:
    _, state = first_state(tiny_nerf())
    pairs = zip(
        jax.tree.leaves(state.params.coarse), jax.tree.leaves(state.params.field), strict=True
    )
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_training_rays_are_jittered_by_the_key() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    rays, background = train_rays(32), jnp.ones((32, 3))
    colors = [
        render_batch(
            config, stage, state.params, state.grid, jax.random.key(seed), rays, background
        ).rgb[-1]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(colors[0], colors[1])
    assert not np.array_equal(colors[0], colors[2])


def _render_slowly(
    model: HierarchicalModel,
    stage: StageSpec,
    params: ModelParams,
    aabb: jax.Array,
    rays: Rays,
    near: float,
    far: float,
) -> np.ndarray:
    """Pixels of a NeRF as its original code computes them, without jitter, in float64."""
    field = stage.field

    def composite(network: Any, origin: np.ndarray, direction: np.ndarray, t: np.ndarray) -> Any:
        points = jnp.asarray(origin + t[:, None] * direction, jnp.float32)
        context = FieldContext(jnp.zeros(len(t)), aabb)
        density, latent = field.density(network, points, context)
        directions = jnp.asarray(np.tile(direction, (len(t), 1)), jnp.float32)
        rgb = field.color(network, field.features(network, latent), directions)
        dists = np.append(np.diff(t), 1e10)
        alpha = 1.0 - np.exp(-np.asarray(density, np.float64) * dists)
        transmittance = np.cumprod(np.append(1.0, 1.0 - alpha[:-1] + 1e-10))
        weights = alpha * transmittance
        return weights, weights @ np.asarray(rgb, np.float64) + 1.0 - weights.sum()

    pixels = []
    for origin, direction in zip(
        np.asarray(rays.origins, np.float64), np.asarray(rays.directions, np.float64), strict=True
    ):
        steps = np.linspace(0.0, 1.0, model.num_coarse_samples)
        if model.spacing == "linear":
            t = near * (1.0 - steps) + far * steps
        else:
            t = 1.0 / (1.0 / near * (1.0 - steps) + 1.0 / far * steps)
        weights, _ = composite(params.coarse, origin, direction, t)
        middles, pdf = 0.5 * (t[1:] + t[:-1]), weights[1:-1] + 1e-5
        cdf = np.append(0.0, np.cumsum(pdf / pdf.sum()))
        fine = np.interp(np.linspace(0.0, 1.0, model.num_fine_samples), cdf, middles)
        t = np.sort(np.concatenate([t, fine]))
        pixels.append(composite(params.field, origin, direction, t)[1])
    return np.array(pixels)


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
def test_points_give_the_pixels_of_the_original_code(spacing: Any) -> None:
    config = tiny_nerf(quadrature="points", spacing=spacing)
    stage, state = first_state(config)
    params, rays = random_params(state.params), train_rays(12)
    image = render_image(config, stage, 1 << 12, params, state.grid, rays, jnp.ones(3))
    assert isinstance(config.model, HierarchicalModel)
    expected = _render_slowly(config.model, stage, params, state.grid.aabb, rays, 2.0, 6.0)
    assert np.std(expected) > 0.02
    np.testing.assert_allclose(image.rgb, expected, atol=2e-4)
