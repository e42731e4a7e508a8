"""Optimisers out of optax: parameter groups, schedules, clipping."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxrf.training.config import OptimizerConfig

Params = Any
GROUPS = ("grid", "network")


class Course(NamedTuple):
    """What sets one course of training apart from another that is compiled the same.

    key: of all chance.
    steps, progress: (k,) how far training has come after how many steps, linear in between.
    restart: progress at which rates began anew; 0 if they never did.
    """

    key: jax.Array
    steps: Float[Array, "k"]
    progress: Float[Array, "k"]
    restart: Float[Array, ""]


def make_schedule(config: OptimizerConfig, peak: float, course: Course) -> optax.Schedule:
    """Learning rate by step: decay to `lr_final_mult` of the peak, after a warm-up.

    The decay goes by `config.decay`. The warm-up rises linearly from a hundredth of the peak and
    does not delay the decay. After a restart the decay begins anew, at the same pace. The course
    may be traced, so that a step compiled for one length of training serves all others.
    """
    final = config.lr_final_mult

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        done = jnp.interp(jnp.asarray(step, jnp.float32), course.steps, course.progress)
        ramp = jnp.minimum(0.01 + 0.99 * done / max(config.warmup, 1e-9), 1.0)
        since = jnp.maximum(done - course.restart, 0.0)
        match config.decay:
            case "exponential":
                rest = final**since
            case "cosine":
                rest = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * since))
            case "steps":
                passed = sum((since >= at) * 1.0 for at in (0.5, 0.75, 0.9))
                rest = final ** (passed / 3.0)
        return peak * rest * (ramp if config.warmup > 0 else 1.0)

    return rate


def make_schedules(config: OptimizerConfig, course: Course) -> dict[str, optax.Schedule]:
    """The schedule of each parameter group."""
    peaks = {"grid": config.grid_lr, "network": config.mlp_lr}
    return {group: make_schedule(config, peaks[group], course) for group in GROUPS}


def make_optimizer(
    config: OptimizerConfig, course: Course, labels: Params
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, Adam, and one scheduled learning rate for each group.

    `config.l2` times the networks' matrices joins the gradients before Adam sees them,
    `config.weight_decay` times them after it (Loshchilov and Hutter 2019).

    Args:
      config: rates and constants.
      course: of the training.
      labels: shaped like the parameters, a group's name at each leaf (or above leaves).
    """
    rates = {
        group: optax.scale_by_learning_rate(schedule)
        for group, schedule in make_schedules(config, course).items()
    }
    return optax.with_extra_args_support(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            _add_decayed_weights(config.l2, labels),
            _scale_by_adam(config),
            _add_decayed_weights(config.weight_decay, labels),
            optax.partition(rates, labels),
        )
    )


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if not config.skip_zero_gradients:
        return adam

    def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        updates, new = adam.update(grads, state, params)

        def choose(changed: Params, otherwise: Params) -> Params:
            return jax.tree.map(lambda g, a, b: jnp.where(g != 0, a, b), grads, changed, otherwise)

        zeros = jax.tree.map(jnp.zeros_like, grads)
        moments = {"mu": choose(new.mu, state.mu), "nu": choose(new.nu, state.nu)}
        return choose(updates, zeros), new._replace(**moments)

    return optax.GradientTransformation(adam.init, update)


def _add_decayed_weights(rate: float, labels: Params) -> optax.GradientTransformation:
    """So many times the weight matrices of networks are added to updates."""
    if not rate:
        return optax.identity()

    def is_matrix(params: Params) -> Params:
        def below(label: str, part: Params) -> Params:
            return jax.tree.map(lambda leaf: label == "network" and leaf.ndim > 1, part)

        return jax.tree.map(below, labels, params)

    return optax.add_decayed_weights(rate, mask=is_matrix)


def group_norm(grads: Params, labels: Params, group: str) -> Float[Array, ""]:
    """Norm of one group's gradients, of which the whole norm needs the squares too."""
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(labels), strict=True)
    # optax gives a plain 0 for no leaves.
    return jnp.asarray(optax.tree.norm([leaf for leaf, label in pairs if label == group]) * 1.0)


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


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


class LossScale(NamedTuple):
    """Factor of the loss while it is differentiated in half precision (Micikevicius et al. 2018).

    factor: a power of two.
    since: () steps without an overflow.
    """

    factor: Float[Array, ""]
    since: Int[Array, ""]


class Scaled(NamedTuple):
    """An optimiser's state, and the scale of the loss whose gradients it gets."""

    inner: Any
    scale: LossScale


# It is doubled after so many steps without an overflow, and halved by one.
FIRST_SCALE, MOST_SCALE, STEPS_TO_DOUBLE = 2.0**12, 2.0**24, 500


def init_loss_scale() -> LossScale:
    """The scale to begin with."""
    return LossScale(jnp.asarray(FIRST_SCALE), jnp.zeros((), jnp.int32))


def unscale(opt_state: Any) -> tuple[Any, Float[Array, ""]]:
    """The optimiser's own state, and by what the loss is multiplied."""
    if isinstance(opt_state, Scaled):
        return opt_state.inner, opt_state.scale.factor
    return opt_state, jnp.ones(())


def update_loss_scale(scale: LossScale, finite: Bool[Array, ""]) -> LossScale:
    """The scale after a step whose gradients were finite or not."""
    since = jnp.where(finite, scale.since + 1, 0)
    grown = since == STEPS_TO_DOUBLE
    larger = jnp.where(grown, jnp.minimum(2.0 * scale.factor, MOST_SCALE), scale.factor)
    factor = jnp.where(finite, larger, jnp.maximum(0.5 * scale.factor, 1.0))
    return LossScale(factor, jnp.where(grown, 0, since))


def all_finite(tree: Params) -> Bool[Array, ""]:
    """Whether all numbers are finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))
