"""Optimizers out of optax: parameter groups, schedules, clipping."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.kernels import calls
from jaxrf.fields.base import Params
from jaxrf.training.config import OptimizerConfig
from jaxrf.training.schedule import TrainSchedule

# Numbers of an array from which on a kernel is worth its call.
LARGE_TABLE = 1 << 12
# Progress of a training from which the rate of cameras decays: they have to be right, and quiet,
# while the field takes in its detail.
CAMERA_DECAY_START = 0.2
# Distance in pixels from its first pose at which a camera is pulled back most; it shrinks beyond.
CAMERA_PULL_WIDTH = 0.2


def make_lr_schedule(
    config: OptimizerConfig, peak: float, schedule: TrainSchedule
) -> optax.Schedule:
    """Learning rate by step: decay to `lr_final_mult` of the peak, after a warm-up.

    The warm-up rises linearly from a hundredth of the peak and does not delay the decay. After a
    reset the decay begins anew, at the same pace. The schedule may be traced, so that a step
    compiled for one length of training serves all others.

    Args:
      config: the decay and the warm-up.
      peak: learning rate after the warm-up, but for the decay.
      schedule: of the training.
    """
    warmup = config.warmup

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        progress = schedule.progress_at(step)
        ramp = jnp.minimum(0.01 + 0.99 * progress / max(warmup, 1e-9), 1.0)
        since = jnp.maximum(progress - schedule.last_lr_reset, 0.0)
        return peak * _decay(config, since) * (ramp if warmup > 0 else 1.0)

    return rate


def _decay(config: OptimizerConfig, since: Float[Array, ""]) -> Float[Array, ""]:
    """Factor of the peak learning rate at a progress since the last reset."""
    final = config.lr_final_mult
    if config.lr_schedule == "exponential":
        return final**since
    if config.lr_schedule == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * since))
    passed = sum((since >= at) * 1.0 for at in (0.5, 0.75, 0.9))
    return final ** (passed / 3.0)


def make_camera_lr_schedule(config: OptimizerConfig, schedule: TrainSchedule) -> optax.Schedule:
    """Learning rate of cameras by step: none at first, a rise half as long, full, then decay."""
    delay = config.camera_delay

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        progress = schedule.progress_at(step)
        ramp = jnp.clip((progress - delay) / max(0.5 * delay, 1e-9), 0.0, 1.0)
        decayed = jnp.clip((progress - CAMERA_DECAY_START) / (1.0 - CAMERA_DECAY_START), 0.0, 1.0)
        return config.camera_lr * ramp * config.camera_lr_final_mult**decayed

    return rate


def make_lr_schedules(
    config: OptimizerConfig, schedule: TrainSchedule
) -> dict[str, optax.Schedule]:
    """The learning rate of each parameter group."""
    return {
        "grid": make_lr_schedule(config, config.grid_lr, schedule),
        "mlp": make_lr_schedule(config, config.mlp_lr, schedule),
        "camera": make_camera_lr_schedule(config, schedule),
    }


def make_optimizer(
    config: OptimizerConfig, schedule: TrainSchedule, groups: Params
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, Adam, and one scheduled learning rate for each group.

    `config.l2` times the matrices of MLPs is added to the gradients before Adam,
    `config.weight_decay` times them after it (Loshchilov and Hutter 2019).

    Args:
      config: learning rates and constants.
      schedule: of the training.
      groups: shaped like the parameters, the name of a group at each leaf.
    """
    # Without refined cameras the state of the optimizer has no entry for them.
    refines = "camera" in jax.tree.leaves(groups)
    schedules = make_lr_schedules(config, schedule)
    rates = {group: optax.scale_by_learning_rate(schedules[group]) for group in ("grid", "mlp")}
    if refines:
        rates["camera"] = move_cameras(schedules["camera"], config.camera_pull)
    return optax.with_extra_args_support(
        optax.chain(
            _clip_by_norm(config),
            _add_decayed_weights(config.l2, groups),
            _scale_by_adam(config),
            _add_decayed_weights(config.weight_decay, groups),
            optax.partition(rates, groups),
        )
    )


def _clip_by_norm(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, which may be told the norm where it is known."""

    def update(
        grads: Params, state: Any, params: Params = None, *, norm: Array | None = None, **_: Any
    ) -> tuple[Params, Any]:
        del params
        factor = clip_factor(config, optax.tree.norm(grads) if norm is None else norm)
        return jax.tree.map(lambda g: (factor * g).astype(g.dtype), grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def clip_factor(config: OptimizerConfig, norm: Float[Array, ""]) -> Float[Array, ""]:
    """Factor that gradients of this global norm are scaled down by."""
    return jnp.where(norm < config.clip_norm, 1.0, config.clip_norm / norm)


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if not config.skip_zero_gradients:
        return adam

    def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        updates, new = adam.update(grads, state, params)
        mu = _where_nonzero(grads, new.mu, state.mu)
        nu = _where_nonzero(grads, new.nu, state.nu)
        zeros = jax.tree.map(jnp.zeros_like, grads)
        return _where_nonzero(grads, updates, zeros), new._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(adam.init, update)


def _where_nonzero(grads: Params, changed: Params, otherwise: Params) -> Params:
    """Entries of one tree where gradients are not 0, and of another elsewhere."""
    return jax.tree.map(lambda g, a, b: jnp.where(g != 0, a, b), grads, changed, otherwise)


def _add_decayed_weights(rate: float, groups: Params) -> optax.GradientTransformation:
    """Adds `rate` times the weight matrices of MLPs to the updates."""
    if not rate:
        return optax.identity()

    # A group may stand for all parameters below it.
    return optax.add_decayed_weights(
        rate, mask=lambda params: jax.tree.map(_mark_matrices, groups, params)
    )


def _mark_matrices(group: str, params: Params) -> Params:
    """Whether each parameter of a group is a weight matrix of an MLP."""
    return jax.tree.map(lambda leaf: group == "mlp" and leaf.ndim > 1, params)


def square_norms(grads: Params) -> Params:
    """Squared norm of each gradient, shaped like them."""
    return jax.tree.map(_square_norm, grads)


def _square_norm(grad: Float[Array, "*shape"]) -> Float[Array, ""]:
    def add_squares(grad: Array) -> Array:
        return jnp.sum(jnp.square(grad))

    if grad.size < LARGE_TABLE or not calls.can_call(grad):
        return add_squares(grad)
    total: Array = jax.lax.platform_dependent(grad, cpu=calls.sum_squares, default=add_squares)
    return total


def group_norm(squares: Params, groups: Params, group: str | None = None) -> Float[Array, ""]:
    """Norm of the gradients of one group, or of all, given their squared norms."""
    pairs = zip(jax.tree.leaves(squares), jax.tree.leaves(groups), strict=True)
    chosen = [square for square, label in pairs if group in (label, None)]
    return jnp.sqrt(sum(chosen, jnp.zeros(())))


def update_ema(
    config: OptimizerConfig, ema_params: Params, params: Params, step: Int[Array, ""]
) -> Params:
    """The exponential moving average of the parameters after a step."""
    # Warm up the decay, or the first parameters would be remembered for long.
    decay = jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, ema_params, 1.0 - decay)


def map_moments(fn: Any, opt_state: Any) -> Any:
    """Applies a function of parameter-shaped trees to Adam's two moments.

    For a grid that changes its resolution: the moments are resampled as the parameters are.
    """

    def map_node(node: Any) -> Any:
        return node._replace(mu=fn(node.mu), nu=fn(node.nu)) if _is_adam(node) else node

    return jax.tree.map(map_node, opt_state, is_leaf=_is_adam)


def reset_adam_moments(opt_state: Any) -> Any:
    """Adam's state as before the first step; the schedules go on counting."""

    def forget(node: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, node) if _is_adam(node) else node

    return jax.tree.map(forget, opt_state, is_leaf=_is_adam)


def find_adam(opt_state: Any) -> optax.ScaleByAdamState:
    """Adam's state in that of `make_optimizer`."""
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_adam)
    (adam,) = (node for node in nodes if _is_adam(node))
    return adam


def count_updates(opt_state: Any) -> Int[Array, ""]:
    """Number of updates that the schedules of `make_optimizer` have counted."""

    def counts(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    nodes = jax.tree.leaves(opt_state, is_leaf=counts)
    count: Array = next(node for node in nodes if counts(node)).count
    return count


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


class CameraMoves(NamedTuple):
    """How far cameras have moved, in the numbers that the optimizer sees.

    moved: shaped like the updates.
    step: () number of updates.
    """

    moved: Params
    step: Int[Array, ""]


def move_cameras(rate: optax.Schedule, pull: float) -> optax.GradientTransformation:
    """Updates of cameras by the learning rate, which a pull back to their first poses is added to.

    The pull is pull z / (1 + |z|^2 / w^2) for a camera that has moved by z, w being
    `CAMERA_PULL_WIDTH`: the slope of a Cauchy prior, (pull w^2 / 2) log(1 + |z|^2 / w^2), beside
    Adam as weight decay is (Loshchilov and Hutter 2019). It holds poses that were right against the
    noise of the gradients, and lets go of those that were wrong: it is at most pull w / 2, in
    updates of Adam, and shrinks as they move on.

    Args:
      rate: learning rate by step.
      pull: its strength; 0 for none.
    """

    def init(params: Params) -> CameraMoves:
        return CameraMoves(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(
        updates: Params, state: CameraMoves, params: Params = None
    ) -> tuple[Params, CameraMoves]:
        del params
        squares = (
            jnp.sum(jnp.square(part), axis=1, keepdims=True)
            for part in jax.tree.leaves(state.moved)
        )
        strength = pull / (1.0 + sum(squares) / CAMERA_PULL_WIDTH**2)
        moves = jax.tree.map(
            lambda u, z: -rate(state.step) * (u + strength * z), updates, state.moved
        )
        moved = jax.tree.map(jnp.add, state.moved, moves)
        return moves, CameraMoves(moved, state.step + 1)

    return optax.GradientTransformation(init, update)


class LossScale(NamedTuple):
    """Factor of the loss in half precision (Micikevicius et al. 2018).

    factor: a power of two.
    since: () steps since the last overflow.
    """

    factor: Float[Array, ""]
    since: Int[Array, ""]


class LossScaledState(NamedTuple):
    """An optimizer's state, and the scale of the loss whose gradients it gets."""

    base_opt_state: Any
    scale: LossScale


# The scale is doubled after this number of steps without an overflow, and halved by one.
INITIAL_SCALE, MAX_SCALE, STEPS_TO_DOUBLE = 2.0**12, 2.0**24, 500


def init_loss_scale() -> LossScale:
    """The first scale."""
    return LossScale(jnp.asarray(INITIAL_SCALE), jnp.zeros((), jnp.int32))


def split_loss_scale(opt_state: Any) -> tuple[Any, Float[Array, ""]]:
    """The optimizer's state without the scale of the loss, and the factor of the loss."""
    if isinstance(opt_state, LossScaledState):
        return opt_state.base_opt_state, opt_state.scale.factor
    return opt_state, jnp.ones(())


def update_loss_scale(scale: LossScale, finite: Bool[Array, ""]) -> LossScale:
    """The scale after a step whose gradients were finite or not."""
    since = jnp.where(finite, scale.since + 1, 0)
    doubles = since == STEPS_TO_DOUBLE
    larger = jnp.where(doubles, jnp.minimum(2.0 * scale.factor, MAX_SCALE), scale.factor)
    factor = jnp.where(finite, larger, jnp.maximum(0.5 * scale.factor, 1.0))
    return LossScale(factor, jnp.where(doubles, 0, since))


def all_finite(tree: Params) -> Bool[Array, ""]:
    """Whether all numbers are finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))
