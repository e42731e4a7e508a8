"""Models: checks of their numbers, and properties that all of them share."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from renders import (
    ample,
    axis_rays,
    outgoing_rays,
    random_params,
    render_batch,
    render_image,
    train_rays,
)
from scenes import (
    cp_config,
    first_state,
    marching_nerf,
    mostly_slow,
    proposing_hashgrid,
    slow,
    tiny_bitnerf,
    tiny_hashgrid,
    tiny_nerf,
    tiny_pynerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf import presets
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.errors import InputError
from jaxrf.fields import tensor_factors, voxels
from jaxrf.fields.base import Field
from jaxrf.fields.nerf import NeRF
from jaxrf.fields.pynerf import PyNeRF
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxel_grid import VoxelGrid
from jaxrf.fields.voxels import Voxels
from jaxrf.models import base
from jaxrf.models.base import DepthTarget, Model, ModelParams
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.packed import PackedModel
from jaxrf.models.proposal import ProposalModel
from jaxrf.training.config import TrainConfig
from jaxrf.training.config_json import make_user_field

ONE = jnp.ones(())

# -- checks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [Model, PackedModel, HierarchicalModel, ProposalModel], ids=lambda m: m.__name__
)
@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"checkpoint_chunks": 0}, "model.checkpoint_chunks is 0: give a number above 0"),
        ({"appearance_dim": -1}, "model.appearance_dim is -1: give 0 or more"),
    ],
)
def test_models_refuse_numbers_out_of_range(
    model: Any, numbers: dict[str, int], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        model(**numbers)


@pytest.mark.parametrize("model", [PackedModel, HierarchicalModel, ProposalModel])
def test_blended_results_cannot_be_colored_per_ray(model: Any) -> None:
    field, complaint = PyNeRF(blend="results"), "set model.coloring to per_sample"
    with pytest.raises(InputError, match=complaint):
        model(coloring="per_ray").check(field, RayConvention())
    with pytest.raises(InputError, match=complaint):
        TrainConfig(field=field, model=model(coloring="per_ray"))
    model(coloring="per_sample").check(field, RayConvention())
    model(coloring="per_ray").check(PyNeRF(blend="features"), RayConvention())


def test_the_pyramid_s_preset_refuses_blended_results() -> None:
    config = presets.make_preset("pynerf-small")
    with pytest.raises(InputError, match=r"set model.coloring to per_sample"):
        dataclasses.replace(config, field=dataclasses.replace(config.field, blend="results"))


@pytest.mark.parametrize("model", [PackedModel, HierarchicalModel, ProposalModel])
@pytest.mark.parametrize("numbers", [{"lengths_along": "axis"}, {"view_directions": "axis"}])
def test_a_convention_along_the_axis_needs_a_range_along_it(
    numbers: dict[str, Any], model: Any
) -> None:
    with pytest.raises(InputError, match=r"set ray_convention.range_along to axis"):
        model().check(NeRF(), RayConvention(**numbers))
    with pytest.raises(InputError, match=r"set ray_convention.range_along to axis"):
        TrainConfig(field=NeRF(), model=model(), ray_convention=RayConvention(**numbers))


@pytest.mark.parametrize("model", [PackedModel, ProposalModel])
@pytest.mark.parametrize(
    "numbers",
    [
        {"lengths_along": "axis", "range_along": "axis"},
        {"view_directions": "axis", "range_along": "axis"},
        {"transmittance": "inclusive"},
    ],
)
def test_only_the_hierarchical_model_knows_other_lengths_directions_and_transmittances(
    numbers: dict[str, Any], model: Any
) -> None:
    convention = RayConvention(**numbers)
    with pytest.raises(InputError, match="only the hierarchical model knows"):
        model().check(NeRF(), convention)
    with pytest.raises(InputError, match="use model hierarchical"):
        TrainConfig(field=NeRF(), model=model(), ray_convention=convention)
    HierarchicalModel().check(NeRF(), convention)
    TrainConfig(field=NeRF(), model=HierarchicalModel(), ray_convention=convention)


@pytest.mark.parametrize("model", [PackedModel(), HierarchicalModel(), ProposalModel()])
def test_every_model_knows_conventions_of_range_pixel_center_and_threshold(model: Model) -> None:
    convention = RayConvention(
        pixel_center=0.0, range_along="axis", samples_at="start", transmittance_threshold=0.1
    )
    model.check(NeRF(), convention)
    assert TrainConfig(field=NeRF(), model=model, ray_convention=convention).model is model


# -- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        tiny_tensorf(),
        tiny_nerf(),
        tiny_nerf(field=NeRF(width=8), num_fine_samples=0),
        tiny_voxels(),
        tiny_hashgrid(),
        marching_nerf(),
        proposing_hashgrid(),
        tiny_hashgrid(
            field=PyNeRF(
                num_pyramid_levels=2, num_levels=2, log2_hashmap_size=8, max_resolution=32
            )
        ),
    ],
    ids=[
        "tensorf", "nerf", "coarse", "voxels", "hash grid", "marching nerf", "proposals", "pyramid"
    ],
)  # fmt: skip
def test_param_groups_name_a_group_for_every_parameter(config: TrainConfig) -> None:
    stage, state = first_state(config)
    groups = config.model.param_groups(stage.field, state.params)
    assert jax.tree.structure(groups) == jax.tree.structure(state.params)
    assert set(jax.tree.leaves(groups)) <= {"grid", "mlp"}


def test_param_groups_put_factors_and_tables_into_grid_and_all_else_into_mlp() -> None:
    def groups_of(config: TrainConfig) -> ModelParams:
        stage, state = first_state(config)
        return config.model.param_groups(stage.field, state.params)

    factors = groups_of(tiny_tensorf()).field
    assert set(jax.tree.leaves([factors["density"], factors["features"]])) == {"grid"}
    assert set(jax.tree.leaves([factors["basis"], factors["mlp"]])) == {"mlp"}
    assert set(jax.tree.leaves(groups_of(tiny_nerf()))) == {"mlp"}
    proposals = groups_of(proposing_hashgrid()).proposals
    assert [p["table"] for p in proposals] == ["grid"]
    assert set(jax.tree.leaves([p | {"table": "mlp"} for p in proposals])) == {"mlp"}


def penalty_of(config: TrainConfig, field: Field, params: ModelParams, *arguments: Any) -> Any:
    """The penalty, whose gradient the model must add to those it is given."""
    ones = jax.tree.map(jnp.ones_like, params)
    penalty, grads = config.model.add_regularization(field, params, ones, *arguments)

    def total(params: ModelParams) -> Any:
        networks = (params.coarse, params.field)
        return sum(field.regularization(p, *arguments) for p in networks if p is not None)

    expected = jax.grad(total)(params)
    for actual, added in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual - 1.0, added, rtol=1e-4, atol=1e-5)
    return penalty


def test_regularization_of_factors_is_the_weighted_sum_of_its_terms() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    assert isinstance(stage.field, TensoRF)
    field = dataclasses.replace(
        stage.field,
        l1_weight=0.5,
        l1_weight_pruned=0.25,
        density_tv_weight=2.0,
        feature_tv_weight=3.0,
    )
    params = state.params
    l1 = tensor_factors.l1_norm(params.field)
    variation = 2.0 * tensor_factors.total_variation(params.field["density"])
    variation += 3.0 * tensor_factors.total_variation(params.field["features"])
    grid_and_key = (state.grid, jax.random.key(0))
    regularization = functools.partial(penalty_of, config)
    np.testing.assert_allclose(
        regularization(field, params, *grid_and_key, ONE), 0.5 * l1 + variation, rtol=1e-6
    )
    decayed = regularization(field, params, *grid_and_key, jnp.asarray(0.1))
    np.testing.assert_allclose(decayed, 0.5 * l1 + 0.1 * variation, rtol=1e-6)
    pruned = dataclasses.replace(field, pruned=True)
    np.testing.assert_allclose(
        regularization(pruned, params, *grid_and_key, ONE), 0.25 * l1 + variation, rtol=1e-6
    )
    nerf_config = tiny_nerf()
    nerf_stage, nerf = first_state(nerf_config)
    penalty = penalty_of(nerf_config, nerf_stage.field, nerf.params, *grid_and_key, ONE)
    assert float(penalty) == 0.0


def test_regularization_of_lines_has_orthogonality_and_variation() -> None:
    config = cp_config(orthogonality_weight=0.7, l1_weight=0.0, density_tv_weight=3.0)
    stage, state = first_state(config)
    arguments = (state.grid, jax.random.key(0), ONE)
    penalty = penalty_of(config, stage.field, state.params, *arguments)
    expected = 0.7 * tensor_factors.ortho_loss(state.params.field)
    expected += 3.0 * tensor_factors.total_variation(state.params.field["density"])
    np.testing.assert_allclose(penalty, expected, rtol=1e-6)
    assert float(penalty) > 0


def test_regularization_of_voxels_estimates_their_variation_in_drawn_cells() -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    assert isinstance(stage.field, Voxels) and isinstance(state.grid, VoxelGrid)
    field = dataclasses.replace(
        stage.field, density_tv_weight=2.0, feature_tv_weight=3.0, tv_cells=4000
    )
    table = jax.random.normal(jax.random.key(2), state.params.field["table"].shape)
    params = state.params._replace(field=state.params.field | {"table": table})
    corner_rows = state.grid.corner_rows[1 : int(state.grid.num_cells)]
    density, features = voxels.total_variation(table[corner_rows])
    arguments = (params, state.grid, jax.random.key(0), ONE)
    penalty = penalty_of(config, field, *arguments)
    np.testing.assert_allclose(penalty, 2.0 * density + 3.0 * features, rtol=0.03)
    unweighted = dataclasses.replace(field, density_tv_weight=0.0, feature_tv_weight=0.0)
    assert float(penalty_of(config, unweighted, *arguments)) == 0.0


# -- rendering ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels, tiny_nerf])
def test_eval_stage_does_not_depend_on_numbers_of_training(make: Any) -> None:
    config = make()
    stage, state = first_state(config)

    def eval_stage(stage: base.StageSpec) -> base.StageSpec:
        return config.model.eval_stage(stage, state.grid, config.ray_convention, crop=False)[0]

    changes: dict[str, Any] = {
        "num_rays": 7, "supersample": 3, "block_budget": 8, "sample_budget": 9
    }  # fmt: skip
    if isinstance(stage.field, TensoRF):
        changes["field"] = dataclasses.replace(stage.field, pruned=True)
    assert eval_stage(dataclasses.replace(stage, **changes)) == eval_stage(stage)
    # Whether features are computed for all samples does matter, for how many does not.
    stages = [eval_stage(dataclasses.replace(stage, color_budget=n)) for n in (0, 5, 6)]
    assert stages[0] != stages[1] == stages[2]


@pytest.mark.parametrize(
    "config",
    [tiny_tensorf(), tiny_nerf(), tiny_voxels(), tiny_hashgrid()],
    ids=["tensorf", "nerf", "voxels", "hash grid"],
)
def test_rays_that_miss_the_box_show_the_background(config: TrainConfig) -> None:
    stage, state = first_state(config)
    rays = dataclasses.replace(train_rays(8), origins=jnp.full((8, 3), 50.0))
    background = jnp.array([0.1, 0.5, 0.7])
    arguments = (state.params, state.grid, rays, background, state.grid.aabb)
    rendering = render_image(config, stage, 1 << 12, *arguments)
    np.testing.assert_allclose(rendering.rgb, np.tile(background, (8, 1)), atol=1e-6)
    np.testing.assert_allclose(rendering.opacity, 0.0, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_nerf, slow(marching_nerf)], ids=["hierarchical", "packed"])
def test_density_is_noisy_in_training_and_not_in_images(make: Any) -> None:
    config, rays = make(), train_rays(16)
    quiet_stage, state = first_state(config)
    noisy_field = dataclasses.replace(config.field, density_noise=2.0)
    stages = quiet_stage, dataclasses.replace(quiet_stage, field=noisy_field)
    batch = (state.params, state.grid, jax.random.key(0), rays, jnp.ones((16, 3)))
    trained = [render_batch(config, ample(stage), *batch) for stage in stages]
    for quiet, noisy in zip(trained[0].rgb, trained[1].rgb, strict=True):
        assert np.max(np.abs(quiet - noisy)) > 1e-3
    view = (state.params, state.grid, rays, jnp.ones(3), state.grid.aabb)
    images = [render_image(config, stage, 1 << 12, *view).rgb for stage in stages]
    np.testing.assert_array_equal(images[0], images[1])


EVERY_FIELD = {
    "tensorf": tiny_tensorf(),
    "tensorf, per sample": tiny_tensorf(coloring="per_sample", max_colored_fraction=0.5),
    "cp": cp_config(),
    "voxels": tiny_voxels(),
    "nerf": tiny_nerf(),
    "nerf, points": tiny_nerf(quadrature="points"),
    "nerf, disparity, relu": tiny_nerf(spacing="disparity", activation="relu"),
    "nerf, integrated": tiny_nerf(encoding="integrated"),
    "marching nerf, integrated": marching_nerf(encoding="integrated"),
    "bitnerf": tiny_bitnerf(),
    "hash grid": tiny_hashgrid(),
    "hash grid, bfloat16": tiny_hashgrid(table_dtype="bfloat16"),
    "proposals": proposing_hashgrid(),
    "pyramid": tiny_pynerf(),
    "pyramid, results": tiny_pynerf(blend="results"),
    "pyramid, separate": tiny_pynerf(tables="separate"),
}


@pytest.mark.parametrize("config", EVERY_FIELD.values(), ids=EVERY_FIELD)
def test_gradients_of_every_field_and_model_are_finite_at_the_extremes(
    config: TrainConfig,
) -> None:
    stage, state = first_state(config)
    stage = ample(stage)
    rays = axis_rays()
    # Some without length, some that end before the box, the others along an axis, past it or in it.
    number = np.arange(24)
    far = np.where(number % 8 == 1, 2.0, np.where(number % 8 == 4, 2.1, 6.0))
    rays = dataclasses.replace(rays, far=jnp.asarray(far, jnp.float32))
    background = jnp.ones((24, 3))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def differentiate(params: ModelParams) -> Any:
        key = jax.random.key(0)
        rendering = config.model.render_train(
            stage, params, state.grid, key, rays, background, config.ray_convention
        )
        loss = sum(jnp.sum(rgb) for rgb in rendering.rgb) + jnp.sum(rendering.distortion_loss)
        if rendering.interlevel_loss is not None:
            loss += jnp.sum(rendering.interlevel_loss)
        penalty = stage.field.regularization(params.field, state.grid, key, ONE)
        return loss + penalty, rendering

    for scale in (1.0, 1e3):
        params = jax.tree.map(lambda x, scale=scale: scale * x, random_params(state.params))
        grads, rendering = differentiate(params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
        assert all(np.all(np.isfinite(rgb)) for rgb in rendering.rgb)
        opacity = np.asarray(rendering.opacity)
        assert np.all((opacity >= 0) & (opacity < 1.001))
        if scale == 1.0:
            assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("config", mostly_slow([*EVERY_FIELD.values()], 5), ids=EVERY_FIELD)
def test_images_do_not_depend_on_how_rays_are_batched(config: TrainConfig) -> None:
    stage, state = first_state(config)
    params, rays = random_params(state.params), train_rays(24)
    together = render_image(config, stage, 1 << 12, params, state.grid, rays, jnp.ones(3))
    part = jax.tree.map(lambda x: x[:7], rays)
    alone = render_image(config, stage, 1 << 12, params, state.grid, part, jnp.ones(3))
    np.testing.assert_allclose(alone.rgb, together.rgb[:7], atol=2e-5)


# -- contracted space and appearances ----------------------------------------------------------

# Every model, and every kind of grid.
EVERY_MODEL = [slow(tiny_voxels), slow(tiny_tensorf), tiny_nerf, marching_nerf, proposing_hashgrid]


@pytest.mark.parametrize("make", EVERY_MODEL)
def test_contracted_space_is_rendered_beyond_the_box_and_the_range_of_distances(make: Any) -> None:
    config = make(contract=True)
    stage, state = first_state(config)
    assert np.max(np.abs(state.grid.aabb)) >= 2.99
    rays = outgoing_rays()
    params = random_params(state.params)
    background = jnp.ones((40, 3))

    def total(params: ModelParams) -> Any:
        rendering = config.model.render_train(
            ample(stage), params, state.grid, jax.random.key(0), rays, background,
            config.ray_convention,
        )  # fmt: skip
        return jnp.sum(rendering.rgb[-1]) + jnp.sum(rendering.distortion_loss), rendering

    grads, rendering = jax.jit(jax.grad(total, has_aux=True))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    # Hardly any of space is empty, and rays have no end.
    assert np.mean(rendering.opacity > 0.98) > 0.8
    image = render_image(config, stage, 1 << 12, params, state.grid, rays, jnp.ones(3))
    assert np.mean(image.opacity > 0.98) > 0.8


@pytest.mark.parametrize("make", EVERY_MODEL)
@pytest.mark.parametrize("contract", [False, True])
def test_known_depth_is_learned_where_it_is_known(make: Any, contract: bool) -> None:
    config = make(contract=contract)
    stage, state = first_state(config)
    stage, rays = ample(stage), train_rays(24)
    known = jnp.arange(24) % 3 > 0
    params = random_params(state.params)

    def total(params: ModelParams, distance: jax.Array) -> Any:
        depth = DepthTarget(distance, jnp.full(24, 0.2))
        rendering = config.model.render_train(
            stage, params, state.grid, jax.random.key(0), rays, jnp.ones((24, 3)),
            config.ray_convention, depth,
        )  # fmt: skip
        assert rendering.depth_loss is not None
        return jnp.sum(rendering.depth_loss), rendering.depth_loss

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (loss, depth), grads = run(params, jnp.where(known, 4.0, jnp.nan))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    np.testing.assert_array_equal(np.asarray(depth)[~known], 0.0)
    assert np.all(np.asarray(depth)[known] > 0.0)
    # A step against the gradient lowers it.
    size = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grads)) ** 0.5
    moved = jax.tree.map(lambda p, g: p - 0.02 / size * g, params, grads)
    assert float(run(moved, jnp.where(known, 4.0, jnp.nan))[0][0]) < float(loss)


def test_init_params_refuses_appearances_of_a_field_without_their_channels(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "import dataclasses\n"
        "from jaxrf.fields import Field\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Bare(Field):\n"
        "    init = density = features = color = lambda *_: None\n"
    )
    field = make_user_field(f"{tmp_path / 'bare.py'}:Bare")
    with pytest.raises(InputError, match="Bare has no appearance_channels"):
        PackedModel(appearance_dim=2).init_params(field, jax.random.key(0))
