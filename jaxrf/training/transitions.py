"""Stages of training: their static shapes and budgets, and the transitions between them."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.cameras import contraction
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Scene, Split, find_split_background
from jaxrf.fields.base import Field, SceneInfo, StageTransition
from jaxrf.fields.checks import broadcast_groups
from jaxrf.models.base import ModelParams, StageSpec
from jaxrf.sampling.marching import STEPS_PER_BLOCK
from jaxrf.sampling.occupancy import OccupancyGrid, set_contraction_norm
from jaxrf.training import optim, schedule
from jaxrf.training.config import TrainConfig
from jaxrf.training.state import TrainState, init_state

# Samples whose activations, in layers of 256, stay in the cache of a CPU.
CACHED_SAMPLES = 2048
# Fewer rays a step are not worth training with.
MIN_RAYS = 64
# A pixel is supersampled if the smallest voxel is at most so many pixels wide.
SUPERSAMPLED_VOXEL = 1.25


def resolve_config(config: TrainConfig, scene: Scene, platform: str | None = None) -> TrainConfig:
    """The configuration with everything that it leaves open settled for a scene.

    Random backgrounds are for images that are transparent there: in front of a plain color that all
    images show, that color is the background.

    Args:
      config: of the training.
      scene: to train on.
      platform: of the devices to train on, such as "cpu"; by default of those that JAX has.
    """
    cameras = scene.splits["train"].cameras
    if config.background == "random" and not scene.unbounded and cameras.ndc is None:
        plain = find_split_background(scene.splits["train"])
        config = dataclasses.replace(config, background=plain or "random")
    config = _resolve_refinement(config, scene)
    model = config.model
    if model.contract is None:
        model = dataclasses.replace(model, contract=scene.unbounded)
    if model.has_image_colors:
        model = dataclasses.replace(model, num_appearances=len(scene.splits["train"]))
    if model.color_correction != "none":
        model = dataclasses.replace(model, exposures=_known_exposures(scene.splits["train"]))
    info = _scene_info(dataclasses.replace(config, model=model), scene)
    field = config.field.resolve(info)
    is_fine = field.min_voxel_size(info.aabb) <= SUPERSAMPLED_VOXEL * info.pixel_size
    microbatch_samples = config.microbatch_samples
    # Each microbatch has a gradient of its own, which is as large as a table is; and its own
    # quantile of residuals, which says little for a patch alone.
    cuts = (platform or jax.default_backend()) == "cpu" and not config.loss.inlier_quantile
    if microbatch_samples is None and cuts and not _has_tables(field):
        microbatch_samples = CACHED_SAMPLES
    scale_schedule = tuple(
        (start if start < 1.0 else start / config.num_steps, factor)
        for start, factor in config.train_scale_schedule
    )
    return dataclasses.replace(
        config,
        field=field,
        model=model,
        train_scale_schedule=scale_schedule,
        supersample=config.supersample or (2 if is_fine else 1),
        microbatch_samples=microbatch_samples,
    )


def _known_exposures(split: Split) -> tuple[float, ...]:
    """Exposures of a split's images; none if they are unknown or all the same."""
    exposures = split.exposures
    if exposures is None or np.ptp(exposures) == 0.0:
        return ()
    return tuple(exposures.tolist())


def _resolve_refinement(config: TrainConfig, scene: Scene) -> TrainConfig:
    """The configuration with the shapes of what is refined of the training cameras, if anything.

    Raises:
      InputError: if there are too few cameras.
    """
    if config.refine == "none":
        return dataclasses.replace(config, refined=None)
    cameras = scene.splits["train"].cameras
    if len(cameras) < 2:
        raise InputError(
            f"--refine is {config.refine}, but there is a single training image, which fits any "
            "pose: give more images, or leave the option out."
        )
    coefficients = 0 if cameras.distortion is None else cameras.distortion.shape[1]
    return dataclasses.replace(config, refined=(len(cameras), coefficients))


def _has_tables(field: Field) -> bool:
    params = jax.eval_shape(field.init, jax.random.key(0))
    return "grid" in jax.tree.leaves(broadcast_groups(field, params))


def _scene_info(config: TrainConfig, scene: Scene) -> SceneInfo:
    """Facts about a scene that fields settle their numbers by."""
    cameras = scene.splits["train"].cameras
    center = np.mean(scene.aabb, axis=0)
    distance = np.linalg.norm(np.asarray(cameras.T_world_camera)[:, :3, 3] - center, axis=-1)
    pixel_size = float(np.mean(distance) / np.mean(np.asarray(cameras.focal)))
    if cameras.ndc is not None:
        # There an image is two wide, wherever its camera stands.
        pixel_size = 2.0 / math.sqrt(cameras.width * cameras.height)
    return SceneInfo(
        aabb=field_aabb(config, scene.aabb),
        pixel_size=pixel_size,
        is_ndc=cameras.ndc is not None,
        rays_per_image=config.batch_rays / (cameras.width * cameras.height),
    )


def field_aabb(config: TrainConfig, aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
    """The box that the field fills: the scene's, or that of contracted space."""
    return contraction.contracted_aabb(aabb) if config.model.contract else aabb


def plan_transitions(config: TrainConfig) -> list[StageTransition]:
    """All transitions of a training in order, at most one before each step."""
    planned = {t.step: t for t in config.field.plan_transitions(partial(schedule.step_at, config))}
    begin, supersample = schedule.step_at(config, config.supersample_from), config.supersample or 1
    if supersample > 1:
        planned.setdefault(begin, StageTransition(begin, False, None))
    transitions = [
        planned[step]._replace(supersample=supersample if step >= begin else 1)
        for step in sorted(planned)
    ]
    transitions = config.field.delay_transitions(transitions)
    return [t for t in transitions if 0 < t.step < config.num_steps]


def last_lr_reset(config: TrainConfig, step: int) -> float:
    """Progress at the last reset of learning rates by the transitions before `step`."""
    resets = [
        transition.step
        for transition in (plan_transitions(config) if step else [])
        if transition.step < step and config.field.resets_lr(transition)
    ]
    return schedule.progress_at(config, resets[-1]) if resets else 0.0


def schedule_from(config: TrainConfig, step: int = 0) -> schedule.TrainSchedule:
    """The traced schedule once all transitions before `step` are done."""
    return schedule.make_train_schedule(config, last_lr_reset(config, step))


def first_stage(config: TrainConfig, aabb: Float[np.ndarray, "2 3"], devices: int = 1) -> StageSpec:
    """The stage that training on so many devices starts with, in a scene with this box."""
    bounds = aabb if config.model.contract else None
    aabb = field_aabb(config, aabb)
    field = config.field.begin(aabb)
    begins_supersampled = schedule.step_at(config, config.supersample_from) <= 0
    stage = StageSpec(
        field=field,
        grid_resolution=field.grid_resolution(aabb) or config.model.grid_resolution(aabb),
        num_rays=config.batch_rays,
        supersample=(config.supersample or 1) if begins_supersampled else 1,
        num_shards=config.shards or devices,
    )
    return set_budgets(config, stage, field.grid_aabb(aabb), bounds)


def init_grid(
    config: TrainConfig, stage: StageSpec, aabb: Float[np.ndarray, "2 3"]
) -> OccupancyGrid:
    """The occupancy grid before the first step, in a scene with this box."""
    bounds = jnp.asarray(aabb, jnp.float32) if config.model.contract else None
    grid = config.model.init_grid(stage, field_aabb(config, aabb), bounds)
    return set_contraction_norm(grid, config.model.contraction_norm)


def set_budgets(
    config: TrainConfig,
    stage: StageSpec,
    aabb: Float[np.ndarray, "2 3"],
    bounds: Float[np.ndarray | Array, "2 3"] | None = None,
) -> StageSpec:
    """The stage with its rays and budgets, for a grid in this box.

    Rays that do not fit into a budget are dropped, so their number follows it by itself.
    """
    # All rays of a patch of pixels, and of at least one patch in each shard.
    patch_size = config.loss.sampled_patch_size
    parts = (stage.supersample * patch_size) ** 2 * stage.num_shards
    num_rays = max(config.batch_rays // parts, 1) * parts
    stage = dataclasses.replace(stage, num_rays=num_rays, patch_size=patch_size)
    return config.model.set_budgets(
        stage, config.batch_samples, config.microbatch_samples, aabb, bounds
    )


def reshard(config: TrainConfig, stage: StageSpec, grid: OccupancyGrid, devices: int) -> StageSpec:
    """The stage with its rays shared by so many devices."""
    shards = config.shards or devices
    if shards == stage.num_shards:
        return stage
    stage = dataclasses.replace(stage, num_shards=shards)
    return set_budgets(config, stage, np.asarray(grid.aabb), grid.bounds)


def halve_batch(config: TrainConfig, stage: StageSpec) -> TrainConfig:
    """A configuration whose steps need about half the memory; the same if there is none.

    Where rays have a fixed number of samples, a step is cut into twice as many microbatches;
    elsewhere it has half the rays and samples.
    """
    samples = config.model.samples_per_ray()
    if samples is not None:
        microbatch_samples = stage.per_shard().num_rays * samples
        if stage.num_microbatches == stage.num_patches() // stage.num_shards:
            return config
        return dataclasses.replace(config, microbatch_samples=microbatch_samples // 2)
    if min(config.batch_rays, config.batch_samples // STEPS_PER_BLOCK) < 2 * MIN_RAYS:
        return config
    rays, budget = config.batch_rays // 2, config.batch_samples // 2
    return dataclasses.replace(config, batch_rays=rays, batch_samples=budget)


def predict_next_stage(
    config: TrainConfig, stage: StageSpec, transition: StageTransition, grid: OccupancyGrid
) -> StageSpec | None:
    """The stage after a transition, if it can be known before; it may turn out otherwise."""
    predicted = stage.field.predict_transition(transition, grid)
    if predicted is None:
        return None
    field, aabb = predicted
    stage = dataclasses.replace(
        stage,
        field=field,
        supersample=transition.supersample,
        grid_resolution=field.grid_resolution(aabb) or stage.grid_resolution,
    )
    return set_budgets(config, stage, aabb, grid.bounds)


def predict_next_stages(
    config: TrainConfig,
    stage: StageSpec,
    transitions: Sequence[StageTransition],
    grid: OccupancyGrid,
) -> list[StageSpec]:
    """The stages after coming transitions, in order, as far as they can be known before.

    Stages may be short, and compiling the next one may take longer than training some of them.
    """
    predicted: list[StageSpec] = []
    current, pruned = stage, False
    for transition in transitions:
        # A grid is reshaped by what the prunings before leave of it.
        following = None
        if transition.num_voxels is None or not pruned:
            following = predict_next_stage(config, current, transition, grid)
        if following is None:
            break
        predicted.append(following)
        if not same_shapes(current, following):
            break
        current, pruned = following, pruned or transition.prune
    return predicted


def same_shapes(stage: StageSpec, other: StageSpec) -> bool:
    """Whether parameters and occupancy grid have the same shapes in both stages."""
    return (
        stage.grid_resolution == other.grid_resolution
        and stage.field.shape_key() == other.field.shape_key()
    )


def canonical_stage(stage: StageSpec) -> StageSpec:
    """The stage as its steps see it: equal for stages that share a program."""
    return dataclasses.replace(stage, field=stage.field.canonical())


def transition_stage(
    config: TrainConfig, stage: StageSpec, state: TrainState, transition: StageTransition
) -> tuple[StageSpec, TrainState]:
    """Stage and state after a transition: parameters and moments on the new grid."""
    changed = stage.field.apply_transition(transition, state.params.field, state.grid)
    stage = dataclasses.replace(
        stage,
        field=changed.field,
        supersample=transition.supersample,
        grid_resolution=changed.field.grid_resolution(np.asarray(changed.grid.aabb))
        or stage.grid_resolution,
    )
    stage = set_budgets(config, stage, np.asarray(changed.grid.aabb), changed.grid.bounds)

    def carry_over(params: ModelParams) -> ModelParams:
        return params._replace(field=changed.carry_over(params.field))

    opt_state: Any = optim.map_moments(carry_over, state.opt_state)
    if config.field.resets_lr(transition):
        opt_state = optim.reset_adam_moments(opt_state)
    ema_params = None if state.ema_params is None else carry_over(state.ema_params)
    return stage, dataclasses.replace(
        state,
        params=carry_over(state.params),
        opt_state=opt_state,
        grid=changed.grid,
        ema_params=ema_params,
    )


def abstract_next_state(
    config: TrainConfig, stage: StageSpec, following: StageSpec, state: TrainState
) -> TrainState:
    """The shapes of the state in a coming stage; the present state if they stay."""
    if same_shapes(stage, following):
        return state
    grid = init_grid(config, following, np.asarray(state.grid.aabb))
    return jax.eval_shape(partial(init_state, config, following), grid)
