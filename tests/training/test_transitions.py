"""Stages: planned transitions, budgets, and numbers that are settled for a scene."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scenes import (
    BOX,
    LONG,
    change,
    first_state,
    make_scene,
    marching_nerf,
    proposing_hashgrid,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf import presets
from jaxrf.data.scene import composite
from jaxrf.fields.base import StageTransition
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxels import Voxels
from jaxrf.models.base import ModelParams, StageSpec
from jaxrf.models.packed import PackedModel
from jaxrf.sampling.density_tracking import DensityTrackedGrid
from jaxrf.sampling.marching import STEPS_PER_BLOCK
from jaxrf.training import schedule, transitions
from jaxrf.training.config import TrainConfig

# -- plans -------------------------------------------------------------------------------------


def test_plan_transitions_of_the_published_recipe() -> None:
    """Section 5: upsampled at steps 2000, 3000, 4000, 5500 and 7000; masks at 2000 and 4000."""
    plan = transitions.plan_transitions(TrainConfig(field=TensoRF(), num_steps=30_000))
    assert [t.step for t in plan] == [2000, 3000, 4000, 5500, 7000]
    assert [t.prune for t in plan] == [True, False, True, False, False]
    sides = [round((t.num_voxels or 0) ** (1 / 3)) for t in plan]
    assert sides == [152, 180, 213, 253, 300]  # log-spaced between 128 and 300


@pytest.mark.parametrize("steps", [10, 100, 30_000])
@pytest.mark.parametrize("preset", presets.PRESETS, ids=presets.preset_name)
def test_plan_transitions_scales_with_the_steps_and_is_in_order(preset: Any, steps: int) -> None:
    config = dataclasses.replace(preset(), num_steps=steps, supersample=1, train_scale_schedule=())
    field = config.field
    plan = transitions.plan_transitions(config)
    numbers = [t.step for t in plan]
    assert numbers == sorted(set(numbers))
    assert all(0 < number < steps for number in numbers)
    if isinstance(field, TensoRF):
        settle = field.min_steps_before_refine
        expected = {max(round(at * steps), settle) for at in field.prune_at}
        expected |= {
            max(round(at * steps), 2 * settle * (i + 1) + i)
            for i, at in enumerate(field.upsample_at)
        }
        assert set(numbers) == {number for number in expected if 0 < number < steps}
        voxels = [t.num_voxels for t in plan if t.num_voxels is not None]
        assert voxels == sorted(voxels)
        if max(expected) < steps:
            assert voxels[-1] == field.final_voxels and voxels[0] > field.initial_voxels
    elif isinstance(field, Voxels):
        assert all(number >= field.min_steps_before_refine for number in numbers)
        sides = [round(t.num_voxels ** (1 / 3)) for t in plan if t.num_voxels]
        if steps == 30_000:
            expected = {round(at * steps) for at in field.upsample_at + field.prune_at}
            assert set(numbers) == expected
        if steps >= 100:
            assert sides == [2 * field.initial_resolution, 4 * field.initial_resolution]
            assert plan[0].prune, "divided before it is pruned, the grid would fill the memory"
    else:
        assert plan == []


@pytest.mark.parametrize(("platform", "samples"), [("cpu", 2048), ("cuda", None), ("tpu", None)])
def test_resolve_config_cuts_batches_for_the_devices_that_train(
    platform: str, samples: int | None
) -> None:
    """On a CPU activations stay in its cache; an accelerator takes a batch at once."""
    config = transitions.resolve_config(presets.nerf_original(), make_scene(8), platform)
    assert config.microbatch_samples == samples


def test_resolve_config_takes_the_exposures_of_the_images_if_they_differ() -> None:
    def resolve(exposures: Sequence[float] | None, **changes: Any) -> Any:
        scene = make_scene()
        known = None if exposures is None else np.array(exposures)
        train = dataclasses.replace(scene.train, exposures=known)
        scene = dataclasses.replace(scene, splits={"train": train})
        return transitions.resolve_config(tiny_nerf(**changes), scene).model

    exposures = (0.1, 0.2, 0.1, 0.1, 0.4, 0.1)
    model = resolve(exposures, color_correction="affine")
    assert model.exposures == exposures and model.num_appearances == 6
    assert resolve(None, color_correction="affine").exposures == ()
    assert resolve([0.3] * 6, color_correction="affine").exposures == ()
    assert resolve(exposures) == resolve(None)
    assert resolve(exposures, appearance_dim=2).exposures == ()


def test_a_pruning_and_an_upsampling_at_one_step_are_one_transition() -> None:
    field = TensoRF(
        upsample_at=(0.5,), prune_at=(0.25, 0.5, 0.75), initial_voxels=1000, final_voxels=8000
    )
    assert transitions.plan_transitions(TrainConfig(field=field, num_steps=100)) == [
        StageTransition(25, True, None, 1),
        StageTransition(50, True, 8000, 1),
        StageTransition(75, True, None, 1),
    ]


def test_supersampling_begins_at_the_step_of_its_fraction() -> None:
    field = TensoRF(upsample_at=(), prune_at=(0.25, 0.5), initial_voxels=1000)
    plan = transitions.plan_transitions(
        TrainConfig(field=field, num_steps=100, supersample=3, supersample_from=0.4)
    )
    assert plan == [
        StageTransition(25, True, None, 1),
        StageTransition(40, False, None, 3),
        StageTransition(50, True, None, 3),
    ]
    late, always = (
        tiny_nerf(num_steps=10, supersample=2, supersample_from=at) for at in (0.5, 0.0)
    )
    begin = StageTransition(5, False, None, 2)
    assert transitions.plan_transitions(late) == [begin]
    assert transitions.plan_transitions(always) == []
    assert transitions.first_stage(late, BOX).supersample == 1
    assert transitions.first_stage(always, BOX).supersample == 2
    stage, state = first_state(late)
    stage, _ = transitions.transition_stage(late, stage, state, begin)
    assert stage.supersample == 2


def test_rescale_schedule_moves_coming_transitions_and_leaves_past_ones() -> None:
    field = TensoRF(
        upsample_at=(0.25, 0.5), prune_at=(0.1, 0.75), initial_voxels=1000, final_voxels=8000
    )
    config = TrainConfig(field=field, num_steps=100, supersample=2, supersample_from=0.6)
    before = transitions.plan_transitions(config)
    # Of 310 steps, 30 are done with a progress of 0.3; another 280 are left for 0.7.
    after = transitions.plan_transitions(schedule.rescale_schedule(config, 30, 310))
    assert [t.step for t in before] == [10, 25, 50, 60, 75]
    assert [t.step for t in after] == [10, 25, 110, 150, 210]
    for old, new in zip(before, after, strict=True):
        assert new._replace(step=old.step) == old


@pytest.mark.parametrize("settle", [0, 7, 15, 30, 99, 200])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
def test_a_short_training_settles_before_its_first_transition(make: Any, settle: int) -> None:
    config = make(
        min_steps_before_refine=settle, upsample_at=(0.05, 0.2), prune_at=(0.1, 0.4),
        num_steps=100, supersample=1,
    )  # fmt: skip
    if make is tiny_voxels:
        config = change(config, num_subdivisions=2)
    plan = transitions.plan_transitions(config)
    pruned = [t.step for t in plan if t.prune]
    assert pruned == sorted({s for s in (max(10, settle), max(40, settle)) if s < 100})
    upsampled = [t.step for t in plan if t.num_voxels is not None]
    if make is tiny_tensorf:
        # A TensoRF settles again before each upsampling: time to compile what is to come.
        earliest = (2 * settle, 4 * settle + 1)
    else:
        earliest = (settle, settle + 1)
    expected = [max(at, first) for at, first in zip((5, 20), earliest, strict=True)]
    assert upsampled == [step for step in expected if step < 100]
    # Two upsamplings never fall together.
    assert len(set(expected)) == 2
    assert [t.step for t in plan] == sorted({*pruned, *upsampled})


def test_transitions_at_the_ends_are_left_out() -> None:
    field = TensoRF(upsample_at=(0.0, 1.0), prune_at=(0.0, 0.001, 1.0))
    assert transitions.plan_transitions(TrainConfig(field=field, num_steps=100)) == []
    field = TensoRF(upsample_at=(), prune_at=())
    assert transitions.plan_transitions(TrainConfig(field=field, num_steps=100)) == []


def test_voxels_are_trained_for_long_enough_before_any_are_dropped() -> None:
    config = tiny_voxels(
        num_subdivisions=2,
        upsample_at=(0.1, 0.2),
        prune_at=(0.04, 0.1, 0.2, 0.3),
        min_steps_before_refine=0,
        num_steps=1000,
        supersample=1,
    )
    plain = transitions.plan_transitions(config)
    assert [t.step for t in plain] == [40, 100, 200, 300]
    waiting = change(config, min_steps_before_prune=(50, 70, 300))
    delayed = transitions.plan_transitions(waiting)
    assert [t.step for t in delayed] == [50, 100, 200, 500]
    assert [t._replace(step=0) for t in delayed] == [t._replace(step=0) for t in plain]
    # A transition past the last step is left out.
    late = change(config, min_steps_before_prune=(50, 70, 900))
    assert len(transitions.plan_transitions(late)) == 3
    # Supersampling that begins meanwhile does so as soon as possible.
    supersampled = dataclasses.replace(waiting, supersample=2, supersample_from=0.25)
    assert [(t.step, t.supersample) for t in transitions.plan_transitions(supersampled)] == [
        (50, 1), (100, 1), (200, 1), (250, 2), (550, 2)
    ]  # fmt: skip


def test_transitions_delayed_to_one_step_become_one_but_for_subdivisions() -> None:
    config = tiny_voxels(
        num_subdivisions=2,
        upsample_at=(0.1, 0.2),
        prune_at=(0.04,),
        min_steps_before_refine=0,
        min_steps_before_prune=(300,),
        num_steps=1000,
        supersample=2,
        supersample_from=0.05,
    )
    plan = transitions.plan_transitions(config)
    # The pruning waits for longer than supersampling, which then begins with it, and than both
    # subdivisions.
    assert [(t.step, t.prune, t.supersample) for t in plan] == [
        (300, True, 2), (301, False, 2), (302, False, 2)
    ]  # fmt: skip
    assert [t.num_voxels is not None for t in plan] == [False, True, True]


def test_learning_rates_reset_at_upsamplings_and_only_if_asked_for() -> None:
    field = TensoRF(upsample_at=(0.25, 0.5), prune_at=(0.1, 0.75), initial_voxels=1000)
    plain = TrainConfig(field=field, num_steps=100)
    config = change(plain, reset_lr=True)
    resets = {t.step: config.field.resets_lr(t) for t in transitions.plan_transitions(config)}
    assert resets == {10: False, 25: True, 50: True, 75: False}
    for step, expected in ((0, 0.0), (25, 0.0), (26, 0.25), (50, 0.25), (51, 0.5), (100, 0.5)):
        assert transitions.last_lr_reset(config, step) == pytest.approx(expected)
        assert transitions.last_lr_reset(plain, step) == 0.0
        traced = transitions.schedule_from(config, step)
        assert float(traced.last_lr_reset) == pytest.approx(expected)
    longer = schedule.rescale_schedule(config, 30, 310)
    assert transitions.last_lr_reset(longer, 31) == pytest.approx(0.25)
    assert (
        transitions.last_lr_reset(tiny_nerf(), 5)
        == transitions.last_lr_reset(tiny_voxels(), 24)
        == 0.0
    )


# -- stages and budgets ------------------------------------------------------------------------


@pytest.mark.parametrize("supersample", [1, 2, 3, 20])
@pytest.mark.parametrize("make", [tiny_tensorf, tiny_nerf, tiny_voxels, tiny_hashgrid])
def test_a_batch_has_all_rays_of_its_pixels(make: Any, supersample: int) -> None:
    config = make(supersample=supersample, supersample_from=0.0)
    stage = transitions.first_stage(config, BOX)
    assert stage.num_rays % supersample**2 == 0 and stage.num_rays > 0
    assert stage.num_rays <= max(config.batch_rays, supersample**2)


def test_first_stage_has_the_initial_grid() -> None:
    def first_field(config: TrainConfig, aabb: np.ndarray) -> TensoRF:
        field = transitions.first_stage(config, aabb).field
        assert isinstance(field, TensoRF)
        return field

    config = tiny_tensorf()
    stage, state = first_state(config)
    field = first_field(config, BOX)
    assert stage.field == field and field.resolution == (8, 8, 8) and field.cells == (8, 8, 8)
    assert stage.grid_resolution == (8, 8, 8)
    assert stage.num_rays == 128 and not field.pruned
    assert hash(stage) == hash(dataclasses.replace(stage))
    np.testing.assert_array_equal(state.grid.aabb, BOX)
    assert np.all(state.grid.occupied) and state.grid.occupied.shape == stage.grid_resolution
    long = np.array([[0, 0, 0], [4, 2, 1]], np.float32)
    assert first_field(config, long).resolution == (16, 8, 4)
    few = change(config, occupancy_voxels=64)
    assert first_field(few, BOX).cells == (4, 4, 4)
    assert transitions.first_stage(few, BOX).grid_resolution == (4, 4, 4)


def test_first_stage_of_a_nerf_has_no_grid() -> None:
    config = tiny_nerf()
    stage = transitions.first_stage(config, BOX)
    assert stage.field == config.field and stage.grid_resolution == (1, 1, 1)
    assert stage.num_rays == 64


@pytest.mark.parametrize("make", [tiny_hashgrid, marching_nerf])
def test_first_stage_of_a_packed_model_has_cells_and_budgets(make: Any) -> None:
    config = make()
    stage, state = first_state(config, LONG)
    model = config.model
    assert isinstance(model, PackedModel)
    side = 3.0 / model.occupancy_resolution
    cells = tuple(math.ceil(n / side - 1e-6) for n in (3.0, 2.2, 1.5))
    assert stage.grid_resolution == cells and isinstance(state.grid, DensityTrackedGrid)
    assert np.all(state.grid.occupied)
    assert state.params._replace(field=None) == ModelParams(field=None)
    assert (stage.num_rays, stage.sample_budget) == (config.batch_rays, config.batch_samples)
    assert stage.num_microbatches == 1 and transitions.plan_transitions(config) == []
    step = float(model.step_size(stage.field, LONG))
    diagonal = float(np.linalg.norm(LONG[1] - LONG[0]))
    assert step == pytest.approx(diagonal / 32, rel=1e-6)
    assert stage.max_blocks * STEPS_PER_BLOCK * step >= diagonal + step
    cell = float(np.min((LONG[1] - LONG[0]) / np.array(cells)))
    dilation_cells = 0.5 * STEPS_PER_BLOCK * step / cell
    assert stage.dilation_cells == pytest.approx(dilation_cells, rel=1e-5)
    assert transitions.set_budgets(config, stage, LONG) == stage
    halved = transitions.halve_batch(tiny_hashgrid(batch_rays=512), stage)
    assert (halved.batch_rays, halved.batch_samples) == (256, 1 << 11)


def test_same_shapes_unless_the_field_s_shapes_or_the_grid_change() -> None:
    factors = TensoRF(resolution=(8, 8, 8), cells=(8, 8, 8))
    packed = Voxels(table_rows=5, table_cells=4)
    changes: list[tuple[Any, dict[str, Any]]] = [
        (factors, {"resolution": (8, 8, 9)}),
        (factors, {"cells": (8, 9, 8)}),
        (packed, {"table_rows": 6}),
        (packed, {"table_cells": 5}),
    ]
    for field, numbers in changes:
        stage = StageSpec(field, (8, 8, 8), 64, 1)
        changed = dataclasses.replace(stage, field=dataclasses.replace(field, **numbers))
        assert not transitions.same_shapes(stage, changed)
        assert not transitions.same_shapes(
            stage, dataclasses.replace(stage, grid_resolution=(8, 9, 8))
        )
        other = StageSpec(field, (8, 8, 8), 32, 2, 2, 3, 7, 8, 9, 10, 1.5)
        assert transitions.same_shapes(stage, stage) and transitions.same_shapes(stage, other)
    stage = StageSpec(factors, (8, 8, 8), 64, 1)
    pruned = dataclasses.replace(stage, field=dataclasses.replace(factors, pruned=True))
    assert transitions.same_shapes(stage, pruned)


@pytest.mark.parametrize("make", [tiny_tensorf, tiny_voxels])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("samples", [1, 1000, 1 << 18])
def test_set_budgets_gives_the_configured_number_of_rays_and_samples(
    samples: int, pruned: bool, make: Any
) -> None:
    config = make(batch_samples=samples, batch_rays=77)
    stage = transitions.first_stage(config, BOX)
    if isinstance(stage.field, TensoRF):
        field = dataclasses.replace(stage.field, pruned=pruned)
        stage = dataclasses.replace(stage, field=field)
    budgeted = transitions.set_budgets(config, stage, BOX)
    assert (budgeted.num_rays, budgeted.sample_budget) == (77, samples)
    # Blocks that are entered hold fewer samples than steps, as a rule.
    assert samples / STEPS_PER_BLOCK <= budgeted.block_budget
    assert make is tiny_tensorf or budgeted.color_budget == 0
    for share in (0.3, 0.5, 1.0):
        limited = change(config, max_colored_fraction=share)
        budget = transitions.set_budgets(limited, stage, BOX).color_budget
        # 0 is for all.
        assert budget == (math.ceil(share * samples) if share < 1.0 else 0)
    same: dict[str, Any] = {
        "num_rays": 0, "block_budget": 0, "sample_budget": 0, "color_budget": 0, "max_blocks": 0
    }  # fmt: skip
    assert dataclasses.replace(budgeted, **same) == dataclasses.replace(stage, **same)


def test_set_budgets_leaves_the_batch_of_a_nerf() -> None:
    config = tiny_nerf()
    stage = transitions.first_stage(config, BOX)
    assert transitions.set_budgets(config, stage, BOX) == stage
    assert (stage.num_rays, stage.max_blocks, stage.sample_budget) == (64, 0, 0)


def test_predict_next_stages_ends_where_a_stage_depends_on_a_coming_pruning() -> None:
    config = tiny_tensorf(
        num_steps=100, supersample=2, supersample_from=0.35, prune_at=(0.2, 0.5),
        upsample_at=(0.5,),
    )  # fmt: skip
    stage, state = first_state(config)
    plan = transitions.plan_transitions(config)
    assert [(t.step, t.prune, t.num_voxels is None, t.supersample) for t in plan] == [
        (20, True, True, 1), (35, False, True, 2), (50, True, False, 2),
    ]  # fmt: skip
    predicted = transitions.predict_next_stages(config, stage, plan, state.grid)
    fields: list[Any] = [s.field for s in predicted]
    # The box of the upsampled grid is known once the first pruning is done.
    assert [field.pruned for field in fields] == [True, True]
    assert [s.supersample for s in predicted] == [1, 2]
    pruned = predicted[0]
    predicted = transitions.predict_next_stages(config, pruned, plan[1:], state.grid)
    assert [s.supersample for s in predicted] == [2, 2]
    last = predicted[-1].field
    assert isinstance(last, TensoRF) and isinstance(stage.field, TensoRF)
    assert last.resolution != stage.field.resolution
    assert predicted[0] == transitions.predict_next_stage(config, pruned, plan[1], state.grid)
    assert transitions.predict_next_stages(config, stage, [], state.grid) == []


def test_canonical_stage_tells_pruned_cells_apart_only_with_two_penalties() -> None:
    stage, _ = first_state(tiny_tensorf())

    def with_numbers(**numbers: Any) -> StageSpec:
        field: Any = stage.field
        return dataclasses.replace(stage, field=dataclasses.replace(field, **numbers))

    same = {"l1_weight": 0.1, "l1_weight_pruned": 0.1}
    pruned = with_numbers(**same, pruned=True)
    assert transitions.canonical_stage(pruned) == with_numbers(**same)
    pruned = with_numbers(l1_weight=0.1, l1_weight_pruned=0.2, pruned=True)
    assert transitions.canonical_stage(pruned) == pruned
    voxel_stage, _ = first_state(tiny_voxels())
    assert transitions.canonical_stage(voxel_stage) == voxel_stage


def test_describe_grid_speaks_of_the_field_s_cells() -> None:
    descriptions = [
        config.model.describe_grid(stage, state.grid)
        for config in (tiny_voxels(), tiny_tensorf(), tiny_nerf(), tiny_hashgrid())
        for stage, state in [first_state(config)]
    ]
    assert descriptions == [
        "512 voxels of 0.375",
        "grid 8x8x8, 100.0% occupied",
        "",
        "100.0% of the box occupied",
    ]


# -- numbers settled for a scene ---------------------------------------------------------------


def test_voxels_get_about_as_small_as_a_pixel_and_then_two_rays_along_each_axis() -> None:
    scene = make_scene()  # pixels of 4.0 / 21.9 = 0.18 at the middle, a box of 3.0
    config = tiny_voxels(num_subdivisions=None, upsample_at=(0.1, 0.2, 0.3), supersample=None)
    cases = ((4, 2, 2), (6, 1, 1), (14, 0, 2), (12, 0, 1), (64, 0, 2))
    for initial, subdivisions, supersample in cases:
        resolved = transitions.resolve_config(change(config, initial_resolution=initial), scene)
        assert isinstance(resolved.field, Voxels)
        settled = (resolved.field.num_subdivisions, resolved.supersample)
        assert settled == (subdivisions, supersample), initial
    resolved = transitions.resolve_config(
        change(config, initial_resolution=1, supersample=3), scene
    )
    assert isinstance(resolved.field, Voxels)
    assert (resolved.field.num_subdivisions, resolved.supersample) == (3, 3)
    assert transitions.resolve_config(resolved, scene) == resolved
    for config in (tiny_nerf(), tiny_tensorf(supersample=4)):
        resolved = transitions.resolve_config(config, scene)
        expected = change(config, contract=False, supersample=config.supersample or 1)
        assert dataclasses.replace(resolved, microbatch_samples=None) == expected


def test_only_networks_are_trained_in_microbatches_that_a_cpu_keeps_in_its_cache() -> None:
    # The gradient of each microbatch is as large as the tables are.
    scene = make_scene()
    for config, samples in (
        (tiny_nerf(), transitions.CACHED_SAMPLES),
        (proposing_hashgrid(), None),
        (tiny_tensorf(), None),
        (proposing_hashgrid(microbatch_samples=100), 100),
    ):
        assert transitions.resolve_config(config, scene).microbatch_samples == samples


def test_min_steps_before_prune_follow_from_rays_and_from_pixels_that_a_voxel_covers() -> None:
    scene = make_scene()
    config = tiny_voxels(
        initial_resolution=4, num_subdivisions=2, upsample_at=(0.1, 0.2), batch_rays=64
    )
    field = transitions.resolve_config(config, scene).field
    assert isinstance(field, Voxels)
    # Voxels of 0.75, 0.375 and 0.19, pixels of 0.18; 64 rays are a quarter of an image.
    pixel = 4.0 / float(scene.splits["train"].cameras.focal[0, 0])
    steps = [16 / 0.25 * (pixel / side) ** 2 for side in (0.75, 0.375, 0.1875)]
    assert field.min_steps_before_prune == tuple(math.ceil(n) for n in steps)


def test_a_random_background_gives_way_to_one_that_images_show() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    rgb = composite(split.images, np.zeros(3))
    images = np.rint(255 * np.pad(rgb, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1))
    before_black = dataclasses.replace(split, images=images.astype(np.uint8))
    opaque = dataclasses.replace(scene, splits={"train": before_black})
    expected = {("random", False): "black", ("white", False): "white", ("random", True): "random"}
    for (background, unbounded), settled in expected.items():
        config = tiny_tensorf(background=background)
        captured = dataclasses.replace(opaque, unbounded=unbounded)
        assert transitions.resolve_config(config, captured).background == settled
    config = tiny_tensorf(background="random")
    assert transitions.resolve_config(config, scene).background == "random"
