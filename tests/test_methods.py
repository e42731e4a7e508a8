"""Methods: how fields grow, how batches are fitted, what is rendered."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import make_scene, tiny_nerf, tiny_tensorf, tiny_voxels

from jaxrf import config as configs
from jaxrf import methods, train
from jaxrf.cameras import image_rays
from jaxrf.config import TensoRFConfig, TrainConfig, VoxelsConfig
from jaxrf.fields import tensorf, voxels
from jaxrf.fields.base import Params
from jaxrf.fields.voxels import VoxelGrid
from jaxrf.methods import Growth, Stage
from jaxrf.occupancy import OccupancyGrid
from jaxrf.rays import Rays

BOX = np.array([[-1.5] * 3, [1.5] * 3], np.float32)

# Compiled whole: operation by operation they take much longer.
PREDICT = jax.jit(methods.predict, static_argnums=(0, 1))
RENDER = jax.jit(methods.render_rays, static_argnums=(0, 1, 2))


# ---------------------------------------------------------------------------------------------
# The plan
# ---------------------------------------------------------------------------------------------


def test_plan_of_the_published_recipe() -> None:
    """Section 5: upsampled at steps 2000, 3000, 4000, 5500 and 7000; masks at 2000 and 4000."""
    plan = methods.plan_growth(TrainConfig(field=TensoRFConfig(), steps=30_000))
    assert [growth.step for growth in plan] == [2000, 3000, 4000, 5500, 7000]
    assert [growth.prune for growth in plan] == [True, False, True, False, False]
    sides = [round((growth.voxels or 0) ** (1 / 3)) for growth in plan]
    assert sides == [152, 180, 213, 253, 300]  # log-spaced between 128 and 300


@pytest.mark.parametrize("steps", [10, 100, 30_000])
@pytest.mark.parametrize("preset", configs.PRESETS, ids=configs.preset_name)
def test_plans_scale_with_the_steps_and_are_in_order(preset: Any, steps: int) -> None:
    config = dataclasses.replace(preset(), steps=steps, subrays=1)
    field = config.field
    plan = methods.plan_growth(config)
    numbers = [growth.step for growth in plan]
    assert numbers == sorted(set(numbers))
    assert all(0 < number < steps for number in numbers)
    if isinstance(field, TensoRFConfig):
        wanted = {round(at * steps) for at in field.upsample_at + field.prune_at}
        assert set(numbers) == wanted - {0}
        voxels = [growth.voxels for growth in plan if growth.voxels is not None]
        assert voxels == sorted(voxels) and voxels[-1] == field.final_voxels
        assert voxels[0] > field.initial_voxels
    elif isinstance(field, VoxelsConfig):
        assert all(number >= field.settle_steps for number in numbers)
        sides = [round((growth.voxels or 0) ** (1 / 3)) for growth in plan if growth.voxels]
        if steps == 30_000:
            wanted = {round(at * steps) for at in field.upsample_at + field.prune_at}
            assert set(numbers) == wanted
        if steps >= 100:
            assert sides == [2 * field.initial_resolution, 4 * field.initial_resolution]
            assert plan[0].prune, "divided before it is pruned, the grid would fill the memory"
    else:
        assert plan == []


def test_a_prune_and_an_upsampling_of_the_same_step_are_one_growth() -> None:
    field = TensoRFConfig(
        upsample_at=(0.5,), prune_at=(0.25, 0.5, 0.75), initial_voxels=1000, final_voxels=8000
    )
    assert methods.plan_growth(TrainConfig(field=field, steps=100)) == [
        Growth(25, True, None, 1),
        Growth(50, True, 8000, 1),
        Growth(75, True, None, 1),
    ]


def test_a_pixel_gets_its_sub_rays_from_the_asked_step_on() -> None:
    field = TensoRFConfig(upsample_at=(), prune_at=(0.25, 0.5), initial_voxels=1000)
    plan = methods.plan_growth(TrainConfig(field=field, steps=100, subrays=3, subrays_from=0.4))
    assert plan == [
        Growth(25, True, None, 1),
        Growth(40, False, None, 3),
        Growth(50, True, None, 3),
    ]
    late, always = (tiny_nerf(steps=10, subrays=2, subrays_from=at) for at in (0.5, 0.0))
    assert methods.plan_growth(late) == [Growth(5, False, None, 2)]
    assert methods.plan_growth(always) == []
    assert methods.first_stage(late, BOX).subrays == 1
    assert methods.first_stage(always, BOX).subrays == 2
    stage, state = first_state(late)
    stage, *_ = methods.grow(late.field, stage, Growth(5, False, None, 2), state.params, state.grid)
    assert stage.subrays == 2


@pytest.mark.parametrize("subrays", [1, 2, 3, 20])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_nerf, tiny_voxels])
def test_a_batch_is_of_whole_pixels(make: Any, subrays: int) -> None:
    config = make(subrays=subrays, subrays_from=0.0)
    stage, state = first_state(config)
    key = jax.random.key(0)
    rays = some_rays(64)
    fitted = methods.fit_batch(config, stage, state.params, state.grid, key, lambda: rays)
    assert fitted.rays % subrays**2 == 0 and fitted.rays > 0
    assert fitted.rays <= max(config.batch_rays, subrays**2)


def test_growths_at_the_ends_are_left_out() -> None:
    field = TensoRFConfig(upsample_at=(0.0, 1.0), prune_at=(0.0, 0.001, 1.0))
    assert methods.plan_growth(TrainConfig(field=field, steps=100)) == []
    field = TensoRFConfig(upsample_at=(), prune_at=())
    assert methods.plan_growth(TrainConfig(field=field, steps=100)) == []


# ---------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------


def first_state(config: TrainConfig) -> tuple[Stage, train.TrainState]:
    stage = methods.first_stage(config, BOX)
    return stage, train.init_state(config, stage)


def test_first_stage_has_the_initial_grid() -> None:
    stage = methods.first_stage(tiny_tensorf(), BOX)
    assert stage.aabb == ((-1.5,) * 3, (1.5,) * 3)
    assert stage.resolution == (8, 8, 8) and stage.cells == (12, 12, 12)
    assert stage.rays == 128 and not stage.pruned
    assert hash(stage) == hash(dataclasses.replace(stage))
    long = np.array([[0, 0, 0], [4, 2, 1]], np.float32)
    assert methods.first_stage(tiny_tensorf(), long).resolution == (16, 8, 4)


def test_first_stage_of_a_nerf_has_no_grid() -> None:
    stage = methods.first_stage(tiny_nerf(), BOX)
    assert stage.resolution == (1, 1, 1) and stage.cells == (1, 1, 1)
    assert stage.rays == 64


def some_rays(count: int = 512) -> Rays:
    pixels = train.put_pixels(make_scene().splits["train"])
    return train.draw_batch(pixels, jax.random.key(1), count, (2.0, 6.0), "white")[0]


def ball_params(config: TrainConfig, stage: Stage, params: Params) -> tuple[Params, Stage]:
    """Factors whose raw density is a bump in the middle: x^2 + y^2 + z^2 is a sum of products."""
    assert isinstance(config.field, TensoRFConfig)

    def bump(size: int, axis: int) -> jax.Array:
        low, high = stage.aabb[0][axis], stage.aabb[1][axis]
        return jnp.exp(-2.0 * jnp.linspace(low, high, size) ** 2)

    density = jax.tree.map(jnp.zeros_like, params["density"])
    planes = list(density["planes"])
    lines = list(density["lines"])
    for index, ((across, down), axis) in enumerate(
        zip(tensorf.PLANE_AXES, tensorf.LINE_AXES, strict=True)
    ):
        res = stage.resolution
        plane = bump(res[down], down)[:, None] * bump(res[across], across)[None]
        planes[index] = planes[index].at[..., 0].set(10.0 * plane)
        lines[index] = lines[index].at[..., 0].set(bump(res[axis], axis))
    return {**params, "density": {"planes": tuple(planes), "lines": tuple(lines)}}, stage


def render(config: TrainConfig, stage: Stage, params: Params, grid: OccupancyGrid) -> np.ndarray:
    rays = image_rays(make_scene().splits["test"].cameras, 0, 2.0, 6.0)
    rays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rays)
    rendering = RENDER(config.field, stage, 1 << 13, params, grid, rays, jnp.array([0.0, 0.9, 0.9]))
    return np.asarray(rendering.rgb)


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("voxels", [None, 20**3])
def test_a_growth_keeps_what_the_field_shows(prune: bool, voxels: int | None) -> None:
    config = tiny_tensorf()
    config = dataclasses.replace(
        config,
        field=dataclasses.replace(
            config.field,
            density_shift=-10.0,
            density_scale=5.0,
            initial_voxels=12**3,
            step_ratio=0.5,
        ),
    )
    stage, state = first_state(config)
    params, stage = ball_params(config, stage, state.params)
    before = render(config, stage, params, state.grid)
    assert before.std(axis=0).min() > 0.05  # there is something to see
    new_stage, grid, carry_over = methods.grow(
        config.field, stage, Growth(1, prune, voxels, 1), params, state.grid
    )
    after = render(config, new_stage, carry_over(params), grid)
    assert np.abs(after - before).mean() < 0.01
    assert new_stage.pruned == prune
    if voxels is None and not prune:
        assert new_stage == stage
    if prune:
        assert 0 < np.mean(grid.occupied) < 0.9
        low, high = np.array(new_stage.aabb)
        assert np.all(low >= BOX[0]) and np.all(high <= BOX[1])
        assert np.prod(high - low) < 0.9 * 27
    if voxels is not None:
        assert np.prod(new_stage.resolution) == pytest.approx(voxels, rel=0.2)
    shapes = jax.tree.map(jnp.shape, carry_over(params))
    fresh = methods.init_params(config.field, new_stage, jax.random.key(0))
    assert shapes == jax.tree.map(jnp.shape, fresh)


def test_shrinking_the_box_keeps_the_size_of_voxels() -> None:
    config = tiny_tensorf()
    config = dataclasses.replace(
        config,
        field=dataclasses.replace(
            config.field, density_shift=-10.0, density_scale=5.0, initial_voxels=16**3
        ),
    )
    stage, state = first_state(config)
    params, stage = ball_params(config, stage, state.params)
    new_stage, _, _ = methods.grow(
        config.field, stage, Growth(1, True, None, 1), params, state.grid
    )
    old = (np.array(stage.aabb[1]) - stage.aabb[0]) / (np.array(stage.resolution) - 1)
    new = (np.array(new_stage.aabb[1]) - new_stage.aabb[0]) / (np.array(new_stage.resolution) - 1)
    assert new_stage.resolution < stage.resolution
    assert np.all(new <= old + 1e-6) and np.all(new > 0.85 * old)


def test_pruning_an_empty_field_leaves_the_box() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    params = jax.tree.map(jnp.zeros_like, state.params)
    field = dataclasses.replace(config.field, density_shift=-30.0)
    new_stage, grid, _ = methods.grow(field, stage, Growth(1, True, None, 1), params, state.grid)
    assert not np.any(grid.occupied)
    assert new_stage.aabb == stage.aabb and new_stage.resolution == stage.resolution


def test_growing_a_nerf_changes_nothing() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    grown = methods.grow(config.field, stage, Growth(1, True, 99, 1), state.params, state.grid)
    assert grown[0] == stage and grown[1] is state.grid
    assert grown[2](state.params) is state.params


# ---------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "most"), [(1 << 13, 4096), (1 << 18, 200)])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_fitted_batch_keeps_its_budgets_and_drops_hardly_a_ray(
    samples: int, most: int, pruned: bool
) -> None:
    config = tiny_tensorf(batch_samples=samples, batch_rays=most)
    config = dataclasses.replace(
        config,
        field=dataclasses.replace(
            config.field, density_shift=-10.0, density_scale=5.0, initial_voxels=12**3
        ),
    )
    stage, state = first_state(config)
    params, stage = ball_params(config, stage, state.params)
    grid = state.grid
    if pruned:
        stage, grid, carry = methods.grow(
            config.field, stage, Growth(1, True, None, 1), params, state.grid
        )
        params = carry(params)
    key = jax.random.key(2)
    fitted = methods.fit_batch(config, stage, params, grid, key, some_rays)
    assert fitted.density_budget <= samples
    assert 128 <= fitted.color_budget <= fitted.density_budget
    assert fitted.rays <= most and (fitted.rays == most or fitted.rays % 128 == 0)
    assert fitted.rays > 0
    same = {"rays": 0, "density_budget": 0, "color_budget": 0}
    assert dataclasses.replace(fitted, **same) == dataclasses.replace(stage, **same)
    if pruned:
        assert fitted.color_budget < fitted.density_budget
    prediction = PREDICT(
        config.field,
        fitted,
        params,
        grid,
        jax.random.key(3),
        some_rays(fitted.rays),
        jnp.ones((fitted.rays, 3)),
    )
    assert float(jnp.mean(prediction.dropped * 1.0)) < 0.05


def test_a_larger_allowance_gives_more_rays() -> None:
    rays = []
    for samples in (1 << 12, 1 << 14):
        config = tiny_tensorf(batch_samples=samples, batch_rays=1 << 14)
        stage, state = first_state(config)
        fitted = methods.fit_batch(
            config, stage, state.params, state.grid, jax.random.key(0), some_rays
        )
        rays.append(fitted.rays)
    assert rays[1] >= 3 * rays[0]


def test_the_batch_of_a_nerf_is_what_was_asked_for() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    fitted = methods.fit_batch(
        config, stage, state.params, state.grid, jax.random.key(0), lambda: some_rays(8)
    )
    assert fitted == stage


def test_step_length_is_so_many_voxels() -> None:
    field = TensoRFConfig(step_ratio=0.25)
    stage = Stage(((0.0, 0.0, 0.0), (2.0, 2.0, 4.0)), (3, 5, 11), (1, 1, 1), 1, 1, 1, 1, False)
    assert methods.step_length(field, stage) == pytest.approx(0.25 * np.mean([1.0, 0.5, 0.4]))


def test_chunks_of_a_nerf_fit_the_allowance() -> None:
    stage = methods.first_stage(tiny_nerf(), BOX)
    for samples in (1 << 12, 1 << 16, 1 << 20):
        config = tiny_nerf(render_samples=samples)
        assert methods.rays_at_once(config, stage) == max(64, samples // 20)


def test_chunks_of_a_tensorf_grow_with_the_allowance_within_bounds() -> None:
    stage = methods.first_stage(tiny_tensorf(), BOX)
    chunks = [
        methods.rays_at_once(tiny_tensorf(render_samples=samples), stage)
        for samples in (1, 1 << 11, 1 << 13, 1 << 30)
    ]
    assert chunks == sorted(chunks)
    assert chunks[0] == 256 and chunks[-1] == 8192
    # 12.1 steps along the diagonal of 7 x 7 x 7 voxels, most of which hit nothing.
    assert chunks[1] == (8 << 11) // 13


# ---------------------------------------------------------------------------------------------
# Parameters and penalties
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        tiny_tensorf(),
        tiny_nerf(),
        tiny_nerf(field=configs.NeRFConfig(fine_samples=0, width=8)),
        tiny_voxels(),
    ],
    ids=["tensorf", "nerf", "coarse", "voxels"],
)
def test_every_parameter_has_a_label(config: TrainConfig) -> None:
    _, state = first_state(config)
    labels = methods.label_params(config.field, state.params)
    assert jax.tree.structure(labels) == jax.tree.structure(state.params)
    assert set(jax.tree.leaves(labels)) <= {"grid", "network"}


def test_planes_and_lines_are_grids_and_the_rest_networks() -> None:
    config = tiny_tensorf()
    _, state = first_state(config)
    labels = methods.label_params(config.field, state.params)
    assert set(jax.tree.leaves([labels["density"], labels["features"]])) == {"grid"}
    assert set(jax.tree.leaves([labels["basis"], labels["mlp"]])) == {"network"}
    nerf = methods.label_params(tiny_nerf().field, first_state(tiny_nerf())[1].params)
    assert set(jax.tree.leaves(nerf)) == {"network"}


def test_a_nerf_without_fine_samples_has_one_network() -> None:
    config = tiny_nerf(field=dataclasses.replace(tiny_nerf().field, fine_samples=0))
    stage, state = first_state(config)
    assert set(state.params) == {"coarse"}
    rays = some_rays(16)
    key = jax.random.key(0)
    prediction = PREDICT(
        config.field, stage, state.params, state.grid, key, rays, jnp.ones((16, 3))
    )
    assert len(prediction.rgb) == 1 and not prediction.dropped.any()


def test_the_two_networks_of_a_nerf_start_differently() -> None:
    _, state = first_state(tiny_nerf())
    pairs = zip(
        jax.tree.leaves(state.params["coarse"]), jax.tree.leaves(state.params["fine"]), strict=True
    )
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_the_penalty_is_the_weighted_sum_of_its_terms() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    field = dataclasses.replace(
        config.field,
        l1_weight=0.5,
        l1_weight_pruned=0.25,
        density_tv_weight=2.0,
        feature_tv_weight=3.0,
    )
    params = state.params
    l1 = tensorf.l1_norm(params)
    variation = 2.0 * tensorf.total_variation(params["density"])
    variation += 3.0 * tensorf.total_variation(params["features"])
    rest = (state.grid, jax.random.key(0))
    found = methods.regularise(field, stage, params, *rest)
    np.testing.assert_allclose(found, 0.5 * l1 + variation, rtol=1e-6)
    pruned = dataclasses.replace(stage, pruned=True)
    np.testing.assert_allclose(
        methods.regularise(field, pruned, params, *rest), 0.25 * l1 + variation, rtol=1e-6
    )
    nerf_stage, nerf = first_state(tiny_nerf())
    assert float(methods.regularise(tiny_nerf().field, nerf_stage, nerf.params, *rest)) == 0.0


def test_the_penalty_of_voxels_is_their_variation_in_some_cells() -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    field = dataclasses.replace(
        config.field, density_tv_weight=2.0, feature_tv_weight=3.0, tv_cells=4000
    )
    table = jax.random.normal(jax.random.key(2), state.params["table"].shape)
    params = state.params | {"table": table}
    assert isinstance(state.grid, VoxelGrid)
    everywhere = voxels.total_variation(table, state.grid.rows[1 : int(state.grid.count)])
    found = methods.regularise(field, stage, params, state.grid, jax.random.key(0))
    np.testing.assert_allclose(found, 2.0 * everywhere[0] + 3.0 * everywhere[1], rtol=0.03)
    none = dataclasses.replace(field, density_tv_weight=0.0, feature_tv_weight=0.0)
    assert float(methods.regularise(none, stage, params, state.grid, jax.random.key(0))) == 0.0


# ---------------------------------------------------------------------------------------------
# Voxels
# ---------------------------------------------------------------------------------------------


def test_voxels_get_about_as_small_as_a_pixel_and_then_two_sub_rays() -> None:
    scene = make_scene()  # pixels of 4.0 / 21.9 = 0.18 at the middle, a box of 3.0
    for initial, wanted, subrays in ((4, 2, 2), (6, 1, 1), (14, 0, 2), (12, 0, 1), (64, 0, 2)):
        field = dataclasses.replace(
            tiny_voxels().field,
            initial_resolution=initial,
            divisions=None,
            upsample_at=(0.1, 0.2, 0.3),
        )
        fitted = methods.fit_config(tiny_voxels(field=field, subrays=None), scene)
        assert isinstance(fitted.field, VoxelsConfig)
        assert (fitted.field.divisions, fitted.subrays) == (wanted, subrays), initial
    field = dataclasses.replace(field, initial_resolution=1)
    fitted = methods.fit_config(tiny_voxels(field=field, subrays=3), scene)
    assert isinstance(fitted.field, VoxelsConfig)
    assert (fitted.field.divisions, fitted.subrays) == (3, 3)
    assert methods.fit_config(fitted, scene) == fitted
    for config in (tiny_nerf(), tiny_tensorf(subrays=4)):
        wanted = dataclasses.replace(config, subrays=config.subrays or 1)
        assert methods.fit_config(config, scene) == wanted


@pytest.mark.parametrize("divide", [False, True])
def test_voxels_that_no_ray_has_seen_are_dropped_but_for_neighbours(divide: bool) -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    grid = state.grid
    assert isinstance(grid, VoxelGrid)
    number = np.asarray(grid.number).reshape(grid.occupied.shape)
    seen = np.zeros(len(grid.seen), np.float32)
    seen[number[4, 5, 6]] = 0.5
    seen[number[1, 1, 1]] = 0.5 * config.field.prune_threshold
    grid = dataclasses.replace(grid, seen=jnp.asarray(seen))
    growth = Growth(6, True, 16**3 if divide else None, 1)
    new_stage, new, carry = methods.grow(config.field, stage, growth, state.params, grid)
    assert isinstance(new, VoxelGrid) and new_stage == stage
    assert int(new.occupied.sum()) == 27 * (8 if divide else 1)
    np.testing.assert_allclose(new.aabb[0], -1.5 + 3.0 / 8 * np.array([3, 4, 5]), atol=1e-6)
    assert carry(state.params)["table"].shape == state.params["table"].shape
    # Unseen as a whole, nothing is dropped.
    grid = dataclasses.replace(grid, seen=jnp.zeros(len(seen)))
    _, new, _ = methods.grow(config.field, stage, growth, state.params, grid)
    assert int(new.occupied.sum()) == 8**3 * (8 if divide else 1)


def test_a_table_that_gets_too_small_is_made_larger() -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    growth = Growth(6, False, 16**3, 1)
    new_stage, new, carry = methods.grow(config.field, stage, growth, state.params, state.grid)
    assert isinstance(new, VoxelGrid)
    assert new_stage.table_rows >= 17**3 + 1 and new_stage.table_cells >= 16**3 + 1
    assert new_stage.table_rows % 4096 == 0
    assert new.rows.shape == (new_stage.table_cells, 8)
    assert carry(state.params)["table"].shape == (new_stage.table_rows, 4)


def test_grids_are_described_in_their_own_terms() -> None:
    described = [
        methods.describe_grid(config.field, stage, state.grid)
        for config in (tiny_voxels(), tiny_tensorf(), tiny_nerf())
        for stage, state in [first_state(config)]
    ]
    assert described == ["512 voxels of 0.375", "grid 8x8x8", ""]


def test_growths_are_estimated_by_what_they_rebuild_and_compile() -> None:
    for config in (tiny_voxels(), tiny_tensorf(), tiny_nerf()):
        stage = methods.first_stage(config, BOX)
        growths = methods.plan_growth(config)
        seconds, slower = methods.estimate_growth(config.field, stage, growths, 10.0)
        longer, _ = methods.estimate_growth(config.field, stage, growths, 20.0)
        assert slower == 1.0
        if growths:
            assert 0 < seconds < longer
        else:
            assert seconds == longer == 0.0


def test_training_rays_are_jittered_and_rendering_is_not() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    rays, behind = some_rays(32), jnp.ones((32, 3))
    predictions = [
        PREDICT(config.field, stage, state.params, state.grid, jax.random.key(k), rays, behind).rgb[
            -1
        ]
        for k in (0, 0, 1)
    ]
    assert np.array_equal(predictions[0], predictions[1])
    assert not np.array_equal(predictions[0], predictions[2])


@pytest.mark.parametrize(
    "config", [tiny_tensorf(), tiny_nerf(), tiny_voxels()], ids=["tensorf", "nerf", "voxels"]
)
def test_rays_that_miss_the_box_show_the_background(config: TrainConfig) -> None:
    stage, state = first_state(config)
    rays = dataclasses.replace(some_rays(8), origins=jnp.full((8, 3), 50.0))
    background = jnp.array([0.1, 0.5, 0.7])
    rendering = RENDER(config.field, stage, 1 << 12, state.params, state.grid, rays, background)
    np.testing.assert_allclose(rendering.rgb, np.tile(background, (8, 1)), atol=1e-6)
    np.testing.assert_allclose(rendering.opacity, 0.0, atol=1e-6)
