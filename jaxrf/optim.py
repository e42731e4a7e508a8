"""Optimisers out of optax: parameter groups, schedules, clipping."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxrf.config import OptimizerConfig

Params = Any
GROUPS = ("grid", "network")


def make_schedule(
    config: OptimizerConfig, peak: float, steps: int | Int[Array, ""]
) -> optax.Schedule:
    """Learning rate by step: exponential decay to `final_fraction` of the peak, after a warm-up.

    The warm-up rises linearly from a hundredth of the peak and does not delay the decay. The number
    of steps may be traced, so that a step compiled for one length of training serves all others.
    """

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        decay = config.final_fraction ** (step / jnp.maximum(steps, 1))
        warmup = jnp.round(config.warmup * steps)
        ramp = jnp.minimum(0.01 + 0.99 * step / jnp.maximum(warmup, 1), 1.0)
        return peak * decay * jnp.where(warmup > 0, ramp, 1.0)

    return rate


def make_schedules(
    config: OptimizerConfig, steps: int | Int[Array, ""]
) -> dict[str, optax.Schedule]:
    """The schedule of each parameter group."""
    peaks = {"grid": config.grid_rate, "network": config.network_rate}
    return {group: make_schedule(config, peaks[group], steps) for group in GROUPS}


def make_optimizer(
    config: OptimizerConfig, steps: int | Int[Array, ""], labels: Params
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, Adam, and one scheduled learning rate for each group.

    Args:
      config: rates and constants.
      steps: length of the schedules.
      labels: shaped like the parameters, a group's name at each leaf (or above leaves).
    """
    rates = {
        group: optax.scale_by_learning_rate(schedule)
        for group, schedule in make_schedules(config, steps).items()
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
