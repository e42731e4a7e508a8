"""Networks as callables: contraction, appearances of images, and positions at a box's border."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from renders import (
    ample,
    outgoing_rays,
    random_params,
    render_batch,
    render_image,
    train_rays,
)
from scenes import (
    BOX,
    change,
    cp_config,
    first_state,
    marching_nerf,
    proposing_hashgrid,
    slow,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.cameras import contraction
from jaxrf.core.rays import ConicalFrusta
from jaxrf.fields.pynerf import PyNeRF
from jaxrf.models import networks
from jaxrf.models.base import ModelParams
from jaxrf.models.packed import PackedModel

EVERY_MODEL = [slow(tiny_voxels), slow(tiny_tensorf), tiny_nerf, marching_nerf, proposing_hashgrid]


def _frusta_of(radii: jax.Array) -> ConicalFrusta:
    """Parts of cones of which only the radii matter."""
    ones = jnp.ones_like(radii)
    return ConicalFrusta(jnp.stack([ones, 0 * ones, 0 * ones], axis=-1), radii, ones, ones)


@pytest.mark.parametrize("norm", ["max", slow("euclidean")])
@pytest.mark.parametrize("make", EVERY_MODEL)
def test_close_over_params_contracts_positions_and_radii(make: Any, norm: contraction.Norm) -> None:
    config = make(contract=True, contraction_norm=norm)
    stage, state = first_state(config)
    rays, network = outgoing_rays(), random_params(state.params).field
    distance = jnp.linspace(0.5, 60.0, 7)
    far = (rays.origins[0][None] + distance[:, None] * rays.directions[:1]).astype(jnp.float32)
    radii, box = jnp.full((7,), 0.01), jnp.asarray(BOX)
    fns = networks.close_over_params(stage.field, network, state.grid)
    density = fns.density(far, _frusta_of(radii))[0]
    bounded = networks.close_over_params(
        stage.field, network, dataclasses.replace(state.grid, bounds=None)
    )
    contracted_radii = contraction.contract_radii(radii, far, box, norm)
    contracted = contraction.contract(far, box, norm)
    expected = bounded.density(contracted, _frusta_of(contracted_radii))[0]
    np.testing.assert_allclose(density, expected, rtol=1e-5)
    assert np.all(np.asarray(density)[-1] > 0)


@pytest.mark.parametrize(
    "make", [slow(tiny_voxels), slow(cp_config), tiny_nerf, slow(tiny_hashgrid)]
)
def test_images_look_alike_until_their_codes_differ(make: Any) -> None:
    plain = make()
    config = change(plain, appearance_dim=3, num_appearances=6)
    stage, state = first_state(config)
    rays, background, key = train_rays(60), jnp.zeros((60, 3)), jax.random.key(0)
    batch = (state.grid, key, rays, background)
    assert state.params.appearance is not None
    assert state.params.appearance.codes.shape == (6, 3)
    bare = state.params._replace(appearance=None)
    expected = render_batch(plain, ample(stage), bare, *batch)
    rendering = render_batch(config, ample(stage), state.params, *batch)
    np.testing.assert_allclose(rendering.rgb[-1], expected.rgb[-1], atol=1e-6)

    def with_codes(codes: jax.Array) -> ModelParams:
        assert state.params.appearance is not None
        return state.params._replace(appearance=state.params.appearance._replace(codes=codes))

    changed = with_codes(jnp.zeros((6, 3)).at[2].set(5.0))
    rendering = render_batch(config, ample(stage), changed, *batch)
    others = np.asarray(rays.camera_index) != 2
    np.testing.assert_allclose(rendering.rgb[-1][others], expected.rgb[-1][others], atol=1e-6)
    difference = np.abs(np.asarray(rendering.rgb[-1] - expected.rgb[-1]))[~others]
    assert difference.max() > 1e-4
    np.testing.assert_allclose(rendering.opacity, expected.opacity, atol=1e-6)

    # Images are rendered with the mean of all codes, whichever camera they are seen from.
    mean = with_codes(jnp.full((6, 3), 5.0 / 6.0))
    images = [
        render_image(config, stage, 1 << 12, params, state.grid, rays, jnp.zeros(3)).rgb
        for params in (changed, mean)
    ]
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)


def test_codes_learn_from_rays_of_their_images() -> None:
    config = tiny_hashgrid(appearance_dim=3, num_appearances=6)
    stage, state = first_state(config)
    rays, background = train_rays(60), jnp.zeros((60, 3))
    rays = dataclasses.replace(rays, camera_index=rays.camera_index % 4)

    def total(params: ModelParams) -> jax.Array:
        batch = (state.grid, jax.random.key(0), rays, background)
        rendering = config.model.render_train(stage, params, *batch, config.ray_convention)
        return jnp.sum(rendering.rgb[0])

    grads = jax.jit(jax.grad(total))(random_params(state.params)).appearance.codes
    learning = np.any(np.asarray(grads) != 0, axis=-1)
    np.testing.assert_array_equal(learning, [True] * 4 + [False] * 2)


@pytest.mark.parametrize("blend", ["features", "results"])
def test_appearance_of_a_pyramid_leaves_the_weights_of_its_levels(blend: Any) -> None:
    field = PyNeRF(
        num_pyramid_levels=3, num_levels=2, max_resolution=16, log2_hashmap_size=8, width=8,
        color_width=8, blend=blend, feature_dim=4,
    )  # fmt: skip
    model = PackedModel(
        appearance_dim=2, num_appearances=6, occupancy_resolution=4, steps_per_diagonal=16
    )
    config = tiny_hashgrid(field=field, model=model)
    stage, state = first_state(config)
    channels = 12 if blend == "results" else 4
    assert state.params.appearance is not None
    assert state.params.appearance.matrix.shape == (2, channels)
    batch = (state.params, state.grid, jax.random.key(0), train_rays(8), jnp.zeros((8, 3)))
    assert np.all(np.isfinite(render_batch(config, stage, *batch).rgb[0]))


# -- boxes -------------------------------------------------------------------------------------


def test_clamp_to_aabb_moves_positions_near_the_border_onto_it_and_no_others() -> None:
    aabb = jnp.array([[-1.0, -2.0, 0.0], [1.0, 2.0, 3.0]])
    positions = jnp.array(
        [[1.000001, 0.5, 3.000001], [1.001, 0.5, 1.0], [0.3, -2.0, 1.0], [0.3, 0, 1]]
    )
    on_border = np.asarray(networks.clamp_to_aabb(positions, aabb))
    np.testing.assert_array_equal(on_border[0], [1.0, 0.5, 3.0])
    np.testing.assert_array_equal(on_border[1:], positions[1:])
    clamped = np.asarray(networks.clamp_to_aabb(positions, aabb, networks.AABB_EPS))
    low, high = np.asarray(aabb)
    assert np.all((clamped[[0, 2]] > low) & (clamped[[0, 2]] < high))
    np.testing.assert_allclose(clamped, positions, atol=2e-5)
    # Beyond rounding, and well inside, positions stay as they are.
    np.testing.assert_array_equal(clamped[[1, 3]], positions[jnp.array([1, 3])])
