"""The training loop: stages, resuming, replanning, memory, health, and that it learns."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    Recorder,
    cp_config,
    differing_leaves,
    first_state,
    make_scene,
    marching_nerf,
    proposing_hashgrid,
    slow,
    tiny_bitnerf,
    tiny_hashgrid,
    tiny_nerf,
    tiny_pynerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.cameras.base import image_rays
from jaxrf.core import memory
from jaxrf.core.rays import clip_to_aabb
from jaxrf.data.scene import composite
from jaxrf.evaluation import metrics
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.evaluation.scoring import make_render_fn
from jaxrf.fields.base import Field
from jaxrf.fields.voxel_grid import VoxelGrid
from jaxrf.models.base import StageSpec
from jaxrf.sampling import occupancy
from jaxrf.sampling.density_tracking import DensityTrackedGrid
from jaxrf.training import loop, runs, schedule, transitions
from jaxrf.training.compile_ahead import StepCompiler
from jaxrf.training.config import LossConfig, OptimizerConfig, TrainConfig
from jaxrf.training.loop import DivergedError
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.state import Metrics, TrainState

NEAR_FAR = (2.0, 6.0)


def pruned_by_weight(**changes: Any) -> TrainConfig:
    """`tiny_tensorf`, pruned by the weights that rays gave."""
    return tiny_tensorf(**{"prune_by": "weight", "prune_threshold": 0.03} | changes)


def averaged_hashgrid(**changes: Any) -> TrainConfig:
    """`tiny_hashgrid` with everything that a resumed run has to continue with."""
    optimizer = dataclasses.replace(tiny_hashgrid().optimizer, ema_decay=0.9)
    return tiny_hashgrid(
        **{
            "optimizer": optimizer,
            "precrop_fraction": 0.5,
            "supersample": 2,
            "supersample_from": 0.6,
            "color_correction": "affine",
            "num_appearances": 6,
        }
        | changes
    )


# ---------------------------------------------------------------------------------------------
# Stopping and resuming
# ---------------------------------------------------------------------------------------------


def save_and_restore(
    folder: Path, config: TrainConfig, stage: StageSpec, state: TrainState
) -> tuple[StageSpec, TrainState]:
    """Stage and state read from a checkpoint that they were written to."""
    manager = runs.open_checkpoints(folder, config)
    runs.save(manager, SceneMetadata.from_scene(make_scene(), folder), stage, state, 1.0, None)
    manager.close()
    run = runs.open_run(folder, config=config)
    return run.stage, run.state


@pytest.mark.parametrize(
    ("config", "stops"),
    [
        # Transitions come before steps 6 and 12: stopped at both, and inside a stage.
        slow(tiny_tensorf(background="random", seed=5), [6, 9, 12]),
        slow(pruned_by_weight(background="random", seed=5), [6, 9, 12]),
        (tiny_nerf(color_correction="exposure", num_appearances=6), [5]),
        slow(tiny_voxels(background="random", seed=5), [6, 9, 12, 20]),
        # More sub-rays from step 14 on; the occupancy grid is updated before step 17.
        slow(averaged_hashgrid(background="random", seed=5), [3, 14, 16, 18]),
        slow(marching_nerf(), [4, 7]),
        slow(tiny_tensorf(reset_lr=True), [12, 15]),
        slow(tiny_hashgrid(loss=LossConfig(inlier_quantile=0.8, patch_size=4)), [5]),
    ],
    ids=[
        "tensorf",
        "tensorf by weight",
        "nerf",
        "voxels",
        "hash grid",
        "marching nerf",
        "reset lr",
        "robust loss",
    ],
)
def test_stopped_and_resumed_training_gives_the_same_bits(
    tmp_path: Path, config: TrainConfig, stops: list[int]
) -> None:
    uninterrupted = loop.fit(config, make_scene(), Recorder())
    assert int(uninterrupted[1].step) == config.num_steps

    # Other dispatches too: a run may be resumed with another number of steps in each.
    other = dataclasses.replace(config, steps_per_dispatch=1)
    restored = None
    for number, stop in enumerate(stops):
        stage, state = loop.fit(other, make_scene(), Recorder(stop), restored)
        assert int(state.step) == stop
        restored = save_and_restore(tmp_path / str(number), other, stage, state)
        assert differing_leaves(restored[1], state) == []
        assert restored[0] == stage
    resumed = loop.fit(other, make_scene(), Recorder(), restored)
    assert resumed[0] == uninterrupted[0]
    assert differing_leaves(resumed[1], uninterrupted[1]) == []


def test_steps_per_dispatch_changes_no_bit() -> None:
    results = []
    for dispatch in (1, 5, 1000):
        recorder = Recorder()
        config = tiny_nerf(steps_per_dispatch=dispatch)
        results.append(loop.fit(config, make_scene(), recorder)[1])
        assert sum(recorder.steps) == config.num_steps
        assert recorder.steps[0] == 1, "the length of a step is not known yet"
        assert max(recorder.steps) <= dispatch
    assert differing_leaves(results[1], results[0]) == []
    assert differing_leaves(results[2], results[0]) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1e-6, [1, 4, 4, 3]),
        (0.2, [1, 4, 4, 3]),
        (0.3, [1, 3, 3, 3, 2]),
        (0.55, [1] * 12),
        (70.0, [1] * 12),
    ],
)
def test_a_dispatch_takes_about_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    """A signal during a dispatch has to wait for its end."""
    now = [1000.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    get = StepCompiler.get

    def get_slow(*arguments: Any) -> Any:
        run = get(*arguments)

        def slow_run(
            state: Any, pixels: Any, rng: Any, train_schedule: Any, count: jax.Array
        ) -> Any:
            now[0] += seconds * int(count)
            return run(state, pixels, rng, train_schedule, count)

        slow_run.memory_analysis = run.memory_analysis  # type: ignore[attr-defined]
        return slow_run

    monkeypatch.setattr(StepCompiler, "get", get_slow)
    recorder = Recorder()
    loop.fit(tiny_nerf(steps_per_dispatch=4), make_scene(), recorder)
    assert recorder.steps == expected


def test_another_seed_gives_another_result() -> None:
    first, second = (
        loop.fit(tiny_nerf(seed=s, num_steps=2), make_scene(), Recorder()) for s in (0, 1)
    )
    assert "params" in " ".join(differing_leaves(first[1], second[1]))


def test_fit_changes_nothing_if_all_steps_are_done() -> None:
    config = tiny_nerf(num_steps=3)
    stage, state = loop.fit(config, make_scene(), Recorder())
    recorder = Recorder()
    again = loop.fit(config, make_scene(), recorder, (stage, state))
    assert recorder.stages == [] and recorder.steps == []
    assert differing_leaves(again[1], state) == []


# ---------------------------------------------------------------------------------------------
# Another number of steps while training
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_replanning_moves_the_coming_transitions_and_the_end() -> None:
    config = tiny_voxels(steps_per_dispatch=1)
    assert [t.step for t in transitions.plan_transitions(config)] == [6, 12, 18]
    # After 8 of 24 steps 32 are left for the remaining two thirds.
    recorder = Recorder(plans={8: 40})
    stage, state = loop.fit(config, make_scene(), recorder)
    assert int(state.step) == 40 == sum(recorder.steps)
    assert [step for step, _, _ in recorder.stages] == [0, 6, 16, 28]
    assert [s.supersample for _, s, _ in recorder.stages] == [1, 1, 1, 2] and stage.supersample == 2
    assert recorder.growing == [(step, step <= 28) for step in range(1, 41)]
    # Fewer steps than planned: the next transitions come sooner.
    recorder = Recorder(plans={7: 17})
    _, state = loop.fit(config, make_scene(), recorder)
    assert int(state.step) == 17
    assert [step for step, _, _ in recorder.stages] == [0, 6, 10, 13]


@pytest.mark.parametrize("steps", [slow(14), slow(24), slow(40)])
def test_a_transition_that_is_due_when_the_plan_changes_still_comes(steps: int) -> None:
    config = tiny_voxels(steps_per_dispatch=1)
    recorder = Recorder(plans={6: steps})
    loop.fit(config, make_scene(), recorder)
    assert [step for step, _, _ in recorder.stages][:2] == [0, 6]
    assert len(recorder.stages) == 4
    # Half a step before the next transition, which from now on falls on the present step.
    recorder = Recorder(plans={11: 12 + (steps - 14) // 13})
    loop.fit(config, make_scene(), recorder)
    assert recorder.config is not None
    planned = [t.step for t in transitions.plan_transitions(recorder.config)]
    assert [step for step, _, _ in recorder.stages] == [0, *planned]


def test_replanning_changes_no_earlier_step_and_every_later_one() -> None:
    config = tiny_nerf(steps_per_dispatch=1)
    # The rate of the sixth step depends on the five before it.
    results = [
        loop.fit(config, make_scene(), Recorder(stop, plans))[1]
        for stop in (6, 7)
        for plans in ({}, {5: 50})
    ]
    assert differing_leaves(results[1], results[0]) == []
    assert "params" in " ".join(differing_leaves(results[3], results[2]))


@pytest.mark.parametrize("stop", [slow(5), slow(9), slow(16), slow(21)])
def test_a_replanned_run_is_resumed_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    config = tiny_voxels(steps_per_dispatch=1)
    recorder = Recorder(plans={4: 30, 17: 26})
    uninterrupted = loop.fit(config, make_scene(), recorder)
    replanned = recorder.config
    assert replanned is not None and replanned.num_steps == 26
    assert int(uninterrupted[1].step) == 26
    first = Recorder(stop, plans={4: 30, 17: 26})
    stage, state = loop.fit(config, make_scene(), first)
    assert int(state.step) == stop
    # The folder has the configuration as it was at the last change before it stopped.
    assert first.config is not None
    restored = save_and_restore(tmp_path, first.config, stage, state)
    again = loop.fit(first.config, make_scene(), Recorder(plans={17: 26}), restored)
    assert again[0] == uninterrupted[0]
    assert differing_leaves(again[1], uninterrupted[1]) == []


# ---------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stages_of_tensorf_follow_the_plan_and_few_rays_overflow() -> None:
    config = tiny_tensorf(num_steps=100, steps_per_dispatch=10)
    recorder = Recorder()
    stage, state = loop.fit(config, make_scene(), recorder)
    assert [step for step, _, _ in recorder.stages] == [0, 25, 50]
    first, second, third = (stage for _, stage, _ in recorder.stages)
    assert third == stage
    fields: list[Any] = [first.field, second.field, third.field]
    assert [field.pruned for field in fields] == [False, True, True]
    assert np.prod(fields[2].resolution) > np.prod(fields[1].resolution)
    # At first all 1536 pixels are trained on; later some miss all occupied cells.
    assert recorder.stages[0][2] == 1536
    assert 300 < recorder.stages[2][2] <= recorder.stages[1][2] < 1536
    assert max(float(m.overflowed) for m in recorder.metrics) < 0.1
    shapes = jax.tree.map(jnp.shape, state.params)
    assert shapes == jax.tree.map(
        jnp.shape, config.model.init_params(stage.field, jax.random.key(0))
    )
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if jnp.ndim(leaf)]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(state.params)])


@pytest.mark.parametrize("make", [slow(tiny_tensorf), tiny_voxels, tiny_nerf, slow(tiny_hashgrid)])
def test_pixels_that_miss_a_small_box_are_left_out_before_the_first_step(make: Any) -> None:
    box = np.array([[-0.9] * 3, [0.9] * 3], np.float32)
    scene, recorder = dataclasses.replace(make_scene(), aabb=box), Recorder()
    loop.fit(make(num_steps=1), scene, recorder)
    cameras = scene.splits["train"].cameras
    rays = [clip_to_aabb(image_rays(cameras, i, *NEAR_FAR), jnp.asarray(box)) for i in range(6)]
    hits = sum(int(np.sum(ray.far > ray.near)) for ray in rays)
    assert hits < 1300
    if make in (tiny_tensorf, tiny_voxels):
        # Rays are probed every half cell: those that only graze an edge may be missed.
        assert 0.95 * hits <= recorder.stages[0][2] <= 1.02 * hits
    else:
        # A NeRF may see what lies beyond the box; cells that follow the density come and go.
        assert recorder.stages[0][2] == 1536
    loop.fit(make(num_steps=1, filter_rays=False), scene, unfiltered := Recorder())
    assert unfiltered.stages[0][2] == 1536


def test_stages_of_voxels_keep_their_shapes_and_their_order() -> None:
    config = tiny_voxels(prune_threshold=0.05, num_steps=100, steps_per_dispatch=10)
    recorder = Recorder()
    stage, state = loop.fit(config, make_scene(), recorder)
    assert [step for step, _, _ in recorder.stages] == [0, 25, 50, 75]
    # A change of shapes has to be compiled: the capacity grows once at most.
    fields: list[Any] = [s.field for _, s, _ in recorder.stages]
    resolutions = [s.grid_resolution for _, s, _ in recorder.stages]
    capacities = [
        (resolution, field.table_rows, field.table_cells)
        for resolution, field in zip(resolutions, fields, strict=True)
    ]
    assert capacities == sorted(capacities) and len(set(capacities)) <= 2
    assert [s.supersample for _, s, _ in recorder.stages] == [1, 1, 1, 2]
    assert isinstance(state.grid, VoxelGrid)
    last: Any = stage.field
    assert int(state.grid.occupied.sum()) == int(state.grid.num_cells) - 1 <= last.table_cells - 1
    size = np.diff(np.asarray(state.grid.aabb), axis=0)[0] / 16
    np.testing.assert_allclose(size, 3.0 / 16, rtol=1e-6)
    # Cells in the corners, to which the ball does not reach, are gone.
    assert int(state.grid.occupied.sum()) < 0.9 * 16**3
    assert recorder.stages[-1][2] <= recorder.stages[0][2]


def test_a_resumed_run_continues_with_its_stage() -> None:
    """Budgets are set at the beginning of a stage, not of a process."""
    config = tiny_tensorf(steps_per_dispatch=1)
    stage, state = first_state(config)
    stage = dataclasses.replace(
        stage, num_rays=100, block_budget=900, sample_budget=1500, color_budget=700
    )
    state = dataclasses.replace(state, step=jnp.asarray(3, jnp.int32))
    recorder = Recorder(4)
    assert loop.fit(config, make_scene(), recorder, (stage, state))[0] == stage
    assert [begun for _, begun, _ in recorder.stages] == [stage]


@pytest.mark.slow
def test_training_explains_the_exposure_of_images() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    exposure = np.array([1.0, 0.4, 0.9, 0.3, 0.7, 0.5])[:, None, None, None]
    rgb = np.rint(split.images[..., :3] * exposure).astype(np.uint8)
    images = np.concatenate([rgb, split.images[..., 3:]], axis=-1)
    # Only the color correction knows exposures, of linear light; appearances learn them.
    exposures = exposure.ravel() ** 2.2
    train = dataclasses.replace(split, images=images, exposures=exposures)
    exposed = dataclasses.replace(scene, splits={"train": train})
    errors = []
    for changes in ({}, {"appearance_dim": 4}, {"color_correction": "exposure"}):
        config = tiny_hashgrid(num_steps=300, num_sh_bands=1, **changes)
        config = transitions.resolve_config(config, exposed)
        recorder = Recorder()
        _, state = loop.fit(config, exposed, recorder)
        assert (state.params.appearance is not None) == ("appearance_dim" in changes)
        errors.append(np.mean([float(m.mse) for m in recorder.metrics[-5:]]))
    assert max(errors[1:]) < 0.5 * errors[0]


def test_fit_minimizes_a_custom_rgb_loss_fn() -> None:
    # Every color is right: nothing is learned.
    config = tiny_nerf(num_steps=3)
    recorder = Recorder()
    _, state = loop.fit(
        config, make_scene(), recorder, rgb_loss_fn=lambda rgb, _: jnp.sum(0.0 * rgb, axis=-1)
    )
    assert float(recorder.metrics[-1].loss) == 0.0 < float(recorder.metrics[-1].mse)
    assert differing_leaves(state.params, first_state(config)[1].params) == []


# ---------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that each compiled step seems to need, of 100 free ones; the last for good."""
    needs: list[int] = []
    monkeypatch.setattr(memory, "free_bytes", lambda: 100)
    monkeypatch.setattr(
        memory, "needed_bytes", lambda _: needs.pop(0) if len(needs) > 1 else needs[0]
    )
    return needs


@pytest.mark.slow
def test_a_batch_that_exceeds_the_memory_is_halved(scarce: list[int]) -> None:
    scarce += [200, 91, 90]
    recorder = Recorder(stop_at=1)
    config = tiny_voxels(batch_rays=1024, batch_samples=1 << 13)
    stage, _ = loop.fit(config, make_scene(), recorder)
    assert stage.num_rays == 256 and stage.sample_budget == 1 << 11
    changed = [(c.batch_rays, c.batch_samples) for c, _ in recorder.changes]
    assert changed == [(512, 1 << 12), (256, 1 << 11)]
    assert "--batch-samples" in recorder.changes[0][1]


def test_the_smallest_batch_is_tried_if_none_fits_into_memory(scarce: list[int]) -> None:
    scarce += [1000]
    config = tiny_voxels(batch_rays=256, batch_samples=1 << 11)
    stage, _ = loop.fit(config, make_scene(), Recorder(stop_at=1))
    assert transitions.MIN_RAYS <= stage.num_rays < 2 * transitions.MIN_RAYS


@pytest.mark.slow
def test_rays_with_a_fixed_number_of_samples_get_more_microbatches_and_no_smaller_batch(
    scarce: list[int],
) -> None:
    scarce += [1000]
    recorder = Recorder(stop_at=1)
    stage, _ = loop.fit(tiny_nerf(batch_rays=3), make_scene(), recorder)
    assert (stage.num_rays, stage.num_microbatches) == (3, 3)
    assert "--microbatch-samples" in recorder.changes[0][1]


# ---------------------------------------------------------------------------------------------
# Health
# ---------------------------------------------------------------------------------------------

HEALTHY = Metrics(
    **{
        name: np.float32(value)
        for name, value in {
            "loss": 0.02,
            "mse": 0.01,
            "opacity": 0.3,
            "target_alpha": 0.3,
            "overflowed": 0.0,
            "num_samples": 900.0,
            "grad_norm": 1.0,
            "finite_fraction": 1.0,
            "grid_grad_norm": 0.6,
            "mlp_grad_norm": 0.8,
        }.items()
    }
)


def test_check_health_passes_healthy_metrics() -> None:
    config = tiny_nerf(num_steps=100)
    loop.check_health(HEALTHY, 50, config, math.inf)
    loop.check_health(HEALTHY, 50, config, 0.001)
    loop.check_health(HEALTHY._replace(mse=np.float32(0.04)), 50, config, 0.0005)


@pytest.mark.parametrize("field", ["loss", "mse", "grad_norm", "opacity"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_check_health_stops_at_metrics_that_are_not_finite(field: str, value: float) -> None:
    bad = HEALTHY._replace(**{field: np.float32(value)})
    with pytest.raises(DivergedError, match=r"not a number after step 7.*optimizer\.grid_lr"):
        loop.check_health(bad, 7, tiny_nerf(), math.inf)


def test_check_health_stops_at_a_rising_error() -> None:
    bad = HEALTHY._replace(mse=np.float32(0.3))
    loop.check_health(bad, 7, tiny_nerf(), 0.016)
    with pytest.raises(DivergedError, match=r"rose from 0.014 to 0.3 by step 7.*optimizer\.grid"):
        loop.check_health(bad, 7, tiny_nerf(), 0.014)


def test_check_health_stops_at_an_empty_field_unless_images_are_empty_or_it_is_early() -> None:
    bad = HEALTHY._replace(opacity=np.float32(1e-4))
    config = tiny_nerf(num_steps=100)
    with pytest.raises(
        DivergedError, match=r"all background after step 11, although 30% .*her seed"
    ):
        loop.check_health(bad, 11, config, math.inf)
    loop.check_health(bad, 10, config, math.inf)
    loop.check_health(bad._replace(target_alpha=np.float32(0.0)), 11, config, math.inf)
    # What is early depends on the number of steps that is planned by now.
    longer = schedule.rescale_schedule(config, 5, 1000)
    loop.check_health(bad, 11, longer, math.inf)
    with pytest.raises(DivergedError, match=r"all background after step 70"):
        loop.check_health(bad, 70, longer, math.inf)


@dataclasses.dataclass(frozen=True)
class Fog(Field):
    """A field of the user's, of which only the name matters."""


def test_check_health_names_the_likely_cause_in_a_field_of_the_users_first() -> None:
    config = TrainConfig(field=Fog(), num_steps=100)
    unhealthy = HEALTHY._replace(loss=np.float32(math.nan))
    with pytest.raises(DivergedError, match=r"step 7: check that the density and color of Fog .*"):
        loop.check_health(unhealthy, 7, config, math.inf)
    empty = HEALTHY._replace(opacity=np.float32(1e-4))
    with pytest.raises(DivergedError, match=r"not: check that Fog.density can rise .*another seed"):
        loop.check_health(empty, 11, config, math.inf)


def test_a_far_too_high_learning_rate_ends_with_advice() -> None:
    rates = OptimizerConfig(mlp_lr=1e30, clip_norm=1e30)
    with pytest.raises(DivergedError, match=r"optimizer\.mlp_lr"):
        loop.fit(tiny_nerf(optimizer=rates, num_steps=40), make_scene(), Recorder())


# ---------------------------------------------------------------------------------------------
# Learning
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        slow(tiny_tensorf(num_steps=400, steps_per_dispatch=100)),
        tiny_nerf(num_steps=300, steps_per_dispatch=100),
        tiny_voxels(num_steps=400, steps_per_dispatch=100),
        slow(pruned_by_weight(num_steps=400, steps_per_dispatch=100)),
        tiny_hashgrid(num_steps=300, steps_per_dispatch=100),
        slow(marching_nerf(num_steps=300, steps_per_dispatch=100)),
        slow(proposing_hashgrid(num_steps=300, steps_per_dispatch=100)),
        slow(
            cp_config(
                density_components=8,
                feature_components=8,
                init_scale=0.4,
                num_steps=400,
                steps_per_dispatch=100,
            )
        ),
        slow(tiny_pynerf(num_steps=300, steps_per_dispatch=100)),
        slow(tiny_pynerf(blend="results", num_steps=300, steps_per_dispatch=100)),
        slow(tiny_bitnerf(num_steps=400, steps_per_dispatch=100)),
        slow(tiny_nerf(encoding="integrated", num_steps=300, steps_per_dispatch=100)),
        slow(tiny_nerf(quadrature="points", num_steps=300, steps_per_dispatch=100)),
    ],
    ids=[
        "tensorf", "nerf", "voxels", "by weight", "hash grid", "marching nerf", "proposals", "cp",
        "pyramid", "pyramid of results", "bitnerf", "integrated", "points",
    ],
)  # fmt: skip
def test_training_learns_the_ball(config: TrainConfig) -> None:
    scene = make_scene()
    stage, state = loop.fit(config, scene, Recorder())
    white = np.ones(3, np.float32)
    render = make_render_fn(
        TrainedField(config, stage, state.eval_params, state.grid, NEAR_FAR, white)
    )
    split = scene.splits["test"]
    targets = [composite(image, white) for image in split.images]
    mean = np.mean(composite(scene.splits["train"].images, white), axis=(0, 1, 2))
    psnr = np.mean([metrics.psnr(render(split.cameras, i).rgb, t) for i, t in enumerate(targets)])
    constant = np.mean([metrics.psnr(np.broadcast_to(mean, t.shape), t) for t in targets])
    assert psnr > constant + 6.0
    if isinstance(state.grid, DensityTrackedGrid):
        centers = occupancy.cell_centers(stage.grid_resolution, state.grid.aabb)
        distance = np.linalg.norm(centers, axis=-1)
        occupied = np.asarray(state.grid.occupied)
        assert 0.05 < np.mean(occupied) < 0.95
        assert np.all(occupied[(distance > 0.6) & (distance < 0.8)]), "the ball's surface"
