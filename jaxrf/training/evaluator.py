"""Validations and videos of a training in progress: when they are due, and what they log."""

import dataclasses
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrf.cameras.base import Cameras
from jaxrf.data.scene import Scene, Split
from jaxrf.evaluation import images, scoring
from jaxrf.evaluation.camera_renderer import TrainedField, make_camera_renderer
from jaxrf.evaluation.metrics import select_metrics
from jaxrf.evaluation.pose_fitting import move_cameras
from jaxrf.parallel import devices, processes
from jaxrf.training import budget, summaries, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import EventWriter
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import refined_frame
from jaxrf.training.state import background_color, init_state
from jaxrf.training.timing import TrainClock, seconds_since_start

# Frames per second of videos of the training. They have a quarter of the frames of the final video.
VIDEO_FPS = 6.0
# Share of a budget after which the validations of a training score no further view.
VALIDATION_SHARE = 0.05


class Validation(NamedTuple):
    """Mean PSNR of the validation views after a number of steps and seconds.

    Seconds count from the start of the process, without those of earlier validations.
    """

    step: int
    seconds: float
    psnr: float


class Evaluator:
    """Renders validation views and videos of a training in progress.

    Attributes:
      val_history: the validations so far.
      psnr: of the last validation.
    """

    def __init__(
        self,
        events: EventWriter,
        val: Split | None = None,
        video_cameras_fn: Callable[[Run], Cameras] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Nothing is rendered yet.

        Args:
          events: where scores, images and videos are logged.
          val: the validation views; without them there are no validations.
          video_cameras_fn: makes the cameras of a video's frames; without it there are no videos.
          mesh: the devices that render.
        """
        self.events, self.val = events, val
        self.video_cameras_fn, self.mesh = video_cameras_fn, mesh
        self.val_history: list[Validation] = []
        self.psnr: float | None = None
        self._validation_seconds = self._slowest_validation = 0.0
        self._video_seconds = self._slowest_video = 0.0
        self._pool = futures.ThreadPoolExecutor(1)
        self._compiling: futures.Future[None] | None = None

    def compile_ahead(self, config: TrainConfig, scene: Scene) -> None:
        """Begins to compile the rendering of views in the background, while the steps compile.

        Does nothing where the program depends on the training (models that march, fields that
        grow), or where it would take time from a budget that has no validations.
        """
        shares_budget = config.budget is not None and self.val is None
        is_known = config.model.samples_per_ray() is not None
        is_known = is_known and not transitions.plan_transitions(config)
        one_device = jax.process_count() == 1 and (self.mesh is None or self.mesh.size == 1)
        if is_known and one_device and not shares_budget:
            self._compiling = self._pool.submit(_compile_rendering, config, scene, self.mesh)

    def wait_until_compiled(self) -> None:
        """Waits for what `compile_ahead` began."""
        if self._compiling is not None:
            # Whatever failed there fails again when views are rendered.
            futures.wait([self._compiling])
            self._compiling = None

    def is_validation_due(
        self,
        config: TrainConfig,
        step: int,
        steps: int,
        seconds_left: float,
        compile_seconds: float,
    ) -> bool:
        """Whether the last steps passed a validation and the budget allows for it.

        An evaluation that may take half of the time left is skipped in favor of training. The first
        one compiles a program, which takes about as long as that of a stage.
        """
        slowest = self._slowest_validation or compile_seconds
        passed = budget.passed_multiple(config, step, steps, config.validate_every)
        return self.val is not None and passed and 2.0 * slowest <= seconds_left

    def _exceeds_share(self, config: TrainConfig, seconds: float) -> bool:
        """Whether a validation takes more than its share of the budget, in any process."""
        if config.budget is None or config.budget_excludes_validation or not config.validate_every:
            return False
        count = max(1, round(1.0 / config.validate_every) - 1)
        return processes.broadcast_from_main(seconds > VALIDATION_SHARE * config.budget / count)

    def is_video_due(
        self,
        config: TrainConfig,
        step: int,
        steps: int,
        seconds_left: float,
        compile_seconds: float,
    ) -> bool:
        """Whether the last steps passed a video; see `is_validation_due`."""
        slowest = self._slowest_video or compile_seconds
        passed = budget.passed_multiple(config, step, steps, config.video.every)
        return self.video_cameras_fn is not None and passed and 2.0 * slowest <= seconds_left

    def remaining_seconds(self, config: TrainConfig, step: int) -> float:
        """Seconds of validations and videos that are still to come."""
        seconds = 0.0
        if self.val is not None:
            duration = self._validation_seconds or budget.DEFAULT_EVALUATION_SECONDS
            seconds += budget.count_remaining(config, step, config.validate_every) * duration
        if self.video_cameras_fn is not None:
            duration = self._video_seconds or budget.DEFAULT_EVALUATION_SECONDS
            seconds += budget.count_remaining(config, step, config.video.every) * duration
        return seconds

    def validate(self, run: Run, clock: TrainClock) -> str:
        """Renders and scores the validation views, logs the results and counts the seconds.

        If cameras are refined, those of the validation views are moved by the similarity that takes
        the given training cameras to the refined ones; they are not fitted one by one.

        Returns:
          A line for the log.
        """
        assert self.val is not None
        validation_started = time.perf_counter()
        step, background = int(run.state.step), background_color(run.config)
        render, corrects = self._make_render_fn(run), run.config.model.has_image_colors
        started = time.perf_counter()
        views: list[scoring.ViewMetrics] = []
        split = self._move_with_training(self.val, run)
        for index in range(len(split)):
            views += scoring.score_split(
                render, split, background, [index], correct_colors=corrects
            )
            if index == 0 and self._validation_seconds == 0.0:
                # The first view of a training is compiled for, which later ones need not be.
                started = time.perf_counter()
            if self._exceeds_share(run.config, time.perf_counter() - validation_started):
                break
        self._validation_seconds = max(time.perf_counter() - started, 1e-3)
        summary = scoring.summarize(views)
        self.psnr = summary["psnr"]
        elapsed = time.perf_counter() - validation_started
        seconds = seconds_since_start() - clock.validate - elapsed
        self.val_history.append(Validation(step, round(seconds, 2), round(summary["psnr"], 3)))
        values = {f"val/{metric.name}": summary[metric.name] for metric in select_metrics(summary)}
        self.events.scalars(values, step)
        summaries.write_view(self.events, "val", views[0], step)
        summaries.write_rays(self.events, "val", views[0], step)
        self._write_parameters(run)
        elapsed = time.perf_counter() - validation_started
        clock.validate += elapsed
        self._slowest_validation = max(self._slowest_validation, elapsed)
        return f"step {step}: validation PSNR {summary['psnr']:.2f} dB on {len(views)} views"

    def _move_with_training(self, split: Split, run: Run) -> Split:
        """A split whose cameras moved with the training cameras, if these are refined."""
        params = run.state.eval_params
        if params.cameras is None:
            return split
        if self.mesh is not None:
            params = devices.to_local(self.mesh, params)
        frame = refined_frame(run.scene, params)
        return dataclasses.replace(split, cameras=move_cameras(frame, split.cameras))

    def render_video(self, run: Run, clock: TrainClock) -> str:
        """Renders a small video for TensorBoard and counts the seconds.

        Returns:
          A line for the log.
        """
        assert self.video_cameras_fn is not None
        started = time.perf_counter()
        step, cameras = int(run.state.step), self.video_cameras_fn(run)
        render = self._make_render_fn(run)
        frames = [images.to_uint8(render(cameras, index).rgb) for index in range(len(cameras))]
        self.events.video("video/orbit", np.stack(frames), VIDEO_FPS, step)
        elapsed = time.perf_counter() - started
        clock.validate += elapsed
        self._video_seconds, self._slowest_video = elapsed, max(self._slowest_video, elapsed)
        return f"step {step}: rendered a video of {len(frames)} frames in {elapsed:.1f} s"

    def _make_render_fn(self, run: Run) -> scoring.RenderFn:
        self.wait_until_compiled()
        return scoring.make_render_fn(
            TrainedField(
                run.config,
                run.stage,
                run.state.eval_params,
                run.state.grid,
                (run.scene.near, run.scene.far),
                background_color(run.config),
            ),
            crop_to_occupied=False,
            mesh=self.mesh,
        )

    def _write_parameters(self, run: Run) -> None:
        if processes.is_main_process():
            params, grid = run.state.params, run.state.grid
            if self.mesh is not None:
                params, grid = devices.to_local(self.mesh, (params, grid))
            groups = run.config.model.param_groups(run.stage.field, params)
            summaries.write_parameters(self.events, params, groups, grid, int(run.state.step))


def _compile_rendering(config: TrainConfig, scene: Scene, mesh: Mesh | None) -> None:
    """Compiles the program that renders views like those of the training."""
    stage = transitions.first_stage(config, scene.aabb)
    grid = transitions.init_grid(config, stage, scene.aabb)
    shapes = jax.eval_shape(partial(init_state, config, stage), grid).eval_params
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    near_far, background = (scene.near, scene.far), background_color(config)
    trained = TrainedField(config, stage, params, grid, near_far, background)
    renderer = make_camera_renderer(trained, crop_to_occupied=False, mesh=mesh)
    renderer.compile(scene.splits["train"].cameras)
