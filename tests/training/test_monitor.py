"""The training callback: scalars, when to validate, to save and to fit the steps to the budget."""

import dataclasses
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scenes import SIZE, first_state, make_scene, proposing_hashgrid, tiny_nerf, tiny_voxels

from jaxrf.cameras import base as cams
from jaxrf.core.errors import InputError
from jaxrf.evaluation import camera_renderer, scoring
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.models.base import StageSpec
from jaxrf.training import evaluator, monitor, runs, schedule, transitions
from jaxrf.training.config import TrainConfig, VideoConfig
from jaxrf.training.evaluator import Evaluator
from jaxrf.training.logs import EventWriter
from jaxrf.training.monitor import Resumption, RunOutput, TrainMonitor
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.state import Metrics, TrainState

METRICS = Metrics(*(np.float32(x) for x in (0.02, 0.01, 0.3, 0.4, 0.05, 4096, 1.5, 1, 0.9, 1.2)))


# ---------------------------------------------------------------------------------------------
# The callback, with a writer and a checkpoint manager that only record calls
# ---------------------------------------------------------------------------------------------


class FakeWriter(EventWriter):
    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}
        self.pictures: list[tuple[str, int]] = []
        self.histograms: list[tuple[str, int]] = []
        self.videos: list[tuple[str, tuple[int, ...], float, int]] = []
        self.notes: list[str] = []
        self.texts: list[tuple[str, int]] = []

    def text(self, tag: str, text: str, step: int = 0) -> None:
        assert text.startswith("{")
        self.texts.append((tag, step))

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def scalars(self, values: dict[str, float], step: int, measure: Any = None) -> None:
        measured = measure() if measure else {}
        self.values.setdefault(step, {}).update(values | measured)

    def image(self, tag: str, draw: Any, step: int) -> None:
        assert draw().dtype == np.uint8
        self.pictures.append((tag, step))

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        assert values.ndim == 1
        self.histograms.append((tag, step))

    def video(self, tag: str, frames: np.ndarray, fps: float, step: int) -> None:
        self.videos.append((tag, frames.shape, fps, step))


@dataclasses.dataclass
class Monitored:
    monitor: TrainMonitor
    writer: FakeWriter
    saved: list[tuple[int, float | None]]
    caught_signals: list[int]
    state: TrainState
    stage: StageSpec

    def dispatch(self, step: int, steps: int) -> bool:
        state = dataclasses.replace(self.state, step=jnp.asarray(step, jnp.int32))
        return self.monitor.on_dispatch(state, self.stage, METRICS, steps)


@pytest.fixture
def start_monitor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    saved: list[tuple[int, float | None]] = []

    def save(manager: Any, scene: Any, stage: Any, state: Any, seconds: Any, psnr: Any) -> None:
        assert seconds >= 100.0
        saved.append((int(state.step), psnr))

    def start(
        config: TrainConfig,
        val: bool = True,
        start_step: int = 0,
        deadline: float | None = None,
        video_cameras_fn: Any = None,
    ) -> Monitored:
        scene = make_scene()
        metadata = SceneMetadata.from_scene(scene, Path("ball"))
        stage, state = first_state(config)
        writer = FakeWriter()
        caught_signals: list[int] = []
        split = scene.splits["val"] if val else None
        callback = TrainMonitor(
            config,
            RunOutput(tmp_path, metadata, writer, None),
            Evaluator(writer, split, video_cameras_fn),
            caught_signals,
            Resumption(start_step, 100.0),
            deadline,
        )
        return Monitored(callback, writer, saved, caught_signals, state, stage)

    monkeypatch.setattr(runs, "save", save)
    return start


def test_on_dispatch_saves_and_stops_at_the_deadline(start_monitor: Any) -> None:
    config = tiny_nerf(num_steps=100, validate_every=0.0, checkpoint_seconds=1e9)
    early, late = (start_monitor(config, deadline=time.time() + left) for left in (1e6, 0.0))
    assert not early.dispatch(25, 25) and early.saved == []
    assert late.dispatch(25, 25) and late.saved == [(25, None)]


def test_clock_does_not_count_dropped_rays(start_monitor: Any) -> None:
    monitored = start_monitor(tiny_nerf(num_steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    monitored.dispatch(10, 10)
    per_step = monitored.stage.num_rays * (1.0 - float(METRICS.overflowed))
    assert monitored.monitor.clock.rays == pytest.approx(10 * per_step)


def test_on_dispatch_logs_scalars(start_monitor: Any) -> None:
    monitored = start_monitor(tiny_nerf(num_steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    assert not monitored.dispatch(25, 25)
    assert not monitored.dispatch(50, 25)
    assert sorted(monitored.writer.values) == [25, 50]
    values = monitored.writer.values[50]
    assert values["train/loss"] == pytest.approx(0.02)
    assert values["train/psnr"] == pytest.approx(20.0, abs=1e-4)
    assert values["train/grad_norm"] == pytest.approx(1.5)
    assert values["train/opacity"] == pytest.approx(0.3)
    assert values["train/dropped_rays"] == pytest.approx(0.05)
    # Decays exponentially to a tenth of 5e-3 at the last step.
    assert values["learning_rate/mlp"] == pytest.approx(5e-3 * math.sqrt(0.1), rel=1e-4)
    assert values["speed/rays_per_second"] > 0
    assert values["machine/memory_gib"] > 0.01
    # A NeRF has no grid.
    assert values["train/grad_norm_mlp"] == pytest.approx(1.2)
    assert not {"train/grad_norm_grid", "learning_rate/grid"} & set(values)
    assert monitored.monitor.clock.rays == pytest.approx(50 * 64 * 0.95)
    assert values["speed/samples_per_second"] > 0
    assert monitored.monitor.clock.samples == pytest.approx(50 * 4096.0)
    assert monitored.saved == [] and monitored.writer.pictures == []
    assert monitored.writer.texts == [("config", 25)]


@pytest.mark.parametrize(("every", "expected"), [(0.25, [30, 50, 80]), (0.5, [50]), (0.0, [])])
def test_on_dispatch_validates_after_each_interval_but_not_at_the_end(
    start_monitor: Any, every: float, expected: list[int]
) -> None:
    monitored = start_monitor(
        tiny_nerf(num_steps=100, validate_every=every, checkpoint_seconds=1e9)
    )
    for step in range(10, 101, 10):
        monitored.dispatch(step, 10)
    validated = [step for step, values in monitored.writer.values.items() if "val/psnr" in values]
    assert validated == expected
    assert [v.step for v in monitored.monitor.evaluator.val_history] == expected
    assert (monitored.monitor.clock.validate > 0) == bool(expected)
    # Each is saved with its PSNR, by which the best checkpoint is kept.
    assert [step for step, psnr in monitored.saved if psnr is not None] == expected
    assert all(psnr == monitored.writer.values[step]["val/psnr"] for step, psnr in monitored.saved)
    assert monitored.writer.pictures == [("val/view/r_0", step) for step in expected]
    assert {step for _, step in monitored.writer.histograms} == set(expected)
    if expected:
        tags = {tag for tag, _ in monitored.writer.histograms}
        assert {"val/opacity", "val/depth", "parameters/mlp/field/trunk_0"} <= tags


def test_validation_scores_all_views(start_monitor: Any) -> None:
    config = tiny_nerf(
        num_steps=100, validate_every=0.5, checkpoint_seconds=1e9, validation_views=1
    )
    monitored = start_monitor(config)
    monitored.dispatch(50, 50)
    white, state = np.ones(3, np.float32), monitored.state
    render = scoring.make_render_fn(
        TrainedField(config, monitored.stage, state.params, state.grid, (2.0, 6.0), white)
    )
    scored = list(scoring.score_split(render, make_scene().splits["val"], white, range(2)))
    expected = scoring.summarize(scored)
    assert expected["per_image"][0]["psnr"] != expected["per_image"][1]["psnr"]
    for name in ("psnr", "ssim"):
        assert monitored.writer.values[50][f"val/{name}"] == pytest.approx(expected[name], rel=1e-4)
    (entry,) = monitored.monitor.evaluator.val_history
    assert entry.psnr == pytest.approx(expected["psnr"], abs=1e-3)


def test_validation_follows_progress_of_a_rescaled_schedule(start_monitor: Any) -> None:
    # Progress is one half at step 20; the second half takes 180 more steps.
    config = tiny_nerf(num_steps=40, validate_every=0.25, checkpoint_seconds=1e9)
    monitored = start_monitor(schedule.rescale_schedule(config, 20, 200))
    for step in range(10, 201, 10):
        monitored.dispatch(step, 10)
    validated = [step for step, values in monitored.writer.values.items() if "val/psnr" in values]
    assert validated == [10, 20, 110]


def test_validation_does_not_count_as_training_time(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    for module in (monitor, evaluator):
        monkeypatch.setattr(module, "seconds_since_start", lambda: now - 990.0)
    score = scoring.score_split

    def score_slowly(*arguments: Any, **options: Any) -> Any:
        nonlocal now
        now += 7.0
        return score(*arguments, **options)

    monkeypatch.setattr(scoring, "score_split", score_slowly)
    monitored = start_monitor(tiny_nerf(num_steps=100, validate_every=0.25, checkpoint_seconds=1e9))
    for step in (25, 50, 75):
        now += 2.0
        monitored.dispatch(step, 25)
    clock = monitored.monitor.clock
    assert clock.train == pytest.approx(6.0) and clock.validate == pytest.approx(3 * 14.0)
    assert clock.first_step == pytest.approx(12.0)
    # Seconds of a validation leave out the time of earlier ones.
    assert [entry.seconds for entry in monitored.monitor.evaluator.val_history] == pytest.approx(
        [12.0, 14.0, 16.0]
    )
    assert monitored.writer.values[50]["speed/rays_per_second"] == pytest.approx(25 * 64 * 0.95 / 2)


@pytest.mark.parametrize(
    ("budget", "num_views"), [({}, 2), ({"budget": 900.0}, 2), ({"budget": 200.0}, 1)]
)
def test_validations_score_no_further_view_than_their_share_of_the_budget_allows(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch, budget: dict[str, float], num_views: int
) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    indices: list[int] = []
    score = scoring.score_split

    def score_slowly(
        render: Any, split: Any, background: Any, chosen: list[int], **options: Any
    ) -> Any:
        nonlocal now
        now += 7.0
        indices.extend(chosen)
        return score(render, split, background, chosen, **options)

    monkeypatch.setattr(scoring, "score_split", score_slowly)
    # Three validations share 5 % of the budget.
    config = tiny_nerf(num_steps=100, validate_every=0.25, checkpoint_seconds=1e9, **budget)
    monitored = start_monitor(config)
    now += 2.0
    monitored.dispatch(25, 25)
    assert indices == list(range(num_views))


def test_views_are_rendered_by_the_program_that_was_compiled_ahead(start_monitor: Any) -> None:
    # Numbers of this test alone, as programs are shared between tests.
    config = proposing_hashgrid(num_steps=100, validate_every=0.5, render_samples=1700)
    monitored = start_monitor(config)
    before = camera_renderer._render_chunks._cache_size()
    monitored.monitor.evaluator.compile_ahead(config, make_scene())
    monitored.monitor.evaluator.wait_until_compiled()
    assert camera_renderer._render_chunks._cache_size() == before + 1
    monitored.dispatch(50, 50)
    assert len(monitored.monitor.evaluator.val_history) == 1
    assert camera_renderer._render_chunks._cache_size() == before + 1


@pytest.mark.parametrize(
    ("config", "val"),
    [(tiny_voxels(), True), (tiny_nerf(budget=60.0), False)],
    ids=["marches", "budget without validations"],
)
def test_nothing_is_compiled_ahead_that_would_be_of_no_use(
    start_monitor: Any, config: TrainConfig, val: bool
) -> None:
    evaluator = start_monitor(config, val=val).monitor.evaluator
    evaluator.compile_ahead(config, make_scene())
    assert evaluator._compiling is None


def test_on_dispatch_without_validation_views_does_not_validate(start_monitor: Any) -> None:
    monitored = start_monitor(
        tiny_nerf(num_steps=100, validate_every=0.1, checkpoint_seconds=1e9), val=False
    )
    monitored.dispatch(50, 50)
    assert "val/psnr" not in monitored.writer.values[50]


def test_monitor_logs_events_in_words(start_monitor: Any) -> None:
    monitored = start_monitor(
        tiny_voxels(num_steps=100, validate_every=0.5, checkpoint_seconds=1e9)
    )
    monitored.monitor.on_stage(monitored.stage, monitored.state, 77, 0.0)
    monitored.dispatch(25, 25)
    monitored.dispatch(50, 25)
    monitored.monitor.on_config_change(tiny_voxels(num_steps=90), 50, "90 steps fit")
    stage, first, second, validation, change = monitored.writer.notes
    assert re.fullmatch(r"step 0: \d+ voxels of .*, 1 a pixel, from 77 pixels", stage)
    assert re.fullmatch(
        r"step 25 of 100: loss 0\.02000, training PSNR 20\.00 dB, [\d.]+k rays/s", first
    )
    assert second.startswith("step 50 of 100: ")
    assert re.fullmatch(r"step 50: validation PSNR [\d.]+ dB on 2 views", validation)
    assert change == "step 50: 90 steps fit"


# ---------------------------------------------------------------------------------------------
# Videos during training
# ---------------------------------------------------------------------------------------------


def make_video_cameras_fn(frames: int) -> Any:
    def make_cameras(run: runs.Run) -> cams.Cameras:
        assert run.stage is not None and run.scene.near == 2.0
        return make_scene().splits["val"].cameras[:frames]

    return make_cameras


@pytest.mark.parametrize(("every", "expected"), [(0.25, [30, 50, 80]), (0.0, [])])
def test_on_dispatch_renders_videos_after_each_interval_but_not_at_the_end(
    start_monitor: Any, every: float, expected: list[int]
) -> None:
    config = tiny_nerf(num_steps=100, validate_every=0.0, checkpoint_seconds=1e9)
    config = dataclasses.replace(config, video=VideoConfig(frames=8, size=9, every=every))
    monitored = start_monitor(config, video_cameras_fn=make_video_cameras_fn(2))
    for step in range(10, 101, 10):
        monitored.dispatch(step, 10)
    shape = (2, SIZE, SIZE, 3)
    assert monitored.writer.videos == [("video/orbit", shape, 6.0, step) for step in expected]
    # Like validation, videos do not count as training time.
    assert (monitored.monitor.clock.validate > 0) == bool(expected)
    assert len([note for note in monitored.writer.notes if "video" in note]) == len(expected)
    assert monitored.saved == []


def test_on_dispatch_skips_a_video_that_may_take_half_of_the_time_left(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitored = start_monitor(
        tiny_nerf(num_steps=100, checkpoint_seconds=1e9), video_cameras_fn=make_video_cameras_fn(1)
    )
    monitored.monitor.config = dataclasses.replace(
        monitored.monitor.config, validate_every=0.0, video=VideoConfig(every=0.1)
    )
    monitored.monitor.deadline = time.time() + 100.0
    for step, slowest in ((10, 0.0), (20, 49.0), (30, 51.0)):
        monitored.monitor.evaluator._slowest_video = slowest
        monitored.dispatch(step, 10)
    assert [step for *_, step in monitored.writer.videos] == [10, 20]


def test_on_dispatch_saves_after_checkpoint_seconds(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    monitored = start_monitor(tiny_nerf(num_steps=100, validate_every=0.0, checkpoint_seconds=30.0))
    for step, seconds in ((10, 10), (20, 29), (30, 31), (40, 50), (50, 62), (60, 63)):
        now = 1000.0 + seconds
        assert not monitored.dispatch(step, 10)
    assert monitored.saved == [(30, None), (50, None)]


def test_on_dispatch_saves_and_stops_without_validation_after_a_signal(start_monitor: Any) -> None:
    monitored = start_monitor(tiny_nerf(num_steps=100, validate_every=0.1, checkpoint_seconds=1e9))
    monitored.caught_signals.append(signal.SIGTERM)
    assert monitored.dispatch(50, 50)
    assert monitored.saved == [(50, None)]
    monitored.monitor.save(
        monitored.stage, dataclasses.replace(monitored.state, step=jnp.asarray(50))
    )
    assert monitored.saved == [(50, None)]  # a step is saved once


def test_clock_separates_compiling_and_training(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    monitored = start_monitor(tiny_nerf(num_steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    now += 5.0
    monitored.monitor.on_stage(monitored.stage, monitored.state, 100, 4.0)
    now += 2.0
    monitored.dispatch(10, 10)
    assert monitored.monitor.clock.compile == pytest.approx(4.0)
    assert monitored.monitor.clock.train == pytest.approx(3.0)
    assert monitored.monitor.seconds == pytest.approx(107.0)
    assert monitored.writer.values[10]["speed/rays_per_second"] == pytest.approx(
        10 * 64 * 0.95 / 2.0
    )


# ---------------------------------------------------------------------------------------------
# The budget
# ---------------------------------------------------------------------------------------------


class Budgeted:
    """A callback on a clock that the test moves, called as by `loop.fit`."""

    def __init__(
        self, start_monitor: Any, monkeypatch: pytest.MonkeyPatch, budget: float | None
    ) -> None:
        self.now = 1000.0
        monkeypatch.setattr(monitor.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(monitor.time, "time", lambda: self.now)
        self.config = tiny_voxels(
            num_steps=200, validate_every=0.0, checkpoint_seconds=1e9, budget=budget
        )
        deadline = None if budget is None else self.now + budget
        self.monitored = start_monitor(self.config, deadline=deadline)
        self.step = 0

    def begin_stage(self) -> None:
        self.monitored.monitor.on_stage(self.monitored.stage, self.monitored.state, 1, 0.0)

    def dispatch(self, steps: int, seconds: float, growing: bool) -> None:
        self.now, self.step = self.now + seconds, self.step + steps
        assert not self.monitored.dispatch(self.step, steps)
        self.config = self.monitored.monitor.replan(self.config, self.step, growing)


def test_should_wait_for_compile_until_the_deadline_or_a_signal(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 100.0)
    callback = run.monitored.monitor
    assert callback.should_wait_for_compile()
    run.monitored.caught_signals.append(signal.SIGINT)
    assert not callback.should_wait_for_compile()
    run.monitored.caught_signals.clear()
    run.now += 101.0
    with pytest.raises(InputError, match=r"budget 100 is too short here: starting took"):
        callback.should_wait_for_compile()
    callback._step = 1
    assert not callback.should_wait_for_compile()
    assert Budgeted(start_monitor, monkeypatch, None).monitored.monitor.should_wait_for_compile()


def test_replan_fits_steps_early_and_again_after_the_last_transition(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 5.0, growing=True)  # the first dispatch warms up and is not counted
    run.dispatch(4, 0.4, growing=True)
    assert run.config.schedule_knots == ()
    run.dispatch(4, 0.4, growing=True)
    num_transitions = len(transitions.plan_transitions(tiny_voxels(num_steps=200)))
    left = 0.96 * (100.0 - 5.8 - 1.5 * num_transitions) - 0.3
    assert run.config.num_steps == 9 + int(left / 0.1) and len(run.config.schedule_knots) == 1
    assert runs.read_config(tmp_path) == run.config

    run.dispatch(30, 3.0, growing=True)
    assert len(run.config.schedule_knots) == 1
    run.begin_stage()
    run.dispatch(1, 1.0, growing=False)
    run.dispatch(10, 1.9, growing=False)
    assert len(run.config.schedule_knots) == 1
    run.dispatch(10, 2.1, growing=False)
    left = 0.96 * (1100.0 - run.now) - 0.3
    assert run.config.num_steps == 60 + int(left / 0.2) and len(run.config.schedule_knots) == 2
    assert runs.read_config(tmp_path) == run.config
    # From then on a step takes half as long, which the fits at 1/2 and 3/4 of the
    # remaining progress take into account.
    fitted_at = []
    while run.step + 10 < run.config.num_steps:
        fitted = run.config
        run.dispatch(10, 1.0, growing=False)
        if run.config is not fitted:
            fitted_at.append(schedule.progress_at(fitted, run.step))
    second, third, fourth = (knot.progress for knot in run.config.schedule_knots[1:])
    assert fitted_at == [third, fourth]
    assert third == pytest.approx((1.0 + second) / 2, abs=0.03)
    assert fourth == pytest.approx((1.0 + third) / 2, abs=0.03)
    assert 0.0 < 1100.0 - run.now < 6.0


def test_replan_fits_steps_before_the_last_transition_once_half_of_the_time_is_over(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 1.0, growing=True)
    run.dispatch(10, 1.0, growing=True)
    assert len(run.config.schedule_knots) == 1
    # The machine became much slower: without another fit the transition would never come.
    while len(run.config.schedule_knots) == 1:
        run.dispatch(1, 3.0, growing=True)
    assert 1050.0 <= run.now <= 1055.0
    assert run.config.num_steps - run.step < 1100.0 - run.now


def test_replan_leaves_time_for_validations(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_of = []
    for every in (0.0, 0.1):
        run = Budgeted(start_monitor, monkeypatch, 100.0)
        run.monitored.monitor.config = dataclasses.replace(run.config, validate_every=1e9)
        run.config = dataclasses.replace(run.config, validate_every=every)
        run.monitored.monitor.evaluator._validation_seconds = 2.0
        run.begin_stage()
        run.dispatch(1, 1.0, growing=False)
        run.dispatch(9, 1.0, growing=False)
        runs_of.append(run.config.num_steps)
    assert runs_of[0] - runs_of[1] == pytest.approx(0.96 * 9 * 2.0 * 9, abs=2)


def test_validation_apart_from_the_budget_moves_the_deadline(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines = []
    make_render_fn = scoring.make_render_fn
    for budget_excludes_validation in (False, True):
        run = Budgeted(start_monitor, monkeypatch, 100.0)
        changed = dataclasses.replace(
            run.config, validate_every=0.1, budget_excludes_validation=budget_excludes_validation
        )
        run.config = run.monitored.monitor.config = changed

        def make_slowly(*arguments: Any, run: Budgeted = run, **named: Any) -> Any:
            run.now += 7.0
            return make_render_fn(*arguments, **named)

        monkeypatch.setattr(scoring, "make_render_fn", make_slowly)
        run.begin_stage()
        run.dispatch(30, 1.0, growing=True)
        assert run.monitored.monitor.clock.validate == 7.0
        deadlines.append(run.monitored.monitor.deadline)
    assert deadlines == [1100.0, 1107.0]


def test_on_dispatch_skips_a_validation_that_may_take_half_of_the_time_left(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 20.0)
    run.config = run.monitored.monitor.config = dataclasses.replace(run.config, validate_every=0.1)
    make_render_fn = scoring.make_render_fn

    def make_slowly(*arguments: Any, **named: Any) -> Any:
        run.now += 4.0
        return make_render_fn(*arguments, **named)

    monkeypatch.setattr(scoring, "make_render_fn", make_slowly)
    run.begin_stage()
    validated = []
    for _ in range(5):
        run.dispatch(25, 0.5, growing=True)
        validated.append(run.monitored.monitor.clock.validate)
    # 19.5, 15 and 10.5 s are left before the first three, 6 s before the fourth.
    assert validated == [4.0, 8.0, 12.0, 12.0, 12.0]


def test_replan_makes_up_for_time_between_stages_with_fewer_steps(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 25.0)
    lost = {251: 8.0, 501: 11.5}  # compilation, which no step shows
    run.begin_stage()
    run.dispatch(1, 2.0, growing=False)
    while run.step < run.config.num_steps:
        run.dispatch(min(25, run.config.num_steps - run.step), 0.1, growing=False)
        if run.step in lost:
            run.now += lost[run.step]
            run.begin_stage()
    # `dispatch` asserts that nothing was cut off.
    assert len(run.config.schedule_knots) >= 2 and 20.0 < run.now - 1000.0 <= 25.0


def test_replan_without_a_budget_changes_nothing(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Budgeted(start_monitor, monkeypatch, None)
    config = run.config
    run.begin_stage()
    for _ in range(5):
        run.dispatch(10, 10.0, growing=False)
    assert run.config is config and list(tmp_path.iterdir()) == []


def test_replan_waits_for_a_second_timed_step(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 0.1, growing=False)
    run.dispatch(1, 30.0, growing=False)
    assert run.config.schedule_knots == ()
    run.dispatch(1, 0.1, growing=False)
    assert len(run.config.schedule_knots) == 1


def test_replan_ignores_times_of_earlier_stages(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 0.2, growing=True)
    run.dispatch(2, 0.6, growing=True)
    run.begin_stage()
    run.dispatch(1, 20.0, growing=True)
    run.dispatch(2, 0.6, growing=True)
    assert run.config.schedule_knots == ()
    run.dispatch(2, 0.6, growing=True)
    assert len(run.config.schedule_knots) == 1


@pytest.mark.parametrize("budget", [3.0, 3.3])
def test_replan_leaves_one_step_when_almost_no_time_is_left(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    run = Budgeted(start_monitor, monkeypatch, budget)
    run.monitored.monitor.deadline += 1.0  # such that no dispatch comes too late
    run.begin_stage()
    for _ in range(3):
        run.dispatch(1, 1.0, growing=False)
    run.monitored.monitor.deadline -= 1.0
    assert run.config.num_steps == run.config.schedule_knots[0].step + 1


@pytest.mark.parametrize("pace", [0.03, 0.2, 1.0])
@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_replan_ends_training_just_before_the_deadline_although_the_speed_changes(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch, pace: float, slower: float
) -> None:
    """A transition after a fifth of the steps changes the speed of the remaining steps."""
    run = Budgeted(start_monitor, monkeypatch, 120.0)
    run.begin_stage()
    grown = False
    while run.step < run.config.num_steps:
        growth = schedule.step_at(run.config, 0.2)
        if not grown and run.step == growth:
            grown, pace = True, pace * slower
            run.now += 1.0
            run.begin_stage()
        end = run.config.num_steps if grown else growth
        steps = min(max(int(1.0 / pace), 1), 25, end - run.step)
        run.dispatch(steps, steps * pace, growing=not grown)
    # `dispatch` asserts that nothing was cut off.
    assert grown and len(run.config.schedule_knots) == schedule.MAX_KNOTS
    assert 0.85 * 120.0 < run.now - 1000.0 <= 120.0


def test_learning_rates_follow_the_rescaled_schedule(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 60.0)
    run.begin_stage()
    for _ in range(12):
        run.dispatch(1, 0.1, growing=False)
    run.dispatch(100, 10.0, growing=False)
    assert run.config.schedule_knots
    optimizer = run.config.optimizer
    for step, values in run.monitored.writer.values.items():
        progress = schedule.progress_at(run.config, step)
        expected = optimizer.grid_lr * optimizer.lr_final_mult**progress
        assert values["learning_rate/grid"] == pytest.approx(expected, rel=1e-4)
    assert 0.1 < schedule.progress_at(run.config, run.step) < 0.4


def test_on_stage_rejects_a_budget_that_is_over_at_the_start(
    start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 5.0)
    run.monitored.monitor.config = dataclasses.replace(run.config, budget=5.0)
    run.now += 6.0
    with pytest.raises(InputError, match="budget 5 is too short"):
        run.begin_stage()


@pytest.mark.parametrize(("waited", "validates"), [(2.0, True), (12.0, False)])
def test_on_dispatch_expects_the_first_validation_to_compile_as_long_as_a_stage(
    waited: float, validates: bool, start_monitor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(start_monitor, monkeypatch, 20.0)
    run.config = run.monitored.monitor.config = dataclasses.replace(run.config, validate_every=0.1)
    callback, stage, state = run.monitored.monitor, run.monitored.stage, run.monitored.state
    callback.on_stage(stage, state, 1, waited)
    make_render_fn, validations = scoring.make_render_fn, []

    def note(*arguments: Any, **named: Any) -> Any:
        validations.append(run.now)
        return make_render_fn(*arguments, **named)

    monkeypatch.setattr(scoring, "make_render_fn", note)
    run.dispatch(30, 1.0, growing=True)
    assert bool(validations) == validates
