"""Color correction of images: it begins as the identity, on average stays it, and spares the
background."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    Recorder,
    change,
    differing_leaves,
    first_state,
    make_scene,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
)

from jaxrf.data.scene import Scene
from jaxrf.models.base import TrainRendering
from jaxrf.models.color_correction import (
    ColorCorrection,
    color_matrices,
    correct_rgb,
    init_color_correction,
)
from jaxrf.training import loop, transitions

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


def expose(scene: Scene, gains: np.ndarray) -> Scene:
    """The scene with the coded values of its training images multiplied by gains."""
    split = scene.splits["train"]
    images = split.images.astype(np.float64)
    images[..., :3] = np.minimum(images[..., :3] * gains[:, None, None], 255.0)
    train = dataclasses.replace(split, images=np.rint(images).astype(np.uint8))
    return dataclasses.replace(scene, splits={**scene.splits, "train": train})


def test_training_recovers_the_gains_of_images() -> None:
    rng = np.random.default_rng(3)
    gains = np.exp(rng.uniform(-0.35, 0.2, (6, 1)) + rng.uniform(-0.1, 0.1, (6, 3)))
    scene = expose(make_scene(), gains)
    config = tiny_hashgrid(num_steps=150, num_sh_bands=1, color_correction="exposure")
    config = transitions.resolve_config(config, scene)
    assert config.model.num_appearances == 6 and config.model.exposures == ()
    recorder = Recorder()
    _, state = loop.fit(config, scene, recorder)
    assert state.params.color_correction is not None
    learned = np.asarray(color_matrices("exposure", state.params.color_correction))
    learned = np.log(np.einsum("nii->ni", learned[..., :3]))
    expected = np.log(gains) - np.log(gains).mean(axis=0)
    print(
        np.abs(learned - expected).max(),
        learned,
        expected,
        [float(m.mse) for m in recorder.metrics[-3:]],
    )
    assert np.abs(learned - expected).max() < 0.1 < np.abs(expected).max()
