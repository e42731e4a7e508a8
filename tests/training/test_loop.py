"""Training: batches, pixels that are kept, stages, resuming, health, and that it learns."""

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxrf.training.train import DivergedError, Metrics, PixelDataset, TrainState
from scenes import (
    Recorder,
    change_nerf,
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

from jaxrf.cameras.base import image_rays, project, resize_cameras
from jaxrf.core import memory
from jaxrf.core.errors import InputError
from jaxrf.core.rays import clip_to_aabb
from jaxrf.data.scene import Split, composite, downscale_images
from jaxrf.evaluation import metrics
from jaxrf.evaluation.scoring import make_render_fn
from jaxrf.fields import tensorf
from jaxrf.fields.voxels import VoxelGrid
from jaxrf.models import methods
from jaxrf.models.base import StageSpec
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import DensityEmaGrid, OccupancyGrid
from jaxrf.training import (
    optim,
    runs,
    train,
)
from jaxrf.training import (
    pixels as batches,
)
from jaxrf.training import (
    schedule as progress,
)
from jaxrf.training.config import LossConfig, OptimizerConfig, TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata

RANGE = (2.0, 6.0)


def by_weight(**changes: Any) -> TrainConfig:
    """`tiny_tensorf`, pruned by what rays have seen."""
    field = dataclasses.replace(tiny_tensorf().field, prune_by="weight", prune_threshold=0.03)
    return tiny_tensorf(field=field, **changes)


def averaged_hashgrid(**changes: Any) -> TrainConfig:
    """`tiny_hashgrid` with all that a resumed run has to go on with."""
    optimizer = dataclasses.replace(tiny_hashgrid().optimizer, average=0.9)
    return tiny_hashgrid(
        **{
            "optimizer": optimizer,
            "precrop_fraction": 0.5,
            "supersample": 2,
            "supersample_from": 0.6,
        }
        | changes
    )


def restarting(**changes: Any) -> TrainConfig:
    """`tiny_tensorf` whose rates and moments begin anew at its upsampling."""
    return tiny_tensorf(field=dataclasses.replace(tiny_tensorf().field, reset_lr=True), **changes)


# ---------------------------------------------------------------------------------------------
# Stopping and resuming
# ---------------------------------------------------------------------------------------------


def through_disk(
    folder: Path, config: TrainConfig, stage: StageSpec, state: TrainState
) -> tuple[StageSpec, TrainState]:
    """What is there after a checkpoint has been written and read again."""
    manager = runs.open_checkpoints(folder, config)
    runs.save(manager, SceneMetadata.from_scene(make_scene(), folder), stage, state, 1.0, None)
    manager.close()
    run = runs.open_run(folder, config=config)
    return run.stage, run.state


@pytest.mark.parametrize(
    ("config", "stops"),
    [
        # Growths come before steps 6 and 12: stopped at both, and inside a stage.
        slow(tiny_tensorf(background="random", seed=5), [6, 9, 12]),
        slow(by_weight(background="random", seed=5), [6, 9, 12]),
        (tiny_nerf(), [5]),
        slow(tiny_voxels(background="random", seed=5), [6, 9, 12, 20]),
        # More sub-rays from step 14 on; cells are probed before step 17.
        slow(averaged_hashgrid(background="random", seed=5), [3, 14, 16, 18]),
        slow(marching_nerf(), [4, 7]),
        slow(restarting(), [12, 15]),
    ],
    ids=[
        "tensorf",
        "tensorf by weight",
        "nerf",
        "voxels",
        "hash grid",
        "marching nerf",
        "restarting",
    ],
)
def test_stopped_and_resumed_training_gives_the_same_bits(
    tmp_path: Path, config: TrainConfig, stops: list[int]
) -> None:
    whole = train.fit(config, make_scene(), Recorder())
    assert int(whole[1].step) == config.steps

    # Other dispatches too: a run may be resumed with another number of steps in each.
    other = dataclasses.replace(config, steps_per_dispatch=1)
    restored = None
    for number, stop in enumerate(stops):
        stage, state = train.fit(other, make_scene(), Recorder(stop), restored)
        assert int(state.step) == stop
        restored = through_disk(tmp_path / str(number), other, stage, state)
        assert differing_leaves(restored[1], state) == []
        assert restored[0] == stage
    pieces = train.fit(other, make_scene(), Recorder(), restored)
    assert pieces[0] == whole[0]
    assert differing_leaves(pieces[1], whole[1]) == []


def test_number_of_steps_per_dispatch_changes_no_bit() -> None:
    results = []
    for dispatch in (1, 5, 1000):
        recorder = Recorder()
        config = tiny_nerf(steps_per_dispatch=dispatch)
        results.append(train.fit(config, make_scene(), recorder)[1])
        assert sum(recorder.steps) == config.steps
        assert recorder.steps[0] == 1, "nothing is known yet of how long a step takes"
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
def test_no_dispatch_lasts_longer_than_about_a_second(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    """A signal that comes in the middle of one has to wait for its end."""
    now = [1000.0]
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    get = train.StepCompiler.get

    def get_slow(*arguments: Any) -> Any:
        run = get(*arguments)

        def slow(state: Any, pixels: Any, course: Any, count: jax.Array) -> Any:
            now[0] += seconds * int(count)
            return run(state, pixels, course, count)

        slow.memory_analysis = run.memory_analysis  # type: ignore[attr-defined]
        return slow

    monkeypatch.setattr(train.StepCompiler, "get", get_slow)
    recorder = Recorder()
    train.fit(tiny_nerf(steps_per_dispatch=4), make_scene(), recorder)
    assert recorder.steps == expected


def test_seed_changes_the_result() -> None:
    first, second = (
        train.fit(tiny_nerf(seed=s, steps=2), make_scene(), Recorder()) for s in (0, 1)
    )
    assert "params" in " ".join(differing_leaves(first[1], second[1]))


def test_a_run_that_is_done_is_left_alone() -> None:
    config = tiny_nerf(steps=3)
    stage, state = train.fit(config, make_scene(), Recorder())
    recorder = Recorder()
    again = train.fit(config, make_scene(), recorder, (stage, state))
    assert recorder.stages == [] and recorder.steps == []
    assert differing_leaves(again[1], state) == []


# ---------------------------------------------------------------------------------------------
# Another number of steps on the way
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_plan_moves_the_growths_to_come_and_the_end() -> None:
    config = tiny_voxels(steps_per_dispatch=1)
    assert [growth.step for growth in transitions.plan_transitions(config)] == [6, 12, 18]
    # After 8 of 24 steps 32 are left for the remaining two thirds.
    recorder = Recorder(plans={8: 40})
    stage, state = train.fit(config, make_scene(), recorder)
    assert int(state.step) == 40 == sum(recorder.steps)
    assert [step for step, _, _ in recorder.stages] == [0, 6, 16, 28]
    assert [s.supersample for _, s, _ in recorder.stages] == [1, 1, 1, 2] and stage.supersample == 2
    assert recorder.growing == [(step, step <= 28) for step in range(1, 41)]
    # Fewer steps than planned: the next growths come sooner.
    recorder = Recorder(plans={7: 17})
    _, state = train.fit(config, make_scene(), recorder)
    assert int(state.step) == 17
    assert [step for step, _, _ in recorder.stages] == [0, 6, 10, 13]


@pytest.mark.parametrize("steps", [slow(14), slow(24), slow(40)])
def test_a_growth_that_is_due_when_the_plan_changes_still_comes(steps: int) -> None:
    config = tiny_voxels(steps_per_dispatch=1)
    recorder = Recorder(plans={6: steps})
    train.fit(config, make_scene(), recorder)
    assert [step for step, _, _ in recorder.stages][:2] == [0, 6]
    assert len(recorder.stages) == 4
    # Half a step before the next growth, which from now on falls on the present step.
    recorder = Recorder(plans={11: 12 + (steps - 14) // 13})
    train.fit(config, make_scene(), recorder)
    assert recorder.config is not None
    wanted = [growth.step for growth in transitions.plan_transitions(recorder.config)]
    assert [step for step, _, _ in recorder.stages] == [0, *wanted]


def test_plans_change_nothing_behind_them_and_all_that_comes() -> None:
    config = tiny_nerf(steps_per_dispatch=1)
    # The rate of the sixth step goes by the five before it.
    halves = [
        train.fit(config, make_scene(), Recorder(stop, plans))[1]
        for stop in (6, 7)
        for plans in ({}, {5: 50})
    ]
    assert differing_leaves(halves[1], halves[0]) == []
    assert "params" in " ".join(differing_leaves(halves[3], halves[2]))


@pytest.mark.parametrize("stop", [slow(5), slow(9), slow(16), slow(21)])
def test_a_run_whose_plan_was_changed_is_resumed_to_the_same_bits(
    tmp_path: Path, stop: int
) -> None:
    config = tiny_voxels(steps_per_dispatch=1)
    recorder = Recorder(plans={4: 30, 17: 26})
    whole = train.fit(config, make_scene(), recorder)
    changed = recorder.config
    assert changed is not None and changed.steps == 26 and int(whole[1].step) == 26
    first = Recorder(stop, plans={4: 30, 17: 26})
    stage, state = train.fit(config, make_scene(), first)
    assert int(state.step) == stop
    # The folder knows the configuration as it was at the last change before it stopped.
    assert first.config is not None
    restored = through_disk(tmp_path, first.config, stage, state)
    again = train.fit(first.config, make_scene(), Recorder(plans={17: 26}), restored)
    assert again[0] == whole[0]
    assert differing_leaves(again[1], whole[1]) == []


# ---------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stages_follow_the_plan_and_drop_hardly_a_ray() -> None:
    config = tiny_tensorf(steps=100, steps_per_dispatch=10)
    recorder = Recorder()
    stage, state = train.fit(config, make_scene(), recorder)
    assert [step for step, _, _ in recorder.stages] == [0, 25, 50]
    first, second, third = (stage for _, stage, _ in recorder.stages)
    assert third == stage
    assert not first.pruned and second.pruned and third.pruned
    assert np.prod(third.resolution) > np.prod(second.resolution)
    # Nothing is known yet of what 1536 pixels see; some look past all that is left.
    assert recorder.stages[0][2] == 1536
    assert 300 < recorder.stages[2][2] <= recorder.stages[1][2] < 1536
    assert max(float(m.dropped) for m in recorder.metrics) < 0.1
    shapes = jax.tree.map(jnp.shape, state.params)
    assert shapes == jax.tree.map(
        jnp.shape, methods.init_params(config.field, stage, jax.random.key(0))
    )
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if jnp.ndim(leaf)]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(state.params)])


@pytest.mark.parametrize("make", [slow(tiny_tensorf), tiny_voxels, tiny_nerf, slow(tiny_hashgrid)])
def test_pixels_that_look_past_a_small_box_are_left_out_before_the_first_step(make: Any) -> None:
    box = np.array([[-0.9] * 3, [0.9] * 3], np.float32)
    scene, recorder = dataclasses.replace(make_scene(), aabb=box), Recorder()
    train.fit(make(steps=1), scene, recorder)
    cameras = scene.splits["train"].cameras
    rays = [clip_to_aabb(image_rays(cameras, i, *RANGE), jnp.asarray(box)) for i in range(6)]
    hits = sum(int(np.sum(ray.far > ray.near)) for ray in rays)
    assert hits < 1300
    if make in (tiny_tensorf, tiny_voxels):
        # Rays are probed every half cell: those that only graze an edge may be missed.
        assert 0.95 * hits <= recorder.stages[0][2] <= 1.02 * hits
    else:
        # A NeRF may see what is behind the box, probed cells come and go.
        assert recorder.stages[0][2] == 1536
    train.fit(make(steps=1, filter_rays=False), scene, everything := Recorder())
    assert everything.stages[0][2] == 1536


def test_a_box_is_looked_past_where_it_fills_little_of_the_pictures() -> None:
    cameras = make_scene().splits["train"].cameras
    for size, wanted in ((0.2, True), (0.9, True), (1.5, False), (3.9, False), (100.0, False)):
        box = np.array([[-size] * 3, [size] * 3], np.float32)
        assert batches.cameras_see_outside_aabb(cameras, box) == wanted


def test_stages_of_voxels_keep_their_shapes_and_their_order() -> None:
    field = dataclasses.replace(tiny_voxels().field, prune_threshold=0.05)
    config = tiny_voxels(field=field, steps=100, steps_per_dispatch=10)
    recorder = Recorder()
    stage, state = train.fit(config, make_scene(), recorder)
    assert [step for step, _, _ in recorder.stages] == [0, 25, 50, 75]
    # A change of shapes has to be compiled: the room is made larger once at most.
    rooms = [(s.resolution, s.table_rows, s.table_cells) for _, s, _ in recorder.stages]
    assert rooms == sorted(rooms) and len(set(rooms)) <= 2
    assert [s.supersample for _, s, _ in recorder.stages] == [1, 1, 1, 2]
    assert isinstance(state.grid, VoxelGrid)
    assert int(state.grid.occupied.sum()) == int(state.grid.count) - 1 <= stage.table_cells - 1
    size = np.diff(np.asarray(state.grid.aabb), axis=0)[0] / 16
    np.testing.assert_allclose(size, 3.0 / 16, rtol=1e-6)
    # Cells in the corners, to which the ball does not reach, are gone.
    assert int(state.grid.occupied.sum()) < 0.9 * 16**3
    assert recorder.stages[-1][2] <= recorder.stages[0][2]


@pytest.mark.parametrize(
    "make",
    [slow(tiny_voxels), tiny_nerf, slow(tiny_tensorf), slow(by_weight)],
    ids=lambda make: make.__name__,
)
def test_no_stage_is_compiled_twice_and_hardly_one_in_vain(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    compiled: list[StageSpec] = []
    compile_step = train.compile_step

    def note(config: TrainConfig, stage: StageSpec, *rest: Any) -> Any:
        compiled.append(stage)
        return compile_step(config, stage, *rest)

    monkeypatch.setattr(train, "compile_step", note)
    config = make(steps=40, steps_per_dispatch=10, supersample=2, supersample_from=0.75)
    recorder = Recorder()
    stage, _ = train.fit(config, make_scene(), recorder)
    stages = [s for _, s, _ in recorder.stages]
    assert stages[-1] == stage and stage.supersample == 2
    assert len(compiled) == len(set(compiled)) and set(stages) <= set(compiled)
    # Of voxels the room that their table needs is not known beforehand.
    assert make is tiny_voxels or compiled == stages


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("make", [tiny_voxels, tiny_nerf, tiny_tensorf])
def test_the_shapes_of_a_state_are_foreseen(make: Any, pruned: bool) -> None:
    config = make(supersample=2)
    box = np.array([[-1.5, -1.2, -1.0], [1.5, 1.0, 1.2]], np.float32)
    stage, state = first_state(config, box)
    stage = dataclasses.replace(stage, pruned=pruned)
    foreseen = 0
    for growth in (
        transitions.StageTransition(9, True, None, 1),
        transitions.StageTransition(9, False, 12**3, 2),
        transitions.StageTransition(9, True, 12**3, 1),
    ):
        ahead = transitions.predict_next_stage(config, stage, growth, state.grid)
        new_stage, new_state = train.transition_stage(config, stage, state, growth)
        if ahead is None or ahead != new_stage:
            continue
        foreseen += 1
        shapes = train.abstract_next_state(config, stage, ahead, state)
        assert jax.tree.structure(shapes) == jax.tree.structure(new_state)
        for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(new_state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert foreseen == {tiny_voxels: 1, tiny_nerf: 3, tiny_tensorf: 3 if pruned else 1}[make]


def test_a_stage_that_takes_too_long_to_compile_is_not_entered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left then can be rendered and resumed: the state is that from before the growth."""
    compile_step, known = train.compile_step, threading.Event()

    def compile_late(config: TrainConfig, stage: StageSpec, *rest: Any) -> Any:
        if stage.resolution != first.resolution:
            assert known.wait(60)
        return compile_step(config, stage, *rest)

    class Impatient(Recorder):
        def should_wait_for_compile(self) -> bool:
            return self.step == 0

    monkeypatch.setattr(train, "compile_step", compile_late)
    config = tiny_voxels()
    first = transitions.first_stage(config, make_scene().aabb, 1)
    try:
        stage, state = train.fit(config, make_scene(), Impatient())
    finally:
        known.set()
    grows = next(g.step for g in transitions.plan_transitions(config) if g.voxels)
    assert int(state.step) == grows and stage.resolution == first.resolution
    whole = train.fit(config, make_scene(), Recorder())
    again = train.fit(config, make_scene(), Recorder(), (stage, state))
    assert again[0] == whole[0] and differing_leaves(again[1], whole[1]) == []


def test_a_step_compiled_ahead_is_the_one_that_is_got() -> None:
    config, scene = tiny_nerf(), make_scene()
    stage, state = first_state(config)
    pixels = batches.to_device(scene.splits["train"])
    with train.StepCompiler(config, RANGE) as compiler:
        compiler.begin(stage, state, pixels)
        first = compiler.get(stage, state, pixels)
        assert compiler.get(stage, state, pixels) is first
        other = dataclasses.replace(stage, rays=32)
        assert compiler.get(other, state, pixels) is not first


@pytest.mark.parametrize("make", [tiny_voxels, tiny_nerf, tiny_tensorf])
def test_how_a_run_begins_does_not_depend_on_its_length(make: Any) -> None:
    states = [first_state(make(steps=steps))[1] for steps in (1000, 1001, 100_000)]
    for other in states[1:]:
        assert differing_leaves(other, states[0]) == []


def test_the_course_changes_the_result_and_not_the_program() -> None:
    config, scene = tiny_nerf(steps=3), make_scene()
    stage, _ = first_state(config)
    pixels = batches.to_device(scene.splits["train"])
    run = jax.jit(train.make_train_step(config, stage, RANGE))
    results = []
    for course in (
        train.make_train_schedule(config),
        train.make_train_schedule(dataclasses.replace(config, seed=1)),
        train.make_train_schedule(dataclasses.replace(config, steps=50)),
        train.make_train_schedule(progress.rescale_schedule(config, 1, 50)),
    ):
        _, state = first_state(config)
        results.append(run(state, pixels, course, jnp.asarray(3, jnp.int32))[0])
    assert run._cache_size() == 1
    for other in results[1:]:
        assert "params" in " ".join(differing_leaves(results[0], other))


def test_a_resumed_run_goes_on_with_the_batch_that_it_had() -> None:
    """It is fitted at a stage's beginning, not at that of a process."""
    config = tiny_tensorf(steps_per_dispatch=1)
    stage, state = first_state(config)
    stage = dataclasses.replace(
        stage, rays=100, block_budget=900, sample_budget=1500, color_budget=700
    )
    state = dataclasses.replace(state, step=jnp.asarray(3, jnp.int32))
    recorder = Recorder(4)
    assert train.fit(config, make_scene(), recorder, (stage, state))[0] == stage
    assert [begun for _, begun, _ in recorder.stages] == [stage]


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each compiled step is said to need, of 100 bytes that are free; the last for good."""
    needs: list[int] = []
    monkeypatch.setattr(memory, "free_bytes", lambda: 100)
    monkeypatch.setattr(
        memory, "needed_bytes", lambda _: needs.pop(0) if len(needs) > 1 else needs[0]
    )
    return needs


@pytest.mark.slow
def test_a_step_that_needs_more_memory_than_is_free_is_made_smaller(scarce: list[int]) -> None:
    scarce += [200, 91, 90]
    observer = Recorder(stop_at=1)
    config = tiny_voxels(batch_rays=1024, batch_samples=1 << 13)
    stage, _ = train.fit(config, make_scene(), observer)
    assert stage.rays == 256 and stage.sample_budget == 1 << 11
    changed = [(c.batch_rays, c.batch_samples) for c, _ in observer.changes]
    assert changed == [(512, 1 << 12), (256, 1 << 11)]
    assert "--batch-samples" in observer.changes[0][1]


def test_when_hardly_any_memory_is_free_what_needs_least_is_tried(scarce: list[int]) -> None:
    scarce += [1000]
    config = tiny_voxels(batch_rays=256, batch_samples=1 << 11)
    stage, _ = train.fit(config, make_scene(), Recorder(stop_at=1))
    assert transitions.MIN_RAYS <= stage.rays < 2 * transitions.MIN_RAYS


@pytest.mark.slow
def test_rays_of_a_fixed_number_of_samples_need_more_passes_and_no_smaller_batch(
    scarce: list[int],
) -> None:
    scarce += [1000]
    observer = Recorder(stop_at=1)
    stage, _ = train.fit(tiny_nerf(batch_rays=3), make_scene(), observer)
    assert (stage.rays, stage.passes) == (3, 3)
    assert "--microbatch-samples" in observer.changes[0][1]


@pytest.mark.parametrize(("supersample", "scales"), [slow(1, 1), slow(2, 1), (1, 3)])
def test_a_gradient_of_several_passes_is_that_of_one(supersample: int, scales: int) -> None:
    """The state after three steps, each pass of which sees its own rays."""
    states = []
    for samples in (None, 200):
        config = tiny_nerf(
            batch_rays=32, supersample=supersample, supersample_from=0.0, microbatch_samples=samples
        )
        stage, state = first_state(config)
        assert stage.passes == (1 if samples is None else 8)
        factors = tuple(2**k for k in range(scales))
        pixels = batches.to_device(make_scene().splits["train"], factors)
        run = train.compile_step(config, stage, RANGE, state, pixels)
        states.append(
            run(state, pixels, train.make_train_schedule(config), jnp.asarray(3, jnp.int32))
        )
    assert_same_course(*states)


def assert_same_course(
    found: tuple[train.TrainState, Metrics], wanted: tuple[train.TrainState, Metrics]
) -> None:
    """Moments and metrics are alike but for rounding."""
    for a, b in zip(
        jax.tree.leaves(found[0].opt_state), jax.tree.leaves(wanted[0].opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name in Metrics._fields:
        a, b = (float(getattr(metrics, name)) for metrics in (found[1], wanted[1]))
        assert a == pytest.approx(b, rel=1e-4), name


@pytest.mark.parametrize(
    ("tiny", "wide"), [slow(tiny_nerf, {"width": 128, "layers": 4}), (tiny_voxels, {})]
)
def test_what_is_computed_twice_for_the_gradient_gives_the_same_for_less_memory(
    tiny: Callable[..., TrainConfig], wide: dict[str, int]
) -> None:
    results, needed = [], []
    for parts in (1, 7):
        config = tiny(batch_samples=1 << 14, batch_rays=512)
        field = dataclasses.replace(config.field, checkpoint_in_chunks=parts, **wide)
        config = dataclasses.replace(config, field=field)
        stage, state = first_state(config)
        pixels = batches.to_device(make_scene().splits["train"])
        run = train.compile_step(config, stage, RANGE, state, pixels)
        needed.append(memory.needed_bytes(run))
        results.append(
            run(state, pixels, train.make_train_schedule(config), jnp.asarray(3, jnp.int32))
        )
    assert_same_course(*results)
    assert needed[1] < needed[0]


def in_half(config: TrainConfig, compute: str) -> TrainConfig:
    return dataclasses.replace(config, field=dataclasses.replace(config.field, compute=compute))


def do_steps(
    config: TrainConfig, count: int, factor: float | None = None
) -> tuple[train.TrainState, train.TrainState, Metrics]:
    """The state before and after some steps; `factor` replaces the first scale of the loss."""
    stage, state = first_state(config)
    if factor is not None:
        scale = state.opt_state.scale._replace(factor=jnp.asarray(factor))
        state = dataclasses.replace(state, opt_state=state.opt_state._replace(scale=scale))
    pixels = batches.to_device(make_scene().splits["train"])
    before = jax.device_get(state)
    run = train.compile_step(config, stage, RANGE, state, pixels)
    after, metrics = run(
        state, pixels, train.make_train_schedule(config), jnp.asarray(count, jnp.int32)
    )
    return before, after, metrics


@pytest.mark.parametrize("compute", ["bfloat16", slow("float16")])
@pytest.mark.parametrize("tiny", [tiny_nerf, tiny_voxels])
def test_networks_in_16_bits_learn_as_those_in_32(
    tiny: Callable[..., TrainConfig], compute: str
) -> None:
    """The gradient of the first step, whose size a scaled loss does not change."""
    plain, half = (do_steps(in_half(tiny(), kind), 1)[2] for kind in ("float32", compute))
    assert half.kept == plain.kept == 1.0
    assert half.grad_norm != plain.grad_norm
    assert float(half.grad_norm) == pytest.approx(float(plain.grad_norm), rel=0.05)
    assert float(half.loss) == pytest.approx(float(plain.loss), rel=0.02)


def test_a_step_that_overflows_changes_nothing_but_the_scale() -> None:
    config = in_half(tiny_voxels(), "float16")
    before, after, metrics = do_steps(config, 1, factor=2.0**100)
    assert differing_leaves(after.params, before.params) == []
    assert differing_leaves(after.opt_state.inner, before.opt_state.inner) == []
    assert differing_leaves(after.grid, before.grid) == []
    assert float(after.opt_state.scale.factor) == 2.0**99
    assert int(after.step) == 1 and float(metrics.kept) == 0.0
    assert all(math.isfinite(float(value)) for value in metrics)


def test_steps_that_do_not_overflow_count_alone_for_the_metrics() -> None:
    """The scale is too large for some steps only."""
    config = in_half(tiny_voxels(), "float16")
    _, after, metrics = do_steps(config, 30, factor=2.0**40)
    assert 0.0 < float(metrics.kept) < 1.0
    _, _, plain = do_steps(in_half(tiny_voxels(), "float32"), 30)
    assert 0.5 < float(metrics.mse) / float(plain.mse) < 2.0
    assert 1.0 < float(after.opt_state.scale.factor) < 2.0**40


def test_the_moments_of_the_optimiser_grow_with_the_grid() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    moved = jax.tree.map(lambda x: 2.0 * x + 1.0, state.params)
    state = dataclasses.replace(
        state, opt_state=optim.map_moments(lambda _: moved, state.opt_state)
    )
    growth = transitions.StageTransition(12, False, 12**3, 1)
    new_stage, new_state = train.transition_stage(config, stage, state, growth)
    assert new_stage.resolution == (12, 12, 12)
    boxes = state.grid.aabb, new_state.grid.aabb
    wanted = optim.map_moments(
        lambda tree: tensorf.resample(tree, (12, 12, 12), *boxes), state.opt_state
    )
    assert jax.tree.structure(new_state.opt_state) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(new_state.opt_state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_training_draws_only_from_the_kept_pixels_but_never_from_none() -> None:
    pixels = batches.to_device(make_scene().splits["train"])
    empty = OccupancyGrid(jnp.zeros((4, 4, 4), bool), jnp.array([[-1.5] * 3, [1.5] * 3]))
    kept = batches.filter_pixels(pixels, empty, RANGE)
    assert int(kept.total) == int(pixels.total)


# ---------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------


def coded_pixels(height: int, width: int, count: int) -> tuple[PixelDataset, PixelDataset]:
    """Pictures whose colour is (column, row, image), and random RGBA ones of the same cameras."""
    scene = make_scene().splits["train"]
    cameras = dataclasses.replace(
        jax.tree.map(lambda x: x[:count], scene.cameras), width=width, height=height
    )
    image, row, column = np.meshgrid(*map(np.arange, (count, height, width)), indexing="ij")
    opaque = np.full_like(image, 255)
    coded = np.stack([column, row, image, opaque], axis=-1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, coded.shape, dtype=np.uint8)
    names = tuple(str(i) for i in range(count))
    first, second = (
        batches.to_device(Split("train", names, images, cameras)) for images in (coded, noise)
    )
    return first, second


@pytest.mark.parametrize("background", ["white", "black", "random"])
def test_colours_and_rays_of_a_batch_belong_to_its_pixels(background: str) -> None:
    coded, noise = coded_pixels(5, 7, 3)
    key = jax.random.key(3)
    rays, code, _, opaque = batches.make_batch(coded, key, 300, RANGE, background)[:4]
    assert np.all(np.asarray(opaque) == 1.0)
    column, row, image = np.rint(np.asarray(code) * 255).astype(int).T
    assert len({*zip(image, row, column, strict=True)}) > 60  # of 105

    wanted = [image_rays(coded.cameras, i, *RANGE) for i in range(3)]
    for name in ("origins", "directions", "near", "far", "radii", "camera_index"):
        stack = np.stack([np.asarray(getattr(rays_of_image, name)) for rays_of_image in wanted])
        np.testing.assert_allclose(getattr(rays, name), stack[image, row, column], atol=1e-6)

    _, truth, behind, alpha = batches.make_batch(noise, key, 300, RANGE, background)[:4]
    rgba = np.asarray(noise.images)[image, row, column]
    behind = np.asarray(behind)
    np.testing.assert_allclose(alpha, rgba[:, 3] / 255.0, atol=1e-6)
    expected = rgba[:, :3] / 255.0 * rgba[:, 3:] / 255.0 + behind * (1 - rgba[:, 3:] / 255.0)
    np.testing.assert_allclose(truth, expected, atol=1e-6)
    if background == "random":
        assert behind.min() >= 0 and behind.max() <= 1 and behind.std(axis=0).min() > 0.2
        assert not np.allclose(behind[:, 0], behind[:, 1])
    else:
        level = {"white": 1.0, "black": 0.0}[background]
        assert np.all(behind == level)
        np.testing.assert_allclose(truth, composite(rgba, np.full(3, level)), atol=1e-6)


def test_sub_rays_pass_the_middles_of_the_parts_of_their_pixel() -> None:
    coded, _ = coded_pixels(5, 7, 3)
    key = jax.random.key(3)
    one, code, behind, _ = batches.make_batch(coded, key, 40, RANGE, "random")[:4]
    rays, same_code, same_behind, _ = batches.make_batch(coded, key, 40, RANGE, "random", 3)[:4]
    assert np.array_equal(code, same_code) and np.array_equal(behind, same_behind)
    assert rays.near.shape == (360,)
    assert np.array_equal(rays.camera_index, np.repeat(one.camera_index, 9))
    column, row, image = np.rint(255 * np.asarray(code)).astype(int).T
    for index in range(40):
        points, depths = project(
            coded.cameras,
            int(image[index]),
            np.asarray(rays.origins + rays.directions)[9 * index : 9 * index + 9],
        )
        assert np.all(depths > 0)
        parts = np.array([[(i + 0.5) / 3, (j + 0.5) / 3] for j in range(3) for i in range(3)])
        wanted = np.array([column[index], row[index]]) + parts
        np.testing.assert_allclose(points, wanted, atol=1e-4)
    # Measured to the next ray, which is nearer: equal to first order only.
    np.testing.assert_allclose(rays.radii.reshape(40, 9)[:, 4], one.radii / 3, rtol=2e-2)


@pytest.mark.slow
def test_the_loss_compares_the_mean_of_the_sub_rays() -> None:
    config = tiny_nerf(steps=1, steps_per_dispatch=1, supersample=2)
    scene = make_scene()
    recorder = Recorder()
    stage, _ = train.fit(config, scene, recorder)
    assert stage.supersample == 2 and stage.rays == 64
    _, state = first_state(config)
    key_batch, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    key = train.split_ray_rngs(key, stage.rays)
    pixels = batches.to_device(scene.splits["train"])
    rays, truth, behind, _ = batches.make_batch(pixels, key_batch, 16, RANGE, "white", 2)[:4]
    behind = jnp.repeat(behind, 4, axis=0)
    rgb = methods.predict(config.field, stage, state.params, state.grid, key, rays, behind).rgb[-1]
    mean = np.stack([np.mean(rgb[4 * i : 4 * i + 4], axis=0) for i in range(16)])
    np.testing.assert_allclose(recorder.metrics[0].mse, np.mean(np.square(mean - truth)), rtol=1e-4)


@pytest.mark.parametrize("supersample", [slow(1), 2])
def test_pixels_that_do_not_fit_into_the_budget_do_not_count_for_the_loss(supersample: int) -> None:
    config = tiny_tensorf(supersample=supersample, supersample_from=0.0)
    config = dataclasses.replace(config, field=dataclasses.replace(config.field, l1_weight=0.0))
    stage, state = first_state(config)
    stage = dataclasses.replace(stage, sample_budget=501)
    pixels = batches.to_device(make_scene().splits["train"])
    course, one = train.make_train_schedule(config), jnp.asarray(1, jnp.int32)
    after, metrics = jax.jit(train.make_train_step(config, stage, RANGE))(
        state, pixels, course, one
    )
    key_batch, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    key = train.split_ray_rngs(key, stage.rays)
    parts = supersample**2
    rays, truth, behind = batches.make_batch(
        pixels, key_batch, 128 // parts, RANGE, "white", supersample
    )[:3]
    behind = jnp.repeat(behind, parts, axis=0)
    predict = jax.jit(methods.predict, static_argnums=(0, 1))
    predicted = predict(config.field, stage, state.params, state.grid, key, rays, behind)
    dropped = np.asarray(predicted.dropped)
    assert 10 < dropped.sum() < 118
    errors = []
    for pixel in range(128 // parts):
        mine = slice(pixel * parts, (pixel + 1) * parts)
        if not dropped[mine].any():
            color = np.mean(np.asarray(predicted.rgb[-1])[mine], axis=0)
            errors.append(np.mean(np.square(color - np.asarray(truth)[pixel])))
    np.testing.assert_allclose(metrics.mse, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics.loss, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics.dropped, dropped.mean(), rtol=1e-6)
    assert float(metrics.samples) == 501 and int(after.step) == 1


def test_a_batch_is_drawn_evenly_from_the_listed_pixels_only() -> None:
    coded, _ = coded_pixels(5, 7, 3)
    listed = np.array([2, 40, 77, 104])
    drawn = np.zeros(105, np.int32)
    drawn[:4] = listed
    some = coded._replace(drawn=jnp.asarray(drawn), total=jnp.asarray(4, jnp.int32))
    _, code, _, _ = batches.make_batch(some, jax.random.key(0), 2000, RANGE, "white")[:4]
    column, row, image = np.rint(np.asarray(code) * 255).astype(int).T
    seen, counts = np.unique((image * 5 + row) * 7 + column, return_counts=True)
    assert seen.tolist() == listed.tolist()
    assert counts.min() > 400


def test_the_random_background_is_independent_of_the_pixels() -> None:
    coded, _ = coded_pixels(5, 7, 3)
    _, code, behind, _ = batches.make_batch(coded, jax.random.key(0), 4000, RANGE, "random")[:4]
    together = np.concatenate([np.asarray(code), np.asarray(behind)], axis=-1)
    correlation = np.corrcoef(together.T)[:3, 3:]
    assert np.abs(correlation).max() < 0.08


# ---------------------------------------------------------------------------------------------
# Which pixels are kept
# ---------------------------------------------------------------------------------------------


def hits_cells(occupied: np.ndarray, aabb: np.ndarray, split: Split) -> np.ndarray:
    """(n, h, w) by brute force in float64: which pixels' rays pass any occupied cell."""
    size = (aabb[1] - aabb[0]) / np.array(occupied.shape)
    result = []
    for index in range(len(split)):
        rays = image_rays(split.cameras, index, *RANGE)
        origins, directions = (np.asarray(x, np.float64) for x in (rays.origins, rays.directions))
        hit = np.zeros(origins.shape[:2], bool)
        for cell in np.argwhere(occupied):
            low = aabb[0] + cell * size
            with np.errstate(divide="ignore"):
                slabs = np.stack([(low - origins), (low + size - origins)]) / directions
            enter = np.maximum(slabs.min(axis=0).max(axis=-1), RANGE[0])
            leave = np.minimum(slabs.max(axis=0).min(axis=-1), RANGE[1])
            hit |= enter < leave
        result.append(hit)
    return np.stack(result)


def kept_pixels(occupied: np.ndarray, aabb: np.ndarray, split: Split) -> np.ndarray:
    grid = OccupancyGrid(jnp.asarray(occupied), jnp.asarray(aabb, jnp.float32))
    pixels = batches.filter_pixels(batches.to_device(split), grid, RANGE)
    kept = np.zeros(split.images.shape[:3], bool)
    kept.ravel()[np.asarray(pixels.drawn)[: int(pixels.total)]] = True
    assert kept.sum() == int(pixels.total)
    return kept


def some_cells(seed: int, shape: tuple[int, int, int] = (10, 9, 8)) -> np.ndarray:
    """A few cells, none of them at the border."""
    rng = np.random.default_rng(seed)
    content = np.zeros(shape, bool)
    for _ in range(4):
        content[tuple(rng.integers(1, np.array(shape) - 1))] = True
    return content


AABB = np.array([[-1.4, -1.2, -1.0], [1.3, 1.5, 1.2]])


@pytest.mark.parametrize("seed", range(4))
def test_exactly_the_pixels_that_see_an_occupied_cell_are_kept(seed: int) -> None:
    split = make_scene(24).splits["train"]
    content = some_cells(seed)
    # Pruning dilates what it keeps, so a ray that only cuts a corner of that may go either way.
    dilated = np.asarray(occupancy.dilate(jnp.asarray(content)))
    kept = kept_pixels(dilated, AABB, split)
    assert np.all(kept[hits_cells(content, AABB, split)])
    assert not np.any(kept[~hits_cells(dilated, AABB, split)])
    assert 0 < kept.sum() < kept.size


@pytest.mark.parametrize("rays", [6 * 24 * 24 // 4, 6 * 24 * 24 // 25, 50])
def test_testing_every_kth_pixel_loses_none_that_sees_something(
    monkeypatch: pytest.MonkeyPatch, rays: int
) -> None:
    split = make_scene(24).splits["train"]
    monkeypatch.setattr(batches, "MOST_TESTED_RAYS", rays)
    for seed in range(3):
        content = some_cells(seed)
        kept = kept_pixels(np.asarray(occupancy.dilate(jnp.asarray(content))), AABB, split)
        assert np.all(kept[hits_cells(content, AABB, split)])
    assert not kept.all() or rays < 200  # such coarse blocks hold something everywhere


def test_testing_every_kth_pixel_loses_nothing_at_the_border_of_the_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = make_scene(24).splits["train"]
    monkeypatch.setattr(batches, "MOST_TESTED_RAYS", split.images[..., 0].size // 64)
    # A ray tested for a block of pixels may pass outside the box where one of the block hits it.
    box = np.array([[-0.5] * 3, [0.5] * 3])
    everything = np.ones((8, 8, 8), bool)
    kept = kept_pixels(everything, box, split)
    assert np.all(kept[hits_cells(everything, box, split)])


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
            "truth_alpha": 0.3,
            "dropped": 0.0,
            "samples": 900.0,
            "grad_norm": 1.0,
            "kept": 1.0,
            "grid_grad_norm": 0.6,
            "mlp_grad_norm": 0.8,
        }.items()
    }
)


def test_healthy_metrics_pass() -> None:
    config = tiny_nerf(steps=100)
    train.check_health(HEALTHY, 50, config, math.inf)
    train.check_health(HEALTHY, 50, config, 0.001)
    train.check_health(HEALTHY._replace(mse=np.float32(0.04)), 50, config, 0.0005)


@pytest.mark.parametrize("field", ["loss", "mse", "grad_norm", "opacity"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training(field: str, value: float) -> None:
    bad = HEALTHY._replace(**{field: np.float32(value)})
    with pytest.raises(DivergedError, match=r"not a number after step 7.*--optimizer\.grid-lr"):
        train.check_health(bad, 7, tiny_nerf(), math.inf)


def test_a_rising_error_stops_training() -> None:
    bad = HEALTHY._replace(mse=np.float32(0.3))
    train.check_health(bad, 7, tiny_nerf(), 0.016)
    with pytest.raises(DivergedError, match=r"rose from 0.014 to 0.3 by step 7.*--optimizer"):
        train.check_health(bad, 7, tiny_nerf(), 0.014)


def test_a_field_of_nothing_stops_training_unless_there_is_nothing_or_it_is_early() -> None:
    bad = HEALTHY._replace(opacity=np.float32(1e-4))
    config = tiny_nerf(steps=100)
    with pytest.raises(DivergedError, match=r"all background after step 11, although 30% .*--seed"):
        train.check_health(bad, 11, config, math.inf)
    train.check_health(bad, 10, config, math.inf)
    train.check_health(bad._replace(truth_alpha=np.float32(0.0)), 11, config, math.inf)
    # Early is what is early of all that is planned by now.
    longer = progress.rescale_schedule(config, 5, 1000)
    train.check_health(bad, 11, longer, math.inf)
    with pytest.raises(DivergedError, match=r"all background after step 70"):
        train.check_health(bad, 70, longer, math.inf)


def test_an_absurd_learning_rate_ends_in_advice() -> None:
    rates = OptimizerConfig(mlp_lr=1e30, clip_norm=1e30)
    with pytest.raises(DivergedError, match=r"--optimizer\.mlp-lr"):
        train.fit(tiny_nerf(optimizer=rates, steps=40), make_scene(), Recorder())


# ---------------------------------------------------------------------------------------------
# The optimiser and learning
# ---------------------------------------------------------------------------------------------


def test_loss_metrics_are_those_of_an_independent_rendering() -> None:
    """One step by hand: the same batch, rendered and compared here."""
    config = tiny_nerf(steps=1, steps_per_dispatch=1)
    scene = make_scene()
    recorder = Recorder()
    stage, _ = train.fit(config, scene, recorder)
    _, state = first_state(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    key_batch, key_samples = jax.random.split(key)
    key_samples = train.split_ray_rngs(key_samples, stage.rays)
    pixels = batches.to_device(scene.splits["train"])
    rays, truth, behind, alpha = batches.make_batch(pixels, key_batch, 64, RANGE, "white")[:4]
    prediction = methods.predict(
        config.field, stage, state.params, state.grid, key_samples, rays, behind
    )
    errors = [float(np.mean(np.square(rgb - truth))) for rgb in prediction.rgb]
    assert len(errors) == 2
    np.testing.assert_allclose(recorder.metrics[0].mse, errors[-1], rtol=1e-4)
    np.testing.assert_allclose(recorder.metrics[0].loss, sum(errors), rtol=1e-4)
    np.testing.assert_allclose(recorder.metrics[0].truth_alpha, alpha.mean(), rtol=1e-5)
    np.testing.assert_allclose(recorder.metrics[0].opacity, prediction.opacity.mean(), rtol=1e-3)
    assert float(recorder.metrics[0].samples) == float(prediction.samples)


def test_first_step_moves_every_parameter_group_by_its_rate() -> None:
    config = tiny_tensorf(steps=1000, optimizer=OptimizerConfig(grid_lr=0.5, mlp_lr=0.01))
    _, before = first_state(config)
    labels = methods.label_params(before.params)
    # Adam's bias-corrected step is at most the rate, and nearly that where there is a gradient.
    moved = {"grid": 0.0, "network": 0.0}
    config = dataclasses.replace(config, steps_per_dispatch=1)
    _, state = train.fit(config, make_scene(), Recorder(1))
    assert int(state.step) == 1
    for label, a, b in zip(
        jax.tree.leaves(labels),
        jax.tree.leaves(state.params),
        jax.tree.leaves(before.params),
        strict=True,
    ):
        moved[label] = max(moved[label], float(jnp.max(jnp.abs(a - b))))
    assert moved["grid"] == pytest.approx(0.5, rel=0.02)
    assert moved["network"] == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    "config",
    [
        slow(tiny_tensorf(steps=400, steps_per_dispatch=100)),
        tiny_nerf(steps=300, steps_per_dispatch=100),
        tiny_voxels(steps=400, steps_per_dispatch=100),
        slow(by_weight(steps=400, steps_per_dispatch=100)),
        tiny_hashgrid(steps=300, steps_per_dispatch=100),
        slow(marching_nerf(steps=300, steps_per_dispatch=100)),
        slow(proposing_hashgrid(steps=300, steps_per_dispatch=100)),
        slow(
            dataclasses.replace(
                cp_config(density_components=8, feature_components=8, init_scale=0.4),
                steps=400,
                steps_per_dispatch=100,
            )
        ),
        slow(dataclasses.replace(tiny_pynerf(), steps=300, steps_per_dispatch=100)),
        slow(dataclasses.replace(tiny_pynerf(blend="results"), steps=300, steps_per_dispatch=100)),
        slow(dataclasses.replace(tiny_bitnerf(), steps=400, steps_per_dispatch=100)),
        slow(
            dataclasses.replace(
                change_nerf(encoding="integrated"), steps=300, steps_per_dispatch=100
            )
        ),
        slow(
            dataclasses.replace(change_nerf(quadrature="points"), steps=300, steps_per_dispatch=100)
        ),
    ],
    ids=[
        "tensorf", "nerf", "voxels", "by weight", "hash grid", "marching nerf", "proposals", "cp",
        "pyramid", "pyramid of results", "bitnerf", "integrated", "points",
    ],
)  # fmt: skip
def test_training_learns_the_ball(config: TrainConfig) -> None:
    scene = make_scene()
    stage, state = train.fit(config, scene, Recorder())
    white = np.ones(3, np.float32)
    render = make_render_fn(config, stage, state.eval_params, state.grid, RANGE, white)
    split = scene.splits["test"]
    truths = [composite(image, white) for image in split.images]
    mean = np.mean(composite(scene.splits["train"].images, white), axis=(0, 1, 2))
    reached = np.mean([metrics.psnr(render(split.cameras, i).rgb, t) for i, t in enumerate(truths)])
    constant = np.mean([metrics.psnr(np.broadcast_to(mean, t.shape), t) for t in truths])
    assert reached > constant + 6.0
    if isinstance(state.grid, DensityEmaGrid):
        centres = occupancy.cell_centres(stage.cells, state.grid.aabb)
        distance = np.linalg.norm(centres, axis=-1)
        occupied = np.asarray(state.grid.occupied)
        assert 0.05 < np.mean(occupied) < 0.95
        assert np.all(occupied[(distance > 0.6) & (distance < 0.8)]), "here the ball's surface is"


# ---------------------------------------------------------------------------------------------
# Averages, crops, losses, resets_lr
# ---------------------------------------------------------------------------------------------


def run_steps(
    config: TrainConfig, steps: int, error_fn: Any = None
) -> tuple[list[TrainState], list[Metrics]]:
    """The states before and after each of some single steps, all done by one program."""
    stage, state = first_state(config)
    pixels = batches.to_device(make_scene().splits["train"])
    run = jax.jit(train.make_train_step(config, stage, RANGE, error_fn))
    states, told = [state], []
    for _ in range(steps):
        course = train.make_train_schedule(config, int(states[-1].step))
        state, metric = run(states[-1], pixels, course, jnp.asarray(1, jnp.int32))
        states.append(state)
        told.append(metric)
    return states, told


@pytest.mark.slow
def test_the_average_of_the_parameters_follows_them_and_is_shown() -> None:
    optimizer = dataclasses.replace(tiny_hashgrid().optimizer, average=0.2)
    config = tiny_hashgrid(optimizer=optimizer)
    states, _ = run_steps(config, 4)
    wanted = jax.tree.map(lambda x: np.asarray(x, np.float64), states[0].params)
    assert differing_leaves(states[0].average, states[0].params) == []
    for step, state in enumerate(states[1:]):
        # At first it remembers less.
        decay = min(0.2, (1 + step) / (10 + step))
        wanted = jax.tree.map(
            lambda a, b, decay=decay: decay * a + (1 - decay) * np.asarray(b, np.float64),
            wanted,
            state.params,
        )
        for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert state.eval_params is state.average
    assert differing_leaves(states[-1].average, states[-1].params) != []
    # It changes nothing else.
    plain, _ = run_steps(tiny_hashgrid(), 4)
    assert plain[-1].average is None and plain[-1].eval_params is plain[-1].params
    assert differing_leaves(plain[-1].params, states[-1].params) == []
    assert differing_leaves(plain[-1].grid, states[-1].grid) == []


def test_the_average_grows_with_the_grid() -> None:
    config = tiny_tensorf(optimizer=OptimizerConfig(average=0.5))
    stage, state = first_state(config)
    other = jax.tree.map(lambda x: 2.0 * x + 1.0, state.params)
    state = dataclasses.replace(state, average=other)
    growth = transitions.StageTransition(12, False, 12**3, 1)
    _, new = train.transition_stage(config, stage, state, growth)
    wanted = tensorf.resample(other, (12, 12, 12), state.grid.aabb, new.grid.aabb)
    for a, b in zip(jax.tree.leaves(new.average), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("crop", [0.01, 0.4, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 1)])
def test_a_crop_draws_from_the_middle_of_the_pictures(size: tuple[int, int], crop: float) -> None:
    coded, _ = coded_pixels(*size, 3)
    key = jax.random.key(3)
    whole = batches.make_batch(coded, key, 400, RANGE, "white")
    batch = batches.make_batch(coded, key, 400, RANGE, "white", 1, jnp.asarray(crop))
    height, width = size
    column, row, image = np.rint(np.asarray(batch.truth) * 255).astype(int).T
    before = np.rint(np.asarray(whole.truth) * 255).astype(int).T
    np.testing.assert_array_equal(image, before[2])
    for found, old, count in ((row, before[1], height), (column, before[0], width)):
        # The pixel that holds the place to which the middle of the other is moved.
        place = crop * (old + 0.5 - 0.5 * count) + 0.5 * count
        assert np.all(np.abs(found + 0.5 - place) <= 0.5 + 1e-5)
        assert np.all(np.abs(found + 0.5 - 0.5 * count) <= 0.5 * crop * count + 0.5)
    rays = [image_rays(coded.cameras, i, *RANGE) for i in range(3)]
    stack = np.stack([np.asarray(r.directions) for r in rays])
    np.testing.assert_allclose(batch.rays.directions, stack[image, row, column], atol=1e-6)
    if crop == 1.0:
        assert differing_leaves(batch, whole) == []


@pytest.mark.slow
def test_the_first_steps_see_the_middle_and_the_others_all() -> None:
    # A quarter of the pictures' sides shows nothing but the ball.
    config = tiny_nerf(steps=12, precrop_fraction=0.4, crop=0.25)
    _, told = run_steps(config, 8)
    alphas = [float(metric.truth_alpha) for metric in told]
    # Progress is 0, 1/12, ..., and reaches 0.4 after the fifth step.
    assert alphas[:5] == [1.0] * 5 and max(alphas[5:]) < 0.7
    _, plain = run_steps(tiny_nerf(), 1)
    assert float(plain[0].truth_alpha) < 0.7


@pytest.mark.slow
def test_an_error_of_ones_own_is_what_is_minimised() -> None:
    def weighted(predicted: jax.Array, truth: jax.Array) -> jax.Array:
        return 3.0 * jnp.abs(predicted - truth)[:, 0] + 1.0

    config = tiny_hashgrid()
    plain, (usual, *_) = run_steps(config, 1)
    own, (told, *_) = run_steps(config, 1, weighted)
    np.testing.assert_allclose(usual.loss, usual.mse, rtol=1e-5)
    np.testing.assert_allclose(told.mse, usual.mse, rtol=1e-5)
    stage, state = first_state(config)
    key_batch, key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    key = train.split_ray_rngs(key, stage.rays)
    pixels = batches.to_device(make_scene().splits["train"])
    rays, truth, behind, _ = batches.make_batch(pixels, key_batch, 128, RANGE, "white")[:4]
    predicted = jax.jit(methods.predict, static_argnums=(0, 1))(
        config.field, stage, state.params, state.grid, key, rays, behind
    )
    used = ~np.asarray(predicted.dropped)
    errors = 3.0 * np.abs(np.asarray(predicted.rgb[-1] - truth))[used, 0] + 1.0
    np.testing.assert_allclose(told.loss, np.mean(errors), rtol=1e-4)
    assert "params" in " ".join(differing_leaves(own[-1], plain[-1]))


def test_fit_takes_an_error_of_ones_own() -> None:
    # Whatever is shown is right: nothing is learned.
    config = tiny_nerf(steps=3)
    recorder = Recorder()
    _, state = train.fit(
        config, make_scene(), recorder, error_fn=lambda rgb, _: jnp.sum(0.0 * rgb, axis=-1)
    )
    assert float(recorder.metrics[-1].loss) == 0.0 < float(recorder.metrics[-1].mse)
    assert differing_leaves(state.params, first_state(config)[1].params) == []


@pytest.mark.slow
def test_the_loss_has_the_terms_that_were_asked_for() -> None:
    field = dataclasses.replace(tiny_hashgrid().field, density_scale=5.0)
    difference = np.array([[0.05, -0.3, 0.0], [0.5, 0.0, -0.02]])
    for kind, terms in (
        ("squared", difference**2),
        (
            "huber",
            np.where(abs(difference) <= 0.2, difference**2 / 2, 0.2 * abs(difference) - 0.02),
        ),
        ("charbonnier", np.sqrt(difference**2 + 0.04)),
    ):
        error = train.choose_error(LossConfig(error=kind, huber_delta=0.2, charbonnier_epsilon=0.2))  # type: ignore[arg-type]
        found = error(jnp.asarray(0.3 + difference), jnp.full((2, 3), 0.3))
        np.testing.assert_allclose(found, terms.mean(axis=-1), rtol=1e-5)
    loss = LossConfig(distortion_weight=2.0, entropy_weight=0.5)
    config = tiny_hashgrid(field=field, loss=loss)
    _, (told, *_) = run_steps(config, 1)
    stage, state = first_state(config)
    key_batch, key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    key = train.split_ray_rngs(key, stage.rays)
    pixels = batches.to_device(make_scene().splits["train"])
    batch = batches.make_batch(pixels, key_batch, 128, RANGE, "white")
    predicted = jax.jit(methods.predict, static_argnums=(0, 1))(
        field, stage, state.params, state.grid, key, batch.rays, batch.behind
    )
    used = ~np.asarray(predicted.dropped)
    p = np.clip(np.asarray(predicted.opacity, np.float64), 1e-5, 1 - 1e-5)[used]
    entropy = np.mean(-p * np.log(p) - (1 - p) * np.log(1 - p))
    distortion = np.mean(np.asarray(predicted.distortion)[used])
    assert entropy > 0.01 and distortion > 1e-3
    wanted = float(told.mse) + 2.0 * distortion + 0.5 * entropy
    np.testing.assert_allclose(told.loss, wanted, rtol=1e-3)


def schedule_counts(state: TrainState) -> list[int]:
    """How many steps each schedule of the optimiser has counted, Adam's own count left out."""
    kept = optim.map_moments(lambda _: None, state.opt_state)
    found = jax.tree.leaves(kept, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState))
    return [int(n) for n in found if not isinstance(n, optax.ScaleByAdamState)]


def test_at_a_restart_moments_are_forgotten_and_schedules_go_on() -> None:
    config = restarting()
    stage, state = train.fit(config, make_scene(), Recorder(12))
    growth = transitions.StageTransition(12, True, 12**3, 1)
    _, new = train.transition_stage(config, stage, state, growth)
    (adam,) = (
        node
        for node in jax.tree.leaves(
            new.opt_state, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState)
        )
        if isinstance(node, optax.ScaleByAdamState)
    )
    assert int(adam.count) == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves((adam.mu, adam.nu)))
    shapes = jax.tree.map(jnp.shape, new.params)
    assert jax.tree.map(jnp.shape, adam.mu) == shapes == jax.tree.map(jnp.shape, adam.nu)
    assert set(schedule_counts(new)) == {12} == set(schedule_counts(state))
    # Pruning alone resets_lr nothing.
    _, pruned = train.transition_stage(config, stage, state, growth._replace(voxels=None))
    assert differing_leaves(pruned.opt_state, state.opt_state) == []


def test_after_a_restart_rates_are_as_at_the_start() -> None:
    """Adam's first step is as large as the rate, wherever there is a gradient."""
    rates = OptimizerConfig(grid_lr=0.5, mlp_lr=0.01, lr_final_mult=0.01)
    config = restarting(optimizer=rates, steps_per_dispatch=1)
    _, state = first_state(config)
    optimizer = train.make_optimizer(config, state.params, train.make_train_schedule(config, 13))
    grads = jax.tree.map(jnp.ones_like, state.params)
    for node, wanted in ((12, 0.5), (18, 0.5 * 0.01 ** (6 / 24))):
        counted = jax.tree.map(
            lambda x, n=node: jnp.full_like(x, n) if x.dtype == jnp.int32 else x, state.opt_state
        )
        opt_state = optim.reset_adam_moments(counted)
        updates, _ = jax.jit(optimizer.update)(grads, opt_state, state.params)
        # The norm is clipped, which Adam does not see but for its epsilon.
        for leaf in jax.tree.leaves(updates["density"]):
            np.testing.assert_allclose(leaf, -wanted, rtol=1e-3)
    assert transitions.last_lr_reset(config, 13) == 0.5


def test_no_pixel_is_left_out_by_cells_that_come_and_go() -> None:
    config = tiny_hashgrid()
    _, state = first_state(config)
    pixels = batches.to_device(make_scene().splits["train"])
    occupied = jnp.zeros(state.grid.occupied.shape, bool).at[4, 4, 4].set(True)
    grid = dataclasses.replace(state.grid, occupied=occupied)
    assert batches.filter_pixels(pixels, grid, RANGE) is pixels
    plain = OccupancyGrid(occupied, grid.aabb)
    assert int(batches.filter_pixels(pixels, plain, RANGE).total) < int(pixels.total)


# ---------------------------------------------------------------------------------------------
# Pictures of several sizes
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pixels_of_smaller_pictures_are_means_seen_through_wider_cones() -> None:
    split = make_scene().splits["train"]
    pixels = batches.to_device(split, (1, 2, 4))
    size = split.images.shape[1]
    counts = [len(split) * (size // 2**k) ** 2 for k in range(3)]
    assert np.asarray(pixels.starts).tolist() == [0, counts[0], counts[0] + counts[1]]
    assert int(pixels.total) == sum(counts)
    for halvings in range(3):
        batch = batches.make_batch(
            pixels, jax.random.key(2), 60, RANGE, "white", size=jnp.asarray(halvings)
        )
        factor = 2**halvings
        assert np.all(np.asarray(batch.area) == factor**2)
        small = dataclasses.replace(
            split, images=downscale_images(split.images, factor),
            cameras=resize_cameras(split.cameras, size // factor, size // factor),
        )  # fmt: skip
        rays = [image_rays(small.cameras, i, *RANGE) for i in range(len(split))]
        truth = composite(small.images, np.ones(3, np.float32))
        for index in range(60):
            camera = int(batch.rays.camera_index[index])
            off = np.linalg.norm(
                np.asarray(rays[camera].directions) - np.asarray(batch.rays.directions[index]),
                axis=-1,
            )
            row, column = np.unravel_index(np.argmin(off), off.shape)
            assert off[row, column] < 1e-5
            np.testing.assert_allclose(batch.truth[index], truth[camera, row, column], atol=1e-5)
            # Measured to the next ray, which is farther: equal to first order only.
            wide = float(rays[camera].radii[row, column])
            assert float(batch.rays.radii[index]) == pytest.approx(wide, rel=0.06)


def test_all_sizes_are_drawn_from_by_their_numbers_of_pixels() -> None:
    pixels = batches.to_device(make_scene().splits["train"], (1, 2, 4))
    batch = batches.make_batch(pixels, jax.random.key(0), 4000, RANGE, "white")
    shares = [float(np.mean(np.asarray(batch.area) == 4.0**k)) for k in range(3)]
    np.testing.assert_allclose(shares, np.array([16, 4, 1]) / 21, atol=0.03)


def test_pixels_that_hit_nothing_are_left_out_at_every_size() -> None:
    pixels = batches.to_device(make_scene().splits["train"], (1, 2))
    occupied = np.zeros((8, 8, 8), bool)
    occupied[3:5, 3:5, 3:5] = True
    grid = OccupancyGrid(jnp.asarray(occupied), jnp.array([[-1.5] * 3, [1.5] * 3]))
    kept = batches.filter_pixels(pixels, grid, RANGE)
    starts, total = np.asarray(kept.starts), int(kept.total)
    drawn = np.asarray(kept.drawn)
    count, height, width = pixels.images.shape[:3]
    large, small = drawn[: starts[1]], drawn[starts[1] : total] - count * height * width
    image, row, column = np.unravel_index(large, (count, height, width))
    parents = {*zip(image, row // 2, column // 2, strict=True)}
    found = np.unravel_index(small, (count, height // 2, width // 2))
    assert {*zip(*found, strict=True)} == parents
    assert 0 < large.size < 0.5 * count * height * width


def test_a_pixel_of_a_smaller_picture_counts_by_its_area() -> None:
    config = tiny_nerf(steps=1, steps_per_dispatch=1, scales=2)
    recorder = Recorder()
    train.fit(config, make_scene(), recorder)
    pixels = batches.to_device(make_scene().splits["train"], (1, 2))
    stage, state = first_state(config)
    key_batch, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    key = train.split_ray_rngs(key, stage.rays)
    batch = batches.make_batch(pixels, key_batch, 64, RANGE, "white")
    predicted = jax.jit(methods.predict, static_argnums=(0, 1))(
        config.field, stage, state.params, state.grid, key, batch.rays, batch.behind
    )
    loss = 0.0
    area = np.asarray(batch.area, np.float64)
    assert set(area) == {1.0, 4.0}
    for rgb in predicted.rgb:
        error = np.mean(np.square(np.asarray(rgb - batch.truth, np.float64)), axis=-1)
        loss += np.sum(area * error) / np.sum(area)
    assert float(recorder.metrics[0].loss) == pytest.approx(loss, rel=1e-4)


def test_pictures_become_larger_when_their_time_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = ((0.0, 4), (2.0, 3), (0.5, 1))
    config = tiny_nerf(steps=8, steps_per_dispatch=1, train_scale_schedule=schedule)
    config = transitions.resolve_config(config, make_scene())
    assert config.train_scale_schedule == ((0, 4), (0.25, 3), (0.5, 1))
    drawn: list[int] = []
    really = batches.make_batch

    def note(*arguments: Any) -> batches.Batch:
        batch = really(*arguments)
        jax.debug.callback(lambda area: drawn.append(int(area.max())), batch.area)
        return batch

    monkeypatch.setattr(batches, "make_batch", note)
    train.fit(config, make_scene(), Recorder())
    jax.effects_barrier()
    assert drawn == [16, 16, 9, 9, 1, 1, 1, 1]


def test_pictures_that_cannot_be_made_so_small_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be made 512 times smaller"):
        batches.to_device(make_scene().splits["train"], (1, 512))


@pytest.mark.slow
def test_appearances_take_up_how_pictures_were_exposed() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    exposure = np.array([1.0, 0.4, 0.9, 0.3, 0.7, 0.5])[:, None, None, None]
    rgb = np.rint(split.images[..., :3] * exposure).astype(np.uint8)
    images = np.concatenate([rgb, split.images[..., 3:]], axis=-1)
    exposed = dataclasses.replace(
        scene, splits={"train": dataclasses.replace(split, images=images)}
    )
    errors = []
    for dim in (0, 4):
        config = tiny_hashgrid(steps=300)
        field = dataclasses.replace(config.field, appearance_dim=dim, num_sh_bands=1)
        config = transitions.resolve_config(dataclasses.replace(config, field=field), exposed)
        recorder = Recorder()
        _, state = train.fit(config, exposed, recorder)
        assert ("appearance" in state.params) == (dim > 0)
        errors.append(np.mean([float(m.mse) for m in recorder.metrics[-5:]]))
    assert errors[1] < 0.5 * errors[0]


# ---------------------------------------------------------------------------------------------
# Pictures in host memory
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        slow(tiny_tensorf()),
        slow(tiny_voxels(supersample=2, supersample_from=0.5)),
        slow(tiny_nerf(precrop_fraction=0.4, crop=0.25, steps=20)),
        slow(tiny_nerf(train_scale_schedule=((0.0, 4), (0.25, 3), (0.5, 1)), steps=20)),
        slow(tiny_hashgrid(scales=3, background="random")),
        tiny_nerf(),
    ],
    ids=["tensorf", "voxels", "crop", "schedule", "sizes", "plain"],
)
def test_streamed_pictures_give_the_same_bits(config: TrainConfig) -> None:
    config = dataclasses.replace(config, steps_per_dispatch=3)
    results = [
        train.fit(dataclasses.replace(config, stream=stream), make_scene())
        for stream in (False, True)
    ]
    assert results[0][0] == results[1][0]
    assert differing_leaves(results[0][1], results[1][1]) == []


def test_pictures_are_streamed_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_scene().splits["train"]
    whole = batches.count_bytes(split, (1, 2))
    assert whole == 8 * 6 * (16 * 16 + 8 * 8)
    asked: list[bool] = []
    really = batches.to_device

    def note(split: Any, factors: Any, stream: bool) -> Any:
        asked.append(stream)
        return really(split, factors, stream)

    monkeypatch.setattr(batches, "to_device", note)
    for free in (3 * whole, whole):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        monkeypatch.setattr(memory, "needed_bytes", lambda _: 0)
        train.fit(tiny_nerf(steps=1, scales=2), make_scene())
    assert asked == [False, True]


def test_a_stream_draws_anew_when_something_else_is_wanted_than_was_begun() -> None:
    config = tiny_nerf(steps=8)
    pixels = batches.to_device(make_scene().splits["train"], (1,), stream=True)
    course = train.make_train_schedule(config)
    with batches.PixelPrefetcher(2) as stream:
        stream.begin(config, pixels, course, 16, 0)
        ahead = stream.take(config, pixels, course, 16, 0)
        later = stream.take(config, pixels, course, 16, 1)
    np.testing.assert_array_equal(ahead.flat[1], later.flat[0])
    assert not np.array_equal(ahead.flat[0], later.flat[0])
    images = np.asarray(pixels.images).reshape(-1, 4)
    np.testing.assert_array_equal(ahead.rgba, images[ahead.flat])
