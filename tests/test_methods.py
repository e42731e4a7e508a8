"""Methods: how fields grow, how batches are fitted, what is rendered."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    first_state,
    make_scene,
    marching_nerf,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf import config as configs
from jaxrf import methods, occupancy, progress, render, train
from jaxrf.cameras import image_rays
from jaxrf.config import TensoRFConfig, TrainConfig, VoxelsConfig
from jaxrf.fields import tensorf, voxels
from jaxrf.fields.base import Params
from jaxrf.fields.voxels import VoxelGrid
from jaxrf.methods import Growth, Stage
from jaxrf.occupancy import OccupancyGrid, ProbedGrid, WatchedGrid
from jaxrf.rays import Rays, clip_to_aabb

BOX = np.array([[-1.5] * 3, [1.5] * 3], np.float32)
# No two sides are alike.
LONG = np.array([[-1.5, -1.0, -0.5], [1.5, 1.2, 1.0]], np.float32)

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
        settle = field.settle_steps
        wanted = {max(round(at * steps), settle) for at in field.prune_at}
        wanted |= {
            max(round(at * steps), 2 * settle * (i + 1) + i)
            for i, at in enumerate(field.upsample_at)
        }
        assert set(numbers) == {number for number in wanted if 0 < number < steps}
        voxels = [growth.voxels for growth in plan if growth.voxels is not None]
        assert voxels == sorted(voxels)
        if max(wanted) < steps:
            assert voxels[-1] == field.final_voxels and voxels[0] > field.initial_voxels
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
    stage, *_ = methods.grow(late, stage, Growth(5, False, None, 2), state.params, state.grid)
    assert stage.subrays == 2


@pytest.mark.parametrize("subrays", [1, 2, 3, 20])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_nerf, tiny_voxels, tiny_hashgrid])
def test_a_batch_is_of_whole_pixels(make: Any, subrays: int) -> None:
    config = make(subrays=subrays, subrays_from=0.0)
    stage = methods.first_stage(config, BOX)
    assert stage.rays % subrays**2 == 0 and stage.rays > 0
    assert stage.rays <= max(config.batch_rays, subrays**2)


def test_growths_follow_a_change_of_pace_and_those_done_stay_where_they_were() -> None:
    field = TensoRFConfig(
        upsample_at=(0.25, 0.5), prune_at=(0.1, 0.75), initial_voxels=1000, final_voxels=8000
    )
    config = TrainConfig(field=field, steps=100, subrays=2, subrays_from=0.6)
    before = methods.plan_growth(config)
    # Of 310 steps, 30 are done and 0.3 of the way; another 280 are left for the rest.
    after = methods.plan_growth(progress.refit(config, 30, 310))
    assert [growth.step for growth in before] == [10, 25, 50, 60, 75]
    assert [growth.step for growth in after] == [10, 25, 110, 150, 210]
    for old, new in zip(before, after, strict=True):
        assert new._replace(step=old.step) == old


@pytest.mark.parametrize("settle", [0, 7, 15, 30, 99, 200])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_a_short_training_settles_before_its_first_growth(make: Any, settle: int) -> None:
    field = dataclasses.replace(
        make().field, settle_steps=settle, upsample_at=(0.05, 0.2), prune_at=(0.1, 0.4)
    )
    if isinstance(field, VoxelsConfig):
        field = dataclasses.replace(field, divisions=2)
    plan = methods.plan_growth(make(field=field, steps=100, subrays=1))
    pruned = [growth.step for growth in plan if growth.prune]
    assert pruned == sorted({s for s in (max(10, settle), max(40, settle)) if s < 100})
    upsampled = [growth.step for growth in plan if growth.voxels is not None]
    if make is tiny_tensorf:
        # A TensoRF settles again before each upsampling: time to compile what is to come.
        earliest = (2 * settle, 4 * settle + 1)
    else:
        earliest = (settle, settle + 1)
    wanted = [max(at, least) for at, least in zip((5, 20), earliest, strict=True)]
    assert upsampled == [step for step in wanted if step < 100]
    # Two upsamplings never fall together.
    assert len(set(wanted)) == 2
    assert [growth.step for growth in plan] == sorted({*pruned, *upsampled})


def test_growths_at_the_ends_are_left_out() -> None:
    field = TensoRFConfig(upsample_at=(0.0, 1.0), prune_at=(0.0, 0.001, 1.0))
    assert methods.plan_growth(TrainConfig(field=field, steps=100)) == []
    field = TensoRFConfig(upsample_at=(), prune_at=())
    assert methods.plan_growth(TrainConfig(field=field, steps=100)) == []


# ---------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------


def test_first_stage_has_the_initial_grid() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    assert stage.resolution == (8, 8, 8) and stage.cells == (8, 8, 8)
    assert stage.rays == 128 and not stage.pruned
    assert hash(stage) == hash(dataclasses.replace(stage))
    np.testing.assert_array_equal(state.grid.aabb, BOX)
    assert np.all(state.grid.occupied) and state.grid.occupied.shape == stage.cells
    long = np.array([[0, 0, 0], [4, 2, 1]], np.float32)
    assert methods.first_stage(config, long).resolution == (16, 8, 4)
    few = dataclasses.replace(config, field=dataclasses.replace(config.field, occupancy_voxels=64))
    assert methods.first_stage(few, BOX).cells == (4, 4, 4)


def test_first_stage_of_a_nerf_has_no_grid() -> None:
    stage = methods.first_stage(tiny_nerf(), BOX)
    assert stage.resolution == (1, 1, 1) and stage.cells == (1, 1, 1)
    assert stage.rays == 64


def some_rays(count: int = 512) -> Rays:
    pixels = train.put_pixels(make_scene().splits["train"])
    return train.draw_batch(pixels, jax.random.key(1), count, (2.0, 6.0), "white")[0]


def ball_config(side: int = 12, **changes: Any) -> TrainConfig:
    """A TensoRF that is thin but for what `ball_params` puts into it."""
    field = dataclasses.replace(
        tiny_tensorf().field,
        **{"density_shift": -10.0, "density_scale": 5.0, "initial_voxels": side**3, **changes},
    )
    return tiny_tensorf(field=field)


def ball_params(stage: Stage, params: Params, aabb: np.ndarray = BOX) -> Params:
    """Factors whose raw density is a bump in the middle: x^2 + y^2 + z^2 is a sum of products."""

    def bump(size: int, axis: int) -> jax.Array:
        return jnp.exp(-2.0 * jnp.linspace(*aabb[:, axis], size) ** 2)

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
    return {**params, "density": {"planes": tuple(planes), "lines": tuple(lines)}}


def roomy(stage: Stage) -> Stage:
    """The stage with budgets that surely suffice for some thousand rays."""
    colors = stage.color_budget and 1 << 16
    return dataclasses.replace(
        stage, block_budget=1 << 16, sample_budget=1 << 16, color_budget=colors
    )


def look_around(
    config: TrainConfig, stage: Stage, params: Params, grid: OccupancyGrid
) -> WatchedGrid:
    """The grid after all training rays have been through it a few times."""
    rays = some_rays(2048)
    for number in range(3):
        rest = (jax.random.key(number), rays, jnp.ones((2048, 3)))
        prediction = PREDICT(config.field, roomy(stage), params, grid, *rest)
        assert not np.any(prediction.dropped)
        grid = prediction.grid
    assert isinstance(grid, WatchedGrid)
    return grid


def render_view(
    config: TrainConfig, stage: Stage, params: Params, grid: OccupancyGrid
) -> np.ndarray:
    rays = image_rays(make_scene().splits["test"].cameras, 0, 2.0, 6.0)
    rays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rays)
    background = jnp.array([0.0, 0.9, 0.9])
    rendering = RENDER(config.field, stage, 1 << 13, params, grid, rays, background, grid.aabb)
    return np.asarray(rendering.rgb)


def positions_in(grid: OccupancyGrid, count: int = 400, seed: int = 0) -> jax.Array:
    """Random positions in the occupied cells of a grid, not quite at their faces."""
    rng = np.random.default_rng(seed)
    cells = np.argwhere(np.asarray(grid.occupied))
    low, high = np.asarray(grid.aabb, np.float64)
    places = cells[rng.integers(0, len(cells), count)] + rng.uniform(0.01, 0.99, (count, 3))
    return jnp.asarray(low + places * (high - low) / grid.occupied.shape, jnp.float32)


def values_at(
    config: TrainConfig, stage: Stage, params: Params, grid: OccupancyGrid, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Density and features of the field."""
    fns = methods.bind(methods.make_field(config.field, stage), params, grid)
    density, latent = fns.density(positions, jnp.zeros(len(positions)))
    return density, fns.features(latent)


@pytest.mark.parametrize("prune_by", ["alpha", "weight"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("voxels", [None, 20**3])
def test_a_growth_keeps_what_the_field_shows(
    voxels: int | None, prune: bool, pruned: bool, prune_by: str
) -> None:
    config = ball_config(step_ratio=0.5, prune_by=prune_by)
    stage, state = first_state(config)
    params, grid = ball_params(stage, state.params), state.grid
    if pruned:
        grid = look_around(config, stage, params, grid)
        stage, grid, _ = methods.grow(config, stage, Growth(1, True, None, 1), params, grid)
    before = render_view(config, stage, params, grid)
    assert before.std(axis=0).min() > 0.05  # there is something to see
    grid = look_around(config, stage, params, grid)
    new_stage, new, carry_over = methods.grow(
        config, stage, Growth(2, prune, voxels, 1), params, grid
    )
    assert isinstance(new, WatchedGrid)
    if prune or voxels:
        assert not np.any(occupancy.recall_weights(new)), "cells are other ones now"
    after = render_view(config, new_stage, carry_over(params), new)
    assert np.abs(after - before).mean() < 0.01
    assert new_stage.pruned == (prune or pruned)
    if prune or pruned:
        assert 0 < np.mean(new.occupied) < 0.9 or voxels
    else:
        assert np.all(new.occupied)
    alone = grid
    if prune:
        _, alone, same = methods.grow(config, stage, Growth(2, True, None, 1), params, grid)
        assert np.all(~alone.occupied | grid.occupied), "what was pruned has come back"
        assert same(params) is params
    if voxels is None:
        # Pruning alone leaves the box and the grid points as they are.
        np.testing.assert_array_equal(new.aabb, grid.aabb)
        assert methods.shapes_stay(stage, new_stage) and carry_over(params) is params
        np.testing.assert_array_equal(new.occupied, alone.occupied)
        if not prune:
            assert new_stage == stage
    else:
        assert np.prod(new_stage.resolution) == pytest.approx(voxels, rel=0.2)
        assert not methods.shapes_stay(stage, new_stage)
        # The box shrinks to what was occupied before, at the first pruning to what is left.
        box = occupancy.occupied_aabb(grid if pruned else alone)
        np.testing.assert_allclose(new.aabb, box, atol=1e-6)
        assert (np.prod(np.diff(new.aabb, axis=0)) < 0.9 * 27) == (prune or pruned)
        # No place that was kept is lost on the other cells.
        kept = positions_in(alone, 2000)
        assert np.all(occupancy.lookup(new, kept))
    shapes = jax.tree.map(jnp.shape, carry_over(params))
    fresh = methods.init_params(config.field, new_stage, jax.random.key(0))
    assert shapes == jax.tree.map(jnp.shape, fresh)


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_more_sub_rays_alone_make_the_grid_forget_nothing(make: Any) -> None:
    """Pruned by weight soon after, all that was not seen since would be dropped."""
    config = make(subrays=2)
    stage, state = first_state(config)
    grid = look_around(config, stage, state.params, state.grid)
    seen = occupancy.recall_weights(grid)
    assert np.any(seen > 0.01)
    growth = Growth(3, False, None, 2)
    new_stage, new, carry_over = methods.grow(config, stage, growth, state.params, grid)
    assert isinstance(new, WatchedGrid) and new_stage.subrays == 2
    assert carry_over(state.params) is state.params
    np.testing.assert_array_equal(new.occupied, grid.occupied)
    np.testing.assert_array_equal(occupancy.recall_weights(new), seen)


def linear_factors(params: Params, seed: int = 0) -> Params:
    """Parameters whose planes and lines are linear in the position, which no resampling changes."""
    rng = np.random.default_rng(seed)

    def ramp(values: jax.Array) -> jax.Array:
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in values.shape[:-1]), indexing="ij")
        slopes = rng.normal(size=(len(axes) + 1, values.shape[-1]))
        ramps = slopes[-1] + sum(a[..., None] * s for a, s in zip(axes, slopes[:-1], strict=True))
        return jnp.asarray(ramps, jnp.float32)

    return {**params, **{k: jax.tree.map(ramp, params[k]) for k in ("density", "features")}}


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("growth", [(True, None), (False, 13**3), (True, 13**3), (True, 7**3)])
def test_linear_content_is_the_same_in_all_cells_that_a_growth_keeps(
    growth: tuple[bool, int | None], pruned: bool, aabb: np.ndarray
) -> None:
    config = ball_config(side=9, density_shift=-1.0, prune_by="weight", prune_threshold=0.05)
    stage, state = first_state(config, aabb)
    params, grid = linear_factors(state.params), state.grid
    assert isinstance(grid, WatchedGrid)
    stage = dataclasses.replace(stage, pruned=pruned)
    occupied = np.zeros(stage.cells, bool)
    occupied[1:7, 2:5, 1:4] = True
    grid = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
    seen = np.ravel_multi_index((5, 3, 2), stage.cells)
    grid = occupancy.note_weights(grid, jnp.asarray([seen]), jnp.asarray([0.3]))
    new_stage, new, carry_over = methods.grow(config, stage, Growth(3, *growth, 1), params, grid)
    kept = positions_in(new)
    before = values_at(config, stage, params, grid, kept)
    after = values_at(config, new_stage, carry_over(params), new, kept)
    assert np.std(before[0]) > 1e-3
    for old_value, new_value in zip(before, after, strict=True):
        np.testing.assert_allclose(new_value, old_value, rtol=2e-3, atol=2e-4)
    if growth[0]:
        # Of the occupied cells those next to the one that was seen are left.
        wanted = np.zeros(stage.cells, bool)
        wanted[4:7, 2:5, 1:4] = True
        cells = OccupancyGrid(jnp.asarray(wanted), grid.aabb)
        assert np.all(occupancy.lookup(new, positions_in(cells)))
        if growth[1] is None:
            np.testing.assert_array_equal(new.occupied, wanted)


def test_upsampling_onto_all_the_old_points_keeps_any_content() -> None:
    config = ball_config(side=8)
    stage, state = first_state(config)
    growth = Growth(3, False, 15**3, 1)
    new_stage, grid, carry_over = methods.grow(config, stage, growth, state.params, state.grid)
    assert new_stage.resolution == (15, 15, 15)
    np.testing.assert_array_equal(grid.aabb, BOX)
    positions = positions_in(grid)
    before = values_at(config, stage, state.params, state.grid, positions)
    after = values_at(config, new_stage, carry_over(state.params), grid, positions)
    for old_value, new_value in zip(before, after, strict=True):
        # On lines and planes between the old points both are linear.
        np.testing.assert_allclose(new_value, old_value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_upsampling_loses_no_occupied_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    box = np.stack([np.zeros(3), rng.uniform(1.0, 3.0, 3)]).astype(np.float32)
    config = ball_config(side=9, occupancy_voxels=9**3)
    stage, state = first_state(config, box)
    stage = dataclasses.replace(stage, pruned=True)
    occupied = np.zeros(stage.cells, bool)
    occupied[1:, 1:, 1:] = rng.uniform(size=occupied[1:, 1:, 1:].shape) < 0.05
    grid = dataclasses.replace(state.grid, occupied=jnp.asarray(occupied))
    growth = Growth(3, False, 12**3, 1)
    _, new, _ = methods.grow(config, stage, growth, state.params, grid)
    assert np.all(occupancy.lookup(new, positions_in(grid, 4000)))


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_nerf, tiny_voxels])
def test_a_stage_is_foreseen_as_it_comes_or_not_at_all(
    make: Any, pruned: bool, aabb: np.ndarray
) -> None:
    config = make(subrays=2)
    stage, state = first_state(config, aabb)
    stage, grid = dataclasses.replace(stage, pruned=pruned), state.grid
    finer = {tiny_tensorf: 12**3, tiny_nerf: None, tiny_voxels: 16**3}[make]
    if isinstance(grid, WatchedGrid):
        slots = np.arange(1, grid.memory.size, 7)
        if make is tiny_tensorf:
            # Only a corner of what is occupied was seen: pruning will leave a smaller box.
            field = dataclasses.replace(config.field, prune_by="weight", prune_threshold=0.1)
            config = dataclasses.replace(config, field=field)
            occupied = np.zeros(stage.cells, bool)
            occupied[1:7, 1:6, 1:4] = True
            grid = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
            slots = np.array([np.ravel_multi_index((2, 2, 2), stage.cells)])
        grid = occupancy.note_weights(
            grid, jnp.asarray(slots, jnp.int32), jnp.full(slots.shape, 0.5)
        )
    foreseen = []
    for prune in (False, True):
        for count in {None, finer}:
            for subrays in (1, 2):
                growth = Growth(3, prune, count, subrays)
                ahead = methods.foresee_stage(config, stage, growth, grid)
                came, _, _ = methods.grow(config, stage, growth, state.params, grid)
                assert came.subrays == subrays
                foreseen.append(ahead is not None)
                if ahead is None:
                    assert make is tiny_tensorf and count is not None and not pruned
                elif make is tiny_voxels:
                    # How much room the table needs is known only then.
                    room = {"table_rows": 0, "table_cells": 0}
                    assert dataclasses.replace(ahead, **room) == dataclasses.replace(came, **room)
                    assert methods.shapes_stay(stage, ahead)
                else:
                    assert ahead == came
    assert all(foreseen) or (make is tiny_tensorf and not pruned and any(foreseen))


def test_shapes_stay_unless_the_field_or_its_grid_changes() -> None:
    stage = Stage((8, 8, 8), (8, 8, 8), 64, 1, table_rows=5, table_cells=4)
    for change in (
        {"resolution": (8, 8, 9)},
        {"cells": (8, 9, 8)},
        {"table_rows": 6},
        {"table_cells": 5},
    ):
        assert not methods.shapes_stay(stage, dataclasses.replace(stage, **change))
    other = Stage((8, 8, 8), (8, 8, 8), 32, 2, 3, 7, 8, 9, 10, 1.5, True, 5, 4)
    assert methods.shapes_stay(stage, stage) and methods.shapes_stay(stage, other)


@pytest.mark.parametrize("voxels", [None, 10**3])
@pytest.mark.parametrize("prune_by", ["alpha", "weight"])
def test_pruning_an_empty_field_leaves_the_box(prune_by: str, voxels: int | None) -> None:
    config = ball_config(side=8, density_shift=-30.0, prune_by=prune_by)
    stage, state = first_state(config)
    params = jax.tree.map(jnp.zeros_like, state.params)
    grid = look_around(config, stage, params, state.grid)
    new_stage, new, _ = methods.grow(config, stage, Growth(1, True, voxels, 1), params, grid)
    # By weight all cells stay in doubt: that nothing was seen may be due to the rays.
    assert np.all(new.occupied) if prune_by == "weight" else not np.any(new.occupied)
    np.testing.assert_allclose(new.aabb, BOX)
    assert new_stage.resolution == ((8, 8, 8) if voxels is None else (10, 10, 10))


def test_by_weight_what_is_hidden_is_pruned_and_by_alpha_it_is_not() -> None:
    """An opaque ball: its middle has as much density as its surface, but no ray gets there."""
    kept = {}
    for prune_by in ("alpha", "weight"):
        config = ball_config(
            side=16,
            density_scale=1e4,
            occupancy_voxels=16**3,
            prune_by=prune_by,
            prune_threshold=0.3,
        )
        stage, state = first_state(config)
        params = ball_params(stage, state.params)
        grid = look_around(config, stage, params, state.grid)
        _, grid, _ = methods.grow(config, stage, Growth(1, True, None, 1), params, grid)
        kept[prune_by] = np.asarray(grid.occupied)
    assert np.all(kept["alpha"][7:9, 7:9, 7:9]) and not np.any(kept["weight"][7:9, 7:9, 7:9])
    assert not np.any(kept["weight"][:2, :2, :2]) and not np.any(kept["alpha"][:2, :2, :2])
    assert 0.05 < kept["weight"].mean() < kept["alpha"].mean() < 0.9


def test_growing_a_nerf_changes_nothing() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    grown = methods.grow(config, stage, Growth(1, True, 99, 1), state.params, state.grid)
    assert grown[0] == stage and grown[1] is state.grid
    assert grown[2](state.params) is state.params


# ---------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("samples", [1, 1000, 1 << 18])
def test_a_batch_has_the_asked_number_of_rays_and_samples(
    samples: int, pruned: bool, make: Any
) -> None:
    config = make(batch_samples=samples, batch_rays=77)
    stage = dataclasses.replace(methods.first_stage(config, BOX), pruned=pruned)
    fitted = methods.fit_batch(config, stage, BOX)
    assert (fitted.rays, fitted.sample_budget) == (77, samples)
    # Most blocks that are looked into hold fewer samples than steps.
    assert samples / methods.BLOCK_STEPS <= fitted.block_budget
    for share in (0.3, 0.5, 1.0):
        if make is tiny_tensorf:
            field = dataclasses.replace(config.field, color_share=share)
            config = dataclasses.replace(config, field=field)
        budget = methods.fit_batch(config, stage, BOX).color_budget
        # 0 is for all.
        thrifty = make is tiny_tensorf and share < 1.0
        assert budget == (math.ceil(share * samples) if thrifty else 0)
    same = {"rays": 0, "block_budget": 0, "sample_budget": 0, "color_budget": 0, "blocks": 0}
    assert dataclasses.replace(fitted, **same) == dataclasses.replace(stage, **same)


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.7])
def test_blocks_reach_across_the_box_wherever_they_begin(
    ratio: float, make: Any, aabb: np.ndarray
) -> None:
    field = dataclasses.replace(make().field, step_ratio=ratio)
    config = make(field=field)
    stage, state = first_state(config, aabb)
    step = float(methods.step_length(config.field, stage, state.grid.aabb))
    diagonal = float(np.linalg.norm(np.diff(np.asarray(state.grid.aabb), axis=0)))
    # A ray may begin up to a step before the box.
    assert stage.blocks * methods.BLOCK_STEPS * step >= diagonal + step
    assert (stage.blocks - 2) * methods.BLOCK_STEPS * step < diagonal


def test_the_batch_of_a_nerf_is_what_was_asked_for() -> None:
    config = tiny_nerf()
    stage = methods.first_stage(config, BOX)
    assert methods.fit_batch(config, stage, BOX) == stage
    assert (stage.rays, stage.blocks, stage.sample_budget) == (64, 0, 0)


def solid(config: TrainConfig) -> TrainConfig:
    """So dense that the first sample hides all behind it."""
    field = dataclasses.replace(config.field, density_scale=1e9)
    return dataclasses.replace(config, field=field)


BUDGETS = [
    (tiny_tensorf, "block_budget", 100),
    (tiny_tensorf, "sample_budget", 500),
    (tiny_tensorf, "color_budget", 400),
    (tiny_voxels, "block_budget", 100),
    (tiny_voxels, "sample_budget", 500),
    (tiny_hashgrid, "block_budget", 100),
    (tiny_hashgrid, "sample_budget", 500),
]


@pytest.mark.parametrize("shading", ["per_ray", "per_sample"])
@pytest.mark.parametrize(("make", "limited", "budget"), BUDGETS)
def test_rays_past_a_budget_are_dropped_and_the_others_are_as_with_ample_ones(
    make: Any, limited: str, budget: int, shading: str
) -> None:
    config = make(field=dataclasses.replace(make().field, shading=shading))
    stage, state = first_state(config)
    rest = (state.params, state.grid, jax.random.key(3), some_rays(200), jnp.ones((200, 3)))
    ample = PREDICT(config.field, roomy(stage), *rest)
    assert not np.any(ample.dropped)
    tight = PREDICT(config.field, dataclasses.replace(roomy(stage), **{limited: budget}), *rest)
    dropped = np.asarray(tight.dropped)
    kept = int(np.sum(~dropped))
    assert 0 < kept < 200 and np.array_equal(dropped, np.arange(200) >= kept)
    np.testing.assert_allclose(tight.rgb[-1][:kept], ample.rgb[-1][:kept], atol=1e-5)
    np.testing.assert_allclose(tight.opacity[:kept], ample.opacity[:kept], atol=1e-5)
    if limited == "sample_budget":
        assert int(tight.samples) == budget < int(ample.samples)


def first_cells(
    config: TrainConfig, stage: Stage, grid: OccupancyGrid, rays: Rays, key: jax.Array
) -> tuple[set[int], int]:
    """Flat indices of the cells in which rays take their first sample; how many samples in all."""
    offset = np.asarray(jax.random.uniform(key, rays.near.shape), np.float64)
    clipped = clip_to_aabb(rays, grid.aabb)
    step = float(methods.step_length(config.field, stage, grid.aabb))
    low, high = np.asarray(grid.aabb, np.float64)
    cells, samples = set(), 0
    for ray in range(len(offset)):
        near, far = float(clipped.near[ray]), float(clipped.far[ray])
        first = None
        for index in range(int((far - near) / step) + 3):
            start, stop = (
                np.clip(near + (index + e - offset[ray]) * step, near, far) for e in (0, 1)
            )
            middle = 0.5 * (start + stop)
            position = np.asarray(rays.origins[ray]) + middle * np.asarray(rays.directions[ray])
            cell = np.floor((position - low) / (high - low) * grid.occupied.shape).astype(int)
            if stop > start and np.all((cell >= 0) & (cell < grid.occupied.shape)):
                flat = int(np.ravel_multi_index(tuple(cell), grid.occupied.shape))
                if grid.occupied.ravel()[flat]:
                    samples += 1
                    first = flat if first is None else first
        if first is not None:
            cells.add(first)
    return cells, samples


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_rays_teach_the_grid_in_which_cells_they_end(make: Any) -> None:
    config = solid(make())
    stage, state = first_state(config, LONG)
    key, rays = jax.random.key(5), some_rays(60)
    rest = (state.params, state.grid, key, rays, jnp.ones((60, 3)))
    prediction = PREDICT(config.field, roomy(stage), *rest)
    wanted, samples = first_cells(config, stage, state.grid, rays, key)
    assert int(prediction.samples) == samples > 200
    grid = prediction.grid
    assert isinstance(grid, WatchedGrid) and int(grid.clock) == 1
    weights = np.asarray(occupancy.recall_weights(grid))
    if isinstance(grid, VoxelGrid):
        weights = weights[np.asarray(grid.number)]
    assert set(np.flatnonzero(weights > 0.5).tolist()) == wanted
    assert 10 < len(wanted) < 60
    # A second look does not erase what the first has seen.
    again = PREDICT(config.field, roomy(stage), *rest[:1], grid, *rest[2:]).grid
    assert isinstance(again, WatchedGrid) and int(again.clock) == 2


def test_the_samples_of_a_nerf_are_those_of_both_networks() -> None:
    config = tiny_nerf()  # 12 coarse ones, then 12 + 8
    stage, state = first_state(config)
    rest = (jax.random.key(0), some_rays(16), jnp.ones((16, 3)))
    prediction = PREDICT(config.field, stage, state.params, state.grid, *rest)
    assert int(prediction.samples) == 16 * (12 + 20)


@pytest.mark.parametrize("shading", ["per_ray", "per_sample"])
def test_pictures_are_the_same_whether_features_are_computed_for_all_samples_or_for_some(
    shading: str,
) -> None:
    config = ball_config(shading=shading, color_threshold=0.0, density_scale=0.3)
    stage, state = first_state(config)
    params = ball_params(stage, linear_factors(state.params))
    everything, some = (dataclasses.replace(stage, color_budget=n) for n in (0, 100))
    pictures = [render_view(config, s, params, state.grid) for s in (everything, some)]
    np.testing.assert_allclose(pictures[1], pictures[0], atol=1e-5)
    thrifty = ball_config(shading=shading, color_threshold=0.05, density_scale=0.3)
    assert np.abs(render_view(thrifty, some, params, state.grid) - pictures[0]).max() > 0.01
    np.testing.assert_array_equal(render_view(thrifty, everything, params, state.grid), pictures[0])


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_only_what_lies_in_the_asked_box_is_rendered(make: Any) -> None:
    config = solid(make())
    stage, state = first_state(config)
    half = jnp.asarray(BOX).at[1, 0].set(0.0)
    # Downwards, one through the half that is asked for and one through the other.
    rays = dataclasses.replace(
        some_rays(2),
        origins=jnp.asarray([[-0.7, 0.1, 4.0], [0.7, 0.1, 4.0]]),
        directions=jnp.asarray([[0.0, 0.0, -1.0]] * 2),
    )
    rest = (state.params, state.grid, rays, jnp.ones(3))
    everything = RENDER(config.field, stage, 1 << 12, *rest, jnp.asarray(BOX))
    np.testing.assert_allclose(everything.opacity, 1.0, atol=2e-3)
    found = RENDER(config.field, stage, 1 << 12, *rest, half)
    np.testing.assert_allclose(found.opacity, [1.0, 0.0], atol=2e-3)


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_marching_through_what_is_occupied_alone_shows_the_same(make: Any) -> None:
    config = solid(make())
    stage, state = first_state(config)
    occupied = np.zeros(state.grid.occupied.shape, bool)
    occupied[1:4, 2:6, 3:7] = True
    if isinstance(state.grid, VoxelGrid):
        grid: OccupancyGrid = voxels.refine(state.grid, occupied, 1, 4.0).grid
        grid = voxels.resize_grid(grid, stage.table_cells)
    else:
        plain = OccupancyGrid(jnp.asarray(occupied), state.grid.aabb)
        grid = occupancy.watch(plain, 8.0)
    tight, box = methods.fit_to_render(config.field, stage, grid, tight=True)
    loose, whole_box = methods.fit_to_render(config.field, stage, grid, tight=False)
    np.testing.assert_allclose(box, occupancy.occupied_aabb(grid), atol=1e-6)
    np.testing.assert_array_equal(whole_box, grid.aabb)
    assert dataclasses.replace(tight, blocks=stage.blocks) == loose
    assert loose.blocks == stage.blocks and methods.make_field(config.field, loose) == (
        methods.make_field(config.field, stage)
    )
    step = float(methods.step_length(config.field, stage, grid.aabb))
    assert 0 < tight.blocks < stage.blocks
    assert tight.blocks * methods.BLOCK_STEPS * step >= np.linalg.norm(np.diff(box, axis=0))
    rays = some_rays(300)
    whole, part = (
        RENDER(config.field, s, 1 << 12, state.params, grid, rays, jnp.ones(3), jnp.asarray(b))
        for s, b in ((loose, whole_box), (tight, box))
    )
    # Steps begin elsewhere, which decides for rays that only cut an edge of a cell.
    same = np.abs(np.asarray(whole.opacity - part.opacity)) < 1e-3
    assert np.mean(same) > 0.9 and 0.1 < np.mean(part.opacity) < 0.9
    near = np.abs(np.asarray(whole.depth - part.depth))[same]
    assert np.max(near) <= step


@pytest.mark.parametrize("tight", [False, True])
def test_all_of_a_nerf_is_rendered(tight: bool) -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    _, box = methods.fit_to_render(config.field, stage, state.grid, tight)
    np.testing.assert_array_equal(box, BOX)


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels, tiny_nerf])
def test_what_training_alone_needs_makes_no_other_program_to_render(make: Any) -> None:
    config = make()
    stage, state = first_state(config)
    bare, _ = methods.fit_to_render(config.field, stage, state.grid, tight=False)
    changes = {"rays": 7, "subrays": 3, "block_budget": 8, "sample_budget": 9, "pruned": True}
    other = dataclasses.replace(stage, **changes)
    assert methods.fit_to_render(config.field, other, state.grid, tight=False)[0] == bare
    # Whether features are computed for all samples does matter, for how many does not.
    some = [
        methods.fit_to_render(
            config.field, dataclasses.replace(stage, color_budget=n), state.grid, False
        )[0]
        for n in (0, 5, 6)
    ]
    assert some[0] != some[1] == some[2]


def test_step_length_is_so_many_voxels() -> None:
    box = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 4.0]], np.float32)
    field = TensoRFConfig(step_ratio=0.25)
    stage = Stage((3, 5, 11), (1, 1, 1), 1, 1)
    wanted = 0.25 * np.mean([1.0, 0.5, 0.4])
    assert float(methods.step_length(field, stage, box)) == pytest.approx(wanted)
    # Voxels have their values at corners, of which there is one more than voxels along each axis.
    cubes, stage = VoxelsConfig(step_ratio=0.5), Stage((8, 8, 8), (8, 8, 8), 1, 1)
    assert float(methods.step_length(cubes, stage, 2 * BOX)) == pytest.approx(0.5 * 6.0 / 8)


def test_chunks_of_a_nerf_fit_the_allowance() -> None:
    for samples in (1 << 12, 1 << 16, 1 << 20):
        config = tiny_nerf(render_samples=samples)
        assert methods.rays_at_once(config) == max(64, samples // (12 + 12 + 8))


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels, tiny_hashgrid, marching_nerf])
def test_grids_render_as_many_rays_at_once_as_they_may_take_samples(make: Any) -> None:
    # Waves take some of their rays at a time, so that the samples do not add up.
    for samples in (1, 1 << 11, 1 << 20):
        assert methods.rays_at_once(make(render_samples=samples)) == samples


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
        tiny_hashgrid(),
        marching_nerf(),
    ],
    ids=["tensorf", "nerf", "coarse", "voxels", "hash grid", "marching nerf"],
)
def test_every_parameter_has_a_label(config: TrainConfig) -> None:
    _, state = first_state(config)
    labels = methods.label_params(state.params)
    assert jax.tree.structure(labels) == jax.tree.structure(state.params)
    assert set(jax.tree.leaves(labels)) <= {"grid", "network"}


def test_planes_and_lines_are_grids_and_the_rest_networks() -> None:
    config = tiny_tensorf()
    _, state = first_state(config)
    labels = methods.label_params(state.params)
    assert set(jax.tree.leaves([labels["density"], labels["features"]])) == {"grid"}
    assert set(jax.tree.leaves([labels["basis"], labels["mlp"]])) == {"network"}
    nerf = methods.label_params(first_state(tiny_nerf())[1].params)
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
        wanted = dataclasses.replace(
            config, subrays=config.subrays or 1, pass_samples=methods.CACHED_SAMPLES
        )
        assert methods.fit_config(config, scene) == wanted


@pytest.mark.parametrize("divide", [False, True])
def test_voxels_that_no_ray_has_seen_are_dropped_but_for_neighbours(divide: bool) -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    grid = state.grid
    assert isinstance(grid, VoxelGrid)
    number = np.asarray(grid.number).reshape(grid.occupied.shape)
    cells = jnp.asarray([number[4, 5, 6], number[1, 1, 1]], jnp.int32)
    weights = jnp.asarray([0.5, 0.5 * config.field.prune_threshold], jnp.float32)
    unseen, grid = grid, occupancy.note_weights(grid, cells, weights)
    growth = Growth(6, True, 16**3 if divide else None, 1)
    new_stage, new, carry = methods.grow(config, stage, growth, state.params, grid)
    assert isinstance(new, VoxelGrid) and new_stage == stage
    assert int(new.occupied.sum()) == 27 * (8 if divide else 1)
    np.testing.assert_allclose(new.aabb[0], -1.5 + 3.0 / 8 * np.array([3, 4, 5]), atol=1e-6)
    assert carry(state.params)["table"].shape == state.params["table"].shape
    # Unseen as a whole, nothing is dropped.
    _, new, _ = methods.grow(config, stage, growth, state.params, unseen)
    assert int(new.occupied.sum()) == 8**3 * (8 if divide else 1)


def test_a_table_that_gets_too_small_is_made_larger() -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    growth = Growth(6, False, 16**3, 1)
    new_stage, new, carry = methods.grow(config, stage, growth, state.params, state.grid)
    assert isinstance(new, VoxelGrid)
    assert new_stage.table_rows >= 17**3 + 1 and new_stage.table_cells >= 16**3 + 1
    assert new_stage.table_rows % 4096 == 0
    assert new.rows.shape == (new_stage.table_cells, 8)
    assert carry(state.params)["table"].shape == (new_stage.table_rows, 4)


def test_grids_are_described_in_their_own_terms() -> None:
    described = [
        methods.describe_grid(config.field, stage, state.grid)
        for config in (tiny_voxels(), tiny_tensorf(), tiny_nerf(), tiny_hashgrid())
        for stage, state in [first_state(config)]
    ]
    assert described == [
        "512 voxels of 0.375",
        "grid 8x8x8, 100.0% occupied",
        "",
        "100.0% of the box occupied",
    ]


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
    "config",
    [tiny_tensorf(), tiny_nerf(), tiny_voxels(), tiny_hashgrid()],
    ids=["tensorf", "nerf", "voxels", "hash grid"],
)
def test_rays_that_miss_the_box_show_the_background(config: TrainConfig) -> None:
    stage, state = first_state(config)
    rays = dataclasses.replace(some_rays(8), origins=jnp.full((8, 3), 50.0))
    background = jnp.array([0.1, 0.5, 0.7])
    rest = (state.params, state.grid, rays, background, state.grid.aabb)
    rendering = RENDER(config.field, stage, 1 << 12, *rest)
    np.testing.assert_allclose(rendering.rgb, np.tile(background, (8, 1)), atol=1e-6)
    np.testing.assert_allclose(rendering.opacity, 0.0, atol=1e-6)


# ---------------------------------------------------------------------------------------------
# Fields without a grid of their own that march through one that is probed
# ---------------------------------------------------------------------------------------------


def lively(params: Params, seed: int = 0) -> Params:
    """Parameters out of numpy, such that density and colour vary."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.6, x.shape), x.dtype), params)


@pytest.mark.parametrize("make", [tiny_hashgrid, marching_nerf])
def test_first_stage_of_a_marching_field_has_cells_and_budgets(make: Any) -> None:
    config = make()
    stage, state = first_state(config, LONG)
    field = config.field
    side = 3.0 / field.occupancy_cells
    cells = tuple(math.ceil(n / side - 1e-6) for n in (3.0, 2.2, 1.5))
    assert stage.cells == cells and isinstance(state.grid, ProbedGrid)
    assert np.all(state.grid.occupied) and set(state.params) == {"fine"}
    assert (stage.rays, stage.sample_budget) == (config.batch_rays, config.batch_samples)
    assert stage.passes == 1 and methods.plan_growth(config) == []
    step = float(methods.step_length(field, stage, LONG))
    diagonal = float(np.linalg.norm(LONG[1] - LONG[0]))
    assert step == pytest.approx(diagonal / 32, rel=1e-6)
    assert stage.blocks * methods.BLOCK_STEPS * step >= diagonal + step
    cell = float(np.min((LONG[1] - LONG[0]) / np.array(cells)))
    assert stage.reach == pytest.approx(0.5 * methods.BLOCK_STEPS * step / cell, rel=1e-5)
    assert methods.fit_batch(config, stage, LONG) == stage
    less = methods.ask_less_memory(tiny_hashgrid(batch_rays=512), stage)
    assert (less.batch_rays, less.batch_samples) == (256, 1 << 11)


def test_marching_shows_the_same_field_as_many_even_samples() -> None:
    config = tiny_hashgrid()
    field = dataclasses.replace(config.field, march_steps=400, density_scale=3.0)
    stage, state = first_state(dataclasses.replace(config, field=field))
    params = lively(state.params)
    even = dataclasses.replace(field, sampler="hierarchical", coarse_samples=400, fine_samples=0)
    other_stage, other = first_state(dataclasses.replace(config, field=even))
    assert set(other.params) == {"coarse"} and not isinstance(other.grid, ProbedGrid)
    behind, key = jnp.asarray([0.0, 0.9, 0.9]), jax.random.key(0)
    rays = some_rays(40)
    box = jnp.asarray(BOX)
    found = [
        RENDER(field, stage, 1 << 13, params, state.grid, rays, behind, box),
        RENDER(even, other_stage, 1, {"coarse": params["fine"]}, other.grid, rays, behind, box),
    ]
    wanted = np.asarray(found[1].rgb)
    assert wanted.std(axis=0).min() > 0.03 and 0.1 < np.mean(found[1].opacity) < 0.99
    np.testing.assert_allclose(found[0].rgb, wanted, atol=0.01)
    np.testing.assert_allclose(found[0].opacity, found[1].opacity, atol=0.01)
    behinds = jnp.broadcast_to(behind, (40, 3))
    for config_, stage_, params_, grid in (
        (field, roomy(stage), params, state.grid),
        (even, other_stage, {"coarse": params["fine"]}, other.grid),
    ):
        predicted = PREDICT(config_, stage_, params_, grid, key, rays, behinds)
        np.testing.assert_allclose(predicted.rgb[-1], wanted, atol=0.02)
        assert predicted.distortion.shape == (40,)
        found.append(predicted.distortion)
    np.testing.assert_allclose(found[2], found[3], rtol=0.05, atol=1e-3)


def test_distortion_of_packed_samples_equals_a_double_loop() -> None:
    config = tiny_hashgrid()
    stage, state = first_state(config)
    stage, params, rays = roomy(stage), lively(state.params), some_rays(12)
    key, grid = jax.random.key(2), state.grid
    assert isinstance(grid, ProbedGrid)
    behind = jnp.ones((12, 3))
    predicted = PREDICT(config.field, stage, params, grid, key, rays, behind)
    budgets = (stage.blocks, methods.BLOCK_STEPS, 1 << 10, 1 << 10)
    samples, _ = jax.jit(occupancy.march_to_samples, static_argnums=5)(
        grid,
        grid.coarse,
        clip_to_aabb(rays, grid.aabb),
        jax.random.uniform(key, (12,)),
        methods.step_length(config.field, stage, grid.aabb),
        occupancy.Marching(*budgets),
    )
    fns = methods.bind(methods.make_field(config.field, stage), params["fine"], grid)
    weights = jax.jit(
        lambda samples: render.render_packed_samples(fns, rays, samples, behind).weights
    )(samples)
    for ray in range(12):
        mine = np.flatnonzero(samples.mask & (samples.ray_indices == ray))
        total = 0.0
        # Distances are from 0 at near to 1 at far: the scene is seen between 2 and 6.
        begin, end = ((np.asarray(t)[mine] - 2.0) / 4.0 for t in (samples.t_starts, samples.t_ends))
        for i, first in enumerate(mine):
            total += float(weights[first]) ** 2 * (end[i] - begin[i]) / 3.0
            for j, second in enumerate(mine):
                apart = abs(begin[i] + end[i] - begin[j] - end[j]) / 2.0
                total += float(weights[first] * weights[second]) * apart
        assert float(predicted.distortion[ray]) == pytest.approx(total, rel=1e-3, abs=1e-6)
    assert np.max(predicted.distortion) > 1e-3


def axis_rays() -> Rays:
    """Along the axes, through the middle, along a face and an edge, and past the box."""
    rows = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            for beside in ((0.0, 0.0), (1.5, 0.2), (1.5, -1.5), (1.7, 0.0)):
                rest = [a for a in range(3) if a != axis]
                origin, direction = np.zeros(3), np.zeros(3)
                origin[axis], direction[axis] = -4.0 * sign, sign
                origin[rest] = beside
                rows.append((origin, direction))
    origins, directions = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*rows, strict=True))
    rays = some_rays(len(rows))
    return dataclasses.replace(rays, origins=origins, directions=directions)


@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("make", [tiny_hashgrid, marching_nerf])
def test_gradients_through_marching_rays_along_the_axes_are_finite(make: Any, scale: float) -> None:
    config = make()
    stage, state = first_state(config)
    stage = roomy(stage)
    params, rays = lively(state.params), axis_rays()
    if make is tiny_hashgrid:
        config = make(field=dataclasses.replace(config.field, density_scale=scale))
    elif scale > 1.0:
        head = params["fine"]["params"]["density_head"]
        head["bias"] = head["bias"] + scale
    behind = jnp.ones((24, 3))

    def total(params: Params) -> Any:
        key = jax.random.key(0)
        predicted = methods.predict(config.field, stage, params, state.grid, key, rays, behind)
        return jnp.sum(predicted.rgb[-1]) + jnp.sum(predicted.distortion), predicted

    grads, predicted = jax.jit(jax.grad(total, has_aux=True))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    assert not np.any(predicted.dropped)
    past = np.arange(24) % 4 == 3
    np.testing.assert_allclose(predicted.rgb[-1][past], 1.0, atol=1e-6)
    np.testing.assert_array_equal(predicted.opacity[past], 0.0)
    if scale > 1.0:
        np.testing.assert_allclose(predicted.opacity[::4], 1.0, atol=1e-5)
    else:
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


REFRESH = jax.jit(methods.refresh, static_argnums=(0, 1))


def test_cells_are_probed_now_and_then_and_their_turns_go_on() -> None:
    config = tiny_hashgrid()
    stage, state = first_state(config)
    params, grid = lively(state.params), state.grid
    assert isinstance(grid, ProbedGrid)
    step = methods.step_length(config.field, stage, grid.aabb)
    fns = methods.bind(methods.make_field(config.field, stage), params["fine"], grid)
    probe = jax.jit(
        lambda grid, key, turn: occupancy.probe_cells(
            grid,
            key,
            lambda positions: fns.density(positions, positions[:, 0])[0],
            step,
            turn,
            decay=0.95,
            threshold=0.01,
            reach=stage.reach,
        )
    )
    for number in range(13):
        key = jax.random.key(number)
        wanted = probe(grid, key, number // 4) if number % 4 == 0 else grid
        after = REFRESH(config.field, stage, params, grid, key)
        assert isinstance(after, ProbedGrid) and int(after.clock) == number + 1
        np.testing.assert_allclose(after.optical, wanted.optical, rtol=1e-5)
        np.testing.assert_array_equal(after.occupied, wanted.occupied)
        np.testing.assert_array_equal(after.coarse.occupied, wanted.coarse.occupied)
        grid = after
    assert np.all(grid.optical >= 0), "four turns are over"


@pytest.mark.parametrize("make", [tiny_nerf, tiny_tensorf])
def test_grids_that_are_not_probed_are_not_refreshed(make: Any) -> None:
    config = make()
    stage, state = first_state(config)
    key = jax.random.key(0)
    assert methods.refresh(config.field, stage, state.params, state.grid, key) is state.grid


def test_samples_lie_in_occupied_cells_alone() -> None:
    config = solid(tiny_hashgrid())
    stage, state = first_state(config)
    occupied = np.zeros(stage.cells, bool)
    occupied[2:4, 3:5, 5:7] = True
    plain = OccupancyGrid(jnp.asarray(occupied), state.grid.aabb)
    grid = occupancy.begin_probing(plain, stage.reach)
    rays = some_rays(300)
    rest = (state.params, grid, jax.random.key(0), rays, jnp.ones((300, 3)))
    predicted = PREDICT(config.field, roomy(stage), *rest)
    box = jnp.asarray(occupancy.occupied_aabb(grid), jnp.float32)
    clipped = clip_to_aabb(rays, box)
    length = np.asarray(clipped.far - clipped.near)
    step = float(methods.step_length(config.field, stage, BOX))
    opacity = np.asarray(predicted.opacity)
    assert np.all(opacity[length == 0] == 0) and np.all(opacity[length > step] > 0.999)
    assert 10 < np.sum(length > step) < 200
    # Rendering sees what training sees, in the whole box and in the tight one.
    tight, tight_box = methods.fit_to_render(config.field, stage, grid, tight=True)
    assert tight.blocks < stage.blocks
    for s, b in ((stage, BOX), (tight, tight_box)):
        args = (state.params, grid, rays, jnp.ones(3), jnp.asarray(b))
        shown = np.asarray(RENDER(config.field, s, 1 << 12, *args).opacity)
        assert np.all(shown[length == 0] == 0) and np.all(shown[length > step] > 0.999)


@pytest.mark.parametrize("sampler", ["hierarchical", "occupancy"])
def test_density_is_noisy_in_training_and_not_in_rendering(sampler: str) -> None:
    make = tiny_nerf if sampler == "hierarchical" else marching_nerf
    plain, rays = make(), some_rays(16)
    noisy = make(field=dataclasses.replace(plain.field, density_noise=2.0))
    stage, state = first_state(plain)
    rest = (state.params, state.grid, jax.random.key(0), rays, jnp.ones((16, 3)))
    pair = [PREDICT(c.field, roomy(stage), *rest) for c in (plain, noisy)]
    for quiet, loud in zip(pair[0].rgb, pair[1].rgb, strict=True):
        assert np.max(np.abs(quiet - loud)) > 1e-3
    rest = (state.params, state.grid, rays, jnp.ones(3), state.grid.aabb)
    shown = [RENDER(c.field, stage, 1 << 12, *rest).rgb for c in (plain, noisy)]
    np.testing.assert_array_equal(shown[0], shown[1])


# ---------------------------------------------------------------------------------------------
# TensoRF's options
# ---------------------------------------------------------------------------------------------


def cp_config(**changes: Any) -> TrainConfig:
    """Three lines to a component, colour by harmonics of four coefficients."""
    changes = {"factors": "cp", "color": "harmonics", "feature_dim": 12} | changes
    return tiny_tensorf(field=dataclasses.replace(tiny_tensorf().field, **changes))


def test_lines_grow_without_planes() -> None:
    config = cp_config(init_scale=0.5)
    stage, state = first_state(config)
    assert "mlp" not in state.params
    growth = Growth(3, False, 15**3, 1)
    new_stage, grid, carry_over = methods.grow(config, stage, growth, state.params, state.grid)
    positions = positions_in(grid)
    before = values_at(config, stage, state.params, state.grid, positions)
    after = values_at(config, new_stage, carry_over(state.params), grid, positions)
    for old_value, new_value in zip(before, after, strict=True):
        np.testing.assert_allclose(new_value, old_value, rtol=1e-3, atol=1e-5)
    assert np.std(before[1]) > 1e-3


def test_the_penalty_of_lines_holds_their_nonorthogonality() -> None:
    config = cp_config(orthogonality_weight=0.7, l1_weight=0.0, density_tv_weight=3.0)
    stage, state = first_state(config)
    rest = (state.params, state.grid, jax.random.key(0))
    found = methods.regularise(config.field, stage, *rest)
    wanted = 0.7 * tensorf.nonorthogonality(state.params)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert float(found) > 0


def test_rates_restart_at_upsamplings_alone_and_only_if_asked() -> None:
    field = TensoRFConfig(upsample_at=(0.25, 0.5), prune_at=(0.1, 0.75), initial_voxels=1000)
    plain = TrainConfig(field=field, steps=100)
    config = dataclasses.replace(plain, field=dataclasses.replace(field, reset_rates=True))
    steps = {
        growth.step: methods.restarts(config.field, growth)
        for growth in methods.plan_growth(config)
    }
    assert steps == {10: False, 25: True, 50: True, 75: False}
    for step, wanted in ((0, 0.0), (25, 0.0), (26, 0.25), (50, 0.25), (51, 0.5), (100, 0.5)):
        assert methods.find_restart(config, step) == pytest.approx(wanted)
        assert methods.find_restart(plain, step) == 0.0
    longer = progress.refit(config, 30, 310)
    assert methods.find_restart(longer, 31) == pytest.approx(0.25)
    assert methods.find_restart(tiny_nerf(), 5) == methods.find_restart(tiny_voxels(), 24) == 0.0
