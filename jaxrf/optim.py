"""Optimisers out of optax: parameter groups, schedules, clipping."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxrf.config import OptimizerConfig

Params = Any
GROUPS = ("grid", "network")


class Course(NamedTuple):
    """What sets one course of training apart from another that is compiled the same.

    key: of all chance.
    steps, progress: (k,) how far training has come after how many steps, linear in between.
    """

    key: jax.Array
    steps: Float[Array, "k"]
    progress: Float[Array, "k"]


def make_schedule(config: OptimizerConfig, peak: float, course: Course) -> optax.Schedule:
    """Learning rate by step: exponential decay to `final_fraction` of the peak, after a warm-up.

    The warm-up rises linearly from a hundredth of the peak and does not delay the decay. The course
    may be traced, so that a step compiled for one length of training serves all others.
    """

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        done = jnp.interp(jnp.asarray(step, jnp.float32), course.steps, course.progress)
        ramp = jnp.minimum(0.01 + 0.99 * done / max(config.warmup, 1e-9), 1.0)
        return peak * config.final_fraction**done * (ramp if config.warmup > 0 else 1.0)

    return rate


def make_schedules(config: OptimizerConfig, course: Course) -> dict[str, optax.Schedule]:
    """The schedule of each parameter group."""
    peaks = {"grid": config.grid_rate, "network": config.network_rate}
    return {group: make_schedule(config, peaks[group], course) for group in GROUPS}


def make_optimizer(
    config: OptimizerConfig, course: Course, labels: Params
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, Adam, and one scheduled learning rate for each group.

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
            optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
            optax.partition(rates, labels),
        )
    )


def map_moments(fn: Any, opt_state: Any) -> Any:
    """Applies a function of parameter-shaped trees to Adam's two moments.

    For a grid that changes its resolution: the moments are resampled as the parameters are.
    """

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    def map_node(node: Any) -> Any:
        return node._replace(mu=fn(node.mu), nu=fn(node.nu)) if is_adam(node) else node

    return jax.tree.map(map_node, opt_state, is_leaf=is_adam)
