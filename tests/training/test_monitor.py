"""What watches a training: signals, scalars, when to validate and to save."""

import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from scenes import SIZE, first_state, make_scene, tiny_nerf, tiny_voxels

from jaxrf.cameras import base as cams
from jaxrf.core.errors import InputError
from jaxrf.evaluation import scoring
from jaxrf.models import methods
from jaxrf.training import monitor, runs, schedule, transitions
from jaxrf.training.config import TrainConfig, VideoConfig
from jaxrf.training.logs import EventWriter
from jaxrf.training.monitor import Monitor, catch_signals
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.train import Metrics, TrainState

METRICS = Metrics(*(np.float32(x) for x in (0.02, 0.01, 0.3, 0.4, 0.05, 4096, 1.5, 1, 0.9, 1.2)))


# ---------------------------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def keep_handlers() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_nothing_else_happens(number: signal.Signals) -> None:
    with catch_signals() as caught:
        assert caught == []
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert caught == [number]


def test_a_second_signal_acts_as_it_always_does() -> None:
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    # A shell starts what it runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with catch_signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert (caught, seen) == ([signal.SIGTERM], [])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert (caught, seen) == ([signal.SIGTERM], [signal.SIGTERM])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)


def test_handlers_are_put_back_even_after_an_error() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), catch_signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


# ---------------------------------------------------------------------------------------------
# The monitor, with a writer that only notes and a manager that only counts
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

    def picture(self, tag: str, image: Any, step: int) -> None:
        assert image().dtype == np.uint8
        self.pictures.append((tag, step))

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        assert values.ndim == 1
        self.histograms.append((tag, step))

    def video(self, tag: str, frames: np.ndarray, fps: float, step: int) -> None:
        self.videos.append((tag, frames.shape, fps, step))


@dataclasses.dataclass
class Watched:
    monitor: Monitor
    writer: FakeWriter
    saved: list[tuple[int, float | None]]
    caught: list[int]
    state: TrainState
    stage: methods.Stage

    def dispatch(self, step: int, steps: int) -> bool:
        state = dataclasses.replace(self.state, step=jnp.asarray(step, jnp.int32))
        return self.monitor.on_dispatch(state, self.stage, METRICS, steps)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    saved: list[tuple[int, float | None]] = []

    def save(manager: Any, scene: Any, stage: Any, state: Any, seconds: Any, psnr: Any) -> None:
        assert seconds >= 100.0
        saved.append((int(state.step), psnr))

    def start(
        config: TrainConfig,
        val: bool = True,
        done: int = 0,
        deadline: float | None = None,
        film: Any = None,
    ) -> Watched:
        scene = make_scene()
        summary = SceneMetadata.from_scene(scene, Path("ball"))
        stage, state = first_state(config)
        writer = FakeWriter()
        caught: list[int] = []
        split = scene.splits["val"] if val else None
        watcher = Monitor(
            tmp_path, config, summary, writer, None, split, caught, done, 100.0, deadline, film=film
        )
        return Watched(watcher, writer, saved, caught, state, stage)

    monkeypatch.setattr(runs, "save", save)
    return start


def test_training_stops_with_a_checkpoint_when_its_time_is_over(watch: Any) -> None:
    config = tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9)
    early, late = (watch(config, deadline=time.time() + left) for left in (1e6, 0.0))
    assert not early.dispatch(25, 25) and early.saved == []
    assert late.dispatch(25, 25) and late.saved == [(25, None)]


def test_dropped_rays_do_not_count_for_the_speed(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    watched.dispatch(10, 10)
    per_step = watched.stage.rays * (1.0 - float(METRICS.dropped))
    assert watched.monitor.clock.rays == pytest.approx(10 * per_step)


def test_scalars_are_written_for_every_dispatch(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    assert not watched.dispatch(25, 25)
    assert not watched.dispatch(50, 25)
    assert sorted(watched.writer.values) == [25, 50]
    values = watched.writer.values[50]
    assert values["train/loss"] == pytest.approx(0.02)
    assert values["train/psnr"] == pytest.approx(20.0, abs=1e-4)
    assert values["train/grad_norm"] == pytest.approx(1.5)
    assert values["train/opacity"] == pytest.approx(0.3)
    assert values["train/dropped_rays"] == pytest.approx(0.05)
    # Decays exponentially to a tenth of 5e-3 at the last step.
    assert values["learning_rate/network"] == pytest.approx(5e-3 * math.sqrt(0.1), rel=1e-4)
    assert values["speed/rays_per_second"] > 0
    assert values["machine/memory_gib"] > 0.01
    # A NeRF has no grid.
    assert values["train/gradient_norm_network"] == pytest.approx(1.2)
    assert not {"train/gradient_norm_grid", "learning_rate/grid"} & set(values)
    assert watched.monitor.clock.rays == pytest.approx(50 * 64 * 0.95)
    assert values["speed/samples_per_second"] > 0
    assert watched.monitor.clock.samples == pytest.approx(50 * 4096.0)
    assert watched.saved == [] and watched.writer.pictures == []
    assert watched.writer.texts == [("config", 25)]


@pytest.mark.parametrize(("every", "expected"), [(0.25, [30, 50, 80]), (0.5, [50]), (0.0, [])])
def test_validation_comes_when_its_fraction_has_passed_and_never_at_the_end(
    watch: Any, every: float, expected: list[int]
) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=every, checkpoint_seconds=1e9))
    for step in range(10, 101, 10):
        watched.dispatch(step, 10)
    validated = [step for step, values in watched.writer.values.items() if "val/psnr" in values]
    assert validated == expected
    assert [v.step for v in watched.monitor.history] == expected
    assert (watched.monitor.clock.validate > 0) == bool(expected)
    # Each is saved with its figure, so that the best is known.
    assert [step for step, psnr in watched.saved if psnr is not None] == expected
    assert all(psnr == watched.writer.values[step]["val/psnr"] for step, psnr in watched.saved)
    assert watched.writer.pictures == [("val/view/r_0", step) for step in expected]
    assert {step for _, step in watched.writer.histograms} == set(expected)
    if expected:
        tags = {tag for tag, _ in watched.writer.histograms}
        assert {"val/opacity", "val/depth", "parameters/network/fine/trunk_0"} <= tags


def test_all_views_that_are_given_are_validated(watch: Any) -> None:
    config = tiny_nerf(steps=100, validate_every=0.5, checkpoint_seconds=1e9, validation_views=1)
    watched = watch(config)
    watched.dispatch(50, 50)
    white, state = np.ones(3, np.float32), watched.state
    render = scoring.make_render_fn(
        config, watched.stage, state.params, state.grid, (2.0, 6.0), white
    )
    scored = list(scoring.score_split(render, make_scene().splits["val"], white, range(2)))
    wanted = scoring.summarize(scored)
    assert wanted["per_image"][0]["psnr"] != wanted["per_image"][1]["psnr"]
    for name in ("psnr", "ssim"):
        assert watched.writer.values[50][f"val/{name}"] == pytest.approx(wanted[name], rel=1e-4)
    (entry,) = watched.monitor.history
    assert entry.psnr == pytest.approx(wanted["psnr"], abs=1e-3)


def test_validations_follow_progress_where_the_pace_changed(watch: Any) -> None:
    # Half of the way is reached at step 20 already, the rest takes 180 more.
    config = tiny_nerf(steps=40, validate_every=0.25, checkpoint_seconds=1e9)
    watched = watch(schedule.rescale_schedule(config, 20, 200))
    for step in range(10, 201, 10):
        watched.dispatch(step, 10)
    validated = [step for step, values in watched.writer.values.items() if "val/psnr" in values]
    assert validated == [10, 20, 110]


def test_validation_stands_apart_from_training(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    monkeypatch.setattr(monitor, "seconds_since_start", lambda: now - 990.0)
    score = scoring.score_split

    def score_slowly(*arguments: Any) -> Any:
        nonlocal now
        now += 7.0
        return score(*arguments)

    monkeypatch.setattr(scoring, "score_split", score_slowly)
    watched = watch(tiny_nerf(steps=100, validate_every=0.25, checkpoint_seconds=1e9))
    for step in (25, 50, 75):
        now += 2.0
        watched.dispatch(step, 25)
    clock = watched.monitor.clock
    assert clock.train == pytest.approx(6.0) and clock.validate == pytest.approx(3 * 14.0)
    assert clock.first_step == pytest.approx(12.0)
    # When what was reached is told as if nobody had looked.
    assert [entry.seconds for entry in watched.monitor.history] == pytest.approx([12.0, 14.0, 16.0])
    assert watched.writer.values[50]["speed/rays_per_second"] == pytest.approx(25 * 64 * 0.95 / 2)


def test_without_val_pictures_nothing_is_validated(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.1, checkpoint_seconds=1e9), val=False)
    watched.dispatch(50, 50)
    assert "val/psnr" not in watched.writer.values[50]


def test_what_happens_is_noted_in_words(watch: Any) -> None:
    watched = watch(tiny_voxels(steps=100, validate_every=0.5, checkpoint_seconds=1e9))
    watched.monitor.on_stage(watched.stage, watched.state, 77, 0.0)
    watched.dispatch(25, 25)
    watched.dispatch(50, 25)
    watched.monitor.on_change(tiny_voxels(steps=90), 50, "90 steps fit")
    stage, first, second, validation, change = watched.writer.notes
    assert re.fullmatch(r"step 0: \d+ voxels of .*, 1 a pixel, from 77 pixels", stage)
    assert re.fullmatch(r"step 25 of 100: loss 0\.02000, PSNR 20\.00 dB, [\d.]+k rays/s", first)
    assert second.startswith("step 50 of 100: ")
    assert re.fullmatch(r"step 50: validation PSNR [\d.]+ dB on 2 views", validation)
    assert change == "step 50: 90 steps fit"


# ---------------------------------------------------------------------------------------------
# Videos on the way
# ---------------------------------------------------------------------------------------------


def make_film(frames: int) -> Any:
    def film(run: runs.Run) -> cams.Cameras:
        assert run.stage is not None and run.scene.near == 2.0
        return cams.index_cameras(make_scene().splits["val"].cameras, np.arange(frames))

    return film


@pytest.mark.parametrize(("every", "expected"), [(0.25, [30, 50, 80]), (0.0, [])])
def test_videos_come_when_their_fraction_has_passed_and_never_at_the_end(
    watch: Any, every: float, expected: list[int]
) -> None:
    config = tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9)
    config = dataclasses.replace(config, video=VideoConfig(frames=8, size=9, every=every))
    watched = watch(config, film=make_film(2))
    for step in range(10, 101, 10):
        watched.dispatch(step, 10)
    shape = (2, SIZE, SIZE, 3)
    assert watched.writer.videos == [("video/orbit", shape, 6.0, step) for step in expected]
    # No more than a picture is it part of training.
    assert (watched.monitor.clock.validate > 0) == bool(expected)
    assert len([note for note in watched.writer.notes if "video" in note]) == len(expected)
    assert watched.saved == []


def test_a_video_that_would_take_half_of_the_time_left_is_left_out(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(tiny_nerf(steps=100, checkpoint_seconds=1e9), film=make_film(1))
    watched.monitor.config = dataclasses.replace(
        watched.monitor.config, validate_every=0.0, video=VideoConfig(every=0.1)
    )
    watched.monitor.deadline = time.time() + 100.0
    for step, slowest in ((10, 0.0), (20, 49.0), (30, 51.0)):
        watched.monitor._slowest_video = slowest
        watched.dispatch(step, 10)
    assert [step for *_, step in watched.writer.videos] == [10, 20]


def test_checkpoints_come_after_their_seconds(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=30.0))
    for step, seconds in ((10, 10), (20, 29), (30, 31), (40, 50), (50, 62), (60, 63)):
        now = 1000.0 + seconds
        assert not watched.dispatch(step, 10)
    assert watched.saved == [(30, None), (50, None)]


def test_after_a_signal_training_is_saved_and_stopped_without_validation(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.1, checkpoint_seconds=1e9))
    watched.caught.append(signal.SIGTERM)
    assert watched.dispatch(50, 50)
    assert watched.saved == [(50, None)]
    watched.monitor.save(watched.stage, dataclasses.replace(watched.state, step=jnp.asarray(50)))
    assert watched.saved == [(50, None)]  # a step is saved once


def test_time_spent_is_split_into_compiling_and_training(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    now += 5.0
    watched.monitor.on_stage(watched.stage, watched.state, 100, 4.0)
    now += 2.0
    watched.dispatch(10, 10)
    assert watched.monitor.clock.compile == pytest.approx(4.0)
    assert watched.monitor.clock.train == pytest.approx(3.0)
    assert watched.monitor.seconds == pytest.approx(107.0)
    assert watched.writer.values[10]["speed/rays_per_second"] == pytest.approx(10 * 64 * 0.95 / 2.0)


# ---------------------------------------------------------------------------------------------
# The budget
# ---------------------------------------------------------------------------------------------


class Budgeted:
    """A monitor on a clock that the test moves, told of dispatches and asked to plan anew."""

    def __init__(self, watch: Any, monkeypatch: pytest.MonkeyPatch, budget: float | None) -> None:
        self.now = 1000.0
        monkeypatch.setattr(monitor.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(monitor.time, "time", lambda: self.now)
        self.config = tiny_voxels(
            steps=200, validate_every=0.0, checkpoint_seconds=1e9, budget=budget
        )
        deadline = None if budget is None else self.now + budget
        self.watched = watch(self.config, deadline=deadline)
        self.step = 0

    def begin_stage(self) -> None:
        self.watched.monitor.on_stage(self.watched.stage, self.watched.state, 1, 0.0)

    def dispatch(self, steps: int, seconds: float, growing: bool) -> None:
        self.now, self.step = self.now + seconds, self.step + steps
        assert not self.watched.dispatch(self.step, steps)
        self.config = self.watched.monitor.replan(self.config, self.step, growing)


def test_compilation_is_waited_for_until_the_deadline_or_a_signal(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(watch, monkeypatch, 100.0)
    monitor_of = run.watched.monitor
    assert monitor_of.should_wait_for_compile()
    run.watched.caught.append(signal.SIGINT)
    assert not monitor_of.should_wait_for_compile()
    run.watched.caught.clear()
    run.now += 101.0
    with pytest.raises(InputError, match=r"--budget 100 is too short here: starting took"):
        monitor_of.should_wait_for_compile()
    monitor_of._done = 1
    assert not monitor_of.should_wait_for_compile()
    assert Budgeted(watch, monkeypatch, None).watched.monitor.should_wait_for_compile()


def test_steps_are_fitted_to_the_budget_early_and_again_after_the_last_growth(
    watch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Budgeted(watch, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 5.0, growing=True)  # the first dispatch warms up and is not counted
    run.dispatch(4, 0.4, growing=True)
    assert run.config.knots == ()
    run.dispatch(4, 0.4, growing=True)
    growths = len(transitions.plan_transitions(tiny_voxels(steps=200)))
    left = 0.96 * (100.0 - 5.8 - 1.5 * growths) - 0.3
    assert run.config.steps == 9 + int(left / 0.1) and len(run.config.knots) == 1
    assert runs.read_config(tmp_path) == run.config

    run.dispatch(30, 3.0, growing=True)
    assert len(run.config.knots) == 1
    run.begin_stage()
    run.dispatch(1, 1.0, growing=False)
    run.dispatch(10, 1.9, growing=False)
    assert len(run.config.knots) == 1
    run.dispatch(10, 2.1, growing=False)
    left = 0.96 * (1100.0 - run.now) - 0.3
    assert run.config.steps == 60 + int(left / 0.2) and len(run.config.knots) == 2
    assert runs.read_config(tmp_path) == run.config
    # From then on a step takes half as long, which is noticed half-way and at three quarters.
    fitted_at = []
    while run.step + 10 < run.config.steps:
        fitted = run.config
        run.dispatch(10, 1.0, growing=False)
        if run.config is not fitted:
            fitted_at.append(schedule.progress_at(fitted, run.step))
    second, third, fourth = (knot.progress for knot in run.config.knots[1:])
    assert fitted_at == [third, fourth]
    assert third == pytest.approx((1.0 + second) / 2, abs=0.03)
    assert fourth == pytest.approx((1.0 + third) / 2, abs=0.03)
    assert 0.0 < 1100.0 - run.now < 6.0


def test_steps_are_fitted_again_while_growing_if_half_of_the_time_is_over(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(watch, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 1.0, growing=True)
    run.dispatch(10, 1.0, growing=True)
    assert len(run.config.knots) == 1
    # The machine is much slower than it seemed: this growth would never come.
    while len(run.config.knots) == 1:
        run.dispatch(1, 3.0, growing=True)
    assert 1050.0 <= run.now <= 1055.0
    assert run.config.steps - run.step < 1100.0 - run.now


def test_validations_to_come_take_their_share_of_the_budget(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_of = []
    for every in (0.0, 0.1):
        run = Budgeted(watch, monkeypatch, 100.0)
        run.watched.monitor.config = dataclasses.replace(run.config, validate_every=1e9)
        run.config = dataclasses.replace(run.config, validate_every=every)
        run.watched.monitor._validation_seconds = 2.0
        run.begin_stage()
        run.dispatch(1, 1.0, growing=False)
        run.dispatch(9, 1.0, growing=False)
        runs_of.append(run.config.steps)
    assert runs_of[0] - runs_of[1] == pytest.approx(0.96 * 9 * 2.0 * 9, abs=2)


def test_validations_that_do_not_count_move_the_deadline(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines = []
    really = scoring.make_render_fn
    for apart in (False, True):
        run = Budgeted(watch, monkeypatch, 100.0)
        changed = dataclasses.replace(run.config, validate_every=0.1, validate_apart=apart)
        run.config = run.watched.monitor.config = changed

        def make_slowly(*arguments: Any, run: Budgeted = run, **named: Any) -> Any:
            run.now += 7.0
            return really(*arguments, **named)

        monkeypatch.setattr(scoring, "make_render_fn", make_slowly)
        run.begin_stage()
        run.dispatch(30, 1.0, growing=True)
        assert run.watched.monitor.clock.validate == 7.0
        deadlines.append(run.watched.monitor.deadline)
    assert deadlines == [1100.0, 1107.0]


def test_a_validation_that_would_take_half_of_the_time_left_is_left_out(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(watch, monkeypatch, 20.0)
    run.config = run.watched.monitor.config = dataclasses.replace(run.config, validate_every=0.1)
    really = scoring.make_render_fn

    def make_slowly(*arguments: Any, **named: Any) -> Any:
        run.now += 4.0
        return really(*arguments, **named)

    monkeypatch.setattr(scoring, "make_render_fn", make_slowly)
    run.begin_stage()
    validated = []
    for _ in range(5):
        run.dispatch(25, 0.5, growing=True)
        validated.append(run.watched.monitor.clock.validate)
    # 19.5, 15 and 10.5 s are left before the first three, 6 s before the fourth.
    assert validated == [4.0, 8.0, 12.0, 12.0, 12.0]


def test_time_lost_between_stages_is_made_good_by_fewer_steps(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(watch, monkeypatch, 25.0)
    lost = {251: 8.0, 501: 11.5}  # compilation, of which no step tells
    run.begin_stage()
    run.dispatch(1, 2.0, growing=False)
    while run.step < run.config.steps:
        run.dispatch(min(25, run.config.steps - run.step), 0.1, growing=False)
        if run.step in lost:
            run.now += lost[run.step]
            run.begin_stage()
    # `dispatch` asserts that nothing was cut off.
    assert len(run.config.knots) >= 2 and 20.0 < run.now - 1000.0 <= 25.0


def test_without_a_budget_nothing_is_planned_anew(
    watch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Budgeted(watch, monkeypatch, None)
    config = run.config
    run.begin_stage()
    for _ in range(5):
        run.dispatch(10, 10.0, growing=False)
    assert run.config is config and list(tmp_path.iterdir()) == []


def test_one_slow_step_is_no_pace(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Budgeted(watch, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 0.1, growing=False)
    run.dispatch(1, 30.0, growing=False)
    assert run.config.knots == ()
    run.dispatch(1, 0.1, growing=False)
    assert len(run.config.knots) == 1


def test_what_was_timed_of_one_stage_does_not_count_in_the_next(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(watch, monkeypatch, 100.0)
    run.begin_stage()
    run.dispatch(1, 0.2, growing=True)
    run.dispatch(2, 0.6, growing=True)
    run.begin_stage()
    run.dispatch(1, 20.0, growing=True)
    run.dispatch(2, 0.6, growing=True)
    assert run.config.knots == ()
    run.dispatch(2, 0.6, growing=True)
    assert len(run.config.knots) == 1


@pytest.mark.parametrize("budget", [3.0, 3.3])
def test_when_the_time_is_as_good_as_over_one_more_step_ends_it(
    watch: Any, monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    run = Budgeted(watch, monkeypatch, budget)
    run.watched.monitor.deadline += 1.0  # such that no dispatch comes too late
    run.begin_stage()
    for _ in range(3):
        run.dispatch(1, 1.0, growing=False)
    run.watched.monitor.deadline -= 1.0
    assert run.config.steps == run.config.knots[0].step + 1


@pytest.mark.parametrize("pace", [0.03, 0.2, 1.0])
@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_a_training_ends_just_before_its_deadline_although_its_pace_changes(
    watch: Any, monkeypatch: pytest.MonkeyPatch, pace: float, slower: float
) -> None:
    """A growth after a fifth of the way changes the pace; what is left is fitted to it."""
    run = Budgeted(watch, monkeypatch, 120.0)
    run.begin_stage()
    grown = False
    while run.step < run.config.steps:
        growth = schedule.step_at(run.config, 0.2)
        if not grown and run.step == growth:
            grown, pace = True, pace * slower
            run.now += 1.0
            run.begin_stage()
        end = run.config.steps if grown else growth
        steps = min(max(int(1.0 / pace), 1), 25, end - run.step)
        run.dispatch(steps, steps * pace, growing=not grown)
    # `dispatch` asserts that nothing was cut off.
    assert grown and len(run.config.knots) == schedule.MOST_KNOTS
    assert 0.85 * 120.0 < run.now - 1000.0 <= 120.0


def test_rates_follow_the_new_plan(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Budgeted(watch, monkeypatch, 60.0)
    run.begin_stage()
    for _ in range(12):
        run.dispatch(1, 0.1, growing=False)
    run.dispatch(100, 10.0, growing=False)
    assert run.config.knots
    optimizer = run.config.optimizer
    for step, values in run.watched.writer.values.items():
        done = schedule.progress_at(run.config, step)
        wanted = optimizer.grid_lr * optimizer.lr_final_mult**done
        assert values["learning_rate/grid"] == pytest.approx(wanted, rel=1e-4)
    assert 0.1 < schedule.progress_at(run.config, run.step) < 0.4


def test_a_budget_that_is_over_at_the_start_is_an_input_error(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Budgeted(watch, monkeypatch, 5.0)
    run.watched.monitor.config = dataclasses.replace(run.config, budget=5.0)
    run.now += 6.0
    with pytest.raises(InputError, match="--budget 5 is too short"):
        run.begin_stage()


def test_seconds_since_start_are_those_of_this_process() -> None:
    code = (
        "import time; time.sleep(0.7)\n"
        "from jaxrf.monitor import seconds_since_start as s\n"
        "a = s(); time.sleep(0.5); print(a, s() - a)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - started
    first, slept = (float(x) for x in done.stdout.split())
    assert 0.7 < first < elapsed and slept == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("text", ["", "no number", "1e9 3", "1 (a b) c) " + "10000000 " * 30])
def test_files_that_tell_another_time_are_not_believed(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    created = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert timing.seconds_since_start() == pytest.approx(time.time() - created, abs=0.5)
