"""The training step: a pure function of state, pixels, key and schedule.

`train_steps` runs `train_step`, which samples a batch (`pixels.sample_batch`), renders it
(`Model.render_train`), computes its loss (`losses.total_loss`) and gradients (`compute_grads`), and
updates the state (`apply_updates`).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxrf.cameras.refinement import precondition
from jaxrf.models.base import ModelParams, StageSpec, TrainRendering
from jaxrf.parallel import devices, sums
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import optim
from jaxrf.training.config import TrainConfig
from jaxrf.training.losses import (
    RgbLossFn,
    depth_target,
    mean_over_subrays,
    mean_squared_error,
    total_loss,
)
from jaxrf.training.optim import LossScaledState
from jaxrf.training.patches import sample_patches
from jaxrf.training.pixels import (
    Batch,
    PixelDataset,
    SampledPixels,
    adjust_rays,
    sample_batch,
    sampling_region,
)
from jaxrf.training.robust import inlier_quantile_at
from jaxrf.training.schedule import TrainSchedule
from jaxrf.training.state import (
    Metrics,
    TrainState,
    split_ray_rngs,
    step_rngs,
)
from jaxrf.training.table_updates import update_params


class GradAccum(NamedTuple):
    """Gradients and metrics, summed over the microbatches that were added so far.

    grads: sum of the gradients of each microbatch's mean loss.
    metrics: sum of the metrics.
    weight_memory: maximum of the occupancy grid's recorded weights, if it records any.
    """

    grads: ModelParams
    metrics: Metrics
    weight_memory: Float[Array, "slots"] | None

    def add(self, other: "GradAccum") -> "GradAccum":
        """The sum of both, and the maximum of their recorded weights."""
        grads, metrics = jax.tree.map(
            jnp.add, (self.grads, self.metrics), (other.grads, other.metrics)
        )
        memory = jax.tree.map(jnp.maximum, self.weight_memory, other.weight_memory)
        return GradAccum(grads, metrics, memory)

    def all_reduce(self) -> "GradAccum":
        """The sum over all devices, in an unspecified order."""
        grads, metrics = jax.lax.psum((self.grads, self.metrics), devices.AXIS)
        return GradAccum(grads, metrics, jax.lax.pmax(self.weight_memory, devices.AXIS))


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Static (hashable) arguments of the compiled step; each value compiles a program.

    Attributes:
      config: of the training.
      stage: shapes and budgets.
      near_far: distances between which rays are sampled.
      rgb_loss_fn: loss of each pixel's color.
      mesh: devices that share the rays of a step.
    """

    config: TrainConfig
    stage: StageSpec
    near_far: tuple[float, float]
    rgb_loss_fn: RgbLossFn
    mesh: Mesh

    @property
    def is_one_batch(self) -> bool:
        """Whether the gradient of all rays is computed at once."""
        return self.stage.num_shards * self.stage.num_microbatches == 1


def train_steps(
    spec: StepSpec,
    state: TrainState,
    pixels: PixelDataset,
    rng: Key[Array, ""],
    schedule: TrainSchedule,
    count: Int[Array, ""],
    prefetched: SampledPixels | None = None,
) -> tuple[TrainState, Metrics]:
    """The state after `count` steps, and the means of their metrics.

    The compiled loop takes any count, and the key of each step is `fold_in(rng, step)`, so it
    changes no bit of the result how many steps each call of the loop (a dispatch) runs.

    Args:
      spec: static facts.
      state: before the steps.
      pixels: to sample from.
      rng: key of the training.
      schedule: of learning rates and regions.
      count: number of steps.
      prefetched: the pixels of at least that many steps, if images stay on the host.
    """

    def body(number: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, total = carry
        step_pixels = jax.tree.map(lambda x: x[number], prefetched)
        state, metrics = train_step(spec, state, pixels, rng, schedule, step_pixels)
        return state, jax.tree.map(jnp.add, total, metrics)

    state, total = jax.lax.fori_loop(0, count, body, (state, Metrics.zeros()))
    means = jax.tree.map(lambda x: x / jnp.maximum(total.finite_fraction, 1.0), total)
    return state, means._replace(finite_fraction=total.finite_fraction / count)


def train_step(
    spec: StepSpec,
    state: TrainState,
    pixels: PixelDataset,
    rng: Key[Array, ""],
    schedule: TrainSchedule,
    sampled: SampledPixels | None,
) -> tuple[TrainState, Metrics]:
    """The state after one step, and its metrics.

    If images stay on the host, `sampled` are the step's pixels.
    """
    progress = schedule.progress_at(state.step)
    key_batch, key = step_rngs(rng, state.step)
    region = sampling_region(spec.config, progress)
    if sampled is None and spec.stage.patch_size > 1:
        sampled = sample_patches(pixels, key_batch, spec.stage, region)
    batch = sample_batch(
        pixels,
        key_batch,
        spec.stage.num_pixels(),
        spec.near_far,
        spec.config.background,
        spec.stage.supersample,
        region,
        sampled,
        spec.config.loss.depth_share,
    )
    if spec.config.loss.inlier_quantile:
        quantile = inlier_quantile_at(spec.config.loss, progress)
        batch = batch._replace(inlier_quantile=jnp.broadcast_to(quantile, batch.alpha.shape))
    # A key for each ray: it does not matter which rays are computed together.
    batch, keys = devices.constrain_replicated(
        spec.mesh, (batch, split_ray_rngs(key, spec.stage.num_rays))
    )
    _, loss_scale = optim.split_loss_scale(state.opt_state)
    accum = compute_grads(spec, state.params, state.grid, loss_scale, batch, keys)
    if spec.config.shards is not None:
        # The last addition must not be fused with the update, or it might be rounded otherwise.
        accum = jax.lax.optimization_barrier(accum)
    return apply_updates(spec, state, accum, key, schedule, progress, pixels.preconditioner)


def compute_loss(
    params: ModelParams,
    spec: StepSpec,
    grid: OccupancyGrid,
    loss_scale: Float[Array, ""],
    batch: Batch,
    keys: Key[Array, "r"],
) -> tuple[Float[Array, ""], tuple[Metrics, Float[Array, "slots"] | None]]:
    """The scaled loss of a batch, with its metrics and recorded weights."""
    config, stage = spec.config, spec.stage.per_shard()
    batch = adjust_rays(batch, params.cameras, spec.near_far)
    background = jnp.repeat(batch.background, stage.supersample**2, axis=0)
    rendering = config.model.render_train(
        stage,
        params,
        grid,
        keys,
        batch.rays,
        background,
        config.ray_convention,
        depth_target(config.loss, batch),
    )
    rendering = config.model.correct_colors(params, rendering, batch.rays.camera_index, background)
    loss = total_loss(
        config.loss, spec.rgb_loss_fn, rendering, batch, stage.supersample, spec.is_one_batch
    )
    metrics = _batch_metrics(loss, rendering, batch, stage.supersample)
    return loss_scale * loss, (metrics, rendering.grid.weight_memory)


def _batch_metrics(
    loss: Float[Array, ""], rendering: TrainRendering, batch: Batch, supersample: int
) -> Metrics:
    pixel_rgb, pixel_mask = mean_over_subrays(rendering, batch, supersample)
    return Metrics.zeros()._replace(
        loss=loss,
        mse=mean_squared_error(pixel_rgb[-1], batch.target_rgb, pixel_mask),
        opacity=jnp.mean(rendering.opacity),
        target_alpha=jnp.mean(batch.alpha),
        overflowed=jnp.mean(rendering.overflowed * 1.0),
        num_samples=rendering.num_samples * 1.0,
        finite_fraction=jnp.ones(()),
    )


def compute_grads(
    spec: StepSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    loss_scale: Float[Array, ""],
    batch: Batch,
    keys: Key[Array, "r"],
) -> GradAccum:
    """Gradients and metrics of a batch, whatever devices and microbatches it is cut into."""
    if spec.is_one_batch:
        return _batch_grads(spec, params, grid, loss_scale, (batch, keys))
    run = devices.shard_rays(spec.mesh, partial(_device_grads, spec), (False, False, False, True))
    total: GradAccum = run(params, grid, loss_scale, (batch, keys))
    count = spec.stage.num_shards * spec.stage.num_microbatches
    grads, metrics = jax.tree.map(lambda x: x / count, (total.grads, total.metrics))
    metrics = metrics._replace(num_samples=total.metrics.num_samples)
    return GradAccum(grads, metrics, total.weight_memory)


def _batch_grads(
    spec: StepSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    loss_scale: Float[Array, ""],
    rays: tuple[Batch, Key[Array, "r"]],
) -> GradAccum:
    """Gradients of rays that are computed together."""
    grads, aux = jax.grad(compute_loss, has_aux=True)(params, spec, grid, loss_scale, *rays)
    return GradAccum(grads, *aux)


def _device_grads(
    spec: StepSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    loss_scale: Float[Array, ""],
    rays: tuple[Batch, Key[Array, "r"]],
) -> GradAccum:
    """The sum over the microbatches of one device's shards, then over all devices."""
    initial = GradAccum(jax.tree.map(jnp.zeros_like, params), Metrics.zeros(), grid.weight_memory)
    shard_grads = partial(_shard_grads, spec, params, grid, loss_scale, initial)
    if spec.config.shards is None:
        total: GradAccum = shard_grads(rays)
        return total.all_reduce() if spec.mesh.size > 1 else total
    count = spec.stage.num_shards // spec.mesh.size
    shards = _split_leading_axis(rays, count)
    total = sums.pairwise_sum(shard_grads, shards, count, initial, GradAccum.add)
    return sums.recursive_doubling_allreduce(spec.mesh, total, GradAccum.add)


def _shard_grads(
    spec: StepSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    loss_scale: Float[Array, ""],
    initial: GradAccum,
    shard: tuple[Batch, Key[Array, "r"]],
) -> GradAccum:
    """The sum over the microbatches of a shard, computed one after the other."""

    def add_microbatch(total: GradAccum, rays: Any) -> tuple[GradAccum, None]:
        return total.add(_batch_grads(spec, params, grid, loss_scale, rays)), None

    microbatches = _split_leading_axis(shard, spec.stage.num_microbatches)
    return jax.lax.scan(add_microbatch, initial, microbatches)[0]


def _split_leading_axis(tree: Any, parts: int) -> Any:
    """Reshapes arrays from (n, ...) to (parts, n / parts, ...)."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def apply_updates(
    spec: StepSpec,
    state: TrainState,
    accum: GradAccum,
    key: Key[Array, ""],
    schedule: TrainSchedule,
    progress: Float[Array, ""],
    preconditioner: Float[Array, "n d d"] | None = None,
) -> tuple[TrainState, Metrics]:
    """The state after an update with these gradients, and the metrics of the step.

    Cameras are updated in preconditioned coordinates z, their adjustment being P^-1 z. So their
    gradient, and what the optimizer makes of it, are multiplied by P^-1.
    """
    config, model = spec.config, spec.config.model
    key_penalty, key_grid = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    opt_state, loss_scale = optim.split_loss_scale(state.opt_state)
    grads = accum.grads
    if isinstance(state.opt_state, LossScaledState):
        grads = jax.tree.map(lambda g: g / loss_scale, grads)
    # Total variation falls as the learning rates do (the authors' code of TensoRF).
    tv_decay = config.optimizer.lr_final_mult**progress
    penalty, grads = model.add_regularization(
        spec.stage.field, state.params, grads, state.grid, key_penalty, tv_decay
    )

    def condition(tree: ModelParams) -> ModelParams:
        if preconditioner is None or tree.cameras is None:
            return tree
        return tree._replace(cameras=precondition(preconditioner, tree.cameras))

    grads = condition(grads)
    groups = model.param_groups(spec.stage.field, grads)
    squares = optim.square_norms(grads)
    norm = optim.group_norm(squares, groups)
    params, new_opt_state = update_params(
        config.optimizer, schedule, groups, state.params, opt_state, grads, norm, condition
    )
    grid = state.grid.with_weight_memory(accum.weight_memory)
    grid = model.update_grid(spec.stage, params, grid, key_grid, config.image_scales())
    ema_params = state.ema_params
    if ema_params is not None:
        ema_params = optim.update_ema(config.optimizer, ema_params, params, state.step)
    metrics = accum.metrics._replace(
        loss=accum.metrics.loss + penalty,
        grad_norm=norm,
        grid_grad_norm=optim.group_norm(squares, groups, "grid"),
        mlp_grad_norm=optim.group_norm(squares, groups, "mlp"),
    )
    updated = TrainState(params, new_opt_state, state.step + 1, grid, ema_params)
    if not isinstance(state.opt_state, LossScaledState):
        return updated, metrics
    return _skip_non_finite(state, updated, metrics, grads)


def _skip_non_finite(
    state: TrainState, updated: TrainState, metrics: Metrics, grads: ModelParams
) -> tuple[TrainState, Metrics]:
    """Skips non-finite updates and adapts the scale of the loss."""
    opt_state, loss_scale = optim.split_loss_scale(state.opt_state)
    finite = optim.all_finite(grads)
    # At a scale of 1 the overflow has another cause, which the metrics must show.
    metrics = jax.tree.map(lambda x: jnp.where(finite | (loss_scale == 1.0), x, 0.0), metrics)
    previous = dataclasses.replace(state, opt_state=opt_state)
    chosen = jax.tree.map(partial(jnp.where, finite), updated, previous)
    scale = optim.update_loss_scale(state.opt_state.scale, finite)
    opt_state = LossScaledState(chosen.opt_state, scale)
    return dataclasses.replace(chosen, step=updated.step, opt_state=opt_state), metrics
