"""What watches a training: progress bar, logs, validation, videos, checkpoints, signals."""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh

from jaxrf.cameras.base import Cameras
from jaxrf.core.errors import InputError
from jaxrf.core.machine import Machine
from jaxrf.core.progress import ProgressBar
from jaxrf.data.scene import Split
from jaxrf.evaluation import images, scoring
from jaxrf.evaluation.interactive import InteractiveRenderer, make_interactive_renderer
from jaxrf.models import methods
from jaxrf.models.methods import Stage
from jaxrf.parallel import devices, processes
from jaxrf.training import config as configs
from jaxrf.training import optim, runs, schedule, summaries, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import EventWriter
from jaxrf.training.runs import Run, SceneMetadata
from jaxrf.training.train import Metrics, TrainState, background_color, make_train_schedule

# Frames per second of videos on the way: with a quarter of the frames, as quick as that at the end.
FPS = 6.0
# While somebody watches: seconds of a dispatch, and for how long training waits at once for who
# moves the camera.
WATCHED_SECONDS, MOVING_SECONDS = 0.15, 1.0


def seconds_since_start() -> float:
    """Seconds since this process started."""
    by_date = time.time() - psutil.Process().create_time()
    try:
        # Finer than the date of the start, which is off by up to a second.
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return by_date
    by_ticks = uptime - ticks / os.sysconf("SC_CLK_TCK")
    # In some containers the two files count from different moments.
    return by_ticks if abs(by_ticks - by_date) < 2.0 else by_date


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one acts as it always does."""
    caught: list[int] = []
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for known, handler in previous.items():
            signal.signal(known, handler)

    for known in previous:
        signal.signal(known, handle)
    try:
        yield caught
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)


@dataclasses.dataclass
class Clock:
    """Seconds of training, of them waiting for compilation, and what was trained on.

    Validation stands apart, and videos with it. `first_step` counts from the start of the process
    to the end of the first dispatch.
    """

    compile: float = 0.0
    train: float = 0.0
    validate: float = 0.0
    first_step: float = 0.0
    rays: float = 0.0
    samples: float = 0.0


class Validation(NamedTuple):
    """A validation: after how many steps and seconds of the process, and the mean PSNR.

    Seconds are counted without those that validations took.
    """

    step: int
    seconds: float
    psnr: float


@dataclasses.dataclass
class Pace:
    """Steps and their seconds since a stage began, the first dispatch left out.

    `best` is the least that a step took in any dispatch.
    """

    steps: int = 0
    seconds: float = 0.0
    best: float = math.inf
    warm: bool = False

    def add(self, steps: int, seconds: float) -> None:
        """Counts a dispatch."""
        if self.warm:
            self.steps, self.seconds = self.steps + steps, self.seconds + seconds
            self.best = min(self.best, seconds / steps)
        self.warm = True

    def is_known(self, least: float) -> bool:
        """Whether enough steps were timed: two, over so many seconds."""
        return self.steps >= 2 and self.seconds >= least


@runtime_checkable
class LiveViewer(Protocol):
    """Who watches a training live; see `viewer.server.Viewer`."""

    def follow(self, make: Callable[[], InteractiveRenderer], text: str) -> None:
        """Here is the state of now, if it is wanted."""
        ...

    def has_clients(self) -> bool:
        """Whether anybody looks."""
        ...

    def camera_moving(self) -> bool:
        """Whether somebody moves a camera right now."""
        ...

    def is_paused(self) -> bool:
        """Whether training is to wait."""
        ...


class Monitor:
    """The observer of `train.fit` behind the command line."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        scene: SceneMetadata,
        events: EventWriter,
        manager: Any,
        val: Split | None,
        caught: list[int],
        done: int,
        seconds: float,
        deadline: float | None = None,
        mesh: Mesh | None = None,
        film: Callable[[Run], Cameras] | None = None,
        audience: LiveViewer | None = None,
    ) -> None:
        self.mesh, self.film, self.audience = mesh, film, audience
        self.folder, self.config, self.scene = folder, config, scene
        self.events, self.manager = events, manager
        self.val, self.caught = val, caught
        self.deadline = deadline
        self.clock = Clock()
        self.seconds_before = seconds
        self._schedules = optim.make_schedules(config.optimizer, make_train_schedule(config))
        self._bar = ProgressBar(
            config.steps, "train", "step", initial=done, disable=not processes.is_main_process()
        )
        self._done = done
        self._mark = time.perf_counter()
        self._pace = Pace()
        self._half_time = 0.0
        self._validation_seconds = self._slowest_validation = 0.0
        self._video_seconds = self._slowest_video = 0.0
        self._machine = Machine()
        self._groups: frozenset[str] = frozenset()
        self.history: list[Validation] = []
        self._saved_at = time.perf_counter()
        self._saved_step: int | None = None
        self._val_psnr: float | None = None

    @property
    def seconds(self) -> float:
        """Training time, that before a resume included."""
        return self.seconds_before + self.clock.train + self.clock.compile

    def should_wait_for_compile(self) -> bool:
        """Whether nobody has asked to stop and there is time left."""
        late = self.deadline is not None and time.time() > self.deadline
        self._check_begun(late)
        return not late and not self.caught

    def _check_begun(self, late: bool) -> None:
        if late and not self._done:
            raise InputError(
                f"--budget {self.config.budget:g} is too short here: starting took "
                f"{seconds_since_start():.1f} s; give more seconds."
            )

    def on_stage(self, stage: Stage, state: TrainState, pixels: int, seconds: float) -> None:
        """Notes the compilation and says what the stage is."""
        late = self.deadline is not None and time.time() > self.deadline
        self._check_begun(processes.broadcast_from_main(late))
        now = time.perf_counter()
        self._pace = Pace()
        self.clock.compile += seconds
        self.clock.train += now - self._mark - seconds
        self._mark = now
        grid = transitions.describe_grid(self.config.field, stage, state.grid)
        if grid:
            rays = f"{stage.rays} rays a step, {stage.supersample**2} a pixel, from {pixels} pixels"
            self._say(f"step {self._done}: {grid}; {rays}")

    def on_dispatch(self, state: TrainState, stage: Stage, metrics: Metrics, steps: int) -> bool:
        """Writes scalars, validates and saves where it is time; stops after a signal."""
        now = time.perf_counter()
        step = int(state.step)
        elapsed = now - self._mark
        self.clock.train += elapsed
        self._pace.add(steps, elapsed)
        rays = steps * stage.rays * (1.0 - float(metrics.dropped))
        self.clock.rays += rays
        self.clock.samples += steps * float(metrics.samples)
        if not self.clock.first_step:
            self.clock.first_step = seconds_since_start()
            self._groups = frozenset(jax.tree.leaves(methods.label_params(state.params)))
            self.events.text("config", configs.to_json(self.config), step)
        rate = rays / elapsed
        if not metrics.kept:
            # All overflowed, and say nothing.
            metrics = metrics._replace(loss=jnp.asarray(np.nan), mse=jnp.asarray(np.nan))
        psnr = -10.0 * math.log10(max(float(metrics.mse), 1e-12)) if metrics.kept else math.nan
        self._bar.update(steps)
        self._done = step
        figures = f"loss {float(metrics.loss):.5f}, PSNR {psnr:.2f} dB, {rate / 1e3:.1f}k rays/s"
        self._bar.set_postfix(figures)
        self.events.note(f"step {step} of {self.config.steps}: {figures}")
        norms = {"grid": metrics.grid_grad_norm, "network": metrics.mlp_grad_norm}
        by_group = {f"train/gradient_norm_{k}": float(norms[k]) for k in self._groups}
        rates = {f"learning_rate/{k}": float(self._schedules[k](step)) for k in self._groups}
        self.events.scalars(
            {
                "train/loss": float(metrics.loss),
                "train/psnr": psnr,
                "train/grad_norm": float(metrics.grad_norm),
                "train/opacity": float(metrics.opacity),
                "train/dropped_rays": float(metrics.dropped),
                "speed/rays_per_second": rate,
                "speed/samples_per_second": steps * float(metrics.samples) / elapsed,
                **by_group,
                **rates,
            },
            step,
            self._measure_machine,
        )
        late = self.deadline is not None and time.time() + elapsed > self.deadline
        stop = processes.allreduce_max(len(self.caught)) > 0 or late
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
        if self.audience is not None and not stop:
            self._sync_viewer(self.audience, stage, state, f"Step {step} of {self.config.steps}")
        self._mark = time.perf_counter()
        return stop

    def dispatch_seconds(self) -> float:
        """Short while somebody looks, as painting waits for what the device does."""
        watched = self.audience is not None and self.audience.has_clients()
        return WATCHED_SECONDS if watched else 1.0

    def _sync_viewer(
        self, audience: LiveViewer, stage: Stage, state: TrainState, text: str
    ) -> None:
        """Shows the state to those who look, and leaves the machine to them while they move."""
        if self.history:
            text += f", validation PSNR {self.history[-1].psnr:.2f} dB"
        audience.follow(lambda: self._make_interactive_renderer(stage, state), text)
        begun = time.monotonic()
        while not self.caught and (
            audience.is_paused()
            or (audience.camera_moving() and time.monotonic() - begun < MOVING_SECONDS)
        ):
            time.sleep(0.02)

    def _make_interactive_renderer(self, stage: Stage, state: TrainState) -> InteractiveRenderer:
        # A copy, as the next step uses up the arrays.
        own = devices.to_host(self.mesh, (state.shown, state.grid))
        params, grid = jax.tree.map(lambda x: jnp.array(x, copy=True), own)
        seen = runs.near_far_fn(self.scene, grid)
        return make_interactive_renderer(
            self.config,
            stage,
            params,
            grid,
            seen,
            background_color(self.config),
            crop_to_occupied=False,
        )

    def _measure_machine(self) -> dict[str, float]:
        return {f"machine/{name}": value for name, value in self._machine.read().items()}

    def replan(self, config: TrainConfig, step: int, growing: bool) -> TrainConfig:
        """Fits the number of steps to the budget, if there is one, and writes it down.

        As soon as the speed is known, again when the field has its final size, and whenever half
        of the time or of the way that was left is behind: the speed of a machine that others use
        too changes, and compilation between stages takes time that no step shows.
        """
        if self.deadline is None:
            return config
        found = processes.broadcast_from_main(self._fit_steps(config, step, growing))
        if found is None:
            return config
        steps, reason = found
        fitted = schedule.rescale_schedule(config, step, steps)
        self._pace = Pace(warm=True)
        self.on_change(fitted, step, reason)
        return fitted

    def _fit_steps(self, config: TrainConfig, step: int, growing: bool) -> tuple[int, str] | None:
        """The number of steps that fits the budget, and why, if it is time to find out."""
        assert self.deadline is not None
        if len(config.knots) == schedule.MOST_KNOTS:
            return None
        first = not config.knots
        left = self.deadline - time.time()
        if not self._pace.is_known(least=min(0.7, 0.03 * left) if first else min(2.0, 0.1 * left)):
            return None
        half_time = time.time() >= self._half_time
        # What comes after the last growth is left to be fitted then, unless time is running out.
        if not first and growing and not half_time:
            return None
        if len(config.knots) > 1 and not growing and not half_time:
            halfway = 0.5 * (1.0 + config.knots[-1].progress)
            if schedule.progress_at(config, step) < halfway:
                return None
        self._half_time = time.time() + 0.5 * left
        pace = self._pace.seconds / self._pace.steps
        if growing:
            left -= 1.5 * sum(growth.step > step for growth in transitions.plan_transitions(config))
        if first and growing:
            # The first steps share the machine with compilation; later ones are about as fast as
            # the best of them. It need not be exact, as it is done once more.
            pace = self._pace.best
        if not config.validate_apart:
            looking = 0.0
            if self.val is not None:
                seconds = self._validation_seconds or 1.0
                looking += _count_coming(config, step, config.validate_every) * seconds
            if self.film is not None:
                seconds = self._video_seconds or 1.0
                looking += _count_coming(config, step, config.video.every) * seconds
            left -= min(looking, 0.5 * max(left, 0.0))
        # Checkpoints and records take their share; to be cut off before the rates have come down
        # would cost more than a few steps less.
        left = 0.96 * left - 0.3
        steps = step + max(int(left / pace), 1)
        return steps, f"a step takes {pace * 1e3:.0f} ms, {steps} steps fit the budget"

    def on_change(self, config: TrainConfig, step: int, reason: str) -> None:
        """Writes down a configuration that changed while training, and says why."""
        self.config = config
        self._schedules = optim.make_schedules(config.optimizer, make_train_schedule(config))
        if processes.is_main_process():
            runs.write_config(self.folder, config)
        self.events.text("config", configs.to_json(config), step)
        self._bar.total = config.steps
        self._say(f"step {step}: {reason}")

    def _say(self, line: str) -> None:
        """Prints a line above the progress bar and keeps it in train.log."""
        if processes.is_main_process():
            self._bar.write(f"  {line}")
        self.events.note(line)

    def save(self, stage: Stage, state: TrainState) -> None:
        """Saves a checkpoint unless this step has one."""
        step = int(state.step)
        if step == self._saved_step:
            return
        state = devices.to_host(self.mesh, state)
        runs.save(self.manager, self.scene, stage, state, self.seconds, self._val_psnr)
        self._saved_step, self._val_psnr = step, None
        self._saved_at = time.perf_counter()

    def close(self) -> None:
        """Waits for the last checkpoint to be on disk."""
        self._bar.close()
        self.manager.wait_until_finished()

    def _is_validation_due(self, step: int, steps: int) -> bool:
        every = self.config.validate_every
        return self.val is not None and self._is_due(step, steps, every, self._slowest_validation)

    def _is_video_due(self, step: int, steps: int) -> bool:
        every = self.config.video.every
        return self.film is not None and self._is_due(step, steps, every, self._slowest_video)

    def _is_due(self, step: int, steps: int, interval: float, slowest: float) -> bool:
        """Whether the last steps passed another such fraction of training, and there is time."""
        if interval <= 0 or step >= self.config.steps:
            return False
        # Better trained to the end than measured once more on the way.
        ends = None if self.config.validate_apart else self.deadline
        if ends is not None and 2.0 * slowest > ends - time.time():
            return False
        now, before = (
            schedule.progress_at(self.config, s) / interval for s in (step, step - steps)
        )
        return math.floor(now) > math.floor(before)

    def _make_render_fn(self, stage: Stage, state: TrainState) -> scoring.RenderFn:
        return scoring.make_render_fn(
            self.config,
            stage,
            state.shown,
            state.grid,
            (self.scene.near, self.scene.far),
            background_color(self.config),
            crop_to_occupied=False,
            mesh=self.mesh,
        )

    def _validate(self, stage: Stage, state: TrainState, step: int) -> None:
        assert self.val is not None
        begun = time.perf_counter()
        background = background_color(self.config)
        render = self._make_render_fn(stage, state)
        started = time.perf_counter()
        scored: list[scoring.ViewMetrics] = []
        for index in range(len(self.val)):
            scored += scoring.score_split(render, self.val, background, [index])
            if index == 0 and self._validation_seconds == 0.0:
                # The very first has to be compiled, which later validations are spared.
                started = time.perf_counter()
        self._validation_seconds = max(time.perf_counter() - started, 1e-3)
        summary = scoring.summarize(scored)
        self._val_psnr = summary["psnr"]
        reached = seconds_since_start() - self.clock.validate - (time.perf_counter() - begun)
        self.history.append(Validation(step, round(reached, 2), round(self._val_psnr, 3)))
        self.events.scalars({"val/psnr": summary["psnr"], "val/ssim": summary["ssim"]}, step)
        summaries.write_view(self.events, "val", scored[0], step)
        summaries.write_rays(self.events, "val", scored[0], step)
        self._write_parameters(state, step)
        self._say(f"step {step}: validation PSNR {summary['psnr']:.2f} dB on {len(scored)} views")
        elapsed = self._stand_apart(begun)
        self._slowest_validation = max(self._slowest_validation, elapsed)

    def _write_video_event(self, stage: Stage, state: TrainState, step: int) -> None:
        """Renders a small video for TensorBoard."""
        assert self.film is not None
        begun = time.perf_counter()
        cameras = self.film(Run(self.folder, self.config, self.scene, stage, state, self.seconds))
        render = self._make_render_fn(stage, state)
        frames = [images.to_uint8(render(cameras, index).rgb) for index in range(len(cameras))]
        self.events.video("video/orbit", np.stack(frames), FPS, step)
        elapsed = self._stand_apart(begun)
        self._say(f"step {step}: a video of {len(frames)} frames in {elapsed:.1f} s")
        self._video_seconds, self._slowest_video = elapsed, max(self._slowest_video, elapsed)

    def _write_parameters(self, state: TrainState, step: int) -> None:
        if processes.is_main_process():
            params, grid = state.params, state.grid
            if self.mesh is not None:
                params, grid = devices.to_local(self.mesh, (params, grid))
            summaries.write_parameters(self.events, params, grid, step)

    def _stand_apart(self, begun: float) -> float:
        """Counts the seconds since then as none of training; returns them."""
        elapsed = time.perf_counter() - begun
        self.clock.validate += elapsed
        if self.deadline is not None and self.config.validate_apart:
            self.deadline += elapsed
        return elapsed


def _count_coming(config: TrainConfig, step: int, every: float) -> int:
    """How often such a fraction of training is still to pass, the end left out."""
    if every <= 0:
        return 0
    return max(math.ceil((1.0 - schedule.progress_at(config, step)) / every) - 1, 0)
