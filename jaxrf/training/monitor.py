"""The callback of a training from the command line: logs, validation, videos and checkpoints."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrf.core.errors import InputError
from jaxrf.core.machine import Machine
from jaxrf.core.progress import ProgressBar
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.evaluation.interactive import InteractiveRenderer, make_interactive_renderer
from jaxrf.models.base import StageSpec
from jaxrf.parallel import devices, processes
from jaxrf.training import budget, optim, runs, scene_metadata, schedule, summaries, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.config_json import to_json
from jaxrf.training.evaluator import Evaluator
from jaxrf.training.live_viewer import VIEWED_DISPATCH_SECONDS, LiveViewer, wait_for_viewer
from jaxrf.training.logs import EventWriter
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.training.schedule import make_train_schedule
from jaxrf.training.state import Metrics, TrainState, background_color
from jaxrf.training.timing import StepTimer, TrainClock, seconds_since_start

# Seconds that the state needs to be saved while a compilation that is not waited for goes on.
SAVE_SECONDS = 2.5


@dataclasses.dataclass(frozen=True)
class RunOutput:
    """Where a training is written to.

    Attributes:
      folder: of the run.
      scene: metadata that checkpoints store.
      events: where scalars, images and text are logged.
      manager: of the run's checkpoints.
    """

    folder: Path
    scene: SceneMetadata
    events: EventWriter
    manager: Any


class Resumption(NamedTuple):
    """Steps and training seconds before a run was resumed; none of a new one."""

    step: int = 0
    seconds: float = 0.0


class TrainMonitor:
    """The callback of `loop.fit` that logs, validates, saves and keeps to the time budget.

    Attributes:
      config: the configuration, as fitted to the budget.
      evaluator: renders validation views and videos.
      clock: seconds of the phases of this process's training.
      seconds_before: training time before the run was resumed.
      deadline: `time.time()` at which training has to end, if any.
    """

    def __init__(
        self,
        config: TrainConfig,
        output: RunOutput,
        evaluator: Evaluator,
        caught_signals: list[int],
        resumption: Resumption,
        deadline: float | None = None,
        viewer: LiveViewer | None = None,
    ) -> None:
        """Begins to measure time.

        Args:
          config: of the run.
          output: where the run is written to.
          evaluator: renders validation views and videos.
          caught_signals: training stops once this list is not empty.
          resumption: what was done before, by a resumed run.
          deadline: `time.time()` at which training has to end, if any.
          viewer: of the training in progress, if any.
        """
        self.config, self.output, self.evaluator = config, output, evaluator
        self.events, self.mesh = output.events, evaluator.mesh
        self.caught_signals, self.viewer = caught_signals, viewer
        self.deadline = deadline
        self.clock = TrainClock()
        self.seconds_before = resumption.seconds
        self._schedules = optim.make_lr_schedules(config.optimizer, make_train_schedule(config))
        self._bar = ProgressBar(
            config.num_steps,
            "train",
            "step",
            initial=resumption.step,
            disable=not processes.is_main_process(),
        )
        self._step = resumption.step
        self._last_time = time.perf_counter()
        self._timer = StepTimer()
        self._half_time = 0.0
        self._slowest_compile = 0.0
        self._machine = Machine()
        self._param_groups: frozenset[str] = frozenset()
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

    def on_note(self, sentence: str) -> None:
        """Prints and logs the sentence."""
        self._log_line(sentence)

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
        due = (self.config, step, steps, self._seconds_to_evaluate(), self._slowest_compile)
        validate = not stop and self.evaluator.is_validation_due(*due)
        video = not stop and self.evaluator.is_video_due(*due)
        save = stop or validate or now - self._saved_at > self.config.checkpoint_seconds
        stop, validate, video, save = processes.broadcast_from_main((stop, validate, video, save))
        if validate:
            self._evaluate(self.evaluator.validate, stage, state)
            self._val_psnr = self.evaluator.psnr
        if video:
            self._evaluate(self.evaluator.render_video, stage, state)
        if save:
            self.save(stage, state)
        if self.viewer is not None and not stop:
            self._sync_viewer(self.viewer, stage, state, f"Step {step} of {self.config.num_steps}")
        self._last_time = time.perf_counter()
        return stop

    def _seconds_to_evaluate(self) -> float:
        """Seconds until the deadline of validations and videos; infinite without one."""
        if self.deadline is None or self.config.budget_excludes_validation:
            return math.inf
        return self.deadline - time.time()

    def _evaluate(
        self, evaluate: Callable[[Run, TrainClock], str], stage: StageSpec, state: TrainState
    ) -> None:
        """Validates or renders a video; the deadline moves if these seconds do not count for it."""
        started = time.perf_counter()
        run = Run(self.output.folder, self.config, self.output.scene, stage, state, self.seconds)
        self._log_line(evaluate(run, self.clock))
        if self.deadline is not None and self.config.budget_excludes_validation:
            self.deadline += time.perf_counter() - started

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
        if self.evaluator.val_history:
            text += f", validation PSNR {self.evaluator.val_history[-1].psnr:.2f} dB"
        viewer.follow(lambda: self._make_interactive_renderer(stage, state), text)
        wait_for_viewer(viewer, self.caught_signals)

    def _make_interactive_renderer(
        self, stage: StageSpec, state: TrainState
    ) -> InteractiveRenderer:
        # Copies, as the next step donates the arrays of the state.
        arrays = devices.to_host(self.mesh, (state.eval_params, state.grid))
        params, grid = jax.tree.map(lambda x: jnp.array(x, copy=True), arrays)
        return make_interactive_renderer(
            TrainedField(
                self.config,
                stage,
                params,
                grid,
                scene_metadata.near_far_fn(self.output.scene, grid),
                background_color(self.config),
            ),
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
            evaluation_seconds=0.0
            if config.budget_excludes_validation
            else self.evaluator.remaining_seconds(config, step),
        )
        milliseconds = seconds_per_step * 1e3
        return num_steps, f"a step takes {milliseconds:.0f} ms, {num_steps} steps fit the budget"

    def on_config_change(self, config: TrainConfig, step: int, reason: str) -> None:
        """Stores a configuration that changed during training and logs the reason."""
        self.config = config
        self._schedules = optim.make_lr_schedules(config.optimizer, make_train_schedule(config))
        if processes.is_main_process():
            runs.write_config(self.output.folder, config)
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
        runs.save(
            self.output.manager, self.output.scene, stage, state, self.seconds, self._val_psnr
        )
        self._saved_step, self._val_psnr = step, None
        self._saved_at = time.perf_counter()

    def close(self) -> None:
        """Waits until the last checkpoint is on disk."""
        self._bar.close()
        self.output.manager.wait_until_finished()
