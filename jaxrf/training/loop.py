"""The training loop: stages of compiled steps, from images to a trained state."""

import dataclasses
import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrf import fields
from jaxrf.cameras.base import apply_ray_convention
from jaxrf.cameras.refinement import CameraAdjustment, adjust_cameras, make_preconditioner
from jaxrf.core import memory
from jaxrf.core.errors import InputError, SentenceError
from jaxrf.data.scene import Scene
from jaxrf.fields.base import StageTransition
from jaxrf.fields.checks import check_functions
from jaxrf.fields.trial import check_values
from jaxrf.models.base import StageSpec
from jaxrf.parallel import devices, processes
from jaxrf.training import schedule, transitions
from jaxrf.training.callbacks import NullCallback, TrainCallback
from jaxrf.training.compile_ahead import StepCompiler, StepFn, exceeds_memory
from jaxrf.training.config import TrainConfig
from jaxrf.training.losses import RgbLossFn, make_rgb_loss_fn
from jaxrf.training.patches import require_patches_fit
from jaxrf.training.pixel_filter import cameras_see_outside_aabb, filter_pixels
from jaxrf.training.pixels import PixelDataset, count_bytes, drop_images, to_device
from jaxrf.training.prefetch import PixelPrefetcher, PrefetchRequest
from jaxrf.training.state import Metrics, TrainState, init_state
from jaxrf.training.step import StepSpec

# Images that take a larger share of the free memory stay on the host.
IMAGE_MEMORY_FRACTION = 0.5

# One program instead of an operation at a time, each of which would be compiled by itself.
_init_state = jax.jit(init_state, static_argnums=(0, 1))


class DivergedError(SentenceError):
    """Training cannot go on; the text says what happened and what to change."""


def fit(
    config: TrainConfig,
    scene: Scene,
    callback: TrainCallback | None = None,
    restored: tuple[StageSpec, TrainState] | None = None,
    rgb_loss_fn: RgbLossFn | None = None,
    mesh: Mesh | None = None,
) -> tuple[StageSpec, TrainState]:
    """Trains until `config.num_steps` or until the callback stops it.

    Args:
      config: resolved for the scene (`transitions.resolve_config`).
      scene: its training split is used.
      callback: called after every dispatch.
      restored: stage and state to continue from, as they were saved.
      rgb_loss_fn: loss of each pixel's color; by default the configuration's.
      mesh: the devices to train on; by default the first.

    Returns:
      The last stage and state, the same on all devices.

    Raises:
      DivergedError: with what to change.
      InputError: if the devices cannot share the rays.
    """
    with Trainer(config, scene, callback, rgb_loss_fn, mesh) as trainer:
        trainer.begin(restored)
        while trainer.step < trainer.config.num_steps:
            if not trainer.enter_stage():
                break
            if trainer.run_stage():
                break
        return trainer.stage, trainer.state


class Trainer:
    """The parts of `fit` and what they share."""

    stage: StageSpec
    state: TrainState

    def __init__(
        self,
        config: TrainConfig,
        scene: Scene,
        callback: TrainCallback | None,
        rgb_loss_fn: RgbLossFn | None,
        mesh: Mesh | None,
    ) -> None:
        """See `fit`."""
        self.config, self.scene = config, scene
        self.callback: TrainCallback = callback or NullCallback()
        self.mesh = mesh or devices.make_mesh(1)
        if config.shards is not None and config.shards % self.mesh.size:
            raise InputError(
                f"--shards is {config.shards}, which {self.mesh.size} devices cannot share: take "
                f"--devices 1, 2, 4, ... up to {config.shards}, or leave --shards out."
            )
        self.near_far = (scene.near, scene.far)
        self.rgb_loss_fn = rgb_loss_fn or make_rgb_loss_fn(config.loss)
        self.prefetches = _keeps_images_on_host(config, scene)
        self.all_pixels = self._load_pixels()
        self.pixels = self.all_pixels
        self.rng = schedule.training_key(config)
        self.step = 0
        self.best_mse = math.inf
        self.seconds_per_step = math.inf
        self.compiler = StepCompiler(self._step_spec, self.prefetches)
        self.prefetcher = PixelPrefetcher(config.steps_per_dispatch)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the background work."""
        self.prefetcher.__exit__(*exception)
        self.compiler.__exit__(*exception)

    def _load_pixels(self) -> PixelDataset:
        split = self.scene.splits["train"]
        cameras = apply_ray_convention(split.cameras, self.config.ray_convention)
        split = dataclasses.replace(split, cameras=cameras)
        scales = self.config.image_scales()
        require_patches_fit(split.images.shape[1:3], scales, self.config.loss.sampled_patch_size)
        use_depth = self.config.loss.depth_weight > 0.0
        pixels = to_device(split, scales, self.prefetches, use_depth)
        if self.config.refine == "none":
            return pixels
        # Computed from the scene alone, so that a resumed run has the same.
        endless = self.scene.unbounded or cameras.ndc is not None
        center = np.mean(self.scene.aabb, axis=0) if endless else None
        preconditioner = make_preconditioner(cameras, self.config.refine, self.near_far, center)
        return pixels._replace(preconditioner=jnp.asarray(preconditioner))

    def _step_spec(self, stage: StageSpec) -> StepSpec:
        return StepSpec(self.config, stage, self.near_far, self.rgb_loss_fn, self.mesh)

    def _device_pixels(self) -> PixelDataset:
        """The pixels as the steps get them."""
        pixels = drop_images(self.pixels) if self.prefetches else self.pixels
        return devices.replicate(self.mesh, pixels)

    # -- the beginning -------------------------------------------------------------------------

    def begin(self, restored: tuple[StageSpec, TrainState] | None) -> None:
        """Sets the first or the restored stage and state."""
        if restored is None:
            self.stage, state = self._init()
        else:
            stage, state = restored
            self.stage = transitions.reshard(self.config, stage, state.grid, self.mesh.size)
        self.state = devices.replicate(self.mesh, state)
        self.step = int(self.state.step)
        self.schedule = transitions.schedule_from(self.config, self.step)
        self.transitions = transitions.plan_transitions(self.config)
        self.filters = self.config.filter_rays and self.config.model.samples_per_ray() is None
        changed = any(transition.step < self.step for transition in self.transitions)
        cameras = self.all_pixels.cameras
        if self.filters and (changed or cameras_see_outside_aabb(cameras, self.scene.aabb)):
            self._filter_pixels()

    def _init(self) -> tuple[StageSpec, TrainState]:
        config, aabb = self.config, self.scene.aabb
        stage = transitions.first_stage(config, aabb, self.mesh.size)
        grid = transitions.init_grid(config, stage, aabb)
        is_custom = not fields.is_builtin(type(stage.field))
        if is_custom:
            check_functions(stage.field, grid, grid.aabb)
        shapes = jax.eval_shape(partial(init_state, config, stage), grid)
        pixels = drop_images(self.all_pixels) if self.prefetches else self.all_pixels
        self.compiler.begin(stage, shapes, pixels)
        cameras = self.all_pixels.cameras
        first_cameras = self._match_cameras(shapes.params.cameras)
        if first_cameras is not None:
            cameras = adjust_cameras(cameras, first_cameras)
        grid = grid.mark_invisible(cameras, stage.dilation_cells)
        state = _init_state(config, stage, grid)
        if first_cameras is not None:
            state = state.with_cameras(first_cameras)
        if is_custom:
            check_values(stage.field, state.params.field, grid)
        return stage, state

    def _match_cameras(self, shapes: CameraAdjustment | None) -> CameraAdjustment | None:
        """Changes that make the poses fit matched points; None if there is no need."""
        if shapes is None or self.config.refine_from == "given":
            return None
        # Only here, as it imports scipy.
        from jaxrf.data import matched_poses

        matched = None
        if processes.is_main_process():
            matched = matched_poses.match_poses(self.scene.splits["train"])
        # Processes on different hardware may not find the same to the last bit.
        pose = processes.broadcast_from_main(matched and matched.adjustment.pose.tolist())
        if pose is None:
            return None
        if matched is not None:
            self.callback.on_note(matched.describe())
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return zero._replace(pose=jnp.asarray(pose, jnp.float32))

    def _filter_pixels(self) -> None:
        if not self.filters:
            return
        cameras, adjustment = self.all_pixels.cameras, self.state.params.cameras
        pixels = self.all_pixels
        if adjustment is not None:
            adjustment = devices.to_local(self.mesh, adjustment)
            pixels = pixels._replace(cameras=adjust_cameras(cameras, adjustment))
        pixels = filter_pixels(pixels, self.state.grid, self.near_far)
        self.pixels = pixels._replace(cameras=cameras)

    # -- a stage -------------------------------------------------------------------------------

    def enter_stage(self) -> bool:
        """Makes the transition that is due, and compiles; False if that was not waited for."""
        # A state saved at the step of a transition is from before it.
        transition = next((t for t in self.transitions if t.step == self.step), None)
        before = self.stage, self.state
        if transition is not None:
            self._transition(transition)
        started = time.perf_counter()
        pixels = self._device_pixels()
        wait = self.callback.should_wait_for_compile
        if not self.compiler.is_ready(self.stage, self.state, pixels, wait):
            self.stage, self.state = before
            return False
        del before
        self.run = self._fit_into_memory(pixels)
        seconds = time.perf_counter() - started
        self.callback.on_stage(self.stage, self.state, int(self.pixels.total), seconds)
        self.step_pixels = pixels
        self._compile_next_stages()
        return True

    def _transition(self, transition: StageTransition) -> None:
        state = devices.to_local(self.mesh, self.state)
        self.stage, state = transitions.transition_stage(self.config, self.stage, state, transition)
        self.state = devices.replicate(self.mesh, state)
        self.schedule = transitions.schedule_from(self.config, self.step + 1)
        self._filter_pixels()

    def _fit_into_memory(self, pixels: PixelDataset) -> StepFn:
        """The compiled steps, with a smaller batch while they exceed the free memory."""
        run = self.compiler.get(self.stage, self.state, pixels)
        while exceeds_memory(run):
            smaller = transitions.halve_batch(self.config, self.stage)
            if smaller is self.config:
                break
            self.config = smaller
            grid = self.state.grid
            self.stage = transitions.set_budgets(
                smaller, self.stage, np.asarray(grid.aabb), grid.bounds
            )
            reason = _describe_batch(smaller, self.stage)
            self.callback.on_config_change(smaller, self.step, reason)
            run = self.compiler.get(self.stage, self.state, pixels)
        return run

    def _compile_next_stages(self) -> None:
        coming = [t for t in self.transitions if t.step > self.step]
        config, stage, state = self.config, self.stage, self.state
        for following in transitions.predict_next_stages(config, stage, coming, state.grid):
            shapes = transitions.abstract_next_state(config, stage, following, state)
            self.compiler.begin(following, shapes, self.step_pixels)

    def run_stage(self) -> bool:
        """Runs the steps up to the next transition or the end; whether the callback stopped it."""
        coming = next((t for t in self.transitions if t.step > self.step), None)
        while self.step < (end := coming.step if coming else self.config.num_steps):
            metrics, count = self._dispatch(end - self.step)
            if metrics.finite_fraction:
                check_health(metrics, self.step, self.config, self.best_mse)
                self.best_mse = min(self.best_mse, float(metrics.mse))
            stop = self.callback.on_dispatch(self.state, self.stage, metrics, count)
            config = self.callback.replan(self.config, self.step, coming is not None)
            if config is not self.config:
                self.config = config
                self.schedule = transitions.schedule_from(config, self.step)
                self.transitions = transitions.plan_transitions(config)
                # A transition may be due at this very step now.
                coming = next((t for t in self.transitions if t.step >= self.step), None)
            if stop:
                return True
        return False

    def _dispatch(self, remaining: int) -> tuple[Metrics, int]:
        """Runs some of the remaining steps on the device; their metrics and number."""
        seconds = self.callback.dispatch_seconds()
        longest = min(seconds / self.seconds_per_step, self.config.steps_per_dispatch)
        count = processes.broadcast_from_main(min(max(int(longest), 1), remaining))
        started = time.perf_counter()
        inputs: list[Any] = [self.rng, self.schedule, jnp.asarray(count, jnp.int32)]
        if self.prefetches:
            inputs.append(self.prefetcher.take(self._prefetch_request()))
        self.state, metrics = self.run(
            self.state, self.step_pixels, *devices.replicate(self.mesh, inputs)
        )
        self.step += count
        if self.prefetches:
            self.prefetcher.begin(self._prefetch_request())
        metrics = jax.device_get(metrics)
        self.seconds_per_step = (time.perf_counter() - started) / count
        return metrics, count

    def _prefetch_request(self) -> PrefetchRequest:
        count = self.stage.num_pixels()
        return PrefetchRequest(self.config, self.pixels, self.schedule, count, self.step)


def _keeps_images_on_host(config: TrainConfig, scene: Scene) -> bool:
    if config.keep_images_on_host is not None:
        return config.keep_images_on_host
    needed = count_bytes(scene.splits["train"], config.image_scales())
    return processes.allreduce_max(needed > IMAGE_MEMORY_FRACTION * memory.free_bytes()) > 0


def _describe_batch(config: TrainConfig, stage: StageSpec) -> str:
    if stage.num_microbatches > 1:
        return (
            f"memory is short: {stage.num_microbatches} microbatches a step (--microbatch-samples)"
        )
    return (
        f"memory is short: {config.batch_rays} rays and {config.batch_samples} samples a step "
        "(--batch-rays, --batch-samples)"
    )


def check_health(metrics: Metrics, step: int, config: TrainConfig, best_mse: float) -> None:
    """Raises DivergedError if the last steps show NaN, divergence or an all-background field.

    Of a user's field the likely cause comes first.
    """
    name = type(config.field).__name__
    is_custom = not fields.is_builtin(type(config.field))
    if not all(math.isfinite(float(value)) for value in metrics):
        advice = "lower --optimizer.grid-lr and --optimizer.mlp-lr, or --optimizer.clip-norm"
        if is_custom:
            advice = (
                f"check that the density and color of {name} and their derivatives are finite "
                f"everywhere, or {advice}"
            )
        raise DivergedError(f"The loss is not a number after step {step}: {advice}.")
    if float(metrics.mse) > max(20.0 * best_mse, 0.05):
        raise DivergedError(
            f"Training diverged: the squared error rose from {best_mse:.4g} to "
            f"{float(metrics.mse):.4g} by step {step}; lower --optimizer.grid-lr and "
            "--optimizer.mlp-lr."
        )
    collapsed = float(metrics.opacity) < 1e-3 and float(metrics.target_alpha) > 1e-2
    if collapsed and schedule.progress_at(config, step) > 0.1:
        advice = (
            "try another --seed, a lower learning rate, or check that the cameras look at the "
            "scene's box"
        )
        if is_custom:
            advice = (
                f"check that {name}.density can rise again where it is 0, as softplus and exp can "
                f"and relu cannot, or {advice}"
            )
        raise DivergedError(
            f"The field is all background after step {step}, although "
            f"{float(metrics.target_alpha):.0%} of the images is not: {advice}."
        )
