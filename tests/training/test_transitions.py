"""Stages: the plan of growths, budgets that fit a batch, grids that grow."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    BOX,
    LONG,
    ball_config,
    cp_config,
    first_state,
    linear_factors,
    make_scene,
    marching_nerf,
    positions_in,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.core.rays import ConicalFrusta
from jaxrf.data.scene import composite
from jaxrf.fields.base import Params
from jaxrf.fields.voxels import VoxelGrid
from jaxrf.models import methods
from jaxrf.models.base import StageSpec
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import DensityEmaGrid, OccupancyGrid, WeightTrackedGrid
from jaxrf.training import config as configs
from jaxrf.training import schedule, transitions
from jaxrf.training.config import TensoRFConfig, TrainConfig, VoxelsConfig
from jaxrf.training.transitions import StageTransition


def test_plan_of_the_published_recipe() -> None:
    """Section 5: upsampled at steps 2000, 3000, 4000, 5500 and 7000; masks at 2000 and 4000."""
    plan = transitions.plan_transitions(TrainConfig(field=TensoRFConfig(), steps=30_000))
    assert [growth.step for growth in plan] == [2000, 3000, 4000, 5500, 7000]
    assert [growth.prune for growth in plan] == [True, False, True, False, False]
    sides = [round((growth.voxels or 0) ** (1 / 3)) for growth in plan]
    assert sides == [152, 180, 213, 253, 300]  # log-spaced between 128 and 300


@pytest.mark.parametrize("steps", [10, 100, 30_000])
@pytest.mark.parametrize("preset", configs.PRESETS, ids=configs.preset_name)
def test_plans_scale_with_the_steps_and_are_in_order(preset: Any, steps: int) -> None:
    config = dataclasses.replace(preset(), steps=steps, supersample=1)
    field = config.field
    plan = transitions.plan_transitions(config)
    numbers = [growth.step for growth in plan]
    assert numbers == sorted(set(numbers))
    assert all(0 < number < steps for number in numbers)
    if isinstance(field, TensoRFConfig):
        settle = field.min_steps_before_refine
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
        assert all(number >= field.min_steps_before_refine for number in numbers)
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
    assert transitions.plan_transitions(TrainConfig(field=field, steps=100)) == [
        StageTransition(25, True, None, 1),
        StageTransition(50, True, 8000, 1),
        StageTransition(75, True, None, 1),
    ]


def test_a_pixel_gets_its_sub_rays_from_the_asked_step_on() -> None:
    field = TensoRFConfig(upsample_at=(), prune_at=(0.25, 0.5), initial_voxels=1000)
    plan = transitions.plan_transitions(
        TrainConfig(field=field, steps=100, supersample=3, supersample_from=0.4)
    )
    assert plan == [
        StageTransition(25, True, None, 1),
        StageTransition(40, False, None, 3),
        StageTransition(50, True, None, 3),
    ]
    late, always = (tiny_nerf(steps=10, supersample=2, supersample_from=at) for at in (0.5, 0.0))
    assert transitions.plan_transitions(late) == [StageTransition(5, False, None, 2)]
    assert transitions.plan_transitions(always) == []
    assert transitions.first_stage(late, BOX).supersample == 1
    assert transitions.first_stage(always, BOX).supersample == 2
    stage, state = first_state(late)
    stage, *_ = transitions.grow(
        late, stage, StageTransition(5, False, None, 2), state.params, state.grid
    )
    assert stage.supersample == 2


@pytest.mark.parametrize("supersample", [1, 2, 3, 20])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_nerf, tiny_voxels, tiny_hashgrid])
def test_a_batch_is_of_whole_pixels(make: Any, supersample: int) -> None:
    config = make(supersample=supersample, supersample_from=0.0)
    stage = transitions.first_stage(config, BOX)
    assert stage.rays % supersample**2 == 0 and stage.rays > 0
    assert stage.rays <= max(config.batch_rays, supersample**2)


def test_growths_follow_a_change_of_pace_and_those_done_stay_where_they_were() -> None:
    field = TensoRFConfig(
        upsample_at=(0.25, 0.5), prune_at=(0.1, 0.75), initial_voxels=1000, final_voxels=8000
    )
    config = TrainConfig(field=field, steps=100, supersample=2, supersample_from=0.6)
    before = transitions.plan_transitions(config)
    # Of 310 steps, 30 are done and 0.3 of the way; another 280 are left for the rest.
    after = transitions.plan_transitions(schedule.rescale_schedule(config, 30, 310))
    assert [growth.step for growth in before] == [10, 25, 50, 60, 75]
    assert [growth.step for growth in after] == [10, 25, 110, 150, 210]
    for old, new in zip(before, after, strict=True):
        assert new._replace(step=old.step) == old


@pytest.mark.parametrize("settle", [0, 7, 15, 30, 99, 200])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_a_short_training_settles_before_its_first_growth(make: Any, settle: int) -> None:
    field = dataclasses.replace(
        make().field, min_steps_before_refine=settle, upsample_at=(0.05, 0.2), prune_at=(0.1, 0.4)
    )
    if isinstance(field, VoxelsConfig):
        field = dataclasses.replace(field, num_subdivisions=2)
    plan = transitions.plan_transitions(make(field=field, steps=100, supersample=1))
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
    assert transitions.plan_transitions(TrainConfig(field=field, steps=100)) == []
    field = TensoRFConfig(upsample_at=(), prune_at=())
    assert transitions.plan_transitions(TrainConfig(field=field, steps=100)) == []


def test_first_stage_has_the_initial_grid() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    assert stage.resolution == (8, 8, 8) and stage.cells == (8, 8, 8)
    assert stage.rays == 128 and not stage.pruned
    assert hash(stage) == hash(dataclasses.replace(stage))
    np.testing.assert_array_equal(state.grid.aabb, BOX)
    assert np.all(state.grid.occupied) and state.grid.occupied.shape == stage.cells
    long = np.array([[0, 0, 0], [4, 2, 1]], np.float32)
    assert transitions.first_stage(config, long).resolution == (16, 8, 4)
    few = dataclasses.replace(config, field=dataclasses.replace(config.field, occupancy_voxels=64))
    assert transitions.first_stage(few, BOX).cells == (4, 4, 4)


def test_first_stage_of_a_nerf_has_no_grid() -> None:
    stage = transitions.first_stage(tiny_nerf(), BOX)
    assert stage.resolution == (1, 1, 1) and stage.cells == (1, 1, 1)
    assert stage.rays == 64


def values_at(
    config: TrainConfig, stage: StageSpec, params: Params, grid: OccupancyGrid, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Density and features of the field."""
    fns = methods.bind(methods.make_field(config.field, stage), params, grid)
    nothing = jnp.zeros(len(positions))
    density, latent = fns.density(positions, ConicalFrusta(positions, nothing, nothing, nothing))
    return density, fns.features(latent)


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("growth", [(True, None), (False, 13**3), (True, 13**3), (True, 7**3)])
def test_linear_content_is_the_same_in_all_cells_that_a_growth_keeps(
    growth: tuple[bool, int | None], pruned: bool, aabb: np.ndarray
) -> None:
    config = ball_config(side=9, density_shift=-1.0, prune_by="weight", prune_threshold=0.05)
    stage, state = first_state(config, aabb)
    params, grid = linear_factors(state.params), state.grid
    assert isinstance(grid, WeightTrackedGrid)
    stage = dataclasses.replace(stage, pruned=pruned)
    occupied = np.zeros(stage.cells, bool)
    occupied[1:7, 2:5, 1:4] = True
    grid = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
    seen = np.ravel_multi_index((5, 3, 2), stage.cells)
    grid = occupancy.record_weights(grid, jnp.asarray([seen]), jnp.asarray([0.3]))
    new_stage, new, carry_over = transitions.grow(
        config, stage, StageTransition(3, *growth, 1), params, grid
    )
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
    growth = StageTransition(3, False, 15**3, 1)
    new_stage, grid, carry_over = transitions.grow(config, stage, growth, state.params, state.grid)
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
    growth = StageTransition(3, False, 12**3, 1)
    _, new, _ = transitions.grow(config, stage, growth, state.params, grid)
    assert np.all(occupancy.lookup(new, positions_in(grid, 4000)))


@pytest.mark.parametrize("aabb", [BOX, LONG], ids=["cube", "long"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_nerf, tiny_voxels])
def test_a_stage_is_foreseen_as_it_comes_or_not_at_all(
    make: Any, pruned: bool, aabb: np.ndarray
) -> None:
    config = make(supersample=2)
    stage, state = first_state(config, aabb)
    stage, grid = dataclasses.replace(stage, pruned=pruned), state.grid
    finer = {tiny_tensorf: 12**3, tiny_nerf: None, tiny_voxels: 16**3}[make]
    if isinstance(grid, WeightTrackedGrid):
        slots = np.arange(1, grid.memory.size, 7)
        if make is tiny_tensorf:
            # Only a corner of what is occupied was seen: pruning will leave a smaller box.
            field = dataclasses.replace(config.field, prune_by="weight", prune_threshold=0.1)
            config = dataclasses.replace(config, field=field)
            occupied = np.zeros(stage.cells, bool)
            occupied[1:7, 1:6, 1:4] = True
            grid = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
            slots = np.array([np.ravel_multi_index((2, 2, 2), stage.cells)])
        grid = occupancy.record_weights(
            grid, jnp.asarray(slots, jnp.int32), jnp.full(slots.shape, 0.5)
        )
    foreseen = []
    for prune in (False, True):
        for count in {None, finer}:
            for supersample in (1, 2):
                growth = StageTransition(3, prune, count, supersample)
                ahead = transitions.predict_next_stage(config, stage, growth, grid)
                came, _, _ = transitions.grow(config, stage, growth, state.params, grid)
                assert came.supersample == supersample
                foreseen.append(ahead is not None)
                if ahead is None:
                    assert make is tiny_tensorf and count is not None and not pruned
                elif make is tiny_voxels:
                    # How much room the table needs is known only then.
                    room = {"table_rows": 0, "table_cells": 0}
                    assert dataclasses.replace(ahead, **room) == dataclasses.replace(came, **room)
                    assert transitions.same_shapes(stage, ahead)
                else:
                    assert ahead == came
    assert all(foreseen) or (make is tiny_tensorf and not pruned and any(foreseen))


def test_shapes_stay_unless_the_field_or_its_grid_changes() -> None:
    stage = StageSpec((8, 8, 8), (8, 8, 8), 64, 1, table_rows=5, table_cells=4)
    for change in (
        {"resolution": (8, 8, 9)},
        {"cells": (8, 9, 8)},
        {"table_rows": 6},
        {"table_cells": 5},
    ):
        assert not transitions.same_shapes(stage, dataclasses.replace(stage, **change))
    other = StageSpec((8, 8, 8), (8, 8, 8), 32, 2, 2, 3, 7, 8, 9, 10, 1.5, True, 5, 4)
    assert transitions.same_shapes(stage, stage) and transitions.same_shapes(stage, other)


def test_growing_a_nerf_changes_nothing() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    grown = transitions.grow(
        config, stage, StageTransition(1, True, 99, 1), state.params, state.grid
    )
    assert grown[0] == stage and grown[1] is state.grid
    assert grown[2](state.params) is state.params


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("samples", [1, 1000, 1 << 18])
def test_a_batch_has_the_asked_number_of_rays_and_samples(
    samples: int, pruned: bool, make: Any
) -> None:
    config = make(batch_samples=samples, batch_rays=77)
    stage = dataclasses.replace(transitions.first_stage(config, BOX), pruned=pruned)
    fitted = transitions.set_budgets(config, stage, BOX)
    assert (fitted.rays, fitted.sample_budget) == (77, samples)
    # Most blocks that are looked into hold fewer samples than steps.
    assert samples / methods.STEPS_PER_BLOCK <= fitted.block_budget
    for share in (0.3, 0.5, 1.0):
        if make is tiny_tensorf:
            field = dataclasses.replace(config.field, max_shaded_fraction=share)
            config = dataclasses.replace(config, field=field)
        budget = transitions.set_budgets(config, stage, BOX).color_budget
        # 0 is for all.
        thrifty = make is tiny_tensorf and share < 1.0
        assert budget == (math.ceil(share * samples) if thrifty else 0)
    same = {"rays": 0, "block_budget": 0, "sample_budget": 0, "color_budget": 0, "blocks": 0}
    assert dataclasses.replace(fitted, **same) == dataclasses.replace(stage, **same)


def test_the_batch_of_a_nerf_is_what_was_asked_for() -> None:
    config = tiny_nerf()
    stage = transitions.first_stage(config, BOX)
    assert transitions.set_budgets(config, stage, BOX) == stage
    assert (stage.rays, stage.blocks, stage.sample_budget) == (64, 0, 0)


def test_voxels_get_about_as_small_as_a_pixel_and_then_two_sub_rays() -> None:
    scene = make_scene()  # pixels of 4.0 / 21.9 = 0.18 at the middle, a box of 3.0
    for initial, wanted, supersample in ((4, 2, 2), (6, 1, 1), (14, 0, 2), (12, 0, 1), (64, 0, 2)):
        field = dataclasses.replace(
            tiny_voxels().field,
            initial_resolution=initial,
            num_subdivisions=None,
            upsample_at=(0.1, 0.2, 0.3),
        )
        fitted = transitions.resolve_config(tiny_voxels(field=field, supersample=None), scene)
        assert isinstance(fitted.field, VoxelsConfig)
        assert (fitted.field.num_subdivisions, fitted.supersample) == (wanted, supersample), initial
    field = dataclasses.replace(field, initial_resolution=1)
    fitted = transitions.resolve_config(tiny_voxels(field=field, supersample=3), scene)
    assert isinstance(fitted.field, VoxelsConfig)
    assert (fitted.field.num_subdivisions, fitted.supersample) == (3, 3)
    assert transitions.resolve_config(fitted, scene) == fitted
    for config in (tiny_nerf(), tiny_tensorf(supersample=4)):
        wanted = dataclasses.replace(
            config,
            field=dataclasses.replace(config.field, contract=False),
            supersample=config.supersample or 1,
            microbatch_samples=transitions.CACHED_SAMPLES,
        )
        assert transitions.resolve_config(config, scene) == wanted


def test_voxels_are_looked_at_by_rays_enough_before_any_are_dropped() -> None:
    field = dataclasses.replace(
        tiny_voxels().field,
        num_subdivisions=2,
        upsample_at=(0.1, 0.2),
        prune_at=(0.04, 0.1, 0.2, 0.3),
        min_steps_before_refine=0,
    )
    config = tiny_voxels(field=field, steps=1000, supersample=1)
    plain = transitions.plan_transitions(config)
    assert [growth.step for growth in plain] == [40, 100, 200, 300]
    waiting = dataclasses.replace(field, min_steps_before_prune=(50, 70, 300))
    patient = transitions.plan_transitions(dataclasses.replace(config, field=waiting))
    assert [growth.step for growth in patient] == [50, 100, 200, 500]
    assert [g._replace(step=0) for g in patient] == [g._replace(step=0) for g in plain]
    # What comes too late is left out.
    late = dataclasses.replace(field, min_steps_before_prune=(50, 70, 900))
    assert len(transitions.plan_transitions(dataclasses.replace(config, field=late))) == 3
    # Sub-rays that begin meanwhile do so as soon as may be.
    supersample = dataclasses.replace(config, field=waiting, supersample=2, supersample_from=0.25)
    assert [(g.step, g.supersample) for g in transitions.plan_transitions(supersample)] == [
        (50, 1), (100, 1), (200, 1), (250, 2), (550, 2)
    ]  # fmt: skip


def test_what_waiting_makes_due_at_once_is_done_at_once_but_for_divisions() -> None:
    field = dataclasses.replace(
        tiny_voxels().field,
        num_subdivisions=2,
        upsample_at=(0.1, 0.2),
        prune_at=(0.04,),
        min_steps_before_refine=0,
        min_steps_before_prune=(300,),
    )
    config = tiny_voxels(field=field, steps=1000, supersample=2, supersample_from=0.05)
    growths = transitions.plan_transitions(config)
    # The pruning waits for longer than sub-rays, which then begin with it, and both num_subdivisions.
    assert [(g.step, g.prune, g.supersample) for g in growths] == [
        (300, True, 2), (301, False, 2), (302, False, 2)
    ]  # fmt: skip
    assert [g.voxels is not None for g in growths] == [False, True, True]


def test_patience_is_that_of_rays_and_of_what_a_voxel_covers() -> None:
    scene = make_scene()
    field = dataclasses.replace(
        tiny_voxels().field, initial_resolution=4, num_subdivisions=2, upsample_at=(0.1, 0.2)
    )
    fitted = transitions.resolve_config(tiny_voxels(field=field, batch_rays=64), scene).field
    assert isinstance(fitted, VoxelsConfig)
    # Voxels of 0.75, 0.375 and 0.19, pixels of 0.18; 64 rays are a quarter of a picture.
    pixel = 4.0 / float(scene.splits["train"].cameras.focal[0, 0])
    wanted = [16 / 0.25 * (pixel / side) ** 2 for side in (0.75, 0.375, 0.1875)]
    assert fitted.min_steps_before_prune == tuple(math.ceil(steps) for steps in wanted)


def test_a_random_background_gives_way_to_one_that_pictures_show() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    rgb = composite(split.images, np.zeros(3))
    images = np.rint(255 * np.pad(rgb, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1))
    before_black = dataclasses.replace(split, images=images.astype(np.uint8))
    opaque = dataclasses.replace(scene, splits={"train": before_black})
    wanted = {("random", False): "black", ("white", False): "white", ("random", True): "random"}
    for (asked, unbounded), settled in wanted.items():
        config = tiny_tensorf(background=asked)
        seen = dataclasses.replace(opaque, unbounded=unbounded)
        assert transitions.resolve_config(config, seen).background == settled
    assert (
        transitions.resolve_config(tiny_tensorf(background="random"), scene).background == "random"
    )


@pytest.mark.parametrize("divide", [False, True])
def test_voxels_that_no_ray_has_seen_are_dropped_but_for_neighbours(divide: bool) -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    grid = state.grid
    assert isinstance(grid, VoxelGrid)
    number = np.asarray(grid.number).reshape(grid.occupied.shape)
    cells = jnp.asarray([number[4, 5, 6], number[1, 1, 1]], jnp.int32)
    weights = jnp.asarray([0.5, 0.5 * config.field.prune_threshold], jnp.float32)
    unseen, grid = grid, occupancy.record_weights(grid, cells, weights)
    growth = StageTransition(6, True, 16**3 if divide else None, 1)
    new_stage, new, carry = transitions.grow(config, stage, growth, state.params, grid)
    assert isinstance(new, VoxelGrid) and new_stage == stage
    assert int(new.occupied.sum()) == 27 * (8 if divide else 1)
    np.testing.assert_allclose(new.aabb[0], -1.5 + 3.0 / 8 * np.array([3, 4, 5]), atol=1e-6)
    assert carry(state.params)["table"].shape == state.params["table"].shape
    # Unseen as a whole, nothing is dropped.
    _, new, _ = transitions.grow(config, stage, growth, state.params, unseen)
    assert int(new.occupied.sum()) == 8**3 * (8 if divide else 1)


def test_a_table_that_gets_too_small_is_made_larger() -> None:
    config = tiny_voxels()
    stage, state = first_state(config)
    growth = StageTransition(6, False, 16**3, 1)
    new_stage, new, carry = transitions.grow(config, stage, growth, state.params, state.grid)
    assert isinstance(new, VoxelGrid)
    assert new_stage.table_rows >= 17**3 + 1 and new_stage.table_cells >= 16**3 + 1
    assert new_stage.table_rows % 4096 == 0
    assert new.rows.shape == (new_stage.table_cells, 8)
    assert carry(state.params)["table"].shape == (new_stage.table_rows, 4)


def test_grids_are_described_in_their_own_terms() -> None:
    described = [
        transitions.describe_grid(config.field, stage, state.grid)
        for config in (tiny_voxels(), tiny_tensorf(), tiny_nerf(), tiny_hashgrid())
        for stage, state in [first_state(config)]
    ]
    assert described == [
        "512 voxels of 0.375",
        "grid 8x8x8, 100.0% occupied",
        "",
        "100.0% of the box occupied",
    ]


@pytest.mark.parametrize("make", [tiny_hashgrid, marching_nerf])
def test_first_stage_of_a_marching_field_has_cells_and_budgets(make: Any) -> None:
    config = make()
    stage, state = first_state(config, LONG)
    field = config.field
    side = 3.0 / field.occupancy_resolution
    cells = tuple(math.ceil(n / side - 1e-6) for n in (3.0, 2.2, 1.5))
    assert stage.cells == cells and isinstance(state.grid, DensityEmaGrid)
    assert np.all(state.grid.occupied) and set(state.params) == {"fine"}
    assert (stage.rays, stage.sample_budget) == (config.batch_rays, config.batch_samples)
    assert stage.passes == 1 and transitions.plan_transitions(config) == []
    step = float(methods.step_length(field, stage, LONG))
    diagonal = float(np.linalg.norm(LONG[1] - LONG[0]))
    assert step == pytest.approx(diagonal / 32, rel=1e-6)
    assert stage.blocks * methods.STEPS_PER_BLOCK * step >= diagonal + step
    cell = float(np.min((LONG[1] - LONG[0]) / np.array(cells)))
    assert stage.reach == pytest.approx(0.5 * methods.STEPS_PER_BLOCK * step / cell, rel=1e-5)
    assert transitions.set_budgets(config, stage, LONG) == stage
    less = transitions.halve_batch(tiny_hashgrid(batch_rays=512), stage)
    assert (less.batch_rays, less.batch_samples) == (256, 1 << 11)


def test_lines_grow_without_planes() -> None:
    config = cp_config(init_scale=0.5)
    stage, state = first_state(config)
    assert "mlp" not in state.params
    growth = StageTransition(3, False, 15**3, 1)
    new_stage, grid, carry_over = transitions.grow(config, stage, growth, state.params, state.grid)
    positions = positions_in(grid)
    before = values_at(config, stage, state.params, state.grid, positions)
    after = values_at(config, new_stage, carry_over(state.params), grid, positions)
    for old_value, new_value in zip(before, after, strict=True):
        np.testing.assert_allclose(new_value, old_value, rtol=1e-3, atol=1e-5)
    assert np.std(before[1]) > 1e-3


def test_rates_restart_at_upsamplings_alone_and_only_if_asked() -> None:
    field = TensoRFConfig(upsample_at=(0.25, 0.5), prune_at=(0.1, 0.75), initial_voxels=1000)
    plain = TrainConfig(field=field, steps=100)
    config = dataclasses.replace(plain, field=dataclasses.replace(field, reset_lr=True))
    steps = {
        growth.step: transitions.resets_lr(config.field, growth)
        for growth in transitions.plan_transitions(config)
    }
    assert steps == {10: False, 25: True, 50: True, 75: False}
    for step, wanted in ((0, 0.0), (25, 0.0), (26, 0.25), (50, 0.25), (51, 0.5), (100, 0.5)):
        assert transitions.last_lr_reset(config, step) == pytest.approx(wanted)
        assert transitions.last_lr_reset(plain, step) == 0.0
    longer = schedule.rescale_schedule(config, 30, 310)
    assert transitions.last_lr_reset(longer, 31) == pytest.approx(0.25)
    assert (
        transitions.last_lr_reset(tiny_nerf(), 5)
        == transitions.last_lr_reset(tiny_voxels(), 24)
        == 0.0
    )


def test_stages_are_foreseen_up_to_the_first_that_depends_on_a_pruning_to_come() -> None:
    config = tiny_tensorf(steps=100, supersample=2, supersample_from=0.35)
    field = dataclasses.replace(config.field, prune_at=(0.2, 0.5), upsample_at=(0.5,))
    config = dataclasses.replace(config, field=field)
    stage, state = first_state(config)
    growths = transitions.plan_transitions(config)
    assert [(g.step, g.prune, g.voxels is None, g.supersample) for g in growths] == [
        (20, True, True, 1), (35, False, True, 2), (50, True, False, 2),
    ]  # fmt: skip
    found = transitions.predict_next_stages(config, stage, growths, state.grid)
    # The box of the upsampled grid is known once the first pruning is done.
    assert [(s.pruned, s.supersample) for s in found] == [(True, 1), (True, 2)]
    pruned = found[0]
    found = transitions.predict_next_stages(config, pruned, growths[1:], state.grid)
    assert [s.supersample for s in found] == [2, 2] and found[-1].resolution != stage.resolution
    assert found[0] == transitions.predict_next_stage(config, pruned, growths[1], state.grid)
    assert transitions.predict_next_stages(config, stage, [], state.grid) == []


def test_whether_cells_were_pruned_matters_to_steps_with_two_penalties_alone() -> None:
    config = tiny_tensorf()
    stage, _ = first_state(config)
    pruned = dataclasses.replace(stage, pruned=True)
    field = dataclasses.replace(config.field, l1_weight=0.1, l1_weight_pruned=0.1)
    assert transitions.canonical_stage(field, pruned) == stage
    field = dataclasses.replace(field, l1_weight_pruned=0.2)
    assert transitions.canonical_stage(field, pruned) == pruned
    assert transitions.canonical_stage(tiny_voxels().field, pruned) == stage


def test_pruning_by_alpha_leaves_the_density_s_factor_out() -> None:
    config = ball_config(side=12, density_scale=25.0, prune_by="alpha", prune_threshold=1e-4)
    assert isinstance(config.field, TensoRFConfig)
    stage, state = first_state(config)
    step = float(methods.step_length(config.field, stage, np.asarray(state.grid.aabb)))
    # softplus(raw - 10) step = 1e-4, nearly.
    edge = 10.0 + math.log(1e-4 / step)
    raw = np.where(np.arange(12) < 6, edge - 0.3, edge + 0.3)
    density = jax.tree.map(jnp.zeros_like, state.params["density"])
    # One product alone, whose line runs along x.
    line = density["lines"][2].at[:, 0].set(jnp.asarray(raw, jnp.float32))
    plane = density["planes"][2].at[..., 0].set(1.0)
    density = {
        "planes": (*density["planes"][:2], plane),
        "lines": (*density["lines"][:2], line),
    }
    params = {**state.params, "density": density}
    _, grid, _ = transitions.grow(
        config, stage, StageTransition(6, True, None, 1), params, state.grid
    )
    occupied = np.asarray(grid.occupied)
    assert not occupied[:4].any() and occupied[7:].all()
