"""Color correction of images: it begins as the identity, on average stays it, and spares the
background."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenes import (
    change,
    differing_leaves,
    first_state,
    tiny_nerf,
    tiny_tensorf,
)

from jaxrf.models.base import TrainRendering
from jaxrf.models.color_correction import (
    ColorCorrection,
    color_matrices,
    correct_rgb,
    init_color_correction,
)

KINDS: tuple[ColorCorrection, ...] = ("exposure", "affine")
IDENTITY = np.eye(3, 4, dtype=np.float32)


def random_params(kind: ColorCorrection, num_images: int = 5) -> jax.Array:
    params = init_color_correction(kind, num_images)
    assert params is not None
    return jnp.asarray(4.0 * np.random.default_rng(1).normal(size=params.shape), jnp.float32)


@pytest.mark.parametrize(("kind", "shape"), [("exposure", (5, 3)), ("affine", (5, 3, 4))])
def test_images_look_alike_at_first(kind: ColorCorrection, shape: tuple[int, ...]) -> None:
    params = init_color_correction(kind, 5)
    assert params is not None and params.shape == shape
    np.testing.assert_array_equal(color_matrices(kind, params), np.tile(IDENTITY, (5, 1, 1)))
    assert init_color_correction("none", 5) is None


def test_the_mean_of_the_corrections_is_the_identity() -> None:
    affine = np.asarray(color_matrices("affine", 1.0 + random_params("affine")))
    np.testing.assert_allclose(affine.mean(axis=0), IDENTITY, atol=1e-6)
    assert np.abs(affine - IDENTITY).max() > 0.3
    exposure = np.asarray(color_matrices("exposure", 1.0 + random_params("exposure")))
    gains = np.einsum("nii->ni", exposure[..., :3])
    np.testing.assert_allclose(np.log(gains).mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_array_equal(exposure[..., :3], gains[:, None] * np.eye(3, dtype=np.float32))
    np.testing.assert_array_equal(exposure[..., 3], 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_exposures_give_the_first_gains_in_coded_values(kind: ColorCorrection) -> None:
    exposures = 0.01 * np.exp2([0.0, 1.0, -1.0, 0.5])
    params = init_color_correction(kind, 4, tuple(exposures))
    assert params is not None
    matrices = np.asarray(color_matrices(kind, params))
    gains = matrices[:, 1, 1]
    np.testing.assert_allclose(gains / gains[0], (exposures / 0.01) ** (1 / 2.2), rtol=1e-5)
    np.testing.assert_allclose(matrices, gains[:, None, None] * IDENTITY, atol=1e-6)
    mean = np.log(gains).mean() if kind == "exposure" else gains.mean() - 1.0
    assert mean == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_correct_rgb_maps_the_light_of_the_field_only(kind: ColorCorrection) -> None:
    rng = np.random.default_rng(0)
    matrices = color_matrices(kind, random_params(kind))
    camera_index = rng.integers(0, 5, 30)
    color, background = rng.uniform(size=(30, 3)), rng.uniform(size=(30, 3))
    opacity = np.concatenate([[0.0, 1.0], rng.uniform(size=28)])
    expected = []
    for ray in range(30):
        matrix = np.asarray(matrices[camera_index[ray]], np.float64)
        corrected = matrix[:, :3] @ color[ray] + matrix[:, 3]
        expected.append(opacity[ray] * corrected + (1.0 - opacity[ray]) * background[ray])
    rgb = opacity[:, None] * color + (1.0 - opacity)[:, None] * background
    arrays = [jnp.asarray(x, jnp.float32) for x in (rgb, opacity, background)]
    result = correct_rgb(matrices, jnp.asarray(camera_index), *arrays)
    np.testing.assert_allclose(result, np.stack(expected), atol=1e-6)
    np.testing.assert_allclose(result[0], background[0], atol=1e-6)
    assert np.max(result) > 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_images_of_the_rays_and_sum_to_nothing(kind: ColorCorrection) -> None:
    """A change of all corrections alike changes nothing."""
    camera_index = jnp.array([0, 2, 2])
    light = jnp.full((3, 3), 0.5), jnp.ones(3), jnp.zeros((3, 3))

    @jax.jit
    def total(params: jax.Array) -> jax.Array:
        return jnp.sum(correct_rgb(color_matrices(kind, params), camera_index, *light))

    params = random_params(kind)
    grads = np.asarray(jax.grad(total)(params))
    np.testing.assert_allclose(grads.sum(axis=0), 0.0, atol=1e-6)
    step = jnp.zeros_like(params).at[2].set(1e-2)
    slope = (total(params + step) - total(params - step)) / 2.0
    assert float(slope) == pytest.approx(float(jnp.sum(grads * step)), rel=1e-2)


def test_without_correction_a_rendering_is_the_same_object() -> None:
    config = tiny_nerf()
    _, state = first_state(config)
    assert state.params.color_correction is None
    ray = jnp.zeros(1)
    rendering = TrainRendering(
        (jnp.zeros((1, 3)),), (ray,), ray > 0, jnp.asarray(1), ray, None, None, state.grid
    )
    unchanged = config.model.correct_colors(
        state.params, rendering, jnp.zeros(1, int), jnp.zeros((1, 3))
    )
    assert unchanged is rendering


@pytest.mark.parametrize("make", [tiny_nerf, tiny_tensorf])
def test_all_networks_are_corrected_with_their_own_opacity(make: Any) -> None:
    config = change(make(), color_correction="affine", num_appearances=6)
    _, state = first_state(config)
    params = state.params._replace(color_correction=random_params("affine", 6))
    ones = jnp.ones((2, 3))
    opacities = (jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]))
    rendering = TrainRendering(
        (ones, ones), opacities, ones[:, 0] < 0, jnp.asarray(1), ones[:, 0], None, None, state.grid
    )
    corrected = config.model.correct_colors(params, rendering, jnp.array([1, 1]), ones)
    first, second = (np.abs(np.asarray(rgb) - 1.0).max(axis=-1) > 1e-3 for rgb in corrected.rgb)
    np.testing.assert_array_equal([first, second], [[False, True], [True, False]])
    others = params._replace(color_correction=None), state.params._replace(color_correction=None)
    assert differing_leaves(*others) == []


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_rays_recovers_the_gains_of_images(kind: ColorCorrection) -> None:
    """Both the colors of a surface, which all images show, and the images' gains are unknown."""
    rng = np.random.default_rng(3)
    gains = np.exp(rng.uniform(-0.35, 0.35, (6, 1)) + rng.uniform(-0.1, 0.1, (6, 3)))
    colors = rng.uniform(0.1, 0.6, (40, 3))
    camera_index = jnp.repeat(jnp.arange(6), 40)
    target = jnp.asarray((gains[:, None] * colors[None]).reshape(-1, 3), jnp.float32)
    rays = jnp.ones(240), jnp.zeros((240, 3))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))

    def loss(params: Any) -> jax.Array:
        surface, correction = params
        matrices = color_matrices(kind, correction)
        rgb = correct_rgb(matrices, camera_index, jnp.tile(surface, (6, 1)), *rays)
        return jnp.mean(jnp.square(rgb - target))

    def update(_: int, carry: Any) -> Any:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    initial = (jnp.full((40, 3), 0.5), init_color_correction(kind, 6))
    fit = jax.jit(lambda carry: jax.lax.fori_loop(0, 1500, update, carry))
    (surface, correction), _ = fit((initial, optimizer.init(initial)))
    # Colors and gains are known up to their mean, which is the identity.
    mean = np.exp(np.log(gains).mean(axis=0)) if kind == "exposure" else gains.mean(axis=0)
    assert loss((surface, correction)) < 1e-5 < 1e-3 < loss(initial)
    np.testing.assert_allclose(surface, colors * mean, atol=0.02)
    learned = np.einsum("nii->ni", color_matrices(kind, correction)[..., :3])
    if kind == "exposure":
        np.testing.assert_allclose(learned, gains / mean, atol=0.02)
