"""The callback of a training from the command line: logs, validation, videos and checkpoints."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrf.cameras.base import Cameras
from jaxrf.core.errors import InputError
from jaxrf.core.machine import Machine
from jaxrf.core.progress import ProgressBar
from jaxrf.data.scene import Split
from jaxrf.evaluation import images, scoring
from jaxrf.evaluation.interactive import InteractiveRenderer, make_interactive_renderer
from jaxrf.models.base import StageSpec
from jaxrf.parallel import devices, processes
from jaxrf.training import budget, optim, runs, scene_metadata, schedule, summaries, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.config_json import to_json
from jaxrf.training.live_viewer import VIEWED_DISPATCH_SECONDS, LiveViewer, wait_for_viewer
from jaxrf.training.logs import EventWriter
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.schedule import make_train_schedule
from jaxrf.training.state import Metrics, TrainState, background_color
from jaxrf.training.timing import StepTimer, TrainClock, seconds_since_start

# Frames per second of videos of the training. They have a quarter of the frames of the final video.
VIDEO_FPS = 6.0


# Seconds that the state needs to be saved while a compilation that is not waited for goes on.
SAVE_SECONDS = 2.5


class Validation(NamedTuple):
    """Mean PSNR of the validation views after a number of steps and seconds.

    Seconds count from the start of the process, without those of earlier validations.
    """

    step: int
    seconds: float
    psnr: float


class TrainMonitor:
    """The callback of `loop.fit` that logs, validates, saves and keeps to the time budget.

    Attributes:
      config: the configuration, as fitted to the budget.
      clock: seconds of the phases of this process's training.
      seconds_before: training time before the run was resumed.
      deadline: `time.time()` at which training has to end, if any.
      val_history: the validations so far.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        scene: SceneMetadata,
        events: EventWriter,
        manager: Any,
        val: Split | None,
        caught_signals: list[int],
        start_step: int,
        seconds_before: float,
        deadline: float | None = None,
        mesh: Mesh | None = None,
        video_cameras_fn: Callable[[Run], Cameras] | None = None,
        viewer: LiveViewer | None = None,
    ) -> None:
        """Begins to measure time.

        Args:
          folder, config: of the run.
          scene: metadata that checkpoints store.
          events: where scalars, images and text are logged.
          manager: of the run's checkpoints.
          val: the validation views, if any.
          caught_signals: training stops once this list is not empty.
          start_step: steps done before, by a resumed run.
          seconds_before: training time before the run was resumed.
          deadline: `time.time()` at which training has to end, if any.
          mesh: the devices that train and render.
          video_cameras_fn: makes the cameras of a video's frames; without it there are no videos.
          viewer: of the training in progress, if any.
        """
        self.mesh, self.video_cameras_fn, self.viewer = mesh, video_cameras_fn, viewer
        self.folder, self.config, self.scene = folder, config, scene
        self.events, self.manager = events, manager
        self.val, self.caught_signals = val, caught_signals
        self.deadline = deadline
        self.clock = TrainClock()
        self.seconds_before = seconds_before
        self._schedules = optim.make_lr_schedules(config.optimizer, make_train_schedule(config))
        self._bar = ProgressBar(
            config.num_steps,
            "train",
            "step",
            initial=start_step,
            disable=not processes.is_main_process(),
        )
        self._step = start_step
        self._last_time = time.perf_counter()
        self._timer = StepTimer()
        self._half_time = 0.0
        self._validation_seconds = self._slowest_validation = 0.0
        self._video_seconds = self._slowest_video = 0.0
        self._slowest_compile = 0.0
        self._machine = Machine()
        self._param_groups: frozenset[str] = frozenset()
        self.val_history: list[Validation] = []
        self._saved_at = time.perf_counter()
        self._saved_step: int | None = None
        self._val_psnr: float | None = None

    @property
    def seconds(self) -> float:
        """Training time, including that before the run was resumed."""
        return self.seconds_before + self.clock.train + self.clock.compile

    def should_wait_for_compile(self) -> bool:
        """Whether no signal was caught and the deadline has not passed."""
        late = self.deadline is not None and time.time() > self.deadline - SAVE_SECONDS
        self._check_started_in_time(late)
        return not late and not self.caught_signals

    def _check_started_in_time(self, late: bool) -> None:
        if late and not self._step:
            raise InputError(
                f"--budget {self.config.budget:g} is too short here: starting took "
                f"{seconds_since_start():.1f} s; give more seconds."
            )

    def on_stage(self, stage: StageSpec, state: TrainState, pixels: int, seconds: float) -> None:
        """Counts the seconds of compilation and logs a description of the stage."""
        late = self.deadline is not None and time.time() > self.deadline
        self._check_started_in_time(processes.broadcast_from_main(late))
        now = time.perf_counter()
        self._timer = StepTimer()
        self.clock.compile += seconds
        self._slowest_compile = max(self._slowest_compile, seconds)
        self.clock.train += now - self._last_time - seconds
        self._last_time = now
        grid = self.config.model.describe_grid(stage, state.grid)
        if grid:
            rays = f"{stage.num_rays} rays a step, {stage.supersample**2} a pixel"
            rays = f"{rays}, from {pixels} pixels"
            self._log_line(f"step {self._step}: {grid}; {rays}")

    def on_dispatch(
        self, state: TrainState, stage: StageSpec, metrics: Metrics, steps: int
    ) -> bool:
        """Logs scalars; validates, renders a video and saves if it is time.

        Returns:
          Whether to stop, because of a signal or the deadline.
        """
        now = time.perf_counter()
        step = int(state.step)
        elapsed = now - self._last_time
        self._log_dispatch(state, stage, metrics, steps, elapsed)
        late = self.deadline is not None and time.time() + elapsed > self.deadline
        stop = processes.allreduce_max(len(self.caught_signals)) > 0 or late
        validate = not stop and self._is_validation_due(step, steps)
        video = not stop and self._is_video_due(step, steps)
        save = stop or validate or now - self._saved_at > self.config.checkpoint_seconds
        stop, validate, video, save = processes.broadcast_from_main((stop, validate, video, save))
        if validate:
            self._validate(stage, state, step)
        if video:
            self._write_video_event(stage, state, step)
        if save:
            self.save(stage, state)
        if self.viewer is not None and not stop:
            self._sync_viewer(self.viewer, stage, state, f"Step {step} of {self.config.num_steps}")
        self._last_time = time.perf_counter()
        return stop

    def _log_dispatch(
        self, state: TrainState, stage: StageSpec, metrics: Metrics, steps: int, elapsed: float
    ) -> None:
        """Updates the clock and the progress bar, and logs the scalars of a dispatch."""
        step = int(state.step)
        self.clock.train += elapsed
        self._timer.update(steps, elapsed)
        rays = steps * stage.num_rays * (1.0 - float(metrics.overflowed))
        self.clock.rays += rays
        self.clock.samples += steps * float(metrics.num_samples)
        if not self.clock.first_step:
            self.clock.first_step = seconds_since_start()
            self._param_groups = frozenset(
                jax.tree.leaves(self.config.model.param_groups(stage.field, state.params))
            )
            self.events.text("config", to_json(self.config), step)
        rate = rays / elapsed
        if not metrics.finite_fraction:
            # The updates of all steps were skipped, so there is no loss to report.
            metrics = metrics._replace(loss=jnp.asarray(np.nan), mse=jnp.asarray(np.nan))
        psnr = (
            -10.0 * math.log10(max(float(metrics.mse), 1e-12))
            if metrics.finite_fraction
            else math.nan
        )
        self._bar.update(steps)
        self._step = step
        summary = (
            f"loss {float(metrics.loss):.5f}, training PSNR {psnr:.2f} dB, {rate / 1e3:.1f}k rays/s"
        )
        self._bar.set_postfix(summary)
        self.events.note(f"step {step} of {self.config.num_steps}: {summary}")
        scalars = summaries.dispatch_scalars(metrics, steps, elapsed, self._param_groups)
        rates = {f"learning_rate/{g}": float(self._schedules[g](step)) for g in self._param_groups}
        scalars |= {"train/psnr": psnr, "speed/rays_per_second": rate, **rates}
        self.events.scalars(scalars, step, self._measure_machine)

    def dispatch_seconds(self) -> float:
        """Target duration of a dispatch, short while a viewer's rendering waits for the device."""
        viewed = self.viewer is not None and self.viewer.has_clients()
        return VIEWED_DISPATCH_SECONDS if viewed else 1.0

    def _sync_viewer(
        self, viewer: LiveViewer, stage: StageSpec, state: TrainState, text: str
    ) -> None:
        """Offers the state to the viewer; waits while it is paused or its camera moves."""
        if self.val_history:
            text += f", validation PSNR {self.val_history[-1].psnr:.2f} dB"
        viewer.follow(lambda: self._make_interactive_renderer(stage, state), text)
        wait_for_viewer(viewer, self.caught_signals)

    def _make_interactive_renderer(
        self, stage: StageSpec, state: TrainState
    ) -> InteractiveRenderer:
        # Copies, as the next step donates the arrays of the state.
        arrays = devices.to_host(self.mesh, (state.eval_params, state.grid))
        params, grid = jax.tree.map(lambda x: jnp.array(x, copy=True), arrays)
        return make_interactive_renderer(
            self.config,
            stage,
            params,
            grid,
            scene_metadata.near_far_fn(self.scene, grid),
            background_color(self.config),
            crop_to_occupied=False,
        )

    def _measure_machine(self) -> dict[str, float]:
        return {f"machine/{name}": value for name, value in self._machine.read().items()}

    def replan(self, config: TrainConfig, step: int, growing: bool) -> TrainConfig:
        """Fits the number of steps to the budget if there is one and if it is time (`budget`)."""
        if self.deadline is None:
            return config
        fit = processes.broadcast_from_main(self._fit_num_steps(config, step, growing))
        if fit is None:
            return config
        num_steps, reason = fit
        fitted = schedule.rescale_schedule(config, step, num_steps)
        self._timer = StepTimer(warm=True)
        self.on_config_change(fitted, step, reason)
        return fitted

    def _fit_num_steps(
        self, config: TrainConfig, step: int, growing: bool
    ) -> tuple[int, str] | None:
        """The number of steps that fits the budget and the reason for it, if it is time to fit."""
        assert self.deadline is not None
        seconds_left = self.deadline - time.time()
        past_half_time = time.time() >= self._half_time
        if not budget.should_fit_steps(
            config, step, self._timer, seconds_left, growing, past_half_time
        ):
            return None
        self._half_time = time.time() + 0.5 * seconds_left
        num_transitions = 0
        if growing:
            coming = (t.step > step for t in transitions.plan_transitions(config))
            num_transitions = sum(coming)
        num_steps, seconds_per_step = budget.fit_num_steps(
            step,
            self._timer,
            seconds_left,
            growing,
            num_transitions,
            is_first=not config.schedule_knots,
            evaluation_seconds=self._remaining_evaluation_seconds(config, step),
        )
        milliseconds = seconds_per_step * 1e3
        return num_steps, f"a step takes {milliseconds:.0f} ms, {num_steps} steps fit the budget"

    def _remaining_evaluation_seconds(self, config: TrainConfig, step: int) -> float:
        """Seconds of validations and videos still to come that count towards the budget."""
        if config.validate_apart:
            return 0.0
        seconds = 0.0
        if self.val is not None:
            duration = self._validation_seconds or budget.DEFAULT_EVALUATION_SECONDS
            seconds += budget.count_remaining(config, step, config.validate_every) * duration
        if self.video_cameras_fn is not None:
            duration = self._video_seconds or budget.DEFAULT_EVALUATION_SECONDS
            seconds += budget.count_remaining(config, step, config.video.every) * duration
        return seconds

    def on_config_change(self, config: TrainConfig, step: int, reason: str) -> None:
        """Stores a configuration that changed during training and logs the reason."""
        self.config = config
        self._schedules = optim.make_lr_schedules(config.optimizer, make_train_schedule(config))
        if processes.is_main_process():
            runs.write_config(self.folder, config)
        self.events.text("config", to_json(config), step)
        self._bar.total = config.num_steps
        self._log_line(f"step {step}: {reason}")

    def _log_line(self, line: str) -> None:
        """Prints a line above the progress bar and writes it to train.log."""
        if processes.is_main_process():
            self._bar.write(f"  {line}")
        self.events.note(line)

    def save(self, stage: StageSpec, state: TrainState) -> None:
        """Saves a checkpoint unless there is one of this step."""
        step = int(state.step)
        if step == self._saved_step:
            return
        state = devices.to_host(self.mesh, state)
        runs.save(self.manager, self.scene, stage, state, self.seconds, self._val_psnr)
        self._saved_step, self._val_psnr = step, None
        self._saved_at = time.perf_counter()

    def close(self) -> None:
        """Waits until the last checkpoint is on disk."""
        self._bar.close()
        self.manager.wait_until_finished()

    def _is_validation_due(self, step: int, steps: int) -> bool:
        interval = self.config.validate_every
        is_due = self._is_evaluation_due(step, steps, interval, self._slowest_validation)
        return self.val is not None and is_due

    def _is_video_due(self, step: int, steps: int) -> bool:
        interval = self.config.video.every
        is_due = self._is_evaluation_due(step, steps, interval, self._slowest_video)
        return self.video_cameras_fn is not None and is_due

    def _is_evaluation_due(self, step: int, steps: int, interval: float, slowest: float) -> bool:
        """Whether the last steps passed a multiple of the interval and the budget allows for it.

        An evaluation that may take half of the time left is skipped in favor of training. The first
        one compiles a program, which takes about as long as that of a stage.
        """
        deadline = None if self.config.validate_apart else self.deadline
        slowest = slowest or self._slowest_compile
        if deadline is not None and 2.0 * slowest > deadline - time.time():
            return False
        return budget.passed_multiple(self.config, step, steps, interval)

    def _make_render_fn(self, stage: StageSpec, state: TrainState) -> scoring.RenderFn:
        return scoring.make_render_fn(
            self.config,
            stage,
            state.eval_params,
            state.grid,
            (self.scene.near, self.scene.far),
            background_color(self.config),
            crop_to_occupied=False,
            mesh=self.mesh,
        )

    def _validate(self, stage: StageSpec, state: TrainState, step: int) -> None:
        """Renders and scores the validation views and logs the results."""
        assert self.val is not None
        validation_started = time.perf_counter()
        background = background_color(self.config)
        render = self._make_render_fn(stage, state)
        started = time.perf_counter()
        views: list[scoring.ViewMetrics] = []
        for index in range(len(self.val)):
            views += scoring.score_split(render, self.val, background, [index])
            if index == 0 and self._validation_seconds == 0.0:
                # The first view of a training is compiled for, which later ones need not be.
                started = time.perf_counter()
        self._validation_seconds = max(time.perf_counter() - started, 1e-3)
        summary = scoring.summarize(views)
        self._val_psnr = summary["psnr"]
        elapsed = time.perf_counter() - validation_started
        seconds = seconds_since_start() - self.clock.validate - elapsed
        self.val_history.append(Validation(step, round(seconds, 2), round(self._val_psnr, 3)))
        self.events.scalars({"val/psnr": summary["psnr"], "val/ssim": summary["ssim"]}, step)
        summaries.write_view(self.events, "val", views[0], step)
        summaries.write_rays(self.events, "val", views[0], step)
        self._write_parameters(stage, state, step)
        self._log_line(
            f"step {step}: validation PSNR {summary['psnr']:.2f} dB on {len(views)} views"
        )
        elapsed = self._count_as_evaluation(validation_started)
        self._slowest_validation = max(self._slowest_validation, elapsed)

    def _write_video_event(self, stage: StageSpec, state: TrainState, step: int) -> None:
        """Renders a small video for TensorBoard."""
        assert self.video_cameras_fn is not None
        started = time.perf_counter()
        run = Run(self.folder, self.config, self.scene, stage, state, self.seconds)
        cameras = self.video_cameras_fn(run)
        render = self._make_render_fn(stage, state)
        frames = [images.to_uint8(render(cameras, index).rgb) for index in range(len(cameras))]
        self.events.video("video/orbit", np.stack(frames), VIDEO_FPS, step)
        elapsed = self._count_as_evaluation(started)
        self._log_line(f"step {step}: rendered a video of {len(frames)} frames in {elapsed:.1f} s")
        self._video_seconds, self._slowest_video = elapsed, max(self._slowest_video, elapsed)

    def _write_parameters(self, stage: StageSpec, state: TrainState, step: int) -> None:
        if processes.is_main_process():
            params, grid = state.params, state.grid
            if self.mesh is not None:
                params, grid = devices.to_local(self.mesh, (params, grid))
            groups = self.config.model.param_groups(stage.field, params)
            summaries.write_parameters(self.events, params, groups, grid, step)

    def _count_as_evaluation(self, started: float) -> float:
        """Counts the seconds since `started` as evaluation, not as training; returns them.

        With `config.validate_apart` the deadline moves by them.
        """
        elapsed = time.perf_counter() - started
        self.clock.validate += elapsed
        if self.deadline is not None and self.config.validate_apart:
            self.deadline += elapsed
        return elapsed
