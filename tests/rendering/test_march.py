"""Rendering by marching against rendering all samples at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import slow
from slow_rendering import FNS, field_density, make_background, make_rays, render_densely

from jaxrf.core.rays import Rays, points_along
from jaxrf.rendering.march import MarchRenderConfig, march_and_render
from jaxrf.rendering.volume import RadianceFns, Rendering

STEPS_PER_BLOCK = 4


def march_case(
    num_rays: int, density: float
) -> tuple[RadianceFns, Rays, jax.Array, jax.Array, float, Any]:
    """A field, rays, edges of their steps, occupied blocks, step size and `is_occupied`."""
    rays = make_rays(num_rays)
    step_size, num_blocks = 0.07, 10
    edges = step_size * jnp.arange(num_blocks * STEPS_PER_BLOCK + 1.0)
    edges = jnp.minimum(rays.near[:, None] + edges[None], rays.far[:, None])
    blocks = jnp.asarray(np.random.default_rng(4).uniform(size=(num_rays, num_blocks)) < 0.6)
    fns = FNS._replace(density=lambda x, r: (density * field_density(jnp, x, r.radii), x))

    def is_occupied(positions: jax.Array) -> jax.Array:
        return jnp.sin(9.0 * positions[..., 0]) > -0.5

    return fns, rays, edges, blocks, step_size, is_occupied


def make_config(rays_per_wave: int, samples_per_wave: int, **changes: Any) -> MarchRenderConfig:
    return MarchRenderConfig(STEPS_PER_BLOCK, rays_per_wave, samples_per_wave, **changes)


def assert_march_equals_all_samples(
    density: float, color_per_ray: bool, rays_per_wave: int, samples_per_wave: int, **coloring: Any
) -> Rendering:
    """Asserts that marching equals rendering all samples, and returns the latter."""
    fns, rays, edges, blocks, step_size, is_occupied = march_case(40, density)
    background, miss_depth = make_background(40), jnp.full((40,), 77.0)
    config = make_config(
        rays_per_wave,
        samples_per_wave,
        color_per_ray=color_per_ray,
        transmittance_threshold=0.0,
        **coloring,
    )
    marched = jax.jit(
        lambda rays: march_and_render(
            fns, rays, blocks, step_size, is_occupied, background, miss_depth, config
        )
    )(rays)
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    mask = jnp.repeat(blocks, STEPS_PER_BLOCK, axis=1) & is_occupied(points_along(rays, middle))
    threshold = coloring.get("color_threshold", 0.0)
    dense = jax.jit(
        lambda rays: render_densely(fns, rays, edges, background, mask, color_per_ray, threshold)
    )(dataclasses.replace(rays, far=miss_depth))
    for name in ("rgb", "opacity", "depth", "median_depth"):
        np.testing.assert_allclose(
            getattr(marched, name), getattr(dense, name), atol=2e-4, err_msg=name
        )
    assert (density > 0) == bool(np.any(np.asarray(marched.opacity) > 0))
    return dense


@pytest.mark.parametrize("color_per_ray", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("rays_per_wave, samples", [(64, 256), (5, 20), (3, 4), (40, 7)])
def test_march_equals_rendering_all_samples(
    rays_per_wave: int, samples: int, density: float, color_per_ray: bool
) -> None:
    assert_march_equals_all_samples(density, color_per_ray, rays_per_wave, samples)


@pytest.mark.parametrize("color_per_ray", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize(
    "rays_per_wave, samples, budget", [slow(64, 256, 500), (64, 256, 7), slow(5, 20, 1)]
)
def test_march_colors_samples_above_the_threshold_for_any_color_budget(
    rays_per_wave: int, samples: int, budget: int, threshold: float, color_per_ray: bool
) -> None:
    coloring = {"color_budget": budget, "color_threshold": threshold}
    thinned = assert_march_equals_all_samples(
        3.0, color_per_ray, rays_per_wave, samples, **coloring
    )
    if threshold:
        full = assert_march_equals_all_samples(3.0, color_per_ray, rays_per_wave, samples)
        assert np.abs(thinned.rgb - full.rgb).max() > 0.05, "the threshold changes nothing"
        # Without a budget the threshold is not used.
        fns, rays, _, blocks, step_size, is_occupied = march_case(40, 3.0)
        config = make_config(
            64,
            256,
            color_per_ray=color_per_ray,
            color_threshold=threshold,
            transmittance_threshold=0.0,
        )
        marched = march_and_render(
            fns, rays, blocks, step_size, is_occupied, make_background(40), rays.far, config
        )
        np.testing.assert_allclose(marched.rgb, full.rgb, atol=2e-4)


@pytest.mark.parametrize("color_budget", [None, 7])
@pytest.mark.parametrize("threshold", [0.5, 0.1, 1e-3])
def test_march_stops_at_the_transmittance_threshold(
    threshold: float, color_budget: int | None
) -> None:
    fns, rays, _, blocks, step_size, is_occupied = march_case(40, 3.0)
    arguments = (fns, rays, blocks, step_size, is_occupied, make_background(40), rays.far)
    config = make_config(16, 64, color_budget=color_budget)
    stopped = march_and_render(*arguments, config._replace(transmittance_threshold=threshold))
    complete = march_and_render(*arguments, config._replace(transmittance_threshold=0.0))
    missing = np.asarray(complete.opacity - stopped.opacity)
    assert missing.min() > -1e-6 and missing.max() <= threshold
    assert np.abs(np.asarray(complete.rgb - stopped.rgb)).max() <= 2 * threshold
    assert threshold < 0.1 or missing.max() > 0


@pytest.mark.parametrize("color_budget", [None, 3])
def test_march_of_empty_rays_renders_the_background_at_miss_depth(
    color_budget: int | None,
) -> None:
    fns, rays, _, blocks, step_size, is_occupied = march_case(11, 3.0)
    miss_depth, config = jnp.linspace(50.0, 60.0, 11), make_config(4, 8, color_budget=color_budget)
    empty = ((blocks & False, is_occupied), (blocks, lambda positions: positions[..., 0] > 1e9))
    for mask, occupied_fn in empty:
        rendering = march_and_render(
            fns, rays, mask, step_size, occupied_fn, make_background(11), miss_depth, config
        )
        np.testing.assert_array_equal(rendering.rgb, make_background(11))
        np.testing.assert_array_equal(rendering.opacity, 0.0)
        np.testing.assert_array_equal(rendering.depth, miss_depth)
        np.testing.assert_array_equal(rendering.median_depth, miss_depth)
